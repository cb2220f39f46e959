# SPDX-License-Identifier: GPL-2.0-or-later
"""Threads and memory of the dump given to gdb, in one of two ways that look alike.

A flat file is read by gdb itself, through the view core; any other, and one in too many
pieces, by our gdb remote server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdbkdump.debugger import server
from gdbkdump.debugger.inferiors import load_core
from gdbkdump.errors import KdumpError
from gdbkdump.render.escape import decode, escape
from gdbkdump.target.threads import KernelThread, Threads, kernel_threads
from gdbkdump.target.viewcore import MAX_RANGES, kernel_ranges, write_view_core

if TYPE_CHECKING:
    from pathlib import Path

    from gdbkdump.session import Session
    from gdbkdump.target.viewcore import Range

# gdb looks at no memory without a thread; of a core that has none it invents this one.
_NO_THREAD = KernelThread(1, 0, b"?", 0, {})


def load_view(session: Session, folder: Path, transport: str) -> Threads:
    """Give gdb the threads and the memory of the dump.

    :param folder: private, for what gdb is given
    :param transport: ``core``, ``remote`` or ``auto``
    """
    # The ranges first: their walk spares each thread's stack one of its own.
    ranges = _core_ranges(session, transport)
    threads = _threads(session)
    if ranges is None:
        some = threads.threads or [_NO_THREAD]
        server.connect(session.kernel, some, folder)
    else:
        core = folder / "view.core"
        arch = session.kernel.arch
        write_view_core(core, arch, threads.threads, ranges, session.path)
        load_core(core)
    names = {thread.id: _thread_name(thread) for thread in threads.threads}
    for thread in gdb.selected_inferior().threads():
        thread.name = names.get(thread.ptid[1], "?")
    return threads


def _core_ranges(session: Session, transport: str) -> list[Range] | None:
    # None where the server has to do.
    if transport == "remote" or not session.dump.is_flat:
        return None
    ranges = kernel_ranges(session.kernel, session.dump, session.problems)
    return ranges if len(ranges) <= MAX_RANGES or transport == "core" else None


def _threads(session: Session) -> Threads:
    try:
        return kernel_threads(session.kernel)
    except KdumpError as error:
        # Without types or tasks the memory is still there to be looked at.
        session.problems.append(f"gdb has no threads: {error}")
        return Threads()


def _thread_name(thread: KernelThread) -> str:
    name = escape(decode(thread.name))
    return f"{name} [{thread.mark}]" if thread.mark else name
