# SPDX-License-Identifier: GPL-2.0-or-later
"""Radix trees (``include/linux/radix-tree.h``), loop-proof.

Three eras, told apart by their members: an xarray since Linux kernel commit
f8d5d0cc145c ("xarray: Add definition of struct xarray") (in v4.20); nodes with a shift
since c12e51b07b3a ("radix-tree: replace node->height with node->shift") (in v4.7);
before, a height, and plain pointers between nodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.debuginfo.layout import ArrayType
from gdbkdump.errors import CorruptError, FaultError
from gdbkdump.kernel.xarray import xa_for_each

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.kernel.base import Kernel

_INTERNAL = 1  # bit 0: RADIX_TREE_INTERNAL_NODE, before 4.7 RADIX_TREE_INDIRECT_PTR
_EXCEPTIONAL = 2
_MAX_SHIFT = 64


class _Layout(NamedTuple):
    # Offsets in struct radix_tree_node; bits that a level decodes.
    chunk: int
    bits: int
    slots: int
    level: int
    has_shift: bool


def is_xarray(kernel: Kernel) -> bool:
    """Tell whether the kernel's radix trees are xarrays."""
    return not kernel.has_member("radix_tree_root", "rnode")


def radix_tree_for_each(
    kernel: Kernel, root: int, problems: list[str] | None = None
) -> Iterator[tuple[int, int]]:
    """Yield index and entry of all that is stored; a multi-order entry comes once.

    :param root: ``struct radix_tree_root *``
    :param problems: of an xarray, see ``xa_for_each()``
    :return: entries are ``void *``; before 4.20 exceptional ones have bit 1 set
    :raise CorruptError: the tree loops or leaves readable memory
    """
    if is_xarray(kernel):
        return xa_for_each(kernel, root, problems=problems)
    try:
        offset = kernel.struct("radix_tree_root").offset("rnode")
        entry = kernel.reader.u64(root + offset)
    except FaultError as fault:
        raise CorruptError(f"radix tree at {root:#x}: {fault}") from None
    return radix_subtree(kernel, entry, root)


def radix_subtree(kernel: Kernel, entry: int, root: int) -> Iterator[tuple[int, int]]:
    """Yield index and entry of all below an entry of a tree of before 4.20."""
    if entry & 3 != _INTERNAL:
        if entry:
            yield 0, entry
        return
    layout = _layout(kernel)
    shift = _shift(kernel, layout, entry, root)
    seen = {entry}
    path = [(_slots(kernel, layout, entry, root), shift, 0, 0, entry)]
    while path:
        slots, shift, first, slot, node = path.pop()
        if slot >= layout.chunk:
            continue
        path.append((slots, shift, first, slot + 1, node))
        child = slots[slot]
        index = first + (slot << shift)
        if not child or _is_sibling(layout, child, node):
            continue
        if not _is_node(layout, child, shift):
            yield index, child
            continue
        if child in seen:
            raise CorruptError(f"radix tree at {root:#x} loops at node {child & -4:#x}")
        seen.add(child)
        below = shift - layout.bits
        if layout.has_shift:
            below = _shift(kernel, layout, child, root)
        if not 0 <= below < shift:
            raise CorruptError(
                f"radix tree at {root:#x} is damaged at node {child & -4:#x}"
            )
        path.append((_slots(kernel, layout, child, root), below, index, 0, child))


def _layout(kernel: Kernel) -> _Layout:
    type_ = kernel.struct("radix_tree_node")
    array = type_.member("slots").type.strip()
    assert isinstance(array, ArrayType)
    has_shift = type_.has("shift")
    level = kernel.first_member("radix_tree_node", "shift", "path", "height")
    return _Layout(
        array.count,
        array.count.bit_length() - 1,
        type_.offset("slots"),
        type_.offset(level),
        has_shift,
    )


def _shift(kernel: Kernel, layout: _Layout, entry: int, root: int) -> int:
    # Bits below those that the node decodes.
    address = (entry & ~3) + layout.level
    try:
        if layout.has_shift:
            shift = kernel.reader.u8(address)
        else:
            # The low bits of path are the height (RADIX_TREE_HEIGHT_MASK).
            shift = ((kernel.reader.u32(address) & 0xF) - 1) * layout.bits
    except FaultError as fault:
        raise _broken(entry, root, fault) from None
    if not 0 <= shift < _MAX_SHIFT:
        raise CorruptError(
            f"radix tree at {root:#x} is damaged at node {entry & -4:#x}"
        )
    return shift


def _slots(kernel: Kernel, layout: _Layout, entry: int, root: int) -> tuple[int, ...]:
    try:
        address = (entry & ~3) + layout.slots
        return tuple(kernel.reader.array(address, "Q", layout.chunk))
    except FaultError as fault:
        raise _broken(entry, root, fault) from None


def _broken(entry: int, root: int, fault: FaultError) -> CorruptError:
    return CorruptError(
        f"radix tree at {root:#x} breaks at node {entry & -4:#x}: {fault}"
    )


def _is_node(layout: _Layout, entry: int, shift: int) -> bool:
    # Before 4.7 the height alone tells nodes from entries.
    if layout.has_shift:
        return entry & 3 == _INTERNAL
    return shift > 0 and not entry & _EXCEPTIONAL


def _is_sibling(layout: _Layout, entry: int, node: int) -> bool:
    # is_sibling_entry(): a pointer into the node's own slots.
    start = (node & ~3) + layout.slots
    return (
        layout.has_shift
        and entry & 3 == _INTERNAL
        and start <= entry & ~3 < start + 8 * layout.chunk
    )
