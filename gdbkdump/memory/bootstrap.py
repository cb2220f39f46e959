# SPDX-License-Identifier: GPL-2.0-or-later
"""From a bare dump to the kernel's address space.

VMCOREINFO comes from its note, else from a scan of RAM: the kernel fills
``vmcoreinfo_note`` at boot, page-aligned (``kernel/vmcore_info.c``).
"""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from gdbkdump.errors import FaultError, FaultReason, FormatError
from gdbkdump.formats.vmcoreinfo import MAX_SIZE, VmcoreInfo
from gdbkdump.memory.virtual import MappedMemory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gdbkdump.arch.base import Arch, Mapping, PageTable, TableEntry, UserPage
    from gdbkdump.formats.base import DumpFile, Extent, Report

_NOTE_NAME = b"VMCOREINFO\0\0"
_CHUNK = 4 << 20
# Each costs an attempt to open the kernel that it tells of.
_MAX_COPIES = 16
# The kernel is the same on all; the first ones may not have begun to run it.
_MAX_CPUS = 4
# The kernel's buffer is one page, or two.
_NOTE_PAGES = 16
_ESSENTIAL = ("OSRELEASE", "SYMBOL(init_uts_ns)")


def noted_vmcoreinfo(dump: DumpFile) -> tuple[VmcoreInfo | None, bool]:
    """Return VMCOREINFO from the dump's notes, or None, and whether it is whole."""
    for note in dump.notes:
        if note.name == b"VMCOREINFO" and note.type == 0:
            return VmcoreInfo(note.desc), not note.is_cut
    return None, False


def is_complete(info: VmcoreInfo | None) -> bool:
    """Tell whether VMCOREINFO has what it takes to find the kernel's page tables."""
    if info is None or not all(key in info for key in _ESSENTIAL):
        return False
    return info.symbol("init_top_pgt") is not None or (
        info.symbol("swapper_pg_dir") is not None
    )


def given_vmcoreinfo(dump: DumpFile, place: int | Path) -> VmcoreInfo:
    """Return VMCOREINFO from where the user says that it is.

    :param place: physical address of the note or of its text, or a file with either
    :raise FormatError: it is not there
    """
    try:
        data = _given_bytes(dump, place)
    except OSError as error:
        raise FormatError(f"cannot read {place}: {error.strerror}") from None
    where = place if isinstance(place, Path) else f"physical address {place:#x}"
    # Behind the header of a note; what follows its text is zeros.
    start = data.find(b"OSRELEASE=", 0, 64)
    info = VmcoreInfo(data[start:].partition(b"\0")[0])
    if start < 0 or not is_complete(info):
        raise FormatError(f"no VMCOREINFO is at {where}")
    return info


def _given_bytes(dump: DumpFile, place: int | Path) -> bytes:
    if isinstance(place, Path):
        with place.open("rb") as file:
            return file.read(MAX_SIZE)
    # Page by page, as the next one may not be there.
    pieces: list[bytes] = []
    ends = [(place & -4096) + 4096 * n for n in range(1, _NOTE_PAGES + 1)]
    for start, end in zip([place, *ends], ends, strict=False):
        try:
            pieces.append(dump.read_phys(start, end - start))
        except FaultError as fault:
            if not pieces:
                raise FormatError(str(fault)) from None
            break
    return b"".join(pieces)


def scan_vmcoreinfo(dump: DumpFile, report: Report) -> list[tuple[VmcoreInfo, int]]:
    """Search RAM for the kernel's own copy, and where it is; the likeliest is first.

    Stale copies, the capture kernel's and those of nested guests may be there too, so
    the caller verifies what each leads to.
    """
    found: dict[bytes, tuple[VmcoreInfo, int]] = {}
    total = sum(extent.file_size for extent in dump.extents)
    done = 0
    for paddr, data in _chunks(dump):
        at = data.find(_NOTE_NAME)
        while at >= 0:
            # The name follows the three words of the note header, at a page's start.
            if (paddr + at - 12) % 4096 == 0:
                info = _read_note(dump, paddr + at - 12)
                if info and is_complete(info) and len(found) < _MAX_COPIES:
                    found.setdefault(info.raw, (info, paddr + at - 12))
            at = data.find(_NOTE_NAME, at + 1)
        done += len(data)
        report("searching RAM for VMCOREINFO", done, total)
    # The kernel that crashed before the one that captures it, and the fullest.
    return sorted(
        found.values(), key=lambda each: ("CRASHTIME" not in each[0], -len(each[0]))
    )


