# SPDX-License-Identifier: GPL-2.0-or-later
"""The frame file for return addresses that tracing replaced, on a kernel by hand."""

from __future__ import annotations

import struct

import pytest
from reading import cfa_text, evaluate, read_file, row_at

from gdbkdump.target import tracefile
from gdbkdump.target.cfi import Cie, Fde, section
from gdbkdump.target.debugframe import DebugFrame
from gdbkdump.unwind import unwinder
from tests.unit.unwind.handmade import Machine, words

RBX, RSP, RIP = 3, 7, 16
NODE = 0xFFFF888000020000
OFFSET = 0x4600000


class Traced(Machine):
    """A task asleep in inner(), whose return to outer() a return probe waits for."""

    def __init__(self):
        super().__init__()
        trampoline = self.function("arch_rethook_trampoline", "undefined")
        self.inner = self.function("inner", "call", "sp", 24)
        self.outer = self.function("outer", "end")
        slot = self.sleep(self.inner + 9, 0, 0, trampoline) + 24
        self.cfa = slot + 8
        self.types["rethook_node"] = words(
            "rethook_node", "rcu", "func", "llist", "rethook", "ret_addr", "frame"
        )
        node = struct.pack("<6Q", 0, 0, 0, 0, self.outer + 7, slot)
        self.memory.add(NODE, node)
        self.made = self.kernel()

    def frames(self, monkeypatch, frame_of, is_traced=True):
        """The FDEs of the file, None where there is none."""
        task = self.task()
        self.memory.write(task.address + 0x208, NODE + 16 if is_traced else 0)
        monkeypatch.setattr(tracefile, "tasks", lambda kernel: [task])
        monkeypatch.setattr(unwinder, "running_tasks", lambda kernel: {})
        data = tracefile.trace_frames(self.made, frame_of)
        return data and read_file(data)


@pytest.fixture
def machine():
    return Traced()


def check_return(machine, columns):
    rule = columns[RIP].arg
    assert evaluate(rule, {}, {}, machine.cfa) == machine.outer + 7
    assert evaluate(rule, {0xF8: 5}, {}, 0x100) == 5


def test_by_orc_where_no_compiler_tells_more(machine, monkeypatch):
    fdes = machine.frames(monkeypatch, lambda pc: None)
    (fde,) = fdes
    assert (fde["initial_location"], fde["address_range"]) == (machine.inner + 8, 1)
    _, columns, cfa = row_at(fdes, machine.inner + 8)
    assert cfa_text(cfa) == "r7+24"
    check_return(machine, columns)


def test_registers_that_the_compiler_tells_of_are_kept(machine, monkeypatch):
    # DW_CFA_def_cfa_offset 24, and rbx at the CFA - 16.
    start = machine.inner - OFFSET
    ops = [(start, b"\x0e\x18"), (start + 2, bytes([0x80 | RBX, 2]))]
    own = DebugFrame(section([Fde(start, start + 64, Cie.CALL_AS_C, ops)], 0))
    fdes = machine.frames(monkeypatch, lambda pc: (own, OFFSET))
    _, columns, cfa = row_at(fdes, machine.inner + 8)
    assert cfa_text(cfa) == "r7+24"
    assert (columns[RBX].type, columns[RBX].arg) == ("OFFSET", -16)
    check_return(machine, columns)


def test_without_tracing_there_is_no_file(machine, monkeypatch):
    assert machine.frames(monkeypatch, None, is_traced=False) is None
