# SPDX-License-Identifier: GPL-2.0-or-later
"""Stock gdb as a script calls it."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]
INIT = ROOT / "gdb-init.py"


@functools.cache
def newest_gdb() -> Path:
    """Return a gdb newer than Debian's; it needs VIRTUAL_ENV to be our Python's."""
    code = "import host; print(host.newest_gdb())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(os.environ, PYTHONPATH=str(ROOT / "test-kernels")),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Path(done.stdout.strip())


def run_gdb(
    vmlinux: Path,
    vmcore: Path,
    *commands: str,
    gdb: str = "gdb",
    environment: Mapping[str, str] | None = None,
) -> str:
    """Return what ``gdb -batch`` prints when it runs the commands on a dump.

    None of them may fail. gdb brings its own Python, so our environment is left out.
    """
    words = [word for text in commands for word in ("-ex", text)]
    inherited = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    done = subprocess.run(
        [gdb, "-nx", "-batch", vmlinux, vmcore, "-x", INIT, *words],
        capture_output=True,
        text=True,
        check=False,
        env=inherited | dict(environment or {}),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
