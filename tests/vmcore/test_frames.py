# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb's own frames of a real dump against those of kbt (tests/run_in_gdb.py)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import gdb
import pytest

from gdbkdump.debugger import console
from gdbkdump.kernel.sched import is_alive, panic_task, tasks
from gdbkdump.kernel.timekeeping import crash_time
from gdbkdump.session import open_session
from gdbkdump.target.threads import kernel_threads
from gdbkdump.unwind.frame import FrameKind, Stack, StackEnd
from gdbkdump.unwind.orc import Base
from gdbkdump.unwind.tables import open_tables
from gdbkdump.unwind.unwinder import unwind_task

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.kernel.base import Kernel

MAX_FRAMES = 1024
# Frames that gdb makes up of DWARF: a function within another one, and one that was
# left by a jump. Our own unwinder has none of them.
MADE_UP = (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME)


class Native(NamedTuple):
    """What gdb says of a thread."""

    frames: list[gdb.Frame]
    pcs: list[int]
    reason: int


@pytest.fixture(scope="module")
def kernel(request: pytest.FixtureRequest) -> Iterator[Kernel]:
    """The dump that gdb is on, opened anew."""
    (directory,) = request.config.getoption("--dump")
    session = open_session(Path(directory) / "vmcore")
    yield session.kernel
    session.close()


def native() -> Native:
    """The frames of the thread that is selected."""
    frames = [gdb.newest_frame()]
    while len(frames) < MAX_FRAMES and (older := frames[-1].older()):
        frames.append(older)
    reason = frames[-1].unwind_stop_reason()
    real = [frame for frame in frames if frame.type() not in MADE_UP]
    return Native(real, [frame.pc() for frame in real], reason)


def threads(kernel: Kernel) -> Iterator[tuple[gdb.InferiorThread, Stack]]:
    """Each thread, selected, with our own unwinding of it."""
    before = gdb.selected_thread()
    known = {thread.id: thread.task for thread in kernel_threads(kernel).threads}
    by_address = {task.address: task for task in tasks(kernel)}
    for thread in gdb.selected_inferior().threads():
        thread.switch()
        yield thread, unwind_task(kernel, by_address[known[thread.ptid[1]]])
    before.switch()


def expected(kernel: Kernel, stack: Stack) -> list[int]:
    """The pcs that gdb has to find, from ours; they differ where this says so."""
    pcs = [frame.ip for frame in stack.frames]
    if not pcs:
        # A thread of gdb has at least one frame. In user mode it is that of the user;
        # without registers, of a zombie or a CPU that was silent, it is at 0.
        user = stack.user_registers
        assert user or stack.end in (StackEnd.FREED, StackEnd.UNSAVED)
        return [user["ip"] if user else 0]
    symbol = kernel.debuginfo.symbol_at(pcs[-1])
    assert symbol
    last = stack.frames[-1]
    row = open_tables(kernel).find(last.pc)
    is_entry = last.stack is not None and last.stack.name == "ENTRY TRAMPOLINE stack"
    if is_entry and row and row.sp_offset:
        # What calls sync_regs() has more than pt_regs on its stack (not so in 5.10), so
        # nothing tells that it has no caller, and the user's pc is a frame as well.
        assert stack.user_registers
        pcs.append(stack.user_registers["ip"])
    elif stack.end is StackEnd.USER and (is_entry or symbol.name.startswith("asm_")):
        # What interrupted user mode has no caller: told by a byte of its own, which is
        # one before the return address (target/cfi.py).
        pcs[-1] -= 1
    return pcs


def test_all_frames_are_those_of_kbt(kernel: Kernel) -> None:
    found, wanted = {}, {}
    for thread, stack in threads(kernel):
        found[thread.ptid[1]] = [hex(pc) for pc in native().pcs]
        wanted[thread.ptid[1]] = [hex(pc) for pc in expected(kernel, stack)]
    assert len(found) > 50
    assert found == wanted


