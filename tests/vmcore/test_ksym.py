# SPDX-License-Identifier: GPL-2.0-or-later
"""ksym: both ways as the guest's /proc/kallsyms and the vmlinux have it."""

from __future__ import annotations

import pytest
from support.oracle import open_drgn

from gdbkdump.errors import CommandError


def test_every_sampled_symbol_has_its_address(truth, run):
    for wanted in truth["kallsyms"]["sample"]:
        name = wanted["name"]
        # /proc/kallsyms has capitals for what a module exports, its table has not.
        letter = wanted["type"].lower() if wanted["module"] else wanted["type"]
        found = {
            (int(row["address"], 16), row["type"], row["module"])
            for row in run("ksym", name)
        }
        assert (wanted["address"], letter, wanted["module"]) in found, wanted


def test_every_sampled_text_address_has_its_symbol(truth, run):
    at = {}
    for wanted in truth["kallsyms"]["sample"]:
        if wanted["type"] in "tT":
            at.setdefault(wanted["address"], set()).add(wanted["name"])
    for address, names in at.items():
        (row,) = run("ksym", f"{address:#x}")
        # Of aliases the kernel's own choice is the first, which may be no sample.
        assert row["offset"] == 0
        aliases = {each["name"] for name in names for each in run("ksym", name)}
        others = {int(each["address"], 16) for each in run("ksym", row["name"])}
        assert row["name"] in aliases or address in others


def test_the_number_of_symbols(truth, run):
    everything = run("ksym", "-l")
    core = [row for row in everything if row["module"] is None]
    assert len({row["module"] for row in everything} - {None}) == len(truth["modules"])
    # The guest counted modules, ftrace and BPF symbols, too.
    assert 0.9 * truth["kallsyms"]["total"] < len(everything)
    assert len(everything) <= truth["kallsyms"]["total"]
    assert len(core) > 80_000


def test_functions_are_where_drgn_has_them(dump_dir, run):
    program = open_drgn(dump_dir)
    for name in ("schedule", "panic", "vfs_read", "init_task", "linux_banner"):
        symbol = program.symbol(name)
        assert int(run("ksym", name)[0]["address"], 16) == symbol.address
        (row,) = run("ksym", f"{symbol.address + 8:x}")
        assert (row["name"], row["offset"]) == (name, 8)


def test_duplicates_are_all_shown(run):
    names = [row["name"] for row in run("ksym", "-q", "t_next")]
    copies = run("ksym", "t_next")
    assert len(copies) == names.count("t_next") > 1
    assert len({row["address"] for row in copies}) == len(copies)


def test_neighbours_follow_each_other(run):
    here, after = run("ksym", "-n", "schedule")
    before, again = run("ksym", "-p", after["name"])
    assert here["name"] == "schedule"
    assert int(before["address"], 16) == int(here["address"], 16)
    assert again["address"] == after["address"]


def test_a_module_lists_its_symbols_in_its_memory(truth, run):
    module = next(m for m in truth["modules"] if m["name"] == "virtio_blk")
    rows = run("ksym", "-m", "virtio_blk")
    assert {row["module"] for row in rows} == {"virtio_blk"}
    base = module["address"]
    text = [row for row in rows if row["type"] in "tT" and row["name"] != "init_module"]
    assert sum(base <= int(row["address"], 16) < base + (1 << 20) for row in text) > 10
    assert rows == [row for row in run("ksym", "-M") if row["module"] == "virtio_blk"]


def test_the_line_is_crashs(session, run_text):
    address = session.kernel.symbol("panic")
    assert run_text("ksym", "panic+0x10") == [f"{address + 16:016x} (T) panic+0x10"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no_such_symbol"], "no symbol no_such_symbol in this kernel"),
        (["-m", "nonsense"], "no module 'nonsense'.*virtio_blk"),
        (["0x1000"], "in no symbol"),
        ([], "say which SYMBOL or ADDRESS"),
    ],
)
def test_wrong_use_says_what_is_wrong(run, words, message):
    with pytest.raises(CommandError, match=message):
        run("ksym", *words)


def test_what_is_found_comes_before_the_complaint(session):
    from gdbkdump.commands import find_command

    command = find_command("ksym")
    rows = command.run(session, command.parse(["panic", "nonsense", "schedule"])).items
    assert next(rows).name == "panic"
    assert next(rows).name == "schedule"
    with pytest.raises(CommandError, match="nonsense"):
        next(rows)
