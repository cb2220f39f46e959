# SPDX-License-Identifier: GPL-2.0-or-later
"""Crashes of known kinds: what must be on the stacks is known from the C source."""

from __future__ import annotations

import json
import re

import pytest

from gdbkdump.commands import find_command
from gdbkdump.render import json_text
from gdbkdump.session import open_session
from tests.support.stock_gdb import run_gdb

# kallsyms and DWARF name some places differently; test_kbt.py has the reasons.
ALIASES = {"entry_SYSCALL_64": "entry_SYSCALL_64_after_hwframe"}
# user_regs_struct has no r in front of these.
REGISTERS = {
    "rax": "ax", "rbx": "bx", "rcx": "cx", "rdx": "dx", "rsi": "si", "rdi": "di",
    "rbp": "bp", "rip": "ip", "orig_rax": "orig_ax",
}  # fmt: skip
# Where interrupts of the kernel are handled.
STACKS = {
    "hardirq": "IRQ stack", "nmi": "NMI exception stack",
    "debug": "DEBUG exception stack", "mce": "MCE exception stack",
    "doublefault": "DOUBLEFAULT exception stack",
}  # fmt: skip


@pytest.fixture(scope="module")
def crash(crash_dir):
    return json.loads((crash_dir / "truth.json").read_text())["crash"]


@pytest.fixture(scope="module")
def run(crash_dir):
    session = open_session(crash_dir / "vmcore")

    def run_command(name, *words):
        item = find_command(name)
        result = item.run(session, item.parse(words))
        return [json.loads(line) for line in json_text.lines(result)]

    yield run_command
    session.close()


def base(name):
    """Return a function's name without what the compiler put behind it."""
    name = re.sub(r"\.(cold|isra|constprop|part)\b.*", "", name or "(unknown)")
    return ALIASES.get(name, name)


def functions(frames):
    return [base(frame["symbol"]) for frame in frames]


def is_within(wanted, found):
    """Tell whether ``found`` holds all of ``wanted`` in this order."""
    rest = iter(found)
    return all(name in rest for name in wanted)


def known_registers(row, wanted):
    return {name: int(row[REGISTERS.get(name, name)], 16) for name in wanted}


def test_who_panicked(run, crash):
    (row,) = [row for row in run("ksys") if "note" not in row]
    panic = crash["panic"]
    assert (row["pid"], row["command"], row["cpu"]) == (
        panic["pid"],
        panic["comm"],
        panic["cpu"],
    )
    texts = [record["text"] for record in run("klog") if "seq" in record]
    assert any(re.search(crash["message"], text) for text in texts)


def test_why_it_panicked(run, crash):
    (row,) = [row for row in run("ksys") if "note" not in row]
    if crash["kind"] == "lockup":
        assert row["panic"] == "Kernel panic - not syncing: softlockup: hung tasks"
    else:
        assert re.search(crash["message"], row["panic"])


def test_the_panicking_stack(run, crash):
    (row,) = [row for row in run("kbt") if "note" not in row]
    found = functions(row["frames"])
    assert is_within(crash["functions"], found), found
    assert all(frame["reliable"] for frame in row["frames"])
    assert row["end"] in ("user", "bottom")
    assert row["reason"] is None


def test_stacks_switch_where_interrupts_came_in(run, crash):
    (row,) = [row for row in run("kbt") if "note" not in row]
    stacks = [frame["stack"] for frame in row["frames"]]
    # Who hit the guard page stands on it, who lost the stack pointer anywhere.
    if crash["kind"] == "overflow":
        assert stacks.pop(0) is None
    if crash["kind"] == "doublefault":
        stacks.remove(None)
    met = list(dict.fromkeys(stacks))
    # Each stack is met once: who leaves one does not come back.
    assert [a for a, b in zip(stacks, [None, *stacks], strict=False) if a != b] == met
    if crash["context"] in STACKS and crash["interrupted"] != "user":
        assert met[0] == STACKS[crash["context"]]
    assert (met[-1] == "ENTRY TRAMPOLINE stack") == (crash["interrupted"] == "entry")


def test_user_registers(run, crash):
    for comm, task in crash["tasks"].items():
        wanted = task["registers"]
        if not wanted:
            continue
        rows = [r for r in run("kregs", "-u", comm) if r["pid"] == task["pid"]]
        (row,) = rows
        assert known_registers(row["registers"], wanted) == wanted, comm


def test_sleeping_tasks(run, crash):
    for comm, task in crash["tasks"].items():
        if task.get("state") not in ("S", "D") or not task.get("functions"):
            continue
        (row,) = [r for r in run("kbt", comm) if r.get("pid") == task["pid"]]
        found = functions(row["frames"])
        assert is_within(task["functions"], found), (comm, found)
        assert row["end"] == "user"
        # The recursion is there in its whole depth.
        for name in {"crashme_descend"} & set(task["functions"]):
            assert found.count(name) == list(task["functions"]).count(name)


def test_cpus_in_user_mode_have_no_kernel_frames(run, crash):
    rows = {row["pid"]: row for row in run("kbt", "-a") if "note" not in row}
    spinning = [t for c, t in crash["tasks"].items() if c.startswith("cm-spin")]
    for task in spinning:
        row = rows.get(task["pid"])
        if row is None or task["pid"] == crash["panic"]["pid"]:
            continue
        assert row["cpu"] == task["cpu"]
        if not row["frames"]:
            assert row["reason"] == "in user mode: no kernel frames"
        user = row["user_registers"]
        assert known_registers(user, task["registers"]) == task["registers"]


