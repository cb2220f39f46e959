# SPDX-License-Identifier: GPL-2.0-or-later
"""A writer of sadump files, which firmware of Fujitsu's machines writes.

No such machine is at hand, so this is written from the layout as libkdumpfile, crash
and makedumpfile know it: the header of a partition, filled up with a sequence of magic
numbers that tells the size of a block; the header of the dump; what the CPUs were at as
SMRAM has it; two bitmaps, most significant bits first (a page is RAM; its page is in
the file); the pages as they are, one behind the other.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

BLOCK = 4096
_TIME = struct.pack("<H6BIhBB", 2026, 11, 24, 12, 0, 0, 0, 0, 2047, 0, 0)
_IDS = bytes(range(48))  # of the system, of the set of disks, of the volume
_PARTITION = struct.Struct("<8s4I64s48s16sIIQ")
_MEDIA = struct.Struct("<32s16s4B")
_HEADER = struct.Struct("<8sII16s14I4Q")
_CPUS = 2
_CPU_STATE = 1024
_EFER_AT, _LONG_MODE = 992, 0xD01
_FROM_FIRST = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def write_sadump(
    path: Path,
    pages: Iterable[tuple[int, bytes]],
    max_pfn: int,
    *,
    excluded: Iterable[int] = (),
    media: bool = False,
) -> Path:
    """Write a dump of pages of 4096 bytes by their physical addresses, in order.

    :param max_pfn: page frames that the bitmaps are of
    :param excluded: addresses of pages that are RAM and not in the file
    :param media: as a backup to another medium has it, behind a header of its own
    """
    bitmap_blocks = -(-max_pfn // 8 // BLOCK)
    start = BLOCK * (3 + media + 2 * bitmap_blocks)
    dumped = bytearray(bitmap_blocks * BLOCK)
    with path.open("wb") as file:
        for number, (address, data) in enumerate(pages):
            _mark(dumped, address)
            if any(data):
                file.seek(start + number * BLOCK)
                file.write(data)
        end = start + (number + 1) * BLOCK
        file.truncate(end)
        ram = bytearray(dumped)
        for address in excluded:
            _mark(ram, address)
        file.seek(0)
        if media:
            file.write(_MEDIA.pack(_IDS[:32], _TIME, 1, 0, 0, 0).ljust(BLOCK, b"\0"))
        file.write(_partition(0, end))
        file.write(_header(max_pfn, bitmap_blocks))
        file.write(_cpus())
        file.write((ram + dumped).translate(_FROM_FIRST))
    return path


def write_disks(paths: Sequence[Path], whole: Path, pages: Sequence[int]) -> None:
    """Write a dump of a single partition again, to the disks of a set.

    :param pages: how many each disk but the last gets
    """
    data = whole.read_bytes()
    (bitmap_blocks,) = struct.unpack_from("<I", data, BLOCK + 52)
    start = BLOCK * (3 + 2 * bitmap_blocks)
    set_head = struct.pack("<II", 1, len(paths)).ljust(BLOCK, b"\0")
    head = set_head + data[BLOCK:start]
    at = start
    for disk, (path, count) in enumerate(zip(paths, [*pages, None], strict=True), 1):
        end = None if count is None else at + count * BLOCK
        body = head + data[at:end]
        path.write_bytes(_partition(disk, BLOCK + len(body)) + body)
        head, at = b"", at + len(data[at:end])


def _mark(bitmap: bytearray, address: int) -> None:
    pfn = address // BLOCK
    bitmap[pfn >> 3] |= 1 << (pfn & 7)


def _partition(disk: int, size: int) -> bytes:
    head = _PARTITION.pack(b"sadump", 1, 60, 1, 1, b"", _IDS, _TIME, disk, 0, size)
    magic = 1
    while len(head) < BLOCK:
        head += struct.pack("<I", magic)
        magic = 11 * (magic + 7) & 0xFFFFFFFF
    return head


def _header(max_pfn: int, bitmap_blocks: int) -> bytes:
    return _HEADER.pack(
        b"sadump", 1, 0, _TIME, 0, 0, BLOCK, 0, 1, bitmap_blocks, bitmap_blocks,
        max_pfn, 0, 0, 0, 0, _CPUS, 0, max_pfn, 0, 0, 0,
    ).ljust(BLOCK, b"\0")  # fmt: skip


def _cpus() -> bytes:
    state = bytearray(_CPU_STATE)
    struct.pack_into("<Q", state, _EFER_AT, _LONG_MODE)
    size = struct.pack("<I", _CPUS * _CPU_STATE)
    return (size + bytes(16 * _CPUS) + bytes(state) * _CPUS).ljust(BLOCK, b"\0")