def test_all_ends_are_clean(kernel: Kernel) -> None:
    reasons = {thread.ptid[1]: native().reason for thread, _ in threads(kernel)}
    assert set(reasons.values()) == {gdb.FRAME_UNWIND_OUTERMOST}
    shown = gdb.execute("thread apply all -q bt -frame-arguments none", to_string=True)
    for line in ("Backtrace stopped", "corrupt", "Cannot access"):
        assert line not in shown


def test_what_was_interrupted_has_all_its_registers(kernel: Kernel) -> None:
    names = {"ip": "rip", "sp": "rsp", "bp": "rbp", "flags": "eflags", "cs": "cs"}
    names |= {f"{x}": f"r{x}" for x in ("ax", "bx", "cx", "dx", "si", "di")}
    names |= {f"r{n}": f"r{n}" for n in range(8, 16)}
    mask = (1 << 64) - 1
    for _, stack in threads(kernel):
        interrupted = [f.kind is FrameKind.EXCEPTION for f in stack.frames]
        if not any(interrupted[1:]):
            continue
        # gdb may have one more, of user mode.
        for ours, frame in zip(stack.frames, native().frames, strict=False):
            if ours.kind is FrameKind.EXCEPTION and ours.registers:
                known = names.keys() & ours.registers.keys()
                # On the first instruction of an entry only what the CPU pushed.
                assert known in (names.keys(), {"ip", "sp", "flags", "cs"})
                found = {n: int(frame.read_register(names[n])) & mask for n in known}
                assert found == {name: ours.registers[name] for name in known}


def test_locals_of_c_functions_are_there(kernel: Kernel) -> None:
    # `regs` of do_syscall_64() is in a register that functions called from there saved.
    compared = 0
    for _, stack in threads(kernel):
        user = stack.user_registers
        for frame in native().frames if user else ():
            if frame.name() == "do_syscall_64":
                frame.select()
                regs = gdb.parse_and_eval("regs")
                assert not regs.is_optimized_out
                assert user
                found = {name: int(regs[name]) for name in ("ip", "sp", "orig_ax")}
                assert found == {name: user[name] for name in found}
                compared += 1
    assert compared > 5


def test_where_the_panicking_cpu_saved_its_registers(kernel: Kernel) -> None:
    if crash_time(kernel) is None:
        pytest.skip("without kdump no CPU saved any")
    gdb.execute("kset -p", to_string=True)
    names = [frame.name() for frame in native().frames]
    if "panic" in names:
        # No ORC there, but DWARF; vpanic() came with 6.16.
        assert names[0] == "__crash_kexec"
        assert names[1] in ("panic", "vpanic")


def test_our_rules_have_to_come_before_those_of_the_vmlinux(kernel: Kernel) -> None:
    # The last test, as it takes our rules away.
    task = panic_task(kernel)
    if is_alive(kernel):
        pytest.skip("no CPU panicked")
    assert task
    stack = unwind_task(kernel, task)
    rows = [open_tables(kernel).find(frame.pc) for frame in stack.frames]
    # There DWARF is wrong; and handlers return to no caller where user mode was.
    is_wrong = any(row and row.sp_base is Base.SP_INDIRECT for row in rows)
    pcs = [frame.ip for frame in stack.frames]
    is_wrong |= expected(kernel, stack)[: len(pcs)] != pcs
    gdb.execute("kset -p", to_string=True)
    whole = native().pcs
    (ours,) = [o.filename for o in gdb.objfiles() if "/frames/" in str(o.filename)]
    offset = kernel.vmcoreinfo.hex("KERNELOFFSET") if kernel.vmcoreinfo else None
    with console.quiet():
        gdb.execute(f"remove-symbol-file {ours}", to_string=True)
        assert native().pcs != whole
        gdb.execute(f"add-symbol-file {ours} -o {offset:#x}", to_string=True)
        assert (native().pcs != whole) == is_wrong
