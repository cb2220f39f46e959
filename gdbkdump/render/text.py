# SPDX-License-Identifier: GPL-2.0-or-later
"""Blocks as lines of text; nothing of the dump reaches a terminal unescaped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gdbkdump.errors import MissingPackageError
from gdbkdump.render.color import paint
from gdbkdump.render.escape import decode, escape
from gdbkdump.render.model import (
    Absent,
    Address,
    Column,
    Gap,
    Line,
    Listing,
    Note,
    Record,
    Result,
    Shown,
    Table,
    Text,
    blocks_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

# By exact type: a table of 12,000 rows has 120,000 cells.
_CELLS: dict[type, Callable[[Any], str]] = {
    str: escape,
    int: str,
    Address: "{:016x}".format,
    bytes: lambda value: escape(decode(value)),
    Shown: lambda value: escape(value.text),
    type(None): lambda value: "",
}


def cell(value: Any) -> str:
    """Return how a value looks in a cell or a field."""
    show = _CELLS.get(type(value))
    return show(value) if show else escape(str(value))


def lines(result: Result, *, colour: bool = False) -> Iterator[str]:
    """Yield the lines of what a command returned, without newlines, as they come."""
    for block in blocks_of(result):
        if isinstance(block, Table):
            yield from _table(block, colour)
        elif isinstance(block, Record):
            yield from _record(block, colour)
        elif isinstance(block, Listing):
            for item in block.items:
                for line in block.to_lines(item):
                    yield _line(line, colour)
        elif isinstance(block, Text):
            for line in block.lines:
                yield _line(line, colour)
        elif isinstance(block, Gap):
            yield ""
        elif isinstance(block, Note):
            yield _line([("note", f"note: {block.text}")], colour)


def _line(line: Line, colour: bool) -> str:
    if isinstance(line, str):
        return escape(line)
    if not colour:
        return escape("".join([text for _, text in line]))
    return "".join([paint(style, escape(text)) for style, text in line])


def _record(record: Record, colour: bool) -> Iterator[str]:
    # As crash's sys: names right-aligned, one fact a line.
    width = max((len(name) for name in record.fields), default=0)
    for name, value in record.fields.items():
        for i, part in enumerate(value if isinstance(value, list) else [value]):
            head = f"{name if not i else '':>{width}}"
            separator = ": " if not i else "  "
            if isinstance(part, Absent) and part.reason:
                part = f"{part} ({part.reason})"
            text = cell(part)
            yield f"{paint('heading', head) if colour else head}{separator}{text}"


def _table(table: Table, colour: bool) -> Iterator[str]:
    if all(column.width for column in table.columns):
        yield from _stream(table, colour)
    else:
        yield from _tabulate(table, colour)


def _stream(table: Table, colour: bool) -> Iterator[str]:
    columns = table.columns
    if table.header:
        heading = _join(columns, [column.name for column in columns])
        yield paint("heading", heading) if colour else heading
    if colour:
        for row in table.rows:
            yield _join(columns, [cell(value) for value in row], colour=True)
        return
    # One template for the whole table: a row costs one formatting.
    template = " ".join(
        f"{{:{column.align}{column.width}}}" for column in columns
    ).format
    for row in table.rows:
        yield template(*[cell(value) for value in row]).rstrip()


def _join(
    columns: Sequence[Column], cells: Iterable[str], *, colour: bool = False
) -> str:
    parts = []
    for column, text in zip(columns, cells, strict=True):
        padded = f"{text:{column.align}{column.width}}"
        parts.append(paint(column.style, padded) if colour and column.style else padded)
    return " ".join(parts).rstrip()


def _tabulate(table: Table, colour: bool) -> Iterator[str]:
    # Imported where it is needed: most commands know their widths and stream.
    try:
        from tabulate import tabulate
    except ImportError:
        raise MissingPackageError("tabulate") from None

    align = {"<": "left", ">": "right", "^": "center"}
    rows = [
        [
            paint(column.style, cell(value)) if colour and column.style else cell(value)
            for column, value in zip(table.columns, row, strict=True)
        ]
        for row in table.rows
    ]
    names = [column.name for column in table.columns]
    text = tabulate(
        rows,
        headers=names if table.header else (),
        tablefmt="plain",
        disable_numparse=True,
        colalign=[align[column.align] for column in table.columns] if rows else None,
    )
    yield from (line.rstrip() for line in text.split("\n"))
