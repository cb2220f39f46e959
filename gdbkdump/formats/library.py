# SPDX-License-Identifier: GPL-2.0-or-later
"""Dumps of days gone by (LKCD, s390, diskdump), read by libkdumpfile.

The library runs in a process of its own (kdumpfile_worker.py), as it dies on many a
corrupt file; a request that it does not survive is one error, and the next one starts
it again.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import struct
import subprocess
import sys
import time
from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdbkdump.errors import FaultError, FaultReason, FormatError
from gdbkdump.formats import kdumpfile_worker
from gdbkdump.formats.base import Extent, Note, Saving
from gdbkdump.formats.notes import NT_PRSTATUS

if TYPE_CHECKING:
    from collections.abc import Sequence

_REQUEST = struct.Struct("<QI")
_ANSWER = struct.Struct("<BI")
_MAX_PIECE = 1 << 20
# Some formats have no index: the first look behind the last page reads all of it.
_OPEN_LIMIT_S, _READ_LIMIT_S = 120, 60
_MAX_DESCRIPTION = 64 << 20
# e_machine of what the library calls by a name.
_MACHINES = {
    "x86_64": 62, "ia32": 3, "aarch64": 183, "arm": 40, "ppc64": 21, "ppc": 20,
    "s390x": 22, "s390": 22, "ia64": 50, "alpha": 0x9026, "mips": 8, "riscv64": 243,
}  # fmt: skip


class NoLibraryError(FormatError):
    """No Python here has libkdumpfile."""


class LibraryDump:
    """A dump that libkdumpfile reads.

    :ivar extents: the pages that it has
    """

    is_flat = False
    missing = 0
    saving = Saving()

    def __init__(self, path: Path) -> None:
        """Start the library on a file.

        :raise NoLibraryError: it is not installed
        :raise FormatError: it cannot read the file
        """
        self.path = path
        self.paths: Sequence[Path] = [path]
        self.problems: list[str] = []
        self._worker: _Worker | None = None
        self._python, told = self._find_python()
        self.format = f"{told['format']} (libkdumpfile)"
        self.machine = _MACHINES.get(told["arch"] or "", 0)
        self._ram = _Runs(told["ram"])
        self._there = _Runs(told["there"])
        self._damaged = _Runs(told["damaged"])
        self.extents: Sequence[Extent] = [
            Extent(None, paddr, size, size) for paddr, size in told["ram"]
        ]
        self.excluded = self._ram.size - self._there.size
        self.is_incomplete = told["problem"] is not None
        if self.is_incomplete:
            self.problems.append(told["problem"])
        if told["damaged"]:
            self.problems.append(
                f"{self._damaged.size} bytes of pages are there twice: which is right,"
                " none knows, so neither is read"
            )
        self.notes: Sequence[Note] = _notes(told)

    def _find_python(self) -> tuple[str, dict[str, Any]]:
        # The one we run in (inside gdb there may be no such program), and Debian's own.
        named = (sys.executable, "python3", "/usr/bin/python3")
        for python in dict.fromkeys(shutil.which(name or "") for name in named):
            if python is None:
                continue
            self._worker = _Worker(python, self.path)
            told = self._worker.description()
            if told is not None:
                return python, told
            self.close()
        raise NoLibraryError(
            f"{self.path}: this format is read by libkdumpfile: on Debian install"
            " python3-libkdumpfile, elsewhere pip install pykdumpfile"
        )

    def read_phys(self, paddr: int, size: int) -> bytes:
        """Return ``size`` bytes of physical memory.

        :raise FaultError: not all of them can be had
        :raise FormatError: the library failed
        """
        pieces = []
        while size > 0:
            piece = min(size, self._find(paddr) - paddr, _MAX_PIECE)
            pieces.append(self._read(paddr, piece))
            paddr += piece
            size -= piece
        return b"".join(pieces)

    def _find(self, paddr: int) -> int:
        # Where what can be read from an address on ends.
        is_ram, end = self._ram.find(paddr)
        is_there, until = self._there.find(paddr)
        is_damaged, sound = self._damaged.find(paddr)
        if not is_ram:
            raise FaultError("physical", paddr, FaultReason.HOLE)
        if not is_there or is_damaged:
            why = FaultReason.CORRUPT if is_damaged else FaultReason.EXCLUDED
            raise FaultError("physical", paddr, why)
        return min(end, until, sound)

    def _read(self, paddr: int, size: int) -> bytes:
        status, data = self._ask(paddr, size)
        if status == kdumpfile_worker.OK and len(data) == size:
            return data
        if status == kdumpfile_worker.NO_DATA:
            raise FaultError("physical", paddr, FaultReason.HOLE)
        why = data.decode("utf-8", "backslashreplace")
        raise FormatError(f"{self.path}: libkdumpfile at {paddr:#x}: {why}")

    def _ask(self, paddr: int, size: int) -> tuple[int, bytes]:
        if self._worker is None or self._worker.owner != os.getpid():
            # A child of ours (gdb's server) cannot share it: answers would mix.
            self._worker = _Worker(self._python, self.path)
            self._worker.description()
        try:
            return self._worker.ask(paddr, size)
        except BaseException:
            # Whatever it was, Ctrl-C for one: the answer to it may still come.
            self.close()
            raise

    def file_range(self, paddr: int) -> tuple[int, int] | None:
        """Return None: nothing is in the file as it was in memory."""
        return None

    def close(self) -> None:
        """End the library's process."""
        if self._worker:
            self._worker.close()
            self._worker = None


