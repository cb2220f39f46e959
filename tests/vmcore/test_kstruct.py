# SPDX-License-Identifier: GPL-2.0-or-later
"""kstruct: layouts and values as drgn gets them from DWARF."""

from __future__ import annotations

from collections import Counter

import pytest
from support.oracle import open_drgn

from gdbkdump.errors import CommandError, FaultError

NR_STRUCTS = 400


def flat(type_, base=0):
    """Yield (name, bit offset, bit size or 0) of a drgn type as kstruct flattens it."""
    import drgn

    for member in type_.members:
        inner = member.type
        while inner.kind == drgn.TypeKind.TYPEDEF:
            inner = inner.type
        if member.name is None:
            yield from flat(inner, base + member.bit_offset)
        else:
            yield member.name, base + member.bit_offset, member.bit_field_size or 0


def ours(row):
    for member in row["members"]:
        bits = member.get("bit_offset", 0)
        yield member["name"], member["offset"] * 8 + bits, member.get("bit_size", 0)


@pytest.mark.parametrize("keyword", ["struct", "union"])
def test_layouts_are_drgns(dump_dir, session, run, keyword):
    program = open_drgn(dump_dir)
    counted = Counter(session.kernel.debuginfo.types.names(keyword))
    # Of types that share a name each side may take another one.
    names = sorted(name for name, count in counted.items() if count == 1)
    chosen = names[:: max(1, len(names) // NR_STRUCTS)]
    compared = 0
    for name in chosen:
        try:
            wanted = program.type(f"{keyword} {name}")
        except LookupError:
            continue
        if not wanted.is_complete():
            continue
        (row,) = run("kstruct", keyword, name)
        assert row["size"] == wanted.size, name
        assert list(ours(row)) == list(flat(wanted)), name
        compared += 1
    assert compared > len(chosen) * 0.8


def test_task_struct_is_drgns(dump_dir, run):
    wanted = open_drgn(dump_dir).type("struct task_struct")
    (row,) = run("kstruct", "task_struct")
    assert list(ours(row)) == list(flat(wanted))


def test_enums_are_drgns(dump_dir, run):
    program = open_drgn(dump_dir)
    for name in ("pid_type", "zone_type", "module_state", "hrtimer_restart"):
        wanted = program.type(f"enum {name}")
        (row,) = run("kstruct", f"enum {name}")
        assert row["values"] == {e.name: e.value for e in wanted.enumerators}


def same(data, wanted, where):
    """Compare what kstruct says of an object with drgn's."""
    import drgn

    type_ = wanted.type_
    while type_.kind == drgn.TypeKind.TYPEDEF:
        type_ = type_.type
    if type_.kind in (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION):
        for member in type_.members:
            if member.name:
                value = wanted.member_(member.name)
                same(data[member.name], value, f"{where}.{member.name}")
    elif type_.kind == drgn.TypeKind.ARRAY:
        if not type_.length:
            assert int(data, 16) == wanted.address_
        elif isinstance(data, str):
            assert data == wanted.string_().decode("utf-8", "backslashreplace"), where
        else:
            assert len(data) == type_.length, where
            for i, each in enumerate(data):
                same(each, wanted[i], f"{where}[{i}]")
    elif type_.kind == drgn.TypeKind.POINTER:
        assert int(data, 16) == wanted.value_(), where
    elif type_.kind == drgn.TypeKind.ENUM and isinstance(data, str):
        names = {e.name: e.value for e in type_.enumerators}
        assert names[data] == wanted.value_(), where
    else:
        assert data == wanted.value_(), where


@pytest.mark.parametrize(
    ("symbol", "type_"),
    [
        ("init_task", "task_struct"),
        ("init_mm", "mm_struct"),
        ("init_pid_ns", "pid_namespace"),
        ("init_uts_ns", "uts_namespace"),
        ("init_user_ns", "user_namespace"),
        ("init_net", "net"),
        ("root_task_group", "task_group"),
    ],
)
def test_values_are_drgns(dump_dir, run, symbol, type_):
    (row,) = run("kstruct", type_, symbol)
    wanted = open_drgn(dump_dir)[symbol]
    assert int(row["address"], 16) == wanted.address_
    same(row["members"], wanted, symbol)


def test_every_task_by_its_members(truth, session, run):
    from gdbkdump.kernel.sched import tasks

    names = {task["pid"]: task["comm"] for task in truth["tasks"]}
    seen = 0
    for task in tasks(session.kernel)[:200]:
        (row,) = run("kstruct", "task_struct.pid,comm,tgid", f"{task.address:x}")
        members = row["members"]
        assert (members["pid"], members["tgid"]) == (task.pid, task.tgid)
        if task.pid in names and not names[task.pid].startswith("kworker"):
            seen += members["comm"] == names[task.pid]
    assert seen > 40


def test_paths_go_through_pointers(dump_dir, run):
    task = open_drgn(dump_dir)["init_task"]
    release = task.nsproxy.uts_ns.name.release.string_().decode()
    path = "nsproxy.uts_ns.name.release,signal.nr_threads,thread_info.flags"
    (row,) = run("kstruct", f"task_struct.{path}", "init_task")
    assert row["members"] == {
        "nsproxy.uts_ns.name.release": release,
        "signal.nr_threads": task.signal.nr_threads.value_(),
        "thread_info.flags": task.thread_info.flags.value_(),
    }


def test_per_cpu_copies(dump_dir, run):
    from drgn.helpers.linux.percpu import per_cpu

    rq = open_drgn(dump_dir)["runqueues"]
    rows = run("kstruct", "rq.cpu,curr", "runqueues:a")
    assert [row["cpu"] for row in rows] == list(range(len(rows)))
    for row in rows:
        copy = per_cpu(rq, row["cpu"])
        assert row["members"]["cpu"] == row["cpu"]
        assert int(row["members"]["curr"], 16) == copy.curr.value_()
        assert int(row["address"], 16) == copy.address_
    assert run("kstruct", "rq.cpu,curr", "runqueues:0,2-3") == [rows[0], *rows[2:4]]


def test_container_and_counts(session, run):
    kernel = session.kernel
    task = kernel.symbol("init_task")
    node = task + kernel.struct("task_struct").offset("tasks")
    (row,) = run("kstruct", "task_struct.comm", f"{node:x}", "-l", "task_struct.tasks")
    assert row["members"] == {"comm": "swapper/0"}
    rows = run("kstruct", "list_head", "modules", "3")
    first = kernel.symbol("modules")
    assert [int(r["address"], 16) for r in rows] == [first, first + 16, first + 32]
    back = run("kstruct", "list_head", "modules", "-c", "-2")
    assert [int(r["address"], 16) for r in back] == [first - 16, first]


def test_bit_fields(dump_dir, session, run):
    from gdbkdump.kernel.sched import tasks

    drgn = open_drgn(dump_dir)
    import drgn as api

    names = ["sched_reset_on_fork", "in_execve", "no_cgroup_migration"]
    for task in tasks(session.kernel)[:100]:
        (row,) = run("kstruct", f"task_struct.{','.join(names)}", f"{task.address:x}")
        wanted = api.Object(drgn, "struct task_struct", address=task.address)
        for name in names:
            assert row["members"][name] == wanted.member_(name).value_()


def test_types_of_modules(truth, session, run):
    modules = {module.name: module for module in session.kernel.debuginfo.modules()}
    if modules["virtio_blk"].types() is None:
        pytest.skip("the modules of this kernel have no BTF")
    (row,) = run("kstruct", "virtio_blk")
    assert {"vdev", "disk", "tag_set"} <= {member["name"] for member in row["members"]}


def test_the_layout_is_crashs(run_text):
    assert run_text("kstruct", "list_head") == [
        "struct list_head {",
        "    struct list_head *next;",
        "    struct list_head *prev;",
        "}",
        "SIZE: 16",
    ]
    assert run_text("kstruct", "-o", "rb_root_cached") == [
        "struct rb_root_cached {",
        "  [0] struct rb_root rb_root;",
        "  [8] struct rb_node *rb_leftmost;",
        "}",
        "SIZE: 16",
    ]


def test_the_object_is_crashs(session, run_text):
    kernel = session.kernel
    address = kernel.symbol("modules")
    following, before = kernel.reader.array(address, "Q", 2)
    at = kernel.debuginfo.symbol_at
    assert run_text("kstruct", "list_head", "modules") == [
        "struct list_head {",
        f"  next = {following:#x} <{at(following)}>,",
        f"  prev = {before:#x} <{at(before)}>",
        "}",
    ]
    assert run_text("kstruct", "-o", "list_head", "modules")[1:3] == [
        f"  [{address:016x}] struct list_head *next;",
        f"  [{address + 8:016x}] struct list_head *prev;",
    ]


def test_hex_and_decimal(run_text):
    assert run_text("kstruct", "task_struct.prio", "init_task") == ["  prio = 120"]
    assert run_text("kstruct", "-x", "task_struct.prio", "init_task") == [
        "  prio = 0x78"
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["task_stuct"], "no type 'task_stuct'.*did you mean task_struct"),
        (["task_struct.com"], "no member 'com'.*did you mean comm"),
        (["task_struct.comm.x"], "no members"),
        (["task_struct.comm[99]"], "has 16 elements"),
        (["task_struct", "init_task", "1", "2"], "one ADDRESS and one COUNT"),
        (["task_struct", "init_task", "0"], "COUNT of 0"),
        (["task_struct", "runqueues:x"], "after the colon come CPUs"),
        (["task_struct", "-x", "-d", "init_task"], "exclude"),
        (["task struct"], "is no TYPE"),
    ],
)
def test_wrong_use_says_what_is_wrong(run, argv, message):
    with pytest.raises(CommandError, match=message):
        run("kstruct", *argv)


def test_nothing_at_all_is_an_error(run):
    with pytest.raises(FaultError, match="0x10: not mapped"):
        run("kstruct", "task_struct", "10")


def test_a_null_pointer_on_the_way_is_told(run):
    (row,) = run("kstruct", "task_struct.pid,mm.pgd", "init_task")
    assert row["members"]["pid"] == 0
    assert row["members"]["mm.pgd"] is None
    assert "not mapped" in row["members"]["absent"]["mm.pgd"]
