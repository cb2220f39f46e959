# SPDX-License-Identifier: GPL-2.0-or-later
"""Unwinding of x86-64 kernel stacks, as ``arch/x86/kernel/unwind_orc.c`` does.

By ORC, or for a kernel that has none by frame pointers.

Every step stays on a stack that is known to exist and goes up on it, or goes to another
one that was not met before; so garbage ends an unwinding instead of prolonging it.
Nothing is guessed: where the tables do not tell the caller, the stack ends there and
says why. Functions without ORC (``__crash_kexec``) are left by the return address
behind an instruction that calls this very function. Code generated at run time is
taken to keep a frame pointer as the kernel's own unwinder does; frames behind it, and
behind a return address that no call can have left, are not reliable and marked so.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from gdbkdump.errors import (
    KdumpError,
    SymbolNotFoundError,
)
from gdbkdump.kernel.panic import cpu_registers, unsaved_registers
from gdbkdump.kernel.sched import running_tasks, stack_states
from gdbkdump.unwind.calls import Calls
from gdbkdump.unwind.frame import Frame, FrameKind, Stack, StackEnd, UnwindError
from gdbkdump.unwind.orc import (
    FRAME_POINTER_ROW,
    NULL_ROW,
    PT_REGS_ROW,
    Base,
    Row,
    RowKind,
)
from gdbkdump.unwind.stacks import cpu_stacks, task_stack
from gdbkdump.unwind.tables import open_tables
from gdbkdump.unwind.trampoline import find_trampolines, real_return_address

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gdbkdump.arch.base import Registers
    from gdbkdump.kernel.base import Kernel
    from gdbkdump.kernel.sched import Task
    from gdbkdump.unwind.stacks import StackRange
    from gdbkdump.unwind.tables import Tables

_MAX_FRAMES = 1024
_U64 = struct.Struct("<Q").unpack_from
# struct pt_regs is the first 21 words of struct user_regs_struct; an iret frame is the
# last five of them.
_PT_REGS = struct.Struct("<21Q")
_IRET_FRAME = struct.Struct("<5Q")
_IRET_FIRST = 16
# The last 16 MiB (modules' end): nothing there is code.
_GENERATED_END = 0xFFFFFFFFFF000000
# A callee saves at most six registers; %rbp is one of them or still in place.
_MAX_PUSHES = 6
# It has no ORC.
_SAVES_REGISTERS = "__crash_kexec"
# What they are called with is below what they leave on the stack: struct pt_regs
# (arch/x86/entry/entry_64.S, PUSH_AND_CLEAR_REGS save_ret=1).
PUSHERS = ("error_entry", "xen_error_entry", "paranoid_entry")


class Unwinder:
    """What unwinding needs of one kernel, and what it has learnt of it."""

    def __init__(self, kernel: Kernel) -> None:
        """Locate the tables.

        :raise KdumpError: the types that it takes are missing
        """
        self.kernel = kernel
        self.problem = ""
        self._rows: dict[int, Row | None] = {}
        self._rows_after_call: dict[int, tuple[Row | None, bool]] = {}
        self.calls = Calls(kernel)
        self._pushers = _find_symbols(kernel, PUSHERS)
        self._tables = self._open_tables()
        self.trampolines = find_trampolines(kernel)
        frame = kernel.struct("inactive_task_frame")
        self.frame_size = frame.size
        self.frame_bp = frame.offset("bp")
        self.frame_return = frame.offset("ret_addr")
        self.pt_regs = kernel.arch.registers[:21]
        self.iret_frame = self.pt_regs[_IRET_FIRST:]

    def _open_tables(self) -> Tables | None:
        try:
            return open_tables(self.kernel)
        except SymbolNotFoundError:
            self.problem = "this kernel has neither ORC nor frame pointers"
        except KdumpError as error:
            self.problem = f"its ORC cannot be used: {error}"
        return None

    @property
    def has_frame_pointers(self) -> bool:
        """Whether %rbp is the frame pointer of whatever runs."""
        return bool(self._tables and self._tables.has_frame_pointers)

    @property
    def problems(self) -> list[str]:
        """What is wrong with the tables, one line each."""
        return self._tables.problems if self._tables else []

    def row(self, pc: int) -> Row | None:
        """Return the row of an address, or None where there is none.

        :raise KdumpError: the table is damaged
        """
        if pc not in self._rows:
            self._rows[pc] = self._find_row(pc)
        return self._rows[pc]

    def row_after_call(self, ip: int) -> tuple[Row | None, bool]:
        """Return the row for a return address, None for code generated at run time.

        Second comes whether it can be one: a call stands before it.

        :raise UnwindError: the address is in no code
        """
        if ip not in self._rows_after_call:
            row = PT_REGS_ROW if self._is_pushed(ip) else self.after_call(ip)
            if row is None and not self.may_be_generated(ip):
                raise UnwindError(f"the return address {ip:#x} is not in kernel code")
            self._rows_after_call[ip] = row, self.calls.is_behind_call(ip)
        return self._rows_after_call[ip]

    def after_call(self, ip: int) -> Row | None:
        """Return the row for what may be a return address, or None if it is in no code.

        :raise KdumpError: the table is damaged
        """
        return self._tables.after_call(ip) if self._tables else None

    def _find_row(self, pc: int) -> Row | None:
        row = self._tables.find(pc) if self._tables else None
        return PT_REGS_ROW if row and self._is_pushed(pc) else row

    def _is_pushed(self, ip: int) -> bool:
        # objtool takes each call to leave the stack as it was, so the rows from the
        # call of a pusher to the next instruction are wrong (seen in 6.12 as %rip in
        # sync_regs, to which error_entry jumps).
        return self.calls.target(ip) in self._pushers

    def unwind(self, task: Task) -> Stack:
        """Return the frames of a task; what goes wrong is in the result."""
        stack = Stack(task, running_tasks(self.kernel).get(task.address))
        try:
            self._unwind(stack)
        except KdumpError as error:
            stack.reason = str(error)
        return stack

    def _unwind(self, stack: Stack) -> None:
        task = stack.task
        if self._tables is None:
            raise UnwindError(self.problem)
        if stack.cpu is not None:
            registers = cpu_registers(self.kernel, stack.cpu)
            self._unwind_running(stack, stack.cpu, registers)
        elif not task.stack:
            stack.end = StackEnd.FREED
            stack.reason = "the task has exited, its stack is freed"
        else:
            _Walk(self, stack, [task_stack(self.kernel, task.stack)]).from_switch()

    def _unwind_running(
        self, stack: Stack, cpu: int, registers: Registers | None
    ) -> None:
        if registers is None:
            # thread.sp of a task on a CPU is that of its last switch: stale.
            stack.end = StackEnd.UNSAVED
            reason = unsaved_registers(self.kernel, cpu)
            stack.reason = f"{reason}, so its stack is not shown"
        elif self.kernel.arch.is_user(registers):
            stack.end = StackEnd.USER
            stack.user_registers = registers
            stack.reason = "in user mode: no kernel frames"
        else:
            stacks = list(cpu_stacks(self.kernel, cpu))
            if stack.task.stack:
                stacks.append(task_stack(self.kernel, stack.task.stack))
            _Walk(self, stack, stacks).from_registers(registers)

    def saves_registers(self, ip: int, row: Row | None) -> bool:
        """Tell whether a CPU saves its own registers there, interrupted by nothing."""
        if self.has_frame_pointers:
            symbol = self.kernel.debuginfo.symbol_at(ip)
            return symbol is not None and symbol.name == _SAVES_REGISTERS
        return row is not None and row.kind is RowKind.UNDEFINED

    def function_start(self, pc: int) -> int | None:
        """Return the address of the function around ``pc``, or None."""
        symbol = self.kernel.debuginfo.symbol_at(pc)
        return symbol.address if symbol else None

    def may_be_generated(self, address: int) -> bool:
        """Tell whether BPF, ftrace or kprobes may have put code there."""
        return self.kernel.debuginfo.image[1] <= address < _GENERATED_END


class _Walk:
    # One unwinding: the registers of the current frame, and the stack they are on.
    def __init__(
        self, unwinder: Unwinder, result: Stack, stacks: list[StackRange]
    ) -> None:
        self._unwinder = unwinder
        self._reader = unwinder.kernel.reader
        self._result = result
        self._frames = result.frames
        self._unvisited = stacks
        self._stack: StackRange | None = None
        # The used part of _stack: where it is, where its last word is, its bytes.
        self._low, self._last = 0, -1
        self._data = b""
        self._ip = self._sp = self._bp = 0
        self._row: Row | None = None
        # All registers, as long as the last step was to an interrupted context.
        self._registers: Registers | None = None
        self._is_reliable = True

    # Where to begin

    def from_registers(self, registers: Registers) -> None:
        """Unwind from the registers that a CPU saved."""
        self._registers = registers
        self._ip, self._sp, self._bp = registers["ip"], registers["sp"], registers["bp"]
        self._row = self._unwinder.row(self._ip)
        self._settle(self._sp)
        # The panicking CPU saved its own in __crash_kexec, which has no ORC; the others
        # (and it, after an oops) those that were interrupted.
        is_own = self._unwinder.saves_registers(self._ip, self._row)
        self._push(FrameKind.CPU if is_own else FrameKind.EXCEPTION, 0, registers)
        self._run()

    def from_switch(self) -> None:
        """Unwind from what ``__switch_to_asm`` saved (struct inactive_task_frame)."""
        unwinder, task = self._unwinder, self._result.task
        sp = stack_states(unwinder.kernel)[task.address].sp
        (stack,) = self._unvisited
        if sp & 7 or not stack.start <= sp <= stack.end - unwinder.frame_size:
            raise UnwindError(
                f"thread.sp {sp:#x} is not on its stack {stack.start:#x}-{stack.end:#x}"
            )
        self._settle(sp)
        slot = sp + unwinder.frame_return
        self._bp = self._word(sp + unwinder.frame_bp)
        self._ip, self._sp = self._word(slot), sp + unwinder.frame_size
        symbol = unwinder.kernel.debuginfo.symbol_at(self._ip)
        if symbol and not symbol.offset:
            # A new task that never ran: ret_from_fork was not called.
            self._row = unwinder.row(self._ip)
            self._push(FrameKind.EXCEPTION, slot)
        else:
            self._push_caller(slot)
        self._run()

    # The stacks

    def _settle(self, sp: int) -> None:
        # The stack of a new sp, if it is a known one; the used part in one read.
        stack = self._stack
        if stack is not None and stack.start <= sp <= stack.end:
            return
        self._stack, self._last = None, -1
        for i, stack in enumerate(self._unvisited):
            if stack.start <= sp <= stack.end:
                del self._unvisited[i]
                self._stack = stack
                self._low = sp & ~7
                self._data = self._reader.read_partial(self._low, stack.end - self._low)
                self._last = self._low + len(self._data) - 8
                return

    def _check(self, address: int, size: int) -> None:
        stack = self._stack
        if stack is None:
            raise UnwindError(f"{address:#x} is on no stack that this one can lead to")
        if not stack.start <= address <= stack.end - size:
            raise UnwindError(
                f"{address:#x} is outside the stack {stack.start:#x}-{stack.end:#x}"
            )

    def _word(self, address: int) -> int:
        if not self._low <= address <= self._last:
            self._check(address, 8)
            return self._reader.u64(address)
        word: int = _U64(self._data, address - self._low)[0]
        return word

    # The steps

    def _run(self) -> None:
        while len(self._frames) < _MAX_FRAMES:
            if not self._step():
                return
        raise UnwindError(f"more than {_MAX_FRAMES} frames")

    def _step(self) -> bool:
        row = self._row or self._row_of_no_orc()
        if row.kind is RowKind.END:
            self._result.end = StackEnd.BOTTOM
            return False
        if row.kind is RowKind.UNDEFINED:
            self._leave_function_without_orc()
            return True
        address = self._resolve(row)
        if row.kind is RowKind.CALL:
            self._return(row, address)
            return True
        return self._leave_exception(row, address)

    def _resolve(self, row: Row) -> int:
        # Where the row's return address, or its pt_regs, is (the caller's sp).
        base = row.sp_base
        if base is Base.SP:
            return self._sp + row.sp_offset
        if base is Base.BP:
            if self._bp & 7:
                raise UnwindError(f"the frame pointer {self._bp:#x} leads to no frame")
            return self._bp + row.sp_offset
        if base is Base.SP_INDIRECT:
            # Since Linux kernel commit 87ccc826bf1c ("x86/unwind/orc: Change
            # REG_SP_INDIRECT") (in v5.12); nothing used it before.
            return self._word(self._sp) + row.sp_offset
        if base is Base.BP_INDIRECT:
            return self._word(self._bp + row.sp_offset)
        if self._registers is None or base.value not in self._registers:
            raise UnwindError(
                f"the caller depends on {base.value}, which was not saved"
            )
        return self._registers[base.value]

    def _return(self, row: Row, sp: int) -> None:
        slot = sp - 8
        if self._low <= slot <= self._last and sp > self._sp:
            # Further up the stack, as nearly always.
            self._ip = _U64(self._data, slot - self._low)[0]
            self._bp = self._caller_bp(row, sp)
            self._sp = sp
        else:
            before = self._stack
            self._settle(slot)
            self._ip = self._word(slot)
            self._bp = self._caller_bp(row, sp)
            self._go_up(before, sp)
        self._registers = None
        if self._ip in self._unwinder.trampolines:
            self._ip = real_return_address(
                self._unwinder.kernel, self._result.task, self._ip, slot
            )
        self._push_caller(slot)

    def _leave_exception(self, row: Row, address: int) -> bool:
        before = self._stack
        self._settle(address)
        registers = self._read_registers(row, address)
        if not registers["ip"] and not registers["cs"]:
            # The empty pt_regs of a kernel thread that never was in user mode.
            self._result.end = StackEnd.BOTTOM
            return False
        _check_registers(registers, address)
        if registers["cs"] & 3:
            self._result.end = StackEnd.USER
            self._result.user_registers = registers
            return False
        if row.kind is RowKind.REGS:
            self._registers = registers
        self._bp = self._caller_bp(row, address)
        self._ip = registers["ip"]
        self._go_up(before, registers["sp"])
        self._row = self._unwinder.row(self._ip if row.signal else self._ip - 1)
        self._push(FrameKind.EXCEPTION, 0, registers)
        return True

    def _read_registers(self, row: Row, address: int) -> Registers:
        unwinder = self._unwinder
        if row.kind is RowKind.REGS:
            names, layout = unwinder.pt_regs, _PT_REGS
        else:
            names, layout = unwinder.iret_frame, _IRET_FRAME
        if self._low <= address <= self._last + 8 - layout.size:
            values = layout.unpack_from(self._data, address - self._low)
        else:
            self._check(address, layout.size)
            values = layout.unpack(self._reader.read(address, layout.size))
        return dict(zip(names, values, strict=True))

    def _caller_bp(self, row: Row, sp: int) -> int:
        if row.bp_base is Base.PREV_SP:
            return self._word(sp + row.bp_offset)
        if row.bp_base is Base.BP:
            return self._word(self._bp + row.bp_offset)
        if row.kind is not RowKind.CALL and self._registers:
            return self._registers["bp"]
        return self._bp

    def _go_up(self, before: StackRange | None, sp: int) -> None:
        self._settle(sp)
        if self._stack is before and before and sp <= self._sp:
            raise UnwindError(f"the stack pointer goes from {self._sp:#x} to {sp:#x}")
        self._sp = sp

    def _push(
        self, kind: FrameKind, slot: int, registers: Registers | None = None
    ) -> None:
        self._frames.append(
            Frame(
                self._ip,
                self._sp,
                slot,
                kind,
                self._stack,
                registers,
                self._is_reliable,
            )
        )

    def _push_caller(self, slot: int) -> None:
        self._row, is_behind_call = self._unwinder.row_after_call(self._ip)
        if not is_behind_call:
            self._is_reliable = False
        self._push(FrameKind.CALL, slot)

    # Where ORC does not say

    def _row_of_no_orc(self) -> Row:
        frame = self._frames[-1]
        if not self._ip and frame.kind is not FrameKind.CALL:
            return NULL_ROW
        if not self._unwinder.may_be_generated(self._ip):
            raise UnwindError(f"{self._ip:#x} is not in kernel code")
        self._is_reliable = False
        return FRAME_POINTER_ROW

    def _leave_function_without_orc(self) -> None:
        # The caller is behind the first return address from a call of this function.
        pc = self._frames[-1].pc
        symbol = self._unwinder.kernel.debuginfo.symbol_at(pc)
        name = symbol.name if symbol else f"{pc:#x}"
        self._check(self._sp, 8)
        assert self._stack is not None
        for slot in range(self._sp, self._stack.end - 7, 8):
            ip = self._word(slot)
            row = self._unwinder.after_call(ip) if ip else None
            if row and symbol and self._unwinder.calls.is_of(ip, symbol.address):
                self._bp = self._bp_behind(slot, ip, row)
                self._ip, self._sp, self._row = ip, slot + 8, row
                self._registers = None
                self._push(FrameKind.CALL, slot)
                return
        what = "frame pointer" if self._unwinder.has_frame_pointers else "ORC"
        raise UnwindError(f"{name} has no {what}, nor is a call of it on the stack")

    def _bp_behind(self, slot: int, ip: int, row: Row) -> int:
        # The function may have changed %rbp, and then pushed it next to the slot. Which
        # one it is shows where the caller's own caller follows from it.
        if self._unwinder.has_frame_pointers:
            # It is below the return address, once the function has a frame.
            return self._word(slot - 8) if self._bp == slot - 8 else self._bp
        if row.sp_base not in (Base.BP, Base.BP_INDIRECT):
            return self._bp
        function = self._unwinder.function_start(ip - 1)
        lowest = max(self._sp, slot - 8 * _MAX_PUSHES)
        pushed = [self._word(at) for at in range(slot - 8, lowest - 1, -8)]
        for bp in (self._bp, *pushed):
            try:
                sp = bp + row.sp_offset
                if row.sp_base is Base.BP_INDIRECT:
                    sp = self._word(sp)
                caller = self._word(sp - 8)
            except KdumpError:
                continue
            if function and self._unwinder.calls.is_of(caller, function):
                return bp
        raise UnwindError(f"the frame pointer of the caller at {ip:#x} is not known")


def _find_symbols(kernel: Kernel, names: Iterable[str]) -> set[int]:
    return {kernel.symbol(name) for name in names if kernel.has_symbol(name)}


def _check_registers(registers: Registers, address: int) -> None:
    # EFLAGS bit 1 is always set, segment selectors have 16 bits.
    if (
        not registers["flags"] & 2
        or max(registers["cs"], registers["ss"]) > 0xFFFF
        or registers["cs"] & 3 not in (0, 3)
    ):
        raise UnwindError(f"no registers of an exception are at {address:#x}")


def unwinder(kernel: Kernel) -> Unwinder:
    """Return the kernel's unwinder.

    :raise KdumpError: the types that it takes are missing
    """
    return kernel.once("unwinder", lambda: Unwinder(kernel))


def unwind_task(kernel: Kernel, task: Task) -> Stack:
    """Return the stack of a task, innermost frame first.

    What cannot be unwound is said in the result, never raised.
    """
    try:
        return unwinder(kernel).unwind(task)
    except KdumpError as error:
        return Stack(task, reason=str(error))
