# SPDX-License-Identifier: GPL-2.0-or-later
"""Flattened streams: records in any order, overlapping, with gaps, cut anywhere."""

from __future__ import annotations

import random

import pytest
from support.mkdiskdump import KdumpFile, flatten
from support.mkdump import ElfCore, Segment

from gdbkdump.errors import FaultError, FaultReason, FormatError
from gdbkdump.formats import open_dump
from gdbkdump.formats.base import silent
from gdbkdump.formats.file import PlainFile
from gdbkdump.formats.flattened import FlattenedFile

PAGE = 4096
PAGES = {i: bytes([65 + i]) * PAGE for i in range(8)}


@pytest.fixture
def written(tmp_path):
    def write(data):
        path = tmp_path / "vmcore"
        path.write_bytes(data)
        return path

    return write


@pytest.fixture
def stream(written):
    files = []

    def index(records, **changes):
        data = flatten(records, **changes)
        files.append(FlattenedFile(PlainFile(written(data)), silent))
        return files[-1]

    yield index
    for file in files:
        file.close()


def cut_up(data, chance, *, shuffled=True):
    """Return records of random sizes that make up data."""
    records = []
    at = 0
    while at < len(data):
        size = chance.choice((1, 7, 24, 500, 4096, 9000))
        records.append((at, data[at : at + size]))
        at += size
    if shuffled:
        chance.shuffle(records)
    return records


def test_later_records_win(stream):
    file = stream([(0, b"aaaaaaaa"), (2, b"bbb"), (4, b"cc"), (0, b"d"), (10, b"ee")])
    assert file.pread(8, 0) == b"dabbccaa"
    assert file.size == 12
    assert file.pread(1, 7) == b"a"
    # What was never written: headers have zeros there, pages are not there.
    assert file.pread(12, 0) == b"dabbccaa"
    assert file.pread(4, 8) == b""
    assert file.read_header(0, 100) == b"dabbccaa\0\0ee"
    assert (file.is_cut, file.problems) == (False, [])


def test_any_order_of_any_records_is_as_if_written(stream):
    chance = random.Random(1)
    for _ in range(200):
        whole = bytearray(400)
        known = bytearray(400)
        records = []
        for _ in range(chance.randrange(1, 30)):
            at, size = chance.randrange(350), chance.randrange(1, 50)
            data = chance.randbytes(size)
            records.append((at, data))
            whole[at : at + size] = data
            known[at : at + size] = b"\1" * size
        file = stream(records)
        end = known.rfind(1) + 1
        assert file.size == end
        assert file.read_header(0, 400) == bytes(whole[:end])
        for at in range(0, end, 13):
            stop = known.find(0, at, end)
            there = bytes(whole[at : end if stop < 0 else stop])
            assert file.pread(400, at) == there
            place = file.span(at)
            assert (place is not None) == bool(there)
            if place:
                raw = file._stream.pread(1, place[0])
                assert raw == there[:1]
                assert place[1] <= len(there)


@pytest.mark.parametrize("shuffled", [False, True])
def test_both_formats(written, shuffled):
    chance = random.Random(2)
    elf = ElfCore([Segment(i * PAGE, page) for i, page in PAGES.items()])
    for file, kind in (
        (KdumpFile(PAGES), "flattened kdump-compressed"),
        (elf, "flattened ELF vmcore"),
    ):
        records = cut_up(file.build(), chance, shuffled=shuffled)
        dump = open_dump(written(flatten(records)))
        assert dump.format == kind
        assert (dump.problems, dump.is_incomplete) == ([], False)
        for i, page in PAGES.items():
            assert dump.read_phys(i * PAGE, PAGE) == page
        dump.close()


def test_an_elf_stream_is_flat(written):
    elf = ElfCore([Segment(i * PAGE, page) for i, page in PAGES.items()])
    path = written(flatten(cut_up(elf.build(), random.Random(3))))
    dump = open_dump(path)
    raw = path.read_bytes()
    assert dump.is_flat
    for paddr in range(0, 8 * PAGE, 100):
        offset, size = dump.file_range(paddr)
        assert raw[offset : offset + size] == dump.read_phys(paddr, size)
        assert size > 0
    dump.close()


def test_cut_anywhere(written):
    chance = random.Random(4)
    file = KdumpFile(PAGES)
    # In the order of makedumpfile: what opens the dump comes first.
    data = flatten(cut_up(file.build(), chance, shuffled=False))
    for size in [*range(0, len(data), 1501), len(data) - 1, len(data) - 16]:
        try:
            dump = open_dump(written(data[:size]))
        except FormatError:
            assert size < 30000
            continue
        assert dump.is_incomplete
        assert dump.problems[0].startswith("the flattened dump is truncated: it ends")
        lost = 0
        for i, page in PAGES.items():
            try:
                assert dump.read_phys(i * PAGE, PAGE) == page
            except FaultError as error:
                assert error.reason is FaultReason.MISSING
                lost += 1
        assert dump.missing == lost * PAGE
        dump.close()


@pytest.mark.parametrize("record", [(-5, b"bb"), (4, b""), (1 << 60, b"bb")])
def test_a_damaged_record_ends_the_stream(stream, record):
    # With the one before it: whose size is damaged, none knows.
    file = stream([(0, b"aaaa"), (4, b"bb"), record, (6, b"cc")])
    assert file.pread(10, 0) == b"aaaa"
    assert file.is_cut
    assert "is damaged" in file.problems[0]


def moved(records, number, to):
    """Return the records, the offset of one of them changed."""
    return [(to if i == number else at, d) for i, (at, d) in enumerate(records)]


@pytest.mark.parametrize("kind", [KdumpFile, ElfCore])
def test_a_record_that_lands_on_another_gives_no_wrong_page(written, kind):
    pages = {i: random.Random(i).randbytes(PAGE) for i in range(8)}
    if kind is ElfCore:
        file = ElfCore([Segment(i * PAGE, page) for i, page in pages.items()])
    else:
        # Raw: there is no checksum that would tell.
        file = KdumpFile({i: (0, page) for i, page in pages.items()})
    data = file.build()
    start = len(data) - 8 * PAGE
    records = [(0, data[:start])]
    records += [(at, data[at : at + 1500]) for at in range(start, len(data), 1500)]
    for number in range(3, len(records), 5):
        for shift in (-1500, 700, 4096, 30000):
            to = records[number][0] + shift
            dump = open_dump(written(flatten(moved(records, number, to))))
            lost = 0
            for i, page in pages.items():
                try:
                    assert dump.read_phys(i * PAGE, PAGE) == page
                except FaultError as error:
                    assert error.reason is FaultReason.MISSING
                    lost += 1
            assert lost > 0
            if dump.problems:
                assert "bytes of pages are there twice" in dump.problems[0]
                if kind is KdumpFile:
                    assert dump.missing == lost * PAGE
            dump.close()


@pytest.mark.parametrize("size", [0, 20, 4096, 4100])
def test_nothing_but_a_header(written, size):
    data = flatten([(0, b"KDUMP   ")])[:size]
    with pytest.raises(FormatError):
        open_dump(written(data))


def test_an_unknown_kind(written):
    with pytest.raises(FormatError, match="of type 2, version 1"):
        open_dump(written(flatten([(0, b"x")], type_=2)))
