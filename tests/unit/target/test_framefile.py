# SPDX-License-Identifier: GPL-2.0-or-later
"""The frame file of a kernel made by hand, with the CFI of a compiler and without."""

from __future__ import annotations

import pytest
from reading import cfa_text, evaluate, is_marked, read_file, row_at

from gdbkdump.errors import CorruptError, FaultError, FaultReason
from gdbkdump.target import framefile
from gdbkdump.target.cfi import Cie, Fde, section
from gdbkdump.target.debugframe import DebugFrame
from gdbkdump.target.framefile import dump_frames, kernel_frames
from gdbkdump.target.threads import KernelThread
from gdbkdump.unwind.frame import Frame, FrameKind, Stack
from gdbkdump.unwind.orc import Orc
from tests.unit.unwind.handmade import TEXT_END, VERSIONS, Machine, Symbols

RBX, RBP, RSP, RIP = 3, 6, 7, 16
OFFSET = 0x4600000
FILLER = "filler", *(f"more_{i}" for i in range(8))


class SizedSymbols(Symbols):
    """Each symbol reaches to the next one."""

    def at(self, address):
        found = super().at(address)
        after = [a for a in self.by_name.values() if a > address]
        return found and (found[0], min(after, default=None))


class Kernel(Machine):
    """A kernel whose text calls nothing but what is asked for."""

    def __init__(self, version=VERSIONS[3]):
        super().__init__(version)
        names = self.symbols.by_name
        self.symbols = SizedSymbols()
        self.symbols.by_name = names
        _, data = self.memory.part(self.text)
        data[:] = b"\x90" * len(data)
        names["_end"] = TEXT_END
        for i in range(8):
            self.function(f"more_{i}", "call", "sp", 8)

    def row(self, place, *row, **flags):
        """Let another row begin within the function that was made last."""
        self.entries.append((place, self.version.encode(*row, **flags)))

    def frames(self, debug_frame=None):
        made = self.kernel()
        return read_file(kernel_frames(made, Orc(made), OFFSET, debug_frame))


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def machine(request):
    return Kernel(request.param)


@pytest.fixture
def entry():
    """Entry code that calls a handler, which changes to the IRQ stack."""
    made = Kernel()
    handler = made.function("exc_thing", "call", "sp", 8)
    made.row(handler + 1, "call", "sp", 16, "prev_sp", -16)
    made.row(handler + 0x40, "call", "(sp)", 24, "prev_sp", -16)
    made.row(handler + 0x42, "call", "sp", 8)
    switcher = made.function("do_softirq", "call", "sp", 8)
    made.row(switcher + 0x40, "call", "(sp)", 16)
    made.row(switcher + 0x41, "call", "sp", 8)
    pusher = made.function("error_entry", "call", "sp", 8)
    asm = made.function("asm_exc_thing", "partial", "sp", 8, signal=True)
    made.row(asm + 0x20, "regs", "sp", 0, signal=True)
    made.call(asm + 0x20, pusher)
    made.call(asm + 0x30, handler)
    made.function("entry_SYSCALL_64", "end")
    made.row(made.text + 0x20, "regs", "sp", 0, signal=True)
    made.call(made.text + 0x30, switcher)
    return made


def compiled(machine, *names, ops=()):
    """What a compiler would say of some functions, at link addresses."""
    found = [machine.symbols.by_name[name] - OFFSET for name in names]
    fdes = [
        Fde(at, at + 0x100, Cie.CALL_AS_C, [(at, op) for op in ops]) for at in found
    ]
    return DebugFrame(section(fdes, 0))


def at(machine, name, offset=0):
    return machine.symbols.by_name[name] - OFFSET + offset


# What is in the file


def test_every_version_gives_the_same_rules(machine):
    machine.function("plain", "call", "sp", 24, "prev_sp", -24)
    machine.function("stopped", "regs", "sp", 0, signal=True)
    machine.function("cut", "partial", "sp", 8, signal=True)
    machine.function("last", "end")
    machine.function("after", "call", "bp", 16)
    fdes = machine.frames()
    assert cfa_text(row_at(fdes, at(machine, "plain"))[2]) == "r7+24"
    assert is_marked(row_at(fdes, at(machine, "stopped"))[0])
    assert row_at(fdes, at(machine, "cut"))[1][RIP].arg == -40
    assert row_at(fdes, at(machine, "last"))[1][RIP].type == "UNDEFINED"
    assert cfa_text(row_at(fdes, at(machine, "after"))[2]) == "r6+16"


def test_undefined_text_gets_no_rules():
    machine = Kernel()
    machine.function("__crash_kexec", "undefined")
    machine.function("after", "call", "sp", 8)
    fdes = machine.frames()
    assert row_at(fdes, at(machine, "__crash_kexec")) is None
    assert row_at(fdes, at(machine, "after"))


