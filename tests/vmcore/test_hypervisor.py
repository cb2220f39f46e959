# SPDX-License-Identifier: GPL-2.0-or-later
"""Dumps that QEMU made of one guest at one moment, each in another format."""

from __future__ import annotations

import json
import mmap
import os
import re
import struct
import subprocess
from pathlib import Path

import pytest

from gdbkdump.commands import find_command
from gdbkdump.errors import FormatError, KdumpError
from gdbkdump.formats.hints import NO_HINTS, Hints
from gdbkdump.kernel.sched import task_problems
from gdbkdump.render import json_text
from gdbkdump.session import open_session
from tests.support.ask_drgn import ask_drgn
from tests.support.damage import changed
from tests.support.mklkcd import write_lkcd
from tests.support.passing import PASSING
from tests.support.stock_gdb import run_gdb

# What does not depend on how the guest was dumped.
ALIKE = (
    "kps",
    "klog",
    "kmod",
    "kbt -a",
    "kregs -a",
    "kbt wl-deep",
    "krd -s init_task 64",
)
IDLE = {"native_safe_halt", "pv_native_safe_halt"}


class Variant:
    """One file of a guest, opened."""

    def __init__(self, path, hints=NO_HINTS):
        self.session = open_session(path, hints=hints)

    def rows(self, line):
        name, *words = line.split()
        item = find_command(name)
        result = item.run(self.session, item.parse(words))
        return [json.loads(row) for row in json_text.lines(result)]

    def by_comm(self, line):
        return {row["comm"]: row for row in self.rows(line)}


@pytest.fixture(scope="module")
def info(hypervisor_dir):
    return json.loads((hypervisor_dir / "info.json").read_text())


@pytest.fixture(scope="module")
def truth(hypervisor_dir):
    return json.loads((hypervisor_dir / "truth.json").read_text())


@pytest.fixture(scope="module")
def variants(hypervisor_dir, info):
    names = [name for name in info["scenario"]["dumps"] if name.startswith("vmcore")]
    opened = {name: Variant(hypervisor_dir / name) for name in names}
    yield opened
    for variant in opened.values():
        variant.session.close()


@pytest.fixture(scope="module")
def elf(variants):
    return variants["vmcore"]


@pytest.fixture(scope="module")
def is_panicked(info):
    return info["scenario"]["state"] == "panicked"


def functions(row):
    return [frame["symbol"] for frame in row["frames"]]


def is_within(wanted, found):
    rest = iter(found)
    return all(name in rest for name in wanted)


@pytest.mark.parametrize("line", ALIKE)
def test_all_formats_say_the_same(variants, line):
    found = {name: variant.rows(line) for name, variant in variants.items()}
    assert found["vmcore"]
    assert all(rows == found["vmcore"] for rows in found.values())


def test_the_tasks_are_those_of_proc(elf, truth):
    rows = [row for row in elf.rows("kps") if row["pid"]]
    assert task_problems(elf.session.kernel) == []
    wanted = {task["pid"]: task for task in truth["tasks"]}
    changed = {row["pid"] for row in rows} ^ set(wanted)
    names = {row["pid"]: row["comm"] for row in rows}
    names |= {pid: task["comm"] for pid, task in wanted.items()}
    assert [names[p] for p in changed if not names[p].startswith(PASSING)] == []
    for row in rows:
        task = wanted.get(row["pid"])
        if task and row["comm"].isascii() and "\\" not in row["comm"]:
            assert (row["comm"], row["ppid"]) == (task["comm"], task["ppid"])


def test_the_log_is_that_of_kmsg(elf, truth):
    rows = {row["seq"]: row for row in elf.rows("klog") if "seq" in row}
    assert truth["kmsg"]
    for record in truth["kmsg"]:
        row = rows[record["seq"]]
        assert (row["level"], row["time_ns"] // 1000) == (
            record["level"],
            record["ts_us"],
        )


def test_the_modules_are_those_of_proc(elf, truth):
    rows = [row for row in elf.rows("kmod") if "note" not in row]
    assert [(row["name"], row["size"], int(row["text_base"], 16)) for row in rows] == [
        (module["name"], module["size"], module["address"])
        for module in truth["modules"]
    ]
    assert "qemu_fw_cfg" in [row["name"] for row in rows]


