# SPDX-License-Identifier: GPL-2.0-or-later
"""C types as values: what BTF, DWARF and snapshots are turned into.

References between types are resolved when they are first followed, so that asking for
one struct does not read a kernel's 100,000 types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from gdbkdump.errors import CorruptError, MemberNotFoundError

Resolve = Callable[[], "Type"]
# Bounds typedef chains and nesting of anonymous members: BTF is untrusted input.
_MAX_DEPTH = 64


class Type:
    """Any C type.

    :ivar name: tag or typedef name, ``""`` if it has none
    """

    name: str

    @property
    def size(self) -> int:
        """Bytes of an object of this type (0 for void, functions, incomplete types)."""
        return 0

    def strip(self) -> Type:
        """Return the type behind typedefs and qualifiers."""
        return self


class VoidType(Type):
    """``void``."""

    name = "void"


@dataclass(eq=False)
class IntType(Type):
    """An integer, boolean, character or floating-point type."""

    name: str
    byte_size: int
    is_signed: bool
    is_bool: bool = False
    is_float: bool = False

    @property
    def size(self) -> int:
        """Bytes of the integer."""
        return self.byte_size

    @property
    def is_char(self) -> bool:
        """Whether arrays of it are text."""
        return self.byte_size == 1 and "char" in self.name


@dataclass(eq=False)
class PointerType(Type):
    """A pointer."""

    resolve: Resolve
    name: str = field(default="", init=False)

    @property
    def size(self) -> int:
        """Bytes of a pointer."""
        return 8

    @property
    def target(self) -> Type:
        """What it points to."""
        return self.resolve()


@dataclass(eq=False)
class ArrayType(Type):
    """An array; ``count`` is 0 for a flexible one."""

    resolve: Resolve
    count: int
    name: str = field(default="", init=False)

    @property
    def element(self) -> Type:
        """Type of an element."""
        return self.resolve()

    @property
    def size(self) -> int:
        """Bytes of the whole array."""
        return self.element.size * self.count


@dataclass(eq=False)
class EnumType(Type):
    """An enumeration."""

    name: str
    byte_size: int
    is_signed: bool
    values: Mapping[str, int]

    @property
    def size(self) -> int:
        """Bytes of a value."""
        return self.byte_size

    def name_of(self, value: int) -> str | None:
        """Return the enumerator of a value, or None."""
        return next((n for n, v in self.values.items() if v == value), None)


class _Wrapper(Type):
    # A type that is another one under a name or with a qualifier.
    resolve: Resolve

    @property
    def size(self) -> int:
        """Bytes of what is behind it."""
        return self.strip().size

    @property
    def target(self) -> Type:
        """What it names or qualifies."""
        return self.resolve()

    def strip(self) -> Type:
        """Return the type behind typedefs and qualifiers."""
        type_: Type = self
        for _ in range(_MAX_DEPTH):
            if not isinstance(type_, _Wrapper):
                return type_
            type_ = type_.target
        raise CorruptError(f"the type {type_.name!r} is a typedef of itself")


@dataclass(eq=False)
class TypedefType(_Wrapper):
    """A typedef."""

    name: str
    resolve: Resolve


@dataclass(eq=False)
class QualifiedType(_Wrapper):
    """``const``, ``volatile``, ``restrict`` or an attribute (shown as nothing)."""

    qualifier: str
    resolve: Resolve
    name: str = field(default="", init=False)


@dataclass(eq=False)
class FunctionType(Type):
    """A function; parameters are (name, type), a last type None means ``...``."""

    resolve: Resolve
    parameters: tuple[tuple[str, Resolve | None], ...]
    name: str = field(default="", init=False)

    @property
    def result(self) -> Type:
        """What it returns."""
        return self.resolve()


@dataclass(eq=False)
class Member:
    """A member of a struct or union, or one reached by a path into it.

    :ivar bit_offset: from the start of the struct the path began in
    :ivar bit_size: 0 unless it is a bit field
    """

    name: str
    bit_offset: int
    bit_size: int
    resolve: Resolve

    @property
    def offset(self) -> int:
        """Byte offset."""
        return self.bit_offset >> 3

    @property
    def type(self) -> Type:
        """Type of the member."""
        return self.resolve()

    def moved(self, bits: int) -> Member:
        """Return the member as seen from a struct that begins ``bits`` earlier."""
        return Member(self.name, self.bit_offset + bits, self.bit_size, self.resolve)


_PATH = re.compile(r"\.?([A-Za-z_]\w*)|\[(\d+)\]")


@dataclass(eq=False)
class StructType(Type):
    """A struct or union.

    :ivar keyword: ``struct`` or ``union``
    :ivar members: as declared; those without a name are anonymous structs and unions
    """

    keyword: str
    name: str
    byte_size: int
    members: tuple[Member, ...]
    is_complete: bool = True
    _paths: dict[str, Member | None] = field(default_factory=dict, repr=False)
    _flat: dict[str, Member] | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Bytes of an object."""
        return self.byte_size

    def __str__(self) -> str:
        """Return ``struct name``."""
        return f"{self.keyword} {self.name}".rstrip()

    def flat(self) -> dict[str, Member]:
        """Return the members by name, those of anonymous members among them."""
        if self._flat is None:
            self._flat = dict(self._flatten(0))
        return self._flat

    def _flatten(self, depth: int) -> Iterator[tuple[str, Member]]:
        if depth > _MAX_DEPTH:
            raise CorruptError(f"{self} holds itself")
        for member in self.members:
            if member.name:
                yield member.name, member
                continue
            inner = member.type.strip()
            if isinstance(inner, StructType):
                for name, found in inner._flatten(depth + 1):
                    yield name, found.moved(member.bit_offset)

    def has(self, path: str) -> bool:
        """Tell whether there is a member at ``path``."""
        return self._lookup(path) is not None

    def member(self, path: str) -> Member:
        """Return the member at ``path`` (``a.b[2].c``), its offset from here.

        :raise MemberNotFoundError: there is none
        """
        found = self._lookup(path)
        if found is None:
            raise MemberNotFoundError(str(self), path)
        return found

    def offset(self, path: str) -> int:
        """Return the byte offset of a member path.

        :raise MemberNotFoundError: there is none
        """
        return self.member(path).offset

    def _lookup(self, path: str) -> Member | None:
        if path not in self._paths:
            self._paths[path] = self._follow(path)
        return self._paths[path]

    def _follow(self, path: str) -> Member | None:
        here = Member("", 0, 0, lambda: self)
        position = 0
        while position < len(path):
            part = _PATH.match(path, position)
            type_ = here.type.strip()
            if not part:
                return None
            position = part.end()
            if part[1] and isinstance(type_, StructType):
                found = type_.flat().get(part[1])
                if found is None:
                    return None
                here = found.moved(here.bit_offset)
            elif part[2] and isinstance(type_, ArrayType):
                here = _element(type_, int(part[2])).moved(here.bit_offset)
            else:
                return None
        return here


