# SPDX-License-Identifier: GPL-2.0-or-later
"""Completion of what is typed after a command: options, tasks, symbols, types."""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import TYPE_CHECKING

from gdbkdump.commands import command_names, find_command, find_command_word
from gdbkdump.commands.arguments import KINDS, STATES
from gdbkdump.errors import KdumpError
from gdbkdump.kernel.sched import tasks
from gdbkdump.render.escape import decode, escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from gdbkdump.commands import Argument, Command
    from gdbkdump.session import Session


def last_word(line: str) -> str:
    """Return the word the cursor is in at the end of a line, ``""`` between words."""
    return line.split()[-1] if line and not line[-1].isspace() else ""


def completions(command: Command, session: Session, line: str) -> Iterator[str]:
    """Yield what the last word of a line may become.

    :param line: all that is typed after the command's name
    """
    token = last_word(line)
    before = line[: len(line) - len(token)].split()
    if command.name == "kforeach":
        command, before = _inner_command(command, before)
    elif command.name == "kstruct" and before[:1] in (["struct"], ["union"]):
        del before[0]
    try:
        for candidate in _candidates(command.arguments, session, before, token):
            if candidate.startswith(token):
                yield candidate
    except KdumpError:
        return  # what cannot be read cannot be offered


def _inner_command(command: Command, before: list[str]) -> tuple[Command, list[str]]:
    # Behind the command that kforeach is to run come that one's arguments.
    at = find_command_word(before)
    if at is None:
        return command, before
    return find_command(before[at]), before[at + 1 :]


def _candidates(
    arguments: Sequence[Argument], session: Session, before: list[str], token: str
) -> Iterable[str]:
    if token.startswith("-"):
        names = [name for item in arguments for name in item.names]
        return [*(name for name in names if name[0] == "-"), "--json"]
    argument = _current_argument(arguments, before)
    if argument is None:
        return ()
    choices: Iterable[str] | None = argument.options.get("choices")
    if choices is not None:
        return map(str, choices)
    if isinstance(argument.completes, tuple):
        return argument.completes
    complete = _COMPLETERS.get(argument.completes)
    return complete(session, token) if complete else ()


def _current_argument(
    arguments: Sequence[Argument], before: list[str]
) -> Argument | None:
    # Which argument the cursor is in: an option's value, else the next positional.
    options = {name: item for item in arguments for name in item.names}
    positionals = [item for item in arguments if item.names[0][0] != "-"]
    position = 0
    pending: Argument | None = None
    for word in before:
        if pending is not None:
            pending = None
        elif word.startswith("-") and word in options:
            pending = options[word] if _takes_value(options[word]) else None
        elif not word.startswith("-"):
            position += 1
    if pending is not None:
        return pending
    if position < len(positionals):
        return positionals[position]
    last = positionals[-1] if positionals else None
    many = ("*", "+", argparse.REMAINDER)
    return last if last and last.options.get("nargs") in many else None


def _takes_value(argument: Argument) -> bool:
    return argument.options.get("action", "store") in ("store", "append")


def _task_names(session: Session, token: str) -> Iterator[str]:
    seen = set()
    for task in tasks(session.kernel):
        for candidate in (str(task.pid), escape(decode(task.comm))):
            if candidate not in seen and " " not in candidate:
                seen.add(candidate)
                yield candidate


def _filters(session: Session, token: str) -> Iterator[str]:
    yield from STATES
    yield from KINDS
    yield from _task_names(session, token)


def _filters_and_commands(session: Session, token: str) -> Iterator[str]:
    yield from command_names()
    yield from _filters(session, token)


def _module_names(session: Session, token: str) -> Iterable[str]:
    return (module.name for module in session.kernel.debuginfo.modules())


def _file_names(session: Session, token: str) -> Iterator[str]:
    folder, slash, _ = token.rpartition("/")
    with contextlib.suppress(OSError), os.scandir(f"{folder}{slash}" or ".") as found:
        for entry in found:
            is_folder = "/" if entry.is_dir() else ""
            yield f"{folder}{slash}{entry.name}{is_folder}"


def _symbol_names(session: Session, token: str) -> Iterator[str]:
    debuginfo = session.kernel.debuginfo
    sources = (debuginfo.symbol_source, *(m.symbols for m in debuginfo.modules()))
    return (symbol.name for source in sources for symbol in source)


def _struct_names(session: Session, token: str) -> Iterator[str]:
    name, dot, _ = token.partition(".")
    if dot:
        for member in session.kernel.struct(name).flat():
            yield f"{name}.{member}"
        return
    types = session.kernel.debuginfo.types
    if types is not None:
        for keyword in ("struct", "union"):
            yield from types.names(keyword)


def _command_names(session: Session, token: str) -> Iterable[str]:
    return command_names()


_COMPLETERS: dict[str, Callable[[Session, str], Iterable[str]]] = {
    "task": _task_names,
    "filter": _filters,
    "filter or command": _filters_and_commands,
    "module": _module_names,
    "file": _file_names,
    "symbol": _symbol_names,
    "struct": _struct_names,
    "command": _command_names,
}
