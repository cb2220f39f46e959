# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels made by hand: memory in a dictionary, types built in place."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, cast

from gdbkdump.arch.x86_64 import X86_64
from gdbkdump.debuginfo.base import DebugInfo
from gdbkdump.debuginfo.kallsyms import Symbol
from gdbkdump.debuginfo.layout import (
    VOID,
    ArrayType,
    EnumType,
    IntType,
    Member,
    PointerType,
    StructType,
    Type,
    TypedefType,
)
from gdbkdump.errors import FaultError, FaultReason, TypeNotFoundError
from gdbkdump.kernel.base import Kernel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gdbkdump.debuginfo.base import TypeSource
    from gdbkdump.memory.virtual import MappedMemory

_PAGE = 4096

CHAR = IntType("char", 1, True)
U8 = IntType("unsigned char", 1, False)
S32 = IntType("int", 4, True)
U32 = IntType("unsigned int", 4, False)
U64 = IntType("long unsigned int", 8, False)
BOOL = IntType("_Bool", 1, False, is_bool=True)


def pointer(target: Type = VOID) -> PointerType:
    """Return a pointer type."""
    return PointerType(lambda: target)


def array(element: Type, count: int) -> ArrayType:
    """Return an array type."""
    return ArrayType(lambda: element, count)


def typedef(name: str, target: Type) -> TypedefType:
    """Return a typedef."""
    return TypedefType(name, lambda: target)


def enum(name: str, **values: int) -> EnumType:
    """Return an enum of 4 bytes."""
    return EnumType(name, 4, False, values)


def member(
    name: str, offset: int, type_: Type, bits: tuple[int, int] = (0, 0)
) -> Member:
    """Return a member.

    :param bits: first bit and number of bits of a bit field
    """
    return Member(name, offset * 8 + bits[0], bits[1], lambda: type_)


def structure(
    name: str, size: int, *members: Member, keyword: str = "struct"
) -> StructType:
    """Return a struct or union."""
    return StructType(keyword, name, size, members)


class DictMemory:
    """Pages by number; what was never put there is not mapped."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def put(self, address: int, data: bytes) -> int:
        """Put bytes at an address; what shares a page with them reads as zeros."""
        for i in range(len(data)):
            at = address + i
            page = self._pages.setdefault(at // _PAGE, bytearray(_PAGE))
            page[at % _PAGE] = data[i]
        return address

    def words(self, address: int, *values: int) -> int:
        """Put 64-bit words at an address."""
        return self.put(address, struct.pack(f"<{len(values)}Q", *values))

    def read(self, address: int, size: int) -> bytes:
        """Return bytes, or raise FaultError at the first that is missing."""
        pieces = []
        while size > 0:
            page = self._pages.get(address // _PAGE)
            if page is None:
                raise FaultError("virtual", address, FaultReason.UNMAPPED)
            start = address % _PAGE
            piece = bytes(page[start : start + size])
            pieces.append(piece)
            address += len(piece)
            size -= len(piece)
        return b"".join(pieces)


class FakeTypes:
    """Types by keyword and name."""

    def __init__(self, types: Sequence[Type]) -> None:
        self._types = {(_keyword(type_), type_.name): type_ for type_ in types}

    def find(self, keyword: str, name: str) -> Type:
        """Return a type."""
        try:
            return self._types[keyword, name]
        except KeyError:
            raise TypeNotFoundError(f"{keyword} {name}".lstrip()) from None

    def names(self, keyword: str) -> Iterator[str]:
        """Yield the names of a keyword."""
        return (name for word, name in self._types if word == keyword)


def _keyword(type_: Type) -> str:
    if isinstance(type_, StructType):
        return type_.keyword
    return "enum" if isinstance(type_, EnumType) else ""


class FakeSymbols:
    """Symbols by name."""

    def __init__(self, symbols: Mapping[str, int]) -> None:
        self._symbols = sorted(
            (Symbol(name, address, "D") for name, address in symbols.items()),
            key=lambda symbol: symbol.address,
        )

    def find(self, name: str) -> list[Symbol]:
        """Return the symbols of a name."""
        return [symbol for symbol in self._symbols if symbol.name == name]

    def at(self, address: int) -> tuple[Symbol, int | None] | None:
        """Return the symbol at or before an address, and where the next one begins."""
        before = [symbol for symbol in self._symbols if symbol.address <= address]
        after = [symbol.address for symbol in self._symbols if symbol.address > address]
        return (before[-1], after[0] if after else None) if before else None

    def __iter__(self) -> Iterator[Symbol]:
        """Yield all."""
        return iter(self._symbols)


def fake_kernel(
    memory: DictMemory,
    types: Sequence[Type] | TypeSource = (),
    symbols: Mapping[str, int] | None = None,
    image: tuple[int, int] = (0, 0),
) -> Kernel:
    """Return a kernel over memory and types made by hand."""
    source = FakeTypes(types) if isinstance(types, list | tuple) else types
    debuginfo = DebugInfo(
        cast("TypeSource", source), FakeSymbols(symbols or {}), image, lambda: ()
    )
    return Kernel(cast("MappedMemory", memory), debuginfo, X86_64(), None)
