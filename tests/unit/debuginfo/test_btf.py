# SPDX-License-Identifier: GPL-2.0-or-later
"""BTF made by hand, right and wrong."""

from __future__ import annotations

import random
import struct

import pytest
from support.mkdump import BtfWriter

from gdbkdump.debuginfo.btf import Btf, scan, section_size
from gdbkdump.debuginfo.layout import (
    ArrayType,
    EnumType,
    IntType,
    PointerType,
    StructType,
    TypedefType,
    declare,
    type_name,
)
from gdbkdump.errors import CorruptError, KdumpError, TypeNotFoundError


def writer():
    made = BtfWriter()
    number = made.integer("int", 4, 1)
    word = made.integer("long unsigned int", 8)
    byte = made.integer("char", 1, 1)
    node = made.struct("node", 16, [("next", 5, 0), ("value", word, 64)])
    assert made.pointer(node) == 5
    comm = made.array(byte, 16)
    inner = made.struct("", 8, [("low", number, 0), ("high", number, 32)], union=False)
    both = made.struct("", 8, [("whole", word, 0), ("", inner, 0)], union=True)
    made.struct("task", 64, [("comm", comm, 0), ("", both, 128), ("nodes", node, 192)])
    made.struct(
        "flags",
        4,
        [("a", number, 0), ("b", number, 3), ("c", number, 16)],
        bits={"a": 3, "b": 1},
    )
    made.enum("state", IDLE=0, BUSY=1, BAD=0xFFFFFFFF)
    made.typedef("node_t", node)
    return made


@pytest.fixture
def btf():
    return Btf(writer().build())


def test_structs_with_their_members(btf):
    node = btf.find("struct", "node")
    assert isinstance(node, StructType)
    assert (node.size, [m.name for m in node.members]) == (16, ["next", "value"])
    assert (node.offset("next"), node.offset("value")) == (0, 8)
    link = node.member("next").type
    assert isinstance(link, PointerType)
    assert link.target is node
    assert isinstance(btf.find("", "node_t"), TypedefType)
    assert btf.find("", "node_t").strip() is node


def test_anonymous_members_are_the_structs_own(btf):
    task = btf.find("struct", "task")
    assert list(task.flat()) == ["comm", "whole", "low", "high", "nodes"]
    assert task.offset("low") == task.offset("whole") == 16
    assert task.offset("high") == 20
    assert task.offset("nodes.value") == 32
    assert task.offset("comm[3]") == 3
    assert not task.has("nodes.nothing")
    assert not task.has("comm.x")
    comm = task.member("comm").type
    assert isinstance(comm, ArrayType)
    assert (comm.count, comm.size) == (16, 16)


def test_bit_fields(btf):
    members = btf.find("struct", "flags").flat()
    assert [(m.bit_offset, m.bit_size) for m in members.values()] == [
        (0, 3),
        (3, 1),
        (16, 0),
    ]


def test_enums_and_integers(btf):
    state = btf.find("enum", "state")
    assert isinstance(state, EnumType)
    assert state.values == {"IDLE": 0, "BUSY": 1, "BAD": 0xFFFFFFFF}
    assert (state.name_of(1), state.name_of(7)) == ("BUSY", None)
    number = btf.find("", "int")
    assert isinstance(number, IntType)
    assert (number.size, number.is_signed) == (4, True)
    assert not btf.find("", "long unsigned int").is_signed


def test_what_is_not_there(btf):
    for keyword, name in (
        ("struct", "nod"),
        ("union", "node"),
        ("", ""),
        ("enum", "x"),
    ):
        with pytest.raises(TypeNotFoundError):
            btf.find(keyword, name)
    assert sorted(btf.names("struct")) == ["flags", "node", "task"]
    with pytest.raises(CorruptError):
        btf.type(999)


def test_declarations(btf):
    task = btf.find("struct", "task")
    assert declare(task.member("comm").type, "comm") == "char comm[16]"
    assert type_name(btf.find("struct", "node").member("next").type) == "struct node *"


def test_split_btf_goes_on_where_its_base_ends(btf):
    module = BtfWriter(btf.end_id, btf.end_string)
    node = next(
        i for i in range(1, btf.end_id) if btf.type(i) is btf.find("struct", "node")
    )
    module.struct("device", 24, [("list", node, 0), ("id", 1, 128)])
    split = Btf(module.build(), btf)
    device = split.find("struct", "device")
    assert device.offset("list.value") == 8
    assert device.member("list").type is btf.find("struct", "node")
    # What the module has not is looked up in the base.
    assert split.find("struct", "task") is btf.find("struct", "task")
    assert list(split.names("struct")) == ["device"]


def test_typedefs_of_themselves_end():
    made = BtfWriter()
    made.typedef("loop", 2)
    made.typedef("again", 1)
    with pytest.raises(CorruptError, match="typedef of itself"):
        Btf(made.build()).find("", "loop").strip()


def test_structs_that_hold_themselves_end():
    made = BtfWriter()
    made.struct("s", 8, [("", 1, 0)])
    with pytest.raises(CorruptError, match="holds itself"):
        Btf(made.build()).find("struct", "s").flat()


@pytest.mark.parametrize("size", [0, 3, 23, 24, 40, 100])
def test_cut_sections_are_refused(size):
    with pytest.raises(CorruptError):
        Btf(writer().build()[:size])


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 0x1234), (12, 0x7FFFFFFF), (12, 5), (20, 0x7FFFFFFF), (8, 0xFFFFFF00)],
)
def test_headers_that_lie_are_refused(at, value):
    data = bytearray(writer().build())
    struct.pack_into("<I", data, at, value)
    with pytest.raises(CorruptError):
        Btf(bytes(data))


def test_an_unknown_kind_is_refused():
    made = BtfWriter()
    made.add(25, "x", 0, [])
    with pytest.raises(CorruptError, match="unknown kind 25"):
        list(Btf(made.build()).names("struct"))


def test_names_and_ids_out_of_range_are_refused():
    made = BtfWriter()
    made.struct("s", 8, [("x", 77, 0)])
    btf = Btf(made.build())
    with pytest.raises(CorruptError, match="no type 77"):
        _ = btf.find("struct", "s").member("x").type
    with pytest.raises(CorruptError, match="no string"):
        btf.name_at(1 << 20)


def test_random_damage_never_surprises():
    whole = writer().build()
    chance = random.Random(11)
    outcomes = set()
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 5)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            btf = Btf(bytes(data))
            for name in ("node", "task", "flags"):
                found = btf.find("struct", name)
                assert isinstance(found, StructType)
                for member in found.flat().values():
                    declare(member.type, member.name)
            outcomes.add("read")
        except KdumpError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_it_is_found_in_an_image():
    made = writer()
    for i in range(3000):
        made.struct(f"filler_{i}", 8, [("x", 1, 0), ("y", 1, 32)])
    section = made.build()
    assert section_size(section[:24]) == len(section)
    # A header alone is no section.
    image = bytes(1000) + section[:24] + bytes(5000) + section + bytes(100)
    assert scan(image) == (6024, len(section))
    assert scan(bytes(4096)) is None
