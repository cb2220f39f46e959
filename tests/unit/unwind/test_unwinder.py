# SPDX-License-Identifier: GPL-2.0-or-later
"""The unwinder on a kernel made by hand: what stacks hold, and what they must not."""

from __future__ import annotations

import struct

import pytest
from handmade import (
    GENERATED,
    IMAGE_END,
    IRQ_STACK,
    NMI_STACK,
    STACK,
    STACK_SIZE,
    TASK,
    TEXT,
    VERSIONS,
    Machine,
    member,
    struct_type,
    words,
)

from gdbkdump.arch.x86_64 import X86_64
from gdbkdump.unwind import unwinder
from gdbkdump.unwind.frame import FrameKind, StackEnd

TOP = STACK + STACK_SIZE
USER = {"ip": 0x401000, "cs": 0x33, "flags": 0x202, "sp": 0x7FFF00000000, "ss": 0x2B}


def pt_regs(**values):
    full = {"flags": 2, "cs": 0x10, **values}
    return [full.get(name, 0) for name in X86_64.registers[:21]]


def test_a_kernel_thread(machine):
    schedule = machine.function("schedule", "call", "sp", 24)
    kthread = machine.function("kthread", "call", "sp", 8)
    end = machine.function("ret_from_fork", "end")
    slot = machine.sleep(schedule + 5, 1, 2, kthread + 9, end + 1)
    stack = machine.unwind()
    assert machine.names() == ["schedule", "kthread", "ret_from_fork"]
    assert (stack.end, stack.reason, stack.cpu) == (StackEnd.BOTTOM, "", None)
    assert [f.slot for f in stack.frames] == [slot, slot + 24, slot + 32]
    assert [f.sp for f in stack.frames] == [slot + 8, slot + 32, TOP]
    assert {f.kind for f in stack.frames} == {FrameKind.CALL}


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_a_system_call_in_every_version(version, monkeypatch):
    monkeypatch.setattr(unwinder, "running_tasks", lambda kernel: {})
    machine = Machine(version)
    machine.function("filler2", "call", "sp", 8)
    read = machine.function("read", "call", "bp", 16, "prev_sp", -16)
    entry = machine.function("entry", "regs", "sp", signal=True)
    registers = pt_regs(**USER, di=7, bp=0x77)
    # read has a frame pointer: its caller is above it.
    bp = TOP - 8 * (len(registers) + 2)
    machine.sleep(read + 5, 0xDEAD, 0x1234, entry + 9, *registers, bp=bp)
    stack = machine.unwind()
    assert machine.names() == ["read", "entry"]
    assert stack.end is StackEnd.USER
    assert stack.user_registers["di"] == 7
    assert {k: stack.user_registers[k] for k in USER} == USER


def test_a_call_that_never_returns_belongs_to_its_caller(machine):
    inner = machine.function("inner", "call", "sp", 8)
    outer = machine.function("outer", "end")
    machine.function("next", "call", "sp", 8)
    machine.sleep(inner + 1, outer + 0x100)
    machine.unwind()
    assert machine.names() == ["inner", "outer"]


def test_a_new_task_that_never_ran(machine):
    machine.function("before", "undefined")
    fork = machine.function("ret_from_fork", "end")
    machine.sleep(fork)
    assert machine.unwind().end is StackEnd.BOTTOM
    assert machine.names() == ["ret_from_fork"]


def test_the_empty_registers_of_a_kernel_thread(machine):
    fork = machine.function("ret_from_fork", "regs", "sp", signal=True)
    machine.sleep(fork + 1, *[0] * 21)
    stack = machine.unwind()
    assert (stack.end, stack.user_registers) == (StackEnd.BOTTOM, None)


# Damage: one line each, and never more frames than there are


@pytest.mark.parametrize(
    "sp", [0, 1, STACK - 8, TOP, TOP - 48, STACK + 4, 0xFFFFFFFFFFFFFFF8]
)
def test_a_corrupt_thread_sp(machine, sp):
    machine.memory.write(TASK + 0x100, sp)
    stack = machine.unwind()
    assert (stack.end, stack.frames) == (StackEnd.BROKEN, [])
    assert f"thread.sp {sp:#x} is not on its stack" in stack.reason


