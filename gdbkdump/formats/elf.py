# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF vmcores: /proc/vmcore, copies of it, ``makedumpfile -E``, and /proc/kcore.

Read with ``pread`` alone: an mmap of a file that somebody truncates would kill gdb with
SIGBUS. Every size and offset is checked against the file before it is used.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import Counter
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

from gdbkdump.arch.x86_64 import START_KERNEL_MAP, X86_64
from gdbkdump.errors import FaultReason, FormatError
from gdbkdump.formats.base import Extent, Note, Saving
from gdbkdump.formats.flat import FlatDump
from gdbkdump.formats.notes import NT_PRPSINFO, parse_notes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from gdbkdump.formats.file import DumpBytes

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR_INFO = struct.Struct("<I")
_ET_CORE = 4
_PT_LOAD, _PT_NOTE = 1, 4
_PN_XNUM = 0xFFFF
# Beyond any dump seen (13,000 with makedumpfile -E); bounds a corrupt header.
_MAX_PHDRS = 1 << 22
_MAX_NOTE_BYTES = 16 << 20
_PHYS_LIMIT = 1 << 52
# fs/proc/kcore.c: p_paddr of what is not a run of RAM (vmalloc, modules, vmemmap).
_NO_PADDR = (1 << 64) - 1
# struct elf_prpsinfo: where pr_fname is.
_PR_FNAME = 40
# makedumpfile (elf_info.h): DUMP_ELF_INCOMPLETE in e_flags.
_INCOMPLETE = 1
# Of the hypervisor (XEN_ELFNOTE_CRASH_INFO) and of its own VMCOREINFO.
_XEN_NOTES = (b"Xen", b"XEN", b"VMCOREINFO_XEN")


