# SPDX-License-Identifier: GPL-2.0-or-later
"""Split BTF taken out of its base, and the symbol file of modules."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from elftools.elf.elffile import ELFFile
from support.mkdump import BtfWriter

from gdbkdump.debuginfo.base import ModuleInfo
from gdbkdump.debuginfo.btf import Btf
from gdbkdump.debuginfo.kallsyms import Symbol
from gdbkdump.errors import CorruptError
from gdbkdump.target.modulesymbols import ModuleSymbols
from gdbkdump.target.moduletypes import MergedTypes

TEXT = 0xFFFFFFFFC0000000


def base():
    made = BtfWriter()
    number = made.integer("int", 4, 1)
    task = made.struct("task", 8, [("pid", number, 0)])
    made.pointer(task)  # 3
    made.typedef("number_t", number)  # 4
    made.struct("twin", 4, [("a", number, 0)])
    made.struct("twin", 8, [("a", number, 0), ("b", number, 32)])  # 6
    made.typedef("bare", made.struct("", 4, [("counter", number, 0)]))  # 7, 8
    made.enum("state", IDLE=0)  # 9
    made.add(13, "", number, [0, 3], count=1)  # 10: int (struct task *)
    return Btf(made.build())


def module(kernel, name="device"):
    made = BtfWriter(kernel.end_id, kernel.end_string)
    made.struct(
        name,
        32,
        [("owner", 3, 0), ("n", 4, 64), ("t", 6, 96), ("c", 8, 160), ("s", 9, 192)],
    )
    made.add(12, "probe", 10, [])
    made.add(17, "a tag", made._id - 2, [0])
    return Btf(made.build(), kernel)


def test_what_a_module_needs_of_its_base_comes_along():
    kernel = base()
    merged = MergedTypes(kernel)
    ids = merged.add(module(kernel))
    data = BtfWriter()
    data._words = list(merged.words)
    data._strings = merged.strings
    flat = Btf(data.build())
    assert list(flat.positions()) == merged.positions
    device = flat.find("struct", "device")
    assert ids[kernel.end_id] == 1
    assert (device.size, device.offset("c"), device.offset("s")) == (32, 20, 24)
    # What one type alone is called is declared, the others are there whole.
    task = device.member("owner").type.target
    assert (task.name, task.is_complete) == ("task", False)
    assert device.offset("t.b") == 16
    assert device.offset("c.counter") == 20
    assert device.member("n").type.strip().name == "int"
    assert dict(device.member("s").type.values) == {}
    assert device.member("s").type.size == 4


def test_types_of_the_base_come_along_once():
    kernel = base()
    merged = MergedTypes(kernel)
    merged.add(module(kernel))
    before = len(merged.positions)
    merged.add(module(kernel, "other"))
    assert len(merged.positions) == before + 3


def test_a_module_that_refers_to_nothing_leaves_no_trace():
    kernel = base()
    merged = MergedTypes(kernel)
    broken = BtfWriter(kernel.end_id, kernel.end_string)
    broken.struct("broken", 8, [("x", 7777, 0)])
    with pytest.raises(CorruptError, match="no type"):
        merged.add(Btf(broken.build(), kernel))
    assert (len(merged.words), merged.positions) == (0, [])
    assert merged.add(module(kernel))[kernel.end_id] == 1


def info(name, start, types=None, symbols=None):
    found = symbols or [
        Symbol("probe", start, "t"), Symbol("remove", start + 0x40, "t"),
        Symbol("remove", start + 0x80, "t"), Symbol("driver", start + 0x1000, "d"),
        Symbol("freed", start - 0x5000, "t"),
    ]  # fmt: skip
    ranges = [(start, start + 0x2000)]
    return ModuleInfo(name, ranges, found, lambda: types)


def kernel_with(*infos, types=None):
    debuginfo = SimpleNamespace(types=types, modules=lambda: infos)
    return SimpleNamespace(debuginfo=debuginfo)


def test_symbols_and_functions_of_modules():
    kernel = base()
    one = info("one", TEXT, module(kernel))
    two = info("two", TEXT + 0x10000, module(kernel, "other"))
    problems = []
    made = ModuleSymbols(kernel_with(two, one, types=kernel), problems)
    elf = ELFFile(io.BytesIO(made.file()))
    assert problems == []
    names = [section.name for section in elf.iter_sections()]
    found = {
        (s.name, s["st_value"]): (s["st_size"], names[s["st_shndx"]])
        for s in elf.get_section_by_name(".symtab").iter_symbols()
        if s.name
    }
    assert found[("probe", TEXT)] == (0x40, "one")
    assert found[("probe", TEXT + 0x10000)] == (0x40, "two")
    assert found[("remove", TEXT + 0x80)] == (0xF80, "one")
    assert found[("driver", TEXT + 0x1000)] == (0x1000, "one")
    # Text ends where data begins; what was freed has no address any more.
    flags = [s["sh_flags"] & 4 for s in elf.iter_sections() if s.name == "one"]
    assert flags == [4, 0]
    assert len(found) == 8
    (cu,) = elf.get_dwarf_info().iter_CUs()
    functions = {
        die.attributes["DW_AT_name"].value
        for die in cu.get_top_DIE().iter_children()
        if die.tag == "DW_TAG_subprogram"
    }
    assert functions == {b"probe"}


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        (info("a\x1b[2J", TEXT + 0x10000), "no name of a module"),
        (info("two", TEXT + 0x1000), "another module is where it is"),
        (
            info(
                "two", TEXT + 0x10000, symbols=[Symbol("a\x1bb", TEXT + 0x10000, "t")]
            ),
            "no compiler wrote",
        ),
    ],
)
def test_a_damaged_module_leaves_the_others(broken, what):
    kernel = base()
    problems = []
    made = ModuleSymbols(
        kernel_with(info("one", TEXT, module(kernel)), broken, types=kernel), problems
    )
    elf = ELFFile(io.BytesIO(made.file()))
    names = {s.name for s in elf.get_section_by_name(".symtab").iter_symbols()}
    assert names >= {"probe", "driver"}
    assert len(problems) == 1
    assert what in problems[0]
    assert problems[0].isprintable()


def test_damaged_types_of_a_module_leave_those_of_others():
    kernel = base()
    broken = BtfWriter(kernel.end_id, kernel.end_string)
    broken.typedef("loop", kernel.end_id)
    problems = []
    made = ModuleSymbols(
        kernel_with(
            info("one", TEXT, module(kernel)),
            info("two", TEXT + 0x10000, Btf(broken.build(), kernel)),
            types=kernel,
        ),
        problems,
    )
    elf = ELFFile(io.BytesIO(made.file()))
    (cu,) = elf.get_dwarf_info().iter_CUs()
    found = {
        die.attributes["DW_AT_name"].value
        for die in cu.get_top_DIE().iter_children()
        if die.tag == "DW_TAG_structure_type"
    }
    assert b"device" in found
    assert problems == [
        "gdb has no types of module two: BTF: types that are made of themselves"
    ]


def test_the_digest_tells_addresses_and_types():
    kernel = base()

    def digest(*infos):
        return ModuleSymbols(kernel_with(*infos, types=kernel), []).digest("k")

    one = digest(info("one", TEXT, module(kernel)))
    assert one == digest(info("one", TEXT, module(kernel)))
    assert one != digest(info("one", TEXT + 0x1000, module(kernel)))
    assert one != digest(info("one", TEXT, module(kernel, "other")))
    assert one != digest(info("two", TEXT, module(kernel)))


def test_without_modules_there_is_no_file():
    assert not ModuleSymbols(kernel_with(), [])
