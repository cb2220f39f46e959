# SPDX-License-Identifier: GPL-2.0-or-later
"""``python3 -m gdbkdump`` is the ``gdbkdump`` program."""

from gdbkdump.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
