# SPDX-License-Identifier: GPL-2.0-or-later
"""Each kind of ORC row as call frame information."""

from __future__ import annotations

import pytest
from reading import cfa_text, evaluate, is_marked, read_section, row_at, rows

from gdbkdump.errors import CorruptError
from gdbkdump.target import cfi
from gdbkdump.target.cfi import Cie, Fde, Pieces, rule, section
from gdbkdump.target.debugframe import _read_uleb
from gdbkdump.unwind.orc import FRAME_POINTER_ROW, PT_REGS_ROW, Base, Row, RowKind

A = 0xFFFFFFFF81000000
RBX, RBP, RSP, RIP, R12 = 3, 6, 7, 16, 12


def call(base, offset, bp_base=Base.UNDEFINED, bp_offset=0):
    return Row(RowKind.CALL, base, offset, bp_base, bp_offset, False)


def decoded(row, **options):
    """The FDE, rules and CFA that a row becomes."""
    pieces = Pieces()
    pieces.add(A, A + 16, rule(row, **options))
    (fde,) = read_section(section(pieces.fdes(), 0))
    assert (fde["initial_location"], fde["address_range"]) == (A, 16)
    return row_at([fde], A)


def offset_of(columns, column):
    assert columns[column].type == "OFFSET"
    return columns[column].arg


@pytest.mark.parametrize(
    ("base", "offset", "text"),
    [
        (Base.SP, 8, "r7+8"),
        (Base.SP, 32000, "r7+32000"),
        (Base.BP, 16, "r6+16"),
        (Base.R10, 0, "r10+0"),
        (Base.R13, 0, "r13+0"),
        (Base.DI, 0, "r5+0"),
        (Base.DX, 8, "r1+8"),
    ],
)
def test_where_the_caller_is(base, offset, text):
    fde, columns, cfa = decoded(call(base, offset))
    assert cfa_text(cfa) == text
    assert offset_of(columns, RIP) == -8
    assert not is_marked(fde)


def test_where_the_callers_place_is_in_memory():
    _, _, cfa = decoded(call(Base.SP_INDIRECT, 24))
    assert evaluate(cfa.expr, {0x100: 0x5000}, {RSP: 0x100}) == 0x5018
    _, _, cfa = decoded(call(Base.SP_INDIRECT, -24))
    assert evaluate(cfa.expr, {0x100: 0x5000}, {RSP: 0x100}) == 0x4FE8
    _, _, cfa = decoded(call(Base.BP_INDIRECT, -40))
    assert evaluate(cfa.expr, {0xD8: 0x5000}, {RBP: 0x100}) == 0x5000
    # No kernel has it, but ORC can say it.
    _, _, cfa = decoded(call(Base.SP, -4))
    assert evaluate(cfa.expr, {}, {RSP: 0x100}) == 0xFC


def test_the_callers_rbp():
    _, columns, _ = decoded(FRAME_POINTER_ROW)
    assert offset_of(columns, RBP) == -16
    _, columns, _ = decoded(call(Base.SP, 24))
    assert columns[RBP].type == "SAME_VALUE"
    _, columns, _ = decoded(call(Base.R10, 0, Base.BP, 0))
    assert columns[RBP].type == "EXPRESSION"
    assert evaluate(columns[RBP].arg, {}, {RBP: 0x100}) == 0x100
    _, columns, _ = decoded(call(Base.SP, 8, Base.PREV_SP, 8))
    assert offset_of(columns, RBP) == 8


def test_registers_that_c_keeps_are_known_until_something_is_pushed():
    for row, options, known in (
        (call(Base.SP, 8), {}, "SAME_VALUE"),
        (call(Base.SP, 16), {}, "UNDEFINED"),
        (call(Base.BP, 16), {}, "UNDEFINED"),
        (call(Base.BP, 16), {"keeps_saved": True}, "SAME_VALUE"),
    ):
        _, columns, _ = decoded(row, **options)
        assert {columns[c].type for c in (RBX, R12, 13, 14, 15)} == {known}


