# SPDX-License-Identifier: GPL-2.0-or-later
"""Where kdump leads: files of one crash, the capture kernel, and the live one.

What was printed in a guest is compared with what is printed outside of the dump that
was saved there, and all with what the guest saw of itself.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gdbkdump.commands import find_command
from gdbkdump.render import json_text
from gdbkdump.session import open_session

ROOT = Path(__file__).resolve().parents[2]
LOOK = ROOT / "test-kernels/routes/look"
# Steps of routes/capture -> the file that is left.
FILES = {
    "copy": "vmcore",
    "elf": "vmcore",
    "makedumpfile": "vmcore.kdump",
    "raw": "vmcore.raw",
    "raw_flattened": "vmcore.raw-flat",
    "network": "vmcore.sent",
}
ALIKE = ("klog", "kps", "kbt -a", "kmod", "kbt wl-deep")
# What they do between two looks is not known.
BUSY = ("wl-spin-user", "wl-spin-kern", "wl-crash")


@pytest.fixture(scope="module")
def info(route_dir):
    return json.loads((route_dir / "info.json").read_text())


@pytest.fixture(scope="module")
def truth(route_dir):
    return json.loads((route_dir / "truth.json").read_text())


@pytest.fixture(scope="module")
def files(route_dir, info):
    steps = info["scenario"]["steps"]
    return {step: route_dir / FILES[step] for step in steps if step in FILES}


class Look:
    """Rows of the commands of ``look json``, told apart by their keys."""

    def __init__(self, rows):
        self.log = [row for row in rows if "seq" in row]
        self.tasks = [row for row in rows if "rss_kib" in row]
        self.modules = [row for row in rows if "text_base" in row]
        self.stacks = [row for row in rows if "frames" in row]
        (self.system,) = (row for row in rows if "dumpfile" in row)


def rows_of(path, lines):
    session = open_session(path)
    try:
        found = []
        for line in lines:
            name, *words = line.split()
            item = find_command(name)
            result = item.run(session, item.parse(words))
            found += [json.loads(row) for row in json_text.lines(result)]
        return found
    finally:
        session.close()


@pytest.fixture(scope="module")
def saved(route_dir):
    return Look(rows_of(route_dir / "vmcore", (*ALIKE, "ksys")))


@pytest.fixture(scope="module")
def printed(route_dir):
    """What our program, as it is now, printed in the guest, by the file's name."""
    folder = route_dir / "printed"
    if not folder.exists():
        pytest.skip("nothing was looked at in this guest")
    code = route_dir / "code"
    ours = sorted(path.relative_to(ROOT) for path in (ROOT / "gdbkdump").rglob("*.py"))
    _, differ, gone = filecmp.cmpfiles(code, ROOT, ours, shallow=False)
    if differ or gone:
        pytest.skip("the guest had other code: test-kernels/build.py makes it anew")
    found = {path.name: path.read_text() for path in folder.iterdir()}
    errors = {name for name, text in found.items() if name.endswith(".errors") and text}
    assert {found[name] for name in errors} == {"exit 0\n"}
    return found


@pytest.fixture(scope="module")
def alive(printed, info):
    if not info["scenario"]["live"]:
        pytest.skip("/proc/kcore was not looked at in this guest")
    return Look([json.loads(line) for line in printed["kcore.json"].splitlines()])


def comm_of(task):
    comm = task["comm"].encode("utf-8", "surrogateescape")
    return comm.decode("utf-8", "backslashreplace")


def assert_tasks(rows, truth):
    """The workload's tasks are all there, and as /proc showed them."""
    found = {row["pid"]: row for row in rows}
    letters = {"R": "RU", "S": "IN", "D": "UN", "T": "ST", "t": "TR", "Z": "ZO"}
    wanted = [task for task in truth["tasks"] if task["comm"].startswith("wl-")]
    compared = 0
    for task in wanted:
        if task["comm"] in BUSY:
            continue
        row = found[task["pid"]]
        assert (row["comm"], row["ppid"]) == (comm_of(task), task["ppid"])
        assert row["state"] == letters[task["state"]], task["comm"]
        assert row["vsz_kib"] * 1024 == task["vsize"]
        compared += 1
    assert compared > 40


def assert_log(rows, records):
    for row, record in zip(rows, records, strict=False):
        time_us = row["time_ns"] // 1000
        assert (row["seq"], time_us) == (record["seq"], record["ts_us"])
        assert (row["level"], row["facility"]) == (record["level"], record["facility"])
        text = record["text"].encode("utf-8", "surrogateescape")
        assert row["text"] == text.decode("utf-8", "backslashreplace")


def assert_modules(rows, truth):
    assert [(row["name"], row["size"], int(row["text_base"], 16)) for row in rows] == [
        (module["name"], module["size"], module["address"])
        for module in truth["modules"]
    ]


def test_every_step_left_a_file_for_its_owner_alone(files):
    assert files
    for path in files.values():
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.stat().st_size


@pytest.mark.parametrize("line", ALIKE)
def test_all_files_of_the_crash_say_the_same(files, line):
    found = {step: rows_of(path, [line]) for step, path in files.items()}
    wanted = rows_of(next(iter(files.values())).parent / "vmcore", [line])
    assert wanted
    for step, rows in found.items():
        assert rows == wanted, step


def test_they_say_what_the_guest_saw(saved, truth):
    assert len(saved.log) > len(truth["kmsg"]) > 100
    assert_log(saved.log, truth["kmsg"])
    assert_tasks(saved.tasks, truth)
    assert_modules(saved.modules, truth)


