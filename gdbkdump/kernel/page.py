# SPDX-License-Identifier: GPL-2.0-or-later
"""Page frames and their ``struct page`` (``include/linux/mm_types.h``, ``mm.h``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import CorruptError, FaultError

if TYPE_CHECKING:
    from gdbkdump.kernel.base import Kernel

_MAX_PAGES = 1 << 18  # of 1 GiB


class _Layout(NamedTuple):
    # Offsets from a (first) struct page; that of the number of pages is of 32 bits.
    base: int
    size: int
    flags: int
    head_bit: int
    first: int
    nr_pages: int


class FilePages(NamedTuple):
    """Pages of a file that are one after the other in memory.

    :param first: index of the first in the file
    """

    first: int
    nr_pages: int
    paddr: int


def _layout(kernel: Kernel) -> _Layout:
    return kernel.once("struct page", lambda: _read_layout(kernel))


def _read_layout(kernel: Kernel) -> _Layout:
    page = kernel.struct("page")
    # Since Linux kernel commit acc53a0b4c15 ("mm: rename page->index to
    # page->__folio_index") (in v6.16).
    index = kernel.first_member("page", "__folio_index", "index")
    head = kernel.constant("pageflags", "PG_head")
    if head is None:
        raise CorruptError("this kernel does not say which page flag is PG_head")
    # A variable since CONFIG_DYNAMIC_MEMORY_LAYOUT (v4.16).
    base = kernel.reader.u64(kernel.symbol("vmemmap_base"))
    return _Layout(
        base,
        page.size,
        page.offset("flags"),
        head,
        page.offset(index),
        _count_offset(kernel, page.size),
    )


def _count_offset(kernel: Kernel, size: int) -> int:
    # In the second page: compound_nr since Linux kernel commit 1378a5ee451a ("mm: store
    # compound_nr as well as compound_order") (in v5.9), then in the folio, since
    # bf75f2000cf2 ("mm/huge_memory: introduce ..._folio_nr_pages") (in v5.18), which is
    # _nr_pages from 6.15 on.
    for name in ("_nr_pages", "_folio_nr_pages"):
        if kernel.has_member("folio", name):
            return kernel.struct("folio").offset(name)
    return size + kernel.struct("page").offset("compound_nr")


def page_to_pfn(kernel: Kernel, page: int) -> int:
    """Return the number of the page frame of a ``struct page *``.

    :raise CorruptError: there is none at that address
    """
    layout = _layout(kernel)
    pfn, rest = divmod(page - layout.base, layout.size)
    if rest or pfn < 0:
        raise CorruptError(f"{page:#x} is no struct page")
    return pfn


def file_pages(kernel: Kernel, page: int) -> FilePages:
    """Return what a ``struct page *`` or ``struct folio *`` of the page cache holds.

    :raise CorruptError: it is none, or damaged
    """
    layout = _layout(kernel)
    pfn = page_to_pfn(kernel, page)
    try:
        first = kernel.reader.u64(page + layout.first)
        flags = kernel.reader.u64(page + layout.flags)
        several = flags >> layout.head_bit & 1
        count = kernel.reader.u32(page + layout.nr_pages) if several else 1
    except FaultError as fault:
        raise CorruptError(f"struct page at {page:#x}: {fault}") from None
    if not 0 < count <= _MAX_PAGES or first >> 52:
        raise CorruptError(
            f"struct page at {page:#x} is damaged: {count} pages at {first:#x}"
        )
    return FilePages(first, count, pfn << kernel.arch.page_shift)
