# SPDX-License-Identifier: GPL-2.0-or-later
"""BTF as DWARF 5 (sections 2, 5 and 7), for gdb to read types and variables from.

All is made of words of 4 bytes: a DIE begins with the code of its abbreviation, as a
LEB128 of four bytes, and each attribute has one or more words. So where a DIE is can be
told from kinds and counts alone, and names are offsets into BTF's own strings.

gdb trusts what it reads: types made of themselves end its stack, and a member beyond
its struct is read beyond a buffer. So all is checked here, and one fault refuses all.
"""

from __future__ import annotations

import struct
from array import array
from itertools import accumulate
from typing import TYPE_CHECKING

from gdbkdump.debuginfo.btf import (
    ARRAY,
    CONST,
    ENUM,
    ENUM64,
    FLOAT,
    FUNC_PROTO,
    FWD,
    INT,
    PTR,
    RESTRICT,
    STRUCT,
    TYPE_TAG,
    TYPEDEF,
    UNION,
    VOLATILE,
)
from gdbkdump.errors import CorruptError
from gdbkdump.target.elffile import PROGBITS, Section

if TYPE_CHECKING:
    from collections.abc import Sequence

_STRP, _DATA4, _REF4, _SDATA = 0x0E, 0x06, 0x13, 0x0D
_EXPRLOC, _FLAG_PRESENT, _IMPLICIT_CONST = 0x18, 0x19, 0x21
_ADDR, _SEC_OFFSET = 0x01, 0x17
_LOW_PC, _HIGH_PC, _RANGES = 0x11, 0x12, 0x55
_LOCATION, _NAME, _BYTE_SIZE, _LANGUAGE = 0x02, 0x03, 0x0B, 0x13
_BIT_SIZE, _CONST_VALUE, _PROTOTYPED, _COUNT = 0x0D, 0x1C, 0x27, 0x37
_DECLARATION, _ENCODING, _EXTERNAL, _TYPE = 0x3C, 0x3E, 0x3F, 0x49
_DATA_BIT_OFFSET = 0x6B
# Of a user's own, which gdb passes over: fills the word that void has no use for.
_NOTHING = 0x3FFF
_C11 = 0x1D
_POINTER_SIZE = 8

# Forms that take no word of a DIE have their value in the abbreviation.
_named = (_NAME, _STRP)
_typed = (_TYPE, _REF4)
_sized = (_BYTE_SIZE, _DATA4)
_void = (_NOTHING, _DATA4)
_pointer_sized = (_BYTE_SIZE, _IMPLICIT_CONST, _POINTER_SIZE)
_placed = (_DATA_BIT_OFFSET, _DATA4)
_present = _FLAG_PRESENT
_ABBREVIATIONS: list[bytes] = []


def _leb(value: int) -> bytes:
    data = bytearray()
    while value > 0x3F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def _code(number: int) -> int:
    return number & 0x7F | number >> 7 << 8 | 0x808080


def _die(tag: int, *attributes: tuple[int, ...], children: bool = False) -> int:
    # Adds an abbreviation and returns the word a DIE of it begins with.
    number = len(_ABBREVIATIONS) + 1
    words = [number, tag, children, *(n for each in attributes for n in each), 0, 0]
    _ABBREVIATIONS.append(b"".join(map(_leb, words)))
    return _code(number)


