# SPDX-License-Identifier: GPL-2.0-or-later
"""What firmware writes: one partition, a backup of it, the disks of a set."""

from __future__ import annotations

import random
import struct
from itertools import permutations

import pytest
from support.corruption import try_all
from support.mksadump import write_disks, write_sadump

from gdbkdump.errors import FaultError, FaultReason, FormatError
from gdbkdump.formats import open_dump

PAGE = 4096
PAGES = {pfn: random.Random(pfn).randbytes(PAGE) for pfn in (1, 2, 3, 8, 9, 17, 40_000)}
PAGES[2] = bytes(PAGE)
EXCLUDED = [pfn * PAGE for pfn in (4, 5, 20)]
UNREAD = "what the firmware noted of the CPUs' registers is not read"
HEADER, CPUS, BITMAPS = PAGE, 2 * PAGE, 3 * PAGE


def items():
    return [(pfn * PAGE, page) for pfn, page in PAGES.items()]


@pytest.fixture
def single(tmp_path):
    return write_sadump(tmp_path / "sadump", items(), 40_001, excluded=EXCLUDED)


@pytest.fixture
def disks(single, tmp_path):
    paths = [tmp_path / f"disk{number}" for number in range(3)]
    write_disks(paths, single, [2, 3])
    return paths


def check(dump):
    assert (dump.machine, dump.is_flat, dump.is_incomplete) == (62, False, False)
    assert (dump.problems, list(dump.notes)) == ([UNREAD], [])
    assert [(e.paddr // PAGE, e.size // PAGE) for e in dump.extents] == [
        (1, 5), (8, 2), (17, 1), (20, 1), (40_000, 1),
    ]  # fmt: skip
    assert dump.excluded == 3 * PAGE
    for pfn, page in PAGES.items():
        assert dump.read_phys(pfn * PAGE, PAGE) == page
    assert (
        dump.read_phys(PAGE + 4000, 5000) == (PAGES[1] + PAGES[2] + PAGES[3])[4000:9000]
    )
    for pfn, why in ((4, FaultReason.EXCLUDED), (7, FaultReason.HOLE)):
        with pytest.raises(FaultError) as raised:
            dump.read_phys((pfn - 1) * PAGE + 4090, 10)
        wanted = pfn * PAGE if pfn == 4 else (pfn - 1) * PAGE + 4090
        assert (raised.value.address, raised.value.reason) == (wanted, why)
    with pytest.raises(FaultError, match="not RAM"):
        dump.read_phys(1 << 51, 8)
    dump.close()


def test_a_single_partition(single):
    dump = open_dump(single)
    assert dump.format == "sadump"
    check(dump)


def test_a_partition_is_larger_than_what_is_on_it(single):
    with single.open("ab") as file:
        file.write(b"\x55" * 100_000)
    check(open_dump(single))


def test_a_backup(tmp_path):
    path = tmp_path / "backup"
    check(open_dump(write_sadump(path, items(), 40_001, excluded=EXCLUDED, media=True)))


def test_the_disks_of_a_set_in_any_order(disks):
    for some in permutations(disks):
        dump = open_dump(*some)
        assert dump.format == "sadump, 3 disks"
        check(dump)


def test_not_all_disks_or_not_of_one_set(disks, single, tmp_path):
    alone, first, twice, others = (
        f"{disks[0]} is disk 1 of a set of 3, 1 named",
        f"{disks[1]} is disk 2 of a set: name all of them, once",
        f"{disks[1]} is disk 2 of a set: name all of them, once",
        "are not disks of one set",
    )
    other = tmp_path / "other"
    data = bytearray(disks[2].read_bytes())
    data[140] ^= 1  # of the time
    other.write_bytes(data)
    for paths, why in (
        (disks[:1], alone),
        (disks[1:], first),
        ([*disks, disks[1]], twice),
        ([*disks[:2], other], others),
        ([disks[0], single], "is all of a dump, and has no further disks"),
        ([single, single], "is all of a dump, and has no further disks"),
    ):
        with pytest.raises(FormatError) as raised:
            open_dump(*paths)
        assert why in str(raised.value)


def test_a_cut_partition(single):
    size = single.stat().st_size
    with single.open("r+b") as file:
        file.truncate(size - PAGE - 1)
    dump = open_dump(single)
    assert (dump.is_incomplete, dump.missing) == (True, PAGE + 1)
    assert dump.problems == ["the dump is truncated: 4097 bytes are missing", UNREAD]
    assert dump.read_phys(9 * PAGE, PAGE) == PAGES[9]
    for pfn in (17, 40_000):
        with pytest.raises(FaultError, match="lost"):
            dump.read_phys(pfn * PAGE, PAGE)
    dump.close()


@pytest.mark.parametrize(
    ("at", "new", "why"),
    [
        (BITMAPS + 2 * PAGE, b"\x7f", "the size of what was saved contradict"),
        (BITMAPS + 2 * PAGE + 1, b"\xe0", "the size of what was saved contradict"),
        (BITMAPS, b"\x60", "page bitmaps contradict each other"),
        (160, b"\1", "the size of what was saved contradict"),
        (3000, b"\1", "the partition header is damaged"),
        (HEADER, b"S", "the header of the dump is damaged"),
        (HEADER + 40, b"\0\2\0\0", "the header of the dump is damaged"),
        (HEADER + 88, b"\0" * 8, "for 0x0 page frames"),
        (HEADER + 88, b"\xff" * 8, "for 0xffffffffffffffff page frames"),
        (CPUS, b"\0\1\0\0", "128 bytes of a CPU's state"),
        (CPUS + 4 + 32, bytes(2048), "dumps of 32-bit kernels are not read"),
    ],
)
def test_what_is_refused(single, at, new, why):
    data = bytearray(single.read_bytes())
    data[at : at + len(new)] = new
    single.write_bytes(data)
    with pytest.raises(FormatError) as raised:
        open_dump(single)
    assert why in str(raised.value)


def test_damaged_sets(disks, tmp_path):
    # Of each disk each byte of what its headers say, and its end.
    whole = [disk.read_bytes() for disk in disks]
    folder = tmp_path / "damaged"
    folder.mkdir()
    cases = []
    for number, data in enumerate(whole):
        sizes = (*range(0, 168, 9), PAGE - 1, PAGE, PAGE + 4, 2 * PAGE, len(data) - 1)
        for size in sizes:
            cases.append((f"disk {number} cut at {size}", data[:size]))
        # Behind the partition's header the other disks have pages.
        of_set = (PAGE, PAGE + 4) if number == 0 else ()
        for at in (*range(0, 168, 3), *of_set):
            word = struct.unpack_from("<I", data, at)[0]
            for new in (0, 1, word ^ 1, 0xFFFFFFFF):
                changed = bytearray(data)
                struct.pack_into("<I", changed, at, new)
                cases.append((f"disk {number}, {new:#x} at {at}", bytes(changed)))
    for count in range(1, 4):
        for some in permutations(whole, count):
            for name, files in (("some", some), ("twice", (*some, some[0]))):
                cases.append((name, list(files)))
    full = [
        (name, data)
        if isinstance(data, list)
        else (
            name,
            [data if name.startswith(f"disk {i}") else whole[i] for i in range(3)],
        )
        for name, data in cases
    ]
    assert set(try_all(folder, full, PAGES)) == {"read", "lost", "refused"}
