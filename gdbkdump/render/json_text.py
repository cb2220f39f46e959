# SPDX-License-Identifier: GPL-2.0-or-later
"""Blocks as JSON lines: one object a row, record or item, as they come.

An ``Address`` is a ``"0x..."`` string, as 64-bit numbers do not survive every JSON
reader; an absent value is null, and ``"absent"`` says why; a note is ``{"note": ...}``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gdbkdump.render.escape import decode
from gdbkdump.render.model import (
    Absent,
    Address,
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
    from collections.abc import Iterator, Mapping


def lines(result: Result) -> Iterator[str]:
    """Yield what a command returned as JSON, one object a line."""
    for block in blocks_of(result):
        for data in _objects(block):
            yield json.dumps(data, ensure_ascii=True)


def _objects(block: object) -> Iterator[dict[str, Any]]:
    if isinstance(block, Table):
        keys = [column.json_key for column in block.columns]
        for row in block.rows:
            yield _object(dict(zip(keys, row, strict=True)))
    elif isinstance(block, Record):
        yield _object(
            {
                block.keys.get(name, name.strip().lower().replace(" ", "_")): value
                for name, value in block.fields.items()
            }
        )
    elif isinstance(block, Listing):
        for item in block.items:
            yield _object(block.to_data(item))
    elif isinstance(block, Text):
        for line in block.lines:
            yield {"text": _plain(line)}
    elif isinstance(block, Note):
        yield {"note": block.text}


def _plain(line: Line) -> str:
    return line if isinstance(line, str) else "".join(text for _, text in line)


def _object(data: Mapping[str, Any]) -> dict[str, Any]:
    result = {key: _value(value) for key, value in data.items()}
    absent = {
        key: value.reason or value.kind.value
        for key, value in data.items()
        if isinstance(value, Absent)
    }
    if absent:
        result["absent"] = absent
    return result


def _value(value: Any) -> Any:
    if isinstance(value, Absent):
        return None
    if isinstance(value, Address):
        return f"{value:#x}"
    if isinstance(value, bytes):
        return decode(value)
    if isinstance(value, Shown):
        return _value(value.data)
    if isinstance(value, dict):
        return _object(value)
    if isinstance(value, list | tuple):
        return [_value(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
