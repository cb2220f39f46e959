# SPDX-License-Identifier: GPL-2.0-or-later
"""Page bitmaps of dump files: a bit for each page frame, the lowest first.

A terabyte has 32 MiB of them, so they stay in the file; what is looked at is kept as
whole numbers of 4096 bits, which Python counts and shifts at once.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Protocol

from gdbkdump.errors import FormatError
from gdbkdump.formats.base import Extent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gdbkdump.formats.base import Report

_WORD_BYTES = 512
_WORD_SHIFT = 12
_WORD_MASK = (1 << _WORD_SHIFT) - 1
_PIECE = 1 << 20
_ZEROS, _ONES = bytes(_PIECE), b"\xff" * _PIECE
# Words kept: 9 MiB.
_MAX_WORDS = 1 << 14


class Source(Protocol):
    """What a bitmap is read from: any ``DumpBytes``, for one."""

    path: Path

    def read_header(self, offset: int, size: int) -> bytes:
        """Return bytes; fewer where the end is near."""


class Bitmap:
    """A bitmap in a file.

    :param offset: where in the file
    :param count: bits; those of the file beyond them do not count
    """

    def __init__(self, file: Source, offset: int, count: int) -> None:
        """Take a bitmap; nothing is read yet."""
        self._file = file
        self._offset = offset
        self._count = count
        self._words: dict[int, int] = {}

    def test(self, bit: int) -> bool:
        """Tell whether a bit is set; none is beyond the end."""
        if not 0 <= bit < self._count:
            return False
        return bool(self._word(bit >> _WORD_SHIFT) >> (bit & _WORD_MASK) & 1)

    def _word(self, number: int) -> int:
        word = self._words.get(number)
        if word is None:
            if len(self._words) >= _MAX_WORDS:
                self._words.clear()
            at = number * _WORD_BYTES
            data = self._file.read_header(self._offset + at, _WORD_BYTES)
            word = int.from_bytes(data, "little")
            left = self._count - (number << _WORD_SHIFT)
            if left <= _WORD_MASK:
                word &= (1 << left) - 1
            self._words[number] = word
        return word

    def _pieces(self, first: int, last: int) -> Iterator[bytes]:
        # The bytes of words ``first`` up to ``last``, without bits beyond the end.
        end = min(last * _WORD_BYTES, (self._count + 7) // 8)
        for at in range(first * _WORD_BYTES, end, _PIECE):
            size = min(_PIECE, end - at)
            data = self._file.read_header(self._offset + at, size)
            if len(data) < size:
                raise FormatError(f"{self._file.path} ends within its page bitmaps")
            if (at + size) * 8 > self._count:
                keep = (1 << self._count % 8) - 1
                data = data[:-1] + bytes([data[-1] & keep])
            yield data

    def runs(self) -> Iterator[tuple[int, int]]:
        """Yield start and end of each run of set bits."""
        start = None
        position = 0
        words = (self._count + _WORD_MASK) >> _WORD_SHIFT
        for piece in self._pieces(0, words):
            for value, bits in _homogeneous(piece):
                # Bit n of the flips: bit n differs from the one before it.
                flips = (value ^ (value << 1 | (start is not None))) & ((1 << bits) - 1)
                while flips:
                    at = position + (flips & -flips).bit_length() - 1
                    flips &= flips - 1
                    if start is None:
                        start = at
                    else:
                        yield start, at
                        start = None
                position += bits
        if start is not None:
            yield start, min(position, self._count)

    def extents(self, page_size: int) -> list[Extent]:
        """Return the runs as memory, of which single pages may not be in the file."""
        return [
            Extent(None, start * page_size, size, size)
            for start, end in self.runs()
            for size in [(end - start) * page_size]
        ]

    def count(self) -> int:
        """Return how many bits are set."""
        words = (self._count + _WORD_MASK) >> _WORD_SHIFT
        pieces = self._pieces(0, words)
        return sum(int.from_bytes(piece, "little").bit_count() for piece in pieces)

    def is_within(self, other: Bitmap) -> bool:
        """Tell whether each bit that is set is set in another bitmap as well."""
        return not any(
            ours != theirs
            and int.from_bytes(ours, "little") & ~int.from_bytes(theirs, "little")
            for ours, theirs in self._pairs(other)
        )

    def equals(self, other: Bitmap) -> bool:
        """Tell whether the same bits are set in another bitmap of that many."""
        return all(ours == theirs for ours, theirs in self._pairs(other))

    def _pairs(self, other: Bitmap) -> Iterator[tuple[bytes, bytes]]:
        words = (self._count + _WORD_MASK) >> _WORD_SHIFT
        return zip(self._pieces(0, words), other._pieces(0, words), strict=True)


def _homogeneous(piece: bytes) -> Iterator[tuple[int, int]]:
    # (value, bits) of words; what is all zeros or all ones, as nearly all is, in one.
    size = len(piece)
    if piece == _ZEROS[:size]:
        yield 0, size * 8
    elif piece == _ONES[:size]:
        yield (1 << size * 8) - 1, size * 8
    else:
        for at in range(0, size, _WORD_BYTES):
            word = piece[at : at + _WORD_BYTES]
            yield int.from_bytes(word, "little"), len(word) * 8


class RankedBitmap(Bitmap):
    """A bitmap that knows how many bits are set before each one.

    :param first: bit that counting begins with
    :param end: bit that it ends before
    """

    def __init__(
        self,
        file: Source,
        offset: int,
        count: int,
        first: int,
        end: int,
        report: Report,
    ) -> None:
        """Count the bits, a word at a time.

        :raise FormatError: the file ends within the bitmap
        """
        super().__init__(file, offset, count)
        self.first, self.end = first, min(end, count)
        self._base = first >> _WORD_SHIFT
        last = (self.end + _WORD_MASK) >> _WORD_SHIFT
        # Bits before each word, counted from that of ``first``.
        self._before = array("Q")
        total = 0
        words = max(0, last - self._base)
        for piece in self._pieces(self._base, last):
            report("counting the pages of the dump", len(self._before), words)
            number = (len(piece) + _WORD_BYTES - 1) // _WORD_BYTES
            if piece == _ZEROS[: len(piece)]:
                self._before.extend([total] * number)
                continue
            for at in range(0, len(piece), _WORD_BYTES):
                self._before.append(total)
                word = piece[at : at + _WORD_BYTES]
                total += int.from_bytes(word, "little").bit_count()
        self._skipped = self._rank(first) if self._before else 0
        self.total = self._total(total)

    def _total(self, all_words: int) -> int:
        # Bits of the last word from ``end`` on are another file's.
        if not self._before or self.first >= self.end:
            return 0
        if self.end & _WORD_MASK == 0:
            return all_words - self._skipped
        return self._rank(self.end) - self._skipped

    def _rank(self, bit: int) -> int:
        number = bit >> _WORD_SHIFT
        below = self._word(number) & ((1 << (bit & _WORD_MASK)) - 1)
        return self._before[number - self._base] + below.bit_count()

    def find(self, bit: int) -> int | None:
        """Return how many set bits come before a set one, or None for others."""
        if not self.first <= bit < self.end:
            return None
        number, place = bit >> _WORD_SHIFT, bit & _WORD_MASK
        word = self._word(number)
        if not word >> place & 1:
            return None
        below = (word & ((1 << place) - 1)).bit_count()
        return self._before[number - self._base] + below - self._skipped
