# SPDX-License-Identifier: GPL-2.0-or-later
"""The bytes that a format lies in: a file as it is, or what a stream stands for."""

from __future__ import annotations

import os
import stat
from functools import partial
from typing import TYPE_CHECKING, Protocol

from gdbkdump.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class DumpBytes(Protocol):
    """Bytes by offset.

    :ivar kind: what a person should know of how they are kept, before the format's name
    :ivar size: of all of them
    :ivar is_cut: whether their end is known to be lost
    :ivar problems: what is wrong with the bytes themselves, one line each
    """

    path: Path
    kind: str
    size: int
    is_cut: bool
    problems: list[str]

    @property
    def pread(self) -> Callable[[int, int], bytes]:
        """As ``os.pread`` without the descriptor: ``pread(size, offset)``.

        Fewer bytes are returned where the rest is not there.
        """

    def read_header(self, offset: int, size: int) -> bytes:
        """Return bytes of a header or a table; fewer where the end is near.

        Unlike with ``pread`` what was never written is zeros, as it is in a file.
        """

    def span(self, offset: int) -> tuple[int, int] | None:
        """Return where in the file an offset is, and bytes that follow in one run."""

    def holds(self, offset: int, size: int) -> bool:
        """Tell whether all those bytes are there."""

    def seal(self, offset: int) -> None:
        """Say that headers end there: what follows is written only once.

        What was written twice all the same is not there any more.
        """

    def close(self) -> None:
        """Give the file back."""


class PlainFile:
    """A file or block device as it is."""

    def __init__(self, path: Path) -> None:
        """Open it for reading.

        :raise FormatError: it cannot be, or is a directory
        """
        self.path = path
        self.kind = ""
        self.is_cut = False
        self.problems: list[str] = []
        try:
            # A pipe would be waited for.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise FormatError(f"cannot open {path}: {error.strerror}") from None
        try:
            mode = os.fstat(self._fd).st_mode
            if stat.S_ISDIR(mode):
                raise FormatError(f"{path} is a directory, not a dump")
            if stat.S_ISFIFO(mode):
                raise FormatError(f"{path} is a pipe: a dump has to be a file")
            # A block device has no st_size; seeking to the end works for both.
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            self.close()
            raise FormatError(f"cannot read {path}: {error.strerror}") from None
        except FormatError:
            self.close()
            raise
        self.pread: Callable[[int, int], bytes] = partial(os.pread, self._fd)

    def read_header(self, offset: int, size: int) -> bytes:
        """Return bytes; fewer where the file ends.

        :raise FormatError: they cannot be read
        """
        # Never more than the file has: pread takes no offset of 2^63 and allocates
        # what it is asked for.
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        try:
            return os.pread(self._fd, size, offset)
        except OSError as error:
            raise FormatError(f"cannot read {self.path}: {error.strerror}") from None

    def span(self, offset: int) -> tuple[int, int] | None:
        """Return an offset and the bytes up to the end, or None beyond it."""
        return (offset, self.size - offset) if 0 <= offset < self.size else None

    def holds(self, offset: int, size: int) -> bool:
        """Tell whether the file does not end before."""
        return offset + size <= self.size

    def seal(self, offset: int) -> None:
        """Do nothing: a file does not know what was written twice."""

    def close(self) -> None:
        """Give the file back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
