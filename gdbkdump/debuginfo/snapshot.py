# SPDX-License-Identifier: GPL-2.0-or-later
"""Layouts as JSON: recorded once from any source of types, read back as one.

For kernels without BTF, opened outside gdb after gdb's DWARF types were recorded; for
bug reports; and for tests on kernels whose dumps are not at hand.

The file names types as C does: ``"struct list_head"``, ``"pid_t"``, ``["*", TYPE]``,
``["[]", TYPE, COUNT]``, ``["const", TYPE]``, ``["()", TYPE, [[NAME, TYPE], ...]]``; a
type without a name is written out where it is used.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gdbkdump.debuginfo.layout import (
    VOID,
    ArrayType,
    EnumType,
    FunctionType,
    IntType,
    Member,
    PointerType,
    QualifiedType,
    Resolve,
    StructType,
    Type,
    TypedefType,
    VoidType,
)
from gdbkdump.errors import CorruptError, TypeNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from gdbkdump.debuginfo.base import TypeSource

_FORMAT = 1
_MAX_DEPTH = 64
_KEYWORDS = ("struct", "union", "enum", "function", "")
_MAX_BYTES = 256 << 20


class _Recorder:
    # Writes types down; those with a name once, in the table of their names.
    def __init__(self, source: TypeSource) -> None:
        self._source = source
        self.table: dict[str, Any] = {}

    def add(self, keyword: str, name: str) -> None:
        type_ = self._source.find(keyword, name)
        key = f"{keyword} {name}".lstrip()
        if isinstance(type_, FunctionType):
            self.table[key] = self._encode(type_, 0)
        else:
            self._embed(type_, 0)

    def _embed(self, type_: Type, depth: int) -> Any:
        # An object of the type is part of what is recorded: its layout is needed.
        if depth > _MAX_DEPTH:
            raise CorruptError(f"the type {type_.name!r} is part of itself")
        key = _key(type_)
        if key is None:
            return self._encode(type_, depth)
        if key not in self.table:
            self.table[key] = None  # under way: it may be met again below
            self.table[key] = self._encode(type_, depth)
        return key

    def _refer(self, type_: Type, depth: int) -> Any:
        # A pointer to the type is enough: the name will do, if it has one.
        if depth > _MAX_DEPTH:
            raise CorruptError(f"the type {type_.name!r} is part of itself")
        if isinstance(type_, StructType) and type_.name:
            return str(type_)
        if isinstance(type_, QualifiedType):
            return [type_.qualifier, self._refer(type_.target, depth + 1)]
        return self._embed(type_, depth)

    def _encode(self, type_: Type, depth: int) -> Any:
        below = depth + 1
        if isinstance(type_, IntType):
            flags = [type_.is_signed, type_.is_bool, type_.is_float]
            return {"size": type_.byte_size, "int": [int(flag) for flag in flags]}
        if isinstance(type_, EnumType):
            head = {"size": type_.byte_size, "signed": int(type_.is_signed)}
            return {**head, "enum": dict(type_.values)}
        if isinstance(type_, StructType):
            return self._encode_struct(type_, below)
        if isinstance(type_, PointerType):
            return ["*", self._refer(type_.target, below)]
        if isinstance(type_, ArrayType):
            return ["[]", self._embed(type_.element, below), type_.count]
        if isinstance(type_, TypedefType):
            return {"typedef": self._embed(type_.target, below)}
        if isinstance(type_, QualifiedType):
            return [type_.qualifier, self._embed(type_.target, below)]
        if isinstance(type_, FunctionType):
            parameters = [
                [name, None if resolve is None else self._refer(resolve(), below)]
                for name, resolve in type_.parameters
            ]
            return ["()", self._refer(type_.result, below), parameters]
        return "void"

    def _encode_struct(self, type_: StructType, depth: int) -> dict[str, Any]:
        members = [
            [m.name, m.bit_offset, m.bit_size, self._embed(m.type, depth)]
            for m in type_.members
        ]
        data: dict[str, Any] = {"size": type_.byte_size, "members": members}
        if not type_.is_complete:
            data["incomplete"] = 1
        return data if type_.name else {"keyword": type_.keyword, **data}


def _key(type_: Type) -> str | None:
    if isinstance(type_, VoidType) or not type_.name:
        return "void" if isinstance(type_, VoidType) else None
    if isinstance(type_, StructType):
        return str(type_)
    if isinstance(type_, EnumType):
        return f"enum {type_.name}"
    return type_.name


def record(
    source: TypeSource, names: Iterable[tuple[str, str]], **about: str
) -> dict[str, Any]:
    """Return types with all that their layouts need, ready for JSON.

    What they merely point to is named, not recorded.

    :param names: (keyword, name) as ``TypeSource.find()`` takes them; what the source
        lacks is left out
    :param about: what the snapshot is of: ``release``, ``build_id``
    """
    recorder = _Recorder(source)
    for keyword, name in names:
        try:
            recorder.add(keyword, name)
        except TypeNotFoundError:
            continue
    recorder.table.pop("void", None)
    return {"format": _FORMAT, **about, "types": recorder.table}


def snapshot_text(data: dict[str, Any]) -> str:
    """Return a snapshot as a file has it, one type a line, to be compared by line."""
    head = {key: value for key, value in data.items() if key != "types"}
    lines = [
        f"{json.dumps(name)}: {json.dumps(type_, separators=(',', ':'))}"
        for name, type_ in sorted(data["types"].items())
    ]
    start = json.dumps(head)[:-1]
    return f'{start}, "types": {{\n' + ",\n".join(lines) + "\n}}\n"


def write_snapshot(path: Path, data: dict[str, Any]) -> None:
    """Write a snapshot."""
    path.write_text(snapshot_text(data))


class Snapshot:
    """A snapshot as a source of types.

    :ivar about: what it is of: ``release``, ``build_id``
    """

    def __init__(self, data: dict[str, Any]) -> None:
        """Take what ``record()`` gave.

        :raise CorruptError: it is no snapshot
        """
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise CorruptError("it is no snapshot of types, or one of another version")
        if not isinstance(data.get("types"), dict):
            raise CorruptError("the snapshot of types is damaged")
        self.about = {k: v for k, v in data.items() if k not in ("format", "types")}
        self._table: dict[str, Any] = data["types"]
        self._made: dict[str, Type] = {"void": VOID}

    def find(self, keyword: str, name: str) -> Type:
        """Return a type by name.

        :raise TypeNotFoundError: it was not recorded
        """
        key = f"{keyword} {name}".lstrip()
        if not name or key not in self._table:
            raise TypeNotFoundError(key)
        return self._named(key)

    def names(self, keyword: str) -> Iterator[str]:
        """Yield the names of all types of a keyword."""
        for key in self._table:
            word, space, name = key.partition(" ")
            has_word = bool(space) and word in _KEYWORDS
            if (word if has_word else "") == keyword:
                yield name if has_word else key

    def _named(self, key: str) -> Type:
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = self._make(key)
        return made

    def _make(self, key: str) -> Type:
        keyword, _, name = key.partition(" ")
        data = self._table.get(key)
        if data is None and keyword in ("struct", "union"):
            # Only pointed to, so it was not recorded.
            return StructType(keyword, name, 0, (), False)
        if isinstance(data, list):
            return self._decode(data)
        if not isinstance(data, dict):
            raise CorruptError(f"the snapshot of types lacks {key!r}")
        if keyword not in ("struct", "union", "enum"):
            keyword, name = "", key
        return self._decode_table(data, keyword, name)

    def _decode_table(self, data: dict[str, Any], keyword: str, name: str) -> Type:
        try:
            if "typedef" in data:
                return TypedefType(name, self._later(data["typedef"]))
            if "int" in data:
                is_signed, is_bool, is_float = map(bool, data["int"])
                return IntType(name, data["size"], is_signed, is_bool, is_float)
            if "enum" in data:
                return EnumType(name, data["size"], bool(data["signed"]), data["enum"])
            members = tuple(
                Member(member, offset, bits, self._later(type_))
                for member, offset, bits, type_ in data["members"]
            )
            word = keyword or data["keyword"]
            complete = not data.get("incomplete")
            return StructType(word, name, data["size"], members, complete)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"the snapshot of types: {name!r}: {error}") from None

    def _later(self, data: Any) -> Resolve:
        # Made once: the types of a source are the same objects whenever asked for.
        made: list[Type] = []

        def resolve() -> Type:
            if not made:
                made.append(self._decode(data))
            return made[0]

        return resolve

    def _decode(self, data: Any) -> Type:
        if isinstance(data, str):
            return self._named(data)
        if isinstance(data, dict):
            return self._decode_table(data, "", "")
        try:
            kind, target, *rest = data
            if kind == "*":
                return PointerType(self._later(target))
            if kind == "[]":
                return ArrayType(self._later(target), int(rest[0]))
            if kind == "()":
                parameters = tuple(
                    (name, None if type_ is None else self._later(type_))
                    for name, type_ in rest[0]
                )
                return FunctionType(self._later(target), parameters)
            return QualifiedType(str(kind), self._later(target))
        except (TypeError, ValueError, IndexError) as error:
            raise CorruptError(f"the snapshot of types: {error}") from None


def read_snapshot(path: Path) -> Snapshot:
    """Read a snapshot.

    :raise CorruptError: the file is none
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_BYTES)
        return Snapshot(json.loads(raw))
    except OSError as error:
        raise CorruptError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise CorruptError(f"{path} is no snapshot of types") from None
