# SPDX-License-Identifier: GPL-2.0-or-later
"""Stacks of all tasks of the crash dumps against drgn's, address by address.

Two things differ: drgn refuses a CPU that saved no registers, and where a tracer has
replaced a return address it goes to the tracer's trampoline, which is on no stack.
"""

from __future__ import annotations

from contextlib import closing

import pytest
from support.oracle import open_drgn

from gdbkdump.kernel.sched import tasks
from gdbkdump.session import open_session
from gdbkdump.unwind.frame import StackEnd
from gdbkdump.unwind.unwinder import unwinder

TRAMPOLINES = {"return_to_handler", "arch_rethook_trampoline", "kretprobe_trampoline",
               "__kretprobe_trampoline"}  # fmt: skip


def frames_of_drgn(program, kernel, task):
    """Return addresses up to user mode, and how many come before a trampoline."""
    drgn = pytest.importorskip("drgn")
    pointer = drgn.Object(program, "struct task_struct *", task.address)
    trace = [
        frame
        for frame in program.stack_trace(pointer)
        if not frame.is_inline and frame.pc >> 63
    ]
    found = [frame.pc for frame in trace]
    for i, pc in enumerate(found):
        symbol = kernel.debuginfo.symbol_at(pc)
        if symbol and symbol.name in TRAMPOLINES:
            return found, i
    return found, len(found)


def test_frames_are_those_of_drgn(crash_dir):
    program = open_drgn(crash_dir)
    traced = []
    with closing(open_session(crash_dir / "vmcore")) as session:
        unwind = unwinder(session.kernel).unwind
        for task in tasks(session.kernel):
            stack = unwind(task)
            if stack.end is StackEnd.FREED:
                continue  # drgn reads what the memory holds now
            ours = [frame.ip for frame in stack.frames]
            if stack.end is StackEnd.UNSAVED:
                with pytest.raises(LookupError, match="were not saved"):
                    frames_of_drgn(program, session.kernel, task)
                continue
            theirs, until = frames_of_drgn(program, session.kernel, task)
            if until < len(theirs):
                traced.append(task.comm)
                assert len(ours) > until
                ours, theirs = ours[:until], theirs[:until]
            assert ours == theirs, task
    is_traced = crash_dir.name.startswith("crash-traced")
    assert bool(traced) == is_traced
    assert not is_traced or b"cm-recurse" in traced
