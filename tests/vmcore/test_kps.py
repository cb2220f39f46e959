# SPDX-License-Identifier: GPL-2.0-or-later
"""kps against /proc of the guest, just before it crashed."""

from __future__ import annotations

import pytest

from gdbkdump.kernel.sched import task_problems, task_state_letter, tasks
from tests.support.passing import PASSING

# Tasks that ran between the snapshot and the crash; what they did then is not in it.
BUSY = ("wl-spin-user", "wl-spin-kern", "wl-crash", "init")
LETTER = {
    "RU": "R", "IN": "S", "UN": "D", "ST": "T", "TR": "t", "ZO": "Z", "ID": "I",
}  # fmt: skip


@pytest.fixture(scope="module")
def by_pid(truth):
    return {task["pid"]: task for task in truth["tasks"]}


def comm_of(row):
    return (
        row["comm"]
        .encode("utf-8", "surrogateescape")
        .decode("utf-8", "backslashreplace")
    )


def test_every_task_is_there_and_no_other(run, by_pid, session):
    rows = run("kps")
    assert "note" not in rows[-1]
    assert task_problems(session.kernel) == []
    pids = {row["pid"] for row in rows if row["pid"]}
    # Only kernel threads may come and go in the moment between snapshot and crash.
    changed = pids ^ set(by_pid)
    known = {row["pid"]: row["comm"] for row in rows} | {
        pid: task["comm"] for pid, task in by_pid.items()
    }
    assert [
        known[p] for p in changed if not known[p].startswith((*PASSING, "wl-"))
    ] == []
    missing = [t["comm"] for p, t in by_pid.items() if p not in pids]
    assert [comm for comm in missing if not comm.startswith(PASSING)] == []


def test_identity_and_parent(run, by_pid):
    compared = 0
    for row in run("kps"):
        task = by_pid.get(row["pid"])
        if task is None:
            continue
        compared += 1
        assert row["comm"] == comm_of(task)
        assert row["ppid"] == task["ppid"]
    assert compared >= len(by_pid) - 3


def test_states_are_what_proc_shows(run, by_pid, session):
    letters = {
        t.pid: task_state_letter(session.kernel, t) for t in tasks(session.kernel)
    }
    compared = 0
    for row in run("kps"):
        task = by_pid.get(row["pid"])
        is_kthread = task and task["flags"] & 0x200000
        if task is None or task["comm"] in BUSY or is_kthread:
            continue
        compared += 1
        assert letters[row["pid"]] == task["state"], task["comm"]
        assert LETTER[row["state"]] == task["state"], task["comm"]
    assert compared > 40


def test_memory_sizes(run, by_pid):
    for row in run("kps", "-u"):
        task = by_pid.get(row["pid"])
        if task is None or task["comm"] in BUSY:
            continue
        assert row["vsz_kib"] * 1024 == task["vsize"]
        # /proc leaves out what CPUs and threads count apart: up to 64 pages each.
        assert abs(row["rss_kib"] // 4 - task["rss_pages"]) <= 3 * 64


def test_active_tasks_are_one_a_cpu(run, truth, session):
    rows = run("kps", "-A")
    assert sorted(row["cpu"] for row in rows) == list(range(len(rows)))
    comms = {row["comm"] for row in rows}
    assert {"wl-spin-user", "wl-crash"} <= comms
    assert all(row["active"] for row in rows)


def test_filters_agree_with_each_other(run):
    everything = {row["task"] for row in run("kps")}
    user = {row["task"] for row in run("kps", "-u")}
    kernel = {row["task"] for row in run("kps", "-k")}
    assert user | kernel == everything
    assert not user & kernel
    assert [row["comm"] for row in run("kps", "wl-zombie")] == ["wl-zombie"]
    assert {row["comm"] for row in run("kps", "/^wl-vfork/")} == {
        "wl-vfork", "wl-vfork-kid",
    }  # fmt: skip
    assert "wl-vfork" in {row["comm"] for row in run("kps", "UN")}
    (by_pid,) = run("kps", "1")
    (by_address,) = run("kps", by_pid["task"])
    assert by_pid == by_address


def test_policy(run):
    fifo = {row["comm"] for row in run("kps", "-y", "FIFO")}
    assert "wl-fifo" in fifo
    assert "wl-rr" not in fifo


def test_state_summary_counts_each_task_once(run):
    assert sum(row["count"] for row in run("kps", "-S")) == len(run("kps"))


def test_arguments_and_environment(run, truth):
    (row,) = run("kps", "-a", "1")
    assert row["args"] == truth["processes"]["1"]["cmdline"]
    assert row["envs"] == truth["processes"]["1"]["environ"]


def test_start_times(run, by_pid):
    for row in run("kps", "-t", "-u"):
        task = by_pid.get(row["pid"])
        if task:
            # /proc counts in clock ticks of 10 ms.
            assert row["start_boottime_ns"] // 10_000_000 == task["starttime"]


def test_last_run_is_sorted_and_the_panicking_task_is_first(run):
    rows = run("kps", "-m")
    runs = [row["last_run_ns"] for row in rows]
    assert runs == sorted(runs, reverse=True)


def test_parents_end_at_the_idle_task(run):
    (row,) = run("kps", "-p", "wl-crash")
    assert row["parents"][-1]["pid"] == 0
    assert row["parents"][-2]["pid"] == 1


def test_children(run, by_pid):
    (row,) = run("kps", "-c", "wl-main")
    (main,) = [task for task in by_pid.values() if task["comm"] == "wl-main"]
    wanted = {
        task["pid"]
        for task in by_pid.values()
        if task["ppid"] == main["pid"] and task["pid"] == task["tgid"]
    }
    assert {child["pid"] for child in row["children"]} == wanted


def test_text_has_crash_columns_and_no_control_characters(run_text):
    lines = run_text("kps")
    assert lines[0].split() == [
        "PID", "PPID", "CPU", "TASK", "ST", "%MEM", "VSZ", "RSS", "COMM",
    ]  # fmt: skip
    assert all(line.isprintable() for line in lines)
    assert any(line.endswith(r" wl-\x1b[31mesc") for line in lines)
    assert any(line.endswith(r" wl-new\x0aline") for line in lines)
