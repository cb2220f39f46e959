# SPDX-License-Identifier: GPL-2.0-or-later
"""krd: the bytes are those that drgn reads; what is not there is not invented."""

from __future__ import annotations

import struct

import pytest
from support.oracle import open_drgn

from gdbkdump.errors import CommandError, FaultError


def words(rows):
    return [int(word, 16) for row in rows for word in row["words"]]


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("symbol", ["init_task", "linux_banner", "jiffies"])
def test_words_are_drgns(dump_dir, session, run, symbol, bits):
    address = session.kernel.symbol(symbol)
    count = 1000
    raw = open_drgn(dump_dir).read(address, count * bits // 8)
    wanted = struct.unpack(f"<{count}{'BHIQ'[(8, 16, 32, 64).index(bits)]}", raw)
    assert tuple(words(run("krd", f"-{bits}", symbol, str(count)))) == wanted


def test_vmalloc_and_module_memory(dump_dir, session, run):
    # A kernel stack (VMAP_STACK) and a struct module, both behind page tables.
    program = open_drgn(dump_dir)
    for address in (
        program["init_task"].tasks.next.value_(),
        session.kernel.reader.u64(session.kernel.symbol("modules")),
    ):
        raw = program.read(address, 512)
        found = words(run("krd", f"{address:x}", "64"))
        assert found == list(struct.unpack("<64Q", raw))


def test_physical_memory(dump_dir, session, run):
    address = session.kernel.symbol("linux_banner")
    paddr = session.kernel.memory.translate(address)
    raw = open_drgn(dump_dir).read(paddr, 64, physical=True)
    assert words(run("krd", "-p", f"{paddr:x}", "8")) == list(struct.unpack("<8Q", raw))
    assert raw.startswith(b"Linux version")


def test_user_memory_of_the_current_task(dump_dir, session, run):
    # The workload is a static ELF executable at its link address.
    rows = run("krd", "-u", "-8", "400000", "16")
    assert bytes(words(rows)[:6]) == b"\x7fELF\x02\x01"


def test_text(truth, run):
    text = "".join(row["text"] for row in run("krd", "-a", "linux_banner"))
    assert text.rstrip(".") == truth["version"].strip().rstrip(".")


def test_symbolic(session, run):
    # The list head points to the modules' and each module's list to it.
    (row,) = run("krd", "-s", "modules", "2")
    assert all(symbol.startswith("__this_module+0x8 [") for symbol in row["symbols"])


def test_decimal(session, run):
    (row,) = run("krd", "-32", "-d", "jiffies", "1")
    (word,) = run("krd", "-32", "jiffies", "1")[0]["words"]
    assert row["words"] == [struct.unpack("<i", struct.pack("<I", int(word, 16)))[0]]


def test_end_and_offset(session, run):
    whole = words(run("krd", "init_task", "16"))
    assert words(run("krd", "-e", "init_task+0x80", "init_task")) == whole
    assert words(run("krd", "-o", "0x40", "init_task", "8")) == whole[8:]
    offset = session.kernel.struct("task_struct").offset("stack")
    by_member = run("krd", "-o", "task_struct.stack", "init_task")
    assert words(by_member) == words(run("krd", f"init_task+{offset:#x}"))


def test_the_lines_are_crashs(session, run_text):
    address = session.kernel.symbol("linux_banner")
    raw = session.kernel.reader.read(address, 16)
    first, second = struct.unpack("<2Q", raw)
    assert run_text("krd", "linux_banner", "2") == [
        f"{address:016x}:  {first:016x} {second:016x}   {raw.decode()}"
    ]
    assert run_text("krd", "-x", "linux_banner", "1") == [
        f"{address:016x}:  {first:016x}"
    ]


def test_a_gap_is_told_and_reading_goes_on(session, run):
    # The guard page in front of a kernel stack is not mapped.
    stack = next(
        task.stack for task in all_tasks(session) if not is_direct(session, task.stack)
    )
    rows = run("krd", f"{stack - 64:x}", "16")
    assert rows[0]["size"] == 64
    assert "not mapped" in rows[0]["unreadable"]
    assert int(rows[1]["address"], 16) == stack
    assert sum(row["size"] for row in rows[1:]) == 64


def all_tasks(session):
    from gdbkdump.kernel.sched import tasks

    return tasks(session.kernel)


def is_direct(session, address):
    return session.kernel.memory.translate(address) == session.kernel.memory.translate(
        address + 4096
    ) - 4096 and any(start <= address < end for start, end, _ in windows(session))


def windows(session):
    return session.kernel.memory.windows


def test_nothing_at_all_is_an_error(run):
    with pytest.raises(FaultError, match="not mapped"):
        run("krd", "0", "4")
    with pytest.raises(FaultError, match="not RAM"):
        run("krd", "-p", "fffffffff000")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["init_task", "0"], "COUNT of 0"),
        (["init_task", "-e", "init_task"], "is not after"),
        (["-p", "-u", "0"], "exclude"),
        (["-s", "-8", "init_task"], "64 bits"),
        (["init_task", "99999999999"], "at once"),
    ],
)
def test_wrong_use_says_what_is_wrong(run, argv, message):
    with pytest.raises(CommandError, match=message):
        run("krd", *argv)
