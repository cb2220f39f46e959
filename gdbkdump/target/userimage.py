# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a process, as far as the dump has it; how much it lacks, and why."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import FaultError, FaultReason, KdumpError
from gdbkdump.formats.base import silent
from gdbkdump.kernel.usermemory import UserPages, Where
from gdbkdump.kernel.vma import VmaNames, vmas

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.formats.base import DumpFile, Report
    from gdbkdump.kernel.base import Kernel
    from gdbkdump.kernel.process import Process
    from gdbkdump.kernel.usermemory import Piece
    from gdbkdump.kernel.vma import Vma

_PAGE = 4096
_WORK = "looking for the pages of the process"


class Run(NamedTuple):
    """User addresses whose bytes can be had.

    :param paddr: where they are in physical memory; None for zeros
    """

    start: int
    end: int
    paddr: int | None

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


class MappingImage(NamedTuple):
    """A mapping and what of it the dump has.

    :param name: what /proc/PID/maps shows; empty where that cannot be read
    :param runs: in order
    :param missing: bytes by the reason why they are not there
    """

    vma: Vma
    name: bytes
    runs: list[Run]
    missing: dict[str, int]

    @property
    def present(self) -> int:
        """Bytes that are in the dump."""
        return sum(run.size for run in self.runs if run.paddr is not None)

    @property
    def untouched(self) -> int:
        """Bytes that were never written and read as zeros."""
        return sum(run.size for run in self.runs if run.paddr is None)


class _Progress:
    # Tells now and then how many bytes were looked at.
    def __init__(self, report: Report, total: int) -> None:
        self._report = report
        self._total = total
        self._done = self._calls = 0

    def add(self, size: int) -> None:
        self._done += size
        self._calls += 1
        if not self._calls & 255:
            self._report(_WORK, min(self._done, self._total - 1), self._total)

    def end(self) -> None:
        self._report(_WORK, self._total, self._total)


class UserImage:
    """The memory of one process.

    :ivar mappings: by address
    :ivar problems: what is damaged, one line each
    """

    def __init__(
        self, kernel: Kernel, dump: DumpFile, process: Process, report: Report = silent
    ) -> None:
        """Look where all of it is.

        :param report: told how far that has come
        :raise KdumpError: its mappings or page tables are damaged
        """
        self._kernel = kernel
        self._dump = dump
        self._pages = UserPages(kernel, process.mm)
        self.problems = self._pages.problems
        names = VmaNames(kernel, process.mm)
        found = vmas(kernel, process.mm)
        progress = _Progress(report, sum(vma.size for vma in found))
        self.mappings = [
            self._mapping(vma, self._name(names, vma), progress) for vma in found
        ]
        progress.end()
        self._runs = [run for each in self.mappings for run in each.runs]
        self._starts = [run.start for run in self._runs]

    def _name(self, names: VmaNames, vma: Vma) -> bytes:
        try:
            return names.name(vma)
        except KdumpError as error:
            self.problems.append(
                f"the name of what is mapped at {vma.start:#x}: {error}"
            )
            return b""

    def _mapping(self, vma: Vma, name: bytes, progress: _Progress) -> MappingImage:
        runs: list[Run] = []
        missing: dict[str, int] = {}
        for piece in self._pages.pieces(vma):
            progress.add(piece.size)
            if piece.paddr is not None:
                runs += self._in_dump(piece, missing)
            elif piece.where is Where.UNTOUCHED:
                runs.append(Run(piece.start, piece.end, None))
            else:
                reason = piece.where.value
                missing[reason] = missing.get(reason, 0) + piece.size
        return MappingImage(vma, name, runs, missing)

    def _in_dump(self, piece: Piece, missing: dict[str, int]) -> Iterator[Run]:
        # What of a piece of RAM the dump file has.
        assert piece.paddr is not None
        delta = piece.start - piece.paddr
        at, end = piece.paddr, piece.paddr + piece.size
        start = at
        while at < end:
            found = self._dump.file_range(at)
            if found:
                at = min(end, at + found[1])
                continue
            step = min(end, (at | _PAGE - 1) + 1)
            reason = self._why_missing(at, step - at)
            if reason is not None:
                if start < at:
                    yield Run(start + delta, at + delta, start)
                missing[reason.value] = missing.get(reason.value, 0) + step - at
                start = step
            at = step
        if start < end:
            yield Run(start + delta, end + delta, start)

    def _why_missing(self, paddr: int, size: int) -> FaultReason | None:
        # In dumps that are no flat file a page is there if it can be read.
        try:
            self._dump.read_phys(paddr, size)
        except FaultError as fault:
            return fault.reason
        return None

    @property
    def present(self) -> int:
        """Bytes that are in the dump."""
        return sum(each.present for each in self.mappings)

    @property
    def untouched(self) -> int:
        """Bytes that were never written and read as zeros."""
        return sum(each.untouched for each in self.mappings)

    @property
    def missing(self) -> dict[str, int]:
        """Bytes that are nowhere to be had, by reason."""
        total: dict[str, int] = {}
        for each in self.mappings:
            for reason, size in each.missing.items():
                total[reason] = total.get(reason, 0) + size
        return total

    def find(self, address: int) -> MappingImage | None:
        """Return the mapping that an address is in, or None."""
        at = bisect_right(self.mappings, address, key=lambda each: each.vma.start) - 1
        found = self.mappings[at] if at >= 0 else None
        return found if found and address < found.vma.end else None

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes of user memory.

        :raise FaultError: not all of them can be had
        """
        pieces = []
        while size > 0:
            at = bisect_right(self._starts, address) - 1
            run = self._runs[at] if at >= 0 else None
            if run is None or address >= run.end:
                raise FaultError("user", address, FaultReason.UNMAPPED)
            step = min(size, run.end - address)
            pieces.append(self.read_run(run, address - run.start, step))
            address += step
            size -= step
        return b"".join(pieces)

    def read_run(self, run: Run, offset: int, size: int) -> bytes:
        """Return bytes of a run."""
        if run.paddr is None:
            return bytes(size)
        return self._dump.read_phys(run.paddr + offset, size)
