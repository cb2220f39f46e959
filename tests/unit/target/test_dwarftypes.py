# SPDX-License-Identifier: GPL-2.0-or-later
"""BTF as DWARF: right BTF as pyelftools reads it back, wrong BTF refused."""

from __future__ import annotations

import io
import random
import struct

import pytest
from elftools.elf.elffile import ELFFile
from support.mkdump import BtfWriter

from gdbkdump.debuginfo.btf import Btf
from gdbkdump.errors import CorruptError, KdumpError
from gdbkdump.target.dwarftypes import TypeUnit
from gdbkdump.target.elffile import elf_file

(INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC,
 PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64) = range(1, 20)  # fmt: skip


def unit_of(made):
    btf = Btf(made.build())
    return TypeUnit(btf.words, btf.positions(), btf.strings)


def dies_of(unit):
    data = elf_file(unit.sections(b"vmlinux"))
    dwarf = ELFFile(io.BytesIO(data)).get_dwarf_info()
    (cu,) = dwarf.iter_CUs()
    return [die for die in cu.iter_DIEs() if die.tag]


def name(die):
    found = die.attributes.get("DW_AT_name")
    return found.value.decode() if found else ""


def find(dies, text):
    (found,) = [die for die in dies if name(die) == text]
    return found


def value(die, attribute):
    found = die.attributes.get(f"DW_AT_{attribute}")
    return None if found is None else found.value


def target(die):
    return die.get_DIE_from_attribute("DW_AT_type")


def tag(die):
    return die.tag.removeprefix("DW_TAG_")


@pytest.fixture
def base():
    """A writer with int, which is type 1."""
    made = BtfWriter()
    assert made.integer("int", 4, 1) == 1
    return made


def test_numbers():
    made = BtfWriter()
    made.integer("long unsigned int", 8)
    made.integer("char", 1, 1)
    made.integer("unsigned char", 1)
    made.integer("_Bool", 1, 4)
    made.add(FLOAT, "double", 8, [])
    found = [
        (name(die), value(die, "byte_size"), value(die, "encoding"))
        for die in dies_of(unit_of(made))
        if tag(die) == "base_type"
    ]
    assert found == [
        ("long unsigned int", 8, 7), ("char", 1, 6), ("unsigned char", 1, 8),
        ("_Bool", 1, 2), ("double", 8, 4),
    ]  # fmt: skip


def test_structs_unions_and_bit_fields(base):
    inner = base.struct("", 8, [("a", 1, 0), ("b", 1, 32)], union=False)
    base.struct(
        "s", 16, [("x", 1, 0), ("y", 1, 5), ("", inner, 64)], bits={"x": 5, "y": 27}
    )
    base.struct("u", 8, [("all", inner, 0), ("low", 1, 0)], union=True)
    dies = dies_of(unit_of(base))
    members = [
        (name(m), tag(target(m)), value(m, "data_bit_offset"), value(m, "bit_size"))
        for m in find(dies, "s").iter_children()
    ]
    assert members == [
        ("x", "base_type", 0, 5), ("y", "base_type", 5, 27),
        ("", "structure_type", 64, None),
    ]  # fmt: skip
    assert value(find(dies, "s"), "byte_size") == 16
    union = find(dies, "u")
    assert tag(union) == "union_type"
    assert [name(member) for member in union.iter_children()] == ["all", "low"]


def test_pointers_qualifiers_and_tags_of_void(base):
    made = base
    tagged = made.add(TYPE_TAG, "user", 0, [])
    const = made.add(CONST, "", 0, [])
    restrict = made.add(RESTRICT, "", made.pointer(1), [])
    types = [made.pointer(0), made.pointer(tagged), made.pointer(const), restrict]
    types += [made.add(VOLATILE, "", made.add(TYPE_TAG, "rcu", 1, []), [])]
    made.struct("s", 40, [(f"m{i}", each, 64 * i) for i, each in enumerate(types)])
    made.typedef("nothing", 0)
    dies = dies_of(unit_of(made))

    def spelled(die):
        words = []
        while True:
            words.append(tag(die))
            if "DW_AT_type" not in die.attributes:
                return " ".join(words)
            die = target(die)

    members = list(find(dies, "s").iter_children())
    assert [spelled(target(member)) for member in members] == [
        "pointer_type", "pointer_type", "pointer_type const_type",
        "restrict_type pointer_type base_type", "volatile_type base_type",
    ]  # fmt: skip
    assert spelled(find(dies, "nothing")) == "typedef"


