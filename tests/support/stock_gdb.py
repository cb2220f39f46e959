# SPDX-License-Identifier: GPL-2.0-or-later
"""Stock gdb as a script calls it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

INIT = Path(__file__).resolve().parents[2] / "gdb-init.py"


def run_gdb(vmlinux: Path, vmcore: Path, *commands: str) -> str:
    """Return what ``gdb -batch`` prints when it runs the commands on a dump.

    None of them may fail. gdb brings its own Python, so our environment is left out.
    """
    words = [word for text in commands for word in ("-ex", text)]
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    done = subprocess.run(
        ["gdb", "-nx", "-batch", vmlinux, vmcore, "-x", INIT, *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