_END = _code(0)
_UNIT = _die(0x11, _named, (_LANGUAGE, _IMPLICIT_CONST, _C11), children=True)
_BOOL, _FLOATING, _SIGNED, _SIGNED_CHAR, _UNSIGNED, _UNSIGNED_CHAR = (
    _die(0x24, _named, _sized, (_ENCODING, _IMPLICIT_CONST, encoding))
    for encoding in (2, 4, 5, 6, 7, 8)
)
_POINTER = _die(0x0F, _typed, _pointer_sized)
_POINTER_TO_VOID = _die(0x0F, _void, _pointer_sized)
_ARRAY_OF = _die(0x01, _typed, children=True)
_RANGE = _die(0x21, (_COUNT, _DATA4))
_OPEN_RANGE = _die(0x21, _void)
_AGGREGATE = {
    STRUCT: _die(0x13, _named, _sized, children=True),
    UNION: _die(0x17, _named, _sized, children=True),
}
_FORWARD = [
    _die(0x13, _named, (_DECLARATION, _present)),
    _die(0x17, _named, (_DECLARATION, _present)),
]
_MEMBER = _die(0x0D, _named, _typed, _placed)
# By the bits of a bit field; what has none is a whole member.
_BIT_FIELD = [_MEMBER] + [
    _die(0x0D, _named, _typed, _placed, (_BIT_SIZE, _IMPLICIT_CONST, bits))
    for bits in range(1, 65)
]
_ENUMERATION = _die(0x04, _named, _sized, children=True)
_ENUM_FORWARD = _die(0x04, _named, _sized, (_DECLARATION, _present), children=True)
_ENUMERATOR = _die(0x28, _named, (_CONST_VALUE, _SDATA))
_TYPEDEF_OF = _die(0x16, _named, _typed)
_TYPEDEF_OF_VOID = _die(0x16, _named, _void)
_QUALIFIED = {
    CONST: (_die(0x26, _typed), _die(0x26, _void)),
    VOLATILE: (_die(0x35, _typed), _die(0x35, _void)),
    RESTRICT: (_die(0x37, _typed), _die(0x37, _void)),
    PTR: (_POINTER, _POINTER_TO_VOID),
}
_prototyped = (_PROTOTYPED, _present)
_FUNCTION = _die(0x15, _typed, _prototyped, children=True)
_VOID_FUNCTION = _die(0x15, _void, _prototyped, children=True)
_PARAMETER = _die(0x05, _typed)
_MORE_PARAMETERS = _die(0x18, _void)
_place_of_text = ((_LOW_PC, _ADDR), (_HIGH_PC, _DATA4))
# By whether it returns something, whether it is global, and whether it is in pieces.
_SUBPROGRAM = {
    (typed, is_global, in_pieces): _die(
        0x2E, _named, _typed if typed else _void,
        *([(_RANGES, _SEC_OFFSET)] if in_pieces else _place_of_text),
        _prototyped, *([(_EXTERNAL, _present)] if is_global else []), children=True,
    )
    for typed in (False, True)
    for is_global in (False, True)
    for in_pieces in (False, True)
}  # fmt: skip
_located = (_LOCATION, _EXPRLOC)
_VARIABLE = _die(0x34, _named, _typed, _located, (_EXTERNAL, _present))
_STATIC_VARIABLE = _die(0x34, _named, _typed, _located)

_HEADER_WORDS = 3
_UNIT_WORDS = 2
# Words of a DIE with all below it: fixed, and for each of what it is made of.
_WORDS = {
    INT: (3, 0), PTR: (2, 0), ARRAY: (5, 0), STRUCT: (4, 4), UNION: (4, 4),
    ENUM: (4, 4), FWD: (2, 0), TYPEDEF: (3, 0), VOLATILE: (2, 0), CONST: (2, 0),
    RESTRICT: (2, 0), FUNC_PROTO: (3, 2), FLOAT: (3, 0), ENUM64: (4, 5),
}  # fmt: skip
# Words of each part of a type that has a name.
_NAMED_EVERY = {STRUCT: 3, UNION: 3, ENUM: 2, ENUM64: 3}
# What another type is only a name, a qualifier or a number of.
_WRAPPERS = (TYPEDEF, CONST, VOLATILE, RESTRICT, TYPE_TAG, ARRAY)
_SELF_CONTAINED = (INT, STRUCT, UNION, ENUM, ENUM64, FLOAT, FWD)
_NO_TYPE = -1
# Nothing in C is nested like that; gdb and this file follow it by recursion or rounds.
_MAX_DEPTH = 128
# DW_OP_addr with its 8 bytes; the first word holds the length (LEB128 of 3 bytes) too.
_ADDRESS = 0x03008089
# No function of the unit is told to be anywhere, so that for a backtrace alone gdb does
# not read all types. Without this section it takes variables for text.
_NO_TEXT = struct.pack("<IHIBB20x", 28, 2, 0, _POINTER_SIZE, 0)
_RANGE_LISTS_HEADER = struct.Struct("<IHBBI")
# DW_RLE_start_length, with a length of one byte.
_START_LENGTH = struct.Struct("<BQB")
_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\0"


