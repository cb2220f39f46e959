# SPDX-License-Identifier: GPL-2.0-or-later
"""BTF of modules taken together with what it needs of the kernel's (split BTF).

A module's types refer to the kernel's by id, which a file of its own cannot. What has
a name of its own becomes a forward declaration that gdb resolves by this name, the rest
is copied: that is little, since pointers lead to structs and these have names.
"""

from __future__ import annotations

from array import array
from collections import Counter, deque

from gdbkdump.debuginfo.btf import (
    ARRAY,
    CONST,
    DATASEC,
    DECL_TAG,
    ENUM,
    ENUM64,
    FUNC,
    FUNC_PROTO,
    FWD,
    INT,
    PTR,
    RESTRICT,
    STRUCT,
    TYPE_TAG,
    TYPEDEF,
    UNION,
    VAR,
    VOLATILE,
    Btf,
)
from gdbkdump.errors import CorruptError

_REFERENCES = (PTR, TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG, FUNC, FUNC_PROTO)
_NAMED = (STRUCT, UNION, ENUM, ENUM64)
# What only tells of other types or of variables, which gdb is told another way.
_PASSED_OVER = (DECL_TAG, VAR, DATASEC)
# Words of each part of a type that begins with a name, and whether a type follows it.
_PARTS = {
    STRUCT: (3, True), UNION: (3, True), ENUM: (2, False), ENUM64: (3, False),
    FUNC_PROTO: (2, True),
}  # fmt: skip


class MergedTypes:
    """Types of modules, under ids of their own.

    :param base: the kernel's
    :ivar words: the type section that has come together, as in ``Btf``
    :ivar positions: where in it each type begins
    """

    def __init__(self, base: Btf) -> None:
        """Begin with none."""
        self.words = array("I")
        self.positions: list[int] = []
        self._base = base
        self._base_positions = base.positions()
        words = base.words
        # How many types of the kernel have a name and kind.
        self._uses = Counter(
            (words[at], kind)
            for at in self._base_positions
            if (kind := words[at + 1] >> 24 & 31) in _NAMED
        )
        self._strings = bytearray(b"\0")
        self._names: dict[bytes, int] = {b"": 0}
        self._from_base: dict[int, int] = {}

    @property
    def strings(self) -> bytes:
        """The names."""
        return bytes(self._strings)

    def add(self, module: Btf) -> dict[int, int]:
        """Add all types of a module; return their ids here by those in the module.

        :raise CorruptError: they refer to what is not there; none is added then
        """
        count, end, from_base = len(self.positions), len(self.words), self._from_base
        self._from_base = dict(from_base)
        try:
            return _Adder(self, module).ids
        except (IndexError, ValueError):
            del self.positions[count:]
            del self.words[end:]
            self._from_base = from_base
            raise CorruptError("BTF: a type refers to what is no type") from None

    def name(self, text: bytes) -> int:
        """Return the offset of a name."""
        found = self._names.get(text)
        if found is None:
            found = self._names[text] = len(self._strings)
            self._strings += text + b"\0"
        return found


class _Adder:
    # Copies the types of one module, and those of the kernel's that these lead to.
    def __init__(self, merged: MergedTypes, module: Btf) -> None:
        self.ids: dict[int, int] = {0: 0}
        self._merged = merged
        self._base = merged._base
        self._module = module
        self._positions = module.positions()
        self._next = len(merged.positions) + 1
        # What is given an id is copied in this order.
        self._queue: deque[int] = deque()
        for id_ in range(module.first_id, module.end_id):
            self._id(id_)
        while self._queue:
            self._copy(self._queue.popleft())

    def _id(self, old: int) -> int:
        known = self._merged._from_base if old < self._module.first_id else self.ids
        found = self.ids.get(old) if old == 0 else known.get(old)
        if found is None:
            found = known[old] = self._next
            self._next += 1
            self._queue.append(old)
        return found

    def _copy(self, old: int) -> None:
        merged = self._merged
        if old < self._module.first_id:
            words, at = self._base.words, merged._base_positions[old - 1]
            copied = self._declaration(at) or self._whole(words, at)
        else:
            words = self._module.words
            at = self._positions[old - self._module.first_id]
            copied = self._whole(words, at)
        merged.positions.append(len(merged.words))
        merged.words.extend(copied)

    def _declaration(self, at: int) -> list[int] | None:
        # For what the kernel has one of, so that its name tells it.
        name, info, size = self._base.words[at : at + 3]
        kind = info >> 24 & 31
        if not name or self._merged._uses.get((name, kind)) != 1:
            return None
        if kind in (STRUCT, UNION):
            is_union = (kind == UNION) << 31
            return [self._name(name), FWD << 24 | is_union, 0]
        return [self._name(name), ENUM << 24, size]

    def _whole(self, words: array[int], at: int) -> list[int]:
        name, info, word = words[at : at + 3]
        kind, count = info >> 24 & 31, info & 0xFFFF
        if kind in _PASSED_OVER:
            return [0, DECL_TAG << 24, 0, 0]
        head = [self._name(name), info, self._id(word) if kind in _REFERENCES else word]
        if kind == ARRAY:
            return [*head, self._id(words[at + 3]), 0, words[at + 5]]
        if kind in _PARTS:
            size, has_type = _PARTS[kind]
            body = words[at + 3 : at + 3 + size * count].tolist()
            body[::size] = map(self._name, body[::size])
            if has_type:
                body[1::size] = map(self._id, body[1::size])
            return head + body
        return [*head, words[at + 3]] if kind == INT else head

    def _name(self, offset: int) -> int:
        start = offset - self._base.end_string
        strings = self._module.strings
        if start < 0:
            start, strings = offset, self._base.strings
        return self._merged.name(strings[start : strings.index(b"\0", start)])
