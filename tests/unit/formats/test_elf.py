# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF vmcores: what is there is read, what is damaged is said, nothing else happens."""

from __future__ import annotations

import random
import struct

import pytest
from support.mkdump import EHDR, PHDR, ElfCore, Segment, note

from gdbkdump.errors import FaultError, FaultReason, FormatError
from gdbkdump.formats import is_process_core, open_dump


@pytest.fixture
def opened(tmp_path):
    dumps = []

    def open_core(core, size=None):
        dump = open_dump(core.write(tmp_path / "vmcore", size))
        dumps.append(dump)
        return dump

    yield open_core
    for dump in dumps:
        dump.close()


def pattern(seed, size):
    return random.Random(seed).randbytes(size)


LOW, HIGH = pattern(1, 8192), pattern(2, 4096)


def core(**changes):
    segments = [
        Segment(0x1000, LOW, vaddr=0xFFFF888000001000),
        Segment(0x100000, HIGH, vaddr=0xFFFF888000100000),
    ]
    notes = note(b"CORE", 1, bytes(336)) + note(b"VMCOREINFO", 0, b"A=1\n")
    return ElfCore(segments, notes, **changes)


def reason(dump, paddr, size=1):
    with pytest.raises(FaultError) as caught:
        dump.read_phys(paddr, size)
    return caught.value.reason, caught.value.address


def test_memory_is_where_the_headers_say(opened):
    dump = opened(core())
    assert dump.read_phys(0x1000, 8192) == LOW
    assert dump.read_phys(0x1FFF, 2) == LOW[0xFFF:0x1001]
    assert dump.read_phys(0x100FFF, 1) == HIGH[-1:]
    assert (dump.machine, dump.missing, dump.excluded, dump.problems) == (62, 0, 0, [])
    assert [(n.name, n.type, len(n.desc)) for n in dump.notes] == [
        (b"CORE", 1, 336),
        (b"VMCOREINFO", 0, 4),
    ]


def test_what_is_no_ram_is_a_hole(opened):
    dump = opened(core())
    assert reason(dump, 0x0) == (FaultReason.HOLE, 0)
    assert reason(dump, 0x2FFF, 2) == (FaultReason.HOLE, 0x3000)
    assert reason(dump, 1 << 60) == (FaultReason.HOLE, 1 << 60)


def test_beyond_filesz_is_excluded_not_zero(opened):
    dump = opened(ElfCore([Segment(0x1000, LOW[:100], size=4096)]))
    assert dump.read_phys(0x1000, 100) == LOW[:100]
    assert reason(dump, 0x1000, 101) == (FaultReason.EXCLUDED, 0x1064)
    assert dump.excluded == 4096 - 100


def test_a_file_offset_leads_to_the_bytes(opened):
    dump = opened(core())
    offset, size = dump.file_range(0x100010)
    assert size == 4096 - 0x10
    assert dump.path.read_bytes()[offset : offset + size] == HIGH[0x10:]
    assert dump.file_range(0x3000) is None


def test_overlapping_segments_agree_on_the_first(opened):
    # The image is in the dump twice: by its own PT_LOAD and in the direct map's.
    inner = Segment(0x2000, HIGH, vaddr=0xFFFFFFFF81000000)
    outer = Segment(0x1000, pattern(3, 3 * 4096))
    dump = opened(ElfCore([inner, outer]))
    assert dump.read_phys(0x1000, 0x1000) == outer.data[:0x1000]
    assert len(dump.read_phys(0x1000, 3 * 4096)) == 3 * 4096
    assert dump.read_phys(0x3000, 0x1000) == outer.data[0x2000:]


def test_a_segment_within_a_longer_one_hides_nothing_behind_it(opened):
    outer = Segment(0x1000, pattern(4, 4 * 4096))
    inner = Segment(0x2000, outer.data[0x1000:0x2000])
    behind = Segment(0x5000, HIGH)
    dump = opened(ElfCore([inner, outer, behind]))
    assert dump.read_phys(0x1000, 5 * 4096) == outer.data + HIGH


