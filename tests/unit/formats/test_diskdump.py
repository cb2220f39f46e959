# SPDX-License-Identifier: GPL-2.0-or-later
"""kdump-compressed files: each state of a page, each header version, split sets."""

from __future__ import annotations

import contextlib
import random
import struct

import pytest
from support.mkdiskdump import LOST, KdumpFile, raw_page
from support.mkdump import note

from gdbkdump.errors import FaultError, FaultReason, FormatError
from gdbkdump.formats import open_dump

PAGE = 4096


@pytest.fixture
def opened(tmp_path):
    dumps = []

    def open_file(*files, size=None, name="vmcore"):
        paths = [
            file.write(tmp_path / f"{name}{i or ''}", size)
            for i, file in enumerate(files)
        ]
        dumps.append(open_dump(*paths))
        return dumps[-1]

    yield open_file
    for dump in dumps:
        dump.close()


def page(seed):
    chance = random.Random(seed)
    return bytes(chance.choices(b"abcdefgh", k=PAGE))


def fault(dump, paddr, size=1):
    with pytest.raises(FaultError) as caught:
        dump.read_phys(paddr, size)
    return caught.value.reason, caught.value.address


PAGES = {0: page(0), 3: bytes(PAGE), 5: page(5), 6: page(6), 40: page(40)}


def test_pages_are_where_the_bitmaps_say(opened):
    dump = opened(KdumpFile(PAGES, excluded=[7, 41]))
    for pfn, data in PAGES.items():
        assert dump.read_phys(pfn * PAGE, PAGE) == data
    assert dump.read_phys(5 * PAGE + 4090, 12) == (PAGES[5] + PAGES[6])[4090:4102]
    assert (dump.machine, dump.is_flat, dump.is_incomplete) == (62, False, False)
    assert (dump.missing, dump.excluded, dump.problems) == (0, 2 * PAGE, [])


def test_each_state_of_a_page_is_told(opened):
    pages = PAGES | {8: LOST}
    dump = opened(KdumpFile(pages, excluded=[7], status=1 | 8))
    assert fault(dump, 2 * PAGE) == (FaultReason.HOLE, 2 * PAGE)
    assert fault(dump, 7 * PAGE + 8) == (FaultReason.EXCLUDED, 7 * PAGE + 8)
    assert fault(dump, 8 * PAGE) == (FaultReason.MISSING, 8 * PAGE)
    assert fault(dump, 1 << 50) == (FaultReason.HOLE, 1 << 50)
    assert dump.read_phys(3 * PAGE, PAGE) == bytes(PAGE)
    # A read that begins well stops where the first byte is missing.
    assert fault(dump, 6 * PAGE + 1, PAGE) == (FaultReason.EXCLUDED, 7 * PAGE)
    assert (dump.is_incomplete, dump.missing) == (True, PAGE)
    assert dump.problems == [
        "the dump is incomplete (makedumpfile could not write all): 1 of 6 pages are"
        " lost"
    ]


