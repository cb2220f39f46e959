# SPDX-License-Identifier: GPL-2.0-or-later
"""What tells the caller of a function from its address: ORC, or frame pointers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from gdbkdump.errors import SymbolNotFoundError
from gdbkdump.unwind.framepointer import open_frame_pointers
from gdbkdump.unwind.orc import open_orc

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gdbkdump.kernel.base import Kernel
    from gdbkdump.unwind.orc import Row

    Piece = tuple[int, int, Row]


class Tables(Protocol):
    """Rows by address.

    :ivar problems: what is wrong with them, one line each
    :ivar has_frame_pointers: whether %rbp is the frame pointer of whatever runs
    """

    problems: list[str]
    has_frame_pointers: bool

    def find(self, pc: int) -> Row | None:
        """Return the row for where something was interrupted, or None."""

    def after_call(self, ip: int) -> Row | None:
        """Return the row for a return address, or None."""

    def digest(self) -> str:
        """Return what tells the kernel's own from others of the same build."""

    def kernel_rows(self, *, has_dwarf: bool) -> Iterator[Piece]:
        """Yield start, end and meaning of the rows of the kernel's own text, in order.

        :param has_dwarf: leave out what is no better than what DWARF has
        """

    def module_rows(self) -> Iterator[Piece]:
        """Yield start, end and meaning of the rows of the modules."""

    def switches(self, rows: Sequence[Piece]) -> list[Piece]:
        """Return where the stack was changed in inline assembly, with the rows there.

        :param rows: those of the kernel
        """


def open_tables(kernel: Kernel) -> Tables:
    """Return what a kernel has, opened once.

    :raise SymbolNotFoundError: it has none
    :raise KdumpError: its own is damaged
    """
    try:
        return open_orc(kernel)
    except SymbolNotFoundError:
        return open_frame_pointers(kernel)
