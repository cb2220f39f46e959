# SPDX-License-Identifier: GPL-2.0-or-later
"""How large the kernel stack of a task is (``THREAD_SIZE``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdbkdump.errors import SymbolNotFoundError, TypeNotFoundError

if TYPE_CHECKING:
    from gdbkdump.kernel.base import Kernel

_MAX_STACK_SIZE = 1 << 20


def task_stack_size(kernel: Kernel) -> int:
    """Return THREAD_SIZE."""
    return kernel.once("task stack size", lambda: _find_task_stack_size(kernel))


def _find_task_stack_size(kernel: Kernel) -> int:
    # Since Linux kernel commit 8f69cba096b5 ("x86: Rename __{start,end}_init_task to
    # __{start,end}_init_stack") (in v6.10); they came with 0500871f21b2 (in v4.16).
    for start, end in (
        ("__start_init_stack", "__end_init_stack"),
        ("__start_init_task", "__end_init_task"),
    ):
        try:
            size = kernel.symbol(end) - kernel.symbol(start)
        except SymbolNotFoundError:
            continue
        if _is_stack_size(size):
            return size
    try:
        size = kernel.struct("thread_union").size
    except TypeNotFoundError:
        size = 0
    # THREAD_SIZE_ORDER is 2 but for KASAN.
    return size if _is_stack_size(size) else 4 * kernel.page_size


def _is_stack_size(size: int) -> bool:
    return 4096 <= size <= _MAX_STACK_SIZE and not size & (size - 1)