def test_all_of_pt_regs():
    fde, columns, cfa = decoded(PT_REGS_ROW)
    assert is_marked(fde)
    # Above it, so that no other frame has the same CFA.
    assert cfa_text(cfa) == "r7+168"
    # struct pt_regs: r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs
    # flags sp ss; the numbers are those of the System V ABI.
    order = [15, 14, 13, 12, 6, 3, 11, 10, 9, 8, 0, 2, 1, 4, 5, None, 16, 51, 49, 7, 52]
    found = {column: offset_of(columns, column) for column in columns}
    assert found == {c: 8 * i - 168 for i, c in enumerate(order) if c is not None}


def test_an_iret_frame():
    row = Row(RowKind.PARTIAL, Base.SP, 8, Base.UNDEFINED, 0, True)
    fde, columns, cfa = decoded(row)
    assert is_marked(fde)
    assert cfa_text(cfa) == "r7+48"
    assert columns.pop(RBP).type == "SAME_VALUE"
    found = {column: offset_of(columns, column) for column in columns}
    assert found == {RIP: -40, 51: -32, 49: -24, RSP: -16, 52: -8}


def test_registers_that_are_elsewhere():
    row = PT_REGS_ROW._replace(sp_base=Base.BP_INDIRECT, sp_offset=-16)
    _, _, cfa = decoded(row)
    assert evaluate(cfa.expr, {0xF0: 0x5000}, {RBP: 0x100}) == 0x5000 + 168
    row = PT_REGS_ROW._replace(sp_offset=8, bp_base=Base.PREV_SP, bp_offset=-16)
    _, columns, cfa = decoded(row)
    assert cfa_text(cfa) == "r7+176"
    assert offset_of(columns, RBP) == -168 - 16


def test_ends():
    end = Row(RowKind.END, Base.UNDEFINED, 0, Base.UNDEFINED, 0, False)
    fde, columns, _ = decoded(end)
    assert columns[RIP].type == "UNDEFINED"
    assert not is_marked(fde)
    assert rule(end._replace(kind=RowKind.UNDEFINED)) is None
    with pytest.raises(CorruptError, match="starts from undefined"):
        rule(call(Base.UNDEFINED, 0))


def test_rows_of_one_function_are_one_fde_and_leave_nothing_of_each_other():
    frame = call(Base.BP, 16, Base.PREV_SP, -16)
    pieces = Pieces()
    for start, row in ((0, call(Base.SP, 8)), (1, frame), (0x300, call(Base.SP, 8))):
        pieces.add(A + start, A + {0: 1, 1: 0x300, 0x300: 0x20000}[start], rule(row))
    pieces.add(A + 0x20000, A + 0x20001, rule(frame))
    (fde,) = read_section(section(pieces.fdes(), 0))
    found = rows(fde)
    assert [pc - A for pc, _, _ in found] == [0, 1, 0x300, 0x20000]
    assert [columns[RBP].type for _, columns, _ in found] == [
        "SAME_VALUE", "OFFSET", "SAME_VALUE", "OFFSET",
    ]  # fmt: skip
    assert [columns[RBX].type for _, columns, _ in found] == [
        "SAME_VALUE", "UNDEFINED", "SAME_VALUE", "UNDEFINED",
    ]  # fmt: skip


def test_fdes_end_at_gaps_at_another_kind_and_before_they_are_long():
    pieces = Pieces()
    plain, other = rule(call(Base.SP, 8)), rule(call(Base.SP, 16))
    pieces.add(A + 0x20, A + 0x30, rule(PT_REGS_ROW))
    pieces.add(A, A + 0x10, plain)
    pieces.add(A + 0x10, A + 0x20, plain)
    pieces.add(A + 0x40, A + 0x50, plain)
    assert [(f.start - A, f.end - A) for f in pieces.fdes()] == [
        (0, 0x20), (0x20, 0x30), (0x40, 0x50),
    ]  # fmt: skip
    pieces = Pieces()
    for i in range(200):
        pieces.add(A + i, A + i + 1, (plain, other)[i % 2])
    assert max(f.end - f.start for f in pieces.fdes()) == 64


def test_addresses_are_moved_back():
    (fde,) = read_section(section([Fde(A, A + 4, Cie.END, [])], 0x1000))
    assert fde["initial_location"] == A - 0x1000


# Handlers