def test_a_stack_that_was_freed(machine):
    stack = machine.unwind(stack=0)
    assert (stack.end, stack.frames) == (StackEnd.FREED, [])


@pytest.mark.parametrize("word", [0, 1, 0x401000, STACK, IMAGE_END - 1, 1 << 64 - 1])
def test_a_return_address_that_is_none(machine, word):
    f = machine.function("f", "call", "sp", 8)
    machine.sleep(f + 1, word)
    stack = machine.unwind()
    assert machine.names() == ["f"]
    assert stack.reason == f"the return address {word:#x} is not in kernel code"


def test_garbage_at_the_switch(machine):
    machine.sleep(0x4141414141414141)
    stack = machine.unwind()
    assert (stack.frames, stack.end) == ([], StackEnd.BROKEN)


def test_a_loop_of_frame_pointers(machine):
    f = machine.function("f", "call", "bp", 16, "prev_sp", -16)
    at = TOP - 64
    machine.memory.write(at, at, f + 1)
    machine.sleep(f + 1, *[0] * 20, bp=at)
    machine.memory.write(at, at, f + 1)
    stack = machine.unwind()
    assert len(stack.frames) == 2
    assert stack.reason == f"the stack pointer goes from {at + 16:#x} to {at + 16:#x}"


def test_more_frames_than_a_stack_can_mean(machine):
    f = machine.function("f", "call", "sp", 8)
    machine.sleep(*[f + 1] * 2000)
    stack = machine.unwind()
    assert len(stack.frames) == 1024
    assert stack.reason == "more than 1024 frames"


def test_running_off_the_stack(machine):
    f = machine.function("f", "call", "sp", 8)
    machine.sleep(f + 1, f + 1)
    stack = machine.unwind()
    assert len(stack.frames) == 2
    assert stack.reason == f"{TOP:#x} is outside the stack {STACK:#x}-{TOP:#x}"


def test_a_frame_pointer_that_leads_elsewhere(machine):
    f = machine.function("f", "call", "bp", 16)
    machine.sleep(f + 1, 0, bp=0x1000)
    assert machine.unwind().reason == (
        "0x1008 is on no stack that this one can lead to"
    )


def test_a_stack_page_that_is_not_in_the_dump(machine):
    f = machine.function("f", "call", "sp", 0x18)
    machine.sleep(f + 1, *[0] * 1000)
    machine.memory.parts[STACK] = machine.memory.parts[STACK][:-8000]
    stack = machine.unwind()
    assert len(stack.frames) <= 1
    assert "cannot read virtual address" in stack.reason


def test_registers_that_are_none(machine):
    entry = machine.function("entry", "regs", "sp", signal=True)
    for bad in ({"flags": 0}, {"cs": 0x48F3CA}, {"ss": 1 << 20}, {"cs": 0x11}):
        machine.sleep(entry + 1, *pt_regs(**{**USER, **bad}))
        stack = machine.unwind()
        assert (stack.user_registers, stack.end) == (None, StackEnd.BROKEN)
        assert "no registers of an exception are at" in stack.reason


def test_a_register_that_was_not_saved(machine):
    f = machine.function("f", "call", "r10")
    machine.sleep(f + 1)
    assert machine.unwind().reason == "the caller depends on r10, which was not saved"


def test_no_orc(machine):
    del machine.types["orc_entry"]
    assert "ORC cannot be used" in machine.unwind().reason


def test_orc_of_zeros(machine):
    machine.entries = [(address, bytes(6)) for address, _ in machine.entries]
    assert "ORC cannot be used: ORC: most entries start" in machine.unwind().reason


# CPUs


def test_a_cpu_in_user_mode(machine, on_cpu):
    on_cpu(USER)
    stack = machine.unwind()
    assert (stack.end, stack.frames, stack.cpu) == (StackEnd.USER, [], 0)
    assert stack.user_registers["ip"] == USER["ip"]


def test_a_cpu_that_did_not_answer(machine, on_cpu):
    f = machine.function("f", "end")
    machine.sleep(f + 1)
    on_cpu(None)
    stack = machine.unwind()
    # thread.sp would give a frame; it is that of the last switch.
    assert (stack.end, stack.frames) == (StackEnd.UNSAVED, [])
    assert "the registers of CPU 0 are not in the dump" in stack.reason