def test_arrays_enums_and_forward_declarations(base):
    made = base
    made.typedef("matrix", made.array(made.array(1, 3), 2))
    made.typedef("open", made.array(1, 0))
    made.enum("signed", MINUS=0xFFFFFFFF, BIG=0x7FFFFFFF)
    made.add(
        ENUM64, "wide", 8, [made.string("TOP"), 5, 0x80000000], count=1, flag=False
    )
    made.add(ENUM, "told", 4, [made.string("LOW"), 0x80000000], count=1, flag=True)
    made.add(FWD, "later", 0, [], flag=False)
    made.add(FWD, "either", 0, [], flag=True)
    dies = dies_of(unit_of(made))
    outer = target(find(dies, "matrix"))
    counts = [
        value(next(die.iter_children()), "count") for die in (outer, target(outer))
    ]
    assert counts == [2, 3]
    assert value(next(target(find(dies, "open")).iter_children()), "count") is None
    values = {
        name(each): value(each, "const_value")
        for die in dies if tag(die) == "enumeration_type"
        for each in die.iter_children()
    }  # fmt: skip
    # One enum tells its sign, so those that do not have none.
    assert values == {
        "MINUS": 0xFFFFFFFF, "BIG": 0x7FFFFFFF, "TOP": 5 | 1 << 63, "LOW": -(1 << 31)
    }  # fmt: skip
    assert [tag(find(dies, text)) for text in ("later", "either")] == [
        "structure_type",
        "union_type",
    ]
    assert value(find(dies, "later"), "declaration")


def test_enums_that_do_not_tell_their_sign_are_signed():
    made = BtfWriter()
    made.enum("e", MINUS=0xFFFFFFFF, ONE=1)
    # Of 8 bytes with values of 4: the upper halves are lost.
    made.add(ENUM, "cut", 8, [made.string("SOME"), 1], count=1)
    dies = dies_of(unit_of(made))
    found = {
        name(each): value(each, "const_value")
        for each in find(dies, "e").iter_children()
    }
    assert found == {"MINUS": -1, "ONE": 1}
    assert list(find(dies, "cut").iter_children()) == []


def test_functions_and_variables(base):
    made = base
    pointer = made.pointer(1)
    body = [made.string("where"), pointer, made.string("many"), 1, 0, 0]
    some = made.add(PROTO, "", 1, body, count=3)
    none = made.add(PROTO, "", 0, [], count=0)
    made.add(FUNC, "f", some, [])
    unit = unit_of(made)
    start = 0xFFFFFFFF81000000
    unit.add_function(unit.string(b"f"), some, start, 0x30, is_global=True)
    unit.add_function(unit.string(b"g"), none, start + 0x30, 0x200, is_global=False)
    array = unit.array_of(unit.type(1), None)
    unit.add_variable(unit.string(b"v"), array, start + 0x1000, is_global=True)
    dies = dies_of(unit)
    f, g, v = (find(dies, text) for text in "fgv")
    assert [tag(child) for child in f.iter_children()] == [
        "formal_parameter",
        "formal_parameter",
        "unspecified_parameters",
    ]
    # Without names: gdb would say of them that they are optimized out.
    assert [name(child) for child in f.iter_children()] == ["", "", ""]
    assert tag(target(f)) == "base_type"
    assert value(f, "external")
    ranges = f.dwarfinfo.range_lists().get_range_list_at_offset(
        value(f, "ranges"), f.cu
    )
    assert [(r.begin_offset, r.end_offset) for r in ranges] == [
        (start, start + 1),
        (start + 1, start + 0x30),
    ]
    assert (value(g, "low_pc"), value(g, "high_pc")) == (start + 0x30, 0x200)
    assert (target_of(g), value(g, "external")) == (None, None)
    assert bytes(value(v, "location")) == b"\3" + struct.pack("<Q", start + 0x1000)
    assert tag(target(v)) == "array_type"
    # Else gdb would read the unit whole for each backtrace.
    assert f.dwarfinfo.get_aranges().entries == []


def target_of(die):
    return target(die) if "DW_AT_type" in die.attributes else None


