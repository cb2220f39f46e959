# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbol table a kernel carries in itself (``kernel/kallsyms.c``).

Names are compressed with a table of 256 tokens. Nothing is decoded but what is asked
for where the kernel has ``kallsyms_seqs_of_names`` (6.2, and 6.1 by backport); older
ones are decoded whole on the first look-up by name. Layouts of ``scripts/kallsyms.c``:

* old: offsets, relative_base, num_syms, names, markers, [seqs_of_names], token_table,
  token_index
* since 6.4: num_syms, names, markers, token_table, token_index, offsets,
  [relative_base], seqs_of_names

Each part begins at a multiple of 8 bytes, so those that VMCOREINFO does not name follow
from those that it does; whatever is found that way is verified before it is used.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from itertools import pairwise
from operator import add
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import CorruptError, KdumpError

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator, Sequence

    from gdbkdump.formats.vmcoreinfo import VmcoreInfo
    from gdbkdump.memory.reader import Reader

_MAX_SYMBOLS = 1 << 23
_MAX_NAMES = 256 << 20
_SAMPLES = 64
# Words of 256 names, the last ones, that markers do not tell of.
_LAST_NAMES = 256 * 520 // 4


class Symbol(NamedTuple):
    """A symbol; ``type`` is the letter that ``nm`` prints."""

    name: str
    address: int
    type: str


class _Parts(NamedTuple):
    # Run-time addresses of the tables; base is None where offsets are PC-relative.
    number: int
    names: int
    token_table: int
    token_index: int
    offsets: int
    base: int | None
    base_end: int


def _align(address: int) -> int:
    return (address + 7) & ~7