def test_each_cpu_has_the_registers_of_its_task(elf, truth, is_panicked):
    rows = {row["cpu"]: row for row in elf.rows("kregs -a")}
    assert sorted(rows) == [0, 1, 2, 3]
    facts = {fact["role"]: fact for fact in truth["workload"]}
    for comm in ("wl-spin-user", "wl-spin-kern"):
        assert rows[int(facts[comm]["cpu"])]["comm"] == comm
    registers = {name: int(v, 16) for name, v in rows[2]["registers"].items()}
    # A panic stops it in the kernel; alive it loops in some 60 bytes of code, unless an
    # interrupt came.
    start = int(facts["wl-spin-user"]["loop"], 16)
    is_in_loop = registers["cs"] == 0x33 and start <= registers["ip"] < start + 128
    assert is_in_loop or registers["cs"] == 0x10
    assert not (is_in_loop and is_panicked)


def test_user_registers_of_those_on_cpus(elf, truth):
    facts = {fact["role"]: fact for fact in truth["workload"]}
    rows = elf.by_comm("kregs -u wl-spin-user wl-spin-kern")
    user = {k: int(v, 16) for k, v in rows["wl-spin-user"]["registers"].items()}
    start = int(facts["wl-spin-user"]["loop"], 16)
    assert start <= user["ip"] < start + 128
    # It is in read(2) of /dev/zero, with what it says of itself.
    kern = {k: int(v, 16) for k, v in rows["wl-spin-kern"]["registers"].items()}
    assert kern["di"] == int(facts["wl-spin-kern"]["fd"])
    assert kern["si"] == int(facts["wl-spin-kern"]["buffer"], 16)
    assert (kern["orig_ax"], kern["cs"]) == (0, 0x33)


def test_stacks_of_those_on_cpus(elf, is_panicked):
    rows = elf.by_comm("kbt -a")
    assert all(row["end"] in ("user", "bottom") for row in rows.values())
    found = {comm: functions(row) for comm, row in rows.items()}
    stopped = ("stop_this_cpu", "asm_sysvec_reboot") if is_panicked else ()
    assert is_within(
        (*stopped, "read_zero", "vfs_read", "ksys_read", "do_syscall_64"),
        found["wl-spin-kern"],
    )
    assert is_within(stopped, found["wl-spin-user"])
    if is_panicked:
        sysrq = ("panic", "sysrq_handle_crash", "write_sysrq_trigger", "vfs_write")
        assert is_within(sysrq, found["wl-crash"])
    elif rows["wl-spin-user"]["frames"]:
        assert found["wl-spin-user"][-1].startswith("asm_")
    idle = [names for comm, names in found.items() if comm.startswith("swapper/")]
    for names in idle:
        assert is_within(("do_idle", "cpu_startup_entry"), names)


def test_who_panicked_if_anybody_did(elf, truth, is_panicked):
    row = elf.rows("ksys")[0]
    if is_panicked:
        assert row["panic"] == "Kernel panic - not syncing: sysrq triggered crash"
        wanted = truth["panic"]
        assert (row["pid"], row["command"], row["cpu"]) == (
            wanted["pid"],
            wanted["comm"],
            wanted["cpu"],
        )
        return
    assert row["panic"] is None
    assert (row["cpu"], row["state"]) == (0, "RU")
    # It sleeps where "truth" is kept from crashing the guest.
    crash = elf.by_comm("kbt wl-crash")["wl-crash"]
    assert is_within(("wait_for_partner", "fifo_open"), functions(crash))


def test_drgn_sees_the_same_stacks(hypervisor_dir, variants, info):
    if not info["scenario"]["vmcoreinfo"]:
        pytest.skip("drgn opens no hypervisor's dump without VMCOREINFO")
    for name in set(variants) & {"vmcore", "vmcore.paging"}:
        rows = [row for row in variants[name].rows("kforeach kbt") if row["pid"]]
        assert len(rows) > 100
        pids = [row["pid"] for row in rows]
        core = hypervisor_dir / name
        stacks = ask_drgn(hypervisor_dir, stacks=pids, core=core)["stacks"]
        found = dict(zip(pids, stacks, strict=True))
        for row in rows:
            mine = [int(frame["ip"], 16) for frame in row["frames"]]
            if mine:
                assert found[row["pid"]][: len(mine)] == mine, row["comm"]


