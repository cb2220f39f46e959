# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure the readers alone: every page in order, and dumps of a terabyte.

Pages are read by our reader and by libkdumpfile, each in a process of its own, in
turns. The terabyte is a small dump with more memory in its headers: kdump-compressed
with one page in 64 of the added ones, all of them zeros, and ELF with a hole for it,
which the page tables map.
"""

from __future__ import annotations

import argparse
import os
import statistics
import struct
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pieces import start  # noqa: E402

from gdbkdump.session import open_session  # noqa: E402

if TYPE_CHECKING:
    from gdbkdump.formats.base import DumpFile
# As users have it: Python compiles a module the first time only.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

_OURS = """
import sys, time
from pathlib import Path
from gdbkdump.errors import FaultError
from gdbkdump.formats import open_dump
dump = open_dump(Path(sys.argv[1]))
read, pages, start = dump.read_phys, 0, time.perf_counter()
for extent in dump.extents:
    for paddr in range(extent.paddr, extent.paddr + extent.size - 4095, 4096):
        try:
            read(paddr, 4096)
            pages += 1
        except FaultError:
            pass
print(pages, time.perf_counter() - start)
"""
_LIBRARY = """
import sys, time, kdumpfile
from pathlib import Path
from gdbkdump.formats import open_dump
extents = open_dump(Path(sys.argv[1])).extents
dump = kdumpfile.kdumpfile(sys.argv[1])
read, space = dump.read, kdumpfile.KDUMP_MACHPHYSADDR
pages, start = 0, time.perf_counter()
for extent in extents:
    for paddr in range(extent.paddr, extent.paddr + extent.size - 4095, 4096):
        try:
            read(space, paddr, 4096)
            pages += 1
        except kdumpfile.exceptions.NoDataException:
            pass
