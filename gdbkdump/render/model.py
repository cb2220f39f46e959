# SPDX-License-Identifier: GPL-2.0-or-later
"""The result models of commands: data first, its looks chosen elsewhere.

A command returns one block or yields several. Cell and field values are plain Python
values; their type says how they look: an ``Address`` is 16 hex digits in text and a
``"0x..."`` string in JSON, an ``Absent`` is a reason instead of an invented zero, bytes
of the dump stay bytes until they are rendered. Renderers escape control characters, so
blocks may hold any text of the dump.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class Address(int):
    """A kernel address, or any word best read in hex."""

    __slots__ = ()


class AbsentKind(enum.Enum):
    """Why a value is not there."""

    UNREADABLE = "unreadable"
    EXCLUDED = "excluded"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Absent:
    """A value that could not be had; shown as ``?`` (or ``-`` where none can be)."""

    kind: AbsentKind = AbsentKind.UNREADABLE
    reason: str = ""

    def __str__(self) -> str:
        """Return the mark that stands in a table cell."""
        return "-" if self.kind is AbsentKind.NOT_APPLICABLE else "?"


@dataclass(frozen=True)
class Shown:
    """A value whose looks in text differ from its value in JSON."""

    text: str
    data: Any


NOT_APPLICABLE = Absent(AbsentKind.NOT_APPLICABLE)

# A line of text: a string, or (style, text) spans; style names are in render/color.py.
Span = tuple[str, str]
Line = str | list[Span]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    :param name: heading, also the key in JSON (lower case there)
    :param width: least width; 0 lets the cells decide (the table is then not streamed)
    :param align: ``"<"``, ``">"`` or ``"^"``
    :param style: style name of render/color.py
    :param key: JSON key where the lower-cased heading is not good enough
    """

    name: str
    width: int = 0
    align: str = "<"
    style: str = ""
    key: str = ""

    @property
    def json_key(self) -> str:
        """Return the key of this column in JSON."""
        return self.key or self.name.lower()


@dataclass
class Table:
    """Rows under headings; rows may be a generator, they are shown as they come."""

    columns: Sequence[Column]
    rows: Iterable[Sequence[Any]]
    header: bool = True


@dataclass
class Record:
    """A few named facts, one a line, names right-aligned as crash's ``sys`` does."""

    fields: Mapping[str, Any]
    keys: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Listing:
    """Items with a layout of their own: log records, frames, memory lines.

    :param to_lines: lines of text of one item
    :param to_data: the same facts for JSON, one object an item
    """

    items: Iterable[Any]
    to_lines: Callable[[Any], Iterable[Line]]
    to_data: Callable[[Any], Mapping[str, Any]]


@dataclass
class Text:
    """Plain lines, where there is nothing more to say in JSON than the text itself."""

    lines: Iterable[Line]


@dataclass
class Note:
    """What the reader must know of the answer: what could not be read, and how many."""

    text: str


@dataclass
class Gap:
    """An empty line between what belongs to different things; nothing in JSON."""


Block = Table | Record | Listing | Text | Note | Gap
Result = Block | Iterable[Block]


def blocks_of(result: Result) -> Iterable[Block]:
    """Return the blocks of what a command returned."""
    if isinstance(result, Block):
        return (result,)
    return result
