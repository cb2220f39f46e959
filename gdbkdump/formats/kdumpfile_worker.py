# SPDX-License-Identifier: GPL-2.0-or-later
"""Read a dump with libkdumpfile, for library.py: a program of its own.

It runs in whichever Python has the module kdumpfile, and apart from us, as libkdumpfile
0.5 dies on many a corrupt file. Usage: ``python3 -I kdumpfile_worker.py DUMP``. A JSON
line on standard output says what the dump is. Then, until standard input ends, each
request of an address and a size (``<QI``) is answered by a status and a length
(``<BI``) and as many bytes: memory if the status is 0, else the reason.
"""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
from array import array
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import BinaryIO

_REQUEST = struct.Struct("<QI")
_ANSWER = struct.Struct("<BI")
OK, NO_DATA, FAILED = 0, 1, 2
# The exit code that says that this Python has no libkdumpfile.
NO_LIBRARY = 77
# What a corrupt header may make it allocate; what it maps of the file is not in it.
_MAX_MEMORY = 1 << 30
_MAX_RUNS = 1 << 20
_MAX_CPUS = 8192
_LKCD_MAGIC = b"\xed\x23\x8f\x61\x73\x01\x19\xa8"
_PHYS_LIMIT = 1 << 52
_LKCD_HEADER = 742
_DISKDUMP_HEADER = 464
_DESCRIPTOR = struct.Struct("<QI12x")  # of a page: offset and size
_LKCD_RAW, _LKCD_PACKED, _LKCD_END = 1, 2, 4


class _Library:
    """The module kdumpfile, of libkdumpfile itself up to 0.5.4 or of pykdumpfile."""

    def __init__(self) -> None:
        """Import it.

        :raise ImportError: this Python has it not
        """
        import kdumpfile

        self._module = kdumpfile
        self._is_new = hasattr(kdumpfile, "Context")
        if self._is_new:
            self.physical = kdumpfile.MACHPHYSADDR
            self.no_data = kdumpfile.NoDataError
        else:
            self.physical = kdumpfile.KDUMP_MACHPHYSADDR
            self.no_data = kdumpfile.exceptions.NoDataException

    def open(self, path: str) -> Any:
        """Return an open dump, which has ``attr`` and ``read()``."""
        if not self._is_new:
            return self._module.kdumpfile(path)
        dump = self._module.Context()
        dump.open(path)
        return dump


def _attribute(attributes: Any, path: str) -> Any:
    for name in path.split("."):
        try:
            attributes = attributes[name]
        except Exception:  # noqa: BLE001 - of whichever version, none has the attribute
            return None
    return attributes


def _blob(value: Any) -> str | None:
    if value is not None and hasattr(value, "get"):
        value = value.get()
    return None if value is None else bytes(value).hex()


class Pages:
    """Which pages a dump has, as runs of (address, size).

    :ivar ram: all memory
    :ivar there: what of it the library may be asked for
    :ivar damaged: pages that the file contradicts itself about
    :ivar problem: what is wrong with the file as a whole
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.ram: list[tuple[int, int]] = []
        self.there: list[tuple[int, int]] = []
        self.damaged: list[tuple[int, int]] = []
        self.problem: str | None = None


def find_lkcd_pages(path: str, page_size: int) -> Pages:
    """Find the pages of an LKCD dump; each is behind its address, size and flags.

    The library has no map of them, and its cache (0.5.1) loses pages after some
    thousand questions for pages that are not there. Nor does it mind a page that the
    file ends within, or that is there twice.

    :raise EOFError: the header is cut
    """
    found = Pages()
    addresses = array("Q")
    with open(path, "rb") as file:
        found.problem = _collect_lkcd_pages(file, page_size, addresses)
    previous = None
    for address in sorted(addresses):
        runs = found.damaged if address == previous else found.ram
        _append(runs, address, page_size)
        previous = address
    found.there = found.ram
    return found


def _collect_lkcd_pages(
    file: BinaryIO, page_size: int, addresses: array[int]
) -> str | None:
    # What is wrong, if anything is.
    limit = os.fstat(file.fileno()).st_size
    head = file.read(_LKCD_HEADER)
    if len(head) < _LKCD_HEADER:
        raise EOFError("its header is cut")
    order = "<" if head[:8] == _LKCD_MAGIC else ">"
    at = 65536
    if int.from_bytes(head[8:12], "little" if order == "<" else "big") & 0xFFFF >= 9:
        (at,) = struct.unpack_from(f"{order}Q", head, _LKCD_HEADER - 8)
    page = struct.Struct(f"{order}QII")
    while at + page.size <= limit:
        file.seek(at)
        address, size, flags = page.unpack(file.read(page.size))
        if flags & _LKCD_END:
            return None
        is_page = flags in (_LKCD_RAW, _LKCD_PACKED) and 0 < size <= 2 * page_size
        if not is_page or address & (page_size - 1) or address >= _PHYS_LIMIT:
            return f"what should be a page at {at:#x} is none: the rest is lost"
        at += page.size + size
        if at <= limit:
            addresses.append(address)
    return "the file is truncated: it has no end mark"


def _append(runs: list[tuple[int, int]], start: int, size: int) -> None:
    if runs and sum(runs[-1]) >= start:
        first = runs[-1][0]
        runs[-1] = (first, max(sum(runs[-1]), start + size) - first)
    else:
        runs.append((start, size))


def joined(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return runs in order, and one where they touch or overlap."""
    found: list[tuple[int, int]] = []
    for start, size in sorted(runs):
        _append(found, start, size)
    return found


