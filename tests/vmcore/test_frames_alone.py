# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb without a vmlinux: frame file and symbol file give it all frames, and names."""

from __future__ import annotations

import os
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from gdbkdump.kernel.sched import tasks
from gdbkdump.session import open_session
from gdbkdump.target.threads import kernel_threads
from gdbkdump.unwind.frame import FrameKind, StackEnd
from gdbkdump.unwind.tables import open_tables
from gdbkdump.unwind.unwinder import unwind_task

ROOT = Path(__file__).resolve().parents[2]
# What a thread of a core is called is up to the gdbarch that gdb chose.
THREAD = re.compile(r"^Thread \d+ \((?:LWP|Thread) (\d+)")
FRAME = re.compile(r"^#\d+ +(?:(0x[0-9a-f]+) in (\S+) \(\)|(<signal handler called>))")


def backtraces(folder, home):
    """What gdb prints of each thread: pc and name, None for frames that are marked."""
    command = ["gdb", "-nx", "-batch", "-c", folder / "vmcore"]
    command += ["-x", ROOT / "gdb-init.py", "-ex", "thread apply all bt"]
    environment = dict(os.environ, XDG_CACHE_HOME=str(home))
    environment.pop("VIRTUAL_ENV", None)
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, check=True
    )
    assert "Backtrace stopped" not in done.stdout
    found, frames = {}, []
    # What gdb says of the user's own core comes before the first thread.
    for line in done.stdout[done.stdout.index("\nThread ") :].splitlines():
        if match := THREAD.match(line):
            frames = found[int(match[1])] = []
        elif match := FRAME.match(line):
            frames.append((int(match[1], 16), match[2]) if match[1] else None)
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
    last = stack.frames[-1]
    row = open_tables(kernel).find(last.pc)
    is_entry = last.stack is not None and last.stack.name == "ENTRY TRAMPOLINE stack"
    if is_entry and row and row.sp_offset:
        pcs.append(stack.user_registers["ip"])
        marked.append(True)
    elif stack.end is StackEnd.USER and (is_entry or symbol.name.startswith("asm_")):
        pcs[-1] -= 1
    # Marked is the one that calls what was interrupted, and the change of a stack in
    # assembly (5.10).
    names = [str(kernel.debuginfo.symbol_at(pc)) for pc in pcs]
    return [
        None if interrupts or name.startswith("asm_call_") else pc
        for pc, name, interrupts in zip(pcs, names, [*marked[1:], False], strict=True)
    ]


def names_at(kernel, found, pc):
    """The names that a frame may have: gdb looks a caller's call up, not its return."""
    names = set()
    for address in (pc, pc - 1):
        symbol = kernel.debuginfo.symbol_at(address)
        if symbol is None:
            names.add("??")
        else:
            # gdb takes ".constprop.0" for Ada's, and leaves the number out.
            names |= {re.sub(r"\.\d+$", "", name) for name in found[symbol.address]}
    return names


def check(directory, folder, home):
    (folder / "vmcore").symlink_to(directory / "vmcore")
    session = open_session(folder / "vmcore")
    kernel = session.kernel
    by_address = {task.address: task for task in tasks(kernel)}
    wanted = {
        thread.id: expected(kernel, unwind_task(kernel, by_address[thread.task]))
        for thread in kernel_threads(kernel).threads
    }
    aliases = defaultdict(set)
    modules = (module.symbols for module in kernel.debuginfo.modules())
    for symbols in (kernel.debuginfo.symbol_source, *modules):
        for symbol in symbols:
            aliases[symbol.address].add(symbol.name)
    found = backtraces(folder, home)
    assert len(found) > 50
    frames = {id_: [f and f[0] for f in frames] for id_, frames in found.items()}
    assert frames == wanted
    for pc, name in {f for frames in found.values() for f in frames if f}:
        # ".cold" may be an entry of a protected object of Ada's, to gdb.
        bare = re.sub(r"\.\d+$", "", name).replace("[cold]", ".cold")
        assert bare in names_at(kernel, aliases, pc), hex(pc)
    session.close()


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
