# SPDX-License-Identifier: GPL-2.0-or-later
"""XArrays (``include/linux/xarray.h``, ``lib/xarray.c``), loop-proof.

An IDR, a page cache and, since Linux kernel commit f8d5d0cc145c ("xarray: Add
definition of struct xarray") (in v4.20), a radix tree are xarrays underneath.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.debuginfo.layout import ArrayType
from gdbkdump.errors import CorruptError, FaultError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.kernel.base import Kernel

MASK64 = (1 << 64) - 1
_INTERNAL_LIMIT = 4096  # internal entries up to here are no nodes (xa_is_node())
XA_ZERO_ENTRY = 257 << 2 | 2


def xa_is_value(entry: int) -> bool:
    """Tell whether an entry is an integer, not a pointer."""
    return bool(entry & 1)


def xa_is_internal(entry: int) -> bool:
    """Tell whether an entry is the tree's own: a node, sibling, retry or zero entry."""
    return entry & 3 == 2


def xa_is_node(entry: int) -> bool:
    """Tell whether an entry points to a ``struct xa_node``."""
    return xa_is_internal(entry) and entry > _INTERNAL_LIMIT


class _Node(NamedTuple):
    address: int
    shift: int
    slots: tuple[int, ...]


class _Nodes:
    # Reads struct xa_node; the number of slots tells how many bits a level decodes.
    def __init__(self, kernel: Kernel) -> None:
        type_ = kernel.struct("xa_node")
        slots = type_.member("slots")
        array = slots.type.strip()
        assert isinstance(array, ArrayType)
        self.chunk = array.count
        self._shift = type_.offset("shift")
        self._slots = slots.offset
        self._reader = kernel.reader

    def read(self, entry: int, xa: int, above: int) -> _Node:
        # above: the shift of the node that points here; shifts fall on every way down,
        # so no path is endless.
        address = entry - 2
        try:
            shift = self._reader.u8(address + self._shift)
            slots = self._reader.array(address + self._slots, "Q", self.chunk)
        except FaultError as fault:
            raise CorruptError(
                f"xarray at {xa:#x} breaks at node {address:#x}: {fault}"
            ) from None
        if shift >= above:
            raise CorruptError(
                f"xarray at {xa:#x} is damaged at node {address:#x}: shift {shift}"
                f" below one of {above}"
            )
        return _Node(address, shift, tuple(slots))


def _head(kernel: Kernel, xa: int) -> int:
    try:
        return kernel.reader.u64(xa + kernel.struct("xarray").offset("xa_head"))
    except FaultError as fault:
        raise CorruptError(f"xarray at {xa:#x}: {fault}") from None


def xa_load(kernel: Kernel, xa: int, index: int) -> int:
    """Return the entry at an index, 0 if there is none.

    :param xa: ``struct xarray *``
    :raise CorruptError: the array is damaged
    """
    entry = _head(kernel, xa)
    if not xa_is_node(entry):
        return _plain(entry) if index == 0 else 0
    nodes = _Nodes(kernel)
    above = 64
    is_top = True
    while xa_is_node(entry):
        node = nodes.read(entry, xa, above)
        if is_top and index >> node.shift >= nodes.chunk:
            return 0
        is_top, above = False, node.shift
        slot = (index >> node.shift) & (nodes.chunk - 1)
        entry = node.slots[slot]
        if _is_sibling(entry, nodes.chunk):
            # An entry of several slots: the others name the first.
            entry = node.slots[entry >> 2]
    return _plain(entry)


def xa_for_each(
    kernel: Kernel,
    xa: int,
    *,
    head: int | None = None,
    problems: list[str] | None = None,
) -> Iterator[tuple[int, int]]:
    """Yield index and entry of all that is stored; a multi-index entry comes once.

    :param xa: ``struct xarray *``
    :param head: entry to begin with instead of the array's own (a node's address + 2)
    :param problems: gets a line for each node that is damaged, and the walk goes on
    :return: entries are ``void *``, or value entries, see ``xa_is_value()``
    :raise CorruptError: the array loops or leaves readable memory
    """
    entry = _head(kernel, xa) if head is None else head
    if not xa_is_node(entry):
        if _plain(entry):
            yield 0, entry
        return
    nodes = _Nodes(kernel)
    seen = {entry}
    # Nodes under way: the node, index of its first slot, next slot.
    path = [(nodes.read(entry, xa, 64), 0, 0)]
    while path:
        node, first, slot = path.pop()
        if slot >= nodes.chunk:
            continue
        path.append((node, first, slot + 1))
        entry = node.slots[slot]
        index = first + (slot << node.shift) & MASK64
        if xa_is_node(entry):
            try:
                if entry in seen:
                    raise CorruptError(
                        f"xarray at {xa:#x} loops at node {entry - 2:#x}"
                    )
                seen.add(entry)
                path.append((nodes.read(entry, xa, node.shift), index, 0))
            except CorruptError as error:
                if problems is None:
                    raise
                problems.append(str(error))
        elif _plain(entry) and not _is_sibling(entry, nodes.chunk):
            yield index, entry


def _is_sibling(entry: int, chunk: int) -> bool:
    # The last slot never is the first of several.
    return xa_is_internal(entry) and entry >> 2 < chunk - 1


def _plain(entry: int) -> int:
    # What the normal API sees: no zero, retry or error entries.
    return 0 if xa_is_internal(entry) else entry