class TypeUnit:
    """A compilation unit with all types of a BTF section.

    :param words: of the type section
    :param positions: where in them each type begins
    :param strings: the names
    """

    def __init__(
        self, words: array[int], positions: Sequence[int], strings: bytes
    ) -> None:
        """Check the types and place them.

        :raise CorruptError: they cannot be what a compiler wrote
        """
        if strings[:1] != b"\0" or strings[-1:] != b"\0":
            raise CorruptError("BTF: the strings have no end")
        if strings.translate(None, _PRINTABLE):
            raise CorruptError("BTF: a name that no compiler wrote")
        self._words = words
        self._positions = positions
        self._strings = strings
        self._infos = [words[at + 1] for at in positions]
        try:
            self._check_names()
            self._checked = _Checked(words, positions, self._infos)
            self._starts = self._place()
            self._dies = self._types()
        except (IndexError, OverflowError, KeyError):
            raise CorruptError("BTF: a type refers to what is no type") from None
        self._names = bytearray()
        self._in_pieces: tuple[int, int] | None = None

    def _check_names(self) -> None:
        words = self._words
        last = max((words[at] for at in self._positions), default=0)
        for at, info in zip(self._positions, self._infos, strict=True):
            step = _NAMED_EVERY.get(info >> 24 & 31)
            if step and info & 0xFFFF:
                end = at + 3 + step * (info & 0xFFFF)
                last = max(last, *words[at + 3 : end : step])
        if last >= len(self._strings):
            raise CorruptError("BTF: a name that is not in the strings")

    def _place(self) -> list[int]:
        # Offset of each type's DIE in the unit, by id; 0 for void, -1 for no type.
        sizes: dict[int, int] = {}
        for info in {*self._infos, ENUM << 24}:
            fixed, each_entry = _WORDS.get(info >> 24 & 31, (0, 0))
            sizes[info] = 4 * (fixed + each_entry * (info & 0xFFFF))
        first = 4 * (_HEADER_WORDS + _UNIT_WORDS)
        each = [sizes[info] for info in self._infos]
        for id_ in self._checked.cut_enums:
            each[id_ - 1] = sizes[ENUM << 24]
        starts = list(accumulate(each, initial=first))
        self._end = starts.pop()
        starts.insert(0, 0)
        for id_, info in enumerate(self._infos, 1):
            if info >> 24 & 31 not in _WORDS:
                starts[id_] = -1
        for id_, target in self._checked.tags.items():
            starts[id_] = starts[target]
        return starts

    def _types(self) -> list[int]:
        words, starts = self._words, self._starts
        dies: list[int] = []
        for at, info in zip(self._positions, self._infos, strict=True):
            kind = info >> 24 & 31
            if kind in _QUALIFIED:
                target = starts[words[at + 2]]
                typed, void = _QUALIFIED[kind]
                dies += (typed, target) if target else (void, 0)
            elif kind == FUNC_PROTO:
                self._add_prototype(dies, at, info)
            elif kind in _AGGREGATE:
                self._add_aggregate(dies, at, info)
            elif kind in _WORDS:
                self._add_other(dies, at, info)
        return dies

    def _add_prototype(self, dies: list[int], at: int, info: int) -> None:
        words, starts = self._words, self._starts
        result = starts[words[at + 2]]
        dies += (_FUNCTION, result) if result else (_VOID_FUNCTION, 0)
        self._add_parameters(dies, at, info)

    def _add_parameters(self, dies: list[int], at: int, info: int) -> None:
        words, starts = self._words, self._starts
        for i in range(at + 4, at + 3 + 2 * (info & 0xFFFF), 2):
            type_ = starts[words[i]]
            dies += (_PARAMETER, type_) if type_ else (_MORE_PARAMETERS, 0)
        dies.append(_END)

    def _add_aggregate(self, dies: list[int], at: int, info: int) -> None:
        words, starts = self._words, self._starts
        kind, count = info >> 24 & 31, info & 0xFFFF
        dies += (_AGGREGATE[kind], words[at], words[at + 2])
        body = words[at + 3 : at + 3 + 3 * count]
        members = [_MEMBER] * (4 * count)
        members[1::4] = body[::3]
        members[2::4] = [starts[type_] for type_ in body[1::3]]
        places = body[2::3]
        if info >> 31:
            members[::4] = [_BIT_FIELD[place >> 24] for place in places]
            members[3::4] = [place & 0xFFFFFF for place in places]
        else:
            members[3::4] = places
        dies += members
        dies.append(_END)

    def _add_other(self, dies: list[int], at: int, info: int) -> None:
        words = self._words
        kind = info >> 24 & 31
        name, word = words[at], words[at + 2]
        if kind == INT:
            dies += (self._encoding(name, word, words[at + 3]), name, word)
        elif kind == FLOAT:
            dies += (_FLOATING, name, word)
        elif kind == TYPEDEF:
            target = self._starts[word]
            dies += (
                (_TYPEDEF_OF, name, target) if target else (_TYPEDEF_OF_VOID, name, 0)
            )
        elif kind == FWD:
            dies += (_FORWARD[info >> 31], name)
        elif kind == ARRAY:
            count = words[at + 5]
            # BTF does not tell [] from [0].
            dies += (_ARRAY_OF, self._starts[words[at + 3]])
            dies += (_RANGE, count) if count else (_OPEN_RANGE, 0)
            dies.append(_END)
        else:
            self._add_enum(dies, at, info)

    def _encoding(self, name: int, size: int, word: int) -> int:
        if word >> 24 & 4:
            return _BOOL
        is_signed = word >> 24 & 1
        if (
            size == 1
            and b"char" in self._strings[name : self._strings.find(b"\0", name)]
        ):
            return _SIGNED_CHAR if is_signed else _UNSIGNED_CHAR
        return _SIGNED if is_signed else _UNSIGNED

    def _add_enum(self, dies: list[int], at: int, info: int) -> None:
        words = self._words
        count = info & 0xFFFF
        dies += (_ENUMERATION if count else _ENUM_FORWARD, words[at], words[at + 2])
        is_wide = info >> 24 & 31 == ENUM64
        if not is_wide and words[at + 2] > 4:
            count = 0  # see cut_enums
        step = 3 if is_wide else 2
        is_signed = bool(info >> 31) or not (is_wide or self._checked.knows_signs)
        for i in range(at + 3, at + 3 + step * count, step):
            value = words[i + 1] | (words[i + 2] << 32 if is_wide else 0)
            bits = 64 if is_wide else 32
            if is_signed and value >> bits - 1:
                value -= 1 << bits
            dies += (_ENUMERATOR, words[i], *_sdata(value, step))
        dies.append(_END)

    def type(self, id_: int) -> int:
        """Return what stands for a type in ``add_variable()``."""
        return self._starts[id_]

    def pointer_to(self, target: int) -> int:
        """Add a pointer to a type, or to a pointer; 0 is void."""
        return self._add(*((_POINTER, target) if target else (_POINTER_TO_VOID, 0)))

    def array_of(self, element: int, count: int | None) -> int:
        """Add an array of a type, None for one whose length is not known."""
        last = (_OPEN_RANGE, 0) if count is None else (_RANGE, count)
        return self._add(_ARRAY_OF, element, *last, _END)

    def qualified(self, kind: int, target: int) -> int:
        """Add a type that is const or volatile; ``kind`` is BTF's."""
        return self._add(_QUALIFIED[kind][0], target)

    def _add(self, *die: int) -> int:
        start = self._end
        self._dies += die
        self._end += 4 * len(die)
        return start

    def add_variable(
        self, name: int, type_: int, address: int, *, is_global: bool
    ) -> None:
        """Add a variable.

        :param name: offset of it in the strings
        """
        die = _VARIABLE if is_global else _STATIC_VARIABLE
        low, high = address & 0xFFFFFFFF, address >> 32
        self._add(die, name, type_, _ADDRESS, low, high)

    def add_function(
        self, name: int, prototype: int, address: int, size: int, *, is_global: bool
    ) -> None:
        """Add a function.

        Its parameters have no names: then gdb lists none, as of code built with -g1,
        where of named ones it would say that they are optimized out.

        :param prototype: id of its type
        """
        at, info = self._positions[prototype - 1], self._infos[prototype - 1]
        if info >> 24 & 31 != FUNC_PROTO:
            return
        result = self._starts[self._words[at + 2]]
        # Only with a function in pieces gdb keeps track of which addresses are in none;
        # it would take these for a function whose locals are the static variables.
        in_pieces = self._in_pieces is None and 1 < size < 0x80
        die = [_SUBPROGRAM[bool(result), is_global, in_pieces], name, result]
        if in_pieces:
            self._in_pieces = address, size
            die.append(_RANGE_LISTS_HEADER.size)
        else:
            die += (address & 0xFFFFFFFF, address >> 32, size)
        self._add_parameters(die, at, info)
        self._add(*die)

    def string(self, text: bytes) -> int:
        """Return the offset of a name that BTF may not have."""
        at = self._strings.find(b"\0" + text + b"\0") + 1
        if not at:
            at = len(self._strings) + len(self._names)
            self._names += text + b"\0"
        return at

    def sections(self, name: bytes) -> list[Section]:
        """Return the sections of DWARF.

        :param name: of the unit
        """
        unit = self.string(name)
        size = self._end + 4
        head = [size - 4, 5 | 1 << 16 | _POINTER_SIZE << 24, 0, _UNIT, unit]
        info = array("I", [*head, *self._dies, _END]).tobytes()
        strings = self._strings + bytes(self._names)
        abbreviations = b"".join(_ABBREVIATIONS) + b"\0"
        return [
            Section(".debug_info", PROGBITS, info),
            Section(".debug_abbrev", PROGBITS, abbreviations),
            Section(".debug_str", PROGBITS, strings),
            Section(".debug_aranges", PROGBITS, _NO_TEXT),
            Section(".debug_rnglists", PROGBITS, self._pieces()),
        ]

    def _pieces(self) -> bytes:
        # Of one function, and without a gap.
        if self._in_pieces is None:
            return b""
        address, size = self._in_pieces
        entries = _START_LENGTH.pack(7, address, 1)
        entries += _START_LENGTH.pack(7, address + 1, size - 1) + b"\0"
        length = _RANGE_LISTS_HEADER.size + len(entries) - 4
        return _RANGE_LISTS_HEADER.pack(length, 5, _POINTER_SIZE, 0, 0) + entries