@pytest.fixture(scope="module")
def without_vmcoreinfo(hypervisor_dir, tmp_path_factory):
    """A copy in which the name of each VMCOREINFO note is another."""
    path = tmp_path_factory.mktemp("copy") / "vmcore"
    source = hypervisor_dir / "vmcore"
    subprocess.run(["cp", "--sparse=always", source, path], check=True)
    with (
        path.open("r+b") as file,
        mmap.mmap(file.fileno(), 0) as memory,
    ):
        at = memory.find(b"VMCOREINFO\0")
        assert at >= 0
        while at >= 0:
            memory[at : at + 10] = b"ERASEDINFO"
            at = memory.find(b"VMCOREINFO\0", at)
    variant = Variant(path)
    yield variant
    variant.session.close()
    path.unlink()


def test_the_page_tables_of_a_cpu_lead_to_the_kernel(without_vmcoreinfo, elf):
    assert without_vmcoreinfo.session.problems[-2:] == [
        "the VMCOREINFO note is missing",
        "the kernel was found by the page tables of a CPU and its kallsyms",
    ]
    for line in ALIKE:
        assert without_vmcoreinfo.rows(line) == elf.rows(line)


def test_kdump_as_it_is_without_records(hypervisor_dir, elf, tmp_path):
    # QEMU's kdump-raw-zlib (8.2 and later), or the stream after makedumpfile -R.
    if not (hypervisor_dir / "vmcore.zlib").exists():
        pytest.skip("no such dump of this guest")
    path = tmp_path / "vmcore"
    with (hypervisor_dir / "vmcore.zlib").open("rb") as stream, path.open("wb") as file:
        stream.seek(4096)
        while (record := struct.unpack(">qq", stream.read(16))) != (-1, -1):
            file.seek(record[0])
            file.write(stream.read(record[1]))
    variant = Variant(path)
    assert variant.session.dump.format == "kdump-compressed"
    for line in ALIKE:
        assert variant.rows(line) == elf.rows(line)
    variant.session.close()


# QEMU's note of a CPU (QEMUCPUState in its target/i386/arch_dump.c): what leads to the
# kernel, and what tells which CPU it is.
PLACES = {"idt": 384, "cr3": 416, "cr4": 424, "cs": 152, "gs": 264, "kernel gs": 432}
ABSURD = (0, (1 << 64) - 1, 0x1000, 0xDEADB000)
NOTE_SIZE = 440


def qemu_notes(path):
    """Return where in the file the descriptions of QEMU's notes are."""
    head = path.read_bytes()[:65536]
    found = re.finditer(rb"\x05\0\0\0\xb8\x01\0\0\0\0\0\0QEMU\0", head)
    return [match.end() + 3 for match in found]


def damages_of_notes(path):
    """Yield what was done to which CPUs' notes, and (offset, bytes) of it."""
    notes = qemu_notes(path)
    assert len(notes) == 4
    garbage = bytes((i * 193 + 71) & 0xFF for i in range(NOTE_SIZE))
    for which, some, values in (("all", notes, 4), ("the first", notes[:1], 2)):
        for name, at in PLACES.items():
            for value in ABSURD[:values]:
                patch = struct.pack("<Q", value)
                yield f"{name} {value:#x} of {which}", [(n + at, patch) for n in some]
        for name, data in (
            ("zeros", bytes(NOTE_SIZE)), ("ones", b"\xff" * NOTE_SIZE),
            ("garbage", garbage),
        ):  # fmt: skip
            yield f"{name} for {which}", [(n, data) for n in some]
        for size in (0, 431, 1 << 31):
            patch = struct.pack("<I", size)
            yield f"{size} bytes of {which}", [(n - 16, patch) for n in some]


def test_damaged_notes_of_cpus(hypervisor_dir, without_vmcoreinfo, elf):
    if hypervisor_dir.name != "qemu-panicked-6.1":
        pytest.skip("each takes a third of a second, and one guest is as good")
    path = without_vmcoreinfo.session.dump.path
    wanted = elf.rows("kps"), elf.rows("kregs -a")
    cases = [*damages_of_notes(path)]
    opened = 0
    for what, patches in cases:
        with changed(path, patches):
            try:
                variant = Variant(path)
            except KdumpError as error:
                assert "\n" not in str(error)
                # Behind a note of no such size the others are not found.
                assert what.endswith("all") or "bytes" in what, what
                continue
            opened += 1
            assert variant.rows("kps") == wanted[0], what
            # Of each CPU what it had, or that this is not known.
            for row, right in zip(variant.rows("kregs -a"), wanted[1], strict=True):
                assert row == right or "reason" in row or "cs" in what, what
            variant.session.close()
    assert 25 <= opened < len(cases)


