# SPDX-License-Identifier: GPL-2.0-or-later
"""kvtop: physical addresses as drgn has them; the file has the bytes where it says."""

from __future__ import annotations

import os

import pytest
from support.oracle import open_drgn

from gdbkdump.errors import CommandError
from gdbkdump.kernel.module import for_each_module
from gdbkdump.kernel.percpu import per_cpu
from gdbkdump.kernel.sched import tasks


def follow_phys(program, address):
    from drgn.helpers.linux.mm import follow_phys

    return follow_phys(program["init_mm"].address_of_(), address).value_()


def regions(row):
    return {region["name"]: region["detail"] for region in row["regions"]}


@pytest.fixture(scope="module")
def places(session):
    kernel = session.kernel
    others = [task for task in tasks(kernel) if not task.is_idle]
    return {
        "image": kernel.symbol("schedule"),
        "data": kernel.symbol("init_task"),
        "task": max(task.address for task in others),
        "stack": max(task.stack for task in others if task.stack),
        "module": next(for_each_module(kernel)).ranges[0][0],
        "per-CPU": per_cpu(kernel, "runqueues", 1),
    }


def test_physical_addresses_are_drgns(dump_dir, places, run):
    program = open_drgn(dump_dir)
    for name, address in places.items():
        (row,) = run("kvtop", f"{address + 0x123:x}")
        assert int(row["physical"], 16) == follow_phys(program, address + 0x123), name


def test_the_file_has_the_bytes(session, places, run):
    with open(session.path, "rb") as file:
        for name, address in places.items():
            (row,) = run("kvtop", f"{address:x}")
            data = os.pread(file.fileno(), 64, int(row["file_offset"], 16))
            assert data == session.kernel.reader.read(address, 64), name


def test_the_levels_lead_from_the_root_to_the_page(session, places, run):
    kernel = session.kernel
    for address in places.values():
        (row,) = run("kvtop", f"{address:x}")
        levels = row["levels"]
        root = kernel.memory.page_table.root
        assert root <= int(levels[0]["address"], 16) < root + 4096
        for entry in levels:
            value = kernel.memory.read_phys(int(entry["address"], 16), 8)
            assert int.from_bytes(value, "little") == int(entry["value"], 16)
        names = [entry["level"] for entry in levels]
        five = ["PGD", "P4D", "PUD", "PMD", "PTE"]
        whole = five if "P4D" in names else [each for each in five if each != "P4D"]
        assert names == whole[: len(names)]
        assert "PSE" in levels[-1]["flags"] or levels[-1]["level"] == "PTE"
        size = {"PTE": 1 << 12, "PMD": 1 << 21, "PUD": 1 << 30}[levels[-1]["level"]]
        assert row["page_size"] == size
        assert int(row["page"], 16) % size == 0


def test_what_an_address_belongs_to(places, run):
    (row,) = run("kvtop", f"{places['image'] + 0x10:x}")
    assert regions(row) == {"kernel image": "schedule+0x10"}
    (row,) = run("kvtop", f"{places['module']:x}")
    assert "dummy" in regions(row)["module"]
    (row,) = run("kvtop", f"{places['per-CPU']:x}")
    assert regions(row)["per-CPU data"] == "CPU 1: runqueues"
    assert "direct map" in regions(row)
    (row,) = run("kvtop", f"{places['task']:x}")
    assert regions(row) == {"direct map": ""}
    (row,) = run("kvtop", f"{places['stack']:x}")
    assert regions(row) == {"vmalloc": ""}


def test_the_struct_page_is_drgns(dump_dir, places, run):
    from drgn.helpers.linux.mm import phys_to_page

    program = open_drgn(dump_dir)
    for address in places.values():
        (row,) = run("kvtop", f"{address:x}")
        page = phys_to_page(program, int(row["physical"], 16)).value_()
        assert int(row["page_struct"], 16) == page
        (again,) = run("kvtop", row["page_struct"])
        pfn = int(row["physical"], 16) >> 12
        assert regions(again) == {"struct page": f"pfn {pfn:#x}"}


def test_user_memory(session, dump_dir, run):
    from drgn.helpers.linux.mm import follow_phys
    from drgn.helpers.linux.pid import find_task

    (row,) = run("kvtop", "-c", "1", "400000")
    program = open_drgn(dump_dir)
    mm = find_task(program, 1).mm
    assert int(row["physical"], 16) == follow_phys(mm, 0x400000).value_()
    assert row["pid"] == 1
    assert "USER" in row["levels"][-1]["flags"]
    paddr = int(row["physical"], 16)
    assert session.dump.read_phys(paddr, 4) == b"\x7fELF"


def test_what_is_not_mapped_says_where_the_walk_ended(run, run_text):
    (row,) = run("kvtop", "-k", "1000")
    assert row["physical"] is None
    assert row["absent"] == {"physical": "not mapped by the kernel's page tables"}
    assert int(row["levels"][-1]["value"], 16) & 1 == 0
    assert "(not mapped by the kernel's page tables)" in run_text("kvtop", "-k", "8")[1]
    (row,) = run("kvtop", "-k", "1234567890123456")
    assert row["absent"] == {"physical": "not a canonical address"}


def test_the_lines(session, run_text):
    kernel = session.kernel
    address = kernel.symbol("init_task")
    lines = run_text("kvtop", "init_task")
    assert lines[0] == "VIRTUAL           PHYSICAL"
    assert lines[1] == f"{address:016x}  {kernel.memory.translate(address):x}"
    assert lines[3].startswith(f"   PGD: {kernel.memory.page_table.root + 0xFF8:x} => ")
    assert "    IN: kernel image, init_task" in lines


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-k", "-u", "0"], "excludes"),
        (["-c", "2", "400000"], "kthreadd.*no user memory"),
        (["nonsense"], "neither an address nor a symbol"),
    ],
)
def test_wrong_use_says_what_is_wrong(run, argv, message):
    with pytest.raises(CommandError, match=message):
        run("kvtop", *argv)
