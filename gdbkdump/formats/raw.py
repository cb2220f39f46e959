# SPDX-License-Identifier: GPL-2.0-or-later
"""Bare memory: QEMU's ``pmemsave``, a VMware .vmem, RAM copied from a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdbkdump.errors import FaultError, FaultReason, FormatError
from gdbkdump.formats.base import Extent, Note, Saving

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gdbkdump.formats.file import DumpBytes

_EM_X86_64 = 62
_PHYS_LIMIT = 1 << 52


class RawDump:
    """Memory from a physical address on, and nothing that tells of it."""

    format = "bare memory"
    is_flat = True
    is_incomplete = False
    # No header tells the machine; what is found in memory proves it or does not.
    machine = _EM_X86_64
    missing = 0
    excluded = 0
    saving = Saving()

    def __init__(self, file: DumpBytes, base: int) -> None:
        """Take the file as memory that begins at ``base``.

        :raise FormatError: there is nothing, or it reaches beyond all memory
        """
        self.path = file.path
        self.paths: Sequence[Path] = [file.path]
        self.problems: list[str] = []
        self.notes: Sequence[Note] = []
        if not file.size:
            raise FormatError(f"{file.path} is empty")
        if not 0 <= base <= _PHYS_LIMIT - file.size:
            raise FormatError(f"{file.path}: no memory can begin at {base:#x}")
        self.extents: Sequence[Extent] = [Extent(None, base, file.size, file.size)]
        self._file = file
        self._base = base

    def read_phys(self, paddr: int, size: int) -> bytes:
        """Return ``size`` bytes of physical memory.

        :raise FaultError: not all of them can be had
        """
        if not self._base <= paddr < self._base + self._file.size:
            raise FaultError("physical", paddr, FaultReason.HOLE)
        try:
            data = self._file.pread(size, paddr - self._base)
        except OSError:
            raise FaultError("physical", paddr, FaultReason.IO) from None
        if len(data) < size:
            raise FaultError("physical", paddr + len(data), FaultReason.HOLE)
        return data

    def file_range(self, paddr: int) -> tuple[int, int] | None:
        """Return file offset and bytes that follow there in one run, or None."""
        return self._file.span(paddr - self._base)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()