def test_from_the_nmi_stack_to_the_task_stack(machine, on_cpu):
    handler = machine.function("exc_nmi", "call", "sp", 16)
    nmi = machine.function("asm_exc_nmi", "regs", "sp", signal=True)
    idle = machine.function("idle", "call", "r10")
    end = machine.function("start", "end")
    # Interrupted at the first instruction: exactly idle, not what is before it.
    machine.memory.write(TOP - 8, end + 1)
    registers = pt_regs(ip=idle, sp=TOP - 32, r10=TOP)
    sp = NMI_STACK.end - 8 * (2 + len(registers))
    machine.memory.write(sp, 0, nmi + 9, *registers)
    on_cpu({"ip": handler + 3, "sp": sp})
    stack = machine.unwind()
    assert machine.names() == ["exc_nmi", "asm_exc_nmi", "idle", "start"]
    assert [f.stack.name for f in stack.frames] == [NMI_STACK.name] * 2 + ["task"] * 2
    assert [f.kind for f in stack.frames] == [
        FrameKind.EXCEPTION, FrameKind.CALL, FrameKind.EXCEPTION, FrameKind.CALL,
    ]  # fmt: skip
    assert stack.frames[2].registers["ip"] == idle
    assert stack.end is StackEnd.BOTTOM


def test_from_the_irq_stack_to_the_task_stack(machine, on_cpu):
    inner = machine.function("handle_irq", "call", "(sp)", 8)
    outer = machine.function("call_on_irqstack", "end")
    machine.memory.write(IRQ_STACK.end - 8, TOP - 16)
    machine.memory.write(TOP - 16, outer + 1)
    on_cpu({"ip": inner, "sp": IRQ_STACK.end - 8})
    stack = machine.unwind()
    assert machine.names() == ["handle_irq", "call_on_irqstack"]
    assert [f.stack.name for f in stack.frames] == ["IRQ stack", "task"]


def test_no_stack_is_visited_twice(machine, on_cpu):
    f = machine.function("f", "call", "(sp)", 8)
    # The NMI stack leads to the task's, and that back to it.
    machine.memory.write(NMI_STACK.end - 16, TOP - 16)
    machine.memory.write(TOP - 16, f + 1, NMI_STACK.end - 16)
    on_cpu({"ip": f, "sp": NMI_STACK.end - 16})
    stack = machine.unwind()
    assert len(stack.frames) == 2
    assert "is on no stack that this one can lead to" in stack.reason


def test_a_stack_pointer_on_no_stack(machine, on_cpu):
    f = machine.function("f", "call", "sp", 8)
    on_cpu({"ip": f, "sp": 0x1234})
    stack = machine.unwind()
    assert len(stack.frames) == 1
    assert "0x1234" in stack.reason


def test_a_jump_to_null(machine, on_cpu):
    end = machine.function("caller", "end")
    machine.memory.write(TOP - 8, end + 5)
    on_cpu({"ip": 0, "sp": TOP - 8})
    stack = machine.unwind()
    assert [f.ip for f in stack.frames] == [0, end + 5]
    assert stack.end is StackEnd.BOTTOM


def test_a_jump_to_nowhere(machine, on_cpu):
    on_cpu({"ip": 0x4141, "sp": TOP - 8})
    stack = machine.unwind()
    assert [f.ip for f in stack.frames] == [0x4141]
    assert stack.reason == "0x4141 is not in kernel code"


# Code without ORC


def crash(machine, on_cpu, *, bp, words_above=(), padding=0):
    """__crash_kexec of a panic() that keeps its caller by a frame pointer."""
    kexec = machine.function("__crash_kexec", "undefined")
    panic = machine.function("panic", "call", "bp", 16, "prev_sp", -16)
    caller = machine.function("sysrq", "end")
    machine.call(panic + 0x40, kexec - padding)
    machine.call(caller + 0x20, panic)
    machine.memory.write(TOP - 16, 0x5555, caller + 0x20)
    stack = [0xBAD, panic + 0x33, *words_above, panic + 0x40, 0, 0]
    sp = TOP - 16 - 8 * len(stack)
    machine.memory.write(sp, *stack)
    on_cpu({"ip": kexec + 0x50, "sp": sp, "bp": bp})
    return machine.unwind()


