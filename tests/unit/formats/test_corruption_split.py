# SPDX-License-Identifier: GPL-2.0-or-later
"""Split dumps whose files contradict each other, are cut, twice, lost or another's."""

from __future__ import annotations

import random
import re
from itertools import permutations

import pytest
from support.corruption import (
    PAGE,
    blotted,
    check,
    fields_of,
    overwritten,
    truncated,
    try_all,
)
from support.mkdiskdump import KdumpFile, flatten
from support.mkdump import ElfCore, Segment, note

from gdbkdump.errors import FaultError, FormatError
from gdbkdump.formats import open_dump

PFNS = (*range(10), 12, 13, *range(30, 36), 40, 41, *range(48, 60))
PAGES = {pfn: bytes(random.Random(pfn).choices(b"abcdefgh", k=PAGE)) for pfn in PFNS}
PAGES[35] = bytes(PAGE)
NOTES = note(b"CORE", 1, bytes(336)) + note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\n" * 9)
RANGES = ((0, 10), (10, 41), (41, 64))
SUB_HEADER, BITMAPS, TABLE = PAGE, 3 * PAGE, 5 * PAGE


def part(start, end, pages=PAGES, **changes):
    changes = {"excluded": [10, 11, 50 + 10], "notes": NOTES} | changes
    return KdumpFile(pages, split=(start, end), **changes).build()


def parts(*ranges, **changes):
    return [part(*each, **changes) for each in ranges or RANGES]


def single_damages(number, data):
    """Yield what was done to one of the files, and what it is then."""
    fields = {"version": (8, 4), "time": (408, 8)}
    names = "status block_size sub_hdr_size bitmap_blocks max_mapnr"
    fields |= fields_of(424, names, "IIIII")
    names = (
        "phys_base level split start end info info_size note note_size erased"
        " erased_size start_64 end_64 max_64"
    )
    fields |= fields_of(SUB_HEADER, names, "Qii" + "Q" * 11)
    first = sum(pfn < RANGES[number][0] for pfn in PFNS) if number else 0
    count = sum(RANGES[number][0] <= pfn < RANGES[number][1] for pfn in PFNS)
    for index in (0, 3, count - 1):
        names = " ".join(f"{name}-{index}" for name in ("offset", "size", "flags"))
        fields |= fields_of(TABLE + 24 * index, names, "QII")
    areas = {
        "the names": (12, 100), "the sub header": (SUB_HEADER, 104),
        "the first bitmap": (BITMAPS, 8), "the second bitmap": (BITMAPS + PAGE, 8),
        "the descriptors": (TABLE, 24 * count), "the room for all": (TABLE, 24 * 34),
    }  # fmt: skip
    end = TABLE + 24 * len(PFNS)
    edges = {
        "the header": 464, "the block": PAGE, "the sub header": PAGE + 104,
        "the bitmaps": BITMAPS, "half": BITMAPS + PAGE, "the descriptors": TABLE,
        "the used ones": TABLE + 24 * count, "the pages": end, "one": end + 100,
        "the end": len(data),
    }  # fmt: skip
    yield from truncated(data, edges)
    yield from overwritten(data, fields)
    yield from blotted(data, areas)
    # A page more or less, in its own range and in those of the others.
    for pfn in {0, 9, 10, 12, 20, 35, 40, 41, 47, 59, first}:
        for half in (0, PAGE):
            changed = bytearray(data)
            changed[BITMAPS + half + (pfn >> 3)] ^= 1 << (pfn & 7)
            yield f"bit {pfn} of the bitmap at {half}", bytes(changed)
    # As many pages, but others, which only the other files can tell.
    for pfn, other in ((9, 10), (12, 11), (59, 60)):
        changed = bytearray(data)
        for each in (pfn, other):
            changed[BITMAPS + PAGE + (each >> 3)] ^= 1 << (each & 7)
        yield f"page {other} for page {pfn}", bytes(changed)


@pytest.mark.parametrize("number", range(3))
def test_one_file_is_damaged(number, tmp_path):
    whole = parts()
    assert whole[number][432:440] == b"\2\0\0\0\2\0\0\0"  # so bitmaps are there
    assert try_all(tmp_path, [("nothing", whole)], PAGES) == {"read": 1}
    cases = []
    for what, data in single_damages(number, whole[number]):
        files = [*whole[:number], data, *whole[number + 1 :]]
        cases.append((f"file {number}: {what}", files))
        # As the first that is named, too, which is where the bitmap of RAM is read.
        cases.append((f"file {number} first: {what}", [data, *files]))
        del cases[-1][1][number + 1]
    assert len(cases) >= 60
    assert set(try_all(tmp_path, cases, PAGES)) == {"read", "lost", "refused"}


def another(**changes):
    """A dump of other memory, of the same machine and the same size."""
    pages = {pfn: page[::-1] for pfn, page in PAGES.items()}
    return parts(pages=pages, **changes)


