# SPDX-License-Identifier: GPL-2.0-or-later
"""Objects of C types with all their members, as data and as gdb would print them."""

from __future__ import annotations

import struct
from itertools import groupby
from typing import TYPE_CHECKING, Any

from gdbkdump.debuginfo.layout import (
    ArrayType,
    EnumType,
    IntType,
    PointerType,
    StructType,
    Type,
    VoidType,
)
from gdbkdump.errors import CorruptError, FaultError
from gdbkdump.kernel.object import load_bits
from gdbkdump.kernel.typespec import Place
from gdbkdump.memory.virtual import MASK64

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.kernel.base import Kernel

_MAX_DEPTH = 64
# gdb's "print elements" and "print repeats".
_MAX_ELEMENTS = 200
_REPEATS = 10
# Elements of one array in data: beyond any array inside a kernel struct.
_MAX_DATA = 1 << 16
_MAX_STRING = 200
_WIDTH = 88
# Structs are read at once up to this; what is larger, member by member.
_MAX_BLOCK = 1 << 20
_FLOATS = {4: "<f", 8: "<d"}


class Fault:
    """A value that cannot be read, and why."""

    def __init__(self, fault: FaultError) -> None:
        """Keep the reason."""
        self.reason = fault.reason


class CString(bytes):
    """Characters up to the NUL, without it."""

    __slots__ = ()


class Pointer(int):
    """The value of a pointer; ``target`` is what it points to."""

    target: Type

    def __new__(cls, value: int, target: Type) -> Pointer:
        """Make a pointer."""
        self = super().__new__(cls, value)
        self.target = target
        return self


class EnumValue(int):
    """The value of an enum; ``name`` is its enumerator, or None."""

    name: str | None

    def __new__(cls, value: int, name: str | None) -> EnumValue:
        """Make a value."""
        self = super().__new__(cls, value)
        self.name = name
        return self


class Char(int):
    """The value of a ``char``."""


class Negative(int):
    """A negative integer of ``bits`` bits."""

    bits: int

    def __new__(cls, value: int, bits: int) -> Negative:
        """Make a number."""
        self = super().__new__(cls, value)
        self.bits = bits
        return self


class _Block:
    # The bytes of one object, read once; each piece is read alone where that fails.
    def __init__(self, kernel: Kernel, address: int, size: int) -> None:
        self._read = kernel.reader.read
        self._start = address
        self._data = b""
        if 0 < size <= _MAX_BLOCK:
            try:
                self._data = self._read(address, size)
            except FaultError:
                # Of what lies at a wrong address neither end can be read.
                if not any(
                    self._is_there(end) for end in (address, address + size - 1)
                ):
                    raise

    def _is_there(self, address: int) -> bool:
        try:
            return bool(self._read(address, 1))
        except FaultError:
            return False

    def read(self, address: int, size: int) -> bytes:
        at = address - self._start
        if at >= 0 and at + size <= len(self._data):
            return self._data[at : at + size]
        return self._read(address, size)


def decode(kernel: Kernel, place: Place) -> Any:
    """Return the value of an object: dict, list, or one of the classes above.

    A struct is a dict by member names, those of anonymous members under the key ``""``
    as a list of dicts, in their order; ``int``, ``bool``, ``float`` are themselves.

    :raise FaultError: nothing of it can be read
    """
    block = _Block(kernel, place.address, place.type.size)
    value = _decode(block, place, 0)
    if isinstance(value, Fault):
        raise FaultError("virtual", place.address & MASK64, value.reason)
    return value


def _decode(block: _Block, place: Place, depth: int) -> Any:
    type_ = place.type.strip()
    if depth > _MAX_DEPTH:
        raise CorruptError(f"{type_.name} holds itself")
    if isinstance(type_, StructType):
        return _decode_struct(block, type_, place.address, depth)
    if isinstance(type_, ArrayType):
        return _decode_array(block, type_, place.address, depth)
    try:
        return _decode_scalar(block, type_, place)
    except FaultError as fault:
        return Fault(fault)


