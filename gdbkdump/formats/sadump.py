# SPDX-License-Identifier: GPL-2.0-or-later
"""sadump: what the firmware of Fujitsu's servers writes, to a partition or to disks.

A block with the header of the partition, filled up with a sequence of magic numbers;
on the first of several disks blocks with a header of the set; the header of the dump;
what SMRAM has of the CPUs; two bitmaps (a page frame is RAM; its page is in the file),
the most significant bit first; and the pages as they were, one behind the other, which
go on behind the partition header of the next disk. A backup to another medium has a
block of its own before all that. Mirrors crash's ``sadump.h``.

libkdumpfile (0.5.1 to 0.5.6) reads it too, but gives the first page of a run of pages
for each of them (``sadump_read_page()``), so it is not asked.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import FaultError, FaultReason, FormatError
from gdbkdump.formats.base import Extent, Note, Saving
from gdbkdump.formats.bitmap import Bitmap, RankedBitmap

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gdbkdump.formats.base import Report
    from gdbkdump.formats.file import DumpBytes

MAGIC = b"sadump\0\0"
BLOCK = 4096
_SHIFT, _MASK = 12, BLOCK - 1
_PARTITION = struct.Struct("<8s16x64x48s16sI4xQ")
_MAGICS = struct.Struct(f"<{(BLOCK - _PARTITION.size) // 4}I")
_DISK_SET = struct.Struct("<II")
_HEADER = struct.Struct("<8sI20x8x7I12xI4xQ24x")
_MAX_PFN = 1 << 40
_MAX_DISKS = 16
_EM_X86_64 = 62
# struct sadump_smram_cpu_state, and where IA32_EFER is in it; LMA is its bit 10.
_CPU_STATE, _EFER, _LONG_MODE = 1024, 992, 1 << 10
_APIC_STATE = 16
_MAX_CPUS = 8192
_FROM_LAST = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class _Partition(NamedTuple):
    # :ivar start: where in the file
    # :ivar identity: what the disks of a set have in common
    # :ivar disk: number in a set, or 0
    # :ivar used: bytes of the device that were written, from its first one on
    start: int
    identity: tuple[bytes, bytes]
    disk: int
    used: int


class _Header(NamedTuple):
    sub_blocks: int
    bitmaps: tuple[int, int]
    max_pfn: int
    cpus: int


class _Reversed:
    # A file whose bytes have their first bit last.
    def __init__(self, file: DumpBytes) -> None:
        self.path = file.path
        self._file = file

    def read_header(self, offset: int, size: int) -> bytes:
        return self._file.read_header(offset, size).translate(_FROM_LAST)


class _Disk(NamedTuple):
    # Where a file has pages.
    file: DumpBytes
    data: int
    size: int


def _read_partition(file: DumpBytes) -> _Partition:
    start = 0 if file.read_header(0, len(MAGIC)) == MAGIC else BLOCK
    raw = file.read_header(start, BLOCK)
    if len(raw) < BLOCK:
        raise FormatError(f"{file.path}: the partition header is cut")
    _, ids, time, disk, used = _PARTITION.unpack_from(raw)
    magics = _MAGICS.unpack_from(raw, _PARTITION.size)
    expected = magics[0]
    for magic in magics:
        if magic != expected:
            raise FormatError(
                f"{file.path}: the partition header is damaged, or its blocks are not"
                f" of {BLOCK} bytes"
            )
        expected = (magic + 7) * 11 & 0xFFFFFFFF
    # The last of the three names the volume.
    return _Partition(start, (ids[:32], time), 0 if start else disk, used)


def _read_header(file: DumpBytes, at: int) -> _Header:
    raw = file.read_header(at, _HEADER.size)
    if len(raw) < _HEADER.size:
        raise FormatError(f"{file.path}: the dump header is cut")
    (magic, version, block_size, _, sub_blocks, ram_blocks, dumped_blocks, max_32,
     _, cpus, max_64) = _HEADER.unpack(raw)  # fmt: skip
    if magic != MAGIC or block_size != BLOCK:
        raise FormatError(f"{file.path}: the header of the dump is damaged")
    max_pfn = max_64 if version else max_32
    need = -(-max_pfn // (8 * BLOCK))
    if not 0 < max_pfn <= _MAX_PFN or min(ram_blocks, dumped_blocks) < need:
        raise FormatError(
            f"{file.path}: bitmaps of {ram_blocks} and {dumped_blocks} blocks for"
            f" {max_pfn:#x} page frames"
        )
    return _Header(sub_blocks, (ram_blocks, dumped_blocks), max_pfn, cpus)


class SadumpDump:
    """A sadump in one file, or on the disks of a set.

    :ivar problems: what is wrong with the files, one line each
    """

    is_flat = False
    machine = _EM_X86_64
    saving = Saving()
    notes: Sequence[Note] = ()

    def __init__(self, files: Sequence[DumpBytes], report: Report) -> None:
        """Read headers and count bitmaps.

        :param files: all disks of one set, in any order
        :raise FormatError: headers contradict themselves or each other
        """
        self.path = files[0].path
        self.paths: Sequence[Path] = [file.path for file in files]
        self.problems: list[str] = []
        self._files = files
        disks = _in_order([(_read_partition(file), file) for file in files])
        first, file = disks[0]
        self.format = "sadump" if not first.disk else f"sadump, {len(disks)} disks"
        at = first.start + BLOCK
        if first.disk:
            at += _set_size(file, at, len(disks))
        header = _read_header(file, at)
        at += BLOCK
        self._check_machine(file, at, header)
        at += header.sub_blocks * BLOCK
        ram, dumped = (blocks * BLOCK for blocks in header.bitmaps)
        bits = _Reversed(file)
        self._ram = Bitmap(bits, at, header.max_pfn)
        self._dumped = RankedBitmap(
            bits, at + ram, header.max_pfn, 0, header.max_pfn, report
        )
        self._disks = [
            _Disk(each, BLOCK, partition.used - BLOCK) for partition, each in disks
        ]
        start = at + ram + dumped
        self._disks[0] = _Disk(file, start, first.used - start)
        self._check_sizes()
        self._starts = [0]
        for disk in self._disks:
            self._starts.append(self._starts[-1] + disk.size)
        self._find_missing()
        if header.sub_blocks:
            self.problems.append(
                "what the firmware noted of the CPUs' registers is not read"
            )

    def _check_machine(self, file: DumpBytes, at: int, header: _Header) -> None:
        # Without a note of the CPUs what is read through it will tell.
        if not header.sub_blocks or not header.cpus:
            return
        cpus = min(header.cpus, _MAX_CPUS)
        (total,) = struct.unpack("<I", file.read_header(at, 4).ljust(4, b"\0"))
        size = total // header.cpus
        at += 4 + header.cpus * _APIC_STATE
        if size < _CPU_STATE:
            raise FormatError(f"{file.path}: {size} bytes of a CPU's state")
        states = (file.read_header(at + cpu * size + _EFER, 8) for cpu in range(cpus))
        if not any(int.from_bytes(state, "little") & _LONG_MODE for state in states):
            raise FormatError(f"{file.path}: dumps of 32-bit kernels are not read")

    def _check_sizes(self) -> None:
        # One wrong bit, and each page after it is taken for another one.
        wanted = self._dumped.total * BLOCK
        is_right = sum(disk.size for disk in self._disks) == wanted
        if min(disk.size for disk in self._disks) < 0 or not is_right:
            raise FormatError(
                f"{self.path}: its page bitmap and the size of what was saved"
                " contradict each other"
            )
        if not self._dumped.is_within(self._ram):
            raise FormatError(f"{self.path}: its page bitmaps contradict each other")

    def _find_missing(self) -> None:
        self.missing = sum(
            disk.size - max(0, min(disk.size, disk.file.size - disk.data))
            for disk in self._disks
        )
        self.is_incomplete = bool(self.missing)
        if self.missing:
            self.problems.append(
                f"the dump is truncated: {self.missing} bytes are missing"
            )

    @cached_property
    def extents(self) -> Sequence[Extent]:
        """Runs of RAM; pages in them may be excluded."""
        return self._ram.extents(BLOCK)

    @cached_property
    def excluded(self) -> int:
        """Bytes of memory that the firmware left out."""
        return (self._ram.count() - self._dumped.total) * BLOCK

    def read_phys(self, paddr: int, size: int) -> bytes:
        """Return ``size`` bytes of physical memory.

        :raise FaultError: not all of them can be had
        """
        pieces = []
        while size > 0:
            step = min(size, BLOCK - (paddr & _MASK))
            pieces.append(self._read(paddr, step))
            paddr += step
            size -= step
        return b"".join(pieces)

    def _read(self, paddr: int, size: int) -> bytes:
        index = self._dumped.find(paddr >> _SHIFT)
        if index is None:
            is_ram = self._ram.test(paddr >> _SHIFT)
            why = FaultReason.EXCLUDED if is_ram else FaultReason.HOLE
            raise FaultError("physical", paddr, why)
        at = index * BLOCK
        number = bisect_right(self._starts, at) - 1
        disk = self._disks[number]
        offset = disk.data + at - self._starts[number] + (paddr & _MASK)
        try:
            data = disk.file.pread(size, offset)
        except OSError:
            raise FaultError("physical", paddr, FaultReason.IO) from None
        if len(data) < size:
            raise FaultError("physical", paddr, FaultReason.MISSING)
        return data

    def file_range(self, paddr: int) -> tuple[int, int] | None:
        """Return None: runs of pages are as short as what was left out wants it."""
        return None

    def close(self) -> None:
        """Give the files back."""
        for file in self._files:
            file.close()


def _in_order(
    disks: list[tuple[_Partition, DumpBytes]],
) -> list[tuple[_Partition, DumpBytes]]:
    # Each disk of a set once, and all of them of one set.
    disks.sort(key=lambda item: item[0].disk)
    first, file = disks[0]
    if len(disks) == 1 and not first.disk:
        return disks
    for number, (partition, each) in enumerate(disks, 1):
        if not partition.disk or partition.identity != first.identity:
            raise FormatError(
                f"{each.path} and {file.path} are not disks of one set"
                if each is not file
                else f"{each.path} is all of a dump, and has no further disks"
            )
        if partition.disk != number or partition.used % BLOCK:
            raise FormatError(
                f"{each.path} is disk {partition.disk} of a set: name all of them, once"
            )
    return disks


def _set_size(file: DumpBytes, at: int, disks: int) -> int:
    raw = file.read_header(at, _DISK_SET.size)
    if len(raw) < _DISK_SET.size:
        raise FormatError(f"{file.path}: the header of the set of disks is cut")
    blocks: int
    blocks, number = _DISK_SET.unpack(raw)
    if not 0 < number <= _MAX_DISKS or not 0 < blocks <= _MAX_DISKS:
        raise FormatError(f"{file.path}: the header of the set of disks is damaged")
    if number != disks:
        raise FormatError(
            f"{file.path} is disk 1 of a set of {number}, {disks} named: name them all"
        )
    return blocks * BLOCK
