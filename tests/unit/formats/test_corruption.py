# SPDX-License-Identifier: GPL-2.0-or-later
"""Each format, damaged in a hundred ways: the right bytes or one clear error."""

from __future__ import annotations

import random
import struct
from collections import Counter

import pytest
from support.corruption import PAGE, blotted, check, overwritten, truncated
from support.mkdiskdump import KdumpFile, flatten
from support.mkdump import ElfCore, Segment, note


def page(seed):
    chance = random.Random(seed)
    return bytes(chance.choices(b"abcdefgh", k=PAGE))


# The first half is packed by zlib, the rest is as it was; one page is of zeros.
PAGES = {pfn: page(pfn) for pfn in (*range(8), 12, 13, 40, 41)}
PAGES |= {pfn: random.Random(pfn).randbytes(PAGE) for pfn in range(48, 56)}
PAGES[3] = bytes(PAGE)
NOTES = note(b"CORE", 1, bytes(336)) + note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\n" * 9)


def fields_of(start, names, code):
    """Return (offset, bytes) of the fields of a packed structure by name."""
    found = {}
    at = start
    for name, letter in zip(names.split(), code, strict=True):
        size = struct.calcsize(f"<{letter}")
        found[name] = (at, size)
        at += size
    return found


def elf():
    segments = [
        Segment(pfn * PAGE, data, vaddr=0xFFFF888000000000 + pfn * PAGE)
        for pfn, data in PAGES.items()
    ]
    data = ElfCore(segments, NOTES).build()
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
    return data, fields, {"the notes": (start, len(NOTES))}, edges


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


def damages(kind):
    make = {
        "elf": elf,
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


KINDS = ("elf", "kdump", "flattened-elf", "flattened-kdump")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged(kind, tmp_path):
    data, cases = damages(kind)
    path = tmp_path / "vmcore"
    path.write_bytes(data)
    assert check([path], PAGES) == "read"
    assert len(cases) >= 60
    outcomes = Counter()
    wrong = []
    for case in cases:
        path.write_bytes(case.data)
        try:
            outcomes[check([path], PAGES)] += 1
        except Exception as error:  # noqa: BLE001
            # All of them at once: one damage tells little of a reader.
            wrong.append(f"{case.what}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)
    # Some damage is harmless, some is not, some is fatal.
    assert set(outcomes) == {"read", "lost", "refused"}