def test_what_the_compiler_tells_is_left_to_it():
    machine = Kernel()
    for name in ("c_1", "c_2", "assembly", "c_3", "end"):
        machine.function(name, "call", "bp", 16)
    fdes = machine.frames(compiled(machine, *FILLER, "c_1", "c_2", "c_3", "end"))
    (only,) = [f for f in fdes if f["initial_location"] < at(machine, "end")]
    assert only["initial_location"] == at(machine, "assembly")
    assert only["address_range"] == 0x100


def test_padding_before_functions_is_left_out():
    machine = Kernel()
    assembly = machine.function("assembly", "call", "sp", 8)
    machine.row(assembly + 0xE0, "undefined")
    machine.row(assembly + 0xF0, "call", "sp", 8)
    machine.function("c", "call", "sp", 8)
    fdes = machine.frames(compiled(machine, *FILLER, "c"))
    assert row_at(fdes, at(machine, "assembly", 0xDF))
    assert row_at(fdes, at(machine, "assembly", 0xF8)) is None


def test_thunks_keep_the_registers_of_c():
    machine = Kernel()
    machine.function("preempt_schedule_thunk", "call", "bp", 16, "prev_sp", -16)
    machine.function("crypto", "call", "bp", 16, "prev_sp", -16)
    fdes = machine.frames()
    _, columns, _ = row_at(fdes, at(machine, "preempt_schedule_thunk"))
    assert columns[RBX].type == "SAME_VALUE"
    assert row_at(fdes, at(machine, "crypto"))[1][RBX].type == "UNDEFINED"


def test_functions_of_assembly_that_change_the_stack_are_marked():
    machine = Kernel()
    changer = machine.function("asm_call_on_stack", "call", "sp", 8)
    machine.row(changer + 8, "call", "bp", 16, "prev_sp", -16)
    machine.symbols.by_name["asm_call_irq_on_stack"] = changer
    machine.function("after", "call", "sp", 8)
    fde, columns, cfa = row_at(machine.frames(), at(machine, "asm_call_on_stack", 8))
    assert is_marked(fde)
    assert cfa_text(cfa) == "r6+16"
    assert columns[RBX].type == "SAME_VALUE"


def test_nothing_is_made_of_a_damaged_table():
    machine = Kernel()
    machine.function("strange", "call", "undefined", 8)
    with pytest.raises(CorruptError, match="starts from undefined"):
        machine.frames()
    machine = Kernel()
    machine.function("f", "call", "sp", 8)
    machine.function("g", "call", "sp", 8)
    kernel = machine.kernel()
    orc = Orc(kernel)
    # The sample that is looked at when it is read does not show every bad address.
    (offsets,) = (orc._table._load(),)
    offsets[1] += 0x1000
    with pytest.raises(CorruptError, match="not sorted"):
        kernel_frames(kernel, orc, 0, None)


# Entry code


def test_user_mode_enters_where_nothing_called(entry):
    fdes = entry.frames()
    for offset in (0, 0x20, 0x2F):
        found = row_at(fdes, at(entry, "entry_SYSCALL_64", offset))
        assert found[1][RIP].type == "UNDEFINED"


def test_pt_regs_are_there_behind_what_pushes_them(entry):
    fdes = entry.frames()
    before = row_at(fdes, at(entry, "asm_exc_thing", 0x1B))
    assert before[1][RIP].arg == -40
    for offset in (0x1F, 0x20):
        fde, columns, cfa = row_at(fdes, at(entry, "asm_exc_thing", offset))
        assert is_marked(fde)
        assert columns[RIP].arg == 128 - 168
        assert cfa_text(cfa) == "r7+168"


def test_handlers_return_to_a_caller_or_to_none(entry):
    fdes = entry.frames()
    site = at(entry, "asm_exc_thing", 0x30)
    assert row_at(fdes, site - 1)[1][RIP].arg == 128 - 168
    assert row_at(fdes, site - 2)[1][RIP].type == "UNDEFINED"
    _, columns, cfa = row_at(fdes, at(entry, "exc_thing", 0x10))
    assert cfa_text(cfa) == "r7+16"
    assert (columns[RBP].type, columns[RBP].arg) == ("OFFSET", -16)
    # gdb sees run-time addresses.
    memory = {0xFF8: site + OFFSET, 0x1088: 0x33}
    assert evaluate(columns[RIP].arg, memory, {}, 0x1000) == site + OFFSET - 1
    memory[0x1088] = 0x10
    assert evaluate(columns[RIP].arg, memory, {}, 0x1000) == site + OFFSET


