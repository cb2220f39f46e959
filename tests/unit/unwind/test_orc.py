# SPDX-License-Identifier: GPL-2.0-or-later
"""ORC: every version of its entries, and tables that are none."""

from __future__ import annotations

import struct

import pytest
from handmade import NEW, OLD, VERSIONS, Machine, Memory, OrcVersion

from gdbkdump.errors import CorruptError
from gdbkdump.memory.reader import Reader
from gdbkdump.unwind.orc import Base, Decoder, Orc, RowKind, Table


def decoder(version):
    usual = version.encode("call", "sp", 8) * 10
    return Decoder(version.layout(), usual + version.encode("call", "bp", 16))


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def version(request):
    return request.param


def test_calls(version):
    row = decoder(version).decode(version.encode("call", "sp", 8))
    assert row == (RowKind.CALL, Base.SP, 8, Base.UNDEFINED, 0, False)
    row = decoder(version).decode(version.encode("call", "bp", 16, "prev_sp", -16))
    assert row == (RowKind.CALL, Base.BP, 16, Base.PREV_SP, -16, False)
    row = decoder(version).decode(version.encode("call", "(sp)", 8, "bp", -32768))
    assert row == (RowKind.CALL, Base.SP_INDIRECT, 8, Base.BP, -32768, False)
    row = decoder(version).decode(version.encode("call", "(bp)", -8))
    assert row == (RowKind.CALL, Base.BP_INDIRECT, -8, Base.UNDEFINED, 0, False)
    row = decoder(version).decode(version.encode("call", "r10"))
    assert row.sp_base is Base.R10


def test_registers_of_exceptions(version):
    # Since 6.3 an entry says whether the address is exact, before its type did.
    entry = version.encode("regs", "sp", 16, signal=True)
    assert decoder(version).decode(entry) == (
        RowKind.REGS, Base.SP, 16, Base.UNDEFINED, 0, True,
    )  # fmt: skip
    row = decoder(version).decode(version.encode("partial", "sp", 8))
    assert (row.kind, row.sp_offset) == (RowKind.PARTIAL, 8)
    assert row.signal == ("signal" not in version.flags)


def test_ends(version):
    end = decoder(version).decode(version.encode("end"))
    assert end.kind is RowKind.END
    undefined = decoder(version).decode(version.encode("undefined"))
    # 4.14 had one way to say both.
    is_told = version.type_bits == 3 or "end" in version.flags
    assert undefined.kind is (RowKind.UNDEFINED if is_told else RowKind.END)


def test_what_no_version_has():
    strange = OrcVersion("?", 3, OLD, "signal")
    strange.kinds = [*"01234", "call"]
    with pytest.raises(CorruptError, match="no known meaning"):
        decoder(VERSIONS[3]).decode(strange.encode("call", "sp", 8))
    with pytest.raises(CorruptError, match="no known meaning"):
        decoder(VERSIONS[4]).decode(struct.pack("<hhH", 8, 0, 0x20D))


@pytest.mark.parametrize("entries", [b"", bytes(600), b"\xff" * 600])
def test_entries_that_show_no_numbering(entries):
    with pytest.raises(CorruptError, match="most entries start from register"):
        Decoder(VERSIONS[3].layout(), entries)


def test_the_numbering_is_told_by_the_stack_pointer():
    assert OLD["sp"] != NEW["sp"]
    for version in VERSIONS:
        assert decoder(version)._registers[version.numbers["sp"]] is Base.SP


def table(*addresses, count=None):
    memory, at = Memory(), 0x1000
    offsets = [a - (at + 4 * i) for i, a in enumerate(addresses)]
    memory.add(at, struct.pack(f"<{len(offsets)}i", *offsets))
    memory.add(0x8000, b"".join(bytes([i]) * 6 for i in range(len(offsets))))
    return Table(Reader(memory), at, 0x8000, count or len(offsets))


def test_look_ups():
    made = table(0x2000, 0x2010, 0x2030)
    assert made.find(0x1FFF) is None
    assert [made.find(pc)[0] for pc in (0x2000, 0x200F, 0x2010, 0x2030, 0x9999)] == [
        0, 0, 1, 2, 2,
    ]  # fmt: skip


def test_a_table_that_is_not_sorted():
    with pytest.raises(CorruptError, match="not sorted"):
        table(0x2000, 0x2008, 0x5000, 0x2010, 0x2020, 0x2030).find(0x2010)


def test_sections_that_touch_have_two_entries_for_one_address():
    # As in modules: one ends where the next one starts, which alone counts.
    made = table(0x2000, 0x2010, 0x2010, 0x2030)
    assert made.find(0x2010)[0] == 2
    assert [(start, end, data[0]) for start, end, data in made.entries()] == [
        (0x2000, 0x2010, 0), (0x2010, 0x2010, 1), (0x2010, 0x2030, 2),
        (0x2030, 1 << 64, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("count", [-1, 0, 1 << 30])
def test_an_absurd_count(count):
    with pytest.raises(CorruptError, match="a table of"):
        Table(Reader(Memory()), 0, 0, count)


def test_only_text_has_rows():
    machine = Machine()
    start = machine.function("f", "call", "sp", 16)
    orc = Orc(machine.kernel())
    assert orc.find(start + 8).sp_offset == 16
    assert orc.find(machine.symbols.by_name["_etext"]) is None
    assert orc.find(0) is None


def test_rows_are_of_text_alone():
    machine = Machine()
    start = machine.function("f", "call", "sp", 16)
    rows = list(Orc(machine.kernel()).kernel_rows())
    assert [(low, high, row.sp_offset) for low, high, row in rows] == [
        (start - 0x100, start, 8),
        (start, machine.symbols.by_name["_etext"], 16),
    ]
    machine.symbols.by_name["_etext"] = start
    assert len(list(Orc(machine.kernel()).kernel_rows())) == 1


def test_a_damaged_table_is_told_from_a_whole_one():
    made = table(0x2000, 0x2010, 0x2030)
    assert made.digest() == table(0x2000, 0x2010, 0x2030).digest()
    assert made.digest() != table(0x2000, 0x2018, 0x2030).digest()
    memory = made._reader.memory
    memory.parts[0x8000][3] ^= 1
    assert made.digest() == table(0x2000, 0x2010, 0x2030).digest()  # was read whole
    again = Table(Reader(memory), 0x1000, 0x8000, 3)
    assert again.digest() != made.digest()
