# SPDX-License-Identifier: GPL-2.0-or-later
"""Maple trees (``include/linux/maple_tree.h``, ``lib/maple_tree.c``), loop-proof.

Since Linux kernel commit 54a611b60590 ("Maple Tree: add new data structure") (in v6.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.debuginfo.layout import ArrayType
from gdbkdump.errors import CorruptError, FaultError
from gdbkdump.kernel.xarray import MASK64, xa_is_internal, xa_is_node

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.debuginfo.layout import StructType
    from gdbkdump.kernel.base import Kernel

_TYPE_SHIFT, _TYPE_MASK = 3, 0xF
# enum maple_type, in its order since it came.
_TYPES = ("maple_dense", "maple_leaf_64", "maple_range_64", "maple_arange_64")


class _Shape(NamedTuple):
    # Where a node of one type has its parts.
    pivot: int
    nr_pivots: int
    slot: int
    nr_slots: int
    end: int
    is_leaf: bool
    has_gaps: bool

    def data_end(self, data: memoryview, pivots: list[int], last: int) -> int:
        # ma_data_end(): a range_64 node that is full has no room for metadata.
        if self.has_gaps or not pivots[-1]:
            return data[self.end]
        return self.nr_pivots - 1 if pivots[-1] == last else self.nr_pivots


class _Node(NamedTuple):
    # The entries of a node with the last index of each.
    address: int
    is_leaf: bool
    first: int
    items: tuple[tuple[int, int], ...]


class _Nodes:
    def __init__(self, kernel: Kernel, tree: int) -> None:
        self._kernel = kernel
        self._tree = tree
        # Nodes are aligned to their size, which is how a pointer has room for a type.
        self._size = kernel.struct("maple_node").size
        wide = _shape(kernel.struct("maple_range_64"))
        self._shapes = {
            "maple_leaf_64": wide._replace(is_leaf=True),
            "maple_range_64": wide,
            "maple_arange_64": _shape(kernel.struct("maple_arange_64")),
        }
        self._dense = _dense(kernel.struct("maple_node"))
        values = [kernel.constant("maple_type", name) for name in _TYPES]
        self._types = {
            default if value is None else value: name
            for default, (name, value) in enumerate(zip(_TYPES, values, strict=True))
        }

    def address(self, entry: int) -> int:
        return entry & -self._size

    def read(self, entry: int, first: int, last: int) -> _Node:
        address = self.address(entry)
        number = entry >> _TYPE_SHIFT & _TYPE_MASK
        name = self._types.get(number)
        if name is None:
            raise self.damaged(address, f"a node of type {number}")
        try:
            data = memoryview(self._kernel.reader.read(address, self._size))
        except FaultError as fault:
            raise CorruptError(
                f"maple tree at {self._tree:#x} breaks at node {address:#x}: {fault}"
            ) from None
        if name == "maple_dense":
            items = self._dense_items(data, first, last)
            return _Node(address, True, first, items)
        shape = self._shapes[name]
        return _Node(
            address,
            shape.is_leaf,
            first,
            self._items(address, shape, data, first, last),
        )

    def _items(
        self, address: int, shape: _Shape, data: memoryview, first: int, last: int
    ) -> tuple[tuple[int, int], ...]:
        # The last entry reaches to the node's end, whatever a pivot says.
        pivots = _words(data, shape.pivot, shape.nr_pivots)
        slots = _words(data, shape.slot, shape.nr_slots)
        end = shape.data_end(data, pivots, last)
        if end >= len(slots):
            raise self.damaged(address, f"its last slot is {end} of {len(slots)}")
        items = []
        low = first
        for slot, pivot in zip(slots[:end], pivots, strict=False):
            if not low <= pivot < last:
                raise self.damaged(address, f"pivot {pivot:#x} of {low:#x}-{last:#x}")
            items.append((slot, pivot))
            low = pivot + 1
        return (*items, (slots[end], last))

    def _dense_items(
        self, data: memoryview, first: int, last: int
    ) -> tuple[tuple[int, int], ...]:
        slots = _words(data, *self._dense)
        return tuple(
            (slot, first + i) for i, slot in enumerate(slots) if first + i <= last
        )

    def damaged(self, address: int, what: str) -> CorruptError:
        return CorruptError(
            f"maple tree at {self._tree:#x} is damaged at node {address:#x}: {what}"
        )


def _shape(type_: StructType) -> _Shape:
    pivot, slot = type_.member("pivot"), type_.member("slot")
    pivots, slots = pivot.type.strip(), slot.type.strip()
    assert isinstance(pivots, ArrayType) and isinstance(slots, ArrayType)
    return _Shape(
        pivot.offset,
        pivots.count,
        slot.offset,
        slots.count,
        type_.offset("meta.end"),
        False,
        type_.has("gap"),
    )


def _dense(type_: StructType) -> tuple[int, int]:
    slot = type_.member("slot")
    slots = slot.type.strip()
    assert isinstance(slots, ArrayType)
    return slot.offset, slots.count


def _words(data: memoryview, offset: int, count: int) -> list[int]:
    return data[offset : offset + 8 * count].cast("Q").tolist()


def mt_for_each(
    kernel: Kernel, tree: int, *, root: int | None = None
) -> Iterator[tuple[int, int, int]]:
    """Yield first index, last index and entry of all ranges, in order.

    :param tree: ``struct maple_tree *``
    :param root: encoded node to begin with instead of the tree's own
    :return: entries are ``void *``
    :raise CorruptError: the tree loops or leaves readable memory
    """
    entry = _root(kernel, tree) if root is None else root
    if not xa_is_node(entry) and root is None:
        if entry and not xa_is_internal(entry):
            yield 0, 0, entry
        return
    nodes = _Nodes(kernel, tree)
    seen: set[int] = set()
    todo = [(entry, 0, MASK64)]
    while todo:
        entry, first, last = todo.pop()
        node = nodes.read(entry, first, last)
        if node.address in seen:
            raise nodes.damaged(node.address, "it was met before")
        seen.add(node.address)
        ranges = _ranges(node)
        if node.is_leaf:
            # Reserved ranges hold XA_ZERO_ENTRY, gaps hold NULL.
            yield from (
                (low, high, slot)
                for slot, low, high in ranges
                if slot and not xa_is_internal(slot)
            )
        else:
            todo += reversed(ranges)


def _ranges(node: _Node) -> list[tuple[int, int, int]]:
    ranges = []
    low = node.first
    for slot, high in node.items:
        ranges.append((slot, low, high))
        low = high + 1
    return ranges


def mtree_load(kernel: Kernel, tree: int, index: int) -> int:
    """Return the entry at an index, 0 if there is none.

    :param tree: ``struct maple_tree *``
    :raise CorruptError: the tree is damaged
    """
    entry = _root(kernel, tree)
    if not xa_is_node(entry):
        return entry if index == 0 and not xa_is_internal(entry) else 0
    nodes = _Nodes(kernel, tree)
    first, last = 0, MASK64
    seen: set[int] = set()
    while True:
        node = nodes.read(entry, first, last)
        if node.address in seen:
            raise nodes.damaged(node.address, "it was met before")
        seen.add(node.address)
        ranges = _ranges(node)
        # A dense node may end before its last index.
        entry, first, last = next((r for r in ranges if index <= r[2]), (0, 0, 0))
        if node.is_leaf or not entry:
            return 0 if xa_is_internal(entry) else entry


def _root(kernel: Kernel, tree: int) -> int:
    try:
        return kernel.reader.u64(tree + kernel.struct("maple_tree").offset("ma_root"))
    except FaultError as fault:
        raise CorruptError(f"maple tree at {tree:#x}: {fault}") from None