def test_many_pages_at_the_seams_of_the_index(opened):
    # Words of 4096 bits, chunks of 256 descriptors.
    chance = random.Random(7)
    numbers = sorted({0, 4095, 4096, 8191, 12287, *chance.sample(range(12288), 1500)})
    pages = {pfn: struct.pack("<I", pfn) * 1024 for pfn in numbers}
    dump = opened(KdumpFile(pages, max_mapnr=12288))
    for pfn in range(12288):
        if pfn in pages:
            assert dump.read_phys(pfn * PAGE + 8, 4) == struct.pack("<I", pfn)
        else:
            assert fault(dump, pfn * PAGE)[0] is FaultReason.HOLE
    runs = [(e.paddr // PAGE, e.size // PAGE) for e in dump.extents]
    assert [at + i for at, count in runs for i in range(count)] == numbers


@pytest.mark.parametrize("version", range(7))
def test_header_versions(opened, version):
    info, notes = b"OSRELEASE=6.1.0\n", note(b"CORE", 1, bytes(336))
    file = KdumpFile(
        PAGES, version=version, vmcoreinfo=info, notes=notes, erased=b"x\ny\n"
    )
    dump = opened(file)
    for pfn, data in PAGES.items():
        assert dump.read_phys(pfn * PAGE, PAGE) == data
    names = [n.name for n in dump.notes]
    assert (b"VMCOREINFO" in names) == (version >= 3)
    assert (b"CORE" in names) == (version >= 4)
    assert dump.saving.version == version
    assert dump.saving.dump_level == (31 if version >= 1 else None)
    assert dump.saving.erased == ((b"x", b"y") if version >= 5 else ())
    assert dump.saving.utsname[2] == b"6.1.0-test"


def test_a_newer_header_is_read_as_far_as_known(opened):
    dump = opened(KdumpFile(PAGES, fields=[(8, "<i", 7)]))
    assert dump.read_phys(0, PAGE) == PAGES[0]
    assert "version 7" in dump.problems[0]


@pytest.mark.parametrize("size", [8192, 65536])
def test_blocks_that_are_no_pages_of_the_kernel(opened, size):
    pages = {1: bytes(range(256)) * (size // 256), 2: page(2) * (size // PAGE)}
    dump = opened(KdumpFile(pages, block_size=size))
    assert dump.read_phys(size + 300, 4) == bytes([44, 45, 46, 47])
    assert dump.read_phys(2 * size + PAGE, PAGE) == page(2)
    assert fault(dump, 3 * size)[0] is FaultReason.HOLE


def test_one_bitmap_alone(opened):
    # Of diskdump itself: what is RAM is in the file.
    file = KdumpFile(PAGES, one_bitmap=True, max_mapnr=8 * PAGE)
    dump = opened(file)
    assert dump.read_phys(5 * PAGE, PAGE) == PAGES[5]
    assert fault(dump, 7 * PAGE)[0] is FaultReason.HOLE
    assert dump.excluded == 0


def test_names_that_an_old_makedumpfile_shifted(opened):
    file = KdumpFile(PAGES)
    data = bytearray(file.build())
    data[12 : 12 + 386] = data[16 : 12 + 390]
    file.build = lambda: bytes(data)
    assert opened(file).saving.utsname[:3] == (b"Linux", b"host", b"6.1.0-test")


def test_the_machine_without_names(opened):
    # QEMU leaves them empty.
    empty = (b"",) * 6
    notes = note(b"CORE", 1, bytes(392))
    assert opened(KdumpFile(PAGES, utsname=empty)).machine == 62
    assert opened(KdumpFile(PAGES, utsname=empty, notes=notes)).machine == 183


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ((100, 50, 1), FaultReason.CORRUPT),  # among the headers
        ((1 << 40, 50, 1), FaultReason.CORRUPT),
        ((1 << 63, 50, 1), FaultReason.CORRUPT),
        ((-1, 50, 1), FaultReason.CORRUPT),  # the size is that of a page and more
        ((None, 5000, 1), FaultReason.CORRUPT),
        ((None, 50, 0), FaultReason.CORRUPT),  # raw, yet no page
        ((None, 50, 3), FaultReason.CORRUPT),  # two methods
        ((None, 50, 0x40), FaultReason.CORRUPT),  # none that is known
        ((None, 50, 1), FaultReason.CORRUPT),  # cut
        ((None, 0, 1), FaultReason.CORRUPT),
        ((0, 50, 1), FaultReason.MISSING),
    ],
)
def test_a_damaged_descriptor_never_gives_a_page(opened, change, reason):
    file = KdumpFile(PAGES)
    table = 5 * PAGE
    offset, size, flags = change
    if offset is None:
        offset = struct.unpack_from("<Q", file.build(), table + 2 * 24)[0]
    if offset == -1:
        offset, size = struct.unpack_from("<Q", file.build(), table + 48)[0], 1 << 31
    file.descriptors[2] = (offset, size, flags)
    dump = opened(file)
    assert fault(dump, 5 * PAGE)[0] is reason
    assert dump.read_phys(0, PAGE) == PAGES[0]
    assert dump.read_phys(40 * PAGE, PAGE) == PAGES[40]


def test_a_page_of_another_length_is_damaged(opened):
    import zlib

    short = (1, zlib.compress(page(1)[:-1]))
    long = (1, zlib.compress(page(1) + b"x"))
    bomb = (1, zlib.compress(bytes(1 << 20)))
    dump = opened(KdumpFile({1: short, 2: long, 3: bomb, 4: page(4)}))
    for pfn in (1, 2, 3):
        assert fault(dump, pfn * PAGE)[0] is FaultReason.CORRUPT
    assert dump.read_phys(4 * PAGE, PAGE) == page(4)


@pytest.mark.parametrize("ranges", [None, (0, 6)])
def test_a_bit_too_many_or_too_few_is_noticed(opened, ranges):
    # Each page behind it would be taken for another.
    whole = KdumpFile(PAGES, excluded=[7], split=ranges).build()
    second = 4 * PAGE
    for pfn in (0, 2, 6, 7, 40, 63):
        data = bytearray(whole)
        data[second + pfn // 8] ^= 1 << pfn % 8
        file = KdumpFile({})
        file.build = lambda data=data: bytes(data)
        with pytest.raises(FormatError, match="bitmaps and descriptors contradict"):
            opened(file)


def test_pages_that_begin_at_a_block(opened):
    # Nobody says that they follow the descriptors at once.
    file = KdumpFile(PAGES)
    data = file.build()
    table = 5 * PAGE
    start = table + 24 * len(PAGES)
    moved = bytearray(data[:start].ljust(table + PAGE, b"\0") + data[start:])
    for i in range(len(PAGES)):
        (at,) = struct.unpack_from("<Q", moved, table + 24 * i)
        struct.pack_into("<Q", moved, table + 24 * i, at - start + table + PAGE)
    file.build = lambda: bytes(moved)
    dump = opened(file)
    for pfn, page in PAGES.items():
        assert dump.read_phys(pfn * PAGE, PAGE) == page


def test_descriptors_that_were_never_written(opened):
    # makedumpfile was killed: no flag in the header, no data behind the last page.
    file = KdumpFile(PAGES, descriptors={3: (0, 0, 0), 4: (0, 0, 0)})
    dump = opened(file)
    assert (dump.is_incomplete, dump.missing) == (True, 2 * PAGE)
    assert dump.problems == [
        "the dump is incomplete (its end is cut): 2 of 5 pages are lost"
    ]
    assert fault(dump, 40 * PAGE)[0] is FaultReason.MISSING


def test_truncated_anywhere(opened):
    file = KdumpFile(PAGES, vmcoreinfo=b"A=1\n", notes=note(b"CORE", 1, bytes(336)))
    whole = len(file.build())
    for size in {*range(0, whole, 997), whole - 1, 5 * PAGE, 5 * PAGE + 50}:
        try:
            dump = opened(file, size=size)
        except FormatError:
            assert size < 6 * PAGE
            continue
        assert dump.is_incomplete
        lost = 0
        for pfn, data in PAGES.items():
            try:
                assert dump.read_phys(pfn * PAGE, PAGE) == data
            except FaultError as error:
                assert error.reason is FaultReason.MISSING
                lost += 1
        assert dump.missing == lost * PAGE > 0
        assert "(its end is cut)" in dump.problems[-1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([(428, "<i", 0)], "blocks of 0 bytes"),
        ([(428, "<i", 4095)], "blocks of 4095 bytes"),
        ([(428, "<i", 1 << 30)], "blocks of"),
        ([(432, "<i", 0)], "0 blocks of sub header"),
        ([(432, "<i", -1)], "blocks of sub header"),
        ([(432, "<i", 1 << 30)], "ends within its page bitmaps"),
        ([(436, "<I", 0)], "0 of bitmaps"),
        ([(436, "<I", 0xFFFFFFFF)], "ends within its page bitmaps"),
        ([(4096 + 96, "<Q", 0)], "0x0 page frames"),
        ([(4096 + 96, "<Q", 1 << 60)], "page frames are absurd"),
        ([(4096 + 12, "<i", 1), (4096 + 80, "<Q", 9)], "pages 0x9 to 0x0 are absurd"),
        ([(8, ">i", 6)], "big-endian"),
        ([(428, "<i", 0), (416, "<i", 4096)], "32-bit"),
    ],
)
def test_absurd_headers(opened, fields, message):
    with pytest.raises(FormatError, match=message):
        opened(KdumpFile(PAGES, fields=fields))


def split(*ranges, **changes):
    return [KdumpFile(PAGES, split=r, **changes) for r in ranges]


RANGES = ((0, 5), (5, 6), (6, 64))


def test_a_split_set_in_any_order(opened):
    first, second, third = split(*RANGES)
    dump = opened(third, first, second)
    for pfn, data in PAGES.items():
        assert dump.read_phys(pfn * PAGE, PAGE) == data
    assert (len(dump.paths), dump.problems) == (3, [])


def test_parts_are_found_beside_the_first(tmp_path):
    for i, part in enumerate(split(*RANGES)):
        part.write(tmp_path / f"vmcore{i + 1}")
    KdumpFile(PAGES).write(tmp_path / "vmcore4")
    split((0, 64), dump_level=1)[0].write(tmp_path / "vmcore5")
    (tmp_path / "vmcore6").write_bytes(b"KDUMP   ")
    (tmp_path / "vmcore7").mkdir()
    for name in ("vmcore1", "vmcore3"):
        dump = open_dump(tmp_path / name)
        assert sorted(p.name for p in dump.paths) == ["vmcore1", "vmcore2", "vmcore3"]
        assert dump.read_phys(5 * PAGE, PAGE) == PAGES[5]
        dump.close()


def test_a_part_that_is_not_there(opened):
    first, _, third = split(*RANGES)
    dump = opened(first, third, name="x")
    assert fault(dump, 5 * PAGE)[0] is FaultReason.SPLIT
    assert dump.read_phys(6 * PAGE, PAGE) == PAGES[6]
    assert fault(dump, 7 * PAGE)[0] is FaultReason.HOLE
    assert "0x5 to 0x6" in dump.problems[0]


def test_empty_ranges(opened):
    dump = opened(*split((0, 64), (64, 64), (64, 64)))
    assert dump.read_phys(40 * PAGE, PAGE) == PAGES[40]
    assert dump.problems == []


def test_what_is_no_set_is_refused(opened):
    (first,) = split((0, 5))
    with pytest.raises(FormatError, match="not of one split dump"):
        opened(first, KdumpFile(PAGES))
    with pytest.raises(FormatError, match="not of one split dump"):
        opened(first, *split((5, 64), dump_level=1))
    with pytest.raises(FormatError, match="named twice"):
        opened(first, first)


def test_pages_of_several_methods(opened):
    pages = {1: raw_page(page(1)), 2: page(2), 3: raw_page(bytes(PAGE))}
    dump = opened(KdumpFile(pages, status=2))
    assert dump.read_phys(PAGE, 2 * PAGE) == page(1) + page(2)
    assert dump.read_phys(3 * PAGE, PAGE) == bytes(PAGE)


def test_the_cache_is_bounded(tmp_path):
    from gdbkdump.formats.diskdump import DiskDump
    from gdbkdump.formats.file import PlainFile

    pages = {pfn: page(pfn) for pfn in range(60)}
    path = KdumpFile(pages).write(tmp_path / "vmcore")
    dump = DiskDump([PlainFile(path)], cache_bytes=8 * PAGE)
    for pfn in [*range(60), *range(60)]:
        assert dump.read_phys(pfn * PAGE, PAGE) == pages[pfn]
        assert len(dump._cache) <= 8
    dump.close()


def test_noise_gives_data_or_a_clear_error(opened):
    whole = KdumpFile(PAGES, vmcoreinfo=b"A=1\n").build()
    chance = random.Random(3)
    right = set(PAGES.values())
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            at = chance.choice((chance.randrange(480), chance.randrange(len(data))))
            data[at] = chance.randrange(256)
        file = KdumpFile({})
        file.build = lambda data=data: bytes(data)
        try:
            dump = opened(file)
        except FormatError:
            continue
        for pfn in PAGES:
            with contextlib.suppress(FaultError):
                assert dump.read_phys(pfn * PAGE, PAGE) in right
