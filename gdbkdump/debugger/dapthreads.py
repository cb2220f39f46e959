# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb's DAP server (``gdb/python/lib/gdb/dap/``) taught that there are more inferiors.

It lists the threads of the selected inferior, and selects them with "thread N", which
counts within that one, though what it tells the client are gdb's global numbers.
"""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import gdb

from gdbkdump.debugger import console

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


def show_all_threads(new: Iterable[gdb.InferiorThread]) -> None:
    """Let the client, if there is one, see the threads of all inferiors.

    :param new: threads that it has not heard of
    """
    if "gdb.dap" not in sys.modules:
        return
    try:
        state, threads, send_event = _find_server()
    except (ImportError, AttributeError) as error:
        console.write_error(
            f"gdb {gdb.VERSION}: its DAP server shows one inferior alone: {error}"
        )
        return
    state.exec_and_log = _select
    everything = SimpleNamespace(threads=lambda: tuple(_all_threads()))
    threads.gdb = SimpleNamespace(selected_inferior=lambda: everything)
    for thread in new:
        body = {"reason": "started", "threadId": thread.global_num}
        send_event("thread", body)


def _find_server() -> tuple[Any, Any, Callable[..., object]]:
    # All that is replaced or called has to be there before anything is.
    state: Any = importlib.import_module("gdb.dap.state")
    threads: Any = importlib.import_module("gdb.dap.threads")
    server: Any = importlib.import_module("gdb.dap.server")
    assert state.exec_and_log and threads.gdb
    return state, threads, server.send_event


def _all_threads() -> Iterator[gdb.InferiorThread]:
    for inferior in gdb.inferiors():
        yield from inferior.threads()


def _select(command: str) -> None:
    number = int(command.rpartition(" ")[2])
    for thread in _all_threads():
        if thread.global_num == number:
            thread.switch()
            return
    raise gdb.GdbError(f"Unknown thread {number}.")
