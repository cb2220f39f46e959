# SPDX-License-Identifier: GPL-2.0-or-later
"""kregs against the dump's own notes and what the guest read of sleeping tasks."""

from __future__ import annotations

from gdbkdump.formats.notes import NT_PRSTATUS


def test_cpus_have_the_registers_of_the_notes(run, session):
    arch = session.kernel.arch
    notes = [
        arch.parse_prstatus(note.desc)
        for note in session.dump.notes
        if note.name == b"CORE" and note.type == NT_PRSTATUS
    ]
    rows = run("kregs", "-a")
    # The kernel writes the notes by CPU here, as none was offline.
    assert [row["cpu"] for row in rows] == list(range(len(notes)))
    for row, (pid, registers) in zip(rows, notes, strict=True):
        assert row["pid"] == pid
        assert {n: int(v, 16) for n, v in row["registers"].items()} == registers


def test_user_registers_are_those_of_the_system_call(run, truth):
    calls = {
        task["pid"]: task["syscall"].split()
        for task in truth["tasks"]
        if task["comm"] == "wl-deep" or task["comm"] == "wl-futex-wait"
    }
    assert calls
    for pid, words in calls.items():
        (row,) = run("kregs", "-u", str(pid))
        registers = {name: int(value, 16) for name, value in row["registers"].items()}
        number, *arguments, sp, ip = words
        assert registers["orig_ax"] == int(number)
        assert [registers[n] for n in ("di", "si", "dx", "r10", "r8", "r9")] == [
            int(value, 16) for value in arguments
        ]
        assert registers["sp"] == int(sp, 16)
        assert registers["ip"] == int(ip, 16)


def test_a_sleeping_task_was_switched_out_in_schedule(run, session):
    (row,) = run("kregs", "wl-deep")
    assert not row["active"]
    symbol = session.kernel.debuginfo.symbol_at(int(row["registers"]["ip"], 16))
    assert symbol.name == "__schedule"


def test_a_zombie_has_none(run):
    (row,) = run("kregs", "wl-zombie")
    assert row["registers"] is None
    assert "its stack is freed" in row["reason"]


def test_a_cpu_in_user_mode_says_so(run):
    (row,) = run("kregs", "wl-spin-user")
    assert row["active"]
    # A timer tick may have come in between.
    is_user = int(row["registers"]["cs"], 16) == 0x33
    assert row["reason"] == ("in user mode" if is_user else None)
