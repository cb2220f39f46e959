# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs inside gdb: writes how gdb sees structs, unions and enums, as JSON.

GDBKDUMP_TEST_NAMES is a file with names ("struct list_head"), one a line;
GDBKDUMP_TEST_OUT is written.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import gdb

_AGGREGATES = (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION)
_KINDS = {
    gdb.TYPE_CODE_STRUCT: "struct", gdb.TYPE_CODE_UNION: "union",
    gdb.TYPE_CODE_ENUM: "enum", gdb.TYPE_CODE_PTR: "pointer",
    gdb.TYPE_CODE_ARRAY: "array", gdb.TYPE_CODE_INT: "int", gdb.TYPE_CODE_BOOL: "bool",
    gdb.TYPE_CODE_FLT: "float", gdb.TYPE_CODE_CHAR: "int",
}  # fmt: skip


def _members(type_: gdb.Type, start: int) -> list[list[object]]:
    found: list[list[object]] = []
    for field in type_.fields():
        assert field.type is not None and field.bitpos is not None
        place = start + field.bitpos
        bare = field.type.strip_typedefs()
        if not field.name and bare.code in _AGGREGATES:
            found += _members(bare, place)
        elif field.name:
            size = 0 if _is_open(bare) else bare.sizeof
            found.append([field.name, place, field.bitsize, size, _KINDS[bare.code]])
    return found


def _is_open(type_: gdb.Type) -> bool:
    return bool(type_.code == gdb.TYPE_CODE_ARRAY and type_.range()[1] < 0)


def _describe(name: str) -> object:
    type_ = gdb.lookup_type(name)
    if type_.code == gdb.TYPE_CODE_ENUM:
        return {field.name: field.enumval for field in type_.fields()}
    return [type_.sizeof, _members(type_, 0)]


def _run() -> None:
    found = {}
    for name in Path(os.environ["GDBKDUMP_TEST_NAMES"]).read_text().splitlines():
        try:
            found[name] = _describe(name)
        except gdb.error as error:
            found[name] = str(error)
    Path(os.environ["GDBKDUMP_TEST_OUT"]).write_text(json.dumps(found))


_run()