def _element(array: ArrayType, index: int) -> Member:
    return Member(f"[{index}]", index * array.element.size * 8, 0, array.resolve)


VOID = VoidType()


def type_name(type_: Type) -> str:
    """Return the type as C writes it without a name, ``struct list_head *``."""
    return declare(type_, "")


def declare(type_: Type, name: str, depth: int = 0) -> str:
    """Return the C declaration of ``name``, ``int (*func)(void *)``."""
    if depth > _MAX_DEPTH:
        return f"... {name}".rstrip()
    if isinstance(type_, PointerType):
        return _declare_pointer(type_, f"*{name}", depth)
    if isinstance(type_, ArrayType):
        bound = str(type_.count) if type_.count else ""
        return declare(type_.element, f"{name}[{bound}]", depth + 1)
    if isinstance(type_, FunctionType):
        parameters = ", ".join(
            declare(resolve(), "", depth + 1) if resolve else "..."
            for _, resolve in type_.parameters
        )
        return declare(type_.result, f"{name}({parameters or 'void'})", depth + 1)
    if isinstance(type_, QualifiedType):
        if isinstance(type_.target, PointerType) and type_.qualifier:
            return declare(
                type_.target, f"{type_.qualifier} {name}".rstrip(), depth + 1
            )
        inner = declare(type_.target, name, depth + 1)
        return f"{type_.qualifier} {inner}".lstrip()
    return f"{_tag(type_)} {name}".rstrip() if name[:1] != "[" else _tag(type_) + name


def _declare_pointer(pointer: PointerType, name: str, depth: int) -> str:
    target = pointer.target
    if isinstance(target, ArrayType | FunctionType):
        name = f"({name})"
    return declare(target, name, depth + 1)


# DWARF and BTF have the compiler's names of integers; people write these.
_PLAIN_NAMES = {
    "long unsigned int": "unsigned long",
    "long int": "long",
    "long long unsigned int": "unsigned long long",
    "long long int": "long long",
    "short unsigned int": "unsigned short",
    "short int": "short",
}


def _tag(type_: Type) -> str:
    if isinstance(type_, StructType):
        return str(type_) if type_.name else f"{type_.keyword} {{...}}"
    if isinstance(type_, EnumType):
        return f"enum {type_.name}" if type_.name else "enum {...}"
    if isinstance(type_, IntType):
        return _PLAIN_NAMES.get(type_.name, type_.name)
    return type_.name or "?"
