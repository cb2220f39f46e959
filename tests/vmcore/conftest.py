# SPDX-License-Identifier: GPL-2.0-or-later
"""What needs gdb around it runs by tests/run_in_gdb.py, all else anywhere."""

import subprocess
import sys

import pytest

# Not by name: the folder tests/gdb looks like a module "gdb" too.
inside_gdb = ["test_boot.py", "test_processes.py", "test_frames.py"]
collect_ignore = [] if "_gdb" in sys.modules else inside_gdb


@pytest.fixture(scope="module")
def sparse_copy(dump_dir, tmp_path_factory):
    """A copy of a small dump, which the module's tests may damage."""
    if dump_dir.name.startswith("big"):
        pytest.skip("the small dumps are copied; a big one adds only minutes")
    path = tmp_path_factory.mktemp("copy") / "vmcore"
    subprocess.run(["cp", "--sparse=always", dump_dir / "vmcore", path], check=True)
    yield path
    path.unlink()