print(pages, time.perf_counter() - start)
"""
_OPEN = """
import re, sys, time
from pathlib import Path
start = time.perf_counter()
from gdbkdump.formats import open_dump
dump = open_dump(Path(sys.argv[1]))
indexed = time.perf_counter() - start
dump.close()
from gdbkdump.session import open_session
from gdbkdump.kernel.sched import tasks
start = time.perf_counter()
found = len(tasks(open_session(Path(sys.argv[1])).kernel))
status = Path("/proc/self/status").read_text()
peak = int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) >> 10
print(f"{indexed:.2f} {time.perf_counter() - start:.2f} {peak} {found}")
"""
_PAGE = 4096
_TERABYTE = 1 << 40
# Where it begins.
_START = 4 << 30
# Entries of page tables: present, writable, accessed, dirty; huge, global, no code.
_TABLE, _LEAF = 0x63, 0x80000000000001E3


def _ask(script: str, path: Path) -> list[float]:
    # The Python of Debian's packages, which libkdumpfile is one of.
    done = subprocess.run(
        ["/usr/bin/python3", "-c", script, path],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [float(word) for word in done.stdout.split()]


def _measure_pages(path: Path, turns: int) -> None:
    rates: dict[str, list[float]] = {"ours": [], "libkdumpfile": []}
    counts = set()
    for _ in range(turns):
        for name, script in (("ours", _OURS), ("libkdumpfile", _LIBRARY)):
            pages, seconds = _ask(script, path)
            rates[name].append(pages / seconds)
            counts.add(pages)
    ours, library = (statistics.median(rates[name]) for name in rates)
    sys.stdout.write(
        f"| {path.name} | {'/'.join(f'{count:.0f}' for count in counts)} | {ours:.0f}"
        f" | {library:.0f} | {ours / library:.2f} |\n"
    )
    sys.stdout.flush()


def _grow_kdump(small: Path, path: Path) -> None:
    """Write a kdump-compressed file with a terabyte more than a small one."""
    data = small.read_bytes()
    sub_blocks, bitmap_blocks = struct.unpack_from("<iI", data, 432)
    half = bitmap_blocks * _PAGE // 2
    start = (1 + sub_blocks) * _PAGE
    first, second = (data[start + i * half :][:half] for i in (0, 1))
    table = start + 2 * half
    count = int.from_bytes(second, "little").bit_count()
    begin = min(
        offset for offset, *_ in struct.iter_unpack("<QIIQ", data[table:][: 24 * count])
    )
    zeros = data[table:].find(struct.pack("<Q", begin))
    zero_page = struct.unpack_from("<QIIQ", data, table + zeros)
    new_half = -(-_TERABYTE // _PAGE // 8 // _PAGE) * _PAGE + half
    more = (new_half - half) // 8
    moved = 2 * (new_half - half) + 24 * more
    head = bytearray(data[:start])
    struct.pack_into("<I", head, 436, 2 * new_half // _PAGE)
    struct.pack_into("<I", head, 440, 0xFFFFFFFF)
    struct.pack_into("<Q", head, _PAGE + 96, new_half * 8)
    with path.open("wb") as file:
        file.write(head + first + b"\xff" * (new_half - half))
        file.write(second + b"\1\0\0\0\0\0\0\0" * ((new_half - half) // 8))
        for offset, *rest in struct.iter_unpack("<QIIQ", data[table:][: 24 * count]):
            file.write(struct.pack("<QIIQ", offset + moved, *rest))
        shared = (zero_page[0] + moved, *zero_page[1:])
        file.write(struct.pack("<QIIQ", *shared) * more)
        file.write(data[table + 24 * count :])


def _grow_elf(small: Path, path: Path) -> None:
    """Write an ELF vmcore with a hole of a terabyte at 4 GiB, which is mapped, too."""
    head = bytearray(small.open("rb").read(64))
    phoff, count = struct.unpack_from("<Q", head, 32)[0], head[56] + (head[57] << 8)
    subprocess.run(["cp", "--sparse=always", small, path], check=True)
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(phoff)
        table = file.read(56 * count)
        load = list(struct.unpack_from("<IIQQQQQQ", table, 56 * (count - 1)))
        base = load[3] - load[4]
        load[2:7] = [size, base + _START, _START, _TERABYTE, _TERABYTE]
        file.seek(size + _TERABYTE)
        file.write(table + struct.pack("<IIQQQQQQ", *load))
        struct.pack_into("<Q", head, 32, size + _TERABYTE)
        struct.pack_into("<H", head, 56, count + 1)
        file.seek(0)
        file.write(head)
    _map(path, base + _START, _START, _TERABYTE >> 30)


def _map(path: Path, vaddr: int, paddr: int, gigabytes: int) -> None:
    """Make the kernel's page tables, of four levels, map memory by leaves of a GiB."""
    with (
        closing(open_session(path)) as session,
        path.open("r+b", buffering=0) as file,
    ):
        dump = session.dump
        end = max(e.paddr + e.size for e in dump.extents if e.paddr < _START)
        free = (at for at in range(end - _PAGE, 0, -_PAGE) if _is_zeros(dump, at))

        def put(at: int, entry: int) -> None:
            place = dump.file_range(at)
            assert place
            file.seek(place[0])
            file.write(struct.pack("<Q", entry))

        for number in range(gigabytes):
            at = vaddr + (number << 30)
            top = session.kernel.memory.page_table.root + (at >> 39 & 511) * 8
            (entry,) = struct.unpack("<Q", dump.read_phys(top, 8))
            if not entry & 1:
                entry = next(free) | _TABLE
                put(top, entry)
            table = entry & ((1 << 52) - _PAGE)
            put(table + (at >> 30 & 511) * 8, paddr + (number << 30) | _LEAF)


def _is_zeros(dump: DumpFile, paddr: int) -> bool:
    return not any(dump.read_phys(paddr, _PAGE))


def _measure_terabytes(dump: Path) -> None:
    sys.stdout.write(
        "\n| 1 TiB more | indexed, s | kernel and tasks, s | peak MiB | tasks"
        " | gdb's prompt, s | peak MiB |\n|---|---|---|---|---|---|---|\n"
    )
    with tempfile.TemporaryDirectory(dir=dump) as folder:
        for name, grow, small in (
            ("kdump-compressed", _grow_kdump, dump / "variants" / "zlib.d31"),
            ("ELF vmcore", _grow_elf, dump / "vmcore"),
        ):
            path = Path(folder) / "vmcore"
            grow(small, path)
            indexed, opened, peak, tasks = _ask(_OPEN, path)
            seconds, megabytes = start(dump, path)
            sys.stdout.write(
                f"| {name} | {indexed} | {opened} | {peak:.0f} | {tasks:.0f}"
                f" | {seconds:.2f} | {megabytes} |\n"
            )
            path.unlink()


def main() -> int:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dump", type=Path, help="directory of a dump with variants")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    sys.stdout.write(
        "| file | pages | ours, a second | libkdumpfile's | ratio |\n"
        "|---|---|---|---|---|\n"
    )
    for name in ("zlib.d31", "lzo.d31", "zstd.d31"):
        path = args.dump / "variants" / name
        if path.exists():
            _measure_pages(path, args.turns)
    _measure_terabytes(args.dump)
    return 0


if __name__ == "__main__":
    sys.exit(main())
