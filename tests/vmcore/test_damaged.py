# SPDX-License-Identifier: GPL-2.0-or-later
"""Damaged copies of a real dump: what is there is opened, what is lost is said."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from contextlib import closing

import pytest

from gdbkdump.cli import main
from gdbkdump.commands import find_command
from gdbkdump.errors import CommandError, FormatError, KdumpError
from gdbkdump.formats import open_dump
from gdbkdump.formats.base import silent
from gdbkdump.formats.hints import Hints
from gdbkdump.kernel.sched import panic_cpu, task_problems, tasks
from gdbkdump.memory.bootstrap import scan_vmcoreinfo
from gdbkdump.render.model import Absent, blocks_of
from gdbkdump.session import open_session
from tests.support.damage import changed

PHDR = struct.Struct("<IIQQQQQQ")
OWN_COPY = "the VMCOREINFO note is {}; the kernel's own copy is used"


@pytest.fixture(scope="module")
def copy(sparse_copy):
    """A sparse copy of a small dump; each test undoes what it changed."""
    return sparse_copy


def note_header(path):
    """Return the program header's place, and place and size of the notes."""
    with path.open("rb") as file:
        head = file.read(4096)
    (phoff,) = struct.unpack_from("<Q", head, 32)
    (count,) = struct.unpack_from("<H", head, 56)
    for at in range(phoff, phoff + count * PHDR.size, PHDR.size):
        type_, _, offset, _, _, size, *_ = PHDR.unpack_from(head, at)
        if type_ == 4:
            return at, offset, size
    raise AssertionError("a vmcore has notes")


def pids(path):
    session = open_session(path)
    try:
        found = sorted(task.pid for task in tasks(session.kernel))
        return found, [*session.problems, *task_problems(session.kernel)]
    finally:
        session.close()


def without_place(problems):
    return [re.sub(r"own copy at 0x[0-9a-f]+ is", "own copy is", p) for p in problems]


@pytest.fixture(scope="module")
def whole(dump_dir):
    return pids(dump_dir / "vmcore")[0]


def test_notes_gone(copy, whole):
    _, offset, size = note_header(copy)
    with changed(copy, [(offset, bytes(size))]):
        found, problems = pids(copy)
    assert found == whole
    assert without_place(problems) == [OWN_COPY.format("missing")]


@pytest.mark.parametrize("cut", [8, 300, 2000])
def test_vmcoreinfo_cut(copy, whole, cut):
    header, _, size = note_header(copy)
    with changed(copy, [(header + 32, struct.pack("<Q", size - cut))]):
        found, problems = pids(copy)
    assert found == whole
    assert OWN_COPY.format("cut") in without_place(problems)


def test_vmcoreinfo_lies(copy, whole):
    _, offset, size = note_header(copy)
    with copy.open("rb") as file:
        file.seek(offset)
        notes = file.read(size)
    at = notes.index(b"NUMBER(phys_base)=") + len(b"NUMBER(phys_base)=")
    with changed(copy, [(offset + at, b"77")]):
        found, problems = pids(copy)
    assert found == whole
    assert without_place(problems) == [OWN_COPY.format("wrong")]


def test_two_kernels_in_one_memory(copy, whole):
    # As where a hypervisor dumps a guest while its capture kernel runs. Without KASLR
    # both have the same virtual addresses; the other one's note is in a page of zeros.
    with closing(open_dump(copy)) as dump:
        ((info, own),) = scan_vmcoreinfo(dump, silent)
        extent = max(dump.extents, key=lambda e: e.file_size)
        free = next(
            paddr
            for paddr in range(extent.paddr + extent.size - 4096, extent.paddr, -4096)
            if not any(dump.read_phys(paddr, 4096))
        )
        place, _ = dump.file_range(free)
    text = re.sub(rb"CRASHTIME=.*\n", b"", info.raw)
    other = re.sub(rb"(NUMBER\(phys_base\)=).*\n", rb"\g<1>4096\n", text)
    page = struct.pack("<III12s", 11, len(other), 0, b"VMCOREINFO") + other
    _, offset, size = note_header(copy)
    with changed(copy, [(offset, bytes(size)), (place, page)]):
        found, problems = pids(copy)
        assert found == whole
        assert problems == [
            "the VMCOREINFO note is missing;"
            f" the kernel's own copy at {own:#x} is used",
            f"at {free:#x} is what may be the VMCOREINFO of another kernel,"
            f" {info.osrelease}: gdbkdump --vmcoreinfo {free:#x}",
        ]
        # There is no such kernel; that is told, and the first is not taken for it.
        with pytest.raises(KdumpError):
            open_session(copy, hints=Hints(vmcoreinfo=free))