def corrupt(what, *writes):
    made = BtfWriter()
    made.integer("int", 4, 1)
    for write in writes:
        write(made)
    with pytest.raises(CorruptError, match=what):
        unit_of(made)


@pytest.mark.parametrize(
    ("what", "writes"),
    [
        ("themselves", [lambda m: m.typedef("t", 2)]),
        ("themselves", [lambda m: m.array(2, 3)]),
        ("themselves", [lambda m: m.pointer(3), lambda m: m.typedef("t", 2)]),
        ("themselves", [lambda m: m.add(TYPE_TAG, "x", 2, [])]),
        ("themselves", [lambda m: m.add(PROTO, "", 2, [])]),
        ("themselves", [lambda m: m.add(PROTO, "", 1, [0, 2], count=1)]),
        (
            "themselves",
            [lambda m, i=i: m.typedef(f"t{i}", i + 3) for i in range(300)]
            + [lambda m: m.integer("last", 4)],
        ),
        ("hold themselves", [lambda m: m.struct("s", 8, [("s", 2, 0)])]),
        (
            "hold themselves",
            [lambda m: m.struct("s", 8, [("a", 3, 0)]), lambda m: m.array(2, 0)],
        ),
        (
            "hold themselves",
            [
                lambda m: m.struct("s", 8, [("u", 3, 0)]),
                lambda m: m.struct("u", 8, [("s", 2, 0)], union=True),
            ],
        ),
        ("not within", [lambda m: m.struct("s", 4, [("a", 1, 8)])]),
        ("not within", [lambda m: m.struct("s", 4, [("a", 1, 3)])]),
        ("not within", [lambda m: m.struct("s", 4, [("a", 1, 0)], bits={"a": 33})]),
        ("not within", [lambda m: m.struct("s", 4, [("a", 1, 24)], bits={"a": 9})]),
        ("no type", [lambda m: m.struct("s", 4, [("a", 0, 0)])]),
        ("no type", [lambda m: m.struct("s", 4, [("a", 77, 0)])]),
        ("no type", [lambda m: m.pointer(77)]),
        ("no type", [lambda m: m.typedef("t", 0xFFFFFFFF)]),
        ("no type", [lambda m: m.pointer(3), lambda m: m.add(FUNC, "f", 1, [])]),
        ("of void", [lambda m: m.array(0, 4)]),
        ("type void", [lambda m: m.add(PROTO, "", 1, [0, 0, 0, 1], count=2)]),
        ("a number of 0", [lambda m: m.integer("x", 0)]),
        ("a number of 99", [lambda m: m.enum("e"), lambda m: m.integer("x", 99)]),
        ("no compiler wrote", [lambda m: m.typedef("\x1b[2Jx", 1)]),
        ("no compiler wrote", [lambda m: m.typedef("umläut", 1)]),
    ],
)  # fmt: skip
def test_what_would_lead_gdb_astray_is_refused(what, writes):
    corrupt(what, *writes)


@pytest.mark.parametrize("word", [0, 7, 13])
def test_names_beyond_the_strings_are_refused(base, word):
    # Of a type, a member and an enumerator.
    base.struct("s", 4, [("m", 1, 0)])
    base.enum("e", A=1)
    btf = Btf(base.build())
    btf.words[word] = 4000
    with pytest.raises(CorruptError, match="name that is not in the strings"):
        TypeUnit(btf.words, btf.positions(), btf.strings)


@pytest.mark.parametrize("strings", [b"", b"x\0", b"\0x"])
def test_strings_without_an_end_are_refused(base, strings):
    btf = Btf(base.build())
    with pytest.raises(CorruptError, match="strings have no end"):
        TypeUnit(btf.words, btf.positions(), strings)


def test_random_damage_is_refused_or_read(base):
    made = base
    node = made.struct("node", 16, [("next", 4, 0), ("value", 1, 64)])
    made.enum("e", A=1, B=2)
    made.pointer(node)
    made.typedef("t", made.array(node, 4))
    made.add(PROTO, "", 1, [made.string("p"), 4], count=1)
    whole = made.build()
    chance = random.Random(4)
    outcomes = set()
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            btf = Btf(bytes(data))
            for die in dies_of(TypeUnit(btf.words, btf.positions(), btf.strings)):
                if "DW_AT_type" in die.attributes:
                    assert target(die).tag
            outcomes.add("read")
        except KdumpError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