def test_what_was_excluded_counts_once(opened):
    # The kernel image is in the direct map as well.
    low = Segment(0x1000, LOW, size=0x8000)
    image = Segment(0x2000, LOW[0x1000:], size=0x7000)
    dump = opened(ElfCore([image, low, Segment(0x20000, HIGH)]))
    assert dump.excluded == 0x8000 - len(LOW)
    for paddr in (0x1000 + len(LOW), 0x8FFF):
        assert reason(dump, paddr) == (FaultReason.EXCLUDED, paddr)
    assert reason(dump, 0x9000) == (FaultReason.HOLE, 0x9000)


def test_more_headers_than_e_phnum_can_count(opened):
    segments = [Segment(i << 12, bytes([i & 255]) * 16) for i in range(70000)]
    dump = opened(ElfCore(segments, xnum=70000))
    assert len(dump.extents) == 70000
    assert dump.read_phys(69999 << 12, 16) == bytes([69999 & 255]) * 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": 2}, "an executable"),
        ({"type": 3}, "a shared object"),
        ({"type": 77}, "ELF type 77"),
        ({"ident": b"\x7fELF\x01\x01\x01" + bytes(9)}, "64-bit little-endian"),
        ({"ident": b"\x7fELF\x02\x02\x01" + bytes(9)}, "64-bit little-endian"),
        ({"phentsize": 0}, "program headers of 0 bytes"),
        ({"phentsize": 32}, "program headers of 32 bytes"),
        ({"phnum": 0}, "0 program headers"),
        ({"phoff": 1 << 40}, "program headers are cut"),
        ({"phoff": (1 << 64) - 1}, "program headers are cut"),
        ({"xnum": 0xFFFFFFFF}, "4294967295 program headers"),
        ({"xnum": 0}, "0 program headers"),
    ],
)
def test_headers_that_cannot_be_are_refused(opened, changes, message):
    with pytest.raises(FormatError, match=message):
        opened(core(**changes))


def test_a_header_that_counts_too_much_is_told(opened):
    # The bytes after the table are read as headers of no known type.
    dump = opened(core(phnum=4))
    assert dump.read_phys(0x1000, 16) == LOW[:16]


@pytest.mark.parametrize(
    "segment",
    [
        Segment(0x1000, b"", file_size=1 << 63, size=1 << 63),
        Segment((1 << 64) - 4096, b"x" * 4096),
        Segment(0x1000, b"x", file_size=2, size=1),
        Segment(1 << 52, b"x"),
    ],
)
def test_absurd_segments_are_told_and_left_out(opened, segment):
    dump = opened(ElfCore([segment, Segment(0x100000, HIGH)]))
    assert [extent.paddr for extent in dump.extents] == [0x100000]
    assert any("absurd and ignored" in problem for problem in dump.problems)
    assert dump.read_phys(0x100000, 4096) == HIGH


def test_a_segment_behind_the_end_of_the_file_is_missing(opened):
    dump = opened(ElfCore([Segment(0x1000, LOW, offset=1 << 40)]))
    assert reason(dump, 0x1000)[0] is FaultReason.MISSING
    assert dump.missing == len(LOW)


def test_notes_of_absurd_size_are_told(opened):
    dump = opened(core(notes_size=1 << 40))
    assert any("absurd" in problem for problem in dump.problems)
    assert dump.notes[1].desc == b"A=1\n"


def test_truncation_says_how_much_and_fails_only_there(opened):
    whole = core().build()
    dump = opened(core(), len(whole) - 5000)
    # The second segment of 4096 bytes is gone, and 904 of the first.
    assert dump.missing == 5000
    assert "truncated" in dump.problems[0]
    assert dump.read_phys(0x1000, 8192 - 904) == LOW[:-904]
    assert reason(dump, 0x1000, 8192) == (FaultReason.MISSING, 0x3000 - 904)
    assert reason(dump, 0x100000)[0] is FaultReason.MISSING


def edges():
    whole = core().build()
    marks = {0, 1, 4, 16, 63, 64, len(whole)}
    for number in range(4):
        marks |= {64 + number * PHDR.size + delta for delta in (-1, 0, 1)}
    first = struct.unpack_from("<Q", whole, 64 + 8)[0]
    marks |= {first + delta for delta in range(64)}
    for at in range(64, 64 + 3 * PHDR.size, PHDR.size):
        offset, size = struct.unpack_from("<8xQ16xQ", whole, at)
        marks |= {offset - 1, offset, offset + 1, offset + size - 1, offset + size}
    return sorted(marks)


