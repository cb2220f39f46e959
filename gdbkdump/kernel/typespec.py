# SPDX-License-Identifier: GPL-2.0-or-later
"""What people type for a C type and its members: ``task_struct.comm,mm.pgd``."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.debuginfo.layout import (
    ArrayType,
    Member,
    PointerType,
    StructType,
    Type,
    type_name,
)
from gdbkdump.errors import CommandError, FaultError, FaultReason, TypeNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gdbkdump.kernel.base import Kernel

_KEYWORDS = ("struct", "union", "enum")
_STEP = re.compile(r"(?:\.|->)?([A-Za-z_]\w*)|\[(\d+)\]")
_SPEC = re.compile(r"(?:(struct|union|enum)\s+)?([A-Za-z_]\w*)(?:\.(\S+))?")


class TypeSpec(NamedTuple):
    """A type, and the paths of those of its members that are asked for."""

    type: Type
    paths: tuple[str, ...]

    @property
    def label(self) -> str:
        """The type's name as C writes it."""
        return type_name(self.type)

    @property
    def struct(self) -> StructType:
        """The type as a struct or union.

        :raise CommandError: it is none
        """
        type_ = self.type.strip()
        if not isinstance(type_, StructType):
            raise CommandError(f"{self.label} is no struct or union")
        return type_


class Place(NamedTuple):
    """An object of a type at an address; ``member`` says which bits of it, if not all.

    Without memory to follow pointers in, ``address`` is the offset in the last struct
    that the path came to.
    """

    type: Type
    address: int
    member: Member | None = None


def parse_spec(kernel: Kernel, text: str) -> TypeSpec:
    """Return what ``[struct ]name[.member[,member...]]`` means.

    :raise CommandError: there is no such type or member
    """
    match = _SPEC.fullmatch(text.strip())
    if not match:
        raise CommandError(f"{text!r} is no TYPE or TYPE.MEMBER[,MEMBER...]")
    type_ = find_type(kernel, match[2], match[1])
    paths = tuple(path for path in (match[3] or "").split(",") if path)
    for path in paths:
        locate(type_, path)
    return TypeSpec(type_, paths)


def find_type(kernel: Kernel, name: str, keyword: str | None = None) -> Type:
    """Return the struct, union, enum or typedef of a name.

    :raise CommandError: there is none; the message has names that come near
    """
    for each in (keyword,) if keyword else (*_KEYWORDS, ""):
        try:
            return kernel.debuginfo.type(each, name)
        except TypeNotFoundError:
            continue
    near = _near(name, _type_names(kernel, keyword))
    what = f"{keyword} {name}" if keyword else name
    raise CommandError(f"no type {what!r} in this kernel{near}")


def _type_names(kernel: Kernel, keyword: str | None) -> set[str]:
    types = kernel.debuginfo.types
    if types is None:
        return set()
    chosen = (keyword,) if keyword else (*_KEYWORDS, "")
    return {name for each in chosen for name in types.names(each)}


def _near(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.7)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def locate(type_: Type, path: str) -> Place:
    """Return type and offset of a member; a pointer on the way starts a new offset.

    :raise CommandError: there is no such member
    """
    return _follow(None, type_, 0, path)


def follow(kernel: Kernel, type_: Type, address: int, path: str) -> Place:
    """Return the member at a path from the object at ``address``, through pointers.

    :raise CommandError: there is no such member
    :raise FaultError: a pointer on the way cannot be read, or is NULL
    """
    return _follow(kernel, type_, address, path)


def _follow(kernel: Kernel | None, type_: Type, address: int, path: str) -> Place:
    place = Place(type_, address)
    position = 0
    while position < len(path):
        step = _STEP.match(path, position)
        if not step:
            raise CommandError(
                f"{path!r} is no member path (such as mm.pgd or pids[0])"
            )
        if isinstance(place.type.strip(), PointerType):
            place = _through(kernel, place)
        if step[2]:
            place = _element(place, int(step[2]), path)
        else:
            place = _member(place, step[1])
        position = step.end()
    return place


def _through(kernel: Kernel | None, place: Place) -> Place:
    pointer = place.type.strip()
    assert isinstance(pointer, PointerType)
    if kernel is None:
        return Place(pointer.target, 0)
    value = kernel.reader.u64(place.address)
    if not value:
        raise FaultError("virtual", 0, FaultReason.UNMAPPED)
    return Place(pointer.target, value)


def _element(place: Place, index: int, path: str) -> Place:
    array = place.type.strip()
    if not isinstance(array, ArrayType):
        # What a pointer points to may be the first of several.
        return Place(place.type, place.address + index * place.type.size)
    if array.count and index >= array.count:
        raise CommandError(f"{path!r}: the array has {array.count} elements")
    return Place(array.element, place.address + index * array.element.size)


def _member(place: Place, name: str) -> Place:
    type_ = place.type.strip()
    if not isinstance(type_, StructType):
        raise CommandError(f"{type_name(place.type)} has no members ({name!r})")
    found = type_.flat().get(name)
    if found is None:
        near = _near(name, type_.flat())
        raise CommandError(f"{type_name(place.type)} has no member {name!r}{near}")
    return Place(found.type, place.address + found.offset, found)


def parse_offset(kernel: Kernel, text: str) -> int:
    """Return bytes: a number, or the offset that ``struct.member`` has.

    :raise CommandError: it is neither
    """
    if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", text):
        return int(text, 0 if "x" in text else 10)
    return member_place(kernel, text).address


def member_place(kernel: Kernel, text: str) -> Place:
    """Return type and offset of ``struct.member``.

    :raise CommandError: it does not name one member within the struct
    """
    spec = parse_spec(kernel, text)
    if len(spec.paths) != 1:
        raise CommandError(f"{text!r} is neither a number nor STRUCT.MEMBER")
    return locate(spec.type, spec.paths[0])
