# SPDX-License-Identifier: GPL-2.0-or-later
"""ksys against what the guest said of itself."""

from __future__ import annotations


def test_the_summary_is_the_guests(run, truth, session):
    (row,) = [row for row in run("ksys") if "note" not in row]
    assert row["nodename"] == truth["hostname"]
    assert row["release"] == truth["release"]
    assert truth["version"].endswith(row["version"])
    assert row["memory"] == truth["meminfo"]["MemTotal"] * 1024
    assert 0 <= row["date"] - truth["wall_time"] < 120
    assert row["date"] == int(session.kernel.vmcoreinfo.get("CRASHTIME"))
    boottime = float(truth["clock"]["end"]["boottime"])
    assert boottime <= row["uptime"] / 1e9 < boottime + 120
    for mine, guests in zip(row["load_average"], truth["loadavg"], strict=False):
        # It is computed anew every 5 seconds, and a crash takes less than a minute.
        assert abs(float(mine) - float(guests)) < 1


def test_the_panic(run, truth):
    (row,) = [row for row in run("ksys") if "note" not in row]
    assert row["pid"] == truth["panic"]["pid"]
    assert row["cpu"] == truth["panic"]["cpu"]
    assert row["panic"] == "Kernel panic - not syncing: sysrq triggered crash"
    assert row["command"] == "wl-crash"
    assert row["state"] == "RU"
    (active,) = [r for r in run("kps", "-A") if r["comm"] == "wl-crash"]
    assert row["task"] == active["task"]
    assert row["cpu"] == active["cpu"]


def test_nothing_is_wrong_with_a_good_dump(run, session):
    assert session.problems == []
    assert [row for row in run("ksys") if "note" in row] == []


def test_tasks_are_counted_with_idle_tasks(run):
    (row,) = [row for row in run("ksys") if "note" not in row]
    assert row["tasks"] == len(run("kps"))


def test_taint_mask(run, truth):
    (row,) = run("ksys", "-t")
    assert row["tainted_mask"] == truth["tainted"]
