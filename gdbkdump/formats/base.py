# SPDX-License-Identifier: GPL-2.0-or-later
"""What every dump format offers to the rest of the house."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# Called on long work with what is being done, done, total.
Report = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


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

    :param vaddr: kernel virtual address that the file gives (not yet to be trusted), or
        None where the format has none
    :param size: bytes of memory; those beyond ``file_size`` are not in the file
    :param file_size: bytes that are in the file; of formats that leave out single pages
        all may be
    :param offset: where in the file, if it is a flat one
    :param missing: bytes of ``file_size`` that the header promises but a truncated file
        lacks
    """

    vaddr: int | None
    paddr: int
    size: int
    file_size: int
    offset: int = 0
    missing: int = 0


@dataclass(frozen=True)
class Saving:
    """What the file tells of the program that saved it; None where it does not.

    :param version: of the format
    :param dump_level: ``makedumpfile -d``: 1 zero pages, 2 cache, 4 cache private, 8
        user, 16 free ones were left out
    :param compression: names of the methods that the header promises
    :param utsname: ``struct new_utsname`` of the crashed kernel, as the header has it
    :param erased: what ``makedumpfile --config`` erased, line by line
    """

    version: int | None = None
    dump_level: int | None = None
    compression: tuple[str, ...] = ()
    utsname: tuple[bytes, ...] = ()
    erased: tuple[bytes, ...] = ()


class DumpFile(Protocol):
    """An open dump.

    A child of the process that opened it may read it at the same time (gdb's server is
    one): nothing that has a position or a peer may be shared with it.

    :ivar path: the file; of a split set the first that was named
    :ivar paths: all files of the set
    :ivar format: what it is, for a person
    :ivar is_flat: whether memory lies in the file as it was, so that others can read it
        where ``file_range()`` says
    :ivar machine: ELF ``e_machine`` of the crashed kernel
    :ivar is_incomplete: whether saving it ended early, or its end is cut off
    :ivar extents: runs of RAM; they may overlap
    :ivar problems: what is wrong with the file, one line each
    """

    path: Path
    paths: Sequence[Path]
    format: str
    is_flat: bool
    machine: int
    is_incomplete: bool
    notes: Sequence[Note]
    problems: list[str]
    saving: Saving

    @property
    def extents(self) -> Sequence[Extent]:
        """Runs of RAM; they may overlap."""

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
        """Return file offset and bytes that follow there in one run.

        None where they are not in the file as they were in memory.
        """

    def close(self) -> None:
        """Give the file back."""
