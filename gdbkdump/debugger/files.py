# SPDX-License-Identifier: GPL-2.0-or-later
"""Which dump and which vmlinux gdb was started on.

The program ``gdbkdump`` names them in the environment, GDBKDUMP_VMCORE (all files of
a split dump, one a line) and GDBKDUMP_VMLINUX (and GDBKDUMP_DEBUG_DIR and others, see
parameters.py). Otherwise gdb has opened them already, or refused to: it keeps no record
of a core it cannot read, so its own command line is looked at last.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import gdb

from gdbkdump.formats import dump_path, is_executable, is_remote

# Options of gdb (gdb/main.c) that take their argument as a word of its own.
_WITH_ARGUMENT = frozenset(
    ("D", "annotate", "b", "baud", "c", "cd", "command", "core", "d", "data-directory",
     "directory", "e", "early-init-command", "early-init-eval-command", "eiex", "eix",
     "eval-command", "ex", "exec", "i", "iex", "init-command", "init-eval-command",
     "interpreter", "ix", "l", "p", "pid", "s", "se", "symbols", "t", "tty", "ui", "x")
)  # fmt: skip
_CORE_OPTIONS = ("c", "core")
_EXEC_OPTIONS = ("e", "exec", "s", "symbols", "se")
_BATCH_OPTIONS = ("batch", "batch-silent", "return-child-result")
_INTERPRETER_OPTIONS = ("i", "interpreter", "ui")
_SCRIPT_OPTIONS = ("x", "command", "ex", "eval-command")
_CORE_FILE = re.compile(r"^Local core dump file:\n\t`(.*?)', file type", re.M | re.S)


class CommandLine(NamedTuple):
    """What gdb's own command line says.

    :param sources_us: whether gdb-init.py is read after the files that are named
    :param more: files that gdb ignores: those of a split dump after the first
    """

    exec_file: str | None = None
    core_file: str | None = None
    is_batch: bool = False
    more: tuple[str, ...] = ()
    interpreter: str = "console"
    sources_us: bool = False


def parse_command_line(words: list[str]) -> CommandLine:
    """Return what the words after ``gdb`` name, as gdb's main() reads them."""
    plain: list[str] = []
    options: list[tuple[str, str]] = []
    takes_program_arguments = False
    rest = iter(words)
    for word in rest:
        if not word.startswith("-") or word == "-":
            plain.append(word)
            if takes_program_arguments:
                break
            continue
        name, equals, value = word.lstrip("-").partition("=")
        takes_program_arguments |= name in ("args", "no-escape-args")
        if name in _WITH_ARGUMENT and not equals:
            value = next(rest, "")
        options.append((name, value))
    last = dict(options)
    exec_file = _first(last, _EXEC_OPTIONS) or (plain.pop(0) if plain else None)
    core_file = _first(last, _CORE_OPTIONS) or (plain.pop(0) if plain else None)
    return CommandLine(
        exec_file,
        core_file,
        any(name in _BATCH_OPTIONS for name in last),
        () if takes_program_arguments else tuple(plain),
        _first(last, _INTERPRETER_OPTIONS) or "console",
        any(n in _SCRIPT_OPTIONS and "gdb-init.py" in value for n, value in options),
    )


def _first(options: dict[str, str], names: tuple[str, ...]) -> str | None:
    return next((options[name] for name in names if name in options), None)


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


def is_before_files() -> bool:
    """Tell whether gdb has yet to open the files that its command line names.

    It reads .gdbinit before it opens them. One that it refused looks the same, unless
    the command line says that we are read later.
    """
    line = command_line()
    is_named = bool(line.exec_file or line.core_file)
    is_open = bool(find_loaded_vmlinux() or open_core())
    return is_named and not is_open and not line.sources_us


def find_vmcores() -> list[Path]:
    """Return the path of the dump that gdb was started on, or the paths of its parts.

    There are none if it was started on no dump.
    """
    given = command_line()
    named = os.environ.get("GDBKDUMP_VMCORE", "").split("\n")
    if named == [""]:
        first = open_core() or given.core_file or _lone_dump(given)
        named = [first, *given.more] if first else []
    return [dump_path(name) for name in named]


def _lone_dump(given: CommandLine) -> str | None:
    # "gdb vmcore": gdb takes the only word for a program, and refuses it.
    if not given.exec_file:
        return None
    path = Path(given.exec_file)
    is_dump = is_remote(path) or (path.is_file() and not is_executable(path))
    return given.exec_file if is_dump else None


def open_core() -> str | None:
    """Return the path of the core that gdb has open, or None."""
    inferior = gdb.selected_inferior()
    # gdb.Inferior.corefile came with gdb 18.
    if hasattr(inferior, "corefile"):
        return str(inferior.corefile.filename) if inferior.corefile else None
    match = _CORE_FILE.search(gdb.execute("info files", to_string=True))
    return match[1] if match else None


def find_given_vmlinux() -> Path | None:
    """Return the path of the vmlinux that was given, or None."""
    named = os.environ.get("GDBKDUMP_VMLINUX")
    found = Path(named).absolute() if named else find_loaded_vmlinux()
    # One that gdb refused must be refused here too, not passed over.
    given = command_line()
    refused = None if not given.core_file and _lone_dump(given) else given.exec_file
    return found or (Path(refused).absolute() if refused else None)


def find_loaded_vmlinux() -> Path | None:
    """Return the path of the program that gdb has loaded, or None."""
    progspace = gdb.current_progspace()
    loaded = progspace.filename if progspace else None
    return Path(loaded).absolute() if loaded else None
