# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory images: bare memory (QEMU's ``pmemsave``, a VMware .vmem), and LiME's.

LiME, a module that writes memory out, puts a header before each range of RAM (its
``lime.h``); bare memory has none, so its first address must be told.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import FaultError, FaultReason, FormatError
from gdbkdump.formats.base import Extent, Note, Saving

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gdbkdump.formats.file import DumpBytes

_EM_X86_64 = 62
_PHYS_LIMIT = 1 << 52
# Magic, version, first and last address, padding.
_LIME = struct.Struct("<IIQQ8x")
LIME_MAGIC = b"EMiL"
# A machine has a dozen ranges of RAM; bounds a damaged file.
_MAX_RANGES = 65536


class _Range(NamedTuple):
    paddr: int
    size: int
    offset: int


class RawDump:
    """Memory from physical addresses on, and nothing that tells of it."""

    is_flat = True
    # No header tells the machine; what is found in memory proves it or does not.
    machine = _EM_X86_64
    excluded = 0
    saving = Saving()

    def __init__(self, file: DumpBytes, format_: str, ranges: Sequence[_Range]) -> None:
        """Take the file as these ranges of memory.

        :raise FormatError: there are none, they overlap or reach beyond all memory
        """
        self.path = file.path
        self.paths: Sequence[Path] = [file.path]
        self.format = format_
        self.notes: Sequence[Note] = []
        self._file = file
        self._ranges = sorted(ranges)
        self._starts = [item.paddr for item in self._ranges]
        if not file.size:
            raise FormatError(f"{file.path} is empty")
        for before, after in pairwise([*self._ranges, _Range(_PHYS_LIMIT, 0, 0)]):
            if before.paddr < 0 or before.paddr + before.size > after.paddr:
                raise FormatError(
                    f"{file.path}: no memory of {before.size:#x} bytes can begin at"
                    f" {before.paddr:#x}"
                )
        self.extents: Sequence[Extent] = [self._extent(each) for each in self._ranges]
        self.missing = sum(extent.missing for extent in self.extents)
        self.is_incomplete = bool(self.missing)
        self.problems = (
            [f"the file is truncated: {self.missing} bytes are missing"]
            if self.missing
            else []
        )

    def _extent(self, item: _Range) -> Extent:
        there = max(0, min(item.size, self._file.size - item.offset))
        lost = item.size - there
        return Extent(None, item.paddr, item.size, there, item.offset, lost)

    def _find(self, paddr: int) -> _Range:
        # The rest of the range from an address on.
        i = bisect_right(self._starts, paddr) - 1
        if i < 0 or paddr >= self._ranges[i].paddr + self._ranges[i].size:
            raise FaultError("physical", paddr, FaultReason.HOLE)
        start, size, offset = self._ranges[i]
        return _Range(paddr, start + size - paddr, offset + paddr - start)

    def read_phys(self, paddr: int, size: int) -> bytes:
        """Return ``size`` bytes of physical memory.

        :raise FaultError: not all of them can be had
        """
        pieces = []
        while size > 0:
            found = self._find(paddr)
            try:
                piece = self._file.pread(min(size, found.size), found.offset)
            except OSError:
                raise FaultError("physical", paddr, FaultReason.IO) from None
            if not piece:
                raise FaultError("physical", paddr, FaultReason.MISSING)
            pieces.append(piece)
            paddr += len(piece)
            size -= len(piece)
        return b"".join(pieces)

    def file_range(self, paddr: int) -> tuple[int, int] | None:
        """Return file offset and bytes that follow there in one run, or None."""
        try:
            found = self._find(paddr)
        except FaultError:
            return None
        place = self._file.span(found.offset)
        return (place[0], min(place[1], found.size)) if place else None

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


def open_bare(file: DumpBytes, base: int) -> RawDump:
    """Take a whole file as memory that begins at ``base``.

    :raise FormatError: it cannot be
    """
    return RawDump(file, "bare memory", [_Range(base, file.size, 0)])


def open_lime(file: DumpBytes) -> RawDump:
    """Open an image of LiME.

    :raise FormatError: it is damaged
    """
    ranges: list[_Range] = []
    at = 0
    while at < file.size and len(ranges) < _MAX_RANGES:
        header = file.read_header(at, _LIME.size)
        if len(header) < _LIME.size:
            raise FormatError(f"{file.path}: a header of LiME is cut, at {at:#x}")
        magic, version, first, last = _LIME.unpack(header)
        if header[:4] != LIME_MAGIC or version != 1 or last < first:
            raise FormatError(
                f"{file.path}: at {at:#x} is no header of LiME (magic {magic:#x},"
                f" version {version})"
            )
        ranges.append(_Range(first, last + 1 - first, at + _LIME.size))
        at += _LIME.size + last + 1 - first
    return RawDump(file, "LiME memory image", ranges)
