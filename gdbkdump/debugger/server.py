# SPDX-License-Identifier: GPL-2.0-or-later
"""The gdb remote server of this session: a child of gdb, on a socket of its own.

It is forked with the dump open, so nothing is read or indexed twice, and whatever
Python gdb has will do. It is a process since gdb waits for answers while it holds
Python's lock: a thread of gdb's could never give them. It ends with the connection.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import time
import traceback
from typing import TYPE_CHECKING

import gdb

from gdbkdump.debugger import console
from gdbkdump.errors import FormatError
from gdbkdump.target.remote import RemoteTarget, gdb_memory, serve_gdb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from gdbkdump.kernel.base import Kernel
    from gdbkdump.target.threads import KernelThread

# gdb connects at once, or never will.
_CONNECT_TIMEOUT_S = 60
_SETTINGS = {
    # gdb keeps lines of stack and code until another thread is selected. It needs 50 ns
    # for each byte and a reply comes in 50 us, so this is about the best for stacks.
    "dcache line-size": "512",
    # A dead server is noticed at once, and a slow disk is none.
    "remotetimeout": "86400",
    # Of a core gdb knows that it has none.
    "remote hardware-breakpoint-limit": "0",
}
# For the end of a server whose connection is gone.
_PATIENCE_S = 1.0


def connect(kernel: Kernel, threads: Sequence[KernelThread], folder: Path) -> None:
    """Start a server and make it gdb's target.

    :param folder: private, for the socket
    :raise FormatError: gdb cannot be connected
    """
    target = RemoteTarget(kernel.arch, threads, gdb_memory(kernel))
    before = {name: gdb.parameter(name) for name in _SETTINGS}
    _set(_SETTINGS)
    try:
        pid = _connect(target, folder)
    except (OSError, gdb.error) as error:
        _set(before)
        raise FormatError(f"gdb cannot reach its server of the dump: {error}") from None
    _watch(pid, before)


def _set(settings: Mapping[str, object]) -> None:
    for name, value in settings.items():
        text = "unlimited" if value is None else value
        gdb.execute(f"set {name} {text}", to_string=True)


def disconnect() -> None:
    """Leave the server of the dump that was open, if there was one."""
    connection = gdb.selected_inferior().connection
    if connection is not None and connection.type == "remote":
        gdb.execute("disconnect", to_string=True)


def _connect(target: RemoteTarget, folder: Path) -> int:
    # By this name the path is short enough for a socket, whatever the folder's is.
    directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    path = f"/proc/self/fd/{directory}/gdb"
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as undo:
        undo.callback(os.close, directory)
        listener.bind(path)
        undo.callback(os.unlink, path)
        listener.listen(1)
        pid = os.fork()
        if pid == 0:
            _serve(listener, target)
        with console.muted():
            gdb.execute(f"target remote {path}", to_string=True)
    return pid


def _serve(listener: socket.socket, target: RemoteTarget) -> None:
    # Never returns: what gdb has set up for its own end is not to run here.
    code = 1
    try:
        _leave_gdb()
        listener.settimeout(_CONNECT_TIMEOUT_S)
        connection, _ = listener.accept()
        listener.close()
        connection.settimeout(None)
        with contextlib.suppress(ConnectionError):
            serve_gdb(connection, target)
        code = 0
    finally:
        if code:
            traceback.print_exc()
        os._exit(code)


def _leave_gdb() -> None:
    # In a session of its own no signal of the terminal comes here.
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGSEGV, signal.SIGBUS):
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    # No object of gdb's may be collected in a process that is not gdb.
    gc.disable()


def _watch(pid: int, before: Mapping[str, object]) -> None:
    connection = gdb.selected_inferior().connection

    def report(event: gdb.ConnectionEvent) -> None:
        if event.connection != connection:
            return
        gdb.events.connection_removed.disconnect(report)
        # Whatever gdb is connected to next has settings of its own.
        _set(before)
        ended, status = _wait(pid)
        if not ended:
            _forget_at_prompt(pid)
        elif code := os.waitstatus_to_exitcode(status):
            why = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
            console.write_error(
                f"gdb's server of the dump {why}: for gdb's own commands open the dump"
                " again with kopen (the k-commands do not need it)"
            )

    gdb.events.connection_removed.connect(report)


def _wait(pid: int) -> tuple[int, int]:
    # Whichever side left, the server is about to end, if it is not busy. One that was
    # killed loses its connection a moment before it is gone.
    until = time.monotonic() + _PATIENCE_S
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended or time.monotonic() > until:
            return ended, status
        time.sleep(0.01)


def _forget_at_prompt(pid: int) -> None:
    # Not by gdb.post_event(): gdb 13 dies of one that is left when it quits.
    def forget(event: object = None) -> None:
        gdb.events.before_prompt.disconnect(forget)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)

    gdb.events.before_prompt.connect(forget)
