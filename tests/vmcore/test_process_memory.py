# SPDX-License-Identifier: GPL-2.0-or-later
"""User memory against /proc as the guest saw it, drgn, and what the workload wrote."""

from __future__ import annotations

import json

import pytest
from support.oracle import open_drgn
from support.process import open_process

from gdbkdump.commands.arguments import find_tasks
from gdbkdump.errors import FaultError
from gdbkdump.kernel.process import (
    auxv,
    executable_path,
    find_process,
    process_facts,
)
from gdbkdump.kernel.sched import find_task
from gdbkdump.kernel.usermemory import UserPages, Where
from gdbkdump.kernel.userregs import user_registers
from gdbkdump.kernel.vma import VmaNames, vmas
from gdbkdump.session import open_session

MARKER = b"gdbkdump-test-marker\0"
PAGE = 4096


def raw(text):
    return text.encode("utf-8", "surrogateescape")


@pytest.fixture(scope="module")
def role(truth):
    """What a role of the workload said of itself."""

    def find(name):
        return next(row for row in truth["workload"] if row["role"] == name)

    return find


@pytest.fixture(scope="module")
def processes(session, truth):
    """Pid and /proc of each process that has user memory."""
    found = []
    for pid, proc in truth["processes"].items():
        task = find_task(session.kernel, int(pid))
        # wl-crash wrote all of this and went on allocating.
        if task and task.mm and task.comm != b"wl-crash" and len(found) < 150:
            found.append((find_process(session.kernel, task), proc))
    assert len(found) > 30
    return found


def test_mappings_are_those_of_proc(session, processes):
    kernel = session.kernel
    for process, proc in processes:
        names = VmaNames(kernel, process.mm)
        found = [
            {
                "start": vma.start,
                "end": vma.end,
                "flags": vma.permissions,
                "offset": vma.pgoff * PAGE if vma.file else 0,
                "path": names.name(vma),
            }
            for vma in vmas(kernel, process.mm)
        ]
        # The vsyscall page is no mapping of the process.
        wanted = [
            {key: row[key] for key in ("start", "end", "flags", "offset")}
            | {"path": raw(row["path"])}
            for row in proc["maps"]
            if row["path"] != "[vsyscall]"
        ]
        assert found == wanted, process.leader.comm


def test_programs_and_their_arguments(session, truth, processes):
    rows = {task["pid"]: task for task in truth["tasks"]}
    for process, proc in processes:
        assert executable_path(session.kernel, process) == raw(proc["exe"])
        facts = process_facts(session.kernel, process)
        assert facts.arguments == raw(" ".join(proc["cmdline"]))
        task = rows[process.pid]
        assert (facts.ppid, facts.pgrp, facts.sid, facts.nice, facts.uid) == (
            task["ppid"],
            task["pgrp"],
            task["session"],
            task["nice"],
            task["uid"],
        )


def test_the_auxiliary_vector_is_on_the_stack(session, processes):
    # The kernel put a copy behind the environment (create_elf_tables()).
    for process, _ in processes[:10]:
        vector = auxv(session.kernel, process)
        pairs = memoryview(vector).cast("Q").tolist()
        values = dict(zip(pairs[::2], pairs[1::2], strict=True))
        assert pairs[-2:] == [0, 0]
        assert values[6] == PAGE
        image = open_process(session, str(process.pid)).image
        (stack,) = [each for each in image.mappings if each.name == b"[stack]"]
        data = b"".join(
            image.read_run(run, 0, run.size) for run in stack.runs if run.paddr
        )
        assert vector in data


def test_what_the_workload_wrote(session, role):
    told = role("wl-memory")
    image = open_process(session, str(told["pid"])).image
    at = int(told["marker_at"], 16)
    assert at // PAGE != (at + len(MARKER)) // PAGE
    assert image.read(at, len(MARKER)) == MARKER
    assert image.read(int(told["file"], 16), len(MARKER)) == MARKER
    # Never touched, as the process would read it.
    assert image.read(int(told["untouched"], 16) + 5000, 8) == bytes(8)
    shm = role("wl-shm")
    image = open_process(session, str(shm["pid"])).image
    assert image.read(int(shm["at"], 16), len(MARKER)) == MARKER
    assert image.read(int(shm["at"], 16) + 60000, 8) == bytes(8)
    main = role("wl-main")
    image = open_process(session, str(main["pid"])).image
    assert image.read(int(main["marker_at"], 16), len(MARKER)) == MARKER


