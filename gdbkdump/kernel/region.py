# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel address belongs to, where the dump says so for certain.

Mirrors ``Documentation/arch/x86/x86_64/mm.rst``: the bases are variables of the kernel
(``page_offset_base``, ``vmalloc_base``, ``vmemmap_base``), as KASLR moves them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import FaultError, SymbolNotFoundError, TypeNotFoundError
from gdbkdump.kernel.percpu import cpus, per_cpu_offset
from gdbkdump.memory.virtual import MASK64

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.kernel.base import Kernel


class Region(NamedTuple):
    """What an address is part of; ``detail`` is a symbol, a module, a page number."""

    name: str
    detail: str = ""


def regions(kernel: Kernel, vaddr: int, paddr: int) -> Iterator[Region]:
    """Yield what a mapped kernel address belongs to; nothing where it is not known.

    :param paddr: where the page tables say it is
    """
    yield from _symbolic(kernel, vaddr)
    offset = _base(kernel, "page_offset_base")
    if offset is not None and vaddr - offset == paddr:
        yield Region("direct map")
    vmalloc, vmemmap = _base(kernel, "vmalloc_base"), _base(kernel, "vmemmap_base")
    if vmalloc is not None and vmemmap is not None and vmalloc <= vaddr < vmemmap:
        yield Region("vmalloc")
    size, max_pfn = _page_struct_size(kernel), _base(kernel, "max_pfn")
    if size and max_pfn and vmemmap is not None and vaddr >= vmemmap:
        pfn = (vaddr - vmemmap) // size
        if pfn < max_pfn:
            yield Region("struct page", f"pfn {pfn:#x}")


def _symbolic(kernel: Kernel, vaddr: int) -> Iterator[Region]:
    debuginfo = kernel.debuginfo
    start, end = debuginfo.image
    if start <= vaddr < end:
        symbol = debuginfo.symbol_at(vaddr)
        yield Region("kernel image", str(symbol) if symbol else "")
    for module in debuginfo.modules():
        if any(low <= vaddr < high for low, high in module.ranges):
            symbol = debuginfo.symbol_at(vaddr)
            yield Region("module", str(symbol) if symbol else module.name)
    yield from _per_cpu(kernel, vaddr)


def _per_cpu(kernel: Kernel, vaddr: int) -> Iterator[Region]:
    try:
        start = kernel.symbol("__per_cpu_start")
        end = kernel.symbol("__per_cpu_end")
    except SymbolNotFoundError:
        return
    for cpu in cpus(kernel, "possible"):
        place = (vaddr - per_cpu_offset(kernel, cpu)) & MASK64
        if start <= place < end:
            found = kernel.debuginfo.symbol_source.at(place)
            name = f": {found[0].name}+{place - found[0].address:#x}" if found else ""
            yield Region("per-CPU data", f"CPU {cpu}{name}".removesuffix("+0x0"))


def page_struct(kernel: Kernel, paddr: int) -> int | None:
    """Return the ``struct page *`` of a physical page, or None where it has none."""
    base, size = _base(kernel, "vmemmap_base"), _page_struct_size(kernel)
    # Only CONFIG_SPARSEMEM_VMEMMAP has one array of all.
    if base is None or size is None or not kernel.has_symbol("vmemmap_populate"):
        return None
    address = base + (paddr >> kernel.arch.page_shift) * size
    try:
        kernel.memory.page_table.translate(address)
    except FaultError:
        return None
    return address


def _base(kernel: Kernel, symbol: str) -> int | None:
    # Variables since CONFIG_DYNAMIC_MEMORY_LAYOUT (v4.16); else not known for certain.
    try:
        return kernel.reader.u64(kernel.symbol(symbol))
    except (SymbolNotFoundError, FaultError):
        return None


def _page_struct_size(kernel: Kernel) -> int | None:
    try:
        return kernel.struct("page").size
    except TypeNotFoundError:
        return None
