# SPDX-License-Identifier: GPL-2.0-or-later
"""What every dump format offers to the rest of the house."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Note:
    """An ELF note.

    :param name: owner, without the ending NUL (``b"CORE"``, ``b"VMCOREINFO"``)
    :param type: ``n_type``
    :param is_cut: whether the description ends early
    """

    name: bytes
    type: int
    desc: bytes
    is_cut: bool = False


@dataclass(frozen=True)
class Extent:
    """A run of memory as the file describes it, with all sizes in bytes.

    :param vaddr: kernel virtual address that the file gives (not yet to be trusted)
    :param size: bytes of memory; those beyond ``file_size`` are not in the file
    :param file_size: bytes that are in the file
    :param offset: where in the file
    :param missing: bytes of ``file_size`` that the header promises but a truncated file
        lacks
    """

    vaddr: int
    paddr: int
    size: int
    file_size: int
    offset: int
    missing: int = 0


class DumpFile(Protocol):
    """An open dump.

    :ivar is_flat: whether memory lies in the file as it was, so that others can read it
        where ``file_range()`` says
    """

    path: Path
    format: str
    is_flat: bool
    machine: int
    notes: Sequence[Note]
    extents: Sequence[Extent]
    problems: list[str]

    @property
    def missing(self) -> int:
        """Bytes that the headers promise and the file lacks."""

    @property
    def excluded(self) -> int:
        """Bytes of memory that were filtered out when the dump was saved."""

    def read_phys(self, paddr: int, size: int) -> bytes:
        """Return ``size`` bytes of physical memory.

        :raise FaultError: not all of them can be had
        """

    def file_range(self, paddr: int) -> tuple[int, int] | None:
        """Return file offset and bytes that follow there in one run, or None."""

    def close(self) -> None:
        """Give the file back."""