def test_the_panicking_cpu(machine, on_cpu):
    stack = crash(machine, on_cpu, bp=TOP - 16)
    # panic+0x33 is on the stack too, but no call of __crash_kexec is before it.
    assert machine.names() == ["__crash_kexec", "panic", "sysrq"]
    assert stack.frames[1].ip & 0xFF == 0x40
    assert (stack.frames[0].kind, stack.end) == (FrameKind.CPU, StackEnd.BOTTOM)


def test_the_panicking_cpu_that_pushed_rbp(machine, on_cpu):
    crash(machine, on_cpu, bp=0x123, words_above=(TOP - 16, 0x1, 0x2))
    assert machine.names() == ["__crash_kexec", "panic", "sysrq"]


def test_a_call_to_the_padding_of_a_function(machine, on_cpu):
    crash(machine, on_cpu, bp=TOP - 16, padding=16)
    assert machine.names() == ["__crash_kexec", "panic", "sysrq"]


def test_the_panicking_cpu_whose_rbp_is_lost(machine, on_cpu):
    stack = crash(machine, on_cpu, bp=0x123)
    assert machine.names() == ["__crash_kexec"]
    assert "the frame pointer of the caller" in stack.reason


def test_a_function_without_orc_that_nothing_called(machine, on_cpu):
    odd = machine.function("odd", "undefined")
    on_cpu({"ip": odd + 4, "sp": TOP - 64})
    assert machine.unwind().reason == (
        "odd has no ORC, nor is a call of it on the stack"
    )


def test_entry_code_that_leaves_more_than_it_found(machine, on_cpu):
    sync = machine.function("sync_regs", "call", "sp", 8)
    entry = machine.function("error_entry", "call", "sp", 8)
    # As objtool wrote it: before the call an iret frame is 8 bytes up, after it not.
    asm = machine.function("asm_exc", "partial", "sp", 8, signal=True)
    machine.call(asm + 0xF, entry)
    registers = pt_regs(**USER, r15=0x15)
    sp = TOP - 8 * (1 + len(registers))
    machine.memory.write(sp, asm + 0xF, *registers)
    on_cpu({"ip": sync + 0x22, "sp": sp})
    stack = machine.unwind()
    assert machine.names() == ["sync_regs", "asm_exc"]
    assert stack.user_registers["r15"] == 0x15
    assert stack.user_registers["ip"] == USER["ip"]


def test_generated_code_is_a_guess_and_says_so(machine):
    helper = machine.function("bpf_helper", "call", "sp", 8)
    end = machine.function("run", "end")
    bp = TOP - 16
    machine.memory.add(GENERATED, b"\xff\xd0" * 64)
    machine.sleep(helper + 1, GENERATED + 0x20, 0, 0x5555, end + 1, bp=bp)
    stack = machine.unwind()
    assert [f.is_reliable for f in stack.frames] == [True, True, False]
    assert stack.end is StackEnd.BOTTOM


def test_a_return_address_that_no_call_left_is_marked(machine):
    f = machine.function("f", "call", "sp", 8)
    g = machine.function("g", "call", "sp", 8)
    end = machine.function("end", "end")
    machine.memory.parts[TEXT][g - TEXT : g - TEXT + 0x40] = b"\x90" * 0x40
    machine.sleep(f + 1, g + 0x20, end + 1)
    assert [f.is_reliable for f in machine.unwind().frames] == [True, False, False]


def test_a_kernel_without_any_tables_says_so(machine):
    del machine.symbols.by_name["__start_orc_unwind_ip"]
    stack = machine.unwind()
    assert (stack.frames, stack.end) == ([], StackEnd.BROKEN)
    assert "neither ORC nor frame pointers" in stack.reason


# Return addresses that tracing replaced


def traced(machine, trampoline):
    at = machine.function(trampoline, "undefined")
    inner = machine.function("inner", "call", "sp", 8)
    outer = machine.function("outer", "end")
    slot = machine.sleep(inner + 1, at) + 8
    return slot, outer + 7


def test_the_function_graph_tracer(machine):
    slot, real = traced(machine, "return_to_handler")
    machine.types["ftrace_ret_stack"] = words(
        "ftrace_ret_stack", "ret", "func", "calltime", "retp"
    )
    records = 0xFFFF888000020000
    machine.memory.add(records, bytes(4096))
    machine.memory.write(records, 1, 2, 3, slot - 64, real, 2, 3, slot)
    machine.memory.write(TASK + 0x200, records)
    machine.unwind()
    assert machine.names() == ["inner", "outer"]


