# SPDX-License-Identifier: GPL-2.0-or-later
"""Return addresses found by looking at every word of a stack: hints, no frames.

What functions left behind when they returned is found too, so nothing of this is ever
mixed with frames that were unwound.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.unwind.stacks import task_stack
from gdbkdump.unwind.unwinder import unwinder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.kernel.base import Kernel
    from gdbkdump.kernel.sched import Task

_WORDS = struct.Struct("<Q").iter_unpack


class Found(NamedTuple):
    """A word of a stack that may be a return address."""

    slot: int
    ip: int


def scan_stack(kernel: Kernel, task: Task, start: int) -> Iterator[Found]:
    """Yield what may be return addresses on a task's own stack, from ``start`` up.

    :param start: where to begin; the whole stack is scanned if it is elsewhere
    """
    if not task.stack:
        return
    stack = task_stack(kernel, task.stack)
    if not stack.start <= start < stack.end:
        start = stack.start
    start &= ~7
    calls = unwinder(kernel).calls
    symbol_at = kernel.debuginfo.symbol_at
    low, high = kernel.debuginfo.image
    modules = [r for module in kernel.debuginfo.modules() for r in module.ranges]
    data = kernel.reader.read_partial(start, stack.end - start)
    for i, (word,) in enumerate(_WORDS(data[: len(data) & ~7])):
        if low <= word < high or any(a <= word < b for a, b in modules):
            symbol = symbol_at(word - 1)
            if symbol and symbol.type in "tTwW" and calls.is_behind_call(word):
                yield Found(start + 8 * i, word)