def test_no_vmcoreinfo_anywhere(copy, whole):
    _, offset, size = note_header(copy)
    patches = [(offset, bytes(size))]
    with copy.open("rb") as file:
        position, tail = 0, b""
        while chunk := file.read(1 << 24):
            data = tail + chunk
            at = data.find(b"VMCOREINFO\0\0")
            while at >= 0:
                place = position - len(tail) + at
                if not offset <= place < offset + size:
                    patches.append((place, b"X" * 10))
                at = data.find(b"VMCOREINFO\0\0", at + 1)
            position, tail = position + len(chunk), data[-16:]
    with changed(copy, patches):
        found, problems = pids(copy)
    assert found == whole
    assert problems == [
        "the VMCOREINFO note is missing",
        "the kernel was found by its PT_LOAD and its kallsyms",
    ]


def test_linux_banner_of_another_kernel(copy):
    session = open_session(copy)
    banner = session.kernel.symbol("linux_banner")
    offset, _ = session.dump.file_range(session.kernel.memory.translate(banner))
    session.close()
    with (
        changed(copy, [(offset, b"Minix version")]),
        pytest.raises(FormatError, match="inconsistent: linux_banner reads b'Minix"),
    ):
        open_session(copy)


def test_a_task_list_that_loops(copy, whole):
    session = open_session(copy)
    kernel = session.kernel
    tasks_at = kernel.struct("task_struct").offset("tasks")
    users = [task for task in tasks(kernel) if task.is_leader and not task.is_idle]
    middle, early = users[len(users) // 2], users[3]
    node = middle.address + tasks_at
    offset, _ = session.dump.file_range(kernel.memory.translate(node))
    session.close()
    loop = struct.pack("<Q", early.address + tasks_at)
    with changed(copy, [(offset, loop)]):
        found, problems = pids(copy)
    # The rest is reached from the other end.
    assert found == whole
    assert len(problems) == 1
    assert f"loops at {early.address:#x}" in problems[0]


def test_truncated(copy, whole, dump_dir, capsys):
    size = copy.stat().st_size
    for part in (0.9, 0.5, 0.2):
        os.truncate(copy, int(size * part))
        found, problems = pids(copy)
        assert set(found) <= set(whole)
        assert problems[0].startswith("the file is truncated: ")
        if found != whole:
            # Of the list of all tasks, or of what ran on CPUs, something is lost.
            told = ("where the kernel counts", "who ran on CPU")
            assert any(text in line for line in problems for text in told)
    for bytes_left in (0, 3, 20, 63, 64, 100, 4000):
        os.truncate(copy, bytes_left)
        assert main([str(copy), "-c", "kps"]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("gdbkdump: ")
        assert err.count("\n") == 1
    subprocess.run(["cp", "--sparse=always", dump_dir / "vmcore", copy], check=True)


def test_the_dump_is_never_written(dump_dir, session):
    before = (dump_dir / "vmcore").stat()
    assert main([str(dump_dir / "vmcore"), "-c", "ksys"]) == 0
    after = (dump_dir / "vmcore").stat()
    assert (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)


def test_what_ran_on_the_cpu_that_panicked_is_lost(dump_dir):
    session = open_session(dump_dir / "vmcore")
    cpu = panic_cpu(session.kernel)
    assert cpu is not None
    session.kernel.once("runqueues", lambda: ([], [f"who ran on CPU {cpu}: lost"]))
    session.kernel.once("tasks", lambda: ([], ["the task list breaks"]))
    why = f"CPU {cpu} panicked, but what ran on it cannot be read"
    ksys, kset = find_command("ksys"), find_command("kset")
    record = next(iter(blocks_of(ksys.run(session, ksys.parse([])))))
    assert record.fields["TASK"] == Absent(reason=why)
    with pytest.raises(CommandError, match=why):
        kset.run(session, kset.parse(["-p"]))
    with pytest.raises(
        CommandError, match=r"no task '1' .*not all tasks could be read"
    ):
        kset.run(session, kset.parse(["1"]))
    session.close()
