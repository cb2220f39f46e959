# SPDX-License-Identifier: GPL-2.0-or-later
"""What cannot be done with a dump, refused in one way however gdb reads it.

gdb finds by itself that a core does not run, but it takes our server for a program that
does: it would ask before it quits, and have the server do what it cannot. And told to
``run``, gdb 13 forgets a core before it looks for a program. So commands have hooks,
which say what gdb says of a core, where the selected inferior is a dump.
"""

from __future__ import annotations

import contextlib
import sys

import gdb

from gdbkdump.debugger import server

_HOOK = "maintenance before-dump-command"
_NOT_RUN = "The program is not being run."
_NO_PROCESS = "You can't do that without a process to debug."
_IS_OPEN = (
    "A dump is open here: leave it with detach, or begin with add-inferior"
    " -no-connection."
)
_REFUSED = {
    **dict.fromkeys(
        ("advance", "checkpoint", "continue", "finish", "jump", "next", "nexti",
         "queue-signal", "reverse-continue", "reverse-finish", "reverse-next",
         "reverse-nexti", "reverse-step", "reverse-stepi", "signal", "step", "stepi",
         "until"),
        _NOT_RUN,
    ),
    **dict.fromkeys(
        ("generate-core-file", "kill", "kill inferiors", "load", "restore", "return"),
        _NO_PROCESS,
    ),
    **dict.fromkeys(
        ("attach", "run", "start", "starti", "target extended-remote", "target native",
         "target remote"),
        _IS_OPEN,
    ),
    "info program": "The program being debugged is not being run.",
}  # fmt: skip
_CALLS = "may-call-functions"


class Standstill:
    """Connections of gdb's to what stands still: dumps, and processes in them."""

    def __init__(self) -> None:
        """Begin with none; nothing of gdb's is changed before the first."""
        self._connections: set[gdb.TargetConnection] = set()
        self._are_hooks_defined = False
        self._may_call = True

    def add_selected(self) -> None:
        """Take the connection of the inferior that is selected."""
        connection = gdb.selected_inferior().connection
        if connection is None:
            return
        if not self._are_hooks_defined:
            self._are_hooks_defined = True
            _Before(self)
            gdb.events.connection_removed.connect(self._remove)
        if not self._connections:
            # A call would be written to the stack first, and that be the error.
            self._may_call = bool(gdb.parameter(_CALLS))
            gdb.execute(f"set {_CALLS} off")
        self._connections.add(connection)

    def _remove(self, event: gdb.ConnectionEvent) -> None:
        if event.connection not in self._connections:
            return
        self._connections.discard(event.connection)
        if not self._connections and self._may_call:
            gdb.execute(f"set {_CALLS} on")

    def before(self, command: str) -> None:
        """Do what has to be done before a command of gdb's, or refuse it."""
        if command == "quit":
            self._before_quit()
        elif gdb.selected_inferior().connection not in self._connections:
            return
        elif command == "core-file":
            # It takes the place of a core without a question, so of our server too.
            server.disconnect()
        else:
            raise gdb.GdbError(_REFUSED[command])

    def _before_quit(self) -> None:
        # gdb asks before it leaves what it takes for a running program.
        if not any(self._runs(inferior) for inferior in gdb.inferiors()):
            gdb.execute("set confirm off")

    def _runs(self, inferior: gdb.Inferior) -> bool:
        connection = inferior.connection
        is_dump = connection in self._connections
        return bool(connection and inferior.pid and not is_dump)


class _Before(gdb.Command):
    """Refuse what a dump cannot do, or prepare what it can."""

    def __init__(self, standstill: Standstill) -> None:
        super().__init__(_HOOK, gdb.COMMAND_MAINTENANCE)
        self._standstill = standstill
        hooked = {"core-file", "quit", *_REFUSED}
        if "gdb.dap" in sys.modules:
            # There it is how a client's session ends.
            hooked -= {"kill", "kill inferiors"}
        for command in sorted(hooked):
            _define_hook(command)

    def invoke(self, argument: str, from_tty: bool) -> None:
        self._standstill.before(argument)


def _define_hook(command: str) -> None:
    # The hook of "target remote" is "target hook-remote".
    prefix, _, word = command.rpartition(" ")
    name = f"{prefix} hook-{word}".strip()
    with contextlib.suppress(gdb.error):
        gdb.execute(f"show user {name}", to_string=True)
        return  # the user's own
    gdb.execute(f"define {name}\n{_HOOK} {command}\nend", to_string=True)
