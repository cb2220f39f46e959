# SPDX-License-Identifier: GPL-2.0-or-later
"""Damaged kallsyms and BTF of a real dump: what is left of them, and no wrong word."""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import types
from contextlib import contextmanager
from pathlib import Path

import pytest

from gdbkdump.cli import main
from gdbkdump.debuginfo.btf import Btf
from gdbkdump.errors import KdumpError
from gdbkdump.target.symbolfile import digest, symbol_file

ROOT = Path(__file__).resolve().parents[2]
HEADER = struct.Struct("<HBBIIIII")


@pytest.fixture(scope="module", autouse=True)
def small(dump_dir):
    usual = dump_dir.parent / "small-6.1"
    if usual.exists() and dump_dir.name != usual.name:
        pytest.skip("how damage is met does not depend on the dump: small-6.1 does")


@pytest.fixture(scope="module")
def folder(sparse_copy):
    """A folder with nothing but a copy of the dump; each test undoes its damage."""
    return sparse_copy.parent


@contextmanager
def damaged(session, folder, *writes):
    """Write (kernel address, bytes) into the copy, and take them back."""
    kernel, copy = session.kernel, os.open(folder / "vmcore", os.O_RDWR)
    pieces = []
    for address, data in writes:
        for i in range(len(data)):
            at, _ = session.dump.file_range(kernel.memory.translate(address + i))
            pieces.append((at, os.pread(copy, 1, at), data[i : i + 1]))
    try:
        for at, _, byte in pieces:
            os.pwrite(copy, byte, at)
        yield
    finally:
        for at, byte, _ in pieces:
            os.pwrite(copy, byte, at)
        os.close(copy)


def places(session):
    """Where the tables are, by name."""
    kernel = session.kernel
    start = kernel.symbol("__start_BTF")
    _, _, _, size, types_at, types_size, strings_at, strings_size = HEADER.unpack(
        kernel.reader.read(start, HEADER.size)
    )
    names = ("names", "num_syms", "token_table", "token_index", "offsets")
    found = {n: kernel.vmcoreinfo.symbol(f"kallsyms_{n}") for n in names}
    found |= {
        "BTF": start,
        "types": start + size + types_at + types_size // 2,
        "strings": start + size + strings_at + strings_size // 2,
    }
    return found


# Of what is damaged: place, bytes, what is said, and whether gdb has symbols and types.
DAMAGE = {
    "magic": ("BTF", bytes(4), "BTF of the dump is damaged (BTF: bad magic)", 1, 0),
    "types": ("types", bytes(64), "is damaged (BTF: unknown kind 0)", 1, 0),
    "strings": ("strings", b"\x1b[2J", "no types of the kernel: BTF: a name", 1, 0),
    "names": ("names", b"\xff" * 8, "no symbols of the kernel: kallsyms", 0, 1),
    "offsets": ("offsets", bytes(8), "the addresses of symbols are not in order", 0, 1),
    "tokens": ("token_table", b"\x1b\x1b", "no symbols of the kernel", 0, 1),
}
INSIDE = {"names": 300_000, "offsets": 4 * 50_000, "token_table": 200}


@pytest.mark.parametrize("what", DAMAGE)
def test_in_gdb_the_whole_part_is_there(session, folder, tmp_path, what):
    place, data, said, has_symbols, has_types = DAMAGE[what]
    address = places(session)[place] + INSIDE.get(place, 0)
    schedule = session.kernel.symbol("schedule")
    command = ["gdb", "-nx", "-batch", "-c", folder / "vmcore"]
    command += ["-x", ROOT / "gdb-init.py", "-ex", "echo ==\\n"]
    command += ["-ex", f"info symbol {schedule:#x}", "-ex", "ptype struct list_head"]
    environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    environment["XDG_CACHE_HOME"] = str(tmp_path)
    with damaged(session, folder, (address, data)):
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=folder,
            timeout=120, check=False,
        )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if said in line]
    assert len(lines) == 1, done.stdout
    answers = done.stdout.partition("==\n")[2]
    assert ("schedule in section .text" in answers) == bool(has_symbols)
    assert ("struct list_head *next;" in answers) == bool(has_types)
    # What comes of damage is not kept.
    kept = list((tmp_path / "gdbkdump" / "symbols").glob("*"))
    assert not kept or what in ("magic", "types")


@pytest.mark.parametrize(
    ("place", "data", "said"),
    [
        ("num_syms", bytes(4), "kallsyms: 0 symbols"),
        ("num_syms", b"\xff" * 4, "kallsyms: 4294967295 symbols"),
        ("token_index", bytes(512), "the token index is not sorted"),
    ],
)
def test_without_symbols_nothing_is_found(session, folder, capsys, place, data, said):
    with damaged(session, folder, (places(session)[place], data)):
        assert main([str(folder / "vmcore"), "-c", "kps"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert said in err
    assert "without it nothing can be found" in err


def test_without_types_commands_that_need_none_go_on(session, folder, capsys):
    writes = [(places(session)["types"], b"\xff" * 16)]
    with damaged(session, folder, *writes):
        assert main([str(folder / "vmcore"), "-c", "ksym schedule"]) == 0
        assert main([str(folder / "vmcore"), "-c", "kps"]) == 1
    out, err = capsys.readouterr()
    assert f"{session.kernel.symbol('schedule'):x}" in out
    assert "no type 'struct task_struct'" in err


def with_btf(session, data):
    source = session.kernel.debuginfo
    debuginfo = types.SimpleNamespace(
        symbol_source=source.symbol_source, types=Btf(data), image=source.image
    )
    return types.SimpleNamespace(debuginfo=debuginfo, once=lambda key, make: make())


def test_random_damage_to_types_is_refused_or_harmless_to_gdb(session, tmp_path):
    kernel = session.kernel
    whole = kernel.debuginfo.types.data
    offset = kernel.vmcoreinfo.hex("KERNELOFFSET")
    chance = random.Random(61)
    _, _, _, size, at, length, *_ = HEADER.unpack_from(whole)
    outcomes, accepted = set(), []
    right = digest(with_btf(session, whole))
    for i in range(24):
        data = bytearray(whole)
        word = size + at + 4 * chance.randrange(length // 4)
        value = chance.choice((0, 0xFFFFFFFF, chance.randrange(1 << 17)))
        struct.pack_into("<I", data, word, value)
        if data == whole:
            continue
        try:
            broken = with_btf(session, bytes(data))
            assert digest(broken) != right
            made = symbol_file(broken, offset)
        except KdumpError as error:
            assert re.match(r"BTF: ", str(error))
            outcomes.add("refused")
            continue
        outcomes.add("read")
        accepted.append(tmp_path / f"symbols-{i}")
        accepted[-1].write_bytes(made)
    assert outcomes == {"refused", "read"}
    # gdb reads all types of a unit when it reads one.
    for path in accepted[:6]:
        done = subprocess.run(
            ["gdb", "-nx", "-batch", "-iex", "set confirm off",
             "-ex", f"add-symbol-file {path} -o 0", "-ex", "ptype struct task_struct",
             "-ex", "ptype struct mm_struct", "-ex", "p sizeof(struct rq)"],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode in (0, 1)
        assert "internal" not in done.stderr.lower()
        assert "struct mm_struct {" in done.stdout
