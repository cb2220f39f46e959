# SPDX-License-Identifier: GPL-2.0-or-later
"""Each format, damaged in a hundred ways: the right bytes or one clear error."""

from __future__ import annotations

import random
import struct
import sys

import pytest
from support.corruption import PAGE, blotted, fields_of, overwritten, truncated, try_all
from support.mkdiskdump import KdumpFile, flatten
from support.mkdump import ElfCore, Segment, note
from support.mklkcd import write_lkcd
from support.mksadump import write_sadump


def page(seed):
    chance = random.Random(seed)
    return bytes(chance.choices(b"abcdefgh", k=PAGE))


# The first half is packed by zlib, the rest is as it was; one page is of zeros.
PAGES = {pfn: page(pfn) for pfn in (*range(8), 12, 13, 40, 41)}
PAGES |= {pfn: random.Random(pfn).randbytes(PAGE) for pfn in range(48, 56)}
PAGES[3] = bytes(PAGE)
M64 = (1 << 64) - 1
NOTES = note(b"CORE", 1, bytes(336)) + note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\n" * 9)


def elf():
    segments = [
        Segment(pfn * PAGE, data, vaddr=0xFFFF888000000000 + pfn * PAGE)
        for pfn, data in PAGES.items()
    ]
    return elf_core(segments, NOTES)


def elf_core(segments, notes):
    data = ElfCore(segments, notes).build()
    names = "type machine version entry phoff shoff flags ehsize phentsize phnum"
    fields = fields_of(16, names, "HHIQQQIHHH")
    edges = {"the header": 64, "the notes": 64 + 56, "the end": len(data)}
    header = ("type", "flags", "offset", "vaddr", "paddr", "filesz", "memsz", "align")
    for number in (0, 1, 2, len(segments)):
        start = 64 + 56 * number
        names = " ".join(f"{name}-{number}" for name in header)
        fields |= fields_of(start, names, "IIQQQQQQ")
        edges[f"program header {number}"] = start
    start = struct.unpack_from("<Q", data, 64 + 8)[0]
    fields |= fields_of(start, "namesz descsz note-type", "III")
    # Where the file itself says that memory is, it is: these tell no lie that shows.
    fields = {
        name: place
        for name, place in fields.items()
        if not name.startswith(("offset", "paddr", "flags"))
    }
    return data, fields, {"the notes": (start, len(notes))}, edges


def qemu():
    """As dump-guest-memory writes it: physical addresses as virtual ones."""
    runs = [Segment(pfn * PAGE, b"", vaddr=pfn * PAGE) for pfn in (0, 12, 40, 48)]
    for pfn, data in sorted(PAGES.items()):
        run = max((run for run in runs if run.paddr <= pfn * PAGE), key=_paddr)
        run.data += data
    # Of the video card, which is not stored.
    absent = Segment(0xFD000000, b"", vaddr=0xFD000000, size=0x1000000, offset=-1 & M64)
    notes = b"".join(note(b"CORE", 1, bytes(336)) for _ in range(2))
    cpu = struct.pack("<II", 1, 440).ljust(440, b"\x11")
    notes += b"".join(note(b"QEMU", 0, cpu) for _ in range(2))
    return elf_core([*runs, absent], notes)


def _paddr(segment):
    return segment.paddr


def lime():
    pieces = []
    at = 0
    fields, edges = {}, {}
    for number, (first, size) in enumerate(((0, 8), (12, 2), (40, 2), (48, 8))):
        memory = b"".join(PAGES[pfn] for pfn in range(first, first + size))
        last = (first + size) * PAGE - 1
        head = struct.pack("<IIQQ8x", 0x4C694D45, 1, first * PAGE, last)
        names = " ".join(f"{name}-{number}" for name in ("magic", "version", "first",
                                                          "last"))  # fmt: skip
        fields |= fields_of(at, names, "IIQQ")
        edges |= {f"range {number}": at, f"its memory {number}": at + len(head)}
        pieces.append(head + memory)
        at += len(pieces[-1])
    # Nothing after it tells that the last range began elsewhere.
    del fields["first-3"]
    data = b"".join(pieces)
    areas = {"the first header": (0, 32), "the second": (32 + 8 * PAGE, 32)}
    return data, fields, areas, edges | {"the end": len(data)}


