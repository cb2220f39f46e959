# SPDX-License-Identifier: GPL-2.0-or-later
"""kforeach gives what the command gives for each task alone."""

from __future__ import annotations

import pytest

from gdbkdump.errors import CommandError


def test_it_is_the_command_for_each_task(run):
    pids = [row["pid"] for row in run("kps", "UN")]
    assert pids
    together = run("kforeach", "UN", "kbt", "-s")
    assert together == [row for pid in pids for row in run("kbt", "-s", str(pid))]


def test_filters(run):
    active = run("kforeach", "active", "kset")
    assert {row["pid"] for row in active} == {row["pid"] for row in run("kps", "-A")}
    leaders = run("kforeach", "user", "gleader", "kset")
    assert [row["pid"] for row in leaders] == [
        row["pid"] for row in run("kps", "-u", "-G")
    ]


@pytest.mark.parametrize("command", [["kps"], ["kps", "-m"], ["kstacks"]])
def test_what_shows_many_tasks_shows_those(run, command):
    wanted = run(command[0], *command[1:], "/^wl-f/", "1")
    assert 2 <= len(wanted) < len(run(*command))
    assert run("kforeach", "/^wl-f/", "1", *command) == wanted
    assert run("kforeach", "WA", *command) == []


def test_the_context_is_as_before(run):
    before = run("kset")
    run("kforeach", "/^wl-f/", "kset")
    assert run("kset") == before


def test_text_has_a_line_between_tasks(run_text):
    lines = run_text("kforeach", "/^wl-vfork/", "kregs")
    assert lines.count("") == 1
    assert sum(line.startswith("PID: ") for line in lines) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which command"),
        (["UN"], "which command"),
        (["UN", "bt", "-s"], r"which command\? bt is kbt\?"),
        (["UN", "kforeach", "kbt"], "does not run itself"),
        (["nobody", "kbt"], "no task 'nobody'"),
        (["kbt", "--nonsense"], "unrecognized arguments"),
    ],
)
def test_wrong_use(run, words, message):
    with pytest.raises(CommandError, match=message):
        run("kforeach", *words)
