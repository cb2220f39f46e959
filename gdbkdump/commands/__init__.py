# SPDX-License-Identifier: GPL-2.0-or-later
"""The command registry: one file is one command, declared with ``@command``.

Nothing here prints or knows gdb: a command takes the session and its parsed arguments
and returns blocks of render/model.py. Help, usage, docs/commands.md and completion are
generated from the declaration.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from gdbkdump.errors import CommandError

if TYPE_CHECKING:
    from gdbkdump.render.model import Result
    from gdbkdump.session import Session

Function = Callable[[Any, argparse.Namespace], "Result"]


@dataclass(frozen=True)
class Argument:
    """One argument as ``argparse`` takes it, plus what completes it.

    :param completes: a name in completion.py, the words themselves, or ``""``
    """

    names: tuple[str, ...]
    options: dict[str, Any]
    completes: str | tuple[str, ...] = ""


def argument(
    *names: str, completes: str | tuple[str, ...] = "", **options: Any
) -> Argument:
    """Declare an argument of a command; options are those of ``add_argument``."""
    return Argument(names, options, completes)


class _Parser(argparse.ArgumentParser):
    # argparse exits the process on errors; at a prompt an error is one line.
    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{self.prog}: {message} (see: khelp {self.prog})")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise CommandError(message or "")


@dataclass(frozen=True)
class Command:
    """A declared command."""

    name: str
    summary: str
    category: str
    arguments: tuple[Argument, ...]
    examples: tuple[str, ...]
    crash: str
    function: Function
    needs_dump: bool

    def parser(self) -> argparse.ArgumentParser:
        """Return the argument parser, without a ``-h``: help is the debugger's."""
        parser = _Parser(
            self.name, add_help=False, allow_abbrev=False, description=self.summary
        )
        for item in self.arguments:
            parser.add_argument(*item.names, **item.options)
        parser.add_argument(
            "--json", action="store_true", help="print JSON, one object a line"
        )
        return parser

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Return the parsed arguments.

        :raise CommandError: they do not fit the declaration
        """
        if any(a.options.get("nargs") == argparse.REMAINDER for a in self.arguments):
            # What follows is another command's, but for the option that all have.
            rest = [word for word in argv if word != "--json"]
            args = self.parser().parse_args(rest)
            args.json = len(rest) < len(argv)
            return args
        # Options may stand between the words, as crash's users are used to.
        return self.parser().parse_intermixed_args(list(argv))

    def run(self, session: Session | None, args: argparse.Namespace) -> Result:
        """Carry the command out; the result may be lazy and raise while it is read."""
        return self.function(session, args)

    def help_text(self) -> str:
        """Return the help page: summary, usage, options, details, examples."""
        formatter = argparse.HelpFormatter(self.name, max_help_position=24, width=79)
        parser = self.parser()
        formatter.add_usage(parser.usage, parser._actions, ())
        for group in parser._action_groups:
            formatter.start_section(group.title)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        parts = [self.summary, formatter.format_help().strip()]
        details = inspect.cleandoc(self.function.__doc__ or "")
        parts += [_fill(part) for part in details.split("\n\n") if part]
        parts.append("Examples:\n" + textwrap.indent("\n".join(self.examples), "  "))
        if self.crash:
            parts.append(f"In crash: {self.crash}")
        return "\n\n".join(parts) + "\n"


def _fill(paragraph: str) -> str:
    # What is indented is a layout of its own; source lines are longer than help lines.
    if "\n " in paragraph or paragraph.startswith(" "):
        return paragraph
    return textwrap.fill(paragraph, width=79, break_on_hyphens=False)


_REGISTRY: dict[str, Command] = {}


def command(
    name: str,
    summary: str,
    *,
    category: str,
    examples: Sequence[str],
    arguments: Sequence[Argument] = (),
    crash: str = "",
    needs_dump: bool = True,
) -> Callable[[Function], Function]:
    """Declare the decorated function as a command.

    Its docstring is the detailed part of the help. File, function and command have one
    name.

    :param crash: the crash command that users may know it by
    :param needs_dump: whether there has to be an open dump; without one the function
        is given None for the session
    """

    def register(function: Function) -> Function:
        if name in _REGISTRY:
            raise ValueError(f"command {name} is declared twice")
        if not examples:
            raise ValueError(f"command {name} has no example")
        _REGISTRY[name] = Command(
            name, summary, category, tuple(arguments), tuple(examples), crash, function,
            needs_dump,
        )  # fmt: skip
        return function

    return register


def command_names() -> list[str]:
    """Return the names of all commands, without importing them."""
    return sorted(
        module.name
        for module in pkgutil.iter_modules(__path__)
        if module.name.startswith("k")
    )


def find_command_word(words: Sequence[str]) -> int | None:
    """Return where the first word is that names a command, or None."""
    names = set(command_names())
    return next((at for at, word in enumerate(words) if word in names), None)


def find_command(name: str) -> Command:
    """Return the command, importing its file alone.

    :raise CommandError: there is none of that name
    """
    if name not in _REGISTRY:
        if name not in command_names():
            raise CommandError(f"no command {name!r} ({_similar(name)})")
        importlib.import_module(f"{__name__}.{name}")
    return _REGISTRY[name]


def _similar(name: str) -> str:
    # People know crash's names, and mistype ours.
    names = command_names()
    close = [known for known in names if known == f"k{name}"]
    if not close:
        import difflib

        close = difflib.get_close_matches(name, names, 3)
    if close:
        return f"did you mean {' or '.join(close)}? khelp lists all"
    return f"khelp lists them: {' '.join(names)}"


def all_commands() -> Iterable[Command]:
    """Return all commands, by name."""
    return [find_command(name) for name in command_names()]
