# SPDX-License-Identifier: GPL-2.0-or-later
"""A coverage-guided fuzzer of the readers: python tests/fuzz/fuzz_formats.py CORPUS...

Options are libFuzzer's (``-runs=100000 -seed=1``); the first folder gets the inputs
that reached something new. What it looks for is any exception but ours, 10 seconds on
one input, and a gibibyte of memory. An input is a dump, or several files of one with
``BETWEEN`` between them. Of what libkdumpfile reads only our part is looked at.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import atheris

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

with atheris.instrument_imports(include=["gdbkdump.formats", "gdbkdump.arch"]):
    from gdbkdump.arch.x86_64 import X86_64
    from gdbkdump.errors import KdumpError
    from gdbkdump.formats import (
        bitmap,
        diskdump,
        elf,
        file,
        flattened,
        kdumpfile_worker,
        lzo,
        notes,
        open_dump,
        page_codecs,
        raw,
        sadump,
        snappy,
        vmcoreinfo,
    )

if TYPE_CHECKING:
    from gdbkdump.formats.base import DumpFile

# Imported here, though open_dump() would: only so they are watched.
READERS = (
    bitmap, diskdump, elf, file, flattened, lzo, notes, page_codecs, raw, sadump,
    snappy,
)  # fmt: skip
BETWEEN = b"--next file--"
PAGE = 4096
_FDS = [os.memfd_create("vmcore") for _ in range(4)]
_PATHS = [Path(f"/proc/self/fd/{fd}") for fd in _FDS]
_LKCD = (b"\xed\x23\x8f\x61", b"\xa8\x19\x01\x73")
_MAX_CPUS = 2


def read_through(data: bytes) -> None:
    """Open bytes as a dump and ask it what the house asks."""
    files = data.split(BETWEEN)[: len(_FDS)]
    for fd, piece in zip(_FDS, files, strict=False):
        os.ftruncate(fd, 0)
        os.pwrite(fd, piece, 0)
    if data.startswith(_LKCD):
        with contextlib.suppress(EOFError):
            kdumpfile_worker.find_lkcd_pages(str(_PATHS[0]), PAGE)
        return
    if data.startswith(b"DISKDUMP"):
        return
    try:
        dump = open_dump(*_PATHS[: len(files)])
    except KdumpError:
        return
    with contextlib.closing(dump):
        ask(dump)


def ask(dump: DumpFile) -> None:
    """Ask for notes, counts and pages."""
    for note in dump.notes:
        if note.name == b"VMCOREINFO":
            vmcoreinfo.VmcoreInfo(note.desc)
    for cpu in X86_64().guest_cpus(dump.notes)[:_MAX_CPUS]:
        for _ in X86_64().guest_images(cpu, dump.read_phys):
            pass
    _ = dump.missing, dump.excluded, dump.saving
    for extent in list(dump.extents)[:32]:
        for paddr in (extent.paddr, extent.paddr + extent.size - 8):
            dump.file_range(paddr)
            with contextlib.suppress(KdumpError):
                dump.read_phys(paddr, 2 * PAGE)


if __name__ == "__main__":
    limits = ["-timeout=10", "-rss_limit_mb=1024", "-max_len=65536"]
    atheris.Setup([sys.argv[0], *limits, *sys.argv[1:]], read_through)
    atheris.Fuzz()
