# SPDX-License-Identifier: GPL-2.0-or-later
"""A real dump open in gdb, against the guest's truth and drgn (tests/run_in_gdb.py)."""

from __future__ import annotations

import contextlib
import os
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gdb
import pytest

from gdbkdump.debugger import view
from gdbkdump.debugger.debuginfo import GdbDebugInfo
from gdbkdump.errors import FaultError
from gdbkdump.kernel.initmem import freed_init_memory
from gdbkdump.kernel.percpu import cpus, per_cpu
from gdbkdump.kernel.sched import (
    panic_cpu,
    running_tasks,
    task_by_address,
    tasks,
)
from gdbkdump.render.escape import escape
from tests.support.ask_drgn import ask_drgn
from tests.support.passing import PASSING

if TYPE_CHECKING:
    from gdbkdump.session import Session

# The idle task of CPU n is LWP FIRST_IDLE + n: above PID_MAX_LIMIT.
FIRST_IDLE = 4194305
SAMPLE = 150


def threads() -> dict[int, gdb.InferiorThread]:
    return {thread.ptid[1]: thread for thread in gdb.selected_inferior().threads()}


def raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def lasting(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Tasks that neither came nor went between the truth and the crash."""
    return [t for t in truth["tasks"] if not t["comm"].startswith(PASSING)]


def read(address: int, size: int) -> bytes:
    return bytes(gdb.selected_inferior().read_memory(address, size))


@contextlib.contextmanager
def on_thread(id_: int):
    before = gdb.selected_thread()
    threads()[id_].switch()
    yield
    before.switch()


def comm(thread: gdb.InferiorThread) -> str:
    """Return a thread's name without the mark of those that were on a CPU."""
    return re.sub(r" \[CPU \d+(, panicked)?\]$", "", thread.name or "")


def test_threads_of_cpus_are_marked(session: Session) -> None:
    marked = {t.ptid[1]: t.name.partition(" [")[2] for t in threads().values()}
    wanted = {}
    for address, cpu in running_tasks(session.kernel).items():
        task = task_by_address(session.kernel, address)
        id_ = FIRST_IDLE + cpu if task.is_idle else task.pid
        panicked = ", panicked" if cpu == panic_cpu(session.kernel) else ""
        wanted[id_] = f"CPU {cpu}{panicked}]"
    assert {id_: mark for id_, mark in marked.items() if "CPU" in mark} == wanted


def test_every_task_is_a_thread_with_its_name(truth: dict[str, Any]) -> None:
    names = {id_: comm(t) for id_, t in threads().items() if id_ < FIRST_IDLE}
    expected = {
        t["pid"]: escape(raw(t["comm"]).decode("utf-8", "backslashreplace"))
        for t in lasting(truth)
    }
    assert {pid: names.get(pid) for pid in expected} == expected
    others = [name for pid, name in names.items() if pid not in expected]
    assert all(name.startswith(PASSING) for name in others)


def test_idle_tasks_are_told_apart(session: Session) -> None:
    names = {
        id_ - FIRST_IDLE: comm(t) for id_, t in threads().items() if id_ >= FIRST_IDLE
    }
    assert names == {cpu: f"swapper/{cpu}" for cpu in cpus(session.kernel, "possible")}


def test_names_are_safe_for_a_terminal() -> None:
    assert all(name.isprintable() for name in (t.name for t in threads().values()))


def test_the_thread_that_panicked_is_selected(truth: dict[str, Any]) -> None:
    assert gdb.selected_thread().ptid[1] == truth["panic"]["pid"]
    names = []
    frame = gdb.newest_frame()
    while frame is not None and len(names) < 20:
        names.append(frame.name())
        frame = frame.older()
    assert "__crash_kexec" in names
    assert names.index("__crash_kexec") < names.index("sysrq_handle_crash")


def test_pc_of_each_thread_is_drgns(dump_dir: Path, truth: dict[str, Any]) -> None:
    pids = [t["pid"] for t in lasting(truth) if t["state"] != "Z"][:SAMPLE]
    found = []
    for pid in pids:
        with on_thread(pid):
            found.append(gdb.newest_frame().pc())
    assert found == ask_drgn(dump_dir, pcs=pids)["pcs"]


def test_a_zombie_has_no_stack_and_so_no_pc(truth: dict[str, Any]) -> None:
    # drgn takes its old stack for it, which by then may be another task's.
    zombies = [t["pid"] for t in truth["tasks"] if t["state"] == "Z"]
    assert zombies
    for pid in zombies:
        with on_thread(pid):
            assert gdb.newest_frame().pc() == 0


def test_stacks_hold_what_the_guest_saw(truth: dict[str, Any]) -> None:
    # /proc/PID/stack leaves the scheduler's own frames out, and has inlined ones not.
    # The kernel's own threads wake up now and then, those of the workload do not.
    sleeping = [
        t
        for t in lasting(truth)
        if t["state"] in "SD" and t["stack"] and t["comm"].startswith("wl-")
    ]
    assert len(sleeping) > 30
    for task in sleeping[:SAMPLE]:
        wanted = [re.sub(r"\..*", "", name) for name in task["stack"]]
        # What comes after the entry code needs more than DWARF.
        wanted = [
            name for name in wanted if not name.startswith(("entry_", "ret_from_"))
        ]
        with on_thread(task["pid"]):
            frame, seen = gdb.newest_frame(), []
            while frame is not None and len(seen) < 60:
                seen.append(re.sub(r"\..*", "", frame.name() or ""))
                frame = frame.older()
        rest = iter(seen)
        assert all(name in rest for name in wanted), (task["comm"], wanted, seen)


def places(session: Session, truth: dict[str, Any]) -> dict[str, int]:
    """An address in each kind of memory."""
    kernel = session.kernel
    found = {
        f"stack of {task.pid}": task.stack + 0x3F00
        for task in tasks(kernel)[:SAMPLE]
        if task.stack
    }
    for module in truth["modules"]:
        found[f"module {module['name']}"] = module["address"]
    for cpu in cpus(kernel, "possible"):
        found[f"runqueues of {cpu}"] = per_cpu(kernel, "runqueues", cpu)
    for task in tasks(kernel)[:SAMPLE]:
        found[f"task_struct of {task.pid}"] = task.address
    for name in ("init_task", "linux_banner", "jiffies_64", "modules"):
        found[name] = kernel.symbol(name)
    found["struct page"] = kernel.reader.u64(kernel.symbol("vmemmap_base"))
    return found


def test_memory_is_drgns(
    dump_dir: Path, session: Session, truth: dict[str, Any]
) -> None:
    found = places(session, truth)
    answers = ask_drgn(dump_dir, [(at, 200) for at in found.values()])["reads"]
    ours = {name: read(at, 200).hex() for name, at in found.items()}
    assert ours == dict(zip(found, answers, strict=True))


def test_vmalloc_areas_are_readable_to_their_ends(
    dump_dir: Path, truth: dict[str, Any]
) -> None:
    # The last page of an area is its guard. Those of devices are not RAM.
    ram = [
        (area["start"], area["end"] - 4096)
        for area in truth["vmallocinfo"]
        if area["start"] and re.search(r"pages=\d+ vmalloc", area["description"])
    ][:SAMPLE]
    assert len(ram) > 20
    wanted = [(at, 64) for start, end in ram for at in (start, end - 64)]
    found = [read(at, size).hex() for at, size in wanted]
    assert found == ask_drgn(dump_dir, wanted)["reads"]
    for _, end in ram:
        with pytest.raises(gdb.MemoryError):
            read(end, 64)


def test_random_reads_are_the_engines(session: Session) -> None:
    kernel, chance = session.kernel, random.Random(1)
    windows = [(start, end - start) for start, end, _ in kernel.memory.windows]
    # What the page tables map beyond them, and what is between that.
    leaves = [
        (leaf.vaddr, leaf.size)
        for leaf in kernel.memory.page_table.mappings([w[:2] for w in windows], [])
    ]
    gone = freed_init_memory(kernel) or (0, 0)
    nr_read = nr_refused = 0
    for _ in range(10_000):
        start, length = chance.choice(chance.choice([windows, leaves]))
        address = start + chance.randrange(length)
        size = chance.choice([1, 8, 64, 300, 5000])
        if address < gone[1] and gone[0] < address + size:
            continue
        try:
            wanted = kernel.memory.read(address, size)
        except FaultError:
            nr_refused += 1
            with pytest.raises(gdb.MemoryError):
                read(address, size)
        else:
            nr_read += 1
            assert read(address, size) == wanted, (hex(address), size)
    assert nr_read > 5000
    assert nr_refused > 50


def test_no_link_time_value_is_ever_shown(session: Session) -> None:
    kernel = session.kernel
    offset = kernel.vmcoreinfo.hex("KERNELOFFSET")
    assert offset, "the guests boot with KASLR"
    with pytest.raises(gdb.MemoryError):
        read(kernel.symbol("_text") - offset, 8)
    # "swapper" in the file; the kernel adds the CPU as it boots.
    assert gdb.parse_and_eval("init_task.comm").string() == "swapper/0"
    assert gdb.current_progspace().filename is None
    with pytest.raises(gdb.MemoryError):
        read(16, 8)


def test_no_value_is_shown_of_memory_given_back_after_boot(session: Session) -> None:
    start, end = (session.kernel.symbol(f"__init_{x}") for x in ("begin", "end"))
    for address in (start, (start + end) // 2, end - 8):
        with pytest.raises(gdb.MemoryError):
            read(address, 8)
    assert read(end, 8) == session.kernel.reader.read(end, 8)
    # On 6.15 and later the first values of per-CPU variables are there, below at 0.
    with pytest.raises(gdb.MemoryError):
        int(gdb.parse_and_eval("runqueues.cpu"))


def test_symbols_are_where_the_kernel_has_them(session: Session) -> None:
    names = (
        "init_task",
        "linux_banner",
        "schedule",
        "runqueues",
        "jiffies_64",
        "_text",
    )
    for name in names:
        found = int(gdb.parse_and_eval(f"(unsigned long)&{name}"))
        assert found == session.kernel.symbol(name), name


def test_kper_cpu(session: Session) -> None:
    for cpu in cpus(session.kernel, "possible"):
        variable = gdb.parse_and_eval(f'$kper_cpu("runqueues", {cpu})')
        assert variable.type.name == "rq"
        assert int(variable.address) == per_cpu(session.kernel, "runqueues", cpu)
        assert int(variable["cpu"]) == cpu
    pointer = gdb.parse_and_eval("$kper_cpu(crash_notes, 1)")
    assert pointer.type == gdb.parse_and_eval("crash_notes").type
    with pytest.raises(gdb.error, match="has no CPU 4242"):
        gdb.parse_and_eval('$kper_cpu("runqueues", 4242)')
    with pytest.raises(gdb.error, match="no symbol 'nothing'"):
        gdb.parse_and_eval('$kper_cpu("nothing", 0)')
    with pytest.raises(gdb.error, match="wrong number of arguments"):
        gdb.parse_and_eval('$kper_cpu("runqueues", 0, 1)')


def test_ktask_and_kcontainer_of(truth: dict[str, Any]) -> None:
    for task in lasting(truth)[:SAMPLE]:
        pid = task["pid"]
        comm = gdb.parse_and_eval(f"$ktask({pid})->comm")
        assert bytes(comm[i] & 255 for i in range(16)).split(b"\0")[0] == raw(
            task["comm"]
        )
        same = f'$kcontainer_of(&$ktask({pid})->tasks, "struct task_struct", "tasks")'
        assert gdb.parse_and_eval(f"{same} == $ktask({pid})")
    with pytest.raises(gdb.error, match="no task 99999999"):
        gdb.parse_and_eval("$ktask(99999999)")
    with pytest.raises(gdb.error, match="has no member 'nothing'"):
        gdb.parse_and_eval(
            '$kcontainer_of(&init_task, "struct task_struct", "nothing")'
        )


def test_commands_follow_the_selected_thread_and_lead_it(truth: dict[str, Any]) -> None:
    before = gdb.selected_thread()
    with on_thread(1):
        assert '"pid": 1,' in gdb.execute("kset --json", to_string=True)
    futex = next(t["pid"] for t in truth["tasks"] if t["comm"] == "wl-futex")
    gdb.execute("kset wl-futex", to_string=True)
    assert gdb.selected_thread().ptid[1] == futex
    gdb.execute("kset -p", to_string=True)
    assert gdb.selected_thread().ptid[1] == before.ptid[1]


def test_expressions_the_user_typed(session: Session) -> None:
    shown = gdb.execute("kps --json $ktask(1)", to_string=True)
    assert '"pid": 1,' in shown
    with pytest.raises(gdb.error, match=r"^gdbkdump: .*nothing_of_the_kind"):
        gdb.execute("kps $nothing(nothing_of_the_kind)", to_string=True)


def complete(line: str) -> list[str]:
    return gdb.execute(f"complete {line}", to_string=True).splitlines()


def test_completion(truth: dict[str, Any]) -> None:
    gdb.execute("set max-completions unlimited")
    assert complete("kps wl-fut") == ["kps wl-futex", "kps wl-futex-wait"]
    pids = {f"kps {t['pid']}" for t in lasting(truth) if str(t["pid"])[0] == "9"}
    assert pids <= set(complete("kps 9"))
    assert "kps --json" in complete("kps --j")
    assert complete("khelp kse") == ["khelp kset"]
    assert "kstruct task_struct.comm" in complete("kstruct task_struct.com")
    assert "kstruct struct rq" in complete("kstruct struct rq")
    assert "kstruct task_struct init_task" in complete("kstruct task_struct init_t")
    assert complete("kps U") == ["kps UN"]
    assert complete("kmod -p virtio_b") == ["kmod -p virtio_blk"]
    assert complete("klog -l e") == ["klog -l emerg", "klog -l err"]
    assert complete("kstacks -t U") == ["kstacks -t UN"]
    assert complete("ktree -t x") == ["ktree -t xarray"]


def test_completion_of_kforeach() -> None:
    assert "kforeach UN kbt" in complete("kforeach UN kb")
    assert complete("kforeach U") == ["kforeach UN"]
    assert complete("kforeach gl") == ["kforeach gleader"]
    assert complete("kforeach UN kstruct list_hea") == ["kforeach UN kstruct list_head"]
    assert "kforeach UN kbt --json" in complete("kforeach UN kbt --j")


def test_completion_of_files(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "only").touch()
    for command in ("kgcore 1", "kstacks --folded", "kmod -d", "kuser --sysroot"):
        assert complete(f"{command} {tmp_path}/on") == [
            f"{command} {tmp_path}/{name}" for name in ("one/", "only")
        ]
        assert complete(f"{command} {tmp_path}/one/") == []


def test_pipe_and_format(tmp_path: Path) -> None:
    gdb.execute(f"pipe kps | cat > {tmp_path / 'out'}")
    lines = (tmp_path / "out").read_text().splitlines()
    assert lines[0].split()[:2] == ["PID", "PPID"]
    assert len(lines) > len(threads())
    gdb.execute("set kdump format json")
    try:
        assert gdb.execute("kps 1", to_string=True).startswith('{"')
    finally:
        gdb.execute("set kdump format text")


def test_source_lines_come_from_dwarf() -> None:
    sal = gdb.execute("info line schedule", to_string=True)
    assert '"kernel/sched/core.c"' in sal


def test_dwarf_types_serve_where_a_kernel_has_no_btf(session: Session) -> None:
    dwarf = GdbDebugInfo()
    for name in ("task_struct", "mm_struct", "rq", "module", "inactive_task_frame"):
        expected = session.kernel.struct(name)
        found = dwarf.find("struct", name)
        assert found.size == expected.size
        assert {n: (m.bit_offset, m.bit_size) for n, m in found.flat().items()} == {
            n: (m.bit_offset, m.bit_size) for n, m in expected.flat().items()
        }


def test_more_pieces_than_gdb_searches_well_go_through_the_server(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(view._core_ranges(session, "auto")) > 100
    monkeypatch.setattr(view, "MAX_RANGES", 100)
    assert view._core_ranges(session, "auto") is None
    # Unless the user insists.
    assert len(view._core_ranges(session, "core")) > 100


def test_derived_files_are_private(dump_dir: Path) -> None:
    if os.environ.get("GDBKDUMP_TRANSPORT") == "remote":
        pytest.skip("gdb is given no file of the dump's memory")
    found = re.search(r"`(.*view\.core)'", gdb.execute("info files", to_string=True))
    core = Path(found[1])
    assert core.stat().st_mode & 0o777 == 0o600
    assert core.parent.stat().st_mode & 0o777 == 0o700
    assert core.stat().st_uid == os.getuid()
    assert core.stat().st_size < 8 << 20