def test_the_stack_of_the_panic(saved, truth):
    (stack,) = (row for row in saved.stacks if row["pid"] == truth["panic"]["pid"])
    assert (stack["cpu"], stack["comm"]) == (1, "wl-crash")
    names = [frame["symbol"] for frame in stack["frames"]]
    for name in ("panic", "sysrq_handle_crash", "write_sysrq_trigger", "ksys_write"):
        assert name in names
    assert saved.system["panic"].endswith("sysrq triggered crash")


def test_the_crash_kernel_was_where_it_was_asked_to_be(info, truth):
    size, _, offset = info["scenario"]["crashkernel"].partition("@")
    (room,) = (row for row in truth["iomem"] if row["name"] == "Crash kernel")
    assert room["end"] + 1 - room["start"] == int(size.rstrip("M")) << 20
    if offset:
        assert room["start"] == int(offset.rstrip("M")) << 20


def test_another_kernel_captured(route_dir, info):
    capture = info["scenario"]["capture"]["name"]
    console = (route_dir / "console.log").read_text(errors="replace")
    releases = re.findall(r"^test-kernels: captured by ([^,]+),", console, re.MULTILINE)
    assert len(releases) == 1
    assert releases[0].startswith(f"{capture}.")
    if capture != info["scenario"]["kernel"]["name"]:
        assert releases[0] != info["release"]
    else:
        assert releases[0] == info["release"]


def look(path, way, folder):
    """Return what routes/look prints outside."""
    words = ["sh", str(LOOK), str(path), way]
    inherited = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    ours = {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    done = subprocess.run(
        words, capture_output=True, text=True, env=inherited | ours, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def lone_dump(route_dir, tmp_path_factory):
    """The dump away from its vmlinux, as it is in the capture kernel."""
    path = tmp_path_factory.mktemp("alone") / "vmcore"
    subprocess.run(["cp", "--sparse=always", route_dir / "vmcore", path], check=True)
    yield path
    shutil.rmtree(path.parent)


def without_place(text):
    """Leave out where the dump is, how it was saved, and how long it took."""
    kept = []
    for line in text.splitlines():
        if not re.match(r" *(DUMPFILE|FORMAT): |gdbkdump .*: opened in ", line):
            kept.append(line)
    return kept


@pytest.mark.parametrize(
    "way, steps",
    [("text", {"nothing", "nothing_but_text"}), ("gdb", {"nothing"})],
    ids=["text", "gdb"],
)
def test_the_capture_kernel_printed_what_is_printed_here(
    printed, info, lone_dump, way, steps
):
    if not steps & set(info["scenario"]["steps"]):
        pytest.skip("/proc/vmcore was not looked at in this guest")
    here = look(lone_dump, way, lone_dump.parent)
    assert len(here.splitlines()) > 300
    assert without_place(printed[f"vmcore.{way}"]) == without_place(here)


def test_a_block_device_printed_what_is_printed_here(printed, info, lone_dump):
    if "nothing_more" not in info["scenario"]["steps"]:
        pytest.skip("no block device was looked at in this guest")
    here = look(lone_dump, "text", lone_dump.parent)
    assert printed["device.text"] == here


def test_the_live_kernel_is_called_so(alive):
    assert alive.system["format"] == "live kernel (/proc/kcore)"
    assert alive.system["panic"] is None or "alive" in alive.system["panic"]


def test_the_live_log_is_what_the_guest_read_later(alive, truth):
    assert_log(alive.log, truth["kmsg"])
    texts = [row["text"] for row in alive.log]
    assert sum(text.startswith("test-kernels: ") for text in texts) >= 5


def test_live_tasks_are_those_of_the_crash(alive, saved, truth):
    assert_tasks(alive.tasks, truth)
    later = {row["pid"]: row["task"] for row in saved.tasks if row["pid"]}
    for row in alive.tasks:
        if row["comm"].startswith("wl-") and row["comm"] not in BUSY:
            assert row["task"] == later[row["pid"]]


def test_live_modules(alive, truth):
    assert_modules(alive.modules, truth)


def test_a_sleeping_stack_is_the_same_alive(alive, saved):
    (stack,) = (row for row in alive.stacks if row["comm"] == "wl-deep")
    (later,) = (row for row in saved.stacks if row["comm"] == "wl-deep")
    assert "schedule" in [frame["symbol"] for frame in stack["frames"]]
    assert stack == later


def test_registers_of_live_cpus_are_not_made_up(alive):
    running = {row["cpu"]: row for row in alive.stacks if row["comm"] != "wl-deep"}
    assert sorted(running) == [0, 1, 2, 3]
    assert running[2]["comm"] == "wl-spin-user"
    assert running[3]["comm"] == "wl-spin-kern"
    for cpu, row in running.items():
        assert row["frames"] == []
        assert f"the registers of CPU {cpu} are not in the dump" in json.dumps(row)


THREAD = re.compile(r'^[* ] \d+ +LWP (\d+) +"([^"]*)" +(0x\S+ in .*|.*)$', re.MULTILINE)


def test_gdb_has_the_live_tasks_as_threads(printed, info, truth, lone_dump):
    if "gdb" not in info["scenario"]["live"]:
        pytest.skip("gdb did not look at the live kernel in this guest")
    live = {int(n): rest for n, *rest in THREAD.findall(printed["kcore.gdb"])}
    here = look(lone_dump, "gdb", lone_dump.parent)
    later = {int(n): rest for n, *rest in THREAD.findall(here)}
    wanted = [
        task["pid"]
        for task in truth["tasks"]
        if task["comm"].startswith("wl-") and task["comm"] not in BUSY
    ]
    assert len(wanted) > 40
    assert {pid: live[pid] for pid in wanted} == {pid: later[pid] for pid in wanted}
