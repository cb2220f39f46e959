# SPDX-License-Identifier: GPL-2.0-or-later
"""Flattened dumps: what ``makedumpfile -F`` writes to a pipe, and QEMU to a file.

A header of 4 KiB, then records of offset, size (both big-endian) and data, in any order
(makedumpfile's ``makedumpfile.h``: ``struct makedumpfile_data_header``). They are
indexed in one pass and read in place; no rearranged copy is made.
"""

from __future__ import annotations

import heapq
import struct
from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING

from gdbkdump.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gdbkdump.formats.base import Report
    from gdbkdump.formats.file import DumpBytes

MAGIC = b"makedumpfile\0\0\0\0"
_HEADER = struct.Struct(">16sqq")
_RECORD = struct.Struct(">qq")
_FIRST_RECORD = 4096
_END = (-1, -1)
_BUFFER, _NEAR = 1 << 16, 1 << 12
# Beyond any dump (64 TiB), and any buffer that is written at once.
_MAX_OFFSET, _MAX_SIZE = 1 << 46, 1 << 30
# What is left of a record at the stream's end counts only if it was no larger.
_USUAL_SIZE = 4 << 20

# What is at an offset: (start, end, position in the stream).
_Piece = tuple[int, int, int]


class FlattenedFile:
    """The file that a stream stands for.

    :ivar size: of that file, as far as the stream goes
    :ivar is_cut: whether the stream ends without its end mark
    """

    def __init__(self, stream: DumpBytes, report: Report) -> None:
        """Index the stream.

        :raise FormatError: its header is cut or of an unknown kind
        """
        self.path = stream.path
        self.kind = "flattened "
        self.problems: list[str] = [*stream.problems]
        self.is_cut = False
        self._stream = stream
        self._twice: list[int] = []  # pieces that are of several records
        raw = stream.read_header(0, _HEADER.size)
        if len(raw) < _HEADER.size:
            raise FormatError(f"{self.path}: the header is cut")
        _, type_, version = _HEADER.unpack(raw)
        if (type_, version) != (1, 1):
            raise FormatError(
                f"{self.path}: flattened dumps of type {type_}, version {version}"
            )
        self._index(report)
        self.size = self._ends[-1] if self._ends else 0

    def _index(self, report: Report) -> None:
        in_order: tuple[array[int], ...] = (array("Q"), array("Q"), array("Q"))
        starts, ends, places = in_order
        late: list[_Piece] = []
        top = 0
        for start, end, place in self._records(report):
            # What begins below the top overwrites, or fills a gap; the rest of it is
            # in order again.
            if start < top:
                late.append((start, min(end, top), place))
                place += top - start
                start = top
            if start < end:
                starts.append(start)
                ends.append(end)
                places.append(place)
                top = end
        self._starts, self._ends, self._places = in_order
        if late:
            base = zip(starts, ends, places, strict=True)
            self._overlay(list(base), late)

    def _overlay(self, base: list[_Piece], late: list[_Piece]) -> None:
        pieces = list(_latest_wins(base + late, len(base)))
        self._twice = [i for i, piece in enumerate(pieces) if piece[3] > 1]
        self._keep(piece[:3] for piece in pieces)

    def seal(self, offset: int) -> None:
        """Drop what was written twice from ``offset`` on: which is right, none knows.

        Headers are rewritten in the end, pages never are. So one of the two records has
        a damaged offset, and all of its bytes are in the wrong place.
        """
        dropped: set[int] = set()
        for i in self._twice:
            if self._ends[i] > offset:
                dropped |= {i, *self._touching(i)}
        self._twice = []
        if not dropped:
            return
        size = 0
        kept = []
        pieces = zip(self._starts, self._ends, self._places, strict=True)
        for i, (start, end, place) in enumerate(pieces):
            until = max(start, min(end, offset)) if i in dropped else end
            size += end - until
            if start < until:
                kept.append((start, until, place))
        self._keep(kept)
        self._cut(f"{size} bytes of pages are there twice, or beside such", "damaged")

    def _touching(self, i: int) -> Iterator[int]:
        # What is left of the records that a piece is of.
        if i and self._ends[i - 1] == self._starts[i]:
            yield i - 1
        if i + 1 < len(self._starts) and self._starts[i + 1] == self._ends[i]:
            yield i + 1

    def _keep(self, pieces: Iterable[_Piece]) -> None:
        starts, ends, places = array("Q"), array("Q"), array("Q")
        for start, end, place in pieces:
            starts.append(start)
            ends.append(end)
            places.append(place)
        self._starts, self._ends, self._places = starts, ends, places

    def _records(self, report: Report) -> Iterator[_Piece]:
        stream, limit = self._stream, self._stream.size
        position = _FIRST_RECORD
        buffer, origin = b"", 0
        number = 0
        # A record counts when the next one shows that its size is right.
        last: _Piece | None = None
        while True:
            at = position - origin
            if at + _RECORD.size > len(buffer):
                # Records of 64 KiB are usual, and then only their headers are read.
                is_near = at < len(buffer) + _NEAR
                size = _BUFFER if is_near else _RECORD.size
                buffer, origin, at = stream.read_header(position, size), position, 0
            if len(buffer) < at + _RECORD.size:
                self._cut(f"it ends at {limit:#x} without an end mark")
                if last and last[1] - last[0] <= _USUAL_SIZE:
                    start, end, place = last
                    yield start, min(end, start + limit - place), place
                return
            offset, size = _RECORD.unpack_from(buffer, at)
            place = position + _RECORD.size
            is_end = (offset, size) == _END
            if not is_end and not (0 <= offset < _MAX_OFFSET and 0 < size <= _MAX_SIZE):
                self._cut(f"the record at {position:#x} is damaged")
                return
            if last:
                yield last
            if is_end:
                return
            last = offset, offset + size, place
            position = place + size
            number += 1
            if not number & 0xFFF:
                report("indexing the flattened dump", position, limit)

    def _cut(self, why: str, what: str = "truncated") -> None:
        self.is_cut = True
        self.problems.append(f"the flattened dump is {what}: {why}")

    def pread(self, size: int, offset: int) -> bytes:
        """Return bytes; fewer where the next ones were never written."""
        found = self._find(offset)
        if found is None:
            return b""
        place, length = found
        if size <= length:
            return self._stream.pread(size, place)
        pieces = []
        while size > 0 and found is not None:
            place, length = found
            piece = self._stream.pread(min(size, length), place)
            pieces.append(piece)
            offset += len(piece)
            size -= len(piece)
            found = self._find(offset) if piece else None
        return b"".join(pieces)

    def _find(self, offset: int) -> tuple[int, int] | None:
        if not 0 <= offset < self.size:
            return None
        i = bisect_right(self._starts, offset) - 1
        if i < 0 or offset >= self._ends[i]:
            return None
        return self._places[i] + offset - self._starts[i], self._ends[i] - offset

    def read_header(self, offset: int, size: int) -> bytes:
        """Return bytes; between records zeros, as headers are not written to the end.

        :raise FormatError: they cannot be read
        """
        size = min(size, self.size - offset)
        pieces = []
        try:
            while size > 0:
                piece = self.pread(size, offset) or bytes(self._gap(offset, size))
                pieces.append(piece)
                offset += len(piece)
                size -= len(piece)
        except OSError as error:
            raise FormatError(f"cannot read {self.path}: {error.strerror}") from None
        return b"".join(pieces)

    def _gap(self, offset: int, size: int) -> int:
        # Bytes up to the next record.
        i = bisect_right(self._starts, offset)
        return min(size, self._starts[i] - offset) if i < len(self._starts) else size

    def span(self, offset: int) -> tuple[int, int] | None:
        """Return where in the stream an offset is, and bytes that follow there."""
        return self._find(offset)

    def holds(self, offset: int, size: int) -> bool:
        """Tell whether all those bytes were written."""
        while size > 0:
            found = self._find(offset)
            if found is None:
                return False
            offset += found[1]
            size -= found[1]
        return True

    def close(self) -> None:
        """Give the file back."""
        self._stream.close()


def _latest_wins(
    pieces: list[_Piece], in_order: int
) -> Iterator[tuple[int, int, int, int]]:
    """Cut pieces that overlap, so that of each byte the one written last remains.

    How often each was written comes with it.

    :param in_order: as many of the first are older than all that overlap them
    """
    age = [0] * in_order + list(range(1, len(pieces) - in_order + 1))
    order = sorted(range(len(pieces)), key=lambda i: pieces[i][0])
    active: list[tuple[int, int]] = []  # (newest first, index)
    ends: list[int] = []  # of those that have begun
    position = 0
    for i in [*order, None]:
        stop = pieces[i][0] if i is not None else None
        while active and (stop is None or position < stop):
            start, end, place = pieces[active[0][1]]
            if end <= position:
                heapq.heappop(active)
                continue
            while ends[0] <= position:
                heapq.heappop(ends)
            # Up to where the number of those that are there changes.
            until = ends[0] if stop is None else min(ends[0], stop)
            yield position, until, place + position - start, len(ends)
            position = until
        if i is not None:
            position = pieces[i][0]
            heapq.heappush(active, (-age[i], i))
            heapq.heappush(ends, pieces[i][1])
