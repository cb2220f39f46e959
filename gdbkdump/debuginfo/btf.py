# SPDX-License-Identifier: GPL-2.0-or-later
"""BTF, the type information a kernel carries in itself (``include/uapi/linux/btf.h``).

Nothing is read but what is asked for: a name is found in the string section, its type
by the offset of that string, and ids are indexed once, without making objects.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING

from gdbkdump.debuginfo.layout import (
    VOID,
    ArrayType,
    EnumType,
    FunctionType,
    IntType,
    Member,
    PointerType,
    QualifiedType,
    Resolve,
    StructType,
    Type,
    TypedefType,
)
from gdbkdump.errors import CorruptError, TypeNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = b"\x9f\xeb\x01"
_HEADER = struct.Struct("<HBBIIIII")
MAX_BYTES = 256 << 20

(INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST,
 RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG,
 ENUM64) = range(1, 20)  # fmt: skip
_QUALIFIERS = {VOLATILE: "volatile", CONST: "const", RESTRICT: "restrict"}
# Words after the three of struct btf_type: fixed, and for each of vlen entries.
_FIXED = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
_PER_ENTRY = {
    STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3,
}  # fmt: skip
_KINDS = {
    "struct": (STRUCT,),
    "union": (UNION,),
    "enum": (ENUM, ENUM64),
    "": (TYPEDEF, INT, FLOAT),
    "function": (FUNC,),
}


class Btf:
    """One BTF section.

    :param base: the kernel's BTF, if this is a module's (split BTF)
    """

    def __init__(self, data: bytes, base: Btf | None = None) -> None:
        """Check the header.

        :raise CorruptError: it is no BTF, or its parts do not fit
        """
        if len(data) < _HEADER.size or data[:3] != MAGIC:
            raise CorruptError("BTF: bad magic")
        _, _, _, header, type_off, type_len, str_off, str_len = _HEADER.unpack_from(
            data
        )
        strings = header + str_off
        types = header + type_off
        if type_len % 4 or max(types + type_len, strings + str_len) > len(data):
            raise CorruptError("BTF: a section runs past the end")
        self.data = data
        self.base = base
        self._types_at = types
        self._types = array("I", data[types : types + type_len])
        self._strings = data[strings : strings + str_len]
        self._first_id = base.end_id if base else 1
        self._first_string = base.end_string if base else 0
        self._ids: array[int] | None = None
        self._made: dict[int, Type] = {0: VOID}

    @property
    def words(self) -> array[int]:
        """The type section, as words."""
        return self._types

    @property
    def strings(self) -> bytes:
        """The string section; the names of a module go on where its base's end."""
        return self._strings

    @property
    def first_id(self) -> int:
        """The id of the first type of this section."""
        return self._first_id

    @property
    def end_id(self) -> int:
        """The id after the last type."""
        return self._first_id + len(self.positions())

    @property
    def end_string(self) -> int:
        """The string offset after the last one."""
        return self._first_string + len(self._strings)

    def positions(self) -> array[int]:
        """Return where in ``words`` each type of this section begins, by id.

        :raise CorruptError: the last one is cut, or one is of a kind that is not known
        """
        # One dictionary look-up a type: many share kind and number of members.
        if self._ids is None:
            words = self._types
            steps: dict[int, int] = {}
            ids = array("I")
            append = ids.append
            position, end = 0, len(words) - 2
            while position < end:
                append(position)
                info = words[position + 1]
                step = steps.get(info)
                if step is None:
                    step = steps[info] = _step(info)
                position += step
            if position != len(words):
                raise CorruptError("BTF: the last type is cut")
            self._ids = ids
        return self._ids

    def name_at(self, offset: int) -> str:
        """Return the string at an offset.

        :raise CorruptError: there is none
        """
        if offset < self._first_string and self.base:
            return self.base.name_at(offset)
        start = offset - self._first_string
        end = self._strings.find(b"\0", start)
        if not 0 <= start < len(self._strings) or end < 0:
            raise CorruptError(f"BTF: no string at {offset:#x}")
        return self._strings[start:end].decode("utf-8", "backslashreplace")

    def find(self, keyword: str, name: str) -> Type:
        """Return a type by name.

        :param keyword: ``struct``, ``union``, ``enum``, ``function`` or ``""``
        :raise TypeNotFoundError: there is none
        """
        found = self.find_id(keyword, name)
        if found is not None:
            return self.type(found)
        if self.base:
            return self.base.find(keyword, name)
        raise TypeNotFoundError(f"{keyword} {name}".lstrip())

    def find_id(self, keyword: str, name: str) -> int | None:
        """Return the id of a type of this section by name, or None."""
        kinds = _KINDS[keyword]
        strings, key = self._strings, b"\0" + name.encode() + b"\0"
        at = strings.find(key)
        while at >= 0 and name:
            found = self._find_named(kinds, at + 1 + self._first_string)
            if found is not None:
                return found
            at = strings.find(key, at + 1)
        return None

    def _find_named(self, kinds: tuple[int, ...], string: int) -> int | None:
        # The offset's bytes are searched for in the type section; a hit counts if it
        # is where a type begins.
        start = self._types_at
        end = start + 4 * len(self._types)
        key = struct.pack("<I", string)
        at = self.data.find(key, start, end)
        while at >= 0:
            position, odd = divmod(at - start, 4)
            if not odd and position + 1 < len(self._types):
                kind = self._types[position + 1] >> 24 & 31
                found = self._id_at(position) if kind in kinds else None
                if found is not None:
                    return found
            at = self.data.find(key, at + 1, end)
        return None

    def _id_at(self, position: int) -> int | None:
        ids = self.positions()
        i = bisect_left(ids, position)
        return self._first_id + i if i < len(ids) and ids[i] == position else None

    def names(self, keyword: str) -> Iterator[str]:
        """Yield the names of all types of a keyword (for completion)."""
        kinds = _KINDS[keyword]
        words = self._types
        for position in self.positions():
            if words[position] and words[position + 1] >> 24 & 31 in kinds:
                yield self.name_at(words[position])

    def types(self) -> Iterator[Type]:
        """Yield all types of this section in the order of their ids."""
        for id_ in range(self._first_id, self.end_id):
            yield self.type(id_)

    def type(self, id_: int) -> Type:
        """Return the type of an id.

        :raise CorruptError: there is none
        """
        made = self._made.get(id_)
        if made is None:
            if id_ < self._first_id and self.base:
                return self.base.type(id_)
            made = self._made[id_] = self._make(id_)
        return made

    def _later(self, id_: int) -> Resolve:
        return lambda: self.type(id_)

    def _make(self, id_: int) -> Type:
        ids = self.positions()
        if not self._first_id <= id_ < self._first_id + len(ids):
            raise CorruptError(f"BTF: no type {id_}")
        at = ids[id_ - self._first_id]
        name_off, info, word = self._types[at : at + 3]
        kind, count, flag = info >> 24 & 31, info & 0xFFFF, bool(info >> 31)
        name = self.name_at(name_off) if name_off else ""
        body = self._types[at + 3 : at + _step(info)]
        if kind == INT:
            return _make_int(name, word, body[0])
        if kind in (STRUCT, UNION):
            keyword = "struct" if kind == STRUCT else "union"
            return StructType(keyword, name, word, self._members(body, flag))
        if kind == FWD:
            return StructType("union" if flag else "struct", name, 0, (), False)
        if kind == PTR:
            return PointerType(self._later(word))
        if kind == ARRAY:
            return ArrayType(self._later(body[0]), body[2])
        if kind in (ENUM, ENUM64):
            return EnumType(name, word, flag, self._values(body, kind, count, flag))
        if kind == TYPEDEF:
            return TypedefType(name, self._later(word))
        if kind == FUNC:
            return self.type(word)
        if kind == FUNC_PROTO:
            return FunctionType(self._later(word), self._parameters(body))
        if kind == FLOAT:
            return IntType(name, word, True, is_float=True)
        if kind in (VAR, DECL_TAG):
            return self.type(word)
        if kind == DATASEC:
            return StructType("struct", name, word, (), False)
        return QualifiedType(_QUALIFIERS.get(kind, ""), self._later(word))

    def _members(self, body: array[int], has_bits: bool) -> tuple[Member, ...]:
        # kflag: the offset word holds the size of a bit field in its top byte.
        return tuple(
            Member(
                self.name_at(body[i]) if body[i] else "",
                body[i + 2] & 0xFFFFFF if has_bits else body[i + 2],
                body[i + 2] >> 24 if has_bits else 0,
                self._later(body[i + 1]),
            )
            for i in range(0, len(body), 3)
        )

    def _values(
        self, body: array[int], kind: int, count: int, signed: bool
    ) -> dict[str, int]:
        width = 3 if kind == ENUM64 else 2
        values = {}
        for i in range(0, count * width, width):
            value = body[i + 1]
            bits = 32
            if kind == ENUM64:
                value |= body[i + 2] << 32
                bits = 64
            if signed and value >> bits - 1:
                value -= 1 << bits
            values[self.name_at(body[i])] = value
        return values

    def _parameters(self, body: array[int]) -> tuple[tuple[str, Resolve | None], ...]:
        return tuple(
            (
                self.name_at(body[i]) if body[i] else "",
                self._later(body[i + 1]) if body[i + 1] else None,
            )
            for i in range(0, len(body), 2)
        )


