# SPDX-License-Identifier: GPL-2.0-or-later
"""Layouts of C types as text and as data, the way crash's ``struct`` shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gdbkdump.debuginfo.layout import (
    ArrayType,
    EnumType,
    Member,
    PointerType,
    QualifiedType,
    StructType,
    Type,
    TypedefType,
    declare,
    type_name,
)
from gdbkdump.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_INDENT = "    "
_MAX_DEPTH = 64


class _Row(NamedTuple):
    # A line of a declaration; bit is -1 where the line has no offset.
    text: str
    bit: int = -1
    bit_size: int = 0


class Part(NamedTuple):
    """A member by its path; ``member`` is None for an element of an array."""

    path: str
    type: Type
    offset: int
    member: Member | None


def describe(type_: Type, *, base: int | None = None) -> Iterator[str]:
    """Yield the C definition of a type, and its size.

    :param base: where given, offsets from there come first: 0 for bare offsets, an
        address for the addresses of an object's members
    """
    if isinstance(type_, TypedefType):
        target = type_.target
        named = isinstance(target, StructType | EnumType) and not target.name
        if not named:
            yield f"typedef {declare(target, type_.name)};"
            yield f"SIZE: {type_.size}"
            return
    body = type_.strip()
    if isinstance(body, StructType):
        yield from _align(list(_struct_rows(body, type_, 0)), base)
    elif isinstance(body, EnumType):
        yield from _enum_lines(body, type_)
    else:
        yield type_name(type_)
    yield f"SIZE: {type_.size}"


def describe_members(type_: Type, parts: Sequence[Part], base: int) -> Iterator[str]:
    """Yield the definition of a struct reduced to some of its members."""
    rows = [_Row(f"{type_name(type_)} {{")]
    for part in parts:
        bits = part.member.bit_size if part.member else 0
        bit = part.offset * 8 + (part.member.bit_offset & 7 if part.member else 0)
        rows += _member_rows(part.path, part.type, bit, bits, 0)
    yield from _align([*rows, _Row("}")], base)


def _struct_rows(body: StructType, named: Type, depth: int) -> Iterator[_Row]:
    head = type_name(named) if named.name else body.keyword
    opening = f"typedef {body.keyword}" if isinstance(named, TypedefType) else head
    yield _Row(f"{opening} {{")
    if not body.is_complete:
        yield _Row("<incomplete type>")
    yield from _body_rows(body, 0, depth)
    closing = f"}} {named.name};" if isinstance(named, TypedefType) else "}"
    yield _Row(closing)


def _body_rows(body: StructType, start: int, depth: int) -> Iterator[_Row]:
    if depth > _MAX_DEPTH:
        raise CorruptError(f"{body} holds itself")
    for member in body.members:
        bit = start + member.bit_offset
        yield from _member_rows(member.name, member.type, bit, member.bit_size, depth)


def _member_rows(
    name: str, type_: Type, bit: int, bit_size: int, depth: int
) -> Iterator[_Row]:
    indent = _INDENT * depth
    text = declare(type_, name)
    if bit_size:
        text += f" : {bit_size}"
    inner = _untagged(type_)
    head, braces, tail = text.partition("{...}")
    if inner is None or not braces:
        yield _Row(f"{indent}{text};", bit, bit_size)
        return
    yield _Row(f"{indent}{head}{{")
    # The members of what a pointer points to have offsets of their own.
    is_embedded = not isinstance(type_.strip(), PointerType)
    yield from _body_rows(inner, bit if is_embedded else 0, depth + 1)
    yield _Row(f"{indent}}}{tail};", bit if tail else -1)


def _untagged(type_: Type) -> StructType | None:
    # The struct without a tag that a member is, or is an array of or pointer to.
    for _ in range(_MAX_DEPTH):
        if isinstance(type_, StructType):
            return None if type_.name else type_
        if isinstance(type_, ArrayType):
            type_ = type_.element
        elif isinstance(type_, PointerType | QualifiedType):
            type_ = type_.target
        else:
            return None
    return None


def _align(rows: list[_Row], base: int | None) -> Iterator[str]:
    first, *inner, last = rows
    yield first.text
    if base is None:
        for row in inner:
            yield _INDENT + row.text
    else:
        marks = [_mark(row, base) for row in inner]
        width = max((len(mark) for mark in marks), default=0)
        for mark, row in zip(marks, inner, strict=True):
            yield f"  {mark:>{width}} {row.text}"
    yield last.text


def _mark(row: _Row, base: int) -> str:
    if row.bit < 0:
        return ""
    offset = base + row.bit // 8
    text = f"{offset:016x}" if base else str(offset)
    return f"[{text}:{row.bit % 8}]" if row.bit_size else f"[{text}]"


def _enum_lines(body: EnumType, named: Type) -> Iterator[str]:
    is_typedef = isinstance(named, TypedefType)
    yield "typedef enum {" if is_typedef else f"enum {body.name} {{".replace("  ", " ")
    for name, value in body.values.items():
        yield f"{_INDENT}{name} = {value},"
    yield f"}} {named.name};" if is_typedef else "}"


def layout_data(type_: Type) -> dict[str, Any]:
    """Return the same facts for JSON; anonymous members are flattened."""
    body = type_.strip()
    data: dict[str, Any] = {"type": type_name(type_), "size": type_.size}
    if isinstance(body, StructType):
        data["members"] = [
            part_data(Part(name, member.type, member.offset, member))
            for name, member in body.flat().items()
        ]
    elif isinstance(body, EnumType):
        data["values"] = dict(body.values)
    else:
        data["target"] = type_name(body)
    return data


def part_data(part: Part) -> dict[str, Any]:
    """Return the facts of a member."""
    data: dict[str, Any] = {
        "name": part.path,
        "offset": part.offset,
        "size": part.type.size,
        "type": type_name(part.type),
    }
    if part.member and part.member.bit_size:
        data["bit_offset"] = part.member.bit_offset & 7
        data["bit_size"] = part.member.bit_size
    return data
