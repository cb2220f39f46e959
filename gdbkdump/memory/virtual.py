# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel and user virtual memory: linear windows first, page tables for the rest.

The direct map and the kernel image are linear, so most reads need one bisection and no
walk; the windows come from the dump's own headers and are used only after the page
tables of the dump confirm them.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from gdbkdump.errors import CorruptError, FaultError, FaultReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gdbkdump.arch.base import Mapping, PageTable

    ReadPhys = Callable[[int, int], bytes]

MASK64 = 0xFFFFFFFFFFFFFFFF
# Bounds one read: nothing in a kernel that we read at once is larger.
MAX_READ = 1 << 30
_MAX_PAGES = 1 << 20
_PAGE = 4096


class MappedMemory:
    """Memory behind page tables, with an optional set of linear windows.

    :param windows: ``(start, end, virtual - physical)``, not overlapping
    """

    def __init__(
        self,
        read_phys: ReadPhys,
        page_table: PageTable,
        windows: Iterable[tuple[int, int, int]] = (),
    ) -> None:
        """Take an address space; nothing is read yet."""
        self.page_table = page_table
        self.read_phys = read_phys
        self.windows = sorted(windows)
        self._starts = [start for start, _, _ in self.windows]
        self._ends = [(end, delta) for _, end, delta in self.windows]
        self._pages: dict[int, int] = {}

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes at a virtual address.

        :raise FaultError: not all of them can be had
        """
        i = bisect_right(self._starts, address) - 1
        if i >= 0:
            end, delta = self._ends[i]
            if address + size <= end:
                try:
                    return self.read_phys(address - delta, size)
                except FaultError as fault:
                    raise FaultError(
                        "virtual", fault.address + delta, fault.reason
                    ) from None
        return self._read_pages(address, size)

    def _read_pages(self, address: int, size: int) -> bytes:
        if not 0 <= size <= MAX_READ:
            raise CorruptError(f"a read of {size} bytes at {address:#x} is absurd")
        if not 0 <= address <= MASK64 + 1 - size:
            raise FaultError("virtual", address & MASK64, FaultReason.NONCANONICAL)
        pieces = []
        while size > 0:
            paddr = self.translate(address)
            step = min(size, _PAGE - (address & (_PAGE - 1)))
            try:
                pieces.append(self.read_phys(paddr, step))
            except FaultError as fault:
                where = address + fault.address - paddr
                raise FaultError("virtual", where, fault.reason) from None
            address += step
            size -= step
        return b"".join(pieces)

    def translate(self, address: int) -> int:
        """Return the physical address of a virtual one.

        :raise FaultError: it is not mapped
        """
        i = bisect_right(self._starts, address) - 1
        if i >= 0:
            end, delta = self._ends[i]
            if address < end:
                return address - delta
        page = address >> 12
        paddr = self._pages.get(page)
        if paddr is None:
            leaf = self.page_table.translate(address)
            paddr = leaf.paddr + ((address & -_PAGE) - leaf.vaddr)
            if len(self._pages) > _MAX_PAGES:
                self._pages.clear()
            self._pages[page] = paddr
        return paddr + (address & (_PAGE - 1))

    def remember(self, leaf: Mapping) -> None:
        """Keep a leaf met on a walk: reads there then need no walk of their own."""
        if leaf.size == _PAGE and len(self._pages) < _MAX_PAGES:
            self._pages[leaf.vaddr >> 12] = leaf.paddr
