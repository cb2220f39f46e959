# SPDX-License-Identifier: GPL-2.0-or-later
"""``python3 -m gdbkdump`` is the ``gdbkdump`` program."""

import os
import sys


def main() -> int:
    """Run the program; Ctrl-C while its parts are imported is no traceback either."""
    try:
        from gdbkdump import cli

        return cli.main()
    except KeyboardInterrupt:
        os.write(sys.stderr.fileno(), b"gdbkdump: interrupted\n")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
