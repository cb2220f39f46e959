# SPDX-License-Identifier: GPL-2.0-or-later
"""kdump-compressed files: what makedumpfile writes unless told otherwise, and QEMU.

Mirrors makedumpfile's ``diskdump_mod.h``: a header block, a sub header, two bitmaps (a
page frame is RAM; its page is in the file), a descriptor for each page in the file, the
pages. ``--split`` makes several such files of one dump, each with the pages of a range.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from functools import cached_property
from itertools import pairwise
from operator import add, eq
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import FaultError, FaultReason, FormatError, MissingPackageError
from gdbkdump.formats import page_codecs
from gdbkdump.formats.base import Extent, Note, Saving, silent
from gdbkdump.formats.bitmap import Bitmap, RankedBitmap
from gdbkdump.formats.notes import NT_PRSTATUS, parse_notes
from gdbkdump.formats.pagecache import DEFAULT_BYTES, PageCache

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gdbkdump.formats.base import Report
    from gdbkdump.formats.file import DumpBytes
    from gdbkdump.formats.page_codecs import Unpack

MAGIC = b"KDUMP   "

_HEADER = struct.Struct("<8si390s6x2qIiiIIIIIIi")
# i386 and 32-bit ARM pack the time stamp into half of that.
_HEADER_32 = struct.Struct("<8si390s2x2iIii")
_SUB_HEADER = struct.Struct("<QiiQQ9Q")
_DESCRIPTOR = struct.Struct("<QIIQ")
_NEWEST_VERSION = 6
_INCOMPLETE = 8
_BLOCK_SIZES = tuple(1 << shift for shift in range(12, 17))
_MAX_PFN = 1 << 40  # 52 bits of physical address
_MAX_NOTES = 16 << 20
_MAX_TEXT = 16 << 20
_UTSNAME = 65
_CHUNK = 256  # descriptors that are read at once
_MAX_CHUNKS = 2048  # 12 MiB of them
_NO_FLAG = 1 << 31  # stands for no compression
_TAIL = 4096  # descriptors that tell whether the end is there
_MANY = 1 << 16

# e_machine by utsname.machine and, where that is empty, by the size of NT_PRSTATUS.
_EM_X86_64 = 62
_MACHINES = {b"x86_64": _EM_X86_64, b"aarch64": 183, b"riscv64": 243, b"s390x": 22,
             b"ppc64": 21, b"ppc64le": 21, b"i686": 3}  # fmt: skip
_PRSTATUS_SIZES = {336: _EM_X86_64, 392: 183}


class Header(NamedTuple):
    """What the two headers of a file say.

    :param start_pfn: first page that this file may have; with ``end_pfn`` it bounds all
        pages unless the dump is split
    """

    version: int
    utsname: tuple[bytes, ...]
    time: tuple[int, int]
    status: int
    block_size: int
    sub_blocks: int
    bitmap_blocks: int
    max_mapnr: int
    dump_level: int | None
    is_split: bool
    start_pfn: int
    end_pfn: int
    vmcoreinfo: tuple[int, int]
    notes: tuple[int, int]
    erased: tuple[int, int]

    @property
    def identity(self) -> tuple[object, ...]:
        """What the files of a split dump have in common."""
        return (self.version, self.utsname, self.time, self.block_size, self.max_mapnr,
                self.dump_level)  # fmt: skip


def read_header(file: DumpBytes) -> Header:
    """Return what the headers of a kdump-compressed file say.

    :raise FormatError: they are cut, absurd, or of a machine that is not read
    """
    raw = file.read_header(0, _HEADER.size)
    if len(raw) < _HEADER.size:
        raise FormatError(f"{file.path}: the header is cut")
    (_, version, names, seconds, micros, status, block_size, sub_blocks, bitmap_blocks,
     max_mapnr, *_) = _HEADER.unpack(raw)  # fmt: skip
    _check_kind(file, raw, version, block_size)
    data = file.read_header(block_size, _SUB_HEADER.size)
    sub = _SUB_HEADER.unpack(data.ljust(_SUB_HEADER.size, b"\0"))
    # Each version added fields; those before had other things there.
    since = [value if version >= need else 0 for value, need in zip(
        sub, (1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 6), strict=True)]  # fmt: skip
    (_, level, split, start, end, info, info_size, note, note_size, erased, erased_size,
     start_64, end_64, max_64) = since  # fmt: skip
    if version >= 6:
        start, end, max_mapnr = start_64, end_64, max_64
    if not split:
        start, end = 0, max_mapnr
    _check_sizes(file, sub_blocks, bitmap_blocks, max_mapnr, block_size)
    if not start <= end <= max_mapnr:
        raise FormatError(f"{file.path}: pages {start:#x} to {end:#x} are absurd")
    return Header(
        version, _utsname(names), (seconds, micros), status, block_size, sub_blocks,
        bitmap_blocks, max_mapnr, level if version >= 1 else None, bool(split), start,
        end, (info, info_size), (note, note_size), (erased, erased_size),
    )  # fmt: skip


def _check_kind(file: DumpBytes, raw: bytes, version: int, block_size: int) -> None:
    if 0 <= version <= 64 and block_size in _BLOCK_SIZES:
        return
    if _HEADER_32.unpack_from(raw)[6] in _BLOCK_SIZES:
        raise FormatError(f"{file.path}: dumps of 32-bit kernels are not read")
    if 0 < int.from_bytes(raw[8:12], "big") <= 64:
        raise FormatError(f"{file.path}: dumps of big-endian machines are not read")
    raise FormatError(
        f"{file.path}: header version {version}, blocks of {block_size} bytes"
    )


def _check_sizes(
    file: DumpBytes, sub: int, bitmaps: int, max_mapnr: int, block_size: int
) -> None:
    if not 0 < max_mapnr <= _MAX_PFN:
        raise FormatError(f"{file.path}: {max_mapnr:#x} page frames are absurd")
    need = (max_mapnr + 7) // 8
    if sub < 1 or bitmaps * block_size < need:
        raise FormatError(
            f"{file.path}: {sub} blocks of sub header, {bitmaps} of bitmaps for"
            f" {max_mapnr:#x} page frames"
        )
    if (1 + sub + bitmaps) * block_size > file.size + block_size:
        raise FormatError(f"{file.path} ends within its page bitmaps")


def _utsname(data: bytes) -> tuple[bytes, ...]:
    # makedumpfile before 1.6.9 wrote it four bytes too early for some kernels.
    if data[:2] == b"x\0":
        data = b"Linu" + data
    fields = [data[at : at + _UTSNAME] for at in range(0, 6 * _UTSNAME, _UTSNAME)]
    return tuple(field.partition(b"\0")[0] for field in fields)


def _check_set(headers: Sequence[Header], files: Sequence[DumpBytes]) -> None:
    if len(files) == 1:
        return
    for header in headers:
        if not header.is_split or header.identity != headers[0].identity:
            names = ", ".join(str(file.path) for file in files)
            raise FormatError(f"these files are not of one split dump: {names}")
    for before, after in pairwise(headers):
        if after.start_pfn < before.end_pfn:
            raise FormatError(
                f"two of the files have pages {after.start_pfn:#x} and up: was one"
                " named twice?"
            )


def _machine(utsname: tuple[bytes, ...], notes: Sequence[Note]) -> int:
    # QEMU leaves the names empty.
    told = _MACHINES.get(utsname[4])
    if told is not None:
        return told
    sizes = [len(note.desc) for note in notes if note.type == NT_PRSTATUS]
    # What is read through it will tell whether the last guess holds.
    return _PRSTATUS_SIZES.get(sizes[0] if sizes else 0, _EM_X86_64)


class _Part:
    # One file: its headers, and where its pages are.
    def __init__(self, file: DumpBytes, header: Header, report: Report) -> None:
        self.file = file
        self.header = header
        size = header.block_size
        self.bitmaps = (1 + header.sub_blocks) * size
        half = header.bitmap_blocks * size // 2
        # diskdump's own files had one bitmap alone.
        self.has_two = half * 8 >= header.max_mapnr
        self.dumped = RankedBitmap(
            file, self.bitmaps + half * self.has_two, header.max_mapnr,
            header.start_pfn, header.end_pfn, report,
        )  # fmt: skip
        self._table = self.bitmaps + header.bitmap_blocks * size
        # Each file of a split dump has room for the descriptors of all.
        self._room = self.dumped.count() if header.is_split else self.dumped.total
        self.data = self._table + self._room * _DESCRIPTOR.size
        # What is beyond is no place of a page, however much of the file is cut off.
        self.limit = self.data + (self.dumped.total + 1) * size
        self._chunks: dict[int, tuple[bytes, frozenset[int]]] = {}
        file.seal(self.data)
        self._check_bitmaps()
        self.is_cut = bool(file.is_cut or self._is_cut())

    def _check_bitmaps(self) -> None:
        # One wrong bit, and each page after it is taken for another one.
        is_right = self._fits_count() and self._fits_range()
        if not is_right or (self.has_bitmaps() and not self._fits_ram()):
            raise FormatError(
                f"{self.file.path}: its page bitmaps and descriptors contradict each"
                " other"
            )

    def _fits_count(self) -> bool:
        # The first page follows the last descriptor, or a page of zeros that nobody
        # needed does. Were it whole descriptors away, their number would be wrong; any
        # other place is that of a damaged descriptor, or of a writer unknown to us.
        raw = self._read(0, min(self.dumped.total, _CHUNK))
        gaps = {
            offset - self.data for offset, *_ in _DESCRIPTOR.iter_unpack(raw) if offset
        }
        if not gaps or gaps & {0, self.header.block_size}:
            return True
        first = min((gap for gap in gaps if gap >= 0), default=0)
        off_by = [gap for gap in (*gaps, first) if gap <= first]
        return all(gap % _DESCRIPTOR.size or not gap for gap in off_by)

    def _fits_range(self) -> bool:
        # Behind the descriptors of its own pages a file of a split dump has zeros.
        if self.dumped.total >= self._room:
            return True
        return not any(self._read(self.dumped.total, 1))

    def _fits_ram(self) -> bool:
        return self.dumped.is_within(self.ram())

    def has_bitmaps(self) -> bool:
        """Tell whether all of the bitmaps was written, but for what pads them."""
        need = (self.header.max_mapnr + 7) // 8
        half = (self._table - self.bitmaps) // 2
        holds = self.file.holds
        return holds(self.bitmaps, need) and (
            not self.has_two or holds(self.bitmaps + half, need)
        )

    def has_bitmaps_of(self, other: _Part) -> bool:
        """Tell whether they are the same, as far as both files have them."""
        if not (self.has_bitmaps() and other.has_bitmaps()):
            return True
        pairs = ((part.ram(), part.dumped) for part in (self, other))
        return all(one.equals(same) for one, same in zip(*pairs, strict=True))

    def ram(self) -> Bitmap:
        """Return the first bitmap, or the only one."""
        return Bitmap(self.file, self.bitmaps, self.header.max_mapnr)

    def _is_cut(self) -> bool:
        # Pages and their descriptors are written in order, so the last ones tell: if
        # they are beyond the end, or were never written.
        count = min(self.dumped.total, _TAIL)
        raw = self._read(self.dumped.total - count, count)
        if len(raw) < count * _DESCRIPTOR.size:
            return True
        return any(
            not at or self.file.size < at + length <= self.limit
            for at, length, *_ in _DESCRIPTOR.iter_unpack(raw)
        )

    def _read(self, first: int, count: int) -> bytes:
        # Whole descriptors only.
        at = self._table + first * _DESCRIPTOR.size
        size = max(0, min(count * _DESCRIPTOR.size, self.file.size - at))
        raw = self.file.pread(size, at) if size else b""
        return raw[: len(raw) // _DESCRIPTOR.size * _DESCRIPTOR.size]

    def descriptor(self, index: int) -> tuple[int, int, int] | None:
        """Return offset, size and flags of a page, None if the file ends before it."""
        number, place = divmod(index, _CHUNK)
        chunk = self._chunks.get(number)
        if chunk is None:
            if len(self._chunks) >= _MAX_CHUNKS:
                self._chunks.clear()
            count = min(_CHUNK, self.dumped.total - number * _CHUNK)
            raw = self._read(number * _CHUNK, count)
            chunk = self._chunks[number] = raw, _displaced(raw, self.data)
        raw, displaced = chunk
        at = place * _DESCRIPTOR.size
        if at >= len(raw):
            return None
        offset, size, flags, _ = _DESCRIPTOR.unpack_from(raw, at)
        return offset, size, _NO_FLAG if place in displaced else flags

    def lost(self, report: Report) -> int:
        """Return how many of the pages that should be in the file are not."""
        total = self.dumped.total
        there = 0
        for first in range(0, total, _MANY):
            report("counting lost pages", first, total)
            there += self._count(self._read(first, min(_MANY, total - first)))
        return total - there

    def _count(self, raw: bytes) -> int:
        # How many of these descriptors are of pages that are in the file.
        if raw == bytes(len(raw)):
            return 0
        words = array("Q", raw)
        offsets = words[0::3]
        if self.file.is_cut:
            # Of a stream any part may be lost.
            return sum(
                at > 0 and self.file.holds(at, size & 0xFFFFFFFF)
                for at, size in zip(offsets, words[1::3], strict=True)
            )
        there = len(offsets) - offsets.count(0)
        if max(offsets) + self.header.block_size > self.file.size:
            there -= sum(
                at > 0 and at + (size & 0xFFFFFFFF) > self.file.size
                for at, size in zip(offsets, words[1::3], strict=True)
            )
        return there


def _displaced(raw: bytes, zeros: int) -> frozenset[int]:
    # Pages lie one behind the other, but for the one at ``zeros`` that many share. One
    # that fits neither the page before it nor the one after it has a damaged offset.
    if not raw:
        return frozenset()
    offsets, sizes, *_ = zip(*_DESCRIPTOR.iter_unpack(raw), strict=True)
    if all(map(eq, offsets[1:], map(add, offsets, sizes))):
        return frozenset()
    pages = [
        (place, offset, offset + size)
        for place, (offset, size) in enumerate(zip(offsets, sizes, strict=True))
        if offset and offset != zeros
    ]
    fits = [before[2] == after[1] for before, after in pairwise(pages)]
    if sum(fits) * 2 < len(fits):
        return frozenset()  # a writer with ways of its own
    left, right = fits[:1] + fits, fits + fits[-1:]
    return frozenset(
        page[0]
        for page, fits_left, fits_right in zip(pages, left, right, strict=bool(fits))
        if not (fits_left or fits_right)
    )


class DiskDump:
    """A kdump-compressed dump in one file, or in several (``makedumpfile --split``).

    :ivar problems: what is wrong with the files, one line each
    """

    is_flat = False

    def __init__(
        self,
        files: Sequence[DumpBytes],
        report: Report = silent,
        cache_bytes: int = DEFAULT_BYTES,
    ) -> None:
        """Read headers and count bitmaps; pages are unpacked when they are wanted.

        :param files: all of one split set, in any order
        :raise FormatError: headers contradict themselves or each other
        """
        headers = sorted(
            ((read_header(file), i) for i, file in enumerate(files)),
            key=lambda item: (item[0].start_pfn, item[0].end_pfn),
        )
        self.path = files[0].path
        self.paths: Sequence[Path] = [file.path for file in files]
        self.format = f"{files[0].kind}kdump-compressed"
        self._files = files
        self._report = report
        self.problems: list[str] = []
        first = headers[0][0]
        _check_set([header for header, _ in headers], files)
        self._parts = [_Part(files[i], header, report) for header, i in headers]
        self._check_bitmaps()
        self._starts = [part.header.start_pfn for part in self._parts]
        self._max_mapnr = first.max_mapnr
        self._block_size = first.block_size
        self._shift = first.block_size.bit_length() - 1
        self._mask = first.block_size - 1
        self._cache = PageCache(first.block_size, cache_bytes)
        self._codecs: dict[int, Unpack] = {}
        self._ram = self._parts[0].ram()
        self.notes: Sequence[Note] = self._read_notes()
        self.machine = _machine(first.utsname, self.notes)
        self.saving = self._saving(first)
        self.is_incomplete = False
        self._tell_problems()

    def _check_bitmaps(self) -> None:
        for part in self._parts[1:]:
            if not part.has_bitmaps_of(self._parts[0]):
                raise FormatError(
                    f"the page bitmaps of {self._parts[0].file.path} and"
                    f" {part.file.path} differ: one is damaged, or they are not of one"
                    " split dump"
                )

    def _read_notes(self) -> list[Note]:
        # Every file of a set has them; one suffices.
        header = self._parts[0].header
        notes = list(parse_notes(self._text(header.notes, _MAX_NOTES), self.problems))
        info = self._text(header.vmcoreinfo, _MAX_TEXT)
        if info and not any(note.name == b"VMCOREINFO" for note in notes):
            cut = len(info) < header.vmcoreinfo[1]
            notes.append(Note(b"VMCOREINFO", 0, info, cut))
        return notes

    def _text(self, place: tuple[int, int], limit: int) -> bytes:
        offset, size = place
        if not offset or not size:
            return b""
        data = self._parts[0].file.read_header(offset, min(size, limit))
        if len(data) < size:
            self.problems.append(f"{size - len(data)} bytes of header data are cut")
        return data

    def _saving(self, header: Header) -> Saving:
        erased = self._text(header.erased, _MAX_TEXT).rstrip(b"\0\n")
        return Saving(
            header.version, header.dump_level, page_codecs.names(header.status),
            header.utsname, tuple(erased.split(b"\n")) if erased else (),
        )  # fmt: skip

    def _tell_problems(self) -> None:
        header = self._parts[0].header
        for part in self._parts:
            self.problems += part.file.problems
            if part.file.is_cut and not part.has_bitmaps():
                self.problems.append(
                    "a part of the page bitmaps is lost: its pages count as no RAM"
                )
        if header.version > _NEWEST_VERSION:
            self.problems.append(
                f"its header is of version {header.version}, newer than what is known"
            )
        for start, end in self._gaps():
            self.problems.append(
                f"no file with pages {start:#x} to {end:#x} was given: name all files"
                " of the split dump"
            )
        stopped = any(part.header.status & _INCOMPLETE for part in self._parts)
        if stopped or any(part.is_cut for part in self._parts):
            self.is_incomplete = True
            why = "makedumpfile could not write all" if stopped else "its end is cut"
            pages, lost = sum(p.dumped.total for p in self._parts), self._lost
            self.problems.append(
                f"the dump is incomplete ({why}): {lost} of {pages} pages are lost"
            )
        for flag in page_codecs.CODECS:
            if header.status & flag:
                self._announce(flag)

    @cached_property
    def _lost(self) -> int:
        return sum(part.lost(self._report) for part in self._parts)

    def _gaps(self) -> list[tuple[int, int]]:
        gaps = []
        at = 0
        for part in self._parts:
            if part.header.start_pfn > at:
                gaps.append((at, part.header.start_pfn))
            at = max(at, part.header.end_pfn)
        if at < self._max_mapnr:
            gaps.append((at, self._max_mapnr))
        return gaps

    def _announce(self, flag: int) -> None:
        codec = page_codecs.CODECS[flag]
        try:
            self._codecs[flag], is_fast = page_codecs.find_codec(flag)
        except MissingPackageError as error:
            self.problems.append(f"{codec.name} pages cannot be read: {error}")
            return
        if not is_fast:
            self.problems.append(
                f"{codec.name} pages are unpacked in plain Python, ten times slower:"
                f" install {codec.debian} (pip install {codec.pip})"
            )

    def _find_codec(self, flag: int) -> Unpack:
        unpack = self._codecs.get(flag)
        if unpack is None:
            unpack = self._codecs[flag] = page_codecs.find_codec(flag)[0]
        return unpack

    @cached_property
    def extents(self) -> Sequence[Extent]:
        """Runs of RAM, by the first bitmap; pages in them may be excluded."""
        return self._ram.extents(self._block_size)

    @property
    def missing(self) -> int:
        """Bytes of pages that should be in the files and are not."""
        return self._lost * self._block_size if self.is_incomplete else 0

    @cached_property
    def excluded(self) -> int:
        """Bytes of memory that were filtered out when the dump was saved."""
        if not self._parts[0].has_two:
            return 0
        first = self._parts[0]
        header = first.header
        offset = first.bitmaps + header.bitmap_blocks * header.block_size // 2
        dumped = Bitmap(first.file, offset, self._max_mapnr)
        return max(0, self._ram.count() - dumped.count()) * self._block_size

    def read_phys(self, paddr: int, size: int) -> bytes:
        """Return ``size`` bytes of physical memory.

        :raise FaultError: not all of them can be had
        :raise MissingPackageError: what unpacks a page is not installed
        """
        page_size = self._block_size
        pfn, start = paddr >> self._shift, paddr & self._mask
        page = self._cache.get(pfn) or self._load(pfn, paddr)
        if start + size <= page_size:
            return page[start : start + size]
        pieces = [page[start:]]
        size -= page_size - start
        while size > 0:
            pfn += 1
            page = self._cache.get(pfn) or self._load(pfn, pfn << self._shift)
            pieces.append(page[:size])
            size -= page_size
        return b"".join(pieces)

    def _load(self, pfn: int, paddr: int) -> bytes:
        try:
            page = self._read_page(pfn)
        except (OSError, FormatError):
            raise FaultError("physical", paddr, FaultReason.IO) from None
        if isinstance(page, FaultReason):
            raise FaultError("physical", paddr, page)
        self._cache.put(pfn, page)
        return page

    def _read_page(self, pfn: int) -> bytes | FaultReason:
        part = self._parts[max(0, bisect_right(self._starts, pfn) - 1)]
        index = part.dumped.find(pfn)
        if index is None:
            return self._why_not(part, pfn)
        found = part.descriptor(index)
        if found is None or not found[0]:
            return FaultReason.MISSING
        offset, size, flags = found
        if offset < part.data or offset + size > part.limit or size > self._block_size:
            return FaultReason.CORRUPT
        # All of it may be beyond the end.
        data = part.file.pread(size, offset)
        if len(data) < size:
            return FaultReason.MISSING
        if not flags:
            return data if size == self._block_size else FaultReason.CORRUPT
        if flags not in page_codecs.CODECS:
            return FaultReason.CORRUPT
        try:
            return self._find_codec(flags)(data, self._block_size)
        except ValueError:
            return FaultReason.CORRUPT

    def _why_not(self, part: _Part, pfn: int) -> FaultReason:
        if not self._ram.test(pfn):
            return FaultReason.HOLE
        if not part.header.start_pfn <= pfn < part.header.end_pfn:
            return FaultReason.SPLIT
        return FaultReason.EXCLUDED

    def file_range(self, paddr: int) -> tuple[int, int] | None:
        """Return None: pages are packed, and found through descriptors."""
        return None

    def close(self) -> None:
        """Give the files back."""
        for file in self._files:
            file.close()
