# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of pids (``kernel/pid.c``): it leads to tasks that no list leads to.

Each number of the first pid namespace, in which all tasks are, has a ``struct pid``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdbkdump.errors import KdumpError
from gdbkdump.kernel.radixtree import radix_tree_for_each

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.kernel.base import Kernel


def pid_table(kernel: Kernel, problems: list[str]) -> Iterator[tuple[int, int]]:
    """Yield number and ``struct pid *`` of all in ``init_pid_ns``.

    :param problems: gets a line for each part of the table that cannot be read
    """
    try:
        # Since Linux kernel commit 95846ecf9dac ("pid: replace pid bitmap
        # implementation with IDR API") (in v4.15); before, numbers were hashed.
        offset = kernel.struct("pid_namespace").offset("idr.idr_rt")
        root = kernel.symbol("init_pid_ns") + offset
        yield from radix_tree_for_each(kernel, root, problems)
    except KdumpError as error:
        problems.append(f"the table of pids: {error}")


def pid_task(kernel: Kernel, pid: int) -> int:
    """Return the ``struct task_struct *`` of a thread id, 0 if it has gone.

    :param pid: ``struct pid *``
    :raise FaultError: it cannot be read
    """
    # PIDTYPE_PID is the first of both arrays. Up to 4.18 a link had more members.
    links = kernel.first_member("task_struct", "pid_links", "pids")
    node = kernel.reader.u64(pid + kernel.struct("pid").offset("tasks"))
    return node - kernel.struct("task_struct").offset(links) if node else 0