class ElfDump(FlatDump):
    """An ELF vmcore.

    :ivar extents: the PT_LOADs, in the order of the file
    :ivar problems: what is wrong with the file, one line each
    """

    def __init__(self, file: DumpBytes) -> None:
        """Read the headers; the file's contents stay where they are.

        :raise FormatError: they cannot be those of a 64-bit little-endian core
        """
        super().__init__(file)
        self.path = file.path
        self.paths: Sequence[Path] = [file.path]
        self.format = f"{file.kind}ELF vmcore"
        self.problems: list[str] = [*file.problems]
        self.is_incomplete = file.is_cut
        self.machine, table = self._read_headers()
        self.notes: Sequence[Note] = []
        self.extents: Sequence[Extent] = []
        self._sort_headers(table)
        self._doubtful = self._find_doubtful(table)
        file.seal(min((e.offset for e in self.extents if e.file_size), default=0))
        if file.is_cut and not self.is_incomplete:
            self.is_incomplete = True
            self.problems += file.problems
        if _is_kcore(table, self.notes):
            self.format = "live kernel (/proc/kcore)"
            self.problems.append(
                "the kernel runs: it changes while it is read, and what its CPUs have"
                " in their registers is not known"
            )
        self.saving = Saving(erased=_erased(self.notes))
        self._index(self._distinct_runs())

    def _read_headers(self) -> tuple[int, list[tuple[int, ...]]]:
        raw = self._file.read_header(0, _EHDR.size)
        if len(raw) < _EHDR.size:
            raise FormatError(f"{self.path}: the ELF header is cut")
        ident, type_, machine, _, _, phoff, shoff, flags, _, phentsize, phnum, *_ = (
            _EHDR.unpack(raw)
        )
        if ident[4] != 2 or ident[5] != 1:
            raise FormatError(f"{self.path}: only 64-bit little-endian dumps are read")
        if type_ != _ET_CORE:
            kind = {1: "an object file", 2: "an executable", 3: "a shared object"}
            raise FormatError(
                f"{self.path} is not a dump but {kind.get(type_, f'ELF type {type_}')}"
                " (the dump comes after vmlinux on the command line)"
            )
        if flags & _INCOMPLETE:
            self.is_incomplete = True
            self.problems.append("makedumpfile could not write all: the disk was full")
        if not phnum and shoff:
            raise FormatError(
                f"{self.path} has sections only, as Xen's dump-core writes them, which"
                " is not supported"
            )
        if phnum == _PN_XNUM:
            info = self._file.read_header(shoff + 44, 4)
            if len(info) < 4:
                raise FormatError(f"{self.path}: the number of program headers is cut")
            (phnum,) = _SHDR_INFO.unpack(info)
        if phentsize != _PHDR.size or not phnum or phnum > _MAX_PHDRS:
            raise FormatError(
                f"{self.path}: {phnum} program headers of {phentsize} bytes"
            )
        table = self._file.read_header(phoff, phnum * _PHDR.size)
        whole = len(table) // _PHDR.size
        if whole < phnum:
            self.problems.append(f"{phnum - whole} of {phnum} program headers are cut")
        if not whole:
            raise FormatError(f"{self.path}: the program headers are cut")
        rows = list(_PHDR.iter_unpack(table[: whole * _PHDR.size]))
        self._count_empty(rows)
        return machine, rows

    def _count_empty(self, table: list[tuple[int, ...]]) -> None:
        # makedumpfile -E writes them last.
        empty = sum(not any(row) for row in table)
        if empty == len(table):
            raise FormatError(
                f"{self.path}: saving the dump ended early: the program headers, which"
                " makedumpfile -E writes last, are empty, so nothing tells where memory"
                " is (without -E a dump is of use up to where it ends)"
            )
        if empty:
            self.is_incomplete = True
            self.problems.append(
                f"{empty} of {len(table)} program headers are empty: saving the dump"
                " ended early, and what memory they would tell of is not known"
            )

    def _sort_headers(self, table: list[tuple[int, ...]]) -> None:
        notes: list[Note] = []
        for type_, _, offset, _, _, file_size, _, _ in table:
            if type_ == _PT_NOTE:
                notes += self._read_notes(offset, file_size)
        # QEMU writes physical addresses for virtual ones, or those that some program
        # had; and it lists what no RAM is behind.
        is_qemus = any(note.name == b"QEMU" for note in notes)
        if any(note.name in _XEN_NOTES for note in notes):
            raise FormatError(
                f"{self.path} is a dump of a Xen hypervisor and its first guest, which"
                " is not supported (crash reads it with xen-syms)"
            )
        extents = []
        for type_, _, offset, vaddr, paddr, file_size, size, _ in table:
            if is_qemus:
                size = file_size
            # Page tables lead to those without, and to RAM that another PT_LOAD has.
            has_paddr = paddr != _NO_PADDR
            if type_ == _PT_LOAD and (size or file_size) and has_paddr:
                if paddr + max(size, file_size) > _PHYS_LIMIT or file_size > size:
                    self.problems.append(
                        f"PT_LOAD of {file_size:#x}/{size:#x} bytes at physical"
                        f" {paddr:#x} is absurd and ignored"
                    )
                    continue
                there = max(0, min(file_size, self._file.size - offset))
                known = None if is_qemus else vaddr
                extents.append(
                    Extent(known, paddr, size, there, offset, file_size - there)
                )
        self.notes, self.extents = notes, extents
        if self.missing:
            self.is_incomplete = True
            self.problems.append(
                f"the file is truncated: {_mib(self.missing)} of"
                f" {_mib(sum(e.file_size + e.missing for e in extents))} are missing"
            )

    def _find_doubtful(self, table: list[tuple[int, ...]]) -> set[Extent]:
        # Bytes of the file that are two places' memory, or headers, are told wrong by
        # one of the two; memory that is mapped unlike all other is told wrong, too.
        reserved = [(0, _EHDR.size)]
        reserved += [(row[2], row[2] + row[5]) for row in table if row[0] == _PT_NOTE]
        found = set(_overlapping(self.extents, reserved))
        if self.machine == X86_64.machine:
            found |= set(_mapped_otherwise(self.extents))
        if found:
            self.problems.append(
                f"{len(found)} of {len(self.extents)} program headers contradict the"
                " others: what they tell of is not read"
            )
        return found

    def _read_notes(self, offset: int, size: int) -> list[Note]:
        if size > _MAX_NOTE_BYTES:
            self.problems.append(f"PT_NOTE of {size:#x} bytes is absurd; read in part")
            size = _MAX_NOTE_BYTES
        data = self._file.read_header(offset, size)
        if len(data) < size:
            self.problems.append("the notes are cut")
        return list(parse_notes(data, self.problems))

    def _distinct_runs(self) -> Iterator[tuple[int, int, int]]:
        # The kernel image is there twice (image and direct map), so physical ranges
        # overlap; what an earlier header holds is cut out of the later ones. Only the
        # bytes in the file are indexed; _reason() looks at the headers again.
        right = [extent for extent in self.extents if extent not in self._doubtful]
        before = 0
        for extent in sorted(right, key=lambda e: (e.paddr, -e.file_size)):
            start, end = max(before, extent.paddr), extent.paddr + extent.file_size
            if start < end:
                yield start, end, extent.offset - extent.paddr
                before = end

    @property
    def missing(self) -> int:
        """Bytes that the headers promise and the file lacks."""
        return sum(extent.missing for extent in self.extents)

    @property
    def excluded(self) -> int:
        """Bytes of memory that were filtered out when the dump was saved."""
        whole = _covered((e.paddr, e.size) for e in self.extents)
        saved = _covered((e.paddr, e.file_size + e.missing) for e in self.extents)
        return whole - saved

    def _reason(self, paddr: int) -> FaultReason:
        found = list(self._extents_at(paddr))
        if not found:
            return FaultReason.HOLE
        if any(extent in self._doubtful for extent in found):
            return FaultReason.CORRUPT
        lost = any(paddr < e.paddr + e.file_size + e.missing for e in found)
        return FaultReason.MISSING if lost else FaultReason.EXCLUDED

    def _extents_at(self, paddr: int) -> Iterator[Extent]:
        by_address, furthest = self._by_address
        i = bisect_right(by_address, paddr, key=lambda e: e.paddr)
        while i and furthest[i - 1] > paddr:
            i -= 1
            if by_address[i].paddr + by_address[i].size > paddr:
                yield by_address[i]

    @cached_property
    def _by_address(self) -> tuple[list[Extent], list[int]]:
        # And where the furthest of those up to each one ends.
        extents = sorted(self.extents, key=lambda e: e.paddr)
        return extents, list(accumulate((e.paddr + e.size for e in extents), max))


