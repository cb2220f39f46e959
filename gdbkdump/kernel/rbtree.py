# SPDX-License-Identifier: GPL-2.0-or-later
"""Red-black trees (``include/linux/rbtree.h``, ``lib/rbtree.c``), loop-proof."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdbkdump.errors import CorruptError, FaultError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.kernel.base import Kernel

# More than any tree of a live kernel; bounds one that runs wild.
MAX_NODES = 1 << 24


def rbtree_inorder_for_each(kernel: Kernel, root: int) -> Iterator[int]:
    """Yield the nodes of a tree in order.

    :param root: ``struct rb_root *``, or ``struct rb_root_cached *``, which begins so
    :return: ``struct rb_node *``
    :raise CorruptError: the tree loops or leaves readable memory
    """
    try:
        top = kernel.reader.u64(root + kernel.struct("rb_root").offset("rb_node"))
    except FaultError as fault:
        raise CorruptError(f"rb_root at {root:#x}: {fault}") from None
    return rb_subtree(kernel, top, root)


def rb_subtree(kernel: Kernel, node: int, root: int = 0) -> Iterator[int]:
    """Yield the nodes at and below a node in order.

    :param node: ``struct rb_node *``, may be NULL
    :param root: what an error names as the root; the node itself if 0
    """
    read = kernel.fields("rb_node", ["rb_left", "rb_right"]).read
    path: list[tuple[int, int]] = []  # nodes whose left side is done: node, right child
    seen: set[int] = set()
    root = root or node
    while node or path:
        while node:
            if node in seen or len(seen) >= MAX_NODES:
                raise CorruptError(f"rbtree at {root:#x} loops at node {node:#x}")
            seen.add(node)
            try:
                left, right = read(node)
            except FaultError as fault:
                raise CorruptError(
                    f"rbtree at {root:#x} breaks at node {node:#x}: {fault}"
                ) from None
            path.append((node, right))
            node = left
        here, node = path.pop()
        yield here
