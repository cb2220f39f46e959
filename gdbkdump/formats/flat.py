# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that lies in a file as it was, in runs: what all flat formats share."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from gdbkdump.errors import FaultError, FaultReason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gdbkdump.formats.file import DumpBytes


class FlatDump:
    """Reads runs of physical memory where the format says that they are."""

    is_flat = True

    def __init__(self, file: DumpBytes) -> None:
        """Take the file; ``_index()`` tells where memory is in it."""
        self._file = file
        self._pread = file.pread
        self._starts: list[int] = []
        self._runs: list[tuple[int, int]] = []

    def _index(self, runs: Iterable[tuple[int, int, int]]) -> None:
        # Physical start and end, file offset minus physical address; in order.
        for start, end, delta in runs:
            self._starts.append(start)
            self._runs.append((end, delta))

    def _reason(self, paddr: int) -> FaultReason:
        # Why an address is in no run.
        return FaultReason.HOLE

    def read_phys(self, paddr: int, size: int) -> bytes:
        """Return ``size`` bytes of physical memory.

        :raise FaultError: not all of them can be had
        """
        i = bisect_right(self._starts, paddr) - 1
        if i >= 0:
            end, delta = self._runs[i]
            if paddr + size <= end:
                try:
                    data = self._pread(size, paddr + delta)
                except OSError:
                    raise FaultError("physical", paddr, FaultReason.IO) from None
                if len(data) == size:
                    return data
        return self._read_pieces(paddr, size)

    def _read_pieces(self, paddr: int, size: int) -> bytes:
        pieces = []
        while size > 0:
            offset, length = self._find(paddr)
            try:
                piece = self._pread(min(size, length), offset)
            except OSError:
                raise FaultError("physical", paddr, FaultReason.IO) from None
            if not piece:
                raise FaultError("physical", paddr, FaultReason.MISSING)
            pieces.append(piece)
            paddr += len(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _find(self, paddr: int) -> tuple[int, int]:
        # File offset, and bytes that follow in the run.
        i = bisect_right(self._starts, paddr) - 1
        if i < 0 or paddr >= self._runs[i][0]:
            raise FaultError("physical", paddr, self._reason(paddr))
        end, delta = self._runs[i]
        return paddr + delta, end - paddr

    def file_range(self, paddr: int) -> tuple[int, int] | None:
        """Return file offset and bytes that follow there in one run, or None."""
        try:
            offset, length = self._find(paddr)
        except FaultError:
            return None
        place = self._file.span(offset)
        return (place[0], min(place[1], length)) if place else None

    def close(self) -> None:
        """Give the file back."""
        self._file.close()
