# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb without a vmlinux: the frame file alone gives it all frames, if no names."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from gdbkdump.kernel.sched import tasks
from gdbkdump.session import open_session
from gdbkdump.target.threads import kernel_threads
from gdbkdump.unwind.frame import FrameKind, StackEnd
from gdbkdump.unwind.unwinder import unwind_task

ROOT = Path(__file__).resolve().parents[2]
THREAD = re.compile(r"^Thread \d+ \(LWP (\d+)")
FRAME = re.compile(r"^#\d+ +(?:(0x[0-9a-f]+) in \?\? \(\)|(<signal handler called>))")


def backtraces(folder, home):
    """What gdb prints of each thread: pcs, None for frames that are marked."""
    command = ["gdb", "-nx", "-batch", "-c", folder / "vmcore"]
    command += ["-x", ROOT / "gdb-init.py", "-ex", "thread apply all bt"]
    environment = dict(os.environ, XDG_CACHE_HOME=str(home))
    environment.pop("VIRTUAL_ENV", None)
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, check=True
    )
    assert "Backtrace stopped" not in done.stdout
    found, pcs = {}, []
    # What gdb says of the user's own core comes before the first thread.
    for line in done.stdout[done.stdout.index("\nThread ") :].splitlines():
        if match := THREAD.match(line):
            pcs = found[int(match[1])] = []
        elif match := FRAME.match(line):
            pcs.append(int(match[1], 16) if match[1] else None)
        else:
            assert not line.startswith("#"), line
    return found


def expected(kernel, stack):
    # As tests/vmcore/test_frames.py has it.
    if not stack.frames:
        return [stack.user_registers["ip"] if stack.user_registers else 0]
    marked = [False, *(f.kind is FrameKind.EXCEPTION for f in stack.frames[1:])]
    pcs = [frame.ip for frame in stack.frames]
    symbol = kernel.debuginfo.symbol_at(pcs[-1])
    if stack.end is StackEnd.USER and symbol.name.startswith("asm_"):
        pcs[-1] -= 1
    # Marked is the one that calls what was interrupted, and the change of a stack in
    # assembly (5.10).
    names = [str(kernel.debuginfo.symbol_at(pc)) for pc in pcs]
    return [
        None if interrupts or name.startswith("asm_call_") else pc
        for pc, name, interrupts in zip(pcs, names, [*marked[1:], False], strict=True)
    ]


def check(directory, folder, home):
    (folder / "vmcore").symlink_to(directory / "vmcore")
    session = open_session(folder / "vmcore")
    kernel = session.kernel
    by_address = {task.address: task for task in tasks(kernel)}
    wanted = {
        thread.id: expected(kernel, unwind_task(kernel, by_address[thread.task]))
        for thread in kernel_threads(kernel).threads
    }
    session.close()
    found = backtraces(folder, home)
    assert len(found) > 50
    assert found == wanted


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Nothing that was made before this test is in it."""
    return tmp_path_factory.mktemp("home")


def test_all_frames_of_all_tasks(dump_dir, tmp_path, home):
    check(dump_dir, tmp_path, home)


def test_all_frames_of_crashes(crash_dir, tmp_path, home):
    check(crash_dir, tmp_path, home)


def test_a_home_that_cannot_be_written_to(dump_dir, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    check(dump_dir, tmp_path, tmp_path / "file")