class Kallsyms:
    """All symbols of the core kernel."""

    def __init__(self, reader: Reader, parts: _Parts) -> None:
        """Read the token table.

        :raise CorruptError: the tables contradict themselves
        """
        if not 0 < parts.number <= _MAX_SYMBOLS:
            raise CorruptError(f"kallsyms: {parts.number} symbols")
        self.count = parts.number
        self._reader = reader
        self._parts = parts
        self._tokens = _read_tokens(reader, parts)
        end = max(parts.token_table, parts.names)
        if not 0 < end - parts.names <= _MAX_NAMES:
            raise CorruptError("kallsyms: the names do not come before the tokens")
        # Names, markers and, before 6.4, seqs_of_names: one read of 1-4 MB.
        self._blob = reader.read(parts.names, end - parts.names)
        self._markers = self._find_markers()
        self._seqs = self._find_seqs()
        self._offsets: array[int] = reader.array(parts.offsets, "i", self.count)
        self._is_percpu_absolute = parts.base is not None and min(self._offsets) < 0
        self._by_name: dict[bytes, list[int]] | None = None
        self._all: list[bytes] | None = None

    # Where the tables are

    def _find_markers(self) -> tuple[int, ...] | None:
        # Offset of every 256th name, u32 each, the last thing before token_table
        # but for seqs_of_names in 6.1.y.
        number = (self.count + 255) >> 8
        with_seqs = self._parts.token_table - _align(3 * self.count)
        for end in (self._parts.token_table, with_seqs):
            at = end - _align(4 * number) - self._parts.names
            if at < 2 * self.count:
                continue
            markers = struct.unpack_from(f"<{number}I", self._blob, at)
            rising = all(a < b for a, b in pairwise(markers))
            if markers[0] == 0 and rising and markers[-1] < at:
                return markers
        return None

    def _find_seqs(self) -> bytes | None:
        # Index of each symbol in the order of names, 3 bytes big-endian each.
        if self._markers is None:
            return None
        parts = self._parts
        size = 3 * self.count
        candidates = [parts.token_table - _align(size)]
        if parts.offsets > parts.token_index:
            candidates = [
                _align(parts.base_end),
                _align(parts.offsets + 4 * self.count),
            ]
        for address in candidates:
            try:
                seqs = self._reader.read(address, size)
                if self._is_sorted(seqs):
                    return seqs
            except KdumpError:
                continue
        return None

    def _is_sorted(self, seqs: bytes) -> bool:
        last = b""
        for i in range(0, self.count, max(1, self.count // _SAMPLES)):
            number = int.from_bytes(seqs[3 * i : 3 * i + 3], "big")
            if number >= self.count:
                return False
            name = self._name(number)[1:]
            if name < last:
                return False
            last = name
        return True

    # Decoding

    def _name(self, index: int) -> bytes:
        # One name with its type letter first, from the marker before it.
        if self._markers is None:
            return self._decode_all()[index]
        blob = self._blob
        position = self._markers[index >> 8]
        try:
            for _ in range(index & 255):
                length = blob[position]
                position += 1
                if length & 0x80:
                    length = length & 0x7F | blob[position] << 7
                    position += 1
                position += length
            return self._decode(position)
        except IndexError:
            raise CorruptError(f"kallsyms: name {index} runs past the end") from None

    def _decode(self, position: int) -> bytes:
        blob = self._blob
        length = blob[position]
        position += 1
        if length & 0x80:
            # Since 6.1 lengths above 127 are ULEB128 of two bytes.
            length = length & 0x7F | blob[position] << 7
            position += 1
        end = position + length
        if end > len(blob):
            raise IndexError
        return b"".join([self._tokens[c] for c in blob[position:end]])

    def _decode_all(self) -> list[bytes]:
        if self._all is None:
            names: list[bytes] = []
            position = 0
            for first in range(0, self.count, 256):
                # Markers were verified to rise, so what contradicts them is the names.
                if self._markers and self._markers[first >> 8] != position:
                    raise CorruptError(
                        f"kallsyms: name {first} is not where it is told"
                    )
                try:
                    position = self._decode_some(names, first, position)
                except IndexError:
                    raise CorruptError("kallsyms: the names run past the end") from None
            self._all = names
        return self._all

    def _decode_some(self, names: list[bytes], first: int, position: int) -> int:
        # Adds up to 256 names; returns where the next one is.
        blob, token = self._blob, self._tokens.__getitem__
        for _ in range(first, min(first + 256, self.count)):
            length = blob[position]
            position += 1
            if length & 0x80:
                length = length & 0x7F | blob[position] << 7
                position += 1
            end = position + length
            names.append(b"".join(map(token, blob[position:end])))
            position = end
        return position

    def address(self, index: int) -> int:
        """Return the run-time address of a symbol by its index."""
        offset = self._offsets[index]
        base = self._parts.base
        if base is None:
            return self._parts.offsets + 4 * index + offset
        if not self._is_percpu_absolute:
            return base + (offset & 0xFFFFFFFF)
        # Absolute-percpu: per-CPU offsets as they are, the rest negative.
        return offset if offset >= 0 else base - 1 - offset

    def _symbol(self, index: int) -> Symbol:
        raw = self._name(index)
        return Symbol(
            raw[1:].decode("utf-8", "backslashreplace"),
            self.address(index),
            raw[:1].decode("latin-1"),
        )

    def raw_names(self) -> list[bytes]:
        """Return the names by index, each with its type letter first.

        They are checked against all that the tables tell of their places and order.

        :raise CorruptError: they are damaged
        """
        names = self._decode_all()
        if self._seqs is None:
            return names
        big = b"".join(
            [b"\0" + self._seqs[i : i + 3] for i in range(0, 3 * self.count, 3)]
        )
        order = struct.unpack(f">{self.count}I", big)
        if max(order) >= self.count or len(set(order)) != self.count:
            raise CorruptError("kallsyms: seqs_of_names has not each name once")
        bare = [names[i][1:] for i in order]
        # CONFIG_LTO_CLANG sorts them without what it adds.
        if any(a > b and _plain(a) > _plain(b) for a, b in pairwise(bare)):
            raise CorruptError("kallsyms: the names are not in order")
        return names

    def addresses(self) -> list[int]:
        """Return the run-time addresses by index."""
        offsets, base = self._offsets, self._parts.base
        if base is None:
            at = range(self._parts.offsets, self._parts.offsets + 4 * self.count, 4)
            return list(map(add, at, offsets))
        if not self._is_percpu_absolute:
            return [base + (offset & 0xFFFFFFFF) for offset in offsets]
        return [off if off >= 0 else base - 1 - off for off in offsets]

    def tables(self) -> Iterator[bytes]:
        """Yield what all symbols follow from, the same wherever the kernel is."""
        yield self._blob
        yield self._offsets.tobytes()
        yield b"\0".join(self._tokens)

    # Look-ups

    def find(self, name: str) -> list[Symbol]:
        """Return all symbols of a name, in the order of their addresses."""
        key = name.encode()
        if self._seqs is None:
            return [self._symbol(i) for i in self._dictionary().get(key, ())]
        low, high = 0, self.count
        while low < high:
            middle = (low + high) // 2
            if self._name(self._seq(middle))[1:] < key:
                low = middle + 1
            else:
                high = middle
        found = []
        while low < self.count and self._name(self._seq(low))[1:] == key:
            found.append(self._symbol(self._seq(low)))
            low += 1
        return found

    def _seq(self, index: int) -> int:
        assert self._seqs is not None
        number = int.from_bytes(self._seqs[3 * index : 3 * index + 3], "big")
        if number >= self.count:
            raise CorruptError(f"kallsyms: seqs_of_names[{index}] is {number}")
        return number

    def _dictionary(self) -> dict[bytes, list[int]]:
        if self._by_name is None:
            by_name: dict[bytes, list[int]] = {}
            for index, raw in enumerate(self._decode_all()):
                by_name.setdefault(raw[1:], []).append(index)
            self._by_name = by_name
        return self._by_name

    def at(self, address: int) -> tuple[Symbol, int | None] | None:
        """Return the symbol at or before an address, and where the next one begins.

        Of several at one address it is the first, as in the kernel's own
        ``get_symbol_pos()``. The next address is None for the last symbol.
        """
        index = bisect_right(range(self.count), address, key=self.address) - 1
        if index < 0:
            return None
        start = self.address(index)
        following = self.address(index + 1) if index + 1 < self.count else None
        while index and self.address(index - 1) == start:
            index -= 1
        return self._symbol(index), following

    def __iter__(self) -> Iterator[Symbol]:
        """Yield all symbols in the order of their addresses."""
        for index, raw in enumerate(self._decode_all()):
            yield Symbol(
                raw[1:].decode("utf-8", "backslashreplace"),
                self.address(index),
                chr(raw[0]) if raw else "?",
            )


def _plain(name: bytes) -> bytes:
    return name.partition(b".llvm.")[0]


def _read_tokens(reader: Reader, parts: _Parts) -> list[bytes]:
    index = reader.array(parts.token_index, "H", 256)
    table = reader.read_partial(parts.token_table, index[255] + 256)
    if any(a >= b for a, b in pairwise(index)):
        raise CorruptError("kallsyms: the token index is not sorted")
    return [table[at : table.find(b"\0", at)] for at in index]


def from_vmcoreinfo(reader: Reader, info: VmcoreInfo) -> Kallsyms | None:
    """Return the symbols where VMCOREINFO names their tables (6.0 and later)."""
    names = info.symbol("kallsyms_names")
    count = info.symbol("kallsyms_num_syms")
    table = info.symbol("kallsyms_token_table")
    index = info.symbol("kallsyms_token_index")
    offsets = info.symbol("kallsyms_offsets")
    if not (names and count and table and index and offsets):
        return None
    base_at = info.symbol("kallsyms_relative_base")
    number = reader.u32(count)
    parts = _Parts(
        number,
        names,
        table,
        index,
        offsets,
        reader.u64(base_at) if base_at else None,
        (base_at + 8) if base_at else offsets + 4 * number,
    )
    return Kallsyms(reader, parts)


_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))


