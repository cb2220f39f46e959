# SPDX-License-Identifier: GPL-2.0-or-later
"""Unwinding by frame pointers, on a kernel made by hand that has no ORC."""

from __future__ import annotations

from itertools import pairwise

import pytest
from handmade import IRQ_STACK, STACK, STACK_SIZE, Machine
from test_unwinder import USER, pt_regs

from gdbkdump.errors import SymbolNotFoundError
from gdbkdump.unwind.frame import FrameKind, StackEnd
from gdbkdump.unwind.framepointer import FramePointers
from gdbkdump.unwind.orc import FRAME_POINTER_ROW, PT_REGS_ROW, Base, RowKind

TOP = STACK + STACK_SIZE
ENDBR, CALL = "f30f1efa", "e8" + "00" * 4
PROLOGUES = {
    "plain": "",
    "traced": CALL,
    "not traced": "0f1f440000",
    "branch target": ENDBR + CALL,
}


class Framed(Machine):
    """A kernel whose functions keep frame pointers."""

    def __init__(self):
        super().__init__()
        for name in ("schedule", "panic", "kthread"):
            self.c(name)
        self.symbols.by_name["__entry_text_start"] = self.text + 0x100
        self.entry = self.function("asm_exc_thing", "undefined")
        self.syscall = self.function("entry_SYSCALL_64_after_hwframe", "undefined")
        self.symbols.by_name["__entry_text_end"] = self.text + 0x100
        self.fork = self.function("ret_from_fork", "undefined")
        self.boot = self.function("secondary_startup_64_no_verify", "undefined")

    def c(self, name, before=""):
        """Add a C function; what comes before its prologue is in hex."""
        at = self.function(name, "undefined")
        self.put(at, before + "554889e5")
        return at

    def put(self, at, code):
        start, data = self.memory.part(at)
        data[at - start : at - start + len(code) // 2] = bytes.fromhex(code)

    def kernel(self):
        made = super().kernel()
        self.symbols.by_name.pop("__start_orc_unwind_ip", None)
        return made

    def at(self, name):
        return self.symbols.by_name[name]


@pytest.fixture
def machine(monkeypatch):
    from gdbkdump.unwind import unwinder

    monkeypatch.setattr(unwinder, "running_tasks", lambda kernel: {})
    return Framed()


def test_a_kernel_thread(machine):
    # schedule() was called by kthread(), and that by ret_from_fork.
    registers = TOP - 21 * 8
    frame = registers - 16
    slot = machine.sleep(
        machine.at("schedule") + 9, frame, machine.at("kthread") + 9,
        registers | 1, machine.fork + 9, *pt_regs(flags=0, cs=0), bp=frame - 16,
    )  # fmt: skip
    assert slot == frame - 24
    stack = machine.unwind()
    assert machine.names() == ["schedule", "kthread", "ret_from_fork"]
    assert (stack.end, stack.reason) == (StackEnd.BOTTOM, "")


def test_a_system_call(machine):
    registers = TOP - 21 * 8
    machine.sleep(
        machine.at("schedule") + 9, 0, machine.syscall + 9, *pt_regs(**USER),
        bp=registers - 16,
    )  # fmt: skip
    stack = machine.unwind()
    assert machine.names() == ["schedule", "entry_SYSCALL_64_after_hwframe"]
    assert stack.end is StackEnd.USER
    assert stack.user_registers["ip"] == USER["ip"]


def test_a_task_that_never_ran(machine):
    machine.sleep(machine.fork, *pt_regs(**USER), bp=0)
    assert machine.unwind().end is StackEnd.USER
    assert machine.names() == ["ret_from_fork"]


def test_the_code_that_boots_a_cpu(machine):
    machine.sleep(machine.at("schedule") + 9, 0, machine.boot + 9, bp=TOP - 16)
    assert machine.unwind().end is StackEnd.BOTTOM
    assert machine.names() == ["schedule", "secondary_startup_64_no_verify"]


def interrupted(machine, on_cpu, ip, sp, bp, *stack):
    """A task that was interrupted on a CPU, with what is on top of its stack."""
    machine.memory.write(sp, *stack)
    on_cpu({"ip": ip, "sp": sp, "bp": bp})
    result = machine.unwind()
    return machine.names(), result


@pytest.mark.parametrize("before", PROLOGUES.values(), ids=PROLOGUES)
def test_every_place_of_a_function_has_the_same_caller(machine, on_cpu, before):
    inner, outer = machine.c("inner", before), machine.c("outer")
    push = inner + len(before) // 2
    machine.put(inner + 0x40, "5dc3")
    machine.put(inner + 0x50, "c9e900010000")
    sp, frame = TOP - 64, TOP - 16
    machine.memory.write(frame, 0, machine.boot + 9)
    caller = outer + 9
    for ip, *pushed in (
        (inner,), (push,), (inner + 0x41,), (inner + 0x51,), (push + 1, frame),
    ):  # fmt: skip
        names, result = interrupted(machine, on_cpu, ip, sp, frame, *pushed, caller)
        assert names == ["inner", "outer", "secondary_startup_64_no_verify"], hex(ip)
        assert (result.end, result.reason) == (StackEnd.BOTTOM, "")
    for ip in (push + 4, inner + 0x40, inner + 0x50):
        names, _ = interrupted(
            machine, on_cpu, ip, sp - 32, sp, 0, 0, 0, 0, frame, caller
        )
        assert names == ["inner", "outer", "secondary_startup_64_no_verify"], hex(ip)


def test_other_instructions_within_the_prologue(machine, on_cpu):
    # As gcc has panic() begin: push %rbp; xor %eax,%eax; mov %rsp,%rbp
    inner = machine.function("inner", "undefined")
    machine.put(inner, "5531c04889e5")
    caller, frame = machine.c("outer") + 9, TOP - 16
    machine.memory.write(frame, 0, machine.boot + 9)
    for ip, bp, *pushed in (
        (inner, frame), (inner + 1, frame, frame), (inner + 3, frame, frame),
        (inner + 6, TOP - 64, frame),
    ):  # fmt: skip
        names, _ = interrupted(machine, on_cpu, ip, TOP - 64, bp, *pushed, caller)
        assert names == ["inner", "outer", "secondary_startup_64_no_verify"], hex(ip)


def test_a_frame_that_only_some_ways_through_a_function_have(machine, on_cpu):
    # As gcc has amd_e400_idle() begin; the CPU was idle before "ret".
    idle = machine.function("idle", "undefined")
    machine.put(idle, "a81075" + "90" * 10 + "f4c3")
    frame = TOP - 16
    machine.memory.write(frame, 0, machine.boot + 9)
    caller = machine.c("outer") + 9
    names, _ = interrupted(machine, on_cpu, idle + 14, TOP - 64, frame, caller)
    assert names == ["idle", "outer", "secondary_startup_64_no_verify"]
    # Elsewhere in it, only a call of it tells; behind it the frame may be there or not.
    machine.call(caller, idle)
    for bp, *pushed in ((frame,), (TOP - 64, frame)):
        names, _ = interrupted(machine, on_cpu, idle + 8, TOP - 64, bp, *pushed, caller)
        assert names == ["idle", "outer", "secondary_startup_64_no_verify"]


def test_an_exception_from_the_kernel(machine, on_cpu):
    # On the IRQ stack, in a handler that entry code called with pt_regs on top.
    handler, inner, outer = (machine.c(name) for name in ("exc", "inner", "outer"))
    frame = TOP - 16
    machine.memory.write(frame, 0, machine.boot + 9)
    machine.memory.write(TOP - 40, outer + 9)
    registers = TOP - 512
    saved = pt_regs(ip=inner, sp=TOP - 40, bp=frame, bx=77)
    machine.memory.write(registers - 16, registers | 1, machine.entry + 9, *saved)
    top = IRQ_STACK.end - 64
    machine.memory.write(top, registers - 16, handler + 9)
    on_cpu({"ip": handler + 9, "sp": top, "bp": top})
    stack = machine.unwind()
    assert machine.names() == [
        "exc", "exc", "asm_exc_thing", "inner", "outer",
        "secondary_startup_64_no_verify",
    ]  # fmt: skip
    middle = stack.frames[3]
    assert (middle.kind, middle.registers["bx"]) == (FrameKind.EXCEPTION, 77)
    assert [f.stack.name for f in stack.frames] == ["IRQ stack"] * 2 + ["task"] * 4


def test_assembly_is_left_by_a_call_of_it(machine, on_cpu):
    assembly = machine.function("memcpy", "undefined")
    machine.put(assembly, "4889f8")
    outer = machine.c("outer")
    machine.call(outer + 0x20, assembly)
    frame = TOP - 16
    machine.memory.write(frame, 0, machine.boot + 9)
    names, _ = interrupted(
        machine, on_cpu, assembly + 3, TOP - 64, frame, 5, outer + 0x20
    )
    assert names == ["memcpy", "outer", "secondary_startup_64_no_verify"]


def test_assembly_that_nothing_called(machine, on_cpu):
    assembly = machine.function("memcpy", "undefined")
    machine.put(assembly, "4889f8")
    names, result = interrupted(machine, on_cpu, assembly + 3, TOP - 64, TOP - 16)
    assert names == ["memcpy"]
    assert result.reason == (
        "memcpy has no frame pointer, nor is a call of it on the stack"
    )


def test_entry_code_that_was_interrupted_tells_nothing(machine, on_cpu):
    names, result = interrupted(machine, on_cpu, machine.entry + 9, TOP - 64, 0)
    assert (names, result.end) == (["asm_exc_thing"], StackEnd.BROKEN)


@pytest.mark.parametrize(
    ("bp", "reason"),
    [
        (TOP - 15, "leads to no frame"),
        (0xDEAD0000, "is on no stack that this one can lead to"),
        (STACK + 8, "the stack pointer goes from"),
    ],
)
def test_a_frame_pointer_of_garbage(machine, bp, reason):
    machine.memory.write(STACK + 8, 0, machine.at("kthread") + 9)
    machine.sleep(machine.at("schedule") + 9, bp=bp)
    stack = machine.unwind()
    assert stack.end is StackEnd.BROKEN
    assert reason in stack.reason


def test_a_loop_of_frame_pointers_ends(machine):
    frame = TOP - 16
    machine.sleep(
        machine.at("schedule") + 9, frame, machine.at("kthread") + 9, bp=frame
    )
    stack = machine.unwind()
    assert "the stack pointer goes from" in stack.reason
    assert len(stack.frames) < 4


def test_functions_without_frame_pointers(machine):
    machine.put(machine.at("panic"), "4157")
    with pytest.raises(SymbolNotFoundError, match="frame pointers"):
        FramePointers(machine.kernel())
    assert machine.unwind().reason == "this kernel has neither ORC nor frame pointers"


# What gdb is given


def test_rows_of_entry_code_and_of_all_text(machine):
    pointers = FramePointers(machine.kernel())
    entry = (machine.entry, machine.entry + 0x200, PT_REGS_ROW)
    rows = list(pointers.kernel_rows(has_dwarf=True))
    assert rows[0] == entry
    every = list(pointers.kernel_rows(has_dwarf=False))
    assert every[1] == entry
    assert {row for _, _, row in every} == {PT_REGS_ROW, FRAME_POINTER_ROW}
    assert all(a[1] == b[0] for a, b in pairwise(every))


def test_where_the_stack_is_changed(machine):
    # mov %rsp,(%r11); mov %r11,%rsp; call; mov %rdx,%rdi; call; pop %rsp
    change = "4989234c89dc"
    at = machine.c("sysvec_thing") + 0x20
    machine.put(at, change + CALL + "4889d7" + CALL + "5c")
    # The same, but it goes on with something else.
    machine.put(machine.c("other") + 0x20, change + CALL + "ffd0" + "5c")
    found = FramePointers(machine.kernel()).switches([])
    assert found == [(at + 6, at + 6 + 14, FRAME_POINTER_ROW)]


def test_rows_of_other_places(machine):
    pointers = FramePointers(machine.kernel())
    assert pointers.after_call(0x401000) is None
    assert pointers.find(0x401000) is None
    assert pointers.find(machine.entry).kind is RowKind.UNDEFINED
    cold = machine.function("schedule.cold", "undefined")
    assert pointers.find(cold).sp_base is Base.BP
