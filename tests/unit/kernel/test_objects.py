# SPDX-License-Identifier: GPL-2.0-or-later
"""Types as people type them, layouts and values as text and data."""

from __future__ import annotations

import pytest
from support.fakes import (
    BOOL,
    CHAR,
    S32,
    U8,
    U32,
    U64,
    DictMemory,
    array,
    enum,
    fake_kernel,
    member,
    pointer,
    structure,
    typedef,
)

from gdbkdump.debuginfo.layout import IntType
from gdbkdump.errors import CommandError, FaultError
from gdbkdump.kernel.clayout import describe, layout_data
from gdbkdump.kernel.cvalue import CString, Fault, Printer, decode
from gdbkdump.kernel.object import KObject
from gdbkdump.kernel.typespec import (
    Place,
    follow,
    locate,
    parse_offset,
    parse_spec,
)

STATE = enum("state", IDLE=0, BUSY=1)
NODE = structure("node", 16, member("next", 0, pointer()), member("id", 8, U32))
INNER = structure("", 8, member("low", 0, U32), member("high", 4, U32))
EITHER = structure(
    "", 8, member("whole", 0, U64), member("", 0, INNER), keyword="union"
)
OBJECT = structure(
    "object",
    120,
    member("name", 0, array(CHAR, 8)),
    member("state", 8, STATE),
    member("flag", 12, BOOL),
    member("ready", 13, U8, bits=(0, 1)),
    member("kind", 13, U8, bits=(1, 3)),
    member("", 16, EITHER),
    member("nodes", 24, array(NODE, 3)),
    member("text", 72, pointer(CHAR)),
    member("node", 80, pointer(NODE)),
    member("mac", 88, array(U8, 6)),
    member("delta", 96, S32),
    member("bits", 104, array(S32, 2)),
    member("tail", 120, array(U64, 0)),
)
TYPES = [OBJECT, NODE, STATE, typedef("object_t", OBJECT)]
AT, STRING, OTHER = 0x10000, 0x20000, 0x30000


@pytest.fixture
def memory():
    memory = DictMemory()
    memory.put(AT, b"wl-main\0")
    memory.put(AT + 8, b"\x01\0\0\0\x01\x0b\0\0")
    memory.words(AT + 16, 0x0000000500000007)
    for i in range(3):
        memory.words(AT + 24 + 16 * i, 0, 7)
    memory.words(AT + 72, STRING, OTHER)
    memory.put(AT + 88, b"\x52\x54\0\x12\x34\x56")
    memory.put(AT + 96, b"\xff\xff\xff\xff")
    memory.put(STRING, b'say "hi"\0')
    memory.words(OTHER, 0x40000, 42)
    return memory


@pytest.fixture
def kernel(memory):
    return fake_kernel(memory, TYPES, {"an_object": AT}, image=(AT, AT + 4096))


def value(kernel, path):
    return decode(kernel, follow(kernel, OBJECT, AT, path))


def test_values(kernel):
    assert value(kernel, "name") == CString(b"wl-main")
    assert value(kernel, "state").name == "BUSY"
    assert value(kernel, "flag") is True
    assert (value(kernel, "ready"), value(kernel, "kind")) == (1, 5)
    assert (value(kernel, "low"), value(kernel, "high")) == (7, 5)
    assert value(kernel, "nodes[2].id") == 7
    assert value(kernel, "node.id") == 42
    assert value(kernel, "mac") == [0x52, 0x54, 0, 0x12, 0x34, 0x56]
    assert value(kernel, "delta") == -1
    assert value(kernel, "tail") == AT + 120


def test_an_object_prints_as_in_gdb(kernel):
    lines = Printer(kernel).lines(decode(kernel, Place(OBJECT, AT)))
    assert (
        "\n".join(lines)
        == f"""{{
  name = "wl-main",
  state = BUSY,
  flag = true,
  ready = 1,
  kind = 5,
  {{
    whole = {0x500000007},
    {{
      low = 7,
      high = 5
    }}
  }},
  nodes = {{
    [0 ... 2] = {{
      next = 0x0,
      id = 7
    }}
  }},
  text = 0x20000 "say \\"hi\\"",
  node = 0x30000,
  mac = {{82, 84, 0, 18, 52, 86}},
  delta = -1,
  bits = {{0, 0}},
  tail = 0x10078 <an_object+0x78>
}}"""
    )


def test_hex(kernel):
    printer = Printer(kernel, is_hex=True)
    assert printer.lines(value(kernel, "delta")) == ["0xffffffff"]
    assert printer.lines(value(kernel, "whole")) == ["0x500000007"]
    assert printer.lines(value(kernel, "mac")) == [
        "{0x52, 0x54, 0x0, 0x12, 0x34, 0x56}"
    ]


def test_repeats_and_long_arrays(memory):
    many = array(U8, 500)
    memory.put(0x50000, bytes(500))
    kernel = fake_kernel(memory)
    assert Printer(kernel).lines(decode(kernel, Place(many, 0x50000))) == [
        "{0 <repeats 200 times>, ... 300 more}"
    ]
    memory.put(0x50000, bytes(range(128, 228)))
    lines = Printer(kernel).lines(decode(kernel, Place(array(U8, 100), 0x50000)))
    assert lines[0] == "{"
    assert lines[-1] == "}"
    assert all(len(line) <= 92 for line in lines)
    joined = " ".join(line.strip() for line in lines[1:-1])
    assert joined == ", ".join(str(i) for i in range(128, 228))