@pytest.mark.parametrize("size", edges())
def test_cut_at_every_edge_it_is_refused_or_read_in_part(opened, size):
    whole = core().build()
    try:
        dump = opened(core(), size)
    except FormatError:
        assert size < EHDR.size + PHDR.size
        return
    for paddr, data in ((0x1000, LOW), (0x100000, HIGH)):
        try:
            assert dump.read_phys(paddr, len(data)) == data
        except FaultError as fault:
            # Its header may be what is cut.
            assert fault.reason in (FaultReason.MISSING, FaultReason.HOLE)
            assert size < len(whole)


def test_random_damage_never_surprises(opened):
    whole = core().build()
    chance = random.Random(7)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data) if chance.random() < 0.2 else 300)] = (
                chance.randrange(256)
            )
        damaged = core()
        damaged.build = lambda data=data: bytes(data)
        try:
            dump = opened(damaged)
            dump.read_phys(0x1000, 64)
        except (FormatError, FaultError):
            pass


def test_what_cannot_be_opened_says_so(tmp_path):
    with pytest.raises(FormatError, match="No such file"):
        open_dump(tmp_path / "none")
    with pytest.raises(FormatError, match="directory"):
        open_dump(tmp_path)


def test_virtual_addresses_of_a_hypervisor_are_not_used(opened):
    # Physical ones stand in their place; and memory that no RAM is behind is listed.
    segments = [Segment(0x1000, b"x" * 4096, vaddr=0x1000, size=8192)]
    dump = opened(ElfCore(segments, note(b"QEMU", 0, bytes(440))))
    (extent,) = dump.extents
    assert (extent.vaddr, extent.paddr, extent.size) == (None, 0x1000, 4096)
    assert dump.excluded == 0
    with pytest.raises(FaultError) as raised:
        dump.read_phys(0x2000, 1)
    assert raised.value.reason is FaultReason.HOLE


def kcore_note(name=b"vmlinux"):
    return note(b"CORE", 3, bytes(40) + name.ljust(16, b"\0") + bytes(80))


def test_kcore_is_ram_and_what_leads_to_ram(opened):
    # fs/proc/kcore.c gives vmalloc and vmemmap no physical address.
    segments = [
        Segment(2**64 - 1, b"v" * 4096, vaddr=0xFFFFC90000000000),
        Segment(0x1000, LOW, vaddr=0xFFFF888000001000),
        Segment(2**64 - 1, b"m" * 4096, vaddr=0xFFFFEA0000000000),
    ]
    dump = opened(ElfCore(segments, kcore_note()))
    assert [(e.paddr, e.size) for e in dump.extents] == [(0x1000, 8192)]
    assert dump.read_phys(0x1000, 8192) == LOW
    assert dump.format == "live kernel (/proc/kcore)"
    assert [line.partition(":")[0] for line in dump.problems] == ["the kernel runs"]


def test_a_netdump_is_an_elf_core(opened):
    # One PT_LOAD of all memory, aligned to pages, holes in it as zeros; its notes began
    # as a copy of those of /proc/kcore.
    notes = note(b"CORE", 1, bytes(336)) + kcore_note()
    dump = opened(ElfCore([Segment(0, LOW, vaddr=0xFFFF810000000000)], notes))
    assert (dump.format, dump.machine) == ("ELF vmcore", 62)
    assert dump.problems == []
    assert dump.read_phys(0, len(LOW)) == LOW


@pytest.mark.parametrize("name", [b"bash", b"vmlinux-gtk"])
def test_the_core_of_a_program_is_not_taken_for_kcore(opened, name):
    dump = opened(ElfCore([Segment(0x1000, LOW)], kcore_note(name)))
    assert (dump.format, dump.problems) == ("ELF vmcore", [])


@pytest.mark.parametrize("owner", [b"Xen", b"VMCOREINFO_XEN"])
def test_dumps_of_xen_are_refused(opened, owner):
    with pytest.raises(FormatError, match="Xen hypervisor"):
        opened(ElfCore([Segment(0x1000, b"x")], note(owner, 0x1000001, bytes(80))))


