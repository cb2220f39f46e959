# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb's ``target core`` and ``core-file``, made to open a dump as we do.

IDEs open a core with the first (MI: ``-target-select core FILE``), people with either.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import gdb

from gdbkdump.debugger import console
from gdbkdump.debugger.files import find_loaded_vmlinux, open_core
from gdbkdump.errors import KdumpError
from gdbkdump.formats import is_process_core
from gdbkdump.render.escape import escape

if TYPE_CHECKING:
    from collections.abc import Callable

    from gdbkdump.debugger.adapter import Debugger

    Open = Callable[[list[Path], Path | None], object]

_HOOK = "hookpost-core-file"
_OPENED = "_kdump-core-opened"


def watch_core_commands(debugger: Debugger, open_dump: Open) -> None:
    """Let both commands open dumps.

    :param open_dump: takes the paths of the dump and that of the vmlinux or None
    """
    opener = _Opener(debugger, open_dump)
    _TargetCore(opener)
    # gdb gives such a hook no arguments, but by then it has opened the file, if it can.
    if _HOOK not in gdb.execute("show user", to_string=True):
        _CoreOpened(opener)
        gdb.execute(f"define {_HOOK}\n{_OPENED}\nend")
    # gdb 13 runs no such hook for what was typed at its prompt.
    gdb.events.before_prompt.connect(opener.at_prompt)


class _Opener:
    def __init__(self, debugger: Debugger, open_dump: Open) -> None:
        self._debugger = debugger
        self._open_dump = open_dump
        # What gdb has opened before it read us is not for this to open.
        self._seen = gdb.selected_inferior().connection

    def open(self, path: Path) -> None:
        try:
            self._open_dump([path], find_loaded_vmlinux())
        except KdumpError as error:
            self._debugger.reason = f"no dump is open: {error}"
            raise gdb.GdbError(f"gdbkdump: {escape(str(error))}") from None

    def open_new_core(self) -> None:
        """Open what gdb has opened by itself, if it is a kernel dump."""
        # Opening a dump uses core-file, which leads here again.
        connection = gdb.selected_inferior().connection
        if self._debugger.is_opening or connection == self._seen:
            return
        self._seen = connection
        if connection is None or self._debugger.is_ours(connection):
            return
        core = open_core() if connection.type == "core" else None
        if core and not is_process_core(Path(core)):
            self.open(Path(core))

    def at_prompt(self, event: object = None) -> None:
        """Do that before each prompt."""
        if self._debugger.open_pending:
            self._seen = gdb.selected_inferior().connection
            return
        try:
            self.open_new_core()
        except gdb.GdbError as error:
            console.write_error(str(error).removeprefix("gdbkdump: "))


class _TargetCore(gdb.Command):
    """Use a core file, or the dump of a Linux kernel, as a target.

    Usage: target core FILE

    A kernel dump is opened by gdbkdump: every task becomes a thread.
    """

    def __init__(self, opener: _Opener) -> None:
        self._opener = opener
        super().__init__("target core", gdb.COMMAND_FILES, gdb.COMPLETE_FILENAME)

    def invoke(self, argument: str, from_tty: bool) -> None:
        if not argument:
            raise gdb.GdbError("No core file specified.  (`detach' closes one.)")
        path = _path(argument)
        if path is None or is_process_core(path):
            gdb.write(gdb.execute(f"core-file {argument}", from_tty, to_string=True))
        else:
            self._opener.open(path)


def _path(argument: str) -> Path | None:
    # IDEs do not quote it, since older gdbs took all there is for the name.
    words = [argument]
    if not Path(argument).exists():
        words = gdb.string_to_argv(argument)
    is_one = len(words) == 1 and words[0]
    return Path(words[0]).expanduser().absolute() if is_one else None


class _CoreOpened(gdb.Command):
    """Open with gdbkdump what core-file has opened, if it is a kernel dump."""

    def __init__(self, opener: _Opener) -> None:
        self._opener = opener
        super().__init__(_OPENED, gdb.COMMAND_MAINTENANCE)

    def invoke(self, argument: str, from_tty: bool) -> None:
        self._opener.open_new_core()