def test_what_cannot_be_read_says_why_where_it_is(memory):
    # The object lies across the end of what there is.
    kernel = fake_kernel(memory, TYPES)
    start = STRING + 4096 - 24
    memory.put(start, b"edge\0\0\0\0")
    decoded = decode(kernel, Place(OBJECT, start))
    assert decoded["name"] == CString(b"edge")
    assert isinstance(decoded["mac"], Fault)
    lines = Printer(kernel).lines(decoded)
    assert "  delta = <unreadable: not mapped by the kernel's page tables>," in lines
    with pytest.raises(FaultError, match="0x7000000"):
        decode(kernel, Place(OBJECT, 0x7000000))


def test_wild_values_do_not_surprise(memory):
    kernel = fake_kernel(memory, TYPES)
    memory.put(AT, b"\xff" * 120)
    lines = Printer(kernel).lines(decode(kernel, Place(OBJECT, AT)))
    assert "  state = 4294967295," in lines
    assert "  flag = 255," in lines
    assert '  name = "\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff",' in lines


def test_floats(memory):
    real = structure(
        "real", 8, member("x", 0, IntType("double", 8, True, is_float=True))
    )
    memory.put(AT, b"\0\0\0\0\0\0\xf8\x3f")
    kernel = fake_kernel(memory, [real])
    assert decode(kernel, Place(real, AT)) == {"x": 1.5}


# Layouts


def test_the_layout_is_c():
    assert (
        "\n".join(describe(OBJECT, base=0))
        == """struct object {
     [0] char name[8];
     [8] enum state state;
    [12] _Bool flag;
  [13:0] unsigned char ready : 1;
  [13:1] unsigned char kind : 3;
         union {
    [16]     unsigned long whole;
             struct {
    [16]         unsigned int low;
    [20]         unsigned int high;
             };
         };
    [24] struct node nodes[3];
    [72] char *text;
    [80] struct node *node;
    [88] unsigned char mac[6];
    [96] int delta;
   [104] int bits[2];
   [120] unsigned long tail[];
}
SIZE: 120"""
    )


def test_other_definitions():
    assert list(describe(NODE)) == [
        "struct node {",
        "    void *next;",
        "    unsigned int id;",
        "}",
        "SIZE: 16",
    ]
    assert list(describe(STATE)) == [
        "enum state {", "    IDLE = 0,", "    BUSY = 1,", "}", "SIZE: 4",
    ]  # fmt: skip
    assert list(describe(typedef("node_t", NODE))) == [
        "typedef struct node node_t;",
        "SIZE: 16",
    ]
    first, *_, last, size = describe(typedef("both_t", EITHER))
    assert (first, last, size) == ("typedef union {", "} both_t;", "SIZE: 8")
    forward = structure("x", 0)
    forward.is_complete = False
    assert list(describe(forward))[1] == "    <incomplete type>"
    assert list(describe(NODE, base=0x1000))[2] == (
        "  [0000000000001008] unsigned int id;"
    )


def test_the_layout_as_data():
    data = layout_data(OBJECT)
    members = {each["name"]: each for each in data["members"]}
    assert (data["type"], data["size"]) == ("struct object", 120)
    assert members["high"] == {
        "name": "high",
        "offset": 20,
        "size": 4,
        "type": "unsigned int",
    }
    assert (members["kind"]["bit_offset"], members["kind"]["bit_size"]) == (1, 3)


# What people type


@pytest.mark.parametrize("text", ["object", "struct object", "object_t", " object "])
def test_types_by_name(kernel, text):
    assert parse_spec(kernel, text).type.strip() is OBJECT


def test_members(kernel):
    spec = parse_spec(kernel, "object.name,node.id,nodes[1].next")
    assert spec.paths == ("name", "node.id", "nodes[1].next")
    assert locate(OBJECT, "nodes[2].id").address == 24 + 32 + 8
    assert locate(OBJECT, "node->id").address == 8
    assert parse_offset(kernel, "object.high") == 20
    assert [parse_offset(kernel, text) for text in ("16", "0x10", "-8")] == [16, 16, -8]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("objekt", "no type 'objekt'.*did you mean object"),
        ("union object", "no type 'union object'"),
        ("object.nam", "did you mean name"),
        ("object.nodes[3]", "has 3 elements"),
        ("object.delta.x", "int has no members"),
        ("object.name!", "no member path"),
        ("object name extra", "is no TYPE"),
        ("", "is no TYPE"),
    ],
)
def test_what_does_not_exist_is_named(kernel, text, message):
    with pytest.raises(CommandError, match=message):
        parse_spec(kernel, text)
    with pytest.raises(CommandError):
        parse_offset(kernel, text)


def test_a_null_pointer_on_the_way(kernel, memory):
    memory.words(AT + 80, 0)
    with pytest.raises(FaultError):
        follow(kernel, OBJECT, AT, "node.id")


# The engine's own objects see the same


def test_kobject_agrees(kernel):
    item = KObject(kernel, OBJECT, AT)
    assert item["name"] == b"wl-main"
    assert (item["state"], item["ready"], item["kind"]) == (1, 1, 5)
    assert (item["high"], item["nodes[1].id"], item["node"]["id"]) == (5, 7, 42)
    assert item["delta"] == -1
    assert [node["id"] for node in item["nodes"]] == [7, 7, 7]
    fields = kernel.fields("object", ["delta", "name", "high", "node"])
    assert fields.read(AT) == (-1, b"wl-main", 5, OTHER)