@pytest.mark.parametrize("reason", FaultReason)
@pytest.mark.parametrize("is_init", [True, False])
def test_only_init_text_may_be_left_out_of_the_dump(entry, reason, is_init):
    early = entry.function("early_idt_handler_array", "partial", "sp", 8, signal=True)
    after = entry.function("after", "call", "sp", 8)
    entry.symbols.by_name["_sinittext"] = early if is_init else after
    entry.symbols.by_name["_einittext"] = entry.symbols.by_name["_end"]
    kernel = entry.kernel()
    read = kernel.reader.read

    def read_what_is_there(address, size):
        if early <= address < after:
            raise FaultError("virtual", address, reason)
        return read(address, size)

    kernel.reader.read = read_what_is_there
    if is_init and reason is FaultReason.EXCLUDED:
        made = read_file(kernel_frames(kernel, Orc(kernel), OFFSET, None))
        site = at(entry, "asm_exc_thing", 0x30)
        assert row_at(made, site - 1)[1][RIP].arg == 128 - 168
    else:
        with pytest.raises(FaultError, match=reason.value):
            kernel_frames(kernel, Orc(kernel), OFFSET, None)


def test_the_compilers_rules_for_a_handler_are_kept(entry):
    # rbx is at CFA - 24, which ORC does not know.
    debug_frame = compiled(
        entry, *FILLER, "exc_thing", "do_softirq", ops=[b"\x0e\x18", b"\x83\x03"]
    )
    fdes = entry.frames(debug_frame)
    for offset in (0, 0x3F, 0x42, 0xFF):
        _, columns, cfa = row_at(fdes, at(entry, "exc_thing", offset))
        assert cfa_text(cfa) == "r7+24"
        assert (columns[RBX].type, columns[RBX].arg) == ("OFFSET", -24)
        assert columns[RIP].type == "VAL_EXPRESSION"
    _, columns, cfa = row_at(fdes, at(entry, "exc_thing", 0x40))
    assert cfa_text(cfa) == "r7+8"
    assert columns[RSP].type == "VAL_EXPRESSION"


def test_other_functions_that_change_the_stack(entry):
    debug_frame = compiled(
        entry, *FILLER, "exc_thing", "do_softirq", ops=[b"\x0e\x18", b"\x83\x03"]
    )
    for fdes, rbx in ((entry.frames(debug_frame), "OFFSET"), (entry.frames(), None)):
        fde, columns, cfa = row_at(fdes, at(entry, "do_softirq", 0x40))
        assert is_marked(fde)
        assert (fde["initial_location"], fde["address_range"]) == (
            at(entry, "do_softirq", 0x40), 1,
        )  # fmt: skip
        assert evaluate(cfa.expr, {0x9000: 0x5000}, {RSP: 0x9000}) == 0x5010
        assert (columns[RBX].type if RBX in columns else None) == rbx
    # Of its own rules nothing else is replaced.
    assert row_at(entry.frames(debug_frame), at(entry, "do_softirq")) is None


# One dump


def thread(**registers):
    return KernelThread(1, 0, b"x", 0, registers)


def test_user_mode_and_address_0():
    made = Kernel()
    kernel = made.kernel()
    for threads, rule in (
        ([thread(), thread(ip=1)], "UNDEFINED"),
        ([thread(), thread(ip=0, sp=1)], "OFFSET"),
    ):
        data = dump_frames(kernel, Orc(kernel), threads, has_dwarf=True)
        fdes = read_file(data)
        assert row_at(fdes, 0)[1][RIP].type == rule
        for user in (0x1000, 0x401A75, 0x7FFFFFFFFFFF):
            assert row_at(fdes, user)[1][RIP].type == "UNDEFINED"
        assert row_at(fdes, 0xFFFF888000000000) is None


def test_the_function_without_orc_that_the_panicking_cpu_is_in(monkeypatch):
    made = Kernel()
    made.function("panic", "call", "bp", 16, "prev_sp", -16)
    place = made.symbols.by_name["panic"] + 0x10
    kernel = made.kernel()
    frames = [
        Frame(0xFFFFFFFF81000123, 0x1000, 0, FrameKind.CPU, None),
        Frame(place, 0x1080, 0x1078, FrameKind.CALL, None),
        Frame(place, 0x1100, 0x10F8, FrameKind.CALL, None),
    ]
    monkeypatch.setattr(framefile, "panic_task", lambda kernel: made.task())
    monkeypatch.setattr(
        framefile, "unwind_task", lambda kernel, task: Stack(task, 0, frames)
    )
    fdes = read_file(dump_frames(kernel, Orc(kernel), [], has_dwarf=False))
    _, columns, cfa = row_at(fdes, 0xFFFFFFFF81000123)
    assert cfa_text(cfa) == "r7+128"
    # From there panic() itself finds its caller: rbp + 16 is above it.
    assert evaluate(columns[RBP].arg, {}, {}, 0) + 16 == 0x1100
    fdes = read_file(dump_frames(kernel, Orc(kernel), [], has_dwarf=True))
    assert row_at(fdes, 0xFFFFFFFF81000123) is None
