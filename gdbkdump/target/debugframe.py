# SPDX-License-Identifier: GPL-2.0-or-later
"""The call frame information of a vmlinux, taken apart to be used in part.

A compiler's CFI (``.debug_frame``, DWARF 4 section 6.4) tells where the registers are
that a C function saved, which ORC does not.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import CorruptError
from gdbkdump.target.cfi import (
    ADVANCE,
    ADVANCE_1,
    ADVANCE_2,
    ADVANCE_4,
    CIE_ID,
    FDE_HEADER,
    HEADER,
    OFFSET,
    USUAL_CIE,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

# Operands of the instructions: u is ULEB128 or SLEB128, b a block, a digit so many
# bytes. DW_CFA_set_loc is left out, as only a linker could write it.
_OPERANDS = {
    0x00: "", ADVANCE_1: "1", ADVANCE_2: "2", ADVANCE_4: "4", 0x05: "uu", 0x06: "u",
    0x07: "u", 0x08: "u", 0x09: "uu", 0x0A: "", 0x0B: "", 0x0C: "uu", 0x0D: "u",
    0x0E: "u", 0x0F: "b", 0x10: "ub", 0x11: "uu", 0x12: "uu", 0x13: "u", 0x14: "uu",
    0x15: "uu", 0x16: "ub", 0x2E: "u",
}  # fmt: skip


class KernelFde(NamedTuple):
    """An FDE that a compiler made, its instructions not yet looked at.

    :param is_usual: its CIE is as all of the kernel's are
    """

    start: int
    end: int
    instructions: bytes
    is_usual: bool


class DebugFrame:
    """The FDEs of a ``.debug_frame`` section, sorted by address."""

    def __init__(self, section: bytes) -> None:
        """Find the FDEs.

        :raise CorruptError: it is damaged
        """
        self._section = section
        self._fdes = sorted(_parse(section))
        self.ranges = [(start, end) for start, end, _, _, _ in self._fdes]

    def find(self, address: int) -> KernelFde | None:
        """Return the FDE around an address, or None."""
        i = bisect_right(self._fdes, address, key=lambda fde: fde[0]) - 1
        if i < 0 or address >= self._fdes[i][1]:
            return None
        start, end, cie, first, last = self._fdes[i]
        return KernelFde(start, end, self._section[first:last], self._is_usual(cie))

    def _is_usual(self, cie: int) -> bool:
        # A version, the augmentation "", and in version 4 the sizes of two things.
        length, _ = HEADER.unpack_from(self._section, cie)
        body = self._section[cie + HEADER.size : cie + 4 + length].rstrip(b"\0")
        return body in (
            b"\1\0" + USUAL_CIE,
            b"\3\0" + USUAL_CIE,
            b"\4\0\x08\0" + USUAL_CIE,
        )


def _parse(section: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    # Start, end, offset of the CIE, first and last offset of the instructions.
    at = 0
    while at + HEADER.size <= len(section):
        length, cie = HEADER.unpack_from(section, at)
        after = at + 4 + length
        if cie != CIE_ID and length:
            if after > len(section) or length < FDE_HEADER.size - 4:
                raise CorruptError(f".debug_frame: an entry of {length} bytes at {at}")
            _, _, start, size = FDE_HEADER.unpack_from(section, at)
            if size:
                yield start, start + size, cie, at + FDE_HEADER.size, after
        at = after


def copy_ops(fde: KernelFde, start: int, end: int) -> list[tuple[int, bytes]]:
    """Return the instructions of an FDE for a part of its range.

    :raise CorruptError: they are damaged
    """
    ops: list[tuple[int, bytes]] = []
    for address, op in _instructions(fde):
        if address >= end:
            break
        ops.append((max(address, start), op))
    return ops


def _instructions(fde: KernelFde) -> Iterator[tuple[int, bytes]]:
    # Each with its address, but for those that only change the address.
    data, at, address = fde.instructions, 0, fde.start
    try:
        while at < len(data):
            after = _instruction_end(data, at)
            if after > len(data):
                raise IndexError
            delta = _advance(data[at:after])
            address += delta or 0
            if delta is None:
                yield address, data[at:after]
            at = after
    except (IndexError, KeyError):
        raise CorruptError(f".debug_frame: the rules of {fde.start:#x}") from None


def _instruction_end(data: bytes, at: int) -> int:
    primary, at = data[at], at + 1
    if primary & 0xC0:
        operands = "u" if primary & 0xC0 == OFFSET else ""
    else:
        operands = _OPERANDS[primary]
    for operand in operands:
        if operand.isdigit():
            at += int(operand)
            continue
        first = at
        while data[at] & 0x80:
            at += 1
        at += 1
        if operand == "b":
            at += _read_uleb(data[first:at])
    return at


def _read_uleb(data: bytes) -> int:
    return sum((byte & 0x7F) << 7 * i for i, byte in enumerate(data))


def _advance(op: bytes) -> int | None:
    if op[0] & 0xC0 == ADVANCE:
        return op[0] & 0x3F
    if op[0] in (ADVANCE_1, ADVANCE_2, ADVANCE_4):
        return int.from_bytes(op[1:], "little")
    return 0 if op[0] == 0 else None
