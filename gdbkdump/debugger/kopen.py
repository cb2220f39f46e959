# SPDX-License-Identifier: GPL-2.0-or-later
"""``kopen``: open a dump from gdb's prompt or a script."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import gdb

from gdbkdump.errors import CommandError, KdumpError, MismatchError
from gdbkdump.formats import dump_path, sort_files
from gdbkdump.render.escape import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gdbkdump.debugger.adapter import Debugger

    Open = Callable[[Sequence[Path], Path | None], object]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(f"kopen: {message}")


def _parser() -> _Parser:
    parser = _Parser("kopen", add_help=False)
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--own-symbols", action="store_true")
    parser.add_argument("--debug-dir", action="append", default=[])
    parser.add_argument("--base")
    parser.add_argument("--vmcoreinfo")
    parser.add_argument("files", nargs="+", type=Path)
    return parser


class _KOpen(gdb.Command):
    """Open a dump of a Linux kernel, in place of what gdb has open.

    Usage: kopen [OPTION]... VMCORE [VMLINUX]

    Every task becomes a thread. VMLINUX is looked for where it is not named; where
    there is none, gdb gets symbols and types of the dump itself. All files of a split
    dump may be named. What cannot be opened leaves the dump that is open as it is.

      --debug-dir DIR         look for vmlinux and modules here first (repeatable)
      --force                 use the dump's own symbols, whatever vmlinux is named
      --own-symbols           load no vmlinux: fast, without lines and locals
      --base ADDR             bare memory, of which this is the first address
      --vmcoreinfo ADDR|FILE  where VMCOREINFO is, if the dump does not tell

    Examples:
      kopen /var/crash/127.0.0.1-2024-03-01-10:11:12/vmcore
      kopen vmcore vmlinux
      kopen --debug-dir /srv/debug vmcore
    """

    def __init__(self, debugger: Debugger, open_dump: Open) -> None:
        self._debugger = debugger
        self._open_dump = open_dump
        super().__init__("kopen", gdb.COMMAND_FILES, gdb.COMPLETE_FILENAME)

    def invoke(self, argument: str, from_tty: bool) -> None:
        debugger = self._debugger
        # A dump that was to be opened at first use is not asked for any more.
        debugger.open_pending = None
        try:
            args = _parser().parse_args(gdb.string_to_argv(argument))
            files = [dump_path(path.expanduser()) for path in args.files]
            vmcores, vmlinux = sort_files(files)
            with debugger.settings.replaced(
                force=args.force,
                own_symbols=args.own_symbols,
                debug_dir=os.pathsep.join(args.debug_dir),
                base=args.base,
                vmcoreinfo=args.vmcoreinfo,
            ):
                self._open_dump(vmcores, vmlinux)
        except KdumpError as error:
            self._fail(error)

    def _fail(self, error: KdumpError) -> None:
        debugger = self._debugger
        line = f"gdbkdump: {escape(str(error))}"
        if not debugger.is_open:
            debugger.reason = f"no dump is open: {error}"
        if debugger.settings.is_strict:
            gdb.flush()
            gdb.write(f"{line}\n", gdb.STDERR)
            is_usage = isinstance(error, CommandError)
            code = 1 if is_usage else 3 if isinstance(error, MismatchError) else 2
            debugger.exit_if_strict(code)
        raise gdb.GdbError(line)


def register_kopen(debugger: Debugger, open_dump: Open) -> None:
    """Declare the command.

    :param open_dump: takes the paths of the dump and that of the vmlinux or None
    """
    _KOpen(debugger, open_dump)
