# SPDX-License-Identifier: GPL-2.0-or-later
"""Bare memory, which tells nothing of itself, and what the user says instead."""

from __future__ import annotations

import os
import random
import struct

import pytest

from gdbkdump.errors import CommandError, FaultError, FaultReason, FormatError
from gdbkdump.formats import open_dump
from gdbkdump.formats.hints import Hints, parse_hints

DATA = random.Random(5).randbytes(3 * 4096 + 100)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "memory"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def dump(image):
    opened = open_dump(image, base=0x10000)
    yield opened
    opened.close()


def test_memory_begins_at_the_base(dump):
    (extent,) = dump.extents
    assert (extent.paddr, extent.size, extent.vaddr) == (0x10000, len(DATA), None)
    assert dump.read_phys(0x10000, len(DATA)) == DATA
    assert dump.read_phys(0x11FFF, 2) == DATA[0x1FFF:0x2001]
    assert dump.file_range(0x12345) == (0x2345, len(DATA) - 0x2345)


@pytest.mark.parametrize(
    ("paddr", "size", "lacks"),
    [(0, 1, 0), (0xFFFF, 8, 0xFFFF), (0x13060, 8, 0x13064), (1 << 40, 1, 1 << 40)],
)
def test_nothing_is_around_it(dump, paddr, size, lacks):
    with pytest.raises(FaultError) as raised:
        dump.read_phys(paddr, size)
    assert (raised.value.address, raised.value.reason) == (lacks, FaultReason.HOLE)
    assert dump.file_range(lacks) is None


def test_a_dump_that_tells_its_addresses_is_no_bare_memory(tmp_path):
    for head in (b"\x7fELF", b"KDUMP   ", b"makedumpfile\0\0\0\0"):
        path = tmp_path / "vmcore"
        path.write_bytes(head.ljust(8192, b"\0"))
        with pytest.raises(FormatError):
            open_dump(path, base=0)


def test_bases_that_cannot_be(image):
    for base in (-1, 1 << 52, (1 << 52) - 4096):
        with pytest.raises(FormatError, match=r"no memory of .* can begin at"):
            open_dump(image, base=base)


def test_without_a_base_the_message_tells_of_it(image):
    image.write_bytes(bytes(8192))
    with pytest.raises(FormatError, match="gdbkdump --base 0"):
        open_dump(image)


def test_a_pipe_is_not_waited_for(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(FormatError, match="is a pipe"):
        open_dump(path)


def lime(*ranges):
    """An image of LiME: magic, version, first and last address before each range."""
    pieces = []
    for first, data in ranges:
        last = first + len(data) - 1
        pieces.append(struct.pack("<IIQQ8x", 0x4C694D45, 1, first, last) + data)
    return b"".join(pieces)


def test_an_image_of_lime(tmp_path):
    path = tmp_path / "memory.lime"
    path.write_bytes(
        lime((0x1000, DATA[:8192]), (0x3000, DATA[8192:]), (1 << 32, b"x"))
    )
    dump = open_dump(path)
    assert dump.format == "LiME memory image"
    assert dump.read_phys(0x1000, len(DATA)) == DATA
    assert dump.read_phys(1 << 32, 1) == b"x"
    for paddr in (0xFFF, 0x1000 + len(DATA), (1 << 32) + 1):
        with pytest.raises(FaultError, match="not RAM"):
            dump.read_phys(paddr, 1)
    offset, size = dump.file_range(0x2FFF)
    assert (path.read_bytes()[offset : offset + 1], size) == (DATA[8191:8192], 1)
    dump.close()


@pytest.mark.parametrize("size", [32, 33, 8000, 8192 + 31])
def test_a_cut_image_of_lime(tmp_path, size):
    path = tmp_path / "memory.lime"
    path.write_bytes(lime((0x1000, DATA[:8192]))[:size])
    dump = open_dump(path)
    assert dump.missing == 8192 + 32 - size
    assert "truncated" in dump.problems[0]
    with pytest.raises(FaultError, match="lost"):
        dump.read_phys(0x1000, 8192)
    dump.close()


@pytest.mark.parametrize(
    "damaged",
    [
        lime((0x1000, DATA))[:20],
        lime((0x1000, DATA)) + b"EMiL",
        lime((0x1000, DATA), (0x2000, DATA)),
        lime(((1 << 52) - 4096, DATA)),
        struct.pack("<IIQQ8x", 0x4C694D45, 2, 0, 4095) + bytes(4096),
        struct.pack("<IIQQ8x", 0x4C694D45, 1, 4096, 0) + bytes(4096),
        struct.pack("<IIQQ8x", 0x4C694D45, 1, 0, (1 << 64) - 1),
    ],
)
def test_a_damaged_image_of_lime_is_one_error(tmp_path, damaged):
    path = tmp_path / "memory.lime"
    path.write_bytes(damaged)
    with pytest.raises(FormatError):
        open_dump(path)


def test_more_ranges_than_any_machine_has(tmp_path):
    path = tmp_path / "memory.lime"
    path.write_bytes(lime(*((at << 12, b"x") for at in range(65537))))
    with pytest.raises(FormatError, match="more than 65536 ranges"):
        open_dump(path)


def test_what_the_user_says(image):
    assert parse_hints(None, None) == Hints()
    assert parse_hints("100000", "0x1340000") == Hints(0x100000, 0x1340000)
    assert parse_hints("0", "DEADb000") == Hints(0, 0xDEADB000)
    assert parse_hints(None, str(image)).vmcoreinfo == image


@pytest.mark.parametrize(
    ("base", "vmcoreinfo"),
    [("x", None), ("", None), ("-1", None), ("1 2", None), ("\u0661", None),
     (None, "nonsense"), (None, "/none/there"), (None, "abc/"), (None, "")],
)  # fmt: skip
def test_what_makes_no_sense(base, vmcoreinfo):
    with pytest.raises(CommandError, match=r"^(base|vmcoreinfo): "):
        parse_hints(base, vmcoreinfo)