class _Runs:
    # Runs of memory, in order.
    def __init__(self, runs: Sequence[tuple[int, int]]) -> None:
        self._edges = [edge for start, size in runs for edge in (start, start + size)]
        self.size = sum(size for _, size in runs)

    def find(self, paddr: int) -> tuple[bool, int]:
        """Tell whether an address is in one, and up to where that holds."""
        i = bisect_right(self._edges, paddr)
        end = self._edges[i] if i < len(self._edges) else 1 << 64
        return bool(i & 1), end


def _notes(told: dict[str, Any]) -> list[Note]:
    notes = [Note(b"CORE", NT_PRSTATUS, bytes.fromhex(x)) for x in told["prstatus"]]
    if told["vmcoreinfo"]:
        notes.append(Note(b"VMCOREINFO", 0, bytes.fromhex(told["vmcoreinfo"])))
    return notes


class _Worker:
    """The process that has the library."""

    def __init__(self, python: str, path: Path) -> None:
        self._path = path
        program = str(Path(kdumpfile_worker.__file__).resolve())
        self.owner = os.getpid()
        # A group of its own: Ctrl-C is for us.
        self._process = subprocess.Popen(
            [python, "-I", program, os.path.abspath(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def description(self) -> dict[str, Any] | None:
        """Return what the dump is, or None where this Python has no library.

        :raise FormatError: it cannot be opened
        """
        try:
            line = self._read_line()
        except _EndedError as ended:
            if ended.code == kdumpfile_worker.NO_LIBRARY:
                return None
            raise
        try:
            told: dict[str, Any] = json.loads(line)
        except ValueError:
            raise FormatError(f"{self._path}: no answer of libkdumpfile") from None
        if "error" in told:
            raise FormatError(f"{self._path}: libkdumpfile: {told['error']}")
        return told

    def _read_line(self) -> bytes:
        deadline = time.monotonic() + _OPEN_LIMIT_S
        pieces = [self._read(1, deadline)]
        while not pieces[-1].endswith(b"\n") and len(pieces) < _MAX_DESCRIPTION:
            pieces.append(self._read_some(65536, deadline))
        return b"".join(pieces)

    def ask(self, paddr: int, size: int) -> tuple[int, bytes]:
        """Return status and bytes of an answer.

        :raise FormatError: there is none
        """
        deadline = time.monotonic() + _READ_LIMIT_S
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(_REQUEST.pack(paddr, size))
            self._process.stdin.flush()
        status, length = _ANSWER.unpack(self._read(_ANSWER.size, deadline))
        return status, self._read(min(length, _MAX_PIECE), deadline)

    def _read(self, size: int, deadline: float) -> bytes:
        pieces = []
        while size > 0:
            pieces.append(self._read_some(size, deadline))
            size -= len(pieces[-1])
        return b"".join(pieces)

    def _read_some(self, size: int, deadline: float) -> bytes:
        assert self._process.stdout
        fd = self._process.stdout.fileno()
        if not select.select([fd], [], [], max(0, deadline - time.monotonic()))[0]:
            raise FormatError(f"{self._path}: libkdumpfile does not answer")
        data = os.read(fd, size)
        if not data:
            raise _EndedError(self._path, self._process.wait())
        return data

    def close(self) -> None:
        """End it."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert pipe
                pipe.close()
        self._process.wait()


class _EndedError(FormatError):
    def __init__(self, path: Path, code: int) -> None:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        super().__init__(f"{path}: libkdumpfile died of this file ({how})")
        self.code = code
