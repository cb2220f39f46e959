# SPDX-License-Identifier: GPL-2.0-or-later
"""``makedumpfile -E`` at all its levels: what is there is right, what is not is said.

Each file is made, looked at whole, and gone again; the commands' rows, all pages, and
the ranges that gdb is given are compared with the vmcore that it was made of.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
from contextlib import closing
from itertools import pairwise
from subprocess import PIPE

import pytest

from gdbkdump.cli import main
from gdbkdump.commands import find_command
from gdbkdump.errors import FaultError, FaultReason
from gdbkdump.formats import is_process_core, open_dump
from gdbkdump.kernel.sched import task_problems, tasks
from gdbkdump.render import json_text
from gdbkdump.session import open_session
from gdbkdump.target.viewcore import kernel_ranges

PAGE = 4096
PIECE = 8 << 20
LIMIT = 64 << 20
COMMANDS = ("klog", "kps", "kbt -a", "kmod", "kregs -a")
# Debian 12's makedumpfile knows these levels of all our kernels.
SAFE = (0, 1, 17)


def rows(session, text):
    name, *words = text.split()
    command = find_command(name)
    result = command.run(session, command.parse(words))
    return [json.loads(line) for line in json_text.lines(result)]


@pytest.fixture(scope="module")
def whole(dump_dir, session):
    """Return a reader of the vmcore, and the rows of its commands."""
    if dump_dir.name.startswith("big"):
        pytest.skip("levels are compared on the small dumps")
    with closing(open_dump(dump_dir / "vmcore")) as dump:
        yield dump, {text: rows(session, text) for text in COMMANDS}


@pytest.fixture
def saved(request, dump_dir, tmp_path):
    """Save the dump at a level; return where."""
    level = request.param
    if dump_dir.name != "small-6.1" and level not in SAFE:
        pytest.skip("all levels are tried on small-6.1")
    path = tmp_path / "vmcore"
    words = ["makedumpfile", "-E", "-d", str(level), dump_dir / "vmcore", path]
    subprocess.run(words, capture_output=True, check=True)
    yield level, path
    path.unlink()


def runs(dump):
    """Return start and end of what is in the file, merged, in order."""
    merged = []
    for start, end in sorted((e.paddr, e.paddr + e.file_size) for e in dump.extents):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(end, merged[-1][1])
        elif start < end:
            merged.append([start, end])
    return merged


def parts(start, end):
    """Yield address and size of parts that are read at once."""
    for at in range(start, end, PIECE):
        yield at, min(PIECE, end - at)


def refused(dump, paddr):
    with pytest.raises(FaultError) as caught:
        dump.read_phys(paddr, 1)
    return caught.value.reason


@pytest.mark.parametrize("saved", range(32), indirect=True)
def test_a_level_shows_the_truth_or_says_why_not(saved, whole):
    level, path = saved
    vmcore, expected = whole
    with closing(open_session(path)) as session:
        assert session.problems == []
        for text in COMMANDS:
            assert rows(session, text) == expected[text]
        dump = session.dump
        there = runs(dump)
        for start, end in there:
            for at, size in parts(start, end):
                assert dump.read_phys(at, size) == vmcore.read_phys(at, size)
        left_out = [
            (low, high)
            for first, last in runs(vmcore)
            for low, high in gaps(there, first, last)
        ]
        assert dump.excluded == sum(high - low for low, high in left_out)
        assert (level in (0,)) == (dump.excluded < PAGE)
        check_left_out(dump, vmcore, level, left_out)
        check_ranges(session, vmcore, there)


@pytest.fixture
def misjudged(dump_dir, tmp_path, whole):
    """Save the dump as a makedumpfile does that knows its kernel badly.

    Debian 12's takes pages of slabs of 6.12 and 7.x for those of user memory.
    """
    path = tmp_path / "vmcore"
    words = ["makedumpfile", "-l", "-d", "8", dump_dir / "vmcore", path]
    subprocess.run(words, capture_output=True, check=True)
    with closing(open_session(path)) as session:
        yield session
    path.unlink()


def is_reason(text):
    return "page excluded by makedumpfile" in text or "parent is not in" in text


def test_structures_that_were_left_out_are_said_to_be(misjudged, session, whole):
    _, expected = whole
    for text in ("klog", "kmod", "kbt -a", "kregs -a"):
        assert rows(misjudged, text) == expected[text]
    found = {row["task"]: row for row in rows(misjudged, "kps") if "task" in row}
    for row in expected["kps"]:
        mine = found.pop(row["task"], None)
        if mine is None:
            # Its task_struct, or what could have led to it.
            assert any(
                is_reason(problem) for problem in task_problems(misjudged.kernel)
            )
            continue
        absent = mine.pop("absent", {})
        assert all(is_reason(why) for why in absent.values())
        assert {k: v for k, v in mine.items() if k not in absent} == {
            k: v for k, v in row.items() if k not in absent
        }
    assert not found
    nr_readable = sum(is_readable(misjudged, task) for task in tasks(session.kernel))
    # The rest is numbered in one node of the table of pids, which was left out.
    lost = nr_readable - len(tasks(misjudged.kernel))
    nodes = [p for p in task_problems(misjudged.kernel) if p.startswith("xarray")]
    assert lost <= 64 * len(nodes)


def is_readable(session, task):
    type_ = session.kernel.struct("task_struct")
    try:
        session.kernel.reader.read(task.address, type_.offset("thread"))
    except FaultError as fault:
        assert fault.reason is FaultReason.EXCLUDED
        return False
    return True


@pytest.mark.parametrize("is_stream", [False, True])
def test_headers_that_were_never_written(dump_dir, tmp_path, capsys, is_stream):
    # makedumpfile writes them when all memory is written; it is stopped before.
    if dump_dir.name != "small-6.1":
        pytest.skip("once is enough")
    path = tmp_path / "vmcore"
    words = ["makedumpfile", "-E", "-d", "31", dump_dir / "vmcore"]
    if is_stream:
        with path.open("wb") as file:
            subprocess.run([*words, "-F"], stdout=file, stderr=PIPE, check=True)
        os.truncate(path, LIMIT)
    else:
        done = subprocess.run([*words, path], capture_output=True, preexec_fn=limit)
        assert done.returncode
    assert not is_process_core(path)
    assert main([str(path), "-c", "kps"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "saving the dump ended early: the program headers" in err


def limit():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))


def gaps(there, first, last):
    """Yield what of a run of memory is in none of others."""
    inner = [run for run in there if run[0] < last and first < run[1]]
    edges = [(first, first), *inner, (last, last)]
    for (_, end), (start, _) in pairwise(edges):
        if end < start:
            yield end, start


def check_left_out(dump, vmcore, level, left_out):
    chance = random.Random(level)
    for low, high in left_out:
        some = [chance.randrange(low, high) for _ in range(20)]
        for paddr in (low, high - 1, *some):
            assert refused(dump, paddr) is FaultReason.EXCLUDED
        if level == 1:
            # Pages of zeros and nothing else, but for the part of a page at an end.
            for at, size in parts(-(-low // PAGE) * PAGE, high // PAGE * PAGE):
                assert vmcore.read_phys(at, size) == bytes(size)
    before = min(start for start, _ in runs(vmcore)) - 1
    assert refused(dump, before) is FaultReason.HOLE


def check_ranges(session, vmcore, there):
    """Check that gdb is given what is there and nothing else, from the right place."""
    problems = []
    ranges = kernel_ranges(session.kernel, session.dump, problems)
    assert problems == []
    read = session.kernel.memory.read
    with session.path.open("rb") as file:
        for start, end, offset in ranges:
            for at, size in parts(start, end):
                file.seek(offset + at - start)
                assert file.read(size) == read(at, size)
    assert len(ranges) >= len(there)