def _decode_struct(
    block: _Block, type_: StructType, address: int, depth: int
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for member in type_.members:
        place = Place(member.type, address + member.offset, member)
        value = _decode(block, place, depth + 1)
        if member.name:
            values[member.name] = value
        else:
            values.setdefault("", []).append(value)
    return values


def _decode_array(block: _Block, type_: ArrayType, address: int, depth: int) -> Any:
    element = type_.element.strip()
    if not type_.count:
        # How many a flexible array has, no type tells: where it begins, as gdb says.
        return Pointer(address, element)
    try:
        if isinstance(element, IntType) and element.is_char:
            return _characters(element, block.read(address, type_.count))
    except FaultError as fault:
        return Fault(fault)
    size = element.size
    return [
        _decode(block, Place(element, address + i * size), depth + 1)
        for i in range(min(type_.count, _MAX_DATA))
    ]


def _characters(element: IntType, raw: bytes) -> CString | list[int]:
    text = raw.partition(b"\0")[0]
    # unsigned char is text as often as it is a byte: text if all of it could be.
    if element.name in ("char", "signed char"):
        return CString(text)
    rest = raw[len(text) :]
    if (
        text
        and not rest.strip(b"\0")
        and text.isascii()
        and text.decode().isprintable()
    ):
        return CString(text)
    return list(raw)


def _decode_scalar(block: _Block, type_: Type, place: Place) -> Any:
    if isinstance(type_, PointerType):
        raw = block.read(place.address, 8)
        return Pointer(int.from_bytes(raw, "little"), type_.target)
    if not isinstance(type_, IntType | EnumType):
        what = "void" if isinstance(type_, VoidType) else type_.name or "function"
        raise CorruptError(f"a {what} at {place.address:#x} has no value")
    if place.member and place.member.bit_size:
        value = load_bits(block.read, type_, place.address, place.member)
    else:
        raw = block.read(place.address, type_.size)
        if isinstance(type_, IntType) and type_.is_float and type_.size in _FLOATS:
            return struct.unpack(_FLOATS[type_.size], raw)[0]
        value = int.from_bytes(raw, "little", signed=type_.is_signed)
    if isinstance(type_, EnumType):
        return EnumValue(value, type_.name_of(value))
    if value < 0:
        bits = place.member.bit_size if place.member else 0
        return Negative(value, bits or 8 * type_.size)
    if type_.is_bool and value in (0, 1):
        return bool(value)
    return Char(value) if type_.is_char and type_.name == "char" else value


class Printer:
    """Values as lines of text.

    :param is_hex: whether integers are shown in hex
    """

    def __init__(self, kernel: Kernel, *, is_hex: bool = False) -> None:
        """Take the kernel whose symbols and strings pointers show."""
        self._kernel = kernel
        self._is_hex = is_hex

    def lines(self, value: Any) -> list[str]:
        """Return the lines of a value; a struct's begin with ``{``, end with ``}``."""
        if isinstance(value, dict):
            return self._struct(value)
        if isinstance(value, list):
            return self._array(value)
        return [self._scalar(value)]

    def _struct(self, value: dict[str, Any]) -> list[str]:
        parts = []
        for name, member in value.items():
            if name:
                parts.append(_named(name, self.lines(member)))
            else:
                parts += [self.lines(each) for each in member]
        return _braced(parts)

    def _array(self, value: list[Any]) -> list[str]:
        parts = [self.lines(element) for element in value[:_MAX_ELEMENTS]]
        more = len(value) - len(parts)
        if all(len(part) == 1 for part in parts):
            return _filled([part[0] for part in parts], more)
        # Equal neighbours are shown once, as C designates a range.
        runs = []
        start = 0
        for part, group in groupby(parts):
            end = start + len(list(group))
            index = f"[{start}]" if end == start + 1 else f"[{start} ... {end - 1}]"
            runs.append(_named(index, part))
            start = end
        if more:
            runs.append([f"... {more} more"])
        return _braced(runs)

    def _scalar(self, value: Any) -> str:
        if isinstance(value, Fault):
            return f"<unreadable: {value.reason.value}>"
        if isinstance(value, CString):
            return f'"{_quoted(value)}"'
        if isinstance(value, Pointer):
            return self._pointer(value)
        if isinstance(value, EnumValue) and value.name:
            return value.name
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, float):
            return repr(value)
        text = str(int(value))
        if self._is_hex:
            # Two's complement, as wide as the type.
            mask = (1 << value.bits) - 1 if isinstance(value, Negative) else MASK64
            text = f"{value & mask:#x}"
        if isinstance(value, Char) and 32 <= value < 127:
            text += f" '{chr(value)}'"
        return text

    def _pointer(self, value: Pointer) -> str:
        text = f"{int(value):#x}"
        symbol = self._kernel.debuginfo.symbol_at(value)
        if symbol:
            text += f" <{symbol}>"
        target = value.target.strip()
        if value and isinstance(target, IntType) and target.name == "char":
            text += self._string(value)
        return text

    def _string(self, address: int) -> str:
        try:
            raw = self._kernel.reader.c_string(address, _MAX_STRING)
        except FaultError:
            return ""
        return f' "{_quoted(raw)}"' + ("..." if len(raw) == _MAX_STRING else "")


def _named(name: str, lines: list[str]) -> list[str]:
    return [f"{name} = {lines[0]}", *lines[1:]]


def _braced(parts: list[list[str]]) -> list[str]:
    if not parts:
        return ["{}"]
    lines = ["{"]
    for i, part in enumerate(parts):
        comma = "," if i + 1 < len(parts) else ""
        lines += [f"  {line}" for line in part[:-1]]
        lines.append(f"  {part[-1]}{comma}")
    return [*lines, "}"]


def _filled(words: list[str], more: int) -> list[str]:
    # Scalars on as few lines as hold them; runs of equals as gdb shortens them.
    items: list[str] = []
    for word, group in groupby(words):
        count = len(list(group))
        items += (
            [word] * count if count < _REPEATS else [f"{word} <repeats {count} times>"]
        )
    if more:
        items.append(f"... {more} more")
    if sum(len(item) + 2 for item in items) <= _WIDTH:
        return ["{" + ", ".join(items) + "}"]
    lines, line = ["{"], ""
    for item in items:
        if line and len(line) + len(item) + 2 > _WIDTH:
            lines.append(f"  {line},")
            line = ""
        line = f"{line}, {item}" if line else item
    return [*lines, f"  {line}", "}"]


def _quoted(raw: bytes) -> str:
    text = raw.decode("utf-8", "backslashreplace")
    return text.replace('"', '\\"')


def flatten(value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the members of a decoded struct, anonymous ones flattened into it."""
    for name, member in value.items():
        if name:
            yield name, member
        else:
            for each in member:
                if isinstance(each, dict):
                    yield from flatten(each)