def test_a_return_probe(machine):
    slot, real = traced(machine, "arch_rethook_trampoline")
    machine.types["rethook_node"] = words(
        "rethook_node", "rcu", "func", "llist", "rethook", "ret_addr", "frame"
    )
    node = 0xFFFF888000020000
    machine.memory.add(node, struct.pack("<6Q", 0, 0, 0, 0, real, slot))
    machine.memory.write(TASK + 0x208, node + 16)
    machine.unwind()
    assert machine.names() == ["inner", "outer"]


def test_two_tracers_one_after_the_other(machine):
    # As Debian's 6.1 has it: the return probe came first, the function graph second.
    slot, real = traced(machine, "return_to_handler")
    probe = machine.function("arch_rethook_trampoline", "undefined")
    machine.types["ftrace_ret_stack"] = words("ftrace_ret_stack", "ret", "func", "retp")
    machine.types["rethook_node"] = words(
        "rethook_node", "rcu", "func", "llist", "rethook", "ret_addr", "frame"
    )
    records, node = 0xFFFF888000020000, 0xFFFF888000030000
    machine.memory.add(records, bytes(4096))
    machine.memory.write(records, probe, 2, slot)
    machine.memory.write(TASK + 0x200, records)
    machine.memory.add(node, struct.pack("<6Q", 0, 0, 0, 0, real, slot))
    machine.memory.write(TASK + 0x208, node + 16)
    machine.unwind()
    assert machine.names() == ["inner", "outer"]


def test_tracers_whose_records_lead_to_each_other(machine):
    slot, _ = traced(machine, "return_to_handler")
    probe = machine.function("arch_rethook_trampoline", "undefined")
    machine.types["ftrace_ret_stack"] = words("ftrace_ret_stack", "ret", "func", "retp")
    machine.types["rethook_node"] = words(
        "rethook_node", "rcu", "func", "llist", "rethook", "ret_addr", "frame"
    )
    graph = machine.symbols.by_name["return_to_handler"]
    records, node = 0xFFFF888000020000, 0xFFFF888000030000
    machine.memory.add(records, bytes(4096))
    machine.memory.write(records, probe, 2, slot)
    machine.memory.write(TASK + 0x200, records)
    machine.memory.add(node, struct.pack("<6Q", 0, 0, 0, 0, graph, slot))
    machine.memory.write(TASK + 0x208, node + 16)
    assert "whose record of it leads to return_to_handler" in machine.unwind().reason


def test_a_return_probe_of_old(machine):
    # Up to 5.10 all tasks share a hash; another task's record names the same place.
    slot, real = traced(machine, "kretprobe_trampoline")
    del machine.types["task_struct"]
    thread = words("thread_struct", "sp")
    machine.types["task_struct"] = struct_type(
        "task_struct", 4096, member("thread", 0x100, thread)
    )
    machine.types["kretprobe_instance"] = words(
        "kretprobe_instance", "hlist", "pprev", "rp", "ret_addr", "task", "fp"
    )
    table, nodes = 0xFFFF888000020000, 0xFFFF888000030000
    machine.symbols.by_name["kretprobe_inst_table"] = table
    bucket = (TASK * 0x61C8864680B583EB & (1 << 64) - 1) >> 58
    machine.memory.add(table, bytes(512))
    machine.memory.write(table + 8 * bucket, nodes)
    machine.memory.add(nodes, bytes(4096))
    machine.memory.write(nodes, nodes + 64, 0, 0, 1, TASK + 8192, slot)
    machine.memory.write(nodes + 64, 0, 0, 0, real, TASK, slot)
    machine.unwind()
    assert machine.names() == ["inner", "outer"]


def test_a_replaced_address_without_a_record(machine):
    traced(machine, "arch_rethook_trampoline")
    machine.types["rethook_node"] = words(
        "rethook_node", "rcu", "func", "llist", "rethook", "ret_addr", "frame"
    )
    stack = machine.unwind()
    assert machine.names() == ["inner"]
    assert (
        "was replaced by arch_rethook_trampoline, which has no record" in stack.reason
    )
