# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbol file of kernels made by hand, right and damaged."""

from __future__ import annotations

import io
import random
from types import SimpleNamespace

import pytest
from elftools.elf.elffile import ELFFile
from support.fakes import DictMemory
from support.mkdump import BtfWriter, kallsyms_tables, vmcoreinfo

from gdbkdump.debuginfo.btf import Btf
from gdbkdump.debuginfo.kallsyms import from_vmcoreinfo
from gdbkdump.errors import CorruptError, KdumpError
from gdbkdump.formats.vmcoreinfo import VmcoreInfo
from gdbkdump.memory.reader import Reader
from gdbkdump.target.symbolfile import digest, partial_symbol_file, symbol_file

OFFSET = 0x1C000000
TEXT = 0xFFFFFFFF81000000
BASE = TEXT + OFFSET
TABLES = BASE + 0x200000


def symbols():
    made = [("runqueues", 0x1000, "A"), ("__per_cpu_end", 0x2000, "A")]
    made += [("_text", BASE, "T"), ("_stext", BASE, "T")]
    made += [(f"function_{i}", BASE + 0x100 + i * 16, "t") for i in range(600)]
    made += [("schedule", BASE + 0x8000, "T"), ("twin", BASE + 0x9000, "t")]
    made += [("twin", BASE + 0xA000, "t"), ("_etext", BASE + 0x10000, "T")]
    made += [("_sdata", BASE + 0x20000, "D"), ("init_task", BASE + 0x20000, "D")]
    made += [("jiffies", BASE + 0x21000, "D"), ("modules", BASE + 0x21008, "d")]
    return [*made, ("__bss_start", BASE + 0x30000, "B"), ("_end", BASE + 0x40000, "B")]


def types():
    made = BtfWriter()
    number = made.integer("int", 4, 1)
    made.integer("long unsigned int", 8)
    task = made.struct("task_struct", 8, [("pid", number, 0), ("tgid", number, 32)])
    rq = made.struct("rq", 4, [("nr", number, 0)])
    nothing = made.add(13, "", 0, [], count=0)
    made.add(13, "", number, [made.string("t"), made.pointer(task)], count=1)
    for name in ("schedule", "twin", "absent"):
        made.add(12, name, nothing, [])
    made.add(14, "runqueues", rq, [1])
    return made.build()


def kernel(*, damage=None, btf=True):
    tables = kallsyms_tables(TABLES, symbols(), BASE, new=True)
    data = bytearray(tables.data)
    if damage:
        damage(data, {name: at - TABLES for name, at in tables.at.items()})
    memory = DictMemory()
    memory.put(TABLES, bytes(data))
    info = VmcoreInfo(
        vmcoreinfo(
            **{
                f"SYMBOL_kallsyms_{name}": tables.at[name]
                for name in ("names", "num_syms", "token_table", "token_index",
                             "offsets", "relative_base")
            }
        )
    )  # fmt: skip
    source = from_vmcoreinfo(Reader(memory), info)
    found = Btf(types()) if btf is True else btf or None
    debuginfo = SimpleNamespace(
        symbol_source=source, types=found, image=(BASE, BASE + 0x40000)
    )
    return SimpleNamespace(debuginfo=debuginfo, once=lambda key, make: make())


def read(data):
    elf = ELFFile(io.BytesIO(data))
    table = elf.get_section_by_name(".symtab")
    names = [section.name for section in elf.iter_sections()]
    found = {}
    for symbol in list(table.iter_symbols())[1:]:
        found.setdefault(symbol.name, []).append(
            (
                symbol["st_value"],
                symbol["st_size"],
                symbol["st_info"]["type"].removeprefix("STT_"),
                symbol["st_info"]["bind"].removeprefix("STB_"),
                names[symbol["st_shndx"]],
            )
        )
    return elf, found


def test_symbols_with_sizes_at_link_addresses():
    elf, found = read(symbol_file(kernel(), OFFSET))
    assert sum(map(len, found.values())) == len(symbols())
    assert found["schedule"] == [(TEXT + 0x8000, 0x1000, "FUNC", "GLOBAL", ".text")]
    assert found["function_0"] == [(TEXT + 0x100, 16, "FUNC", "LOCAL", ".text")]
    # The last one of a section ends with it.
    assert found["twin"][1][:2] == (TEXT + 0xA000, 0x6000)
    # Aliases have one size, per-CPU symbols stay where they are.
    assert found["_sdata"][0][1] == found["init_task"][0][1] == 0x1000
    assert found["runqueues"] == [(0x1000, 0x1000, "OBJECT", "GLOBAL", ".data..percpu")]
    assert found["modules"][0][2:] == ("OBJECT", "LOCAL", ".data")
    # Local ones come first; nothing has contents that could be read for the dump's.
    table = elf.get_section_by_name(".symtab")
    binds = [s["st_info"]["bind"] for s in table.iter_symbols()]
    assert binds.index("STB_GLOBAL") == table["sh_info"]
    assert set(binds[table["sh_info"] :]) == {"STB_GLOBAL"}
    for section in elf.iter_sections():
        if section["sh_flags"] & 2:
            assert section["sh_type"] == "SHT_NOBITS"