def stack(cs, site):
    """A handler was called by code before ``site``; pt_regs is at 0x1000."""
    return {0x1000 - 8: site, 0x1000 + 136: cs}


@pytest.mark.parametrize("sites", [[A + 0x50], [A + 0x50, A + 0x90, A + 0xA0]])
def test_a_handler_returns_to_the_byte_without_a_caller_from_user_mode(sites):
    fde = Fde(A, A + 4, Cie.CALL_AS_C, [(A, cfi.handler_ops(sites))])
    _, columns, cfa = row_at(read_section(section([fde], 0)), A)
    assert cfa_text(cfa) == "r7+8"
    assert columns[RIP].type == "VAL_EXPRESSION"
    for site in sites:
        for moved in (0, 0x1F200000):
            for cs, less in ((0x33, 1), (0x23, 1), (0x10, 0)):
                memory = stack(cs, site + moved)
                found = evaluate(columns[RIP].arg, memory, {}, 0x1000)
                assert found == site + moved - less
    # Called from elsewhere, there may be anything.
    memory = stack(0x33, A + 0x51)
    assert evaluate(columns[RIP].arg, memory, {}, 0x1000) == A + 0x51


def test_a_handler_that_changed_to_the_irq_stack():
    row = call(Base.SP_INDIRECT, 24, Base.PREV_SP, -16)
    ops = cfi.switched_handler_ops(row, [A + 0x50])
    fde = Fde(A, A + 4, Cie.CALL, [(A, ops)])
    _, columns, cfa = row_at(read_section(section([fde], 0)), A)
    # Called with pt_regs at 0x1000, it pushed two registers; the IRQ stack is higher.
    memory = {**stack(0x33, A + 0x50), 0x8FF8: 0x1000 - 24}
    assert cfa_text(cfa) == "r7+8"
    assert evaluate(columns[RSP].arg, memory, {}, 0x9000) == 0x1000
    assert evaluate(columns[RIP].arg, memory, {}, 0x9000) == A + 0x4F
    assert evaluate(columns[RBP].arg, memory, {}, 0x9000) == 0x1000 - 16
    memory[0x1000 + 136] = 0x10
    assert evaluate(columns[RIP].arg, memory, {}, 0x9000) == A + 0x50


def test_a_frame_that_was_found_some_other_way():
    fde = Fde(A, A + 1, Cie.CALL, [(A, cfi.found_ops(0x1B0, 0xFFFFC90000012340))])
    _, columns, cfa = row_at(read_section(section([fde], 0)), A)
    assert cfa_text(cfa) == "r7+432"
    assert evaluate(columns[RBP].arg, {}, {}, 0) == 0xFFFFC90000012340
    fde = Fde(A, A + 1, Cie.CALL, [(A, cfi.found_ops(8, None))])
    _, columns, _ = row_at(read_section(section([fde], 0)), A)
    assert columns[RBP].type == "SAME_VALUE"


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16383, 16384, 1 << 40])
def test_numbers(value):
    assert _read_uleb(cfi.uleb(value)) == value
    for signed in (value, -value):
        data = cfi.sleb(signed)
        raw = _read_uleb(data)
        assert raw - (1 << 7 * len(data) if data[-1] & 0x40 else 0) == signed


@pytest.mark.parametrize("number", [1, 2, 3, 511, 1300])
def test_return_addresses_that_were_replaced(number):
    # CFAs are 16 apart, the return address of each is known by its number.
    found = [(0xFFFFC90000000010 + 16 * i, A + i) for i in range(number)]
    ops = cfi.replaced_ops(found)
    (fde,) = read_section(section([Fde(A, A + 1, Cie.CALL_AS_C, [(A, ops)])], 0))
    _, columns, _ = row_at([fde], A)
    rule_ = columns[RIP]
    assert rule_.type == "VAL_EXPRESSION"
    for i in {0, 1, number // 2, number - 1} & set(range(number)):
        assert evaluate(rule_.arg, {}, {}, found[i][0]) == A + i
    # Any other one, before, between and after them, was not.
    for cfa in (0xFFFF888000000000, found[0][0] + 8, found[-1][0] + 16):
        assert evaluate(rule_.arg, {cfa - 8: 0x1234}, {}, cfa) == 0x1234
