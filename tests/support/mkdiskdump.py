# SPDX-License-Identifier: GPL-2.0-or-later
"""A writer of kdump-compressed files and of flattened streams.

For what makedumpfile here does not write: each header version, each compression, lost
pages, odd block sizes, records in any order; and for fields that are wrong.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

UTSNAME = (b"Linux", b"host", b"6.1.0-test", b"#1 SMP", b"x86_64", b"(none)")
LOST = None


def zlib_page(page: bytes) -> tuple[int, bytes]:
    """Return flag and data of a page packed by zlib."""
    return 1, zlib.compress(page, 1)


def raw_page(page: bytes) -> tuple[int, bytes]:
    """Return flag and data of a page as it is."""
    return 0, page


@dataclass
class KdumpFile:
    """A kdump-compressed file in the making; fields that a test does not set are right.

    :param pages: page frame number to contents, to ``LOST`` for a descriptor of zeros,
        or to (flag, data) as they shall be in the file
    :param excluded: page frames that are RAM and not in the file
    :param split: first page of the file and the one after its last
    :param descriptors: index to (offset, size, flags) instead of the right ones
    :param fields: byte offset of a header field, its ``struct`` code and value
    """

    pages: Mapping[int, bytes | tuple[int, bytes] | None]
    excluded: Iterable[int] = ()
    version: int = 6
    max_mapnr: int = 64
    block_size: int = 4096
    status: int = 1
    dump_level: int = 31
    split: tuple[int, int] | None = None
    vmcoreinfo: bytes = b""
    notes: bytes = b""
    erased: bytes = b""
    utsname: tuple[bytes, ...] = UTSNAME
    one_bitmap: bool = False
    pack = staticmethod(zlib_page)
    descriptors: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    fields: list[tuple[int, str, int]] = field(default_factory=list)

    def build(self) -> bytes:
        """Return the bytes of the file."""
        size = self.block_size
        texts = self.vmcoreinfo + self.notes + self.erased
        sub_blocks = 1 + len(texts) // size + 1
        half = -(-self.max_mapnr // 8 // size) or 1
        half += (half * size * 8 < self.max_mapnr) * 1
        bitmaps = half * (1 if self.one_bitmap else 2)
        table = (1 + sub_blocks + bitmaps) * size
        dumped = [pfn for pfn in sorted(self.pages) if self._is_here(pfn)]
        ram = [*self.pages, *self.excluded]
        head = bytearray(self._header(sub_blocks, bitmaps).ljust(size, b"\0"))
        head += self._sub_header(2 * size).ljust(size, b"\0")
        head += texts.ljust((sub_blocks - 1) * size, b"\0")
        if not self.one_bitmap:
            head += _bitmap(ram, half * size)
        head += _bitmap(self.pages, half * size)
        descriptors, data = self._pages(dumped, table)
        for offset, code, value in self.fields:
            struct.pack_into(code, head, offset, value)
        return bytes(head) + descriptors + data

    def _is_here(self, pfn: int) -> bool:
        return self.split is None or self.split[0] <= pfn < self.split[1]

    def _header(self, sub_blocks: int, bitmaps: int) -> bytes:
        names = b"".join(name.ljust(65, b"\0") for name in self.utsname)
        old_max = self.max_mapnr & 0xFFFFFFFF
        return struct.pack(
            "<8si390s6x2qIiiIIIIIIi", b"KDUMP   ", self.version, names, 1700000000, 5,
            self.status, self.block_size, sub_blocks, bitmaps, old_max, 0, 0, 0, 0, 1,
        )  # fmt: skip

    def _sub_header(self, at: int) -> bytes:
        start, end = self.split or (0, 0)
        info = (at, len(self.vmcoreinfo))
        notes = (sum(info), len(self.notes))
        erased = (sum(notes), len(self.erased))
        places = [
            x
            for place in (info, notes, erased)
            for x in (place if place[1] else (0, 0))
        ]
        # What a version does not have yet is no zero: other things were there.
        known = (0, 1, 2, 3, 4, 5, 6)[self.version]
        count = (0, 2, 5, 7, 9, 11, 14)[known]
        values = [
            0xBAD, self.dump_level, int(self.split is not None), start & 0xFFFFFFFF,
            end & 0xFFFFFFFF, *places, start, end, self.max_mapnr,
        ]  # fmt: skip
        values[count:] = [0x5A5A] * (len(values) - count)
        return struct.pack("<QiiQQ9Q", *values)

    def _pages(self, dumped: list[int], table: int) -> tuple[bytes, bytes]:
        descriptors = []
        data = b""
        # As makedumpfile: a file of a split dump has room for the descriptors of all.
        room = 24 * len(self.pages)
        start = table + room
        for index, pfn in enumerate(dumped):
            page = self.pages[pfn]
            if page is None:
                entry = (0, 0, 0)
            else:
                flag, packed = page if isinstance(page, tuple) else self._pack(page)
                entry = (start + len(data), len(packed), flag)
                data += packed
            entry = self.descriptors.get(index, entry)
            descriptors.append(struct.pack("<QIIQ", *entry, 0))
        return b"".join(descriptors).ljust(room, b"\0"), data

    def _pack(self, page: bytes) -> tuple[int, bytes]:
        # As makedumpfile: what does not shrink stays as it is.
        flag, packed = self.pack(page)
        return (flag, packed) if len(packed) < len(page) else (0, page)

    def write(self, path: Path, size: int | None = None) -> Path:
        """Write the file, or its first ``size`` bytes."""
        path.write_bytes(self.build()[:size])
        return path


def _bitmap(pfns: Iterable[int], size: int) -> bytes:
    bits = bytearray(size)
    for pfn in pfns:
        bits[pfn >> 3] |= 1 << (pfn & 7)
    return bytes(bits)


def flatten(
    records: Iterable[tuple[int, bytes]], *, end: bool = True, type_: int = 1
) -> bytes:
    """Return a flattened stream of records (offset, data), in this order."""
    head = struct.pack(">16sqq", b"makedumpfile", type_, 1).ljust(4096, b"\0")
    body = b"".join(struct.pack(">qq", at, len(data)) + data for at, data in records)
    return head + body + (struct.pack(">qq", -1, -1) if end else b"")
