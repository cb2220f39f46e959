# SPDX-License-Identifier: GPL-2.0-or-later
"""The frame file: ORC as call frame information, so that gdb unwinds kernel stacks.

A vmlinux with DWARF has CFI for C and none for assembly. So gdb is given, ahead of it,

* for what it lacks, all of ORC; for a kernel without DWARF that is everything
* entry code: what interrupted the kernel, and an end where user mode entered it
* functions that change to another stack in inline assembly, where DWARF is wrong (ORC
  says so since Linux kernel commit 87ccc826bf1c ("x86/unwind/orc: Change
  REG_SP_INDIRECT") (in v5.12)); of their own rules only that for the CFA changes

and, for one dump alone, what its modules bring and where user mode is.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import CorruptError, FaultError, FaultReason, KdumpError
from gdbkdump.kernel.sched import panic_task
from gdbkdump.target.cfi import (
    END,
    NO_CALLER_BYTE,
    Cie,
    Fde,
    Pieces,
    found_ops,
    frame_file,
    handler_ops,
    rule,
    section,
    switch_cfa,
    switched_handler_ops,
)
from gdbkdump.target.debugframe import copy_ops
from gdbkdump.unwind.frame import FrameKind
from gdbkdump.unwind.orc import NULL_ROW, PT_REGS_ROW, Base, RowKind
from gdbkdump.unwind.unwinder import PUSHERS, unwind_task

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gdbkdump.kernel.base import Kernel
    from gdbkdump.target.cfi import Rule
    from gdbkdump.target.debugframe import DebugFrame, KernelFde
    from gdbkdump.target.threads import KernelThread
    from gdbkdump.unwind.orc import Row
    from gdbkdump.unwind.tables import Tables

    Rows = Sequence[tuple[int, int, Row]]

# Of the files that are made here; another one is not looked at.
VERSION = 2
# Where user mode enters the kernel and kernel threads begin: struct pt_regs there, if
# it was pushed, is never of the kernel. Those not in a kernel are passed over.
_ENTRIES = (
    "entry_SYSCALL_64", "entry_SYSCALL_64_safe_stack",
    "entry_SYSCALL_64_after_hwframe", "entry_SYSCALL_compat",
    "entry_SYSCALL_compat_safe_stack", "entry_SYSCALL_compat_after_hwframe",
    "entry_SYSENTER_compat", "entry_SYSENTER_compat_after_hwframe",
    "entry_INT80_compat", "asm_int80_emulation", "asm_fred_entrypoint_user",
    "ret_from_fork", "ret_from_fork_asm",
)  # fmt: skip
# They push but registers that C functions may change (arch/x86/entry/thunk_64.S).
_KEEPERS = (
    "preempt_schedule_thunk", "preempt_schedule_notrace_thunk", "___preempt_schedule",
    "___preempt_schedule_notrace", "trace_hardirqs_on_thunk",
    "trace_hardirqs_off_thunk", "lockdep_sys_exit_thunk",
)  # fmt: skip
# In 5.8 to 5.11, functions that call another one on the IRQ stack. They push none.
_STACK_CHANGERS = (
    "asm_call_on_stack", "asm_call_irq_on_stack", "asm_call_sysvec_on_stack",
)  # fmt: skip
_CALL = 0xE8
_CALL_SIZE = 5
# See unwind/calls.py.
_MAX_PADDING = 16
_PAGE = 4096
# The lower half of the address space, with 5 levels of page tables.
_USER_END = 1 << 56


def kernel_frames(
    kernel: Kernel, tables: Tables, offset: int, debug_frame: DebugFrame | None
) -> bytes:
    """Return the frame file of a kernel build, at link addresses.

    :param offset: run-time minus link addresses
    :param debug_frame: of the vmlinux, None to do without one
    :raise KdumpError: the table or the text is damaged or cannot be read
    """
    rows = list(tables.kernel_rows(has_dwarf=debug_frame is not None))
    # The file may be kept for other dumps, so all of it must be right.
    if any(start > end for start, end, _ in rows):
        raise CorruptError("ORC: the table of the kernel is not sorted")
    maker = _Maker(kernel, rows, tables.switches(rows), offset, debug_frame)
    return frame_file(section(maker.fdes(), offset))


def dump_frames(
    kernel: Kernel, tables: Tables, threads: Iterable[KernelThread], *, has_dwarf: bool
) -> bytes:
    """Return the frame file of one dump: its modules, user mode and address 0.

    A thread without registers is at 0 and has no caller. But what jumped to NULL has.

    :param has_dwarf: whether gdb has more than this; then it is better where the CPU
        that panicked saved its registers
    """
    pieces = Pieces()
    for start, end, row in tables.module_rows():
        found = rule(row)
        if found:
            pieces.add(start, end, found)
    has_jumped = any(t.registers and not t.registers["ip"] for t in threads)
    pieces.add(0, 1, (rule(NULL_ROW) if has_jumped else None) or END)
    pieces.add(_PAGE, _USER_END, END)
    fdes = list(pieces.fdes())
    if not has_dwarf:
        fdes += _panic_fdes(kernel, tables)
    return frame_file(section(fdes, 0))


def _panic_fdes(kernel: Kernel, tables: Tables) -> Iterator[Fde]:
    # __crash_kexec has no ORC. What our own unwinder does about that is true of this
    # one address, in this one dump.
    try:
        task = panic_task(kernel)
    except KdumpError:
        return
    frames = unwind_task(kernel, task).frames if task else []
    if len(frames) < 3 or frames[0].kind is not FrameKind.CPU:
        return
    row = tables.find(frames[1].pc)
    bp = None
    if row and row.sp_base is Base.BP:
        bp = frames[2].slot + 8 - row.sp_offset
    pc, size = frames[0].ip, frames[1].slot + 8 - frames[0].sp
    yield Fde(pc, pc + 1, Cie.CALL, [(pc, found_ops(size, bp))])


class _Function(NamedTuple):
    # A range with rules of its own; `own` are those of its compiler, if it has any.
    start: int
    end: int
    own: KernelFde | None


class _Maker:
    # All addresses are those at run time but for what is in `debug_frame`.
    def __init__(
        self,
        kernel: Kernel,
        rows: Rows,
        switches: Rows,
        offset: int,
        debug_frame: DebugFrame | None,
    ) -> None:
        self._kernel = kernel
        self._rows = rows
        self._offset = offset
        self._debug_frame = debug_frame
        self._entries = _named(kernel, _ENTRIES)
        self._keepers = _named(kernel, _KEEPERS)
        self._changers = _named(kernel, _STACK_CHANGERS)
        self._switches = switches
        regs, partial = RowKind.REGS, RowKind.PARTIAL
        entry = [r for r in rows if r[2][0] is regs or r[2][0] is partial]
        self._calls = _EntryCalls(kernel, entry, self._entries)
        self._pieces = Pieces()
        # Nothing that ORC says elsewhere is wanted of these.
        self._taken: list[tuple[int, int]] = []

    def fdes(self) -> Iterator[Fde]:
        handlers = [
            (function, sites)
            for handler, sites in self._calls.handlers.items()
            for function in self._functions(handler)
        ]
        for function, sites in handlers:
            self._taken.append((function.start, function.end))
            yield from self._handler(function, sites)
        yield from self._switch_fdes([function for function, _ in handlers])
        self._mark_calls()
        self._keep_saved()
        self._fill_gaps()
        yield from self._pieces.fdes()

    def _functions(self, start: int) -> Iterator[_Function]:
        # A function, and what the compiler put elsewhere as seldom run.
        symbol = self._kernel.debuginfo.symbol_at(start)
        if symbol is None:
            return
        colds = self._kernel.debuginfo.symbols(f"{symbol.name}.cold")
        for part in (start, *(cold.address for cold in colds[:1])):
            found = self._function(part)
            if found:
                yield found

    def _function(self, address: int) -> _Function | None:
        if self._debug_frame:
            own = self._debug_frame.find(address - self._offset)
            if own is None or not own.is_usual:
                return None
            start, end = own.start + self._offset, own.end + self._offset
            return _Function(start, end, own)
        symbol = self._kernel.debuginfo.symbol_at(address)
        if symbol is None or not symbol.size:
            return None
        return _Function(symbol.address, symbol.address + symbol.size, None)

    # Handlers and stack switches

    def _handler(self, function: _Function, sites: Sequence[int]) -> Iterator[Fde]:
        start = function.start
        for low, high, row in _within(self._switches, function.start, function.end):
            yield from self._plain_handler(function, start, low, sites)
            ops = switched_handler_ops(row, sites)
            yield Fde(low, high, Cie.CALL, [(low, ops)])
            start = high
        yield from self._plain_handler(function, start, function.end, sites)

    def _plain_handler(
        self, function: _Function, start: int, end: int, sites: Sequence[int]
    ) -> Iterator[Fde]:
        first = (start, handler_ops(sites))
        if function.own:
            ops = self._own_ops(function.own, start, end)
            yield Fde(start, end, Cie.CALL_AS_C, [first, *ops])
            return
        pieces = Pieces()
        for low, high, row in _within(self._rows, start, end):
            found = rule(row)
            if found and found.cie is Cie.CALL:
                pieces.add(low, high, found)
        for fde in pieces.fdes():
            yield fde._replace(ops=[(fde.start, first[1]), *fde.ops])

    def _own_ops(self, own: KernelFde, start: int, end: int) -> list[tuple[int, bytes]]:
        offset = self._offset
        return [
            (address + offset, op)
            for address, op in copy_ops(own, start - offset, end - offset)
        ]

    def _switch_fdes(self, handlers: Sequence[_Function]) -> Iterator[Fde]:
        # Other functions than handlers are called from C, so the frame itself has to be
        # marked for gdb to follow it to a stack that is lower.
        for start, end, row in self._switches:
            if any(function.start <= start < function.end for function in handlers):
                continue
            function = self._function(start)
            ops = [(start, switch_cfa(row))]
            if function and function.own:
                own = self._own_ops(function.own, start, start + 1)
                ops = [*own, *ops]
            self._taken.append((start, end))
            yield Fde(start, end, Cie.SWITCH, ops)

    # Entry code and gaps

    def _mark_calls(self) -> None:
        for site in (site for sites in self._calls.handlers.values() for site in sites):
            byte = site + NO_CALLER_BYTE
            self._take(byte, byte + 1, END)
        pushed = rule(PT_REGS_ROW)
        assert pushed
        for site in self._calls.pushed:
            # The row after the call is as wrong, until the next hint of objtool.
            self._take(site - 1, site + 1, pushed)

    def _take(self, start: int, end: int, found: Rule) -> None:
        self._taken.append((start, end))
        self._pieces.add(start, end, found)

    def _keep_saved(self) -> None:
        # The frame that a switch of stacks is in has to be marked, as above.
        ranges = [(Cie.CALL, *item) for item in self._keepers]
        ranges += [(Cie.SWITCH, *item) for item in self._changers]
        for cie, start, end in ranges:
            self._taken.append((start, end))
            for low, high, row in _within(self._rows, start, end):
                found = rule(row, keeps_saved=True)
                if found and found.cie is Cie.CALL:
                    self._pieces.add(low, high, found._replace(cie=cie))

    def _fill_gaps(self) -> None:
        ranges = self._debug_frame.ranges if self._debug_frame else []
        compiled = [(start + self._offset, end + self._offset) for start, end in ranges]
        starts = {start for start, _ in compiled}
        taken = sorted([*compiled, *self._taken])
        # A kernel has few rows that differ; each is one object.
        rules: dict[int, Rule | None] = {}
        for start, end, row in _outside(self._rows, taken):
            found = rules.get(id(row))
            if found is None:
                found = rules[id(row)] = rule(row)
            if found and found.cie in (Cie.REGS, Cie.IRET):
                found = END if _holds(self._entries, start) else found
            # Since Linux kernel commit 9f2899fe36a6 ("objtool: Add option to generate
            # prefix symbols") (in v6.2) the padding before a function has ORC, which
            # says no more than gdb takes for granted.
            is_padding = end - start == _MAX_PADDING and end in starts
            if found and not is_padding:
                self._pieces.add(start, end, found)


class _EntryCalls:
    """What entry code calls while struct pt_regs is on top of the stack.

    :ivar handlers: return addresses by function
    :ivar pushed: return addresses of functions that push it for their caller
    """

    def __init__(
        self, kernel: Kernel, rows: Rows, skip: Sequence[tuple[int, int]]
    ) -> None:
        """Read the calls in entry code, as the dump has it."""
        self.handlers: dict[int, list[int]] = {}
        self.pushed: list[int] = []
        self._kernel = kernel
        bounds = ("_sinittext", "_einittext")
        has_init = all(kernel.has_symbol(name) for name in bounds)
        low, high = map(kernel.symbol, bounds) if has_init else (0, 0)
        self._init = [(low, high)]
        pushers = {kernel.symbol(name) for name in PUSHERS if kernel.has_symbol(name)}
        for start, end, row in rows:
            if _holds(skip, start):
                continue
            is_on_top = row[:3] == (RowKind.REGS, Base.SP, 0)
            for site, target in self._calls(start, end):
                if target in pushers:
                    self.pushed.append(site)
                elif is_on_top:
                    self.handlers.setdefault(target, []).append(site)

    def _calls(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        # Return addresses and functions; what only looks like a call leads to none.
        text = self._text(start, end)
        at = text.find(_CALL)
        while 0 <= at <= len(text) - _CALL_SIZE:
            site = start + at + _CALL_SIZE
            field = text[at + 1 : at + _CALL_SIZE]
            target = site + int.from_bytes(field, "little", signed=True)
            function = self._function(target)
            if function:
                yield site, function
            at = text.find(_CALL, at + 1)

    def _text(self, start: int, end: int) -> bytes:
        # .init.text is free memory once the kernel has booted, so makedumpfile leaves
        # it out if it is told to; nothing on a stack came from there.
        try:
            return self._kernel.reader.read(start, end - start)
        except FaultError as fault:
            if fault.reason is FaultReason.EXCLUDED and _holds(self._init, start):
                return b""
            raise

    def _function(self, target: int) -> int | None:
        for address in (target, target + _MAX_PADDING):
            symbol = self._kernel.debuginfo.symbol_at(address)
            if symbol and target <= symbol.address:
                return symbol.address
        return None


def _named(kernel: Kernel, names: Iterable[str]) -> list[tuple[int, int]]:
    # The ranges of all functions of these names, in order.
    found = set()
    for name in names:
        for function in kernel.debuginfo.symbols(name):
            symbol = kernel.debuginfo.symbol_at(function.address)
            if symbol and symbol.size:
                found.add((symbol.address, symbol.address + symbol.size))
    return sorted(found)


def _holds(ranges: Iterable[tuple[int, int]], address: int) -> bool:
    return any(start <= address < end for start, end in ranges)


def _within(rows: Rows, start: int, end: int) -> Iterator[tuple[int, int, Row]]:
    # The rows of a range, cut to it.
    i = bisect_left(rows, start, key=lambda row: row[1])
    while i < len(rows) and rows[i][0] < end:
        low, high, row = rows[i]
        if high > start:
            yield max(low, start), min(high, end), row
        i += 1


def _outside(
    rows: Rows, taken: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int, Row]]:
    # What of the rows is in no range; both are in order.
    ranges = iter([*taken, (1 << 64, 1 << 64)])
    low, high = next(ranges)
    for start, end, row in rows:
        while start < end:
            if high <= start:
                low, high = next(ranges)
            elif low <= start:
                start = high
            else:
                yield start, min(low, end), row
                start = low
