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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_REQUEST = struct.Struct("<QI")
_ANSWER = struct.Struct("<BI")
OK, NO_DATA, FAILED = 0, 1, 2
# The exit code that says that this Python has no libkdumpfile.
NO_LIBRARY = 77
# What a corrupt header may make it allocate.
_MAX_MEMORY = 4 << 30
_MAX_RUNS = 1 << 20
_MAX_CPUS = 8192
_LKCD_MAGIC = b"\xed\x23\x8f\x61\x73\x01\x19\xa8"
_LKCD_END = 4


def _attribute(attributes: Any, path: str) -> Any:
    for name in path.split("."):
        try:
            attributes = attributes[name]
        except Exception:  # noqa: BLE001 - of whichever version, none has the attribute
            return None
    return attributes


def _blob(value: Any) -> str | None:
    return None if value is None else bytes(value).hex()


def _lkcd_runs(path: str) -> list[list[int]]:
    # The library has no map of an LKCD dump, and its cache (0.5.1) loses pages after
    # some thousand questions for pages that are not there, so they are found here: each
    # is behind its address, size and flags.
    with open(path, "rb") as file:
        head = file.read(742)
        order = "<" if head[:8] == _LKCD_MAGIC else ">"
        version, page_size = struct.unpack_from(f"{order}8xI8xI", head)
        at = 65536
        if version & 0xFFFF >= 9:
            (at,) = struct.unpack_from(f"{order}Q", head, 734)
        page = struct.Struct(f"{order}QII")
        runs: list[list[int]] = []
        while len(runs) < _MAX_RUNS and at < 1 << 60:
            file.seek(at)
            raw = file.read(page.size)
            if len(raw) < page.size:
                break
            address, size, flags = page.unpack(raw)
            if flags & _LKCD_END:
                break
            if runs and runs[-1][0] + runs[-1][1] == address:
                runs[-1][1] += page_size
            else:
                runs.append([address, page_size])
            at += page.size + size
    return runs


def _mapped_runs(attributes: Any, page_size: int) -> list[list[int]]:
    # Without a map of pages all up to the last.
    pages = _attribute(attributes, "memory.pagemap")
    pages = pages or _attribute(attributes, "file.pagemap")
    last = _attribute(attributes, "max_pfn") or 0
    if pages is None:
        return [[0, last * page_size]]
    runs: list[list[int]] = []
    at = 0
    while len(runs) < _MAX_RUNS:
        try:
            start = pages.find_set(at)
        except Exception:  # noqa: BLE001 - the end of the map, whatever it is called
            break
        at = min(pages.find_clear(start), last)
        if at <= start:
            break
        runs.append([start * page_size, (at - start) * page_size])
    return runs


def _describe(path: str, attributes: Any) -> dict[str, Any]:
    page_size = _attribute(attributes, "arch.page_size") or 4096
    is_lkcd = _attribute(attributes, "file.format") == "lkcd"
    runs = _lkcd_runs(path) if is_lkcd else _mapped_runs(attributes, page_size)
    cpus = _attribute(attributes, "cpu.number") or 0
    notes = (
        _blob(_attribute(attributes, f"cpu.{cpu}.PRSTATUS"))
        for cpu in range(min(cpus, _MAX_CPUS))
    )
    return {
        "format": _attribute(attributes, "file.description"),
        "arch": _attribute(attributes, "arch.name"),
        "runs": runs,
        "vmcoreinfo": _blob(_attribute(attributes, "linux.vmcoreinfo.raw")),
        "prstatus": [note for note in notes if note],
    }


def _answer(library: Any, dump: Any, address: int, size: int) -> tuple[int, bytes]:
    try:
        return OK, bytes(dump.read(library.KDUMP_MACHPHYSADDR, address, size))
    except library.exceptions.NoDataException as error:
        return NO_DATA, str(error).encode()
    except Exception as error:  # noqa: BLE001 - the reason is what the other side tells
        return FAILED, str(error).encode()


def main(words: Sequence[str]) -> int:
    """Open the dump named on the command line and serve it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    try:
        import kdumpfile
    except ImportError:
        return NO_LIBRARY
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the library may print is no answer
    try:
        dump = kdumpfile.kdumpfile(words[1])
        told: dict[str, Any] = _describe(words[1], dump.attr)
    except Exception as error:  # noqa: BLE001 - the reason is what the other side tells
        told = {"error": str(error) or type(error).__name__}
    answers.write(json.dumps(told).encode() + b"\n")
    answers.flush()
    while "error" not in told:
        request = sys.stdin.buffer.read(_REQUEST.size)
        if len(request) < _REQUEST.size:
            break
        status, data = _answer(kdumpfile, dump, *_REQUEST.unpack(request))
        answers.write(_ANSWER.pack(status, len(data)) + data)
        answers.flush()
    return 0


if __name__ == "__main__":
    # Without the destructors, which is where the library dies after a failed open.
    os._exit(main(sys.argv))