def scan(reader: Reader, start: int, image: bytes, text: int) -> Kallsyms | None:
    """Find the tables in the bytes of the kernel image.

    The token table holds the digits in a row; the base of the offsets is the address of
    the kernel's text.

    :param start: virtual address of ``image``
    :param text: address of ``_text``, which is ``_stext`` on x86-64
    """
    for table, index in _scan_tokens(image):
        parts = _scan_old_order(start, image, text, table, index)
        parts = parts or _scan_new_order(start, image, text, table, index)
        if parts:
            return Kallsyms(reader, parts)
    return None


def _scan_tokens(image: bytes) -> Iterator[tuple[int, int]]:
    at = image.find(_DIGITS)
    while at >= 0:
        # The 256 indexes follow the tokens, which are short.
        for index in range(_align(at + len(_DIGITS)), at + 4096, 8):
            numbers = struct.unpack_from("<256H", image, index)
            if numbers[0] or any(a >= b for a, b in pairwise(numbers)):
                continue
            table = at - numbers[ord("0")]
            if table >= 0 and numbers[ord("1")] - numbers[ord("0")] == 2:
                yield table, index
            break
        at = image.find(_DIGITS, at + 1)


def _scan_old_order(
    start: int, image: bytes, text: int, table: int, index: int
) -> _Parts | None:
    key = struct.pack("<Q", text)
    at = image.find(key, 0, table)
    while at >= 0:
        if at % 8 == 0 and at + 16 <= len(image):
            count, pad = struct.unpack_from("<II", image, at + 8)
            offsets = at - _align(4 * count)
            if 1000 < count < _MAX_SYMBOLS and not pad and offsets >= 0:
                return _Parts(
                    count, start + at + 16, start + table, start + index,
                    start + offsets, text, start + at + 8,
                )  # fmt: skip
        at = image.find(key, at + 1, table)
    return None


def _scan_new_order(
    start: int, image: bytes, text: int, table: int, index: int
) -> _Parts | None:
    # num_syms, the names, and the markers, which end where the tokens begin: these tell
    # how many names there are, to 256, and how long they are but for the last of them.
    words = memoryview(image)[: table & ~7].cast("I")
    end = len(words) - (not words[-1])
    first = end - 1
    while first > 0 and words[first - 1] < words[first]:
        first -= 1
    last = words[end - 1]
    for i in range(first - last // 4, max(0, first - last // 4 - _LAST_NAMES), -1):
        count = words[i - 1] if i > 0 else 0
        names = 4 * i + -4 * i % 8
        if (count + 255) >> 8 != end - first or not _begins_at(
            image, names, words[first + 1 :]
        ):
            continue
        offsets = _align(index + 512)
        base_at = _align(offsets + 4 * count)
        has_base = image[base_at : base_at + 8] == struct.pack("<Q", text)
        return _Parts(
            count, start + names, start + table, start + index, start + offsets,
            text if has_base else None, start + base_at + (8 if has_base else 0),
        )  # fmt: skip
    return None


def _begins_at(image: bytes, names: int, markers: Sequence[int]) -> bool:
    # Whether the second marker is as far behind as 256 names are long.
    position = names
    try:
        for _ in range(256):
            length = image[position]
            position += 1
            if length & 0x80:
                length = length & 0x7F | image[position] << 7
                position += 1
            position += length
        return position - names == markers[0]
    except IndexError:
        return False