def _find_mapped_pages(attributes: Any, page_size: int) -> Pages:
    # Without a map of pages all up to the last.
    found = Pages()
    last = _attribute(attributes, "max_pfn") or 0
    there = _attribute(attributes, "file.pagemap")
    ram = _attribute(attributes, "memory.pagemap") or there
    found.there = _runs(there, last, page_size)
    found.ram = joined([*_runs(ram, last, page_size), *found.there])
    if max(len(found.there), len(found.ram)) >= _MAX_RUNS:
        found.problem = f"more than {_MAX_RUNS} runs of pages: the rest is not read"
    return found


def _runs(bitmap: Any, last: int, page_size: int) -> list[tuple[int, int]]:
    # What is beyond the limit is said by the caller.
    if bitmap is None:
        return [(0, last * page_size)] if last else []
    runs: list[tuple[int, int]] = []
    at = 0
    while len(runs) < _MAX_RUNS:
        try:
            start = bitmap.find_set(at)
        except Exception:  # noqa: BLE001 - the end of the map, whatever it is called
            break
        at = min(bitmap.find_clear(start), last)
        if at <= start:
            break
        runs.append((start * page_size, (at - start) * page_size))
    return runs


def _describe(path: str, attributes: Any) -> dict[str, Any]:
    page_size = _attribute(attributes, "arch.page_size") or 4096
    is_lkcd = _attribute(attributes, "file.format") == "lkcd"
    if is_lkcd:
        pages = find_lkcd_pages(path, page_size)
    else:
        pages = _find_mapped_pages(attributes, page_size)
        if _attribute(attributes, "arch.name") == "x86_64":
            count = sum(size for _, size in pages.there) // page_size
            _check_diskdump(path, count)
    cpus = _attribute(attributes, "cpu.number") or 0
    notes = (
        _blob(_attribute(attributes, f"cpu.{cpu}.PRSTATUS"))
        for cpu in range(min(cpus, _MAX_CPUS))
    )
    return {
        "format": _attribute(attributes, "file.description"),
        "arch": _attribute(attributes, "arch.name"),
        **vars(pages),
        "vmcoreinfo": _blob(_attribute(attributes, "linux.vmcoreinfo.raw")),
        "prstatus": [note for note in notes if note],
    }


def _check_diskdump(path: str, count: int) -> None:
    # The library reads zeros behind the end of a file. Pages are in order, each behind
    # the one before, as their descriptors are; so the last one tells.
    with open(path, "rb") as file:
        head = file.read(_DISKDUMP_HEADER)
        if head[:8] != b"DISKDUMP":
            return
        block_size, sub_blocks, bitmap_blocks = struct.unpack_from("<3I", head, 428)
        table = (1 + sub_blocks + bitmap_blocks) * block_size
        file.seek(table + max(0, count - 1) * _DESCRIPTOR.size)
        raw = file.read(_DESCRIPTOR.size)
        size = os.fstat(file.fileno()).st_size
    is_cut = not count or len(raw) < _DESCRIPTOR.size
    if is_cut or sum(_DESCRIPTOR.unpack(raw)) > size:
        raise EOFError("the file is truncated")


def _answer(library: _Library, dump: Any, address: int, size: int) -> tuple[int, bytes]:
    try:
        return OK, bytes(dump.read(library.physical, address, size))
    except library.no_data as error:
        return NO_DATA, str(error).encode()
    except Exception as error:  # noqa: BLE001 - the reason is what the other side tells
        return FAILED, str(error).encode()


def main(words: Sequence[str]) -> int:
    """Open the dump named on the command line and serve it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (_MAX_MEMORY, _MAX_MEMORY))
    try:
        library = _Library()
    except ImportError:
        return NO_LIBRARY
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the library may print is no answer
    try:
        dump = library.open(words[1])
        told: dict[str, Any] = _describe(words[1], dump.attr)
    except Exception as error:  # noqa: BLE001 - the reason is what the other side tells
        told = {"error": str(error) or type(error).__name__}
    answers.write(json.dumps(told).encode() + b"\n")
    answers.flush()
    while "error" not in told:
        request = sys.stdin.buffer.read(_REQUEST.size)
        if len(request) < _REQUEST.size:
            break
        status, data = _answer(library, dump, *_REQUEST.unpack(request))
        answers.write(_ANSWER.pack(status, len(data)) + data)
        answers.flush()
    return 0


if __name__ == "__main__":
    # Without the destructors, which is where the library dies after a failed open.
    os._exit(main(sys.argv))