@pytest.fixture(scope="module")
def lkcd(hypervisor_dir, elf, tmp_path_factory):
    """The same guest as an LKCD dump, which libkdumpfile reads."""
    if hypervisor_dir.name != "qemu-panicked-6.1":
        pytest.skip("it takes 5 s, and one guest is as good as another")
    dump = elf.session.dump
    size = max(dump.extents, key=lambda extent: extent.size).size
    pages = ((at, dump.read_phys(at, 4096)) for at in range(0, size, 4096))
    path = tmp_path_factory.mktemp("lkcd") / "dump"
    variant = Variant(write_lkcd(path, pages))
    yield variant
    variant.session.close()
    path.unlink()


def assert_equal_without_registers(variant, elf):
    """Compare files that have memory, and not what the hypervisor noted of CPUs."""
    for line in ("kps", "klog", "kmod", "kbt wl-deep", "kforeach UN kbt"):
        assert variant.rows(line) == elf.rows(line)
    reasons = [row["reason"] for row in variant.rows("kregs -a")]
    assert reasons == [
        f"the registers of CPU {n} are not in the dump" for n in range(4)
    ]


def test_libkdumpfile_reads_the_same(lkcd, elf):
    assert_equal_without_registers(lkcd, elf)


@pytest.fixture
def raw(hypervisor_dir):
    path = hypervisor_dir / "memory.raw"
    if not path.exists():
        pytest.skip("no bare memory of this guest")
    return path


def test_bare_memory_is_the_same(raw, elf):
    variant = Variant(raw, Hints(base=0))
    assert_equal_without_registers(variant, elf)
    # The kernel's own copy, found, is at a place that one can say, too.
    data = raw.read_bytes()
    copies = (m.start() for m in re.finditer(rb"VMCOREINFO\0", data))
    (note,) = (at - 12 for at in copies if (at - 12) % 4096 == 0)
    for hints in (Hints(0, note), Hints(0, note + 24)):
        told = Variant(raw, hints)
        assert told.session.problems == []
        assert told.rows("kps") == elf.rows("kps")
        told.session.close()
    variant.session.close()


def test_bare_memory_at_another_place_is_refused(raw):
    with pytest.raises(FormatError, match="with its first byte at 0x1000 no kernel is"):
        Variant(raw, Hints(base=0x1000))


def test_bare_memory_in_gdb(hypervisor_dir, raw, elf, monkeypatch):
    monkeypatch.setenv("GDBKDUMP_BASE", "0")
    commands = ("p nr_threads", "kps wl-crash", "thread name wl-crash", "bt -3")
    shown = run_gdb(hypervisor_dir / "vmlinux", raw, *commands)
    assert f"$1 = {len(elf.rows('kps')) - 4}" in shown
    assert "wl-crash" in shown


def test_a_block_device_is_as_good_as_a_file(hypervisor_dir, elf, tmp_path):
    if hypervisor_dir.name != "qemu-panicked-6.1":
        pytest.skip("one guest is as good as another")
    path = tmp_path / "vmcore"
    source = hypervisor_dir / "vmcore"
    subprocess.run(["cp", "--sparse=always", source, path], check=True)
    os.truncate(path, (path.stat().st_size + 4095) & -4096)
    command = ["losetup", "--read-only", "--find", "--show", path]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device is to be had: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        variant = Variant(Path(device))
        assert variant.session.problems == elf.session.problems
        for line in ALIKE:
            assert variant.rows(line) == elf.rows(line)
        variant.session.close()
        shown = run_gdb(
            hypervisor_dir / "vmlinux", Path(device), "bt 3", "p nr_threads"
        )
        assert "sysrq triggered crash" in shown
        assert f"$1 = {len(elf.rows('kps')) - 4}" in shown
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_gdb_sees_the_same_in_all_formats(hypervisor_dir, variants):
    found = {}
    for name in variants:
        shown = run_gdb(
            hypervisor_dir / "vmlinux",
            hypervisor_dir / name,
            "info threads",
            "thread apply all -q bt -frame-arguments none",
            "p nr_threads",
            "x/4s linux_banner",
        )
        # Over the remote protocol a thread is called one, and not an LWP.
        text = re.sub(r"\b(LWP|Thread) (?=\d)", "", shown[shown.index("  Id ") :])
        found[name] = re.sub(" +", " ", text)
    assert re.search(r'"wl-spin-kern \[CPU 3\]"', found["vmcore"])
    assert all(text == found["vmcore"] for text in found.values())
