# SPDX-License-Identifier: GPL-2.0-or-later
"""The view core: a small ELF core through which stock gdb sees a whole kernel.

It has an NT_PRSTATUS note for each task, and an NT_FILE note (``fs/binfmt_elf.c``:
``fill_files_note()``) that maps every kernel address onto the user's own dump file.
Nothing is copied. What is excluded from the dump or cut off stays unmapped, so that gdb
says it cannot read there.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from gdbkdump.arch.base import Mapping
from gdbkdump.formats.notes import NT_PRSTATUS
from gdbkdump.kernel.initmem import freed_init_memory
from gdbkdump.target.elfcore import NT_FILE, headers, note

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from gdbkdump.arch.base import Arch
    from gdbkdump.formats.base import DumpFile
    from gdbkdump.kernel.base import Kernel
    from gdbkdump.target.threads import KernelThread

_RANGE = struct.Struct("<QQQ")
# gdb looks ranges up one after the other, 4 to 8 ns each: with more than these our gdb
# remote server is faster (benchmarks/README.md, "A dump in many pieces").
MAX_RANGES = 40_000
# Leaves of the page tables beyond the linear windows. KASAN's shadow maps one zero page
# for terabytes; nothing else comes near.
_MAX_LEAVES = 1 << 22


class Range(NamedTuple):
    """Kernel addresses and where their bytes are in the dump file."""

    start: int
    end: int
    offset: int


class _Runs:
    # The dump's file ranges, by physical address.
    def __init__(self, dump: DumpFile) -> None:
        self._dump = dump
        self._starts = sorted({extent.paddr for extent in dump.extents})

    def find(self, vaddr: int, paddr: int, size: int) -> Iterator[Range]:
        # What of ``size`` bytes is in the file; the rest has no range.
        delta = vaddr - paddr
        end = paddr + size
        while paddr < end:
            found = self._dump.file_range(paddr)
            if found is None:
                i = bisect_right(self._starts, paddr)
                if i == len(self._starts):
                    return
                paddr = self._starts[i]
                continue
            offset, length = found
            length = min(length, end - paddr)
            yield Range(paddr + delta, paddr + delta + length, offset)
            paddr += length


def kernel_ranges(kernel: Kernel, dump: DumpFile, problems: list[str]) -> list[Range]:
    """Return where all kernel memory is in the file; what is read most comes first.

    :param problems: gets a line where the page tables cannot be read
    """
    runs = _Runs(dump)
    windows = kernel.memory.windows
    linear = _merge(
        chain.from_iterable(
            runs.find(start, start - delta, end - start)
            for start, end, delta in windows
        )
    )
    gone = freed_init_memory(kernel)
    if gone:
        # By the names of what was there gdb would show as its value what is there now.
        linear = list(_without(linear, gone))
    others = _merge(_mapped_ranges(kernel, runs, problems))
    # The image is above all else, so it comes first; modules are right behind it.
    image = kernel.debuginfo.image[0]
    linear.sort(key=lambda r: r.start < image)
    others.sort(key=lambda r: (r.start < image, r.start - r.end))
    return linear + others


def _mapped_ranges(kernel: Kernel, runs: _Runs, problems: list[str]) -> Iterator[Range]:
    # All that the page tables map outside the linear windows: vmalloc, modules, stacks.
    skip = [(start, end) for start, end, _ in kernel.memory.windows]
    for vaddr, paddr, size in _linear_pieces(kernel, skip, problems):
        for start, end in _outside(vaddr, vaddr + size, skip):
            yield from runs.find(start, paddr + start - vaddr, end - start)


def _linear_pieces(
    kernel: Kernel, skip: Sequence[tuple[int, int]], problems: list[str]
) -> Iterator[Mapping]:
    # Leaves that follow each other in both address spaces, as one.
    memory = kernel.memory
    unreadable: list[int] = []
    start, first, size = 0, 0, 0
    for number, leaf in enumerate(memory.page_table.mappings(skip, unreadable)):
        if number == _MAX_LEAVES:
            problems.append(
                f"the page tables map more than {_MAX_LEAVES} pages: what is above"
                f" {leaf.vaddr:#x} is not shown to gdb"
            )
            break
        memory.remember(leaf)
        if leaf.vaddr == start + size and leaf.paddr == first + size:
            size += leaf.size
            continue
        if size:
            yield Mapping(start, first, size)
        start, first, size = leaf
    if size:
        yield Mapping(start, first, size)
    if unreadable:
        problems.append(
            f"{len(unreadable)} page tables cannot be read (first at physical"
            f" {unreadable[0]:#x}): gdb lacks what they map"
        )


def _outside(
    start: int, end: int, windows: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    # A huge page may reach over the end of a window, the image's for example.
    for low, high in windows:
        if low < end and start < high:
            if start < low:
                yield start, low
            start = max(start, high)
            if start >= end:
                return
    yield start, end


def _without(ranges: Iterable[Range], gone: tuple[int, int]) -> Iterator[Range]:
    for start, end, offset in ranges:
        for low, high in _outside(start, end, [gone]):
            yield Range(low, high, offset + low - start)


def _merge(ranges: Iterable[Range]) -> list[Range]:
    merged: list[Range] = []
    last_end = last_file = -1
    for start, end, offset in ranges:
        if start == last_end and offset == last_file:
            merged[-1] = Range(merged[-1].start, end, merged[-1].offset)
        else:
            merged.append(Range(start, end, offset))
        last_end, last_file = end, offset + end - start
    return merged


def write_view_core(
    target: Path,
    arch: Arch,
    threads: Sequence[KernelThread],
    ranges: Sequence[Range],
    vmcore: Path,
) -> None:
    """Write the view core; the file is new and only its owner may read it.

    :param vmcore: the dump that the ranges lie in; its path goes into the core
    """
    notes = [note(NT_PRSTATUS, arch.make_prstatus(t.id, t.registers)) for t in threads]
    notes.append(note(NT_FILE, file_table(ranges, vmcore)))
    with open_private(target) as file:
        file.write(headers(arch.machine, sum(map(len, notes)), []))
        file.writelines(notes)


def open_private(path: Path) -> BinaryIO:
    """Open a new file that only its owner may read, to write to it.

    :raise OSError: it is there, or cannot be made
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    return open(fd, "wb")


def file_table(ranges: Sequence[Range], vmcore: Path) -> bytes:
    """Return an NT_FILE description that maps the ranges onto the dump."""
    # Offsets count pages of "page_size" bytes; with 1 they need no alignment.
    name = os.fsencode(os.path.abspath(vmcore)) + b"\0"
    table = b"".join([_RANGE.pack(*item) for item in ranges])
    return struct.pack("<QQ", len(ranges), 1) + table + name * len(ranges)
