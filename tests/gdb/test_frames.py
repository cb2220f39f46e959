# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb follows our rules from one stack to another, up or down, and to a clean end."""

from __future__ import annotations

import struct
from itertools import count
from typing import TYPE_CHECKING

import gdb
import pytest

from gdbkdump.arch.x86_64 import X86_64
from gdbkdump.debugger import console
from gdbkdump.target.cfi import (
    END,
    NO_CALLER_BYTE,
    Cie,
    Fde,
    Pieces,
    frame_file,
    handler_ops,
    rule,
    section,
    switch_cfa,
    switched_handler_ops,
)
from gdbkdump.target.threads import KernelThread
from gdbkdump.target.viewcore import Range, write_view_core
from gdbkdump.unwind.orc import PT_REGS_ROW, Base, Row, RowKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from gdbkdump.target.cfi import Rule

TEXT = 0xFFFFFFFF81000000
CALLED, HANDLER, ASM, STOPPED, ENTRY, SWITCHER = (TEXT + 0x1000 * i for i in range(6))
SITE = ASM + 0x30
LOW, HIGH, SIZE = 0xFFFFC90000010000, 0xFFFFC90000100000, 0x1000
USER_PC, USER_SP = 0x401A75, 0x7FFE00001000
OFFSET = 0x1E00000
_IDS = count(1)


def call(base: Base, offset: int) -> Row:
    return Row(RowKind.CALL, base, offset, Base.UNDEFINED, 0, False)


def known(row: Row) -> Rule:
    found = rule(row)
    assert found
    return found


def rules() -> bytes:
    """A frame file of six functions that are made up."""
    pieces = Pieces()
    pieces.add(CALLED, CALLED + 0x1000, known(call(Base.SP, 8)))
    pieces.add(ASM, SITE + NO_CALLER_BYTE, known(PT_REGS_ROW))
    pieces.add(SITE + NO_CALLER_BYTE, SITE + NO_CALLER_BYTE + 1, END)
    pieces.add(SITE + NO_CALLER_BYTE + 1, ASM + 0x1000, known(PT_REGS_ROW))
    # At the very start of a function, as only an interrupt finds it.
    pieces.add(STOPPED, STOPPED + 1, known(call(Base.SP, 8)))
    pieces.add(STOPPED + 1, STOPPED + 0x1000, known(call(Base.SP, 16)))
    pieces.add(ENTRY, ENTRY + 0x1000, END)
    plain = [(HANDLER, handler_ops([SITE]))]
    switched = switched_handler_ops(call(Base.SP_INDIRECT, 16), [SITE])
    changed = [(SWITCHER, switch_cfa(call(Base.SP_INDIRECT, 16)))]
    fdes = [
        Fde(HANDLER, HANDLER + 0x100, Cie.CALL_AS_C, plain),
        Fde(HANDLER + 0x100, HANDLER + 0x200, Cie.CALL, [(HANDLER + 0x100, switched)]),
        Fde(SWITCHER, SWITCHER + 0x1000, Cie.SWITCH, changed),
    ]
    return frame_file(section([*pieces.fdes(), *fdes], OFFSET))


class Memory:
    """Two stacks, in one file."""

    def __init__(self) -> None:
        self.data = bytearray(2 * SIZE)

    def write(self, address: int, *words: int) -> None:
        at = address - LOW if address < HIGH else address - HIGH + SIZE
        struct.pack_into(f"<{len(words)}Q", self.data, at, *words)


@pytest.fixture
def open_core(tmp_path: Path) -> Iterator[Callable[..., None]]:
    frames = tmp_path / "frames"
    frames.write_bytes(rules())
    gdb.execute(f"add-symbol-file {frames} -o {OFFSET:#x}", to_string=True)

    def do(memory: Memory, ip: int, sp: int) -> None:
        (tmp_path / "memory").write_bytes(memory.data)
        registers = {**dict.fromkeys(X86_64.registers, 0), "ip": ip, "sp": sp}
        ranges = [Range(LOW, LOW + SIZE, 0), Range(HIGH, HIGH + SIZE, SIZE)]
        # gdb 18 would take what it has read of a stack for that of any thread 1.
        threads = [KernelThread(next(_IDS), 0, b"x", 0, registers)]
        core = tmp_path / "core"
        core.unlink(missing_ok=True)
        write_view_core(core, X86_64(), threads, ranges, tmp_path / "memory")
        gdb.execute(f"core-file {core}", to_string=True)

    with console.quiet():
        yield do
        gdb.execute("core-file", to_string=True)
        gdb.execute(f"remove-symbol-file {frames}", to_string=True)


