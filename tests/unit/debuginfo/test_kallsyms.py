# SPDX-License-Identifier: GPL-2.0-or-later
"""kallsyms in both orders of its tables, with and without the sorted index."""

from __future__ import annotations

import pytest
from support.fakes import DictMemory
from support.mkdump import kallsyms_tables, vmcoreinfo

from gdbkdump.debuginfo.kallsyms import Symbol, from_vmcoreinfo, scan
from gdbkdump.errors import CorruptError, KdumpError
from gdbkdump.formats.vmcoreinfo import VmcoreInfo
from gdbkdump.memory.reader import Reader

BASE = 0xFFFFFFFF81000000
TABLES = 0xFFFFFFFF82000000
LONG = "long_" * 40


def symbols():
    made = [("cpu_number", 0x1000, "A"), ("_text", BASE, "T"), ("_stext", BASE, "T")]
    made += [(f"function_{i}", BASE + 0x100 + i * 16, "t") for i in range(1200)]
    made += [("twin", BASE + 0x10000, "t"), ("twin", BASE + 0x20000, "T")]
    return [*made, (LONG, BASE + 0x30000, "D")]


def make(*, new, damage=None):
    tables = kallsyms_tables(TABLES, symbols(), BASE, new=new)
    data = bytearray(tables.data)
    if damage:
        damage(data, {name: at - TABLES for name, at in tables.at.items()})
    memory = DictMemory()
    memory.put(TABLES, bytes(data))
    at = tables.at
    info = VmcoreInfo(
        vmcoreinfo(
            SYMBOL_kallsyms_names=at["names"],
            SYMBOL_kallsyms_num_syms=at["num_syms"],
            SYMBOL_kallsyms_token_table=at["token_table"],
            SYMBOL_kallsyms_token_index=at["token_index"],
            SYMBOL_kallsyms_offsets=at["offsets"],
            SYMBOL_kallsyms_relative_base=at["relative_base"],
        )
    )
    return Reader(memory), info, bytes(data)


@pytest.fixture(params=[False, True], ids=["before 6.4", "since 6.4"])
def kallsyms(request):
    reader, info, _ = make(new=request.param)
    return from_vmcoreinfo(reader, info)


def test_all_symbols(kallsyms):
    assert list(kallsyms) == [Symbol(*each) for each in symbols()]


def test_by_name(kallsyms):
    assert kallsyms._seqs is not None
    for name, address, letter in symbols():
        assert Symbol(name, address, letter) in kallsyms.find(name)
    assert [s.address for s in kallsyms.find("twin")] == [
        BASE + 0x10000,
        BASE + 0x20000,
    ]
    assert kallsyms.find("twi") == kallsyms.find("twins") == kallsyms.find("") == []


def test_by_address(kallsyms):
    assert kallsyms.at(BASE + 0x105) == (
        Symbol("function_0", BASE + 0x100, "t"),
        BASE + 0x110,
    )
    # Of aliases the first, as get_symbol_pos() does.
    assert kallsyms.at(BASE)[0].name == "_text"
    assert kallsyms.at(BASE + (1 << 28)) == (Symbol(LONG, BASE + 0x30000, "D"), None)
    assert kallsyms.at(0x10) is None
    assert kallsyms.at(0x1234)[0].name == "cpu_number"


def test_without_the_sorted_index_names_are_decoded():
    def break_seqs(data, at):
        data[at["seqs"] : at["seqs"] + 300] = b"\xff" * 300

    for new in (False, True):
        reader, info, _ = make(new=new, damage=break_seqs)
        kallsyms = from_vmcoreinfo(reader, info)
        assert kallsyms._seqs is None
        assert [s.address for s in kallsyms.find("twin")] == [
            BASE + 0x10000,
            BASE + 0x20000,
        ]


@pytest.mark.parametrize("new", [False, True])
def test_found_by_a_scan_of_the_image(new):
    reader, _, data = make(new=new)
    found = scan(reader, TABLES, data, BASE)
    assert found is not None
    assert [s.name for s in found][:3] == ["cpu_number", "_text", "_stext"]
    assert found.find("function_77")[0].address == BASE + 0x100 + 77 * 16
    assert scan(reader, TABLES, bytes(len(data)), BASE) is None


@pytest.mark.parametrize("count", [0, 1 << 30])
def test_an_absurd_number_of_symbols(count):
    def change(data, at):
        data[at["num_syms"] : at["num_syms"] + 4] = count.to_bytes(4, "little")

    reader, info, _ = make(new=False, damage=change)
    with pytest.raises(CorruptError, match="symbols"):
        from_vmcoreinfo(reader, info)


def test_tokens_that_are_not_in_order():
    def change(data, at):
        data[at["token_index"] + 20 : at["token_index"] + 22] = b"\0\0"

    reader, info, _ = make(new=False, damage=change)
    with pytest.raises(CorruptError, match="token index"):
        from_vmcoreinfo(reader, info)


def test_names_that_run_past_the_end():
    def change(data, at):
        end = at["markers"]
        data[at["names"] : end] = b"\xff" * (end - at["names"])

    reader, info, _ = make(new=False, damage=change)
    kallsyms = from_vmcoreinfo(reader, info)
    with pytest.raises(KdumpError, match="run past the end"):
        list(kallsyms)


def test_a_note_without_the_tables_is_no_source():
    reader, _, _ = make(new=False)
    assert from_vmcoreinfo(reader, VmcoreInfo(b"OSRELEASE=5.10\n")) is None