def _sdata(value: int, words: int) -> tuple[int, ...]:
    # A SLEB128 of as many bytes as these words have.
    data = [value >> 7 * i & 0x7F | 0x80 for i in range(4 * words)]
    data[-1] &= 0x7F
    return struct.unpack(f"<{words}I", bytes(data))


class _Checked:
    # What must be known of types before gdb may have them.
    def __init__(
        self, words: array[int], positions: Sequence[int], infos: Sequence[int]
    ) -> None:
        self._words = words
        self._positions = [0, *positions]
        self._kinds = [0, *(info >> 24 & 31 for info in infos)]
        self._infos = [0, *infos]
        # A kernel's BTF has negative enumerators; where none is marked so, it is from
        # before Linux kernel commit 6089fb325cf7 ("bpf: Add btf enum64 support") (in
        # v6.0), when all values of 32 bits were taken for signed.
        self.knows_signs = any(
            info >> 31 and info >> 24 & 31 in (ENUM, ENUM64) for info in infos
        )
        self.tags: dict[int, int] = {}
        # Before ENUM64 values of more than 32 bits lost those above: none are told.
        self.cut_enums: list[int] = []
        count = len(self._positions)
        # Bytes of each type (None: not known yet), and the struct or union it is made
        # of, if it is behind names, qualifiers and arrays.
        self._sizes: list[int | None] = [None] * count
        self._sizes[0] = 1
        self._cores = [0] * count
        self._measure()
        self._check_members()

    def _measure(self) -> None:
        pending = []
        for id_, kind in enumerate(self._kinds):
            if kind in _SELF_CONTAINED:
                self._sizes[id_] = self._own_size(id_, kind)
            elif kind in _WORDS or kind == TYPE_TAG:
                pending.append(id_)
            elif id_:
                self._sizes[id_] = _NO_TYPE
        for _ in range(_MAX_DEPTH):
            if not pending:
                return
            pending = [id_ for id_ in pending if not self._is_measured(id_)]
        raise CorruptError("BTF: types that are made of themselves")

    def _own_size(self, id_: int, kind: int) -> int:
        size = self._words[self._positions[id_] + 2]
        if kind in (STRUCT, UNION):
            self._cores[id_] = id_
            return size
        if kind == FWD:
            return 0
        if kind == ENUM and size > 4:
            self.cut_enums.append(id_)
        if not 0 < size <= 16:
            raise CorruptError(f"BTF: a number of {size} bytes")
        return size

    def _is_measured(self, id_: int) -> bool:
        # A type is known when all that it refers to is.
        words, sizes, kind = self._words, self._sizes, self._kinds[id_]
        at = self._positions[id_]
        target = words[at + 3] if kind == ARRAY else words[at + 2]
        size = sizes[target]
        if size is None:
            return False
        if size == _NO_TYPE:
            raise IndexError
        if kind == PTR:
            size = _POINTER_SIZE
        elif kind == FUNC_PROTO:
            last = at + 3 + 2 * (self._infos[id_] & 0xFFFF)
            if any(sizes[words[i]] is None for i in range(at + 4, last, 2)):
                return False
            self._check_parameters(at, last)
            size = 1
        elif kind == ARRAY:
            size *= words[at + 5]
            if not target:
                raise CorruptError("BTF: an array of void")
        elif kind == TYPE_TAG:
            self.tags[id_] = self.tags.get(target, target)
        if kind in _WRAPPERS:
            self._cores[id_] = self._cores[target]
        sizes[id_] = size
        return True

    def _check_parameters(self, at: int, last: int) -> None:
        # Type 0 is "...", which comes last.
        if not all(self._words[i] for i in range(at + 4, last - 2, 2)):
            raise CorruptError("BTF: a parameter of type void")

    def _check_members(self) -> None:
        # Struct and unions by what they hold; those that hold nothing unknown are done.
        pending: dict[int, set[int]] = {}
        for id_, kind in enumerate(self._kinds):
            if kind in (STRUCT, UNION):
                inner = self._held(id_)
                if inner:
                    pending[id_] = inner
        for _ in range(_MAX_DEPTH):
            if not pending:
                return
            pending = {
                id_: left
                for id_, inner in pending.items()
                if (left := {each for each in inner if each in pending})
            }
        raise CorruptError("BTF: structs that hold themselves")

    def _held(self, id_: int) -> set[int]:
        # Checks the members of a struct; returns the structs and unions among them.
        info, at = self._infos[id_], self._positions[id_]
        body = self._words[at + 3 : at + 3 + 3 * (info & 0xFFFF)]
        types, places = body[1::3], body[2::3]
        sizes, end = self._sizes, 8 * self._words[at + 2]
        bits: Sequence[int] = bytes(len(places))
        if info >> 31:
            bits = [place >> 24 for place in places]
            places = array("I", [place & 0xFFFFFF for place in places])
        for type_, place, width in zip(types, places, bits, strict=True):
            size = sizes[type_]
            if size is None or size == _NO_TYPE or not type_:
                raise CorruptError("BTF: a member of no type")
            is_wrong = width > 8 * size or size > 16 if width else place & 7
            if is_wrong or place + (width or 8 * size) > end:
                raise CorruptError("BTF: a member that is not within its struct")
        return set(map(self._cores.__getitem__, types)) - {0}
