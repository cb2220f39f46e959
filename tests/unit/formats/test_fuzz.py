# SPDX-License-Identifier: GPL-2.0-or-later
"""The readers under a coverage-guided fuzzer, for a fixed number of inputs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.mkdiskdump import KdumpFile, flatten
from support.mkdump import ElfCore, Segment, note

FUZZER = Path(__file__).resolve().parents[2] / "fuzz" / "fuzz_formats.py"
RUNS = 12_000
PAGES = {0: b"ab" * 2048, 2: bytes(4096), 3: b"kdump" * 819 + b"!"}
NOTES = note(b"CORE", 1, bytes(336)) + note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\n")


def seeds():
    elf = ElfCore([Segment(i * 4096, page) for i, page in PAGES.items()], NOTES).build()
    kdump = KdumpFile(PAGES, excluded=[1], notes=NOTES, max_mapnr=8).build()
    literal = bytes([0xFC]) + PAGES[0][:15] + b"\x11\0\0"
    packed = KdumpFile({1: (2, literal), 2: (4, b"\x80\x20" + literal)}).build()
    yield from (elf, kdump, packed)
    for data in (elf, kdump):
        yield flatten((at, data[at : at + 7000]) for at in range(0, len(data), 7000))


def test_nothing_but_our_errors(tmp_path):
    pytest.importorskip("atheris", reason="no atheris for this Python")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, data in enumerate(seeds()):
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
