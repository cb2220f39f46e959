# SPDX-License-Identifier: GPL-2.0-or-later
"""The registry's commands as gdb commands: arguments, completion, output, errors."""

from __future__ import annotations

import traceback
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import gdb

from gdbkdump.commands import all_commands
from gdbkdump.commands.completion import completions, last_word
from gdbkdump.debugger import console
from gdbkdump.debugger.inferiors import keep_alone, within
from gdbkdump.debugger.standstill import Standstill
from gdbkdump.debugger.variables import frame_variables
from gdbkdump.errors import CommandError, KdumpError
from gdbkdump.render import json_text, text
from gdbkdump.render.escape import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from gdbkdump.commands import Command
    from gdbkdump.debugger.parameters import Settings
    from gdbkdump.session import FrameVariables, Session
    from gdbkdump.target.threads import KernelThread

P = ParamSpec("P")
T = TypeVar("T")
# Beyond this nobody reads a list of completions; gdb itself stops at 200.
_MAX_COMPLETIONS = 2000


class Debugger:
    """What all adapters share: the open dump, the settings, the selected thread.

    :ivar reason: why no dump is open
    :ivar standstill: what cannot run
    :ivar is_opening: whether a dump is about to take the place of what gdb has open
    :ivar while_opening: what a front end wants meanwhile
    :ivar open_pending: opens the dump that is to be opened at first use, or None
    """

    def __init__(self, settings: Settings) -> None:
        """Begin without a dump."""
        self.settings = settings
        self.standstill = Standstill()
        self.reason = "no dump is open"
        self.is_opening = False
        self.while_opening: Callable[[], AbstractContextManager[None]] = nullcontext
        self.open_pending: Callable[[], None] | None = None
        self._session: Session | None = None
        self._tasks: dict[int, int] = {}
        self._selected = 0
        self._inferior: gdb.Inferior | None = None
        self._connection: gdb.TargetConnection | None = None

    def attach(self, session: Session, threads: Iterable[KernelThread]) -> None:
        """Take an open dump."""
        self._session = session
        self._tasks = {thread.id: thread.task for thread in threads}
        self._selected = _selected_id()
        self._inferior = gdb.selected_inferior()
        self._connection = self._inferior.connection
        self.standstill.add_selected()
        session.evaluate = evaluate
        session.source_line = self.for_kernel(source_line)
        session.select_task = self.select_task
        session.frame_variables = self.frame_variables

    def detach(self) -> None:
        """Close the dump that is open, if one is."""
        if self._session is not None:
            self._session.close()
        self._session = None
        self._tasks = {}
        if self._inferior is not None and self._inferior.is_valid():
            # Processes of that dump are inferiors of their own.
            keep_alone(self._inferior)

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Tell all that look at what gdb opens that this is our doing."""
        self.is_opening = True
        try:
            with self.while_opening():
                yield
        finally:
            self.is_opening = False

    @property
    def is_open(self) -> bool:
        """Whether a dump is open."""
        return self._session is not None

    def is_ours(self, connection: gdb.TargetConnection) -> bool:
        """Tell whether it is the one that gdb has the open dump by."""
        return self.is_open and connection == self._connection

    def session(self) -> Session:
        """Return the open dump.

        :raise CommandError: there is none
        """
        if self.open_pending:
            self.open_pending()
        if self._session is None:
            raise CommandError(self.reason)
        return self._session

    def current_session(self) -> Session:
        """Return the open dump, its task that of the thread last selected in gdb."""
        session = self.session()
        selected = _selected_id()
        if selected != self._selected:
            self._selected = selected
            session.task = self._tasks.get(selected, session.task)
        return session

    def for_kernel(self, function: Callable[P, T]) -> Callable[P, T]:
        """Return the function, to be called with the kernel's inferior selected."""

        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with within(self._inferior):
                return function(*args, **kwargs)

        return call

    def select_task(self, task: int) -> None:
        """Select the thread of a task, that of the kernel's inferior."""
        assert self._inferior is not None
        for thread in self._inferior.threads() if self._inferior.is_valid() else ():
            if self._tasks.get(thread.ptid[1]) == task:
                thread.switch()
                self._selected = thread.ptid[1]
                return

    def frame_variables(self, task: int) -> list[FrameVariables]:
        """Return arguments and locals of a task's frames; the selection stays."""
        selected = gdb.selected_thread()
        chosen = self._selected
        try:
            self.select_task(task)
            return list(frame_variables())
        finally:
            # Gone, if our server has just died.
            if selected is not None and selected.is_valid():
                selected.switch()
            self._selected = chosen

    def refuse(self, error: KdumpError, code: int) -> None:
        """Say why no dump is open, now and when a command asks for it.

        :param code: to end gdb with if the user wants that; 0 goes on
        """
        self.reason = f"no dump is open: {error}"
        console.write_error(str(error))
        if code:
            self.exit_if_strict(code)

    def exit_if_strict(self, code: int) -> None:
        """End gdb with an exit code if the user wants that."""
        if self.settings.is_strict:
            gdb.execute(f"quit {code}")


def _selected_id() -> int:
    thread = gdb.selected_thread()
    return thread.ptid[1] if thread else 0


def evaluate(expression: str) -> int:
    """Return the value of an expression that the user typed.

    :raise CommandError: gdb cannot evaluate it, or it is no number
    """
    try:
        return int(gdb.parse_and_eval(expression))
    except (gdb.error, gdb.GdbError, TypeError) as error:
        raise CommandError(f"{expression}: {error}") from None


def source_line(address: int) -> str | None:
    """Return ``file:line`` of a text address, or None without DWARF."""
    found = gdb.find_pc_line(address)
    return f"{found.symtab.filename}:{found.line}" if found.symtab else None


class _KCommand(gdb.Command):
    # One command of the registry. gdb takes help and apropos from __doc__.
    def __init__(self, command: Command, debugger: Debugger) -> None:
        self.__doc__ = command.help_text()
        self._command = command
        self._debugger = debugger
        super().__init__(command.name, gdb.COMMAND_DATA)

    def invoke(self, argument: str, from_tty: bool) -> None:
        debugger = self._debugger
        try:
            args = self._command.parse(gdb.string_to_argv(argument))
            as_json = args.json or debugger.settings.is_json
            needs_dump = self._command.needs_dump
            session = debugger.current_session() if needs_dump else None
            result = self._command.run(session, args)
            if as_json:
                console.write_lines(json_text.lines(result))
            else:
                colour = debugger.settings.is_coloured
                console.write_lines(text.lines(result, colour=colour))
        except KdumpError as error:
            self._fail(error)
        except gdb.error as error:
            # gdb's own, such as unbalanced quotes.
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self._debugger.settings.shows_traceback:
            gdb.write(traceback.format_exc(), gdb.STDERR)
        line = f"gdbkdump: {escape(str(error))}"
        if self._debugger.settings.is_strict:
            gdb.flush()
            gdb.write(f"{line}\n", gdb.STDERR)
            self._debugger.exit_if_strict(1)
        raise gdb.GdbError(line)

    def complete(self, line: str, word: str | None) -> list[str] | None:
        # gdb asks first, without a word, where words break.
        if word is None:
            return None
        try:
            session = self._debugger.session()
        except KdumpError:
            return None
        # gdb's word may begin within ours, after a "-" or ":".
        skipped = len(last_word(line)) - len(word)
        found = completions(self._command, session, line)
        return [text[skipped:] for text in islice(found, _MAX_COMPLETIONS)]


def register_commands(debugger: Debugger) -> None:
    """Make every command of the registry a gdb command."""
    for command in all_commands():
        _KCommand(command, debugger)
