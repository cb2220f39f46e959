# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that the kernel gives back when it has booted (``free_initmem()``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdbkdump.errors import KdumpError

if TYPE_CHECKING:
    from gdbkdump.kernel.base import Kernel


def freed_init_memory(kernel: Kernel) -> tuple[int, int] | None:
    """Return where symbols are whose memory belongs to others now, or None.

    These are functions and variables of the boot and, from v6.15 on, the first values
    of per-CPU variables.
    """
    running = kernel.constant("system_states", "SYSTEM_RUNNING")
    try:
        state = kernel.reader.u32(kernel.symbol("system_state"))
        start, end = kernel.symbol("__init_begin"), kernel.symbol("__init_end")
    except KdumpError:
        return None
    if running is None or state < running:
        return None
    return start, end