def test_cores_of_xen_guests_are_refused(tmp_path):
    data = bytearray(ElfCore([Segment(0x1000, b"x")], phnum=0).build())
    struct.pack_into("<Q", data, 40, 64)  # e_shoff
    path = tmp_path / "vmcore"
    path.write_bytes(data)
    with pytest.raises(FormatError, match="sections only, as Xen's dump-core"):
        open_dump(path)


def three(**changes):
    """Return a core of three runs of the direct map, and their contents."""
    contents = {0x1000 * (i * 16 + 1): pattern(20 + i, 8192) for i in range(3)}
    segments = [
        Segment(at, data, vaddr=0xFFFF888000000000 + at)
        for at, data in contents.items()
    ]
    return segments, contents


def check_only_one_is_lost(dump, contents, lost):
    assert "program headers contradict the others" in dump.problems[0]
    for at, data in contents.items():
        if at in lost:
            assert reason(dump, at)[0] in (FaultReason.CORRUPT, FaultReason.HOLE)
        else:
            assert dump.read_phys(at, 8192) == data


@pytest.mark.parametrize("shift", [-8192, -100, 5000, 8192])
def test_an_offset_that_leads_into_another_run(opened, shift):
    # Which of the two is right nothing tells.
    segments, contents = three()
    segments[1].offset = len(ElfCore(segments).build()) - 2 * 8192 + shift
    dump = opened(ElfCore(segments))
    where = list(contents)
    others = where[1:] if shift > 0 else where[:2]
    check_only_one_is_lost(dump, contents, others)


def test_an_offset_that_leads_into_the_headers(opened):
    segments, contents = three()
    vaddr = 0xFFFF888000100000
    segments.append(Segment(0x100000, b"", vaddr, size=40, file_size=40, offset=32))
    dump = opened(ElfCore(segments))
    check_only_one_is_lost(dump, contents, [])
    assert reason(dump, 0x100000) == (FaultReason.CORRUPT, 0x100000)


@pytest.mark.parametrize("name", ["paddr", "vaddr"])
def test_a_run_that_is_mapped_unlike_the_others(opened, name):
    segments, contents = three()
    setattr(segments[1], name, getattr(segments[1], name) + 0x3000)
    dump = opened(ElfCore(segments))
    check_only_one_is_lost(dump, contents, [list(contents)[1]])
    # Where it claims to be now, there is nothing either.
    assert reason(dump, segments[1].paddr)[0] is FaultReason.CORRUPT


def test_the_image_and_memory_told_of_twice_are_no_contradiction(opened):
    segments, contents = three()
    image = Segment(0x11000, list(contents.values())[1], vaddr=0xFFFFFFFF81000000)
    again = Segment(0x1000, b"", vaddr=0xFFFF888000001000, size=8192, file_size=8192)
    core = ElfCore([*segments, image, again])
    again.offset = len(core.build()) - 4 * 8192
    dump = opened(core)
    assert dump.problems == []
    for at, data in contents.items():
        assert dump.read_phys(at, 8192) == data


def test_cores_of_processes_are_told_from_dumps(tmp_path):
    kernel = core().write(tmp_path / "vmcore")
    assert not is_process_core(kernel)
    # fs/binfmt_elf.c: no physical addresses; a tool may invent some, but no auxv.
    process = ElfCore([Segment(0, LOW, vaddr=0x400000)], note(b"CORE", 1, bytes(336)))
    assert is_process_core(process.write(tmp_path / "core"))
    notes = core().notes + note(b"CORE", 6, bytes(16))
    segments = [Segment(0x1000, LOW, vaddr=0x400000)]
    assert is_process_core(ElfCore(segments, notes).write(tmp_path / "gcore"))
    # Of this one the memory is lost, and with it what tells.
    (tmp_path / "short").write_bytes(kernel.read_bytes()[:0x200])
    assert not is_process_core(tmp_path / "short")
    for name, data in (("compressed", b"KDUMP   " + bytes(4096)), ("cut", b"\x7fELF")):
        (tmp_path / name).write_bytes(data)
        assert not is_process_core(tmp_path / name)
    assert not is_process_core(tmp_path / "missing")
