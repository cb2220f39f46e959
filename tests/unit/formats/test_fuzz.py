# SPDX-License-Identifier: GPL-2.0-or-later
"""The readers under a coverage-guided fuzzer, for a fixed number of inputs."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from support.fakes import DictMemory
from support.mkdiskdump import KdumpFile, flatten
from support.mkdump import ElfCore, PageTables, Segment, note
from support.mklkcd import write_lkcd
from support.mksadump import write_disks, write_sadump

FUZZER = Path(__file__).resolve().parents[2] / "fuzz" / "fuzz_formats.py"
RUNS = 14_000
BETWEEN = b"--next file--"
PAGES = {0: b"ab" * 2048, 2: bytes(4096), 3: b"kdump" * 819 + b"!"}
NOTES = note(b"CORE", 1, bytes(336)) + note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\n")


def seeds(directory):
    elf = ElfCore([Segment(i * 4096, page) for i, page in PAGES.items()], NOTES).build()
    kdump = KdumpFile(PAGES, excluded=[1], notes=NOTES, max_mapnr=8).build()
    literal = bytes([0xFC]) + PAGES[0][:15] + b"\x11\0\0"
    packed = KdumpFile({1: (2, literal), 2: (4, b"\x80\x20" + literal)}).build()
    yield from (elf, kdump, packed)
    for data in (elf, kdump):
        yield flatten((at, data[at : at + 7000]) for at in range(0, len(data), 7000))
    parts = [KdumpFile(PAGES, split=each, max_mapnr=8) for each in ((0, 2), (2, 8))]
    yield BETWEEN.join(part.build() for part in parts)
    yield from other_seeds(directory)


def other_seeds(directory):
    """QEMU's ELF with page tables, LiME, sadump on one partition and two, LKCD."""
    made = DictMemory()
    tables = PageTables(made, 0x1000)
    tables.map(0xFFFFFFFF81000000, 0, level=2)
    memory = made.read(0x1000, 0x3000)
    cpu = bytearray(struct.pack("<II", 1, 440).ljust(440, b"\0"))
    struct.pack_into("<Q", cpu, 392 + 24, tables.root)
    notes = note(b"QEMU", 0, bytes(cpu))
    yield ElfCore([Segment(0x1000, memory)], notes).build()
    yield b"".join(
        struct.pack("<IIQQ8x", 0x4C694D45, 1, at, at + 99) + memory[at : at + 100]
        for at in (0, 4096)
    )
    path = directory / "made"
    pages = [(pfn * 4096, page) for pfn, page in PAGES.items()]
    yield write_sadump(path, pages, 8, excluded=[4096]).read_bytes()
    disks = [directory / "disk1", directory / "disk2"]
    write_disks(disks, path, [1])
    yield BETWEEN.join(disk.read_bytes() for disk in disks)
    data = write_lkcd(path, pages).read_bytes()
    # The pages begin right behind the header.
    yield data[:734] + struct.pack("<Q", 742) + data[65536:]


def test_nothing_but_our_errors(tmp_path):
    pytest.importorskip("atheris", reason="no atheris for this Python")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, data in enumerate([*seeds(tmp_path)]):
        (corpus / f"seed{number}").write_bytes(data)
    done = subprocess.run(
        [sys.executable, FUZZER, f"-runs={RUNS}", "-seed=20261124", corpus],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert re.search(rf"Done {RUNS} runs", done.stderr)
    # It got somewhere: what it found new is kept.
    assert len(list(corpus.iterdir())) > 50