def _covered(spans: Iterable[tuple[int, int]]) -> int:
    # The kernel image is there twice, and counts once.
    total = end = 0
    for start, size in sorted(spans):
        total += max(0, start + size - max(start, end))
        end = max(end, start + size)
    return total


def _overlapping(
    extents: Sequence[Extent], reserved: Sequence[tuple[int, int]]
) -> Iterator[Extent]:
    # QEMU may tell of the same bytes twice, as the same memory.
    spans: list[tuple[int, int, int | None, Extent | None]] = [
        (e.offset, e.offset + e.file_size + e.missing, e.paddr - e.offset, e)
        for e in extents
        if e.file_size or e.missing
    ]
    spans += [(start, end, None, None) for start, end in reserved]
    spans.sort(key=lambda span: span[:2])
    furthest = spans[0]
    for span in spans[1:]:
        if span[0] < furthest[1] and span[2] != furthest[2]:
            yield from (e for e in (span[3], furthest[3]) if e is not None)
        if span[1] > furthest[1]:
            furthest = span


def _mapped_otherwise(extents: Sequence[Extent]) -> Iterator[Extent]:
    # All but the kernel image is in the direct map, hence at one distance.
    direct = [
        (e.vaddr - e.paddr, e)
        for e in extents
        if e.vaddr is not None and e.vaddr < START_KERNEL_MAP
    ]
    if len(direct) > 2:
        usual, count = Counter(delta for delta, _ in direct).most_common(1)[0]
        if count * 2 > len(direct):
            yield from (extent for delta, extent in direct if delta != usual)


def _is_kcore(table: Sequence[tuple[int, ...]], notes: Sequence[Note]) -> bool:
    # The kernel names itself where a core has the name of the program. Old netdump may
    # as well, as it began as a copy; but only kcore has what is at no one address.
    name = b"vmlinux\0"
    has_vmalloc = any(row[0] == _PT_LOAD and row[4] == _NO_PADDR for row in table)
    return has_vmalloc and any(
        note.name == b"CORE"
        and note.type == NT_PRPSINFO
        and note.desc[_PR_FNAME : _PR_FNAME + len(name)] == name
        for note in notes
    )


def _erased(notes: Sequence[Note]) -> tuple[bytes, ...]:
    # makedumpfile's note of what --config told it to erase.
    found = [note.desc for note in notes if note.name == b"ERASEINFO"]
    return tuple(b"\n".join(found).rstrip(b"\0\n").split(b"\n")) if found else ()


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
