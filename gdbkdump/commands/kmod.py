# SPDX-License-Identifier: GPL-2.0-or-later
"""kmod: the loaded modules, their parameters and taints; their debug files for gdb."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdbkdump.commands import argument, command
from gdbkdump.errors import CommandError, KdumpError
from gdbkdump.kernel.module import (
    for_each_module,
    module_parameters,
    module_taints,
)
from gdbkdump.render.model import Absent, Address, Column, Note, Shown, Table

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Sequence

    from gdbkdump.kernel.module import Module
    from gdbkdump.render.model import Block
    from gdbkdump.session import Session


@command(
    "kmod",
    "List modules; load their debug files into gdb.",
    category="system",
    crash="mod",
    arguments=[
        argument(
            "modules", nargs="*", metavar="MODULE", completes="module",
            help="only these",
        ),
        argument("-t", dest="taint", action="store_true", help="those that taint"),
        argument("-p", dest="params", action="store_true", help="their parameters"),
        argument("-s", dest="load", action="store_true", help="load their debug files"),
        argument("-S", dest="load_all", action="store_true", help="load those of all"),
        argument(
            "-d", dest="dirs", type=Path, action="append", default=[], metavar="DIR",
            completes="file", help="look for debug files here first",
        ),
    ],
    examples=["kmod", "kmod -t", "kmod -p loop", "kmod -S", "kmod -s ext4 -d ./debug"],
)  # fmt: skip
def kmod(session: Session, args: Namespace) -> Iterator[Block]:
    """Show the modules, most recently loaded first.

    Names of functions in modules always come from the dump. What -s and -S load adds
    lines, arguments and types to gdb; a debug file counts only if its build-id is that
    of the module in the dump.
    """
    problems: list[str] = []
    modules = _modules(session, args.modules, problems)
    if args.load or args.load_all:
        if args.load and not args.modules:
            raise CommandError("-s: which modules? (-S loads the debug files of all)")
        problems += _load(session, modules, args.dirs)
    if args.taint:
        yield _taints(session, modules)
    elif args.params:
        yield from _parameters(session, modules)
    else:
        yield _table(session, modules)
    for problem in problems:
        yield Note(problem)


def _modules(
    session: Session, names: Sequence[str], problems: list[str]
) -> list[Module]:
    found = []
    try:
        for module in for_each_module(session.kernel):
            found.append(module)
    except KdumpError as error:
        problems.append(f"the list of modules: {error}")
    if not names:
        return found
    # A file may be named with dashes, the module never is.
    wanted = [name.removesuffix(".ko").replace("-", "_") for name in names]
    for name in wanted:
        if name not in {module.name for module in found}:
            raise CommandError(f"no module {name!r} is loaded (kmod lists them)")
    return [module for module in found if module.name in wanted]


def _load(session: Session, modules: list[Module], dirs: list[Path]) -> list[str]:
    if session.load_module is None:
        raise CommandError("debug files are loaded into gdb, which is not there")
    problems = []
    for done, module in enumerate(modules):
        session.report("loading debug files of modules", done, len(modules))
        try:
            session.load_module(module, dirs)
        except KdumpError as error:
            problems.append(str(error))
    session.report("loading debug files of modules", len(modules), len(modules))
    return problems


def _table(session: Session, modules: list[Module]) -> Table:
    columns = [
        Column("MODULE", 16, "^", "address"),
        Column("NAME", 24, "<", "comm"),
        Column("TEXT_BASE", 16, "^", "address"),
        Column("SIZE", 9, ">"),
        Column(" OBJECT FILE", 12, "<", "file", "object_file"),
    ]
    return Table(columns, (_row(session, module) for module in modules))


def _row(session: Session, module: Module) -> tuple[Any, ...]:
    path = session.module_files.get(module.name)
    return (
        Address(module.address),
        module.name,
        Address(module.ranges[0][0]) if module.ranges else Absent(),
        module.size,
        Shown(f" {path or '(not loaded)'}", str(path) if path else None),
    )


def _taints(session: Session, modules: list[Module]) -> Table:
    rows = []
    for module in modules:
        letters = module_taints(session.kernel, module)
        if letters:
            rows.append((module.name, letters))
    return Table([Column("NAME", 24, "<", "comm"), Column("TAINT", 8)], rows)


def _parameters(session: Session, modules: list[Module]) -> Iterator[Block]:
    rows = [
        (
            module.name,
            parameter.name,
            parameter.type,
            Absent(reason="not a type of the kernel's own")
            if parameter.value is None
            else parameter.value,
        )
        for module in modules
        for parameter in module_parameters(session.kernel, module)
    ]
    columns = [Column(name) for name in ("MODULE", "PARAMETER", "TYPE", "VALUE")]
    yield Table(columns, rows)
    unknown = sum(isinstance(value, Absent) for *_, value in rows)
    if unknown:
        yield Note(
            f"{unknown} parameters are not of a type of the kernel's own: only their"
            " modules know what they hold"
        )
