# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel objects: ``task["mm"]["pgd"]``, and many members of many objects in bulk."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from gdbkdump.debuginfo.layout import (
    ArrayType,
    EnumType,
    IntType,
    Member,
    PointerType,
    StructType,
    Type,
)
from gdbkdump.errors import CorruptError, FaultError, FaultReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gdbkdump.kernel.base import Kernel

_INT_CODES = {1: "bB", 2: "hH", 4: "iI", 8: "qQ"}


class KObject:
    """A struct or union at an address.

    Item access takes a member path (``task["thread_info.cpu"]``) and gives an int for
    scalars, a ``KPointer`` for pointers, bytes for character arrays (up to the NUL), a
    ``KArray`` for other arrays and a ``KObject`` for structs.
    """

    __slots__ = ("address", "kernel", "type")

    def __init__(self, kernel: Kernel, type_: StructType, address: int) -> None:
        """Take the place; nothing is read."""
        self.kernel = kernel
        self.type = type_
        self.address = address

    def __getitem__(self, path: str) -> Any:
        """Return a member's value.

        :raise MemberNotFoundError: there is no such member
        :raise FaultError: it cannot be read
        """
        member = self.type.member(path)
        return load(self.kernel, member.type, self.address + member.offset, member)

    def has(self, path: str) -> bool:
        """Tell whether the struct has such a member."""
        return self.type.has(path)

    def address_of(self, path: str) -> int:
        """Return the address of a member."""
        return self.address + self.type.offset(path)

    def __repr__(self) -> str:
        """Return type and address."""
        return f"({self.type} *){self.address:#x}"


class KPointer(int):
    """The value of a pointer, which knows what it points to."""

    kernel: Kernel
    target: Type

    def __new__(cls, value: int, kernel: Kernel, target: Type) -> KPointer:
        """Make a pointer to ``target`` of a value."""
        self = super().__new__(cls, value)
        self.kernel = kernel
        self.target = target
        return self

    def deref(self) -> Any:
        """Return what it points to.

        :raise FaultError: that cannot be read
        """
        if not self:
            raise FaultError("virtual", 0, FaultReason.UNMAPPED)
        return load(self.kernel, self.target, int(self))

    def __getitem__(self, path: str) -> Any:
        """Return a member of the struct it points to."""
        return self.deref()[path]


class KArray:
    """An array at an address."""

    __slots__ = ("address", "kernel", "type")

    def __init__(self, kernel: Kernel, type_: ArrayType, address: int) -> None:
        """Take the place; nothing is read."""
        self.kernel = kernel
        self.type = type_
        self.address = address

    def __len__(self) -> int:
        """Return the number of elements (0 for a flexible array)."""
        return self.type.count

    def __getitem__(self, index: int) -> Any:
        """Return an element; beyond the end of a flexible array it is the caller's."""
        if self.type.count and not 0 <= index < self.type.count:
            raise IndexError(index)
        element = self.type.element
        return load(self.kernel, element, self.address + index * element.size)

    def __iter__(self) -> Iterator[Any]:
        """Yield the elements."""
        return (self[i] for i in range(self.type.count))


def load(
    kernel: Kernel, type_: Type, address: int, member: Member | None = None
) -> Any:
    """Return the value of an object of a type; see KObject for what each type gives."""
    type_ = type_.strip()
    if isinstance(type_, StructType):
        return KObject(kernel, type_, address)
    if isinstance(type_, ArrayType):
        element = type_.element.strip()
        if isinstance(element, IntType) and element.is_char and type_.count:
            return kernel.reader.read(address, type_.count).partition(b"\0")[0]
        return KArray(kernel, type_, address)
    if isinstance(type_, PointerType):
        return KPointer(kernel.reader.u64(address), kernel, type_.target)
    if isinstance(type_, IntType | EnumType):
        if member is not None and member.bit_size:
            return load_bits(kernel.reader.read, type_, address, member)
        raw = kernel.reader.read(address, type_.size)
        return int.from_bytes(raw, "little", signed=type_.is_signed)
    raise CorruptError(f"a {type_.name or 'function'} at {address:#x} has no value")


def load_bits(
    read: Callable[[int, int], bytes],
    type_: IntType | EnumType,
    address: int,
    member: Member,
) -> int:
    """Return the value of a bit field; ``address`` is that of its first byte."""
    shift = member.bit_offset & 7
    size = (shift + member.bit_size + 7) // 8
    value = int.from_bytes(read(address, size), "little") >> shift
    value &= (1 << member.bit_size) - 1
    if type_.is_signed and value >> (member.bit_size - 1):
        value -= 1 << member.bit_size
    return value


class Fields:
    """Some members of a struct, read with one read and one unpack an object.

    Scalars and pointers come as ints, character arrays as bytes up to the NUL. This is
    what makes a walk over all tasks fast: no objects, no look-ups.
    """

    def __init__(
        self,
        read: Callable[[int, int], bytes],
        type_: StructType,
        paths: Sequence[str],
    ) -> None:
        """Compile the paths.

        :raise MemberNotFoundError: the struct lacks one
        """
        members = [type_.member(path) for path in paths]
        order = sorted(range(len(paths)), key=lambda i: members[i].offset)
        self._read = read
        self.start = members[order[0]].offset
        code, end = "<", self.start
        for i in order:
            member = members[i]
            gap = member.offset - end
            if gap < 0 or member.bit_size:
                raise ValueError(
                    f"{type_}.{paths[i]} overlaps another or is a bit field"
                )
            code += f"{gap}x{_code(member.type.strip())}"
            end = member.offset + member.type.size
        self.size = end - self.start
        self._unpack = struct.Struct(code).unpack
        self._unpack_from = struct.Struct(code).unpack_from
        self._order = [order.index(i) for i in range(len(paths))]
        self._is_text = [
            isinstance(member.type.strip(), ArrayType) for member in members
        ]
        self._is_plain = self._order == list(range(len(paths))) and not any(
            self._is_text
        )

    def read(self, address: int) -> tuple[Any, ...]:
        """Return the members of the object at ``address``, in the order of the paths.

        :raise FaultError: they cannot be read
        """
        return self._arrange(self._unpack(self._read(address + self.start, self.size)))

    def decode(self, data: bytes, offset: int = 0) -> tuple[Any, ...]:
        """Return the members of the object that begins at ``offset`` in ``data``."""
        return self._arrange(self._unpack_from(data, offset + self.start))

    def _arrange(self, raw: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._is_plain:
            return raw
        return tuple(
            [
                raw[i].partition(b"\0")[0] if text else raw[i]
                for i, text in zip(self._order, self._is_text, strict=True)
            ]
        )


def _code(type_: Type) -> str:
    if isinstance(type_, PointerType):
        return "Q"
    if isinstance(type_, IntType | EnumType):
        return _INT_CODES[type_.size][not type_.is_signed]
    if isinstance(type_, ArrayType) and type_.element.size == 1:
        return f"{type_.size}s"
    raise ValueError(f"no bulk read of {type_.name or type(type_).__name__}")