def test_mapped_pages_are_drgns(session, dump_dir, role):
    from drgn.helpers.linux.mm import access_remote_vm
    from drgn.helpers.linux.pid import find_task as drgn_task

    program = open_drgn(dump_dir)
    for name in ("wl-memory", "wl-threads", "wl-shm"):
        pid = role(name)["pid"]
        opened = open_process(session, str(pid))
        pages = UserPages(session.kernel, opened.process.mm)
        mapped = [
            piece
            for each in opened.image.mappings
            for piece in pages.pieces(each.vma)
            if piece.where is Where.MAPPED
        ]
        assert sum(piece.size for piece in mapped) > 300_000
        mm = drgn_task(program, pid).mm
        for piece in mapped[:200]:
            size = min(piece.size, 65536)
            wanted = access_remote_vm(mm, piece.start, size)
            assert opened.image.read(piece.start, size) == wanted


def test_pages_of_the_page_cache_are_those_that_others_map(session, processes):
    # A page of the program that one process does not map is one that another does.
    kernel = session.kernel
    mapped, cached = {}, {}
    for process, _ in processes:
        pages = UserPages(kernel, process.mm)
        for vma in vmas(kernel, process.mm):
            if not vma.file or vma.anon_vma:
                continue
            for piece in pages.pieces(vma):
                found = {Where.MAPPED: mapped, Where.PAGE_CACHE: cached}
                if piece.where not in found:
                    continue
                for at in range(0, piece.size, PAGE):
                    index = vma.pgoff + (piece.start + at - vma.start) // PAGE
                    found[piece.where][vma.file, index] = piece.paddr + at
    both = {key for key in cached if key in mapped}
    assert len(both) > 10
    assert {key: cached[key] for key in both} == {key: mapped[key] for key in both}


def test_the_vdso_is_there_though_not_mapped(session, processes):
    for process, _ in processes[:20]:
        image = open_process(session, str(process.pid)).image
        (vdso,) = [each for each in image.mappings if each.name == b"[vdso]"]
        assert vdso.missing == {}
        data = image.read(vdso.vma.start, vdso.vma.size)
        assert data[:4] == b"\x7fELF"
        assert b"__vdso_clock_gettime\0" in data


def test_what_is_not_there_says_why(session, role):
    image = open_process(session, str(role("wl-memory")["pid"])).image
    reasons = {each.name: list(each.missing) for each in image.mappings if each.missing}
    # Nobody read the clock there.
    assert b"[vvar]" in reasons
    assert reasons[b"[vvar]"] == [Where.NOT_PRESENT.value]
    (vvar,) = [each for each in image.mappings if each.name == b"[vvar]"]
    with pytest.raises(FaultError):
        image.read(vvar.vma.start, 8)


def test_user_registers_of_all_threads(session, truth):
    # What /proc/PID/syscall says: number, six arguments, stack pointer, pc.
    checked = 0
    for row in truth["tasks"][:500]:
        task = find_task(session.kernel, row["pid"])
        words = (row["syscall"] or "").split()
        if task is None or len(words) != 9 or not row["comm"].startswith("wl-"):
            continue
        if row["comm"] in ("wl-crash", "wl-spin-kern"):
            continue
        state = user_registers(session.kernel, task)
        number, *arguments, sp, ip = words
        names = ("di", "si", "dx", "r10", "r8", "r9")
        assert [state.registers[name] for name in names] == [
            int(value, 16) for value in arguments
        ]
        assert state.registers["orig_ax"] == int(number)
        assert (state.registers["sp"], state.registers["ip"]) == (
            int(sp, 16),
            int(ip, 16),
        )
        assert state.registers["fs_base"]
        # Switched out, so what was in its FPU is in memory: MXCSR is as libc leaves it.
        assert state.fxsave[24:28] == b"\x80\x1f\0\0"
        checked += 1
    assert checked > 40


def test_known_registers_of_user_mode(crash_dir):
    crash = json.loads((crash_dir / "truth.json").read_text())["crash"]
    session = open_session(crash_dir / "vmcore")
    names = {"rip": "ip", "rax": "ax", "rbx": "bx", "rcx": "cx", "rdx": "dx",
             "rsi": "si", "rdi": "di", "rbp": "bp", "orig_rax": "orig_ax"}  # fmt: skip
    checked = 0
    for comm, task in crash["tasks"].items():
        # On the entry stack these are old: of what was on a CPU kgcore asks the stack.
        if task["registers"] and (comm, crash["interrupted"]) != ("cm-crash", "entry"):
            (found,) = find_tasks(session, str(task["pid"]))
            state = user_registers(session.kernel, found)
            known = {
                name: state.registers[names.get(name, name)]
                for name in task["registers"]
            }
            assert known == task["registers"]
            checked += 1
    assert checked >= 4
    session.close()
