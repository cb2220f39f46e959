# SPDX-License-Identifier: GPL-2.0-or-later
"""Files in the page cache (``include/linux/fs.h``: ``struct address_space``)."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from gdbkdump.errors import CorruptError, FaultError
from gdbkdump.kernel.page import file_pages
from gdbkdump.kernel.radixtree import radix_tree_for_each

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.kernel.base import Kernel


class CachedFile:
    """What of a file is in memory.

    :ivar size: of the file, in bytes
    :ivar is_shmem: whether it is shared memory or in a tmpfs: what is not there is zero
    :ivar swapped: indices of pages of shared memory that are swapped out
    """

    def __init__(
        self,
        size: int,
        runs: list[tuple[int, int, int]],
        swapped: set[int],
        *,
        is_shmem: bool = False,
    ) -> None:
        """Take runs of first index, index after the last, physical address."""
        self.size = size
        self.is_shmem = is_shmem
        self.swapped = swapped
        self._runs = runs
        self._firsts = [first for first, _, _ in runs]

    def pages(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield first index, index after the last, physical address, in order.

        Of what is cached between two indices, the second not included.
        """
        at = max(0, bisect_right(self._firsts, first) - 1)
        for low, high, paddr in self._runs[at:]:
            if low >= end:
                return
            start = max(low, first)
            if start < high:
                yield start, min(high, end), paddr + (start - low) * 4096


def cached_file(kernel: Kernel, file: int) -> CachedFile:
    """Return the page cache of a ``struct file *``.

    :raise KdumpError: its tree or a page in it is damaged
    """
    (mapping,) = kernel.fields("file", ["f_mapping"]).read(file)
    return kernel.once(("cached file", mapping), lambda: _read(kernel, mapping))


def _read(kernel: Kernel, mapping: int) -> CachedFile:
    # Since Linux kernel commit b93b016313b3 ("page cache: use xa_lock") (in v4.17).
    tree = kernel.first_member("address_space", "i_pages", "page_tree")
    offset = kernel.struct("address_space").offset(tree)
    try:
        host, operations = kernel.fields("address_space", ["host", "a_ops"]).read(
            mapping
        )
        (size,) = kernel.fields("inode", ["i_size"]).read(host)
    except FaultError as fault:
        raise CorruptError(f"address_space at {mapping:#x}: {fault}") from None
    runs: list[tuple[int, int, int]] = []
    values: set[int] = set()
    for index, entry in radix_tree_for_each(kernel, mapping + offset):
        if entry & 3:
            values.add(index)
        elif not runs or index >= runs[-1][1]:
            _append(runs, *file_pages(kernel, entry), index)
    # A value is where a page was (its shadow), but of shared memory where it is now.
    shmem = kernel.symbol("shmem_aops") if kernel.has_symbol("shmem_aops") else 0
    is_shmem = operations == shmem
    swapped = values if is_shmem else set()
    return CachedFile(max(0, size), runs, swapped, is_shmem=is_shmem)


def _append(
    runs: list[tuple[int, int, int]], first: int, count: int, paddr: int, index: int
) -> None:
    if not first <= index < first + count:
        raise CorruptError(
            f"page {index:#x} of a file is {first:#x} by its own account"
        )
    if runs and runs[-1][1] == first:
        low, high, start = runs[-1]
        if paddr == start + (high - low) * 4096:
            runs[-1] = low, first + count, start
            return
    runs.append((first, first + count, paddr))
