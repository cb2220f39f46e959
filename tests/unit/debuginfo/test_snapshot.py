# SPDX-License-Identifier: GPL-2.0-or-later
"""Snapshots: there and back the types are the same; damage is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.fakes import (
    BOOL,
    CHAR,
    S32,
    U8,
    U64,
    FakeTypes,
    array,
    enum,
    member,
    pointer,
    structure,
    typedef,
)

from gdbkdump.debuginfo.layout import (
    FunctionType,
    QualifiedType,
    StructType,
    declare,
)
from gdbkdump.debuginfo.snapshot import Snapshot, read_snapshot, record, write_snapshot
from gdbkdump.errors import CorruptError, TypeNotFoundError

SNAPSHOTS = Path(__file__).parents[2] / "snapshots"

FAR = structure("far", 8, member("x", 0, U64))
OTHER = structure("other", 8, member("far", 0, pointer(FAR)))
NODE = structure("node", 16)
CALL = FunctionType(lambda: S32, (("node", lambda: pointer(NODE)), ("", None)))
NODE.members = (
    member("next", 0, pointer(NODE)),
    member("far", 8, pointer(QualifiedType("const", lambda: FAR))),
)
INNER = structure("", 8, member("a", 0, S32, bits=(0, 3)), member("b", 4, BOOL))
STATE = enum("state", IDLE=0, BUSY=1)
OBJECT = structure(
    "object",
    72,
    member("nodes", 0, array(NODE, 2)),
    member("", 32, structure("", 8, member("", 0, INNER), keyword="union")),
    member("state", 40, STATE),
    member("name", 44, array(CHAR, 4)),
    member("call", 48, pointer(CALL)),
    member("other", 56, typedef("other_t", OTHER)),
    member("byte", 64, typedef("u8", typedef("__u8", U8))),
)
SOURCE = FakeTypes([OBJECT, NODE, STATE, OTHER, FAR, typedef("u8", U8)])
NAMES = [("struct", "object"), ("", "u8"), ("struct", "nonsense"), ("enum", "state")]


def described(type_):
    assert isinstance(type_, StructType)
    return type_.size, [
        (name, m.bit_offset, m.bit_size, m.type.size, declare(m.type, name))
        for name, m in type_.flat().items()
    ]


@pytest.fixture
def snapshot(tmp_path):
    path = tmp_path / "types.json"
    write_snapshot(path, record(SOURCE, NAMES, release="6.1", build_id="ab12"))
    return read_snapshot(path)


def test_there_and_back(snapshot):
    assert described(snapshot.find("struct", "object")) == described(OBJECT)
    assert snapshot.find("struct", "object").offset("nodes[1].far") == 24
    assert snapshot.find("enum", "state").values == {"IDLE": 0, "BUSY": 1}
    assert snapshot.find("", "u8").strip().size == 1
    assert snapshot.about == {"release": "6.1", "build_id": "ab12"}


def test_types_keep_their_identity(snapshot):
    node = snapshot.find("struct", "node")
    assert node.member("next").type.target is node
    assert snapshot.find("struct", "object") is snapshot.find("struct", "object")


def test_what_is_pointed_to_is_named_and_no_more(snapshot):
    # other is part of object, far is behind pointers only.
    assert snapshot.find("struct", "other").size == 8
    with pytest.raises(TypeNotFoundError):
        snapshot.find("struct", "far")
    target = snapshot.find("struct", "node").member("far").type.target
    assert declare(target, "far") == "const struct far far"
    assert not target.strip().is_complete


def test_names(snapshot):
    assert sorted(snapshot.names("struct")) == ["node", "object", "other"]
    assert list(snapshot.names("enum")) == ["state"]
    assert {"u8", "__u8", "other_t", "int"} <= set(snapshot.names(""))


def test_a_snapshot_of_a_snapshot_is_the_same(snapshot):
    again = record(snapshot, NAMES, release="6.1", build_id="ab12")
    assert again == record(SOURCE, NAMES, release="6.1", build_id="ab12")


def test_recursive_types_end():
    loop = typedef("loop", S32)
    loop.resolve = lambda: QualifiedType("const", lambda: loop)
    made = record(FakeTypes([loop]), [("", "loop")])
    with pytest.raises(CorruptError, match="itself"):
        Snapshot(made).find("", "loop").strip()
    endless = structure("", 8)
    endless.members = (member("", 0, endless),)
    outer = structure("outer", 8, member("", 0, endless))
    with pytest.raises(CorruptError, match="part of itself"):
        record(FakeTypes([outer]), [("struct", "outer")])


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[]", "{}", '{"format": 2}', '{"format": 1, "types": []}']
)
def test_what_is_no_snapshot_is_refused(tmp_path, text):
    path = tmp_path / "types.json"
    path.write_text(text)
    with pytest.raises(CorruptError):
        read_snapshot(path)
    with pytest.raises(CorruptError, match="No such file"):
        read_snapshot(tmp_path / "none")


@pytest.mark.parametrize(
    "damage",
    [
        7,
        {},
        {"size": 8},
        {"size": 8, "members": [["x", 0]]},
        {"size": 8, "members": [["x", 0, 0, "lost"]]},
        {"size": 8, "members": [["x", 0, 0, []]]},
        {"size": 8, "members": [["x", 0, 0, ["[]", "int"]]]},
        {"size": 8, "members": [["x", 0, 0, 5]]},
    ],
)
def test_damaged_types_are_refused(damage):
    data = json.loads(json.dumps(record(SOURCE, NAMES)))
    data["types"]["struct object"] = damage
    with pytest.raises(CorruptError):
        _ = Snapshot(data).find("struct", "object").flat()["x"].type.size


# Those that are committed


@pytest.mark.parametrize("path", sorted(SNAPSHOTS.glob("*.json")), ids=lambda p: p.stem)
def test_committed_snapshots(path):
    snapshot = read_snapshot(path)
    # Fixed by the kernel's ABI with itself since long before the oldest of them.
    link = snapshot.find("struct", "list_head")
    assert (link.size, link.offset("next"), link.offset("prev")) == (16, 0, 8)
    node = snapshot.find("struct", "xa_node")
    assert (node.size, node.member("slots").type.strip().count) == (576, 64)
    assert snapshot.find("struct", "module").size % 64 == 0
    assert snapshot.about["release"].startswith(path.stem)
