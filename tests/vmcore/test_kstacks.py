# SPDX-License-Identifier: GPL-2.0-or-later
"""kstacks is kbt of all tasks, each stack once."""

from __future__ import annotations

from collections import Counter

import pytest

from gdbkdump.errors import CommandError


def names(frames):
    return tuple(frame["symbol"] if frame else None for frame in frames)


def test_every_task_is_in_one_stack(run):
    tasks = Counter(row["pid"] for row in run("kps"))
    stacks = [row for row in run("kstacks") if "note" not in row]
    assert Counter(pid for row in stacks for pid in row["pids"]) == tasks
    assert [row["count"] for row in stacks] == sorted(
        (len(row["pids"]) for row in stacks), reverse=True
    )
    assert all(sum(row["states"].values()) == row["count"] for row in stacks)


def test_they_are_the_stacks_of_kbt(run):
    wanted = Counter(names(row["frames"]) for row in run("kforeach", "user", "kbt"))
    got: Counter = Counter()
    for row in run("kstacks", "user"):
        got[names(row["frames"])] += row["count"]
    assert got == wanted


def test_filters(run):
    uninterruptible = run("kstacks", "-t", "UN")
    assert {pid for row in uninterruptible for pid in row["pids"]} == {
        row["pid"] for row in run("kps", "UN")
    }
    sleeping = run("kstacks", "-c", "do_nanosleep")
    everything = [row for row in run("kstacks") if "note" not in row]
    assert sleeping == [
        row for row in everything if "do_nanosleep" in names(row["frames"])
    ]
    active = {pid for row in run("kstacks", "--active") for pid in row["pids"]}
    assert active == {row["pid"] for row in run("kps", "-A")}
    with pytest.raises(CommandError, match="no state 'XX'"):
        run("kstacks", "-t", "XX")


def test_folded(run, tmp_path):
    path = tmp_path / "stacks.folded"
    (note,) = run("kstacks", "--folded", str(path))
    folded: Counter = Counter()
    for line in path.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        folded[tuple(reversed(stack.split(";")))] += int(count)
    wanted: Counter = Counter()
    for row in run("kstacks"):
        if "note" not in row and row["frames"]:
            key = tuple(name or "(unknown)" for name in names(row["frames"]))
            wanted[key] += row["count"]
    assert folded == wanted
    assert note["note"].endswith(f"stacks written to {path}")


def test_folded_does_not_overwrite_the_dump(run, session, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(session.path)
    before = session.path.stat()
    with pytest.raises(CommandError, match="is what is being read"):
        run("kstacks", "--folded", str(link))
    assert session.path.stat().st_size == before.st_size
    assert session.path.stat().st_mtime_ns == before.st_mtime_ns
