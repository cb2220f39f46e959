# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbol file of a dump, through gdb, against the vmlinux and drgn."""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from gdbkdump.target.symbolfile import symbol_file
from gdbkdump.target.variables import VARIABLES
from tests.support.oracle import open_drgn

ROOT = Path(__file__).resolve().parents[2]
SYMBOL = struct.Struct("<IBBHQQ")

# What differs from DWARF, and why that is right. Each is one word of explain().
JUSTIFIED = {
    "local": "declared within a function, where drgn does not look",
    "namesake": "the kernel has several of this name; each tool shows one of them",
    "two kinds": "types of two kinds have this name: gdb finds one of them",
    "sign": "BTF before 6.0 does not tell the sign of 32 bits; the bits are the same",
    "wide": "gdb keeps values of 64 bits as signed ones; the bits are the same",
    "cut": "BTF before 6.0 has the lower 32 bits of wide values, so gdb is told none",
}


def offset_of(session):
    return session.kernel.vmcoreinfo.hex("KERNELOFFSET")


@pytest.fixture(scope="module")
def made(session, tmp_path_factory):
    path = tmp_path_factory.mktemp("symbols") / "symbols"
    path.write_bytes(symbol_file(session.kernel, offset_of(session)))
    return path


@pytest.fixture(scope="module")
def names(session):
    """All structs, unions and enums: how many types have the name."""
    found = Counter()
    for keyword in ("struct", "union", "enum"):
        for name in session.kernel.debuginfo.types.names(keyword):
            found[f"{keyword} {name}"] += 1
    assert len(found) > 7000
    return found


def described(names, folder, *options):
    """How gdb sees the types of some names."""
    (folder / "names").write_text("\n".join(names))
    environment = dict(
        os.environ,
        GDBKDUMP_TEST_NAMES=str(folder / "names"),
        GDBKDUMP_TEST_OUT=str(folder / "out.json"),
    )
    script = ROOT / "tests/support/types_in_gdb.py"
    command = ["gdb", "-nx", "-batch", *options, "-x", script]
    environment.pop("VIRTUAL_ENV", None)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return json.loads((folder / "out.json").read_text())


@pytest.fixture(scope="module")
def in_gdb(made, names, tmp_path_factory):
    folder = tmp_path_factory.mktemp("types")
    load = ["-iex", "set confirm off", "-ex", f"add-symbol-file {made} -o 0"]
    return described(names, folder, *load)


def bare(type_):
    while type_.kind.name == "TYPEDEF":
        type_ = type_.type
    return type_


def drgn_members(drgn, type_, start=0):
    found = []
    for member in type_.members:
        inner = bare(member.type)
        kind = inner.kind.name.lower()
        place = start + member.bit_offset
        if not member.name and kind in ("struct", "union"):
            found += drgn_members(drgn, inner, place)
        elif member.name:
            is_open = kind == "array" and not inner.length
            size = 0 if is_open else drgn.sizeof(inner)
            bits = member.bit_field_size or 0
            found.append([member.name, place, bits, size, kind])
    return found


def drgn_type(drgn, program, name):
    type_ = program.type(name)
    if type_.kind.name == "ENUM":
        return {e.name: e.value for e in type_.enumerators or ()}
    return [type_.size, drgn_members(drgn, type_)]


def explain(name, ours, theirs, names):
    """The reason of a difference; None if there is none."""
    if names[name] > 1:
        return "namesake"
    if theirs is None:
        return "local"
    if isinstance(ours, str):
        tag = name.partition(" ")[2]
        is_told = f"has class, union or enum {tag}" in ours
        others = [
            f"{keyword} {tag}" in names for keyword in ("struct", "union", "enum")
        ]
        return "two kinds" if is_told and sum(others) > 1 else None
    if not isinstance(theirs, dict):
        return None
    if any(value >> 32 and value >> 32 != -1 for value in theirs.values()) and not ours:
        return "cut"
    for bits, word in ((32, "sign"), (64, "wide")):
        mask = (1 << bits) - 1
        if {k: v & mask for k, v in ours.items()} == {
            k: v & mask for k, v in theirs.items()
        } and all(abs(v) <= mask for v in theirs.values()):
            return word
    return None


