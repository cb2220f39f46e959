# SPDX-License-Identifier: GPL-2.0-or-later
"""Where each page of a process is: in RAM, in the page cache, or why it is not.

Mirrors how a fault would find it (``mm/memory.c``: ``handle_pte_fault()``): the page
tables first, then the file's page cache, zeros for anonymous memory.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import CorruptError, FaultError, KdumpError
from gdbkdump.kernel.pagecache import cached_file
from gdbkdump.kernel.vma import VM_HUGETLB, VM_IO, VM_PFNMAP, VM_UFFD_MISSING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.arch.base import PageTable, UserPage
    from gdbkdump.kernel.base import Kernel
    from gdbkdump.kernel.pagecache import CachedFile
    from gdbkdump.kernel.vma import Vma

_PAGE = 4096
# Of one process: 8 TiB. Tables that loop map more.
_MAX_PAGES = 1 << 31


class Where(enum.Enum):
    """Where a piece of user memory is, or why it is nowhere."""

    MAPPED = "mapped"
    PAGE_CACHE = "in the page cache, not mapped"
    VDSO = "in the kernel's image, not mapped"
    UNTOUCHED = "never written, reads as zeros"
    SWAPPED = "swapped out"
    SPECIAL = "no page: migrating, poisoned or a marker"
    NOT_CACHED = "not mapped, and not in the page cache"
    BEYOND_FILE = "beyond the end of the file"
    NOT_PRESENT = "not mapped, and no file or memory stands behind it"
    NO_TABLE = "its page table cannot be read"
    UNKNOWN = "the page cache cannot be read"


class Piece(NamedTuple):
    """User addresses that are in one place.

    :param paddr: physical address of the first byte, None where there is none
    """

    start: int
    end: int
    where: Where
    paddr: int | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


class UserPages:
    """The pages of one address space.

    :ivar problems: gets what is damaged, one line each
    """

    def __init__(self, kernel: Kernel, mm: int) -> None:
        """Find the page tables.

        :raise FaultError: they cannot be found
        """
        self._kernel = kernel
        (pgd,) = kernel.fields("mm_struct", ["pgd"]).read(mm)
        root = kernel.memory.translate(pgd)
        self._table: PageTable = kernel.memory.page_table.with_root(root)
        self._nr_swapfiles = kernel.once("nr_swapfiles", lambda: _swapfiles(kernel))
        self._vdso, self._vdso_image = _vdso(kernel, mm)
        self._nr_pages = 0
        self.problems: list[str] = []

    def pieces(self, vma: Vma) -> Iterator[Piece]:
        """Yield all of a mapping, in order, without gaps; neighbours are merged.

        :raise CorruptError: the page tables are damaged
        """
        last: Piece | None = None
        for piece in self._all_pieces(vma):
            if last and _follows(last, piece):
                last = last._replace(end=piece.end)
            else:
                if last:
                    yield last
                last = piece
        if last:
            yield last

    def _all_pieces(self, vma: Vma) -> Iterator[Piece]:
        at = vma.start
        for piece in self._table_pieces(vma):
            if at < piece.start:
                yield from self._absent(vma, at, piece.start)
            yield piece
            at = piece.end
        if at < vma.end:
            yield from self._absent(vma, at, vma.end)

    def _table_pieces(self, vma: Vma) -> Iterator[Piece]:
        unreadable: list[tuple[int, int]] = []
        for leaf in self._table.user_pages(vma.start, vma.end, unreadable):
            self._nr_pages += leaf.size // _PAGE
            if self._nr_pages > _MAX_PAGES:
                raise CorruptError(
                    f"the page tables of this process map more than {_MAX_PAGES} pages"
                )
            for start, end in unreadable:
                yield Piece(start, end, Where.NO_TABLE)
            unreadable.clear()
            yield self._leaf_piece(vma, leaf)
        for start, end in unreadable:
            yield Piece(start, end, Where.NO_TABLE)

    def _leaf_piece(self, vma: Vma, leaf: UserPage) -> Piece:
        # A huge page may reach beyond the mapping.
        start = max(leaf.vaddr, vma.start)
        end = min(leaf.vaddr + leaf.size, vma.end)
        if leaf.paddr is not None:
            return Piece(start, end, Where.MAPPED, leaf.paddr + start - leaf.vaddr)
        is_swap = leaf.swap[0] < self._nr_swapfiles
        return Piece(start, end, Where.SWAPPED if is_swap else Where.SPECIAL)

    def _absent(self, vma: Vma, start: int, end: int) -> Iterator[Piece]:
        if vma.start == self._vdso and self._vdso_image:
            yield from self._vdso_pieces(vma, start, end)
        elif vma.is_anonymous and not vma.flags & (VM_HUGETLB | VM_UFFD_MISSING):
            yield Piece(start, end, Where.UNTOUCHED)
        elif not vma.file or vma.flags & (VM_HUGETLB | VM_PFNMAP | VM_IO):
            yield Piece(start, end, Where.NOT_PRESENT)
        else:
            yield from self._cached(vma, start, end)

    def _vdso_pieces(self, vma: Vma, start: int, end: int) -> Iterator[Piece]:
        # vdso_fault(): page by page what the kernel was built with.
        for at in range(start, end, _PAGE):
            try:
                source = self._kernel.memory.translate(
                    self._vdso_image + at - vma.start
                )
            except FaultError:
                yield Piece(at, at + _PAGE, Where.NOT_PRESENT)
            else:
                yield Piece(at, at + _PAGE, Where.VDSO, source)

    def _cached(self, vma: Vma, start: int, end: int) -> Iterator[Piece]:
        try:
            file = cached_file(self._kernel, vma.file)
        except KdumpError as error:
            self.problems.append(f"the file mapped at {vma.start:#x}: {error}")
            yield Piece(start, end, Where.UNKNOWN)
            return
        delta = vma.start - (vma.pgoff << 12)
        first, last = (start - delta) >> 12, (end - delta) >> 12
        for low, high, paddr in file.pages(first, last):
            if first < low:
                yield from _uncached(file, first, low, delta)
            yield Piece(
                (low << 12) + delta, (high << 12) + delta, Where.PAGE_CACHE, paddr
            )
            first = high
        if first < last:
            yield from _uncached(file, first, last, delta)


def _uncached(file: CachedFile, first: int, last: int, delta: int) -> Iterator[Piece]:
    # Indices of pages that the cache does not have.
    end = (file.size + _PAGE - 1) >> 12
    inside = min(last, max(first, end))
    hole = Where.UNTOUCHED if file.is_shmem else Where.NOT_CACHED
    at = first
    for index in sorted(i for i in file.swapped if first <= i < inside):
        if at < index:
            yield _file_piece(at, index, hole, delta)
        yield _file_piece(index, index + 1, Where.SWAPPED, delta)
        at = index + 1
    if at < inside:
        yield _file_piece(at, inside, hole, delta)
    if inside < last:
        yield _file_piece(inside, last, Where.BEYOND_FILE, delta)


def _file_piece(first: int, last: int, where: Where, delta: int) -> Piece:
    return Piece((first << 12) + delta, (last << 12) + delta, where)


def _follows(one: Piece, other: Piece) -> bool:
    if one.where is not other.where:
        return False
    return other.paddr is None or other.paddr == (one.paddr or 0) + one.size


def _vdso(kernel: Kernel, mm: int) -> tuple[int, int]:
    # Where the vDSO is mapped, and its image in the kernel.
    if not kernel.has_member("mm_struct", "context.vdso_image"):
        return 0, 0
    paths = ["context.vdso", "context.vdso_image"]
    mapped, image = kernel.fields("mm_struct", paths).read(mm)
    if not mapped or not image:
        return 0, 0
    (data,) = kernel.fields("vdso_image", ["data"]).read(image)
    return mapped, data


def _swapfiles(kernel: Kernel) -> int:
    # Types from here on are no swap (include/linux/swap.h: MAX_SWAPFILES).
    try:
        return kernel.reader.u32(kernel.symbol("nr_swapfiles"))
    except KdumpError:
        return 0  # CONFIG_SWAP=n
