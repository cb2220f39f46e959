# SPDX-License-Identifier: GPL-2.0-or-later
"""Which dump and which vmlinux gdb was started on.

The program ``gdbkdump`` names them in the environment, GDBKDUMP_VMCORE (all files of
a split dump, one a line) and GDBKDUMP_VMLINUX (and GDBKDUMP_DEBUG_DIR, see
parameters.py). Otherwise gdb has opened them already, or refused to: it keeps no record
of a core it cannot read, so its own command line is looked at last.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import gdb

from gdbkdump.errors import FormatError

# Options of gdb (gdb/main.c) that take their argument as a word of its own.
_WITH_ARGUMENT = frozenset(
    ("D", "annotate", "b", "baud", "c", "cd", "command", "core", "d", "data-directory",
     "directory", "e", "early-init-command", "early-init-eval-command", "eiex", "eix",
     "eval-command", "ex", "exec", "i", "iex", "init-command", "init-eval-command",
     "interpreter", "ix", "l", "p", "pid", "s", "se", "symbols", "t", "tty", "ui", "x")
)  # fmt: skip
_CORE_OPTIONS = ("c", "core")
_EXEC_OPTIONS = ("e", "exec", "s", "symbols", "se")
_CORE_FILE = re.compile(r"^Local core dump file:\n\t`(.*?)', file type", re.M | re.S)


class CommandLine(NamedTuple):
    """What gdb's own command line says.

    :param more: files that gdb ignores: those of a split dump after the first
    """

    exec_file: str | None
    core_file: str | None
    is_batch: bool
    more: tuple[str, ...] = ()


def parse_command_line(words: list[str]) -> CommandLine:
    """Return what the words after ``gdb`` name, as gdb's main() reads them."""
    plain: list[str] = []
    exec_file = core_file = None
    is_batch = takes_program_arguments = False
    rest = iter(words)
    for word in rest:
        if not word.startswith("-") or word == "-":
            plain.append(word)
            if takes_program_arguments:
                break
            continue
        name, equals, value = word.lstrip("-").partition("=")
        takes_program_arguments |= name in ("args", "no-escape-args")
        is_batch |= name in ("batch", "batch-silent", "return-child-result")
        if name in _WITH_ARGUMENT and not equals:
            value = next(rest, "")
        if name in _CORE_OPTIONS:
            core_file = value
        elif name in _EXEC_OPTIONS:
            exec_file = value
    if plain and exec_file is None:
        exec_file = plain.pop(0)
    if plain and core_file is None:
        core_file = plain.pop(0)
    more = () if takes_program_arguments else tuple(plain)
    return CommandLine(exec_file, core_file, is_batch, more)


def command_line() -> CommandLine:
    """Return what this gdb's command line says."""
    raw = Path("/proc/self/cmdline").read_bytes()
    words = [os.fsdecode(word) for word in raw.split(b"\0")[:-1]]
    return parse_command_line(_without_program(words))


def _without_program(words: list[str]) -> list[str]:
    # A gdb that brings its own C library is started by name through its loader:
    # ld-linux.so [--library-path DIR] gdb ...
    rest = words[1:]
    if not Path(words[0]).name.startswith("ld"):
        return rest
    while rest and rest[0].startswith("--"):
        has_value = rest[0] in ("--library-path", "--argv0", "--preload", "--audit")
        rest = rest[2 if has_value else 1 :]
    return rest[1:]


def find_vmcores() -> list[Path]:
    """Return the path of the dump, or the paths of its parts.

    :raise FormatError: none was given
    """
    given = command_line()
    named = os.environ.get("GDBKDUMP_VMCORE", "").split("\n")
    if named == [""]:
        first = _open_core() or given.core_file
        named = [first, *given.more] if first else []
    if not named:
        raise FormatError("no dump was given: gdb VMLINUX VMCORE -x gdb-init.py")
    return [Path(name).absolute() for name in named]


def _open_core() -> str | None:
    inferior = gdb.selected_inferior()
    # gdb.Inferior.corefile came with gdb 18.
    corefile = getattr(inferior, "corefile", None)
    if corefile is not None:
        return str(corefile.filename)
    match = _CORE_FILE.search(gdb.execute("info files", to_string=True))
    return match[1] if match else None


def find_given_vmlinux() -> Path | None:
    """Return the path of the vmlinux that was given, or None."""
    progspace = gdb.current_progspace()
    loaded = progspace.filename if progspace else None
    named = os.environ.get("GDBKDUMP_VMLINUX") or loaded
    # One that gdb refused must be refused here too, not passed over.
    named = named or command_line().exec_file
    return Path(named).absolute() if named else None