def contradictions():
    """Yield sets that no makedumpfile writes: what, the files, what comes of it."""
    a, b, c = parts()
    for some in permutations((a, b, c)):
        yield "in another order", some, "read"
    for some in ((a,), (b,), (c,), (a, b), (b, a), (a, c), (c, b)):
        yield f"{len(some)} of 3", some, "lost"
    for some in ((a, a), (a, b, b), (a, b, c, c), (c, c, b, a), (a, b, c, a, b, c)):
        yield "one twice", some, "refused"
    for ranges in (
        [(0, 20), (10, 41), (41, 64)], [(0, 10), (9, 41), (41, 64)],
        [(0, 64), (10, 41), (41, 64)], [(0, 10), (10, 64), (10, 41)],
    ):  # fmt: skip
        yield "that overlap", parts(*ranges), "refused"
    for ranges in (
        [(0, 9), (10, 41), (41, 64)], [(0, 9), (13, 30), (41, 64)],
        [(1, 10), (10, 41), (41, 60)],
    ):  # fmt: skip
        yield "with a gap", parts(*ranges), "lost"
    yield "with an empty one", parts((0, 30), (30, 30), (30, 64), (64, 64)), "read"
    yield "all in one", parts((0, 64), (64, 64), (64, 64)), "read"
    names = (b"Linux", b"other", b"6.1.0-test", b"#1 SMP", b"x86_64", b"(none)")
    for changes in (
        {"version": 5}, {"max_mapnr": 65}, {"max_mapnr": 80}, {"dump_level": 1},
        {"utsname": names}, {"block_size": 8192},
    ):  # fmt: skip
        for number, each in enumerate(RANGES):
            files = [a, b, c]
            pages = (
                {pfn: PAGES[pfn] * 2 for pfn in PAGES}
                if ("block_size" in changes)
                else PAGES
            )
            files[number] = part(*each, pages=pages, **changes)
            yield f"file {number} with {changes}", files, "refused"
    whole = KdumpFile(PAGES, excluded=[10, 11, 60], notes=NOTES).build()
    for files in ((a, b, whole), (whole, a), (whole, whole)):
        yield "with one that is all of a dump", files, "refused"
    for time in (0, 5, 1 << 40):
        for number, data in enumerate(another(fields=[(408, "<q", time)])):
            files = [a, b, c]
            files[number] = data
            yield f"with file {number} of another dump", files, "refused"
    for number in range(3):
        for data in (b"", b"KDUMP   ", bytes(9000), b"\x7fELF" + bytes(9000)):
            files = [a, b, c]
            files[number] = data
            yield f"with {data[:8]!r} for file {number}", files, "refused"
        files = [a, b, c]
        files[number] = ElfCore([Segment(0, bytes(PAGE))], NOTES).build()
        yield f"with an ELF core for file {number}", files, "refused"


def test_files_that_contradict_each_other(tmp_path):
    cases = list(contradictions())
    assert len(cases) >= 60
    for what, files, outcome in cases:
        assert try_all(tmp_path, [(what, files)], PAGES) == {outcome: 1}, what


def test_damaged_files_beside_the_one_that_was_named(tmp_path):
    # Those are looked for, and must not take it along.
    whole = parts()
    for number in (1, 2):
        for what, data in single_damages(number, whole[number]):
            files = [*whole]
            files[number] = data
            for name, each in zip(
                ("vmcore1", "vmcore2", "vmcore3"), files, strict=True
            ):
                (tmp_path / name).write_bytes(each)
            assert check([tmp_path / "vmcore1"], PAGES) in ("read", "lost"), what
            first = {pfn: PAGES[pfn] for pfn in range(10)}
            assert check([tmp_path / "vmcore1"], first) == "read", what


def test_what_was_left_out_is_said(tmp_path):
    for number, data in enumerate(parts()):
        (tmp_path / f"vmcore{number}").write_bytes(data)
    with (tmp_path / "vmcore2").open("r+b") as file:
        file.seek(BITMAPS + PAGE)
        file.write(b"\xfe")
    dump = open_dump(tmp_path / "vmcore0")
    assert re.match("the files beside it are left out, as .*vmcore2", dump.problems[0])
    assert "no file with pages 0xa to 0x40 was given" in dump.problems[1]
    with pytest.raises(FaultError, match="in another file of the split dump"):
        dump.read_phys(12 * PAGE, 1)
    dump.close()
    with pytest.raises(FormatError, match="contradict each other"):
        open_dump(tmp_path / "vmcore2")


def flat(data):
    records = [(at, data[at : at + 5000]) for at in range(0, len(data), 5000)]
    return flatten(records)


def test_flattened_files_of_a_set(tmp_path):
    whole = parts()
    streams = [flat(data) for data in whole]
    assert try_all(tmp_path, [("flattened", streams)], PAGES) == {"read": 1}
    cases = []
    for number in range(3):
        mixed = [*whole]
        mixed[number] = streams[number]
        cases.append((f"file {number} alone flattened", mixed))
        edges = {"the header": 4096, "a record": 4096 + 5016 * 2, "the end": 29_000}
        for cut in truncated(streams[number], edges):
            mixed = [*streams]
            mixed[number] = cut.data
            cases.append((f"file {number} {cut.what}", mixed))
        at = 4096
        fields = {f"offset {i}": (at + 5016 * i, 8) for i in range(5)}
        fields |= {f"size {i}": (at + 5016 * i + 8, 8) for i in range(5)}
        for damage in overwritten(streams[number], fields, "big"):
            mixed = [*streams]
            mixed[number] = damage.data
            cases.append((f"file {number} {damage.what}", mixed))
    assert set(try_all(tmp_path, cases, PAGES)) == {"read", "lost", "refused"}
