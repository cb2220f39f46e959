# SPDX-License-Identifier: GPL-2.0-or-later
"""A compiler's call frame information, in part and damaged."""

from __future__ import annotations

import struct

import pytest
from reading import cfa_text, read_section, row_at

from gdbkdump.errors import CorruptError
from gdbkdump.target.cfi import Cie, Fde, section
from gdbkdump.target.debugframe import DebugFrame, copy_ops

A = 0xFFFFFFFF81000000
RBX = 3

PUSHED = [
    (A + 1, b"\x0e\x10"), (A + 1, b"\x86\x02"),  # def_cfa_offset 16, rbp at CFA-16
    (A + 4, b"\x0d\x06"),  # def_cfa_register rbp
    (A + 0x80, b"\x83\x03"),  # rbx at CFA-24
    (A + 0x400, b"\x0c\x07\x08"),
]  # fmt: skip


def compiled(*fdes):
    return DebugFrame(section(fdes or [Fde(A, A + 0x1000, Cie.CALL_AS_C, PUSHED)], 0))


def test_fdes_are_found_by_address():
    frame = compiled(
        Fde(A + 0x1000, A + 0x1100, Cie.CALL_AS_C, []), Fde(A, A + 0x10, Cie.CALL, [])
    )
    assert frame.ranges == [(A, A + 0x10), (A + 0x1000, A + 0x1100)]
    assert frame.find(A - 1) is None
    assert frame.find(A + 0x10) is None
    assert frame.find(A + 0x10FF).start == A + 0x1000
    assert frame.find(A + 0x10FF).is_usual
    # This one has other initial rules than the kernel's.
    assert not frame.find(A).is_usual


def test_a_part_of_an_fde_has_all_rules_from_before_it():
    own = compiled().find(A)
    assert copy_ops(own, A, A + 0x1000) == PUSHED
    assert copy_ops(own, A + 0x80, A + 0x90) == [(A + 0x80, op) for _, op in PUSHED[:4]]
    part = Fde(A + 0x90, A + 0x800, Cie.CALL_AS_C, copy_ops(own, A + 0x90, A + 0x800))
    fdes = read_section(section([part], 0))
    _, columns, cfa = row_at(fdes, A + 0x90)
    assert cfa_text(cfa) == "r6+16"
    assert (columns[RBX].type, columns[RBX].arg) == ("OFFSET", -24)
    assert cfa_text(row_at(fdes, A + 0x400)[2]) == "r7+8"


def test_instructions_of_every_length():
    ops = [
        b"\x05\x90\x01\x02", b"\x0f\x02\x77\x08", b"\x10\x06\x02\x76\x00", b"\x0a",
        b"\x16\x10\x02\x77\x08", b"\x0b", b"\xc6", b"\x2e\x10", b"\x11\x06\x7e",
    ]  # fmt: skip
    made = [(A + 8 * i, op) for i, op in enumerate(ops)]
    own = compiled(Fde(A, A + 0x100, Cie.CALL_AS_C, made)).find(A)
    assert copy_ops(own, A, A + 0x100) == made


@pytest.mark.parametrize(
    "ops", [b"\x01" + bytes(8), b"\x3f", b"\x0c\x07", b"\x0c\x80", b"\x16\x10\x09\x77"]
)
def test_instructions_that_are_none(ops):
    own = compiled(Fde(A, A + 0x100, Cie.CALL_AS_C, [(A, ops)])).find(A)
    own = own._replace(instructions=ops)
    with pytest.raises(CorruptError, match="the rules of"):
        copy_ops(own, A, A + 0x100)


@pytest.mark.parametrize("length", [8, 0x7FFFFFFF])
def test_a_damaged_section(length):
    with pytest.raises(CorruptError, match="an entry of"):
        DebugFrame(struct.pack("<IIQ", length, 0, 0))


def test_a_section_that_is_cut():
    whole = section([Fde(A, A + 0x1000, Cie.CALL_AS_C, PUSHED)], 0)
    with pytest.raises(CorruptError, match="an entry of"):
        DebugFrame(whole[:-8])
