# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of tests/run_in_gdb.py that runs inside gdb: the boot, then pytest."""

from __future__ import annotations

import os
import site
import sys
from pathlib import Path

import gdb

_ROOT = Path(__file__).resolve().parent.parent.parent


def _run() -> int:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if os.environ["GDBKDUMP_TEST_VERSION"] == version:
        for folder in os.environ["GDBKDUMP_TEST_PATH"].split(os.pathsep):
            site.addsitedir(folder)
    sys.path.insert(0, str(_ROOT))
    import pytest

    gdb.execute(f"source {_ROOT / 'gdb-init.py'}")
    # gdb's sys.stdout has no file descriptor that pytest could capture.
    options = ["-s", "-q", "-p", "no:cacheprovider", "-p", "no:faulthandler"]
    return int(pytest.main([*options, *os.environ["GDBKDUMP_TEST_ARGS"].split("\n")]))


gdb.execute(f"quit {_run()}")