def lkcd(directory):
    pages = [(pfn * PAGE, page) for pfn, page in sorted(PAGES.items())]
    data = write_lkcd(directory / "lkcd", pages, compress=True).read_bytes()
    (directory / "lkcd").unlink()
    fields = fields_of(8, "version header_size level page_size", "IIII")
    del fields["level"]
    fields |= fields_of(714, "compress", "I")
    fields |= fields_of(734, "first-page", "Q")
    edges = {"the header": 742, "the pages": 65536, "the end": len(data)}
    at = 65536
    for number in range(len(pages) + 1):
        if number in (0, 9, len(pages)):
            names = " ".join(f"{name}-{number}" for name in ("address", "size", "flag"))
            fields |= fields_of(at, names, "QII")
            edges[f"page {number}"] = at
        at += 16 + struct.unpack_from("<I", data, at + 8)[0]
    areas = {"the header": (8, 64), "a page's head": (65536, 16), "a page": (65552, 64)}
    return data, fields, areas, edges


def sadump(directory):
    pages = [(pfn * PAGE, page) for pfn, page in sorted(PAGES.items())]
    path = write_sadump(directory / "sadump", pages, 64, excluded=[8 * PAGE, 9 * PAGE])
    data = path.read_bytes()
    path.unlink()
    names = "enable reboot compress recycle"
    fields = fields_of(8, names, "IIII") | fields_of(152, "disk pad used", "IIQ")
    fields |= fields_of(168, "magic", "I") | fields_of(PAGE - 4, "last-magic", "I")
    fields |= fields_of(PAGE + 8, "version", "I")
    names = "block_size extra sub ram dumped max total device written current cpus"
    fields |= fields_of(PAGE + 40, names, "I" * 11) | fields_of(
        PAGE + 88, "max_64", "Q"
    )
    fields |= fields_of(2 * PAGE, "states", "I")
    areas = {
        "the ids": (88, 48), "the magics": (168, 64), "the header": (PAGE, 120),
        "the CPUs": (2 * PAGE, PAGE), "RAM": (3 * PAGE, 8), "dumped": (4 * PAGE, 8),
    }  # fmt: skip
    names = ("the partition", "the header", "the CPUs", "RAM", "dumped", "pages")
    edges = {name: (number + 1) * PAGE for number, name in enumerate(names)}
    return data, fields, areas, edges | {"the end": len(data)}


def kdump(**changes):
    data = KdumpFile(PAGES, excluded=[8, 9], notes=NOTES, **changes).build()
    names = "status block_size sub_hdr_size bitmap_blocks max_mapnr"
    fields = {"version": (8, 4)} | fields_of(424, names, "IIIII")
    names = (
        "phys_base level split start end info info_size note note_size erased"
        " erased_size start_64 end_64 max_64"
    )
    fields |= fields_of(PAGE, names, "Qii" + "Q" * 11)
    bitmaps = (1 + struct.unpack_from("<I", data, 432)[0]) * PAGE
    table = bitmaps + 2 * PAGE
    for number in (0, 3, 9, len(PAGES) - 1):
        names = " ".join(f"{name}-{number}" for name in ("offset", "size", "flags"))
        fields |= fields_of(table + 24 * number, names, "QII")
    end = table + 24 * len(PAGES)
    areas = {
        "the sub header": (PAGE, 104), "a bitmap": (bitmaps, 8),
        "the second bitmap": (bitmaps + PAGE, 8), "the notes": (2 * PAGE, len(NOTES)),
        "the descriptors": (table, end - table), "a descriptor": (table + 48, 24),
        "the first page": (end, 64),
    }  # fmt: skip
    edges = {
        "the header": 464, "the block": PAGE, "the sub header": PAGE + 104,
        "the notes": 2 * PAGE + 40, "the bitmaps": bitmaps, "half": bitmaps + PAGE,
        "the descriptors": table, "one of them": table + 24, "the pages": end,
        "one page": end + 100, "the end": len(data) - 50,
    }  # fmt: skip
    return data, fields, areas, edges