def test_an_offline_cpu_shifts_no_registers(run, crash):
    if crash["kind"] != "offline":
        pytest.skip("no CPU went offline here")
    by_cpu = {row["cpu"]: row for row in run("kregs", "-a")}
    assert by_cpu[2]["registers"] is None
    assert "registers not saved" in by_cpu[2]["reason"]
    assert by_cpu[crash["panic"]["cpu"]]["pid"] == crash["panic"]["pid"]
    spinner = crash["tasks"]["cm-spin-1"]
    assert by_cpu[1]["pid"] == spinner["pid"]


@pytest.fixture(scope="module")
def in_gdb(crash_dir, crash):
    """Stacks with variables, as ``kbt -v`` gives them inside stock gdb."""
    commands = ["kmod -s crashme", "kbt -v --json"]
    sleepers = [
        comm
        for comm, task in crash["tasks"].items()
        if task.get("frames") and task["state"] in ("S", "D")
    ]
    commands += [f"kbt -v --json {comm}" for comm in sleepers]
    commands += ["kset -p", "bt -frame-arguments none", "info threads"]
    files = crash_dir / "vmlinux", crash_dir / "vmcore"
    output = run_gdb(*files, *commands).splitlines()
    lines = [line for line in output if line.startswith("{")]
    rows = [row for row in map(json.loads, lines) if "note" not in row]
    assert len(rows) == 1 + len(sleepers)
    return rows[0], dict(zip(sleepers, rows[1:], strict=True)), output


def check_variables(frames, row):
    """Check the variables of our module's frames, in order."""
    inside = [
        (base(item["function"]), item)
        for frame in row["frames"]
        for item in frame["variables"]
        if base(item["function"]).startswith("crashme_")
    ]
    if any(frame.get("repeated") for frame in frames):
        return check_repeated(frames, inside)
    wanted = [frame["function"] for frame in frames]
    assert [name for name, _ in inside] == wanted
    for frame, (_, item) in zip(frames, inside, strict=True):
        found = item["arguments"] | item["locals"]
        for name, value in (frame["arguments"] | frame["variables"]).items():
            assert found[name] == str(value), (frame["function"], name, item)
    return None


def check_repeated(frames, inside):
    """Check a recursion without a known end: each level is one more than its caller."""
    first = frames[0]["function"]
    levels = [int(i["arguments"]["level"]) for name, i in inside if name == first]
    assert len(levels) > 10
    assert levels == list(range(levels[0], levels[-1] - 1, -1))
    assert levels[-1] == frames[0]["arguments"]["level"]
    rest = [(name, item) for name, item in inside if name != first]
    assert [name for name, _ in rest] == [frame["function"] for frame in frames[1:]]


def test_arguments_and_locals_of_the_panicking_stack(in_gdb, crash):
    panicking, *_ = in_gdb
    check_variables(crash["frames"], panicking)


def test_arguments_and_locals_of_sleeping_tasks(in_gdb, crash):
    _, sleepers, _ = in_gdb
    assert sleepers
    for comm, row in sleepers.items():
        check_variables(crash["tasks"][comm]["frames"], row)


NATIVE_FRAME = re.compile(r"#\d+ +(?:0x[0-9a-f]+ in )?(\S+) \(")
# Where user mode, a kernel thread or a CPU's boot code begins.
FIRST_FUNCTIONS = {
    "entry_SYSCALL_64_after_hwframe",
    "ret_from_fork",
    "ret_from_fork_asm",
    "secondary_startup_64",
    "asm_sysvec_apic_timer_interrupt",
    "asm_exc_nmi",
    "asm_exc_page_fault",
}


def test_gdbs_own_backtrace(in_gdb, crash):
    output = in_gdb[2]
    # gdb printed a frame 0 before, of the core that it was started on.
    start = max(i for i, line in enumerate(output) if line.startswith("#0 "))
    frames = [line for line in output[start:] if line.startswith("#")]
    found = [base(m[1]) for m in map(NATIVE_FRAME.match, frames) if m]
    # Where an interrupt came in gdb says so and not the entry's name.
    wanted = [base(name) for name in crash["functions"]]
    assert is_within([name for name in wanted if name[:4] != "asm_"], found), found
    if crash["interrupted"] == "kernel":
        assert any("<signal handler called>" in line for line in frames)
    if crash["interrupted"] == "entry":
        # Only in 5.10 it shows that what called sync_regs() was called by user mode.
        user = crash["tasks"]["cm-crash"]["registers"]["rip"]
        last = frames.pop()
        assert f"{user:#018x} in ?? ()" in last or found[-1] == "error_entry"
    else:
        assert found[-1] in FIRST_FUNCTIONS
    assert not any("??" in line for line in frames)
    assert not any("corrupt" in line or "stopped" in line for line in output)


def test_gdbs_list_of_threads(in_gdb, crash):
    (panicked,) = [line for line in in_gdb[2] if ", panicked]" in line]
    panic = crash["panic"]
    assert f'"{panic["comm"]} [CPU {panic["cpu"]}, panicked]"' in panicked
