# SPDX-License-Identifier: GPL-2.0-or-later
"""Symbols and addresses, both ways (``kernel/kallsyms.c``)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.commands import argument, command
from gdbkdump.commands.arguments import parse_address
from gdbkdump.errors import CommandError
from gdbkdump.render.model import Address, Listing

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from gdbkdump.debuginfo.base import ModuleInfo
    from gdbkdump.debuginfo.kallsyms import Symbol
    from gdbkdump.render.model import Line, Result
    from gdbkdump.session import Session


class _Row(NamedTuple):
    # A symbol, or an address in it (offset is then not 0).
    address: int
    type: str
    name: str
    offset: int
    module: str
    source: str | None = None


@command(
    "ksym",
    "Show the address of a symbol, or the symbol of an address.",
    category="symbols",
    arguments=[
        argument(
            "what",
            nargs="*",
            metavar="SYMBOL|ADDRESS",
            completes="symbol",
            help="what to look up; each is shown on a line of its own",
        ),
        argument("-l", dest="all", action="store_true", help="list all symbols"),
        argument(
            "-M", dest="modules", action="store_true", help="list all module symbols"
        ),
        argument(
            "-m", dest="module", completes="module", help="list the symbols of a module"
        ),
        argument(
            "-q",
            dest="text",
            metavar="TEXT",
            help="list the symbols with TEXT in their names",
        ),
        argument(
            "-n", dest="next", action="store_true", help="show the next symbol as well"
        ),
        argument(
            "-p",
            dest="previous",
            action="store_true",
            help="show the previous symbol as well",
        ),
    ],
    examples=[
        "ksym init_task",
        "ksym panic+0x10",
        "ksym -n schedule",
        "ksym -q modprobe",
        "ksym -m virtio_blk",
    ],
    crash="sym",
)
def ksym(session: Session, args: Namespace) -> Result:
    """Each line has the address, the letter that nm prints, and the name.

    A name that several symbols have is shown for each of them. The letter is that
    of the kernel's own table (kallsyms): small for static symbols, T text, D data,
    B bss, R read-only, A absolute. The module stands in brackets; file and line
    follow where the session has DWARF.
    """
    listed = _listed(session, args)
    if listed is None and not args.what:
        raise CommandError("ksym: say which SYMBOL or ADDRESS (or -l, -M, -m, -q)")
    rows = listed if listed is not None else _found(session, args)
    return Listing(rows, _lines, _data)


def _lines(row: _Row) -> Iterable[Line]:
    text = f"{row.address:016x} ({row.type}) {row.name}"
    if row.offset:
        text += f"+{row.offset:#x}"
    if row.module:
        text += f" [{row.module}]"
    yield f"{text} {row.source}" if row.source else text


def _data(row: _Row) -> Mapping[str, object]:
    return {
        "address": Address(row.address),
        "type": row.type,
        "name": row.name,
        "offset": row.offset,
        "module": row.module or None,
        "source": row.source,
    }


# Lists


def _listed(session: Session, args: Namespace) -> Iterable[_Row] | None:
    if args.text is not None:
        return (row for row in _everything(session) if args.text in row.name)
    if args.all:
        return _everything(session)
    if args.modules:
        return _of_modules(session.kernel.debuginfo.modules())
    if args.module is not None:
        return _of_modules([_find_module(session, args.module)])
    return None


def _everything(session: Session) -> Iterator[_Row]:
    debuginfo = session.kernel.debuginfo
    for symbol in debuginfo.symbol_source:
        yield _row(symbol, "")
    yield from _of_modules(debuginfo.modules())


def _of_modules(modules: Iterable[ModuleInfo]) -> Iterator[_Row]:
    for module in modules:
        for symbol in module.symbols:
            yield _row(symbol, module.name)


def _find_module(session: Session, name: str) -> ModuleInfo:
    modules = session.kernel.debuginfo.modules()
    for module in modules:
        # The loader turns the dashes of a file name into underscores.
        if module.name == name.replace("-", "_"):
            return module
    known = " ".join(sorted(module.name for module in modules)) or "none is loaded"
    raise CommandError(f"no module {name!r} ({known})")


def _row(symbol: Symbol, module: str) -> _Row:
    return _Row(symbol.address, symbol.type, symbol.name, 0, module)


# Look-ups


def _found(session: Session, args: Namespace) -> Iterator[_Row]:
    missing = []
    for text in args.what:
        rows = _look_up(session, text)
        if not rows:
            missing.append(text)
        for row in rows:
            if args.previous:
                yield from _neighbour(session, row, _before)
            yield _with_source(session, row)
            if args.next:
                yield from _neighbour(session, row, _after)
    if missing:
        names = " ".join(missing)
        raise CommandError(f"no symbol {names} in this kernel (ksym -q TEXT searches)")


def _look_up(session: Session, text: str) -> list[_Row]:
    debuginfo = session.kernel.debuginfo
    rows = [_row(symbol, "") for symbol in debuginfo.symbol_source.find(text)]
    for module in debuginfo.modules():
        rows += [_row(symbol, module.name) for symbol in module.symbols.find(text)]
    if rows:
        return rows
    try:
        address = parse_address(session, text)
    except CommandError:
        return []
    return [_at(session, address)]


def _at(session: Session, address: int) -> _Row:
    found = session.kernel.debuginfo.symbol_at(address)
    if found is None:
        raise CommandError(
            f"{address:#x} is in no symbol: not in the kernel image or a module"
            " (kvtop says what it is)"
        )
    return _Row(address, found.type, found.name, found.offset, found.module)


def _with_source(session: Session, row: _Row) -> _Row:
    if session.source_line is None or row.type not in "tTwW":
        return row
    return row._replace(source=session.source_line(row.address))


def _neighbour(
    session: Session, row: _Row, choose: Callable[[list[int], int], int | None]
) -> Iterator[_Row]:
    # The one before or after in the same table; aliases at one address count as one.
    debuginfo = session.kernel.debuginfo
    source = debuginfo.symbol_source
    for module in debuginfo.modules():
        if module.name == row.module:
            source = module.symbols
    symbols = sorted(source, key=lambda symbol: symbol.address)
    addresses = [symbol.address for symbol in symbols]
    i = choose(addresses, row.address - row.offset)
    if i is not None:
        yield _with_source(session, _row(symbols[i], row.module))


def _before(addresses: list[int], address: int) -> int | None:
    i = bisect_left(addresses, address)
    return bisect_left(addresses, addresses[i - 1]) if i else None


def _after(addresses: list[int], address: int) -> int | None:
    i = bisect_right(addresses, address)
    return i if i < len(addresses) else None