def _chunks(dump: DumpFile) -> Iterator[tuple[int, bytes]]:
    for extent in dump.extents:
        for start in range(0, extent.file_size, _CHUNK):
            paddr = extent.paddr + start
            size = min(_CHUNK + 64, extent.file_size - start)
            try:
                yield paddr, dump.read_phys(paddr, size)
            except FaultError:
                yield from _pages(dump, paddr, size)


def _pages(dump: DumpFile, paddr: int, size: int) -> Iterator[tuple[int, bytes]]:
    # Of a dump with holes; the pages' ends matter to nobody, notes begin at a page's.
    for start in range(paddr, paddr + size, 4096):
        try:
            yield start, dump.read_phys(start, min(4096, paddr + size - start))
        except FaultError:
            continue


def _read_note(dump: DumpFile, paddr: int) -> VmcoreInfo | None:
    try:
        name_size, desc_size, type_ = struct.unpack("<III", dump.read_phys(paddr, 12))
        if name_size != 11 or type_ or not 0 < desc_size <= MAX_SIZE:
            return None
        return VmcoreInfo(dump.read_phys(paddr + 24, desc_size))
    except FaultError:
        return None


# Start, end and (virtual - physical) of the kernel image, or of where it may be.
Place = tuple[int, int, int]


def open_kernel_memory(
    dump: DumpFile,
    arch: Arch,
    info: VmcoreInfo | None,
    place: Place,
    root: int,
    problems: list[str],
) -> tuple[MappedMemory, tuple[int, int]]:
    """Return the kernel's address space, and start and end of its image in it.

    :param place: where the image is
    :param root: virtual address of the top page table (``init_top_pgt``)
    :param problems: gets what is wrong, one line each
    :raise FormatError: the page tables do not even map themselves
    """
    start, end, delta = place
    try:
        table = arch.page_table(info, dump.read_phys, root - delta, root)
        if table.translate(root).paddr > root - delta:
            raise FormatError("the kernel's page tables map themselves elsewhere")
    except FaultError as fault:
        raise FormatError(f"the kernel's page tables are unreadable: {fault}") from None
    image = _image_windows(dump, start, end, delta)
    if any(extent.vaddr is not None for extent in dump.extents):
        linear = _direct_map_windows(dump, table, (start, end), problems)
    else:
        image = _mapped_image(table, start, end, delta)
        linear = _mapped_direct_map(dump, table, problems)
    bounds = (image[0][0], image[-1][1]) if image else (start, end)
    return MappedMemory(dump.read_phys, table, image + linear), bounds


def image_memories(
    dump: DumpFile, arch: Arch
) -> Iterator[tuple[MappedMemory, Place, str]]:
    """Yield what may be the kernel image alone, where nothing else is known.

    Third comes how it was found.
    """
    # Without the root there are no tables yet: the windows are all there is.
    tables = _NoTables()
    with contextlib.suppress(FormatError):
        place = arch.image_delta(None, dump.extents)
        windows = _image_windows(dump, *place)
        if windows:
            bounds = (windows[0][0], windows[-1][1], place[2])
            yield MappedMemory(dump.read_phys, tables, windows), bounds, "its PT_LOAD"
    tried: set[Place] = set()
    for cpu in arch.guest_cpus(dump.notes)[:_MAX_CPUS]:
        for place in arch.guest_images(cpu, dump.read_phys):
            if place not in tried:
                tried.add(place)
                memory = MappedMemory(dump.read_phys, tables, [place])
                yield memory, place, "the page tables of a CPU"