def test_all_types_equal_dwarf(in_gdb, names, dump_dir):
    drgn = pytest.importorskip("drgn")
    program = open_drgn(dump_dir)
    reasons, unexplained = Counter(), {}
    for name in names:
        try:
            theirs = drgn_type(drgn, program, name)
        except LookupError:
            theirs = None
        ours = in_gdb[name]
        if ours != theirs:
            reason = explain(name, ours, theirs, names)
            reasons[reason] += 1
            if reason is None:
                unexplained[name] = ours, theirs
    assert unexplained == {}
    assert set(reasons) <= set(JUSTIFIED)
    # All that is explained is a handful of some ten thousand.
    assert sum(reasons.values()) < 60
    if dump_dir.name != "small-5.10":
        assert not {"sign", "cut"} & set(reasons)


def test_types_of_modules_equal_dwarf(session, dump_dir, names, tmp_path):
    drgn = pytest.importorskip("drgn")
    files = {f.name.split(".")[0]: f for f in (dump_dir / "modules").rglob("*.ko*")}
    found = Counter()
    for module in session.kernel.debuginfo.modules():
        types = module.types()
        for keyword in ("struct", "union", "enum") if types else ():
            found.update(f"{keyword} {name}" for name in types.names(keyword))
    # Whose a name is that the kernel has as well each tool says another way.
    alone = [name for name, count in found.items() if count == 1 and name not in names]
    if not alone:
        pytest.skip("this kernel has no BTF of modules")
    (tmp_path / "vmcore").symlink_to(dump_dir / "vmcore")
    ours = described(
        alone, tmp_path, "-c", tmp_path / "vmcore", "-x", ROOT / "gdb-init.py"
    )
    program = drgn.Program()
    program.set_core_dump(str(dump_dir / "vmcore"))
    program.load_debug_info(map(str, [dump_dir / "vmlinux", *files.values()]))
    theirs = {name: drgn_type(drgn, program, name) for name in alone}
    assert ours == theirs
    assert len(alone) > 10


def symbols(path):
    """Yield name, address, size and section's name of the symbols of an ELF file."""
    with path.open("rb") as file:
        elf = ELFFile(file)
        table = elf.get_section_by_name(".symtab")
        strings = elf.get_section(table["sh_link"]).data()
        sections = [section.name for section in elf.iter_sections()]
        for name, info, _, number, address, size in SYMBOL.iter_unpack(table.data()):
            if number and info & 15 not in (3, 4):
                end = strings.index(b"\0", name)
                section = sections[number] if number < len(sections) else ""
                yield strings[name:end].decode(), address, size, section


def test_all_symbols_equal_those_of_vmlinux(made, session, dump_dir):
    kallsyms = session.kernel.debuginfo.symbol_source
    offset = offset_of(session)
    start = session.kernel.debuginfo.image[0]
    ours = list(symbols(made))
    run_time = Counter(
        (name, address + (offset if section != ".data..percpu" else 0))
        for name, address, _, section in ours
    )
    assert run_time == Counter((s.name, s.address) for s in kallsyms)
    theirs = {(name, address) for name, address, *_ in symbols(dump_dir / "vmlinux")}
    assert {(name, address) for name, address, *_ in ours} <= theirs
    # A symbol reaches to the next one, or to where its section ends.
    for symbol in ("schedule", "vfs_read", "__schedule"):
        found = session.kernel.debuginfo.symbol_at(kallsyms.find(symbol)[0].address)
        assert [size for name, _, size, _ in ours if name == symbol] == [found.size]
    assert start - offset == next(a for name, a, *_ in ours if name == "_text")


def test_table_of_variables_equals_dwarf(session, dump_dir):
    pytest.importorskip("drgn")
    program = open_drgn(dump_dir)
    compared = 0
    for name, declared in VARIABLES.items():
        try:
            type_ = program[name].type_
        except KeyError:
            continue  # this kernel has none
        said = type_.type_name().replace("pg_data_t", "struct pglist_data")
        said = re.sub(r" ?\[\d*\]$", "[]", said)
        assert said == declared.replace("long unsigned int", "unsigned long"), name
        compared += 1
    assert compared > 60
