# SPDX-License-Identifier: GPL-2.0-or-later
"""klist: the objects of real lists, both ways, as drgn and the guest have them."""

from __future__ import annotations

import pytest
from support.oracle import open_drgn

from gdbkdump.errors import CommandError, CorruptError


def addresses(rows):
    return [int(row["address"], 16) for row in rows]


def test_modules_are_the_guests(truth, run):
    rows = run("klist", "-H", "modules", "-o", "module.list", "-s", "module.name,state")
    assert [row["members"]["name"] for row in rows] == [
        module["name"] for module in truth["modules"]
    ]
    assert {row["members"]["state"] for row in rows} == {"MODULE_STATE_LIVE"}
    assert {row["type"] for row in rows} == {"struct module"}


def test_processes_are_drgns(dump_dir, run):
    from drgn.helpers.linux.list import list_for_each_entry

    head = open_drgn(dump_dir)["init_task"].tasks.address_of_()
    wanted = [
        (task.value_(), task.pid.value_())
        for task in list_for_each_entry("struct task_struct", head, "tasks")
    ]
    link = "task_struct.tasks"
    rows = run("klist", "-h", "init_task", "-o", link, "-s", "task_struct.pid")
    found = [(int(row["address"], 16), row["members"]["pid"]) for row in rows]
    assert found[0][1] == 0
    assert found[1:] == wanted
    by_link = run("klist", f"{head.value_():x}", "-l", link, "-s", "task_struct.pid")
    assert by_link == rows


def test_reverse_is_the_other_way_round(run):
    forwards = addresses(run("klist", "-H", "modules"))
    assert len(forwards) > 2
    assert addresses(run("klist", "-H", "-r", "modules")) == forwards[::-1]


def test_an_end_stops_the_walk(run):
    nodes = addresses(run("klist", "-H", "modules"))
    assert addresses(run("klist", "-H", "modules", "-e", f"{nodes[2]:x}")) == nodes[:2]


def test_a_plain_chain_ends_with_null(truth, session, run):
    # Resources point to their siblings by a member that is no list_head.
    kernel = session.kernel
    root = kernel.object("resource", kernel.symbol("iomem_resource"))
    member = "resource.sibling"
    spec = "resource.start,end"
    rows = run("klist", f"{root['child']:x}", "-o", member, "-s", spec)
    assert [(row["members"]["start"], row["members"]["end"]) for row in rows] == [
        (each["start"], each["end"]) for each in truth["iomem"] if not each["depth"]
    ]
    last = kernel.object("resource", addresses(rows)[-1])
    assert last["sibling"] == 0


def test_an_hlist(dump_dir, session, run):
    from drgn.helpers.linux.list import hlist_for_each

    program = open_drgn(dump_dir)
    pid = program["init_task"].tasks.next
    import drgn

    task = drgn.container_of(pid, "struct task_struct", "tasks")
    head = task.thread_pid.tasks[0].address_of_()
    wanted = [node.value_() for node in hlist_for_each(head)]
    assert wanted
    assert addresses(run("klist", "-H", "-t", "hlist", f"{head.value_():x}")) == wanted


def test_what_breaks_says_where_after_what_there_is(session, run_text):
    # The head of a task is no list: its first words are flags.
    from gdbkdump.commands import find_command
    from gdbkdump.render.text import lines

    command = find_command("klist")
    result = command.run(session, command.parse(["-H", "init_task"]))
    shown = []
    with pytest.raises(CorruptError, match=r"list at 0x\w+ breaks after 1 nodes"):
        for line in lines(result):
            shown.append(line)
    assert shown == [
        f"{session.kernel.reader.u64(session.kernel.symbol('init_task')):016x}"
    ]


def test_the_lines_are_crashs(session, run_text):
    lines = run_text("klist", "-H", "modules", "-o", "module.list", "-s", "module.name")
    first = next(iter(session.kernel.debuginfo.modules()))
    assert lines[1] == f'  name = "{first.name}"'
    assert len(lines[0]) == 16


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-H", "-h", "modules"], "exclude"),
        (["-t", "hlist", "modules"], "address of a head"),
        (["-H", "-r", "-t", "llist", "modules"], "reverse"),
        (["-H", "modules", "-o", "module.lst"], "did you mean list"),
        (["-H", "modules", "-s", "modul"], "did you mean module"),
        (["-H", "modules", "-t", "tree"], "invalid choice"),
        (["nonsense"], "neither an address nor a symbol"),
    ],
)
def test_wrong_use_says_what_is_wrong(run, argv, message):
    with pytest.raises(CommandError, match=message):
        run("klist", *argv)
