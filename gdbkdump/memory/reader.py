# SPDX-License-Identifier: GPL-2.0-or-later
"""Scalars, strings and arrays at an address (little-endian as our machines are)."""

from __future__ import annotations

import struct
from array import array
from typing import TYPE_CHECKING

from gdbkdump.errors import CorruptError, FaultError

if TYPE_CHECKING:
    from gdbkdump.memory.base import AddressSpace

_U16 = struct.Struct("<H").unpack
_U32 = struct.Struct("<I").unpack
_I32 = struct.Struct("<i").unpack
_U64 = struct.Struct("<Q").unpack
_PAGE = 4096


class Reader:
    """Typed reads; each raises FaultError where the bytes cannot be had."""

    def __init__(self, memory: AddressSpace) -> None:
        """Read from ``memory``."""
        self.memory = memory
        self.read = memory.read

    def u8(self, address: int) -> int:
        """Return an unsigned byte."""
        return self.read(address, 1)[0]

    def u16(self, address: int) -> int:
        """Return an unsigned 16-bit word."""
        value: int = _U16(self.read(address, 2))[0]
        return value

    def u32(self, address: int) -> int:
        """Return an unsigned 32-bit word."""
        value: int = _U32(self.read(address, 4))[0]
        return value

    def i32(self, address: int) -> int:
        """Return a signed 32-bit word."""
        value: int = _I32(self.read(address, 4))[0]
        return value

    def u64(self, address: int) -> int:
        """Return an unsigned 64-bit word, or a pointer."""
        value: int = _U64(self.read(address, 8))[0]
        return value

    def array(self, address: int, typecode: str, count: int) -> array[int]:
        """Return ``count`` items of an ``array`` type code (``I``, ``i``, ``Q``)."""
        result = array(typecode)
        if count < 0:
            raise CorruptError(f"an array of {count} items at {address:#x}")
        result.frombytes(self.read(address, count * result.itemsize))
        return result

    def c_string(self, address: int, limit: int = 4096) -> bytes:
        """Return the bytes up to the NUL, at most ``limit`` of them."""
        pieces = []
        while limit > 0:
            # Never past the page: the next one may not be there, and need not be.
            step = min(limit, _PAGE - (address & (_PAGE - 1)), 256)
            piece = self.read(address, step)
            text, nul, _ = piece.partition(b"\0")
            pieces.append(text)
            if nul:
                break
            address += step
            limit -= step
        return b"".join(pieces)

    def read_partial(self, address: int, size: int) -> bytes:
        """Return the bytes from ``address`` on up to the first that cannot be read."""
        try:
            return self.read(address, size)
        except FaultError:
            pieces = []
            while size > 0:
                step = min(size, _PAGE - (address & (_PAGE - 1)))
                try:
                    pieces.append(self.read(address, step))
                except FaultError:
                    break
                address += step
                size -= step
            return b"".join(pieces)