def _make_int(name: str, size: int, info: int) -> IntType:
    encoding = info >> 24 & 15
    return IntType(name, size, bool(encoding & 1), is_bool=bool(encoding & 4))


def _step(info: int) -> int:
    kind = info >> 24 & 31
    if not 1 <= kind <= ENUM64:
        raise CorruptError(f"BTF: unknown kind {kind}")
    return 3 + _FIXED.get(kind, 0) + _PER_ENTRY.get(kind, 0) * (info & 0xFFFF)


def section_size(head: bytes) -> int:
    """Return the bytes of the BTF section that begins with ``head``.

    :raise CorruptError: none begins so
    """
    if len(head) < _HEADER.size or head[:3] != MAGIC:
        raise CorruptError("BTF: bad magic")
    _, _, _, header, type_off, type_len, str_off, str_len = _HEADER.unpack_from(head)
    size = int(header + max(type_off + type_len, str_off + str_len))
    if header < _HEADER.size or size > MAX_BYTES or not type_len or not str_len:
        raise CorruptError("BTF: an absurd header")
    return size


def scan(data: bytes) -> tuple[int, int] | None:
    """Return offset and size of the kernel's BTF in the bytes of its image, or None.

    Where kallsyms has no data symbols, ``__start_BTF`` is not known.
    """
    at = data.find(MAGIC)
    while at >= 0:
        try:
            size = section_size(data[at : at + _HEADER.size])
            if size > 1 << 16 and at + size <= len(data):
                Btf(data[at : at + size]).positions()
                return at, size
        except CorruptError:
            pass
        at = data.find(MAGIC, at + 1)
    return None
