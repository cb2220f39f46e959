# SPDX-License-Identifier: GPL-2.0-or-later
"""VMCOREINFO searched for in memory, or where the user says that it is."""

from __future__ import annotations

import random
import struct

import pytest
from support.mkdump import PRESENT, ElfCore, Segment, note, vmcoreinfo

from gdbkdump.arch.x86_64 import X86_64
from gdbkdump.errors import FormatError
from gdbkdump.formats import open_dump
from gdbkdump.formats.base import silent
from gdbkdump.formats.notes import parse_notes
from gdbkdump.memory.bootstrap import (
    given_vmcoreinfo,
    image_memories,
    scan_vmcoreinfo,
)

BASE = 0x100000
IMAGE_MAP = 0xFFFFFFFF80000000
ESSENTIAL = {
    "OSRELEASE": "6.1.0",
    "SYMBOL_init_uts_ns": 0xFFFFFFFF81000000,
    "SYMBOL_init_top_pgt": 0xFFFFFFFF82000000,
}


def text(**more):
    return vmcoreinfo(**{**ESSENTIAL, **more})


def noted(**more):
    return note(b"VMCOREINFO", 0, text(**more))


@pytest.fixture
def memory(tmp_path):
    dumps = []

    def make(**at):
        """Memory of 8 MiB with bytes at offsets, ``at_1000=...``."""
        data = bytearray(8 << 20)
        for name, piece in at.items():
            offset = int(name.partition("_")[2], 16)
            data[offset : offset + len(piece)] = piece
        path = tmp_path / "memory"
        path.write_bytes(data)
        dumps.append(open_dump(path, base=BASE))
        return dumps[-1]

    yield make
    for dump in dumps:
        dump.close()


def releases(dump):
    return [info.osrelease for info, _ in scan_vmcoreinfo(dump, silent)]


def test_copies_in_memory_likeliest_first(memory):
    # The capture kernel's is fuller than that of the kernel that crashed.
    dump = memory(
        at_3000=noted(OSRELEASE="capture", NUMBER_a=1, NUMBER_b=2),
        at_5000=noted(OSRELEASE="stale"),
        at_700000=noted(OSRELEASE="crashed", CRASHTIME=1700000000),
    )
    assert releases(dump) == ["crashed", "capture", "stale"]
    places = [paddr for _, paddr in scan_vmcoreinfo(dump, silent)]
    assert places == [BASE + 0x700000, BASE + 0x3000, BASE + 0x5000]


def test_what_is_no_copy(memory):
    incomplete = note(b"VMCOREINFO", 0, b"OSRELEASE=6.1.0\n")
    other = note(b"VMCOREINFO", 7, text())
    dump = memory(at_1004=noted(), at_3000=incomplete, at_5000=other)
    assert releases(dump) == []


def test_equal_copies_are_tried_once_and_not_too_many(memory):
    same = {f"at_{0x1000 * n:x}": noted() for n in range(100)}
    assert releases(memory(**same)) == ["6.1.0"]
    many = {f"at_{0x1000 * n:x}": noted(NUMBER_a=n) for n in range(100)}
    assert len(releases(memory(**many))) == 16


def test_a_copy_over_the_end_of_a_piece(memory):
    # RAM is read in pieces of 4 MiB.
    assert releases(memory(at_3ff000=noted(OSRELEASE="end"))) == ["end"]


@pytest.mark.parametrize("offset", [0x2000, 0x2FF0, 0x7FFF00])
def test_given_by_its_address(memory, offset):
    for piece in (noted(), text()):
        dump = memory(**{f"at_{offset:x}": piece})
        assert given_vmcoreinfo(dump, BASE + offset).raw == text()


def test_given_as_a_file(memory, tmp_path):
    path = tmp_path / "info"
    for piece in (noted(), text(), text() + bytes(700)):
        path.write_bytes(piece)
        assert given_vmcoreinfo(memory(), path).raw == text()


def test_given_where_it_is_not(memory, tmp_path):
    path = tmp_path / "info"
    path.write_text("root:x:0:0\n")
    dump = memory(at_2000=b"OSRELEASE=6.1.0\nPAGESIZE=4096\n")
    for place in (BASE, BASE + 0x2000, path):
        with pytest.raises(FormatError, match="no VMCOREINFO is at "):
            given_vmcoreinfo(dump, place)
    with pytest.raises(FormatError, match="cannot read physical address 0x0"):
        given_vmcoreinfo(dump, 0)
    with pytest.raises(FormatError, match="No such file"):
        given_vmcoreinfo(dump, tmp_path / "none")


def qemu_note(cr3):
    desc = struct.pack("<II", 1, 440) + bytes(384) + struct.pack("<5Q", 0, 0, 0, cr3, 0)
    return note(b"QEMU", 0, desc + bytes(8))


def test_damaged_page_tables_end(tmp_path):
    # Each entry is present and leads to another page, on every level.
    chance = random.Random(3)
    size = 1 << 20
    pages = [chance.randrange(size >> 12) << 12 for _ in range(size // 8)]
    data = struct.pack(f"<{len(pages)}Q", *(page | PRESENT for page in pages))
    core = ElfCore([Segment(0, data)], qemu_note(pages[0] & ~0x1000))
    dump = open_dump(core.write(tmp_path / "vmcore"))
    places = [place for _, place, _ in image_memories(dump, X86_64())]
    dump.close()
    assert 0 < len(places) <= 2
    assert all(
        IMAGE_MAP <= start < end <= IMAGE_MAP + (1 << 30) for start, end, _ in places
    )


def test_few_of_many_cpus_are_asked(memory, monkeypatch):
    asked = []

    def guest_images(self, cpu, read_phys):
        asked.append(cpu.roots[0])
        yield IMAGE_MAP, IMAGE_MAP + 4096, cpu.roots[0]

    monkeypatch.setattr(X86_64, "guest_images", guest_images)
    dump = memory()
    notes = b"".join(qemu_note(0x2000 * n) for n in range(1000))
    dump.notes = list(parse_notes(notes, []))
    assert len(list(image_memories(dump, X86_64()))) == len(asked) == 4