def test_of_aliases_the_first_has_the_last_name():
    # gdb takes that one, and the kernel's own look-ups the first.
    elf, _ = read(symbol_file(kernel(), OFFSET))
    table = elf.get_section_by_name(".symtab")
    at = {s.name: s["st_name"] for s in table.iter_symbols()}
    assert at["_text"] > at["_stext"]
    assert at["_sdata"] > at["init_task"]


def test_functions_and_variables_have_types():
    elf, _ = read(symbol_file(kernel(), OFFSET))
    (cu,) = elf.get_dwarf_info().iter_CUs()
    found = {}
    for die in cu.get_top_DIE().iter_children():
        if die.tag in ("DW_TAG_variable", "DW_TAG_subprogram"):
            found[die.attributes["DW_AT_name"].value.decode()] = die
    # Of two functions of one name none, and nothing that has no symbol.
    assert set(found) == {"schedule", "init_task", "jiffies", "runqueues"}
    place = bytes(found["init_task"].attributes["DW_AT_location"].value)
    assert place == b"\3" + (TEXT + 0x20000).to_bytes(8, "little")
    type_ = found["init_task"].get_DIE_from_attribute("DW_AT_type")
    assert type_.attributes["DW_AT_name"].value == b"task_struct"
    type_ = found["jiffies"].get_DIE_from_attribute("DW_AT_type")
    assert type_.tag == "DW_TAG_volatile_type"


def test_without_btf_there_are_symbols():
    elf, found = read(symbol_file(kernel(btf=None), OFFSET))
    assert "schedule" in found
    assert not elf.has_dwarf_info()


def swap_offsets(data, at):
    first = at["offsets"] + 4 * 100
    data[first : first + 8] = data[first + 4 : first + 8] + data[first : first + 4]


def change_a_name(data, at):
    # A token that names are made of gets a control character.
    data[at["token_table"] + 2 * 10 :] = data[at["token_table"] + 2 * 10 :].replace(
        b"f\0", b"\x1b\0", 1
    )


def change_a_letter(data, at):
    place = data.index(b"function_300", at["names"])
    data[place] = ord("z")


def lengthen_a_name(data, at):
    place = data.index(b"function_20", at["names"]) - 2
    data[place] += 1


def cut_names(data, at):
    data[at["names"] : at["markers"]] = b"\xff" * (at["markers"] - at["names"])


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (swap_offsets, "not in order"),
        (change_a_name, "no compiler wrote"),
        (cut_names, "run past the end"),
        (change_a_letter, "names are not in order"),
        (lengthen_a_name, "is not where it is told|run past"),
    ],
)
def test_damaged_kallsyms_leave_the_types(damage, what):
    damaged = kernel(damage=damage)
    with pytest.raises(CorruptError, match=what):
        symbol_file(damaged, OFFSET)
    problems = []
    data = partial_symbol_file(damaged, OFFSET, problems)
    elf = ELFFile(io.BytesIO(data))
    assert elf.get_section_by_name(".symtab") is None
    (cu,) = elf.get_dwarf_info().iter_CUs()
    tags = {die.tag for die in cu.get_top_DIE().iter_children()}
    assert "DW_TAG_structure_type" in tags
    # Nothing is told to be anywhere.
    assert not tags & {"DW_TAG_variable", "DW_TAG_subprogram"}
    assert len(problems) == 1
    assert problems[0].startswith("gdb has no symbols of the kernel: ")


def test_damaged_btf_leaves_the_symbols():
    made = BtfWriter()
    made.typedef("loop", 1)
    damaged = kernel(btf=Btf(made.build()))
    problems = []
    elf, found = read(partial_symbol_file(damaged, OFFSET, problems))
    assert "schedule" in found
    assert not elf.has_dwarf_info()
    assert problems == [
        "gdb has no types of the kernel: BTF: types that are made of themselves"
    ]


def test_with_neither_there_is_no_file():
    made = BtfWriter()
    made.typedef("loop", 1)
    damaged = kernel(damage=swap_offsets, btf=Btf(made.build()))
    problems = []
    assert partial_symbol_file(damaged, OFFSET, problems) is None
    assert len(problems) == 2


def test_digest_tells_damage_but_not_where_the_kernel_was():
    whole = digest(kernel())
    assert digest(kernel()) == whole
    assert digest(kernel(damage=swap_offsets)) != whole
    assert digest(kernel(damage=change_a_name)) != whole
    assert digest(kernel(btf=None)) != whole


def test_random_damage_to_kallsyms_never_gives_a_wrong_name_to_an_address():
    right = {(name, address) for name, address, _ in symbols()}
    tables = kallsyms_tables(TABLES, symbols(), BASE, new=True)
    chance = random.Random(7)
    refused = 0
    for _ in range(150):
        place = chance.randrange(len(tables.data))

        def damage(data, at, place=place):
            data[place] ^= 1 << chance.randrange(8)

        try:
            _, found = read(symbol_file(kernel(damage=damage), OFFSET))
        except KdumpError:
            refused += 1
            continue
        # One bit may change an offset to another one that is in order; nothing else.
        ours = {
            (name, address + (OFFSET if section != ".data..percpu" else 0))
            for name, each in found.items()
            for address, *_, section in each
        }
        assert len(ours - right) <= 1
    assert refused > 30