class _NoTables:
    root = 0

    def translate(self, vaddr: int) -> Mapping:
        raise FaultError("virtual", vaddr, FaultReason.UNMAPPED)

    def with_root(self, root: int) -> PageTable:
        return self

    def user_pages(
        self, start: int, end: int, unreadable: list[tuple[int, int]]
    ) -> Iterator[UserPage]:
        return iter(())

    def walk(self, vaddr: int) -> list[TableEntry]:
        return []

    def mappings(
        self, skip: Sequence[tuple[int, int]], unreadable: list[int]
    ) -> Iterator[Mapping]:
        return iter(())

    def flags(self, value: int) -> str:
        return ""


def _image_windows(
    dump: DumpFile, start: int, end: int, delta: int
) -> list[tuple[int, int, int]]:
    return sorted(
        (extent.vaddr, extent.vaddr + extent.size, delta)
        for extent in dump.extents
        if extent.vaddr is not None
        and start <= extent.vaddr < end
        and extent.vaddr - extent.paddr == delta
    )


def _mapped_image(
    table: PageTable, start: int, end: int, delta: int
) -> list[tuple[int, int, int]]:
    # Where the format has no virtual addresses the page tables bound the image. What
    # was freed at boot may be unmapped in its middle: one window all the same, as kexec
    # makes one PT_LOAD of it.
    skip = [(0, start), (end, 1 << 64)]
    leaves = [
        leaf
        for leaf in table.mappings(skip, [])
        if start <= leaf.vaddr < end and leaf.vaddr - leaf.paddr == delta
    ]
    if not leaves:
        return []
    return [(leaves[0].vaddr, leaves[-1].vaddr + leaves[-1].size, delta)]


def _mapped_direct_map(
    dump: DumpFile, table: PageTable, problems: list[str]
) -> list[tuple[int, int, int]]:
    # The direct map is the lowest of what the kernel maps (Documentation/arch/x86/
    # x86_64/mm.rst), and the only place where RAM's ends are as far apart as they are.
    lowest = next(iter(table.mappings((), [])), None)
    if lowest is None or not dump.extents:
        return []
    delta = lowest.vaddr - lowest.paddr

    def is_mapped(extent: Extent) -> bool:
        # Not its last page, which firmware may have kept for itself.
        middle = (extent.paddr + extent.size // 2) & -4096
        return all(
            _is_mapped(table, page + delta, page) for page in (extent.paddr, middle)
        )

    # The largest are RAM; of the others some are a device's, which is not in the map.
    largest = sorted(dump.extents, key=lambda e: -e.size)[:16]
    mapped = sum(extent.size for extent in largest if is_mapped(extent))
    if mapped * 2 <= sum(extent.size for extent in largest):
        problems.append("the direct map was not found: page tables only")
        return []
    low = min(extent.paddr for extent in dump.extents)
    from_top = sorted(dump.extents, key=lambda e: -e.paddr)
    high = next(e.paddr + e.size for e in from_top if is_mapped(e))
    return [(low + delta, high + delta, delta)]


def _direct_map_windows(
    dump: DumpFile,
    table: PageTable,
    image: tuple[int, int],
    problems: list[str],
) -> list[tuple[int, int, int]]:
    # Old kexec-tools wrote wrong addresses under KASLR, so the tables must confirm.
    runs = [
        (e.vaddr, e.paddr, e.size)
        for e in dump.extents
        if e.vaddr is not None and not image[0] <= e.vaddr < image[1]
    ]
    if not runs:
        return []
    delta = runs[-1][0] - runs[-1][1]
    same = [run for run in runs if run[0] - run[1] == delta]
    for vaddr, paddr, _ in (same[0], same[len(same) // 2], same[-1]):
        if not _is_mapped(table, vaddr, paddr):
            problems.append(
                "the PT_LOADs' virtual addresses are not the kernel's: page tables only"
            )
            return []
    low = min(paddr for _, paddr, _ in same)
    high = max(paddr + size for _, paddr, size in same)
    return [(low + delta, high + delta, delta)]


def _is_mapped(table: PageTable, vaddr: int, paddr: int) -> bool:
    try:
        leaf = table.translate(vaddr)
    except FaultError:
        return False
    return leaf.paddr + vaddr - leaf.vaddr == paddr