def backtrace() -> list[int]:
    """The pcs of all frames; the end is checked."""
    pcs = []
    frame: gdb.Frame | None = gdb.newest_frame()
    while frame is not None:
        last = frame
        pcs.append(frame.pc())
        frame = frame.older()
    assert last.unwind_stop_reason() == gdb.FRAME_UNWIND_OUTERMOST
    assert "Backtrace stopped" not in gdb.execute("bt", to_string=True)
    return pcs


def interrupt(memory: Memory, task: int, *, user: bool) -> int:
    """Write what entry code pushed on the task's stack; return where pt_regs is."""
    interrupted = task + 0x800
    ip, sp = (USER_PC, USER_SP) if user else (STOPPED, interrupted)
    cs, ss = (0x33, 0x2B) if user else (0x10, 0x18)
    memory.write(interrupted, ENTRY + 0x20)
    pt_regs = interrupted - 21 * 8 if not user else task + SIZE - 21 * 8
    memory.write(pt_regs, *range(100, 116), ip, cs, 0x246, sp, ss)
    memory.write(pt_regs - 8, SITE)
    return pt_regs


ORDER = pytest.mark.parametrize(("irq", "task"), [(LOW, HIGH), (HIGH, LOW)])


@ORDER
def test_from_an_irq_stack_to_the_interrupted_kernel(
    open_core: Callable[..., None], irq: int, task: int
) -> None:
    memory = Memory()
    pt_regs = interrupt(memory, task, user=False)
    # The handler pushed nothing before it changed the stack.
    memory.write(irq + SIZE - 8, pt_regs - 16)
    memory.write(irq + SIZE - 16, HANDLER + 0x110)
    open_core(memory, CALLED, irq + SIZE - 16)
    assert backtrace() == [CALLED, HANDLER + 0x110, SITE, STOPPED, ENTRY + 0x20]
    frame = gdb.newest_frame().older().older().older()
    # r15 is the first word, bx the sixth of struct pt_regs.
    assert [int(frame.read_register(name)) for name in ("r15", "rbx", "rsp")] == [
        100, 105, task + 0x800,
    ]  # fmt: skip


@ORDER
def test_from_an_irq_stack_to_user_mode(
    open_core: Callable[..., None], irq: int, task: int
) -> None:
    memory = Memory()
    pt_regs = interrupt(memory, task, user=True)
    memory.write(irq + SIZE - 8, pt_regs - 16)
    memory.write(irq + SIZE - 16, HANDLER + 0x110)
    open_core(memory, CALLED, irq + SIZE - 16)
    assert backtrace() == [CALLED, HANDLER + 0x110, SITE - 1]


@pytest.mark.parametrize("user", [False, True])
def test_on_one_stack(open_core: Callable[..., None], user: bool) -> None:
    memory = Memory()
    pt_regs = interrupt(memory, LOW, user=user)
    memory.write(pt_regs - 16, HANDLER + 0x10)
    # The handler has not pushed anything: its own return address is next.
    open_core(memory, CALLED, pt_regs - 16)
    rest: Sequence[int] = (SITE - 1,) if user else (SITE, STOPPED, ENTRY + 0x20)
    assert backtrace() == [CALLED, HANDLER + 0x10, *rest]


@ORDER
def test_from_a_softirq_to_the_function_that_ran_it(
    open_core: Callable[..., None], irq: int, task: int
) -> None:
    memory = Memory()
    memory.write(irq + SIZE - 8, task + 0x700)
    memory.write(irq + SIZE - 16, SWITCHER + 0x10)
    memory.write(task + 0x708, CALLED + 0x10, ENTRY + 0x20)
    open_core(memory, CALLED, irq + SIZE - 16)
    assert backtrace() == [CALLED, SWITCHER + 0x10, CALLED + 0x10, ENTRY + 0x20]