def flattened(data):
    records = [(at, data[at : at + 5000]) for at in range(0, len(data), 5000)]
    records.append(records.pop(1))  # makedumpfile writes headers again in the end
    stream = flatten(records)
    fields = {"type": (16, 8), "version": (24, 8)}
    edges = {
        "the header": 4096,
        "the end": len(stream),
        "the end mark": len(stream) - 16,
    }
    at = 4096
    for number, (_, piece) in enumerate(records):
        if number in (0, 1, 2, len(records) - 1):
            fields |= {f"offset {number}": (at, 8), f"size {number}": (at + 8, 8)}
            edges[f"record {number}"] = at
            edges[f"data of record {number}"] = at + 16
        at += 16 + len(piece)
    fields["end mark"] = (len(stream) - 16, 8)
    return stream, fields, {"a record's head": (4096, 16)}, edges


def damages(kind, directory):
    make = {
        "elf": elf,
        "qemu": qemu,
        "lime": lime,
        "lkcd": lambda: lkcd(directory),
        "sadump": lambda: sadump(directory),
        "kdump": kdump,
        "flattened-elf": lambda: flattened(elf()[0]),
        "flattened-kdump": lambda: flattened(kdump()[0]),
    }[kind]
    data, fields, areas, edges = make()
    order = "big" if kind.startswith("flattened") else "little"
    return data, [
        *truncated(data, edges),
        *overwritten(data, fields, order),
        *blotted(data, areas),
    ]


KINDS = (
    "elf",
    "qemu",
    "kdump",
    "flattened-elf",
    "flattened-kdump",
    "lime",
    "lkcd",
    "sadump",
)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged(kind, tmp_path, monkeypatch):
    # Of LKCD each case is a process, and this one starts at once.
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    data, cases = damages(kind, tmp_path)
    assert try_all(tmp_path, [("nothing", [data])], PAGES) == {"read": 1}
    assert len(cases) >= 60
    outcomes = try_all(tmp_path, ((case.what, [case.data]) for case in cases), PAGES)
    # Some damage is harmless, some is not, some is fatal.
    assert set(outcomes) == {"read", "lost", "refused"}


def test_bare_memory_that_is_cut_or_said_to_be_elsewhere(tmp_path):
    # It has no header: what can be wrong is where it ends, and what one says of it.
    data = b"".join(PAGES.get(pfn, bytes(PAGE)) for pfn in range(64))
    assert try_all(tmp_path, [("nothing", [data])], PAGES, base=0) == {"read": 1}
    sizes = {0, 1, 511, PAGE, 12 * PAGE + 1, 40 * PAGE, 56 * PAGE - 1}
    cases = [(f"cut at {size}", [data[:size]]) for size in sizes]
    outcomes = try_all(tmp_path, cases, PAGES, base=0)
    assert outcomes == {"lost": len(cases) - 1, "refused": 1}
    moved = {pfn + 0x100: page for pfn, page in PAGES.items()}
    cases.append(("whole", [data]))
    for base, outcome in ((0x100 * PAGE, "read"), (1 << 52, "refused"), (-1, "refused"),
                          (M64, "refused"), ((1 << 52) - PAGE, "refused")):  # fmt: skip
        assert try_all(tmp_path, cases[-1:], moved, base=base) == {outcome: 1}
    for files in ([data, data], [data, b""]):
        assert try_all(tmp_path, [("two", files)], PAGES, base=0) == {"refused": 1}
