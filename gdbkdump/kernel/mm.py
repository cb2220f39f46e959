# SPDX-License-Identifier: GPL-2.0-or-later
"""User address spaces: sizes, arguments (``include/linux/mm_types.h``, ``fs/proc``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import SymbolNotFoundError
from gdbkdump.kernel.percpu import cpus, per_cpu_ptr
from gdbkdump.memory.virtual import MASK64, MappedMemory

if TYPE_CHECKING:
    from gdbkdump.kernel.base import Kernel
    from gdbkdump.kernel.sched import Task

# MM_FILEPAGES, MM_ANONPAGES, MM_SHMEMPAGES (MM_SWAPENTS is 2); an anonymous enum, in
# this order since Linux kernel commit eca56ff906bd ("mm, shmem: add internal shmem
# resident memory accounting") (in v4.5).
RSS_COUNTERS = (0, 1, 3)
_MAX_ARGUMENTS = 128 << 10


class MmSize(NamedTuple):
    """Sizes of an address space, in pages."""

    total: int
    resident: int


class MmReader:
    """Sizes of many address spaces, each read once.

    Three eras of ``mm_struct.rss_stat``: plain counters with a cache in each task
    (SPLIT_RSS_COUNTING), then per-CPU counters since Linux kernel commit f1a7941243c1
    ("mm: convert mm's rss stats into percpu_counter") (in v6.2).
    """

    def __init__(self, kernel: Kernel) -> None:
        """Find out which era the kernel is of.

        :raise MemberNotFoundError: none that is known
        """
        self._kernel = kernel
        type_ = kernel.struct("mm_struct")
        self._is_percpu = type_.has("rss_stat[0].counters")
        if self._is_percpu:
            paths = [f"rss_stat[{i}].count" for i in RSS_COUNTERS]
            paths += [f"rss_stat[{i}].counters" for i in RSS_COUNTERS]
            self._possible = cpus(kernel, "possible")
        else:
            paths = [f"rss_stat.count[{i}].counter" for i in RSS_COUNTERS]
        self._fields = kernel.fields("mm_struct", ["total_vm", *paths])
        self._sizes: dict[int, MmSize] = {}

    def size(self, mm: int) -> MmSize:
        """Return the sizes of a ``struct mm_struct *``, without the tasks' caches.

        :raise FaultError: it cannot be read
        """
        found = self._sizes.get(mm)
        if found is None:
            total, *counters = self._fields.read(mm)
            resident = sum(counters[: len(RSS_COUNTERS)])
            if self._is_percpu:
                resident += sum(map(self._percpu_sum, counters[len(RSS_COUNTERS) :]))
            found = self._sizes[mm] = MmSize(total, max(0, resident))
        return found

    def _percpu_sum(self, counters: int) -> int:
        # percpu_counter_sum() over all possible CPUs: exact, where /proc is not.
        kernel = self._kernel
        return sum(
            kernel.reader.i32(per_cpu_ptr(kernel, counters, cpu))
            for cpu in self._possible
        )


def rss_caches(tasks: list[Task]) -> dict[int, int]:
    """Return pages that threads counted and did not yet add to their mm, by mm.

    Up to 64 events a thread before 6.2; without them the resident size is not exact.
    """
    pages: dict[int, int] = {}
    for task in tasks:
        if task.rss_cache:
            pages[task.mm] = pages.get(task.mm, 0) + task.rss_cache
    return pages


def totalram_pages(kernel: Kernel) -> int:
    """Return the pages of RAM that the kernel manages."""
    try:
        # Since Linux kernel commit ca79b0c211af ("mm: convert totalram_pages and
        # totalhigh_pages variables to atomic") (in v5.0).
        return kernel.reader.u64(kernel.symbol("_totalram_pages"))
    except SymbolNotFoundError:
        return kernel.reader.u64(kernel.symbol("totalram_pages"))


def user_memory(kernel: Kernel, mm: int) -> MappedMemory:
    """Return the user memory of a ``struct mm_struct *``."""
    pgd = kernel.object("mm_struct", mm)["pgd"]
    root = kernel.memory.translate(pgd)
    table = kernel.memory.page_table.with_root(root)
    return MappedMemory(kernel.memory.read_phys, table)


def arguments(kernel: Kernel, mm: int, kind: str) -> list[bytes]:
    """Return the ``arg`` or ``env`` strings of a process as they are in its memory.

    :raise FaultError: they are swapped out, or not in the dump
    """
    fields = kernel.fields("mm_struct", [f"{kind}_start", f"{kind}_end"])
    start, end = fields.read(mm)
    size = min(max(0, end - start), _MAX_ARGUMENTS)
    data = user_memory(kernel, mm).read(start & MASK64, size)
    return data.rstrip(b"\0").split(b"\0") if data else []
