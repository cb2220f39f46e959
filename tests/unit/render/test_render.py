# SPDX-License-Identifier: GPL-2.0-or-later
"""Blocks as text and as JSON: escaping, absent values, widths, streaming."""

from __future__ import annotations

import json

import pytest

from gdbkdump.render import json_text, text
from gdbkdump.render.color import STYLES, paint
from gdbkdump.render.escape import decode, escape
from gdbkdump.render.model import (
    NOT_APPLICABLE,
    Absent,
    Address,
    Column,
    Gap,
    Listing,
    Note,
    Record,
    Shown,
    Table,
    Text,
)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\nb\tc\x7f", r"a\x0ab\x09c\x7f"),
        ("\x9b31m", r"\x9b31m"),
        ("abc\u202edef", r"abc\u202edef"),
        ("äöü", "äöü"),
    ],
)
def test_nothing_that_controls_a_terminal_gets_through(raw, shown):
    assert escape(raw) == shown


def test_bytes_that_are_no_text():
    assert decode(b"a\xff\xfeb") == r"a\xff\xfeb"


def both(block):
    lines = list(text.lines(block))
    return lines, [json.loads(line) for line in json_text.lines(block)]


def test_a_table_with_widths_streams():
    def rows():
        yield 1, Address(0xFFFF888000000000), "init", Absent(reason="excluded page")
        raise ZeroDivisionError

    columns = [
        Column("PID", 5, ">"),
        Column("TASK", 16),
        Column("COMM", 6),
        Column("RSS", 4, ">"),
    ]
    shown = text.lines(Table(columns, rows()))
    assert next(shown) == "  PID TASK             COMM    RSS"
    assert next(shown) == "    1 ffff888000000000 init      ?"
    with pytest.raises(ZeroDivisionError):
        next(shown)
    (first,) = [next(json_text.lines(Table(columns, rows())))]
    assert json.loads(first) == {
        "pid": 1,
        "task": "0xffff888000000000",
        "comm": "init",
        "rss": None,
        "absent": {"rss": "excluded page"},
    }


def test_a_table_without_widths_keeps_what_looks_like_numbers():
    columns = [Column("NAME"), Column("VALUE", align=">")]
    lines, data = both(Table(columns, [("1e5", "0x10"), ("\x1b", Shown("12", 12))]))
    assert lines == ["NAME      VALUE", "1e5        0x10", r"\x1b         12"]
    assert data == [
        {"name": "1e5", "value": "0x10"},
        {"name": "\x1b", "value": 12},
    ]


def test_a_record_aligns_its_names():
    block = Record({"PID": 1, "COMMAND": b"a\x1b", "CPU": NOT_APPLICABLE})
    lines, data = both(block)
    assert lines == ["    PID: 1", r"COMMAND: a\x1b", "    CPU: -"]
    assert data[0]["absent"] == {"cpu": "not applicable"}


def test_listing_text_note_and_gap():
    listing = Listing([1], lambda n: [[("symbol", f"<{n}\n>")]], lambda n: {"n": n})
    lines, data = both([listing, Gap(), Text(["a"]), Note("1 of 2 lost")])
    assert lines == [r"<1\x0a>", "", "a", "note: 1 of 2 lost"]
    assert data == [{"n": 1}, {"text": "a"}, {"note": "1 of 2 lost"}]


def test_values_within_values():
    listing = Listing(
        [0],
        lambda _: [],
        lambda _: {"frames": [{"ip": Address(16), "name": b"\xff"}], "end": None},
    )
    assert both(listing)[1] == [
        {"frames": [{"ip": "0x10", "name": r"\xff"}], "end": None}
    ]


def test_colour_adds_sequences_and_nothing_else():
    column = [Column("COMM", 8, style="comm"), Column("N", 3, ">")]
    table = Table(column, [("init", 1)])
    plain = list(text.lines(table))
    coloured = list(text.lines(table, colour=True))
    assert coloured != plain
    for a, b in zip(plain, coloured, strict=True):
        stripped = b
        while "\x1b[" in stripped:
            head, _, rest = stripped.partition("\x1b[")
            stripped = head + rest.partition("m")[2]
        assert stripped.rstrip() == a


@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_painted(style):
    assert paint(style, "x").replace("x", "").count("\x1b[") in (0, 2)
