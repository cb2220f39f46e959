# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb's DWARF types behind the TypeSource port, for kernels without BTF."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdbkdump.debuginfo.layout import (
    VOID,
    ArrayType,
    EnumType,
    FunctionType,
    IntType,
    Member,
    PointerType,
    Resolve,
    StructType,
    Type,
    TypedefType,
)
from gdbkdump.errors import TypeNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

_KEYWORDS = {gdb.TYPE_CODE_STRUCT: "struct", gdb.TYPE_CODE_UNION: "union"}
_INTEGERS = (gdb.TYPE_CODE_INT, gdb.TYPE_CODE_CHAR, gdb.TYPE_CODE_BOOL)


class GdbDebugInfo:
    """Types of the symbol files that gdb has loaded."""

    def __init__(self) -> None:
        """Read nothing."""
        self._made: dict[str, Type] = {}

    def find(self, keyword: str, name: str) -> Type:
        """Return a type.

        :raise TypeNotFoundError: gdb has none of that name
        """
        wanted = f"{keyword} {name}".lstrip()
        try:
            if keyword == "function":
                symbol = gdb.lookup_global_symbol(name)
                if symbol is None or symbol.type is None:
                    raise TypeNotFoundError(wanted)
                return convert(symbol.type)
            if wanted not in self._made:
                self._made[wanted] = convert(gdb.lookup_type(wanted))
        except gdb.error:
            raise TypeNotFoundError(wanted) from None
        return self._made[wanted]

    def names(self, keyword: str) -> Iterator[str]:
        """Yield nothing: gdb has no list of its types but for reading all of them."""
        return iter(())


def _later(type_: gdb.Type) -> Resolve:
    made: list[Type] = []

    def resolve() -> Type:
        if not made:
            made.append(convert(type_))
        return made[0]

    return resolve


def convert(type_: gdb.Type) -> Type:
    """Return gdb's type as one of ours; what it refers to follows when asked for.

    Qualifiers are left out: gdb's API has no way to ask for them.
    """
    code = type_.code
    if code == gdb.TYPE_CODE_TYPEDEF:
        # strip_typedefs() goes all the way, target() one step but fails on some.
        return TypedefType(type_.name or "", _later(_target(type_)))
    if code in _KEYWORDS:
        members = tuple(map(_member, type_.fields()))
        return StructType(
            _KEYWORDS[code], type_.tag or "", type_.sizeof, members, bool(members)
        )
    if code in _INTEGERS:
        return _integer(type_)
    if code == gdb.TYPE_CODE_FLT:
        return IntType(type_.name or "", type_.sizeof, True, is_float=True)
    if code == gdb.TYPE_CODE_PTR:
        return PointerType(_later(type_.target()))
    if code == gdb.TYPE_CODE_ARRAY:
        # The range of a flexible array is that of one element in gdb; its size is 0.
        element = type_.target()
        count = type_.sizeof // element.sizeof if element.sizeof else 0
        return ArrayType(_later(element), count)
    if code == gdb.TYPE_CODE_ENUM:
        values = {field.name or "": int(field.enumval) for field in type_.fields()}
        is_signed = any(value < 0 for value in values.values())
        return EnumType(type_.tag or "", type_.sizeof, is_signed, values)
    if code == gdb.TYPE_CODE_FUNC:
        parameters = tuple(
            (f.name or "", _later(f.type)) for f in type_.fields() if f.type
        )
        return FunctionType(_later(type_.target()), parameters)
    return VOID


def _target(type_: gdb.Type) -> gdb.Type:
    try:
        return type_.target()
    except RuntimeError:
        return type_.strip_typedefs()


def _integer(type_: gdb.Type) -> IntType:
    is_bool = type_.code == gdb.TYPE_CODE_BOOL
    # gdb.Type.is_signed came with gdb 12.1; a cast works everywhere.
    is_signed = not is_bool and int(gdb.Value(-1).cast(type_)) < 0
    return IntType(type_.name or "", type_.sizeof, is_signed, is_bool=is_bool)


def _member(field: gdb.Field) -> Member:
    assert field.type is not None
    return Member(
        field.name or "", field.bitpos or 0, field.bitsize, _later(field.type)
    )
