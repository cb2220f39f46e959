# SPDX-License-Identifier: GPL-2.0-or-later
"""GdbDebugInfo against what the compiler says of tests/gdb/fixture.c."""

from __future__ import annotations

import gdb
import pytest

from gdbkdump.debugger.debuginfo import GdbDebugInfo
from gdbkdump.debuginfo.layout import EnumType, FunctionType, IntType, PointerType
from gdbkdump.debuginfo.layout import declare as declaration
from gdbkdump.errors import TypeNotFoundError


def _truth() -> dict[str, int]:
    found = {}
    table = gdb.parse_and_eval("truth")
    for i in range(64):
        if not table[i]["name"]:
            return found
        found[table[i]["name"].string()] = int(table[i]["value"])
    raise AssertionError("truth[] has no end")


def test_layout_is_the_compilers() -> None:
    sample = GdbDebugInfo().find("struct", "sample")
    truth = _truth()
    assert sample.size == truth.pop("sizeof")
    assert {path: sample.offset(path) for path in truth} == truth


def test_bit_fields() -> None:
    sample = GdbDebugInfo().find("struct", "sample")
    base = sample.offset("pointer") + 8
    bits = {n: (sample.member(n).bit_offset - base * 8, sample.member(n).bit_size)
            for n in ("flag", "mode", "level", "delta")}  # fmt: skip
    assert bits == {"flag": (0, 1), "mode": (1, 3), "level": (8, 7), "delta": (15, 5)}
    assert sample.member("delta").type.strip().is_signed
    assert not sample.member("level").type.strip().is_signed


@pytest.mark.parametrize(
    ("member", "text"),
    [
        ("name", "char name[16]"),
        ("pointer", "unsigned long *pointer"),
        ("words", "union word words[3]"),
        ("usage", "atomic_t usage"),
        ("callback", "int (*callback)(struct sample *, int)"),
        ("tail", "unsigned char tail[]"),
    ],
)
def test_declarations(member: str, text: str) -> None:
    sample = GdbDebugInfo().find("struct", "sample")
    shown = declaration(sample.member(member).type, member)
    assert shown == text


def test_enums() -> None:
    types = GdbDebugInfo()
    colour, sign = types.find("enum", "colour"), types.find("enum", "sign")
    assert isinstance(colour, EnumType)
    assert isinstance(sign, EnumType)
    assert colour.values == {"RED": 1, "GREEN": 5, "BLUE": 6}
    assert (colour.is_signed, sign.is_signed) == (False, True)


def test_typedefs_functions_and_integers() -> None:
    types = GdbDebugInfo()
    assert types.find("", "atomic_t").strip().size == 4
    function = types.find("function", "main")
    assert isinstance(function, FunctionType)
    integer = function.result
    assert isinstance(integer, IntType)
    assert (integer.size, integer.is_signed) == (4, True)
    pointer = types.find("struct", "list_head").member("next").type
    assert isinstance(pointer, PointerType)
    assert pointer.target.size == 16


def test_missing_type() -> None:
    with pytest.raises(TypeNotFoundError, match="struct nothing"):
        GdbDebugInfo().find("struct", "nothing")
    with pytest.raises(TypeNotFoundError, match="no_function"):
        GdbDebugInfo().find("function", "no_function")
