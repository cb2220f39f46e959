# SPDX-License-Identifier: GPL-2.0-or-later
"""Where each kernel keeps its stacks."""

from __future__ import annotations

import pytest
from handmade import U64, Machine, member, struct_type, words

from gdbkdump.debuginfo.layout import ArrayType, IntType
from gdbkdump.unwind import stacks

CPU_BASE = 0xFFFF888001000000
BYTE = IntType("char", 1, True)


def chars(count):
    return ArrayType(lambda: BYTE, count)


@pytest.fixture
def per_cpu(machine, monkeypatch):
    """Put per-CPU variables in a page; offsets are the symbols' addresses."""
    machine.memory.add(CPU_BASE, bytes(4096))
    monkeypatch.setattr(
        stacks, "per_cpu", lambda kernel, name, cpu: CPU_BASE + kernel.symbol(name)
    )

    def put(name, offset, *values):
        machine.symbols.by_name[name] = offset
        machine.memory.write(CPU_BASE + offset, *values)

    return put


@pytest.mark.parametrize("name", ["stack", "task"])
def test_the_size_of_task_stacks_by_symbols(name):
    machine = Machine()
    machine.symbols.by_name[f"__start_init_{name}"] = 0x100000
    machine.symbols.by_name[f"__end_init_{name}"] = 0x108000
    assert stacks.task_stack_size(machine.kernel()) == 0x8000


def test_the_size_of_task_stacks_by_type_or_rule():
    machine = Machine()
    machine.types["thread_union"] = struct_type("thread_union", 0x8000)
    assert stacks.task_stack_size(machine.kernel()) == 0x8000
    machine = Machine()
    # Nothing that can be: a size that is no power of two, and no such type.
    machine.symbols.by_name["__start_init_stack"] = 0x100000
    machine.symbols.by_name["__end_init_stack"] = 0x100001
    del machine.types["thread_union"]
    assert stacks.task_stack_size(machine.kernel()) == 0x4000


@pytest.mark.parametrize("below", [0, 8, 64])
@pytest.mark.parametrize("name", ["hardirq_stack_ptr", "irq_stack_ptr"])
def test_the_irq_stack(machine, per_cpu, name, below):
    # Since 5.12 the pointer is a word below the end, in 4.14 it was 64 bytes.
    per_cpu(name, 0x40, 0xFFFFC90000008000 - below)
    (found,) = stacks.cpu_stacks(machine.kernel(), 0)
    assert found == (0xFFFFC90000004000, 0xFFFFC90000008000, "IRQ stack")


def test_the_irq_stack_of_pcpu_hot(machine, per_cpu):
    machine.types["pcpu_hot"] = words("pcpu_hot", "current_task", "hardirq_stack_ptr")
    machine.types["irq_stack"] = struct_type("irq_stack", 0x2000)
    per_cpu("pcpu_hot", 0x80, 1, 0xFFFFC90000007FF8)
    (found,) = stacks.cpu_stacks(machine.kernel(), 0)
    assert found == (0xFFFFC90000006000, 0xFFFFC90000008000, "IRQ stack")


def test_exception_stacks(machine, per_cpu):
    fields = [
        ("DF_stack_guard", 4096), ("DF_stack", 8192), ("NMI_stack_guard", 4096),
        ("NMI_stack", 8192), ("VC2_stack", 0), ("IST_top_guard", 4096),
    ]  # fmt: skip
    members, at = [], 0
    for name, size in fields:
        members.append(member(name, at, chars(size)))
        at += size
    machine.types["cea_exception_stacks"] = struct_type("s", at, *members)
    base = 0xFFFFFE0000007000
    per_cpu("cea_exception_stacks", 0x80, base)
    assert stacks.cpu_stacks(machine.kernel(), 0) == [
        (base + 4096, base + 12288, "DOUBLEFAULT exception stack"),
        (base + 16384, base + 24576, "NMI exception stack"),
    ]


def test_a_cpu_that_never_came_up(machine, per_cpu):
    per_cpu("cea_exception_stacks", 0x80, 0)
    per_cpu("hardirq_stack_ptr", 0x88, 0)
    assert stacks.cpu_stacks(machine.kernel(), 0) == []


def test_stacks_of_the_task_state_segment(machine, per_cpu):
    # 4.15 to 5.1: the tops of all are in the TSS, and sizes are fixed.
    tss = struct_type(
        "x86_hw_tss",
        104,
        member("sp0", 4, U64),
        member("ist", 36, ArrayType(lambda: U64, 7)),
    )
    machine.types["tss_struct"] = struct_type("tss", 104, member("x86_tss", 0, tss))
    machine.types["entry_stack"] = struct_type("entry_stack", 512)
    per_cpu("cpu_tss_rw", 0x100)
    machine.memory.write(CPU_BASE + 0x104, 0xFFFFFE0000003000)
    machine.memory.write(CPU_BASE + 0x124, 0xFFFFFE0000008000, 0, 0xFFFFFE000000C000)
    assert stacks.cpu_stacks(machine.kernel(), 0) == [
        (0xFFFFFE0000007000, 0xFFFFFE0000008000, "DOUBLEFAULT exception stack"),
        (0xFFFFFE000000A000, 0xFFFFFE000000C000, "DEBUG exception stack"),
        (0xFFFFFE0000002E00, 0xFFFFFE0000003000, "ENTRY TRAMPOLINE stack"),
    ]
