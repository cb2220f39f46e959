# SPDX-License-Identifier: GPL-2.0-or-later
"""A coverage-guided fuzzer of the readers: python tests/fuzz/fuzz_formats.py CORPUS...

Options are libFuzzer's (``-runs=100000 -seed=1``); the first folder gets the inputs
that reached something new. What it looks for is any exception but ours, 10 seconds on
one input, and a gibibyte of memory.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

with atheris.instrument_imports(include=["gdbkdump.formats"]):
    from gdbkdump.errors import KdumpError
    from gdbkdump.formats import (
        bitmap,
        diskdump,
        elf,
        file,
        flattened,
        lzo,
        notes,
        open_dump,
        page_codecs,
        snappy,
        vmcoreinfo,
    )

# Imported here, though open_dump() would: only so they are watched.
READERS = (bitmap, diskdump, elf, file, flattened, lzo, notes, page_codecs, snappy)
PAGE = 4096
_FD = os.memfd_create("vmcore")
_PATH = Path(f"/proc/self/fd/{_FD}")


def read_through(data: bytes) -> None:
    """Open bytes as a dump and ask it what the house asks."""
    os.ftruncate(_FD, 0)
    os.pwrite(_FD, data, 0)
    try:
        dump = open_dump(_PATH)
    except KdumpError:
        return
    with contextlib.closing(dump):
        for note in dump.notes:
            if note.name == b"VMCOREINFO":
                vmcoreinfo.VmcoreInfo(note.desc)
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
