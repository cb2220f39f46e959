# SPDX-License-Identifier: GPL-2.0-or-later
"""kuser without gdb: what it says of a process (in gdb: test_processes.py)."""

from __future__ import annotations

import pytest

from gdbkdump.errors import CommandError


def pid_of(truth, comm):
    return next(task["pid"] for task in truth["tasks"] if task["comm"] == comm)


def test_what_there_is_of_a_process(run, truth):
    row, *_ = run("kuser", "wl-thread-3")
    proc = truth["processes"][str(pid_of(truth, "wl-threads"))]
    assert row["pid"] == pid_of(truth, "wl-threads")
    assert row["program"] == proc["exe"]
    assert (row["threads"], row["registers"]) == (9, 9)
    mappings = [m for m in proc["maps"] if m["path"] != "[vsyscall]"]
    assert row["mappings"] == len(mappings)
    total = sum(m["end"] - m["start"] for m in mappings)
    assert row["in_dump"] + row["untouched"] + row["missing"] == total


def test_its_threads(run, truth):
    rows = [row for row in run("kuser", "-t", "wl-futex") if "note" not in row]
    calls = {task["pid"]: task["syscall"].split() for task in truth["tasks"]
             if task["comm"].startswith("wl-futex")}  # fmt: skip
    assert [row["pid"] for row in rows] == sorted(calls)
    for row in rows:
        *_, sp, ip = calls[row["pid"]]
        assert (int(row["rsp"], 16), int(row["rip"], 16)) == (int(sp, 16), int(ip, 16))


def test_its_mappings(run, truth):
    rows = [row for row in run("kuser", "-m", "wl-memory") if "note" not in row]
    proc = truth["processes"][str(pid_of(truth, "wl-memory"))]
    assert [
        (int(r["start"], 16), int(r["end"], 16), r["perm"], r["offset"], r["name"])
        for r in rows
    ] == [
        (m["start"], m["end"], m["flags"], m["offset"], m["path"])
        for m in proc["maps"]
        if m["path"] != "[vsyscall]"
    ]
    for row in rows:
        size = int(row["end"], 16) - int(row["start"], 16)
        assert row["in_dump"] + row["untouched"] + row["missing"] == size
    by_name = {row["name"]: row for row in rows}
    assert by_name["/tmp/wl-mapped"]["in_dump"] == 4096
    assert by_name["[vdso]"]["missing"] == 0
    # Four MiB were written to, four only mapped.
    anonymous = [row for row in rows if not row["name"]]
    assert {(row["in_dump"], row["untouched"]) for row in anonymous} >= {(0, 4 << 20)}
    assert max(row["in_dump"] for row in anonymous) == 4 << 20


def test_the_lines(run_text):
    lines = run_text("kuser", "-m", "wl-memory")
    assert lines[0].split()[:4] == ["START", "END", "PERM", "OFFSET"]
    assert any(line.split()[2:4] == ["r-xp", "4096"] for line in lines)
    assert lines[-1].startswith("note: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["2"], r"kthreadd \(pid 2\) is a kernel thread: it has no user memory"),
        (["wl-zombie"], "has exited: it has no user memory"),
        (["/wl-f/"], r"'/wl-f/' is \d+ processes: give a pid \(\d+, "),
        (["--sysroot", "/tmp", "1"], "--sysroot is for gdb"),
    ],
)
def test_wrong_use_says_what_is_wrong(run, words, message):
    with pytest.raises(CommandError, match=message):
        run("kuser", *words)
