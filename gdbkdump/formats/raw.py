# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory images: bare memory (QEMU's ``pmemsave``, a VMware .vmem), and LiME's.

LiME, a module that writes memory out, puts a header before each range of RAM (its
``lime.h``); bare memory has none, so its first address must be told.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import FormatError
from gdbkdump.formats.base import Extent, Note, Saving
from gdbkdump.formats.flat import FlatDump

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gdbkdump.formats.base import Report
    from gdbkdump.formats.file import DumpBytes

_EM_X86_64 = 62
_PHYS_LIMIT = 1 << 52
# Magic, version, first and last address, padding.
_LIME = struct.Struct("<IIQQ8x")
LIME_MAGIC = b"EMiL"
# A machine has a dozen ranges of RAM; bounds a damaged file.
_MAX_RANGES = 65536
_CHUNK = 4 << 20


class _Range(NamedTuple):
    paddr: int
    size: int
    offset: int


class RawDump(FlatDump):
    """Memory from physical addresses on, and nothing that tells of it."""

    # No header tells the machine; what is found in memory proves it or does not.
    machine = _EM_X86_64
    excluded = 0
    saving = Saving()

    def __init__(self, file: DumpBytes, format_: str, ranges: Sequence[_Range]) -> None:
        """Take the file as these ranges of memory.

        :raise FormatError: there are none, they overlap or reach beyond all memory
        """
        super().__init__(file)
        self.path = file.path
        self.paths: Sequence[Path] = [file.path]
        self.format = format_
        self.notes: Sequence[Note] = []
        ranges = sorted(ranges)
        if not file.size:
            raise FormatError(f"{file.path} is empty")
        for before, after in pairwise([*ranges, _Range(_PHYS_LIMIT, 0, 0)]):
            if before.paddr < 0 or before.paddr + before.size > after.paddr:
                raise FormatError(
                    f"{file.path}: no memory of {before.size:#x} bytes can begin at"
                    f" {before.paddr:#x}"
                )
        self._index(
            (paddr, paddr + size, offset - paddr) for paddr, size, offset in ranges
        )
        self.extents: Sequence[Extent] = [self._extent(each) for each in ranges]
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


def open_bare(file: DumpBytes, base: int) -> RawDump:
    """Take a whole file as memory that begins at ``base``.

    :raise FormatError: it cannot be
    """
    return RawDump(file, "bare memory", [_Range(base, file.size, 0)])


def open_lime(file: DumpBytes, report: Report) -> RawDump:
    """Open an image of LiME.

    :raise FormatError: it is damaged
    """
    ranges: list[_Range] = []
    at = 0
    while at < file.size:
        if len(ranges) == _MAX_RANGES:
            raise FormatError(f"{file.path}: more than {_MAX_RANGES} ranges of memory")
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
    if at > file.size:
        _check_last(file, ranges[-1], report)
    return RawDump(file, "LiME memory image", ranges)


def _check_last(file: DumpBytes, last: _Range, report: Report) -> None:
    # Either the file is cut, or the range's end is damaged, and others are behind it.
    # Those begin at higher addresses; what memory has of headers is of earlier ones.
    start = LIME_MAGIC + (1).to_bytes(4, "little")
    for at in range(last.offset, file.size, _CHUNK):
        report("looking for the last header of LiME", at, file.size)
        data = file.read_header(at, _CHUNK + _LIME.size)
        place = data.find(start)
        while 0 <= place <= len(data) - _LIME.size:
            _, _, first, end = _LIME.unpack_from(data, place)
            if last.paddr < first <= end < _PHYS_LIMIT:
                raise FormatError(
                    f"{file.path}: the header of LiME at {last.offset - _LIME.size:#x}"
                    f" is damaged, as there is another one at {at + place:#x}"
                )
            place = data.find(start, place + 1)
