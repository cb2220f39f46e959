# SPDX-License-Identifier: GPL-2.0-or-later
"""Linked lists (``include/linux/list.h``, ``llist.h``), bounded and loop-proof.

A damaged list gives what it has up to the damage and then raises: which list, where.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdbkdump.errors import CorruptError, FaultError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.kernel.base import Kernel

# More than any list of a live kernel; bounds one that runs wild.
MAX_NODES = 1 << 24


def for_each(kernel: Kernel, head: int, offset: int = 0) -> Iterator[int]:
    """Yield the nodes of a circular list, without its head.

    :param head: ``struct list_head *``
    :param offset: bytes from a node to its ``next`` pointer
    :raise CorruptError: the list loops, ends in NULL or leaves readable memory
    """
    return _chain(kernel, "list", head, offset, ends_at_head=True)


def for_each_hlist(kernel: Kernel, head: int) -> Iterator[int]:
    """Yield the nodes of an hlist; nulls lists end in an odd value.

    :param head: ``struct hlist_head *``
    """
    return _chain(kernel, "hlist", head, 0, ends_at_head=False)


def for_each_llist(kernel: Kernel, head: int) -> Iterator[int]:
    """Yield the nodes of a lock-less list, newest first.

    :param head: ``struct llist_head *``
    """
    return _chain(kernel, "llist", head, 0, ends_at_head=False)


def for_each_next(kernel: Kernel, first: int, offset: int) -> Iterator[int]:
    """Yield an object and those that its ``next`` pointer leads to, up to NULL.

    The pointers are to objects, not to links within them, as in lists of old; a list
    that comes back to its first object ends there.

    :param offset: of the pointer in an object
    """
    yield first
    yield from _chain(
        kernel, "list", first, offset, ends_at_head=True, ends_at_null=True
    )


def _chain(
    kernel: Kernel,
    kind: str,
    head: int,
    offset: int,
    *,
    ends_at_head: bool,
    ends_at_null: bool = False,
) -> Iterator[int]:
    u64 = kernel.reader.u64
    seen: set[int] = set()
    last = head
    while True:
        try:
            node = u64(last + offset)
        except FaultError as fault:
            raise CorruptError(
                f"{kind} at {head:#x} breaks after {len(seen)} nodes: {fault}"
            ) from None
        if node == head if ends_at_head else not node or node & 1:
            return
        if ends_at_null and not node:
            return
        if node in seen or not node or len(seen) >= MAX_NODES:
            what = "loops" if node else "ends in NULL"
            raise CorruptError(
                f"{kind} at {head:#x} {what} at {last:#x} after {len(seen)} nodes"
            )
        seen.add(node)
        yield node
        last = node
