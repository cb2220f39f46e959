# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the stacks of x86-64 are, so that every step of an unwinding can be bounded.

Mirrors ``arch/x86/kernel/dumpstack_64.c`` (``get_stack_info()``),
``arch/x86/include/asm/cpu_entry_area.h`` and ``processor.h``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import KdumpError, SymbolNotFoundError, TypeNotFoundError
from gdbkdump.kernel.percpu import per_cpu
from gdbkdump.kernel.taskstack import task_stack_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.kernel.base import Kernel

TASK_STACK = "task"
_IRQ_STACK_SIZE = 16384
_IST_STACK_SIZE = 4096
# struct cea_exception_stacks calls them DF_stack, NMI_stack, ...; crash as here.
_EXCEPTION_NAMES = {"DF": "DOUBLEFAULT", "DB": "DEBUG"}
# tss.ist[] of kernels before 5.2, in order; size in pages.
_OLD_IST = (("DOUBLEFAULT", 1), ("NMI", 1), ("DEBUG", 2), ("MCE", 1))


class StackRange(NamedTuple):
    """A stack; ``name`` is ``task`` or what crash writes between its angle brackets."""

    start: int
    end: int
    name: str


def task_stack(kernel: Kernel, start: int) -> StackRange:
    """Return the stack of a task; ``start`` is ``task->stack``."""
    return StackRange(start, start + task_stack_size(kernel), TASK_STACK)


def cpu_stacks(kernel: Kernel, cpu: int) -> list[StackRange]:
    """Return the stacks of a CPU that interrupts and exceptions switch to.

    One that cannot be located is left out; an unwinding that needs it then says so.
    """
    return kernel.once(("stacks", cpu), lambda: _find_cpu_stacks(kernel, cpu))


def _find_cpu_stacks(kernel: Kernel, cpu: int) -> list[StackRange]:
    found: list[StackRange] = []
    for read in (_irq_stacks, _exception_stacks, _entry_stacks):
        try:
            found += read(kernel, cpu)
        except KdumpError:
            continue
    return found


def _irq_stacks(kernel: Kernel, cpu: int) -> Iterator[StackRange]:
    top = kernel.reader.u64(_irq_stack_pointer(kernel, cpu))
    if not top:
        return
    try:
        size = kernel.struct("irq_stack").size
    except TypeNotFoundError:
        size = _IRQ_STACK_SIZE
    # The pointer is the end of the stack, or a word or more below it.
    end = (top + kernel.page_size - 1) & -kernel.page_size
    yield StackRange(end - size, end, "IRQ stack")


def _irq_stack_pointer(kernel: Kernel, cpu: int) -> int:
    # Since Linux kernel commit e6401c130931 ("x86/irq/64: Split the IRQ stack into its
    # own pages") (in v5.2); in struct pcpu_hot from v6.2 to v6.14.
    for symbol in ("hardirq_stack_ptr", "irq_stack_ptr"):
        try:
            return per_cpu(kernel, symbol, cpu)
        except SymbolNotFoundError:
            continue
    hot = per_cpu(kernel, "pcpu_hot", cpu)
    return hot + kernel.struct("pcpu_hot").offset("hardirq_stack_ptr")


def _exception_stacks(kernel: Kernel, cpu: int) -> Iterator[StackRange]:
    try:
        # Since Linux kernel commit "x86/cpu_entry_area: Provide exception stack
        # accessor" (in v5.2).
        base = kernel.reader.u64(per_cpu(kernel, "cea_exception_stacks", cpu))
    except SymbolNotFoundError:
        yield from _old_exception_stacks(kernel, cpu)
        return
    if not base:
        return  # a CPU that never came up
    type_ = kernel.struct("cea_exception_stacks")
    for member in type_.members:
        label, _, rest = member.name.partition("_stack")
        # Between them are guard pages, DF_stack_guard.
        if not rest and label != member.name and member.type.size:
            start = base + member.offset
            name = f"{_EXCEPTION_NAMES.get(label, label)} exception stack"
            yield StackRange(start, start + member.type.size, name)


def _old_exception_stacks(kernel: Kernel, cpu: int) -> Iterator[StackRange]:
    tss = per_cpu(kernel, "cpu_tss_rw", cpu)
    tops = kernel.object("tss_struct", tss)["x86_tss.ist"]
    for index, (name, pages) in enumerate(_OLD_IST):
        top = tops[index]
        if top:
            start = top - pages * _IST_STACK_SIZE
            yield StackRange(start, top, f"{name} exception stack")


def _entry_stacks(kernel: Kernel, cpu: int) -> Iterator[StackRange]:
    # sp0 of the TSS is the top of the trampoline stack since Linux kernel commit
    # 7f2590a110b8 ("x86/entry/64: Use a per-CPU trampoline stack for IDT entries")
    # (in v4.15); before it was the top of the task's.
    size = kernel.struct("entry_stack").size
    tss = per_cpu(kernel, "cpu_tss_rw", cpu)
    top = kernel.object("tss_struct", tss)["x86_tss.sp0"]
    if top:
        yield StackRange(top - size, top, "ENTRY TRAMPOLINE stack")
