# SPDX-License-Identifier: GPL-2.0-or-later
"""kuser in gdb: the workload's processes as inferiors (tests/run_in_gdb.py)."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gdb
import pytest

from gdbkdump.debugger import console, processes

if TYPE_CHECKING:
    from collections.abc import Iterator

MARKER = "gdbkdump-test-marker"


@pytest.fixture(scope="module", autouse=True)
def _clean() -> Iterator[None]:
    before = gdb.selected_thread()
    quiet_switches("on")
    yield
    for inferior in gdb.inferiors():
        if inferior.num > 1:
            close(inferior)
    before.switch()
    gdb.execute("set sysroot")
    quiet_switches("off")


def quiet_switches(state: str) -> None:
    # gdb 12 cannot.
    with contextlib.suppress(gdb.error):
        gdb.execute(f"set suppress-cli-notifications {state}")


def close(inferior: gdb.Inferior) -> None:
    """Close a process, as a user would."""
    with console.quiet():
        gdb.execute(f"inferior {inferior.num}", to_string=True)
        gdb.execute("core-file", to_string=True)
        gdb.execute("inferior 1", to_string=True)
        gdb.execute(f"remove-inferiors {inferior.num}", to_string=True)


@pytest.fixture(scope="module")
def pids(truth: dict[str, Any]) -> dict[str, int]:
    return {task["comm"]: task["pid"] for task in truth["tasks"]}


def ask(command: str) -> list[dict[str, Any]]:
    text = gdb.execute(f"{command} --json", to_string=True)
    return [json.loads(line) for line in text.splitlines()]


def functions() -> list[str]:
    found = []
    frame = gdb.newest_frame()
    while frame is not None and len(found) < 40:
        found.append(frame.name())
        frame = frame.older()
    return found


def read(address: int, size: int) -> bytes:
    return bytes(gdb.selected_inferior().read_memory(address, size))


def roles(truth: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in truth["workload"] if row["role"] == name)


def test_a_backtrace_goes_on_in_user_space(pids: dict[str, int]) -> None:
    row, *notes = ask("kuser wl-nice")
    inferior = gdb.selected_inferior()
    assert inferior.num == row["inferior"] > 1
    assert gdb.selected_thread().ptid[1] == pids["wl-nice"]
    assert gdb.selected_thread().name == "wl-nice"
    assert functions() == [
        "pause", "sleep_forever", "ready_and_sleep", "be_nice", "start_role", "be_main",
        "main",
    ]  # fmt: skip
    assert row["program"] == "/bin/workload"
    assert all("pages are not in the dump" in note["note"] for note in notes)


def test_all_threads_and_their_variables(pids: dict[str, int]) -> None:
    ask("kuser wl-thread-3")
    assert gdb.selected_thread().ptid[1] == pids["wl-thread-3"]
    threads = {t.ptid[1]: t for t in gdb.selected_inferior().threads()}
    wanted = {comm: pid for comm, pid in pids.items() if comm.startswith("wl-thread")}
    assert {t.name: pid for pid, t in threads.items()} == wanted
    for number in range(8):
        threads[pids[f"wl-thread-{number}"]].switch()
        assert gdb.newest_frame().name() == ("poll" if number % 2 else "pause")
        frame = gdb.newest_frame()
        while frame.name() != "be_thread":
            frame = frame.older()
        assert int(frame.read_var("number")) == number
        # Of this thread alone (TLS).
        assert gdb.parse_and_eval("role").string() == f"wl-thread-{number}"


def test_memory_of_two_processes_at_once(truth: dict[str, Any]) -> None:
    gdb.execute("inferior 1", to_string=True)
    linux_banner = int(gdb.parse_and_eval("(unsigned long)&linux_banner"))
    assert read(linux_banner, 13) == b"Linux version"
    told = roles(truth, "wl-memory")
    (first, *_), (second, *_) = ask("kuser wl-memory"), ask("kuser wl-shm")
    assert first["inferior"] != second["inferior"]
    shm = roles(truth, "wl-shm")
    at = int(told["marker_at"], 16)
    assert read(int(shm["at"], 16), 20) == MARKER.encode()
    with pytest.raises(gdb.MemoryError):
        read(at, 20)
    gdb.execute(f"inferior {first['inferior']}", to_string=True)
    assert read(at, 20) == MARKER.encode()
    assert read(int(told["untouched"], 16), 8) == bytes(8)
    (vvar,) = [
        row["start"]
        for row in truth["processes"][str(told["pid"])]["maps"]
        if row["path"] == "[vvar]"
    ]
    # Not in the dump, and so no zeros.
    with pytest.raises(gdb.MemoryError):
        read(vvar, 8)
    # The kernel's memory is the kernel's.
    with pytest.raises(gdb.MemoryError):
        read(linux_banner, 8)


def test_a_loop_in_user_mode(truth: dict[str, Any]) -> None:
    told = roles(truth, "wl-spin-user")
    ask("kuser wl-spin-user")
    assert functions()[0] == "be_user_spinner"
    counter = gdb.parse_and_eval("&counter")
    assert int(counter) == int(told["counter"], 16)
    assert int(counter.dereference()) > 1_000_000
    # What was in the FPU of a CPU is in no dump.
    xmm0 = gdb.execute("info registers xmm0", to_string=True)
    assert "<unavailable>" in xmm0 or "Invalid register" in xmm0


def test_a_mutex_names_its_owner(pids: dict[str, int]) -> None:
    ask("kuser wl-futex-wait")
    assert functions()[1:3] == ["pthread_mutex_lock", "wait_for_mutex"] or (
        "wait_for_mutex" in functions()
    )
    assert int(gdb.parse_and_eval("mutex.__data.__owner")) == pids["wl-futex"]


def test_again_means_the_same_inferior(pids: dict[str, int]) -> None:
    (first, *_), count = ask("kuser wl-threads"), len(gdb.inferiors())
    gdb.execute("inferior 1", to_string=True)
    (again, *_) = ask("kuser wl-thread-5")
    assert again["inferior"] == first["inferior"]
    assert len(gdb.inferiors()) == count
    assert gdb.selected_thread().ptid[1] == pids["wl-thread-5"]
    close(gdb.selected_inferior())
    (anew, *_) = ask("kuser wl-thread-5")
    assert anew["inferior"] != first["inferior"]
    assert functions()[0] == "poll"


def test_commands_follow_the_thread_of_either_inferior(pids: dict[str, int]) -> None:
    (row, *_) = ask("kuser wl-thread-2")
    assert ask("kset")[0]["pid"] == pids["wl-thread-2"]
    assert ask("kbt")[0]["pid"] == pids["wl-thread-2"]
    by_pid = {t.ptid[1]: t for t in gdb.selected_inferior().threads()}
    by_pid[pids["wl-thread-4"]].switch()
    assert ask("kbt")[0]["pid"] == pids["wl-thread-4"]
    # Lines, arguments and locals of the kernel are found from here too.
    (stack,) = ask("kbt -v")
    named = [
        item["function"] for frame in stack["frames"] for item in frame["variables"]
    ]
    assert "schedule" in named
    (stack,) = ask("kbt -l")
    assert any("core.c:" in (frame["line"] or "") for frame in stack["frames"])
    assert gdb.selected_thread().ptid[1] == pids["wl-thread-4"]
    assert gdb.selected_inferior().num == row["inferior"]
    gdb.execute(f"thread {row['kernel_thread']}", to_string=True)
    assert gdb.selected_inferior().num == 1
    assert gdb.selected_thread().ptid[1] == pids["wl-thread-2"]
    assert "schedule" in functions()


def test_the_kernel_is_as_it_was(pids: dict[str, int]) -> None:
    ask("kuser wl-nice")
    gdb.execute("kset wl-futex", to_string=True)
    assert gdb.selected_inferior().num == 1
    assert gdb.selected_thread().ptid[1] == pids["wl-futex"]
    assert gdb.parse_and_eval("init_task.comm").string() == "swapper/0"
    assert gdb.lookup_global_symbol("be_nice") is None
    threads = gdb.selected_inferior().threads()
    assert len(threads) > len(pids) // 2


def test_a_sysroot_of_another_build_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    shutil.copy("/bin/true", tmp_path / "bin/workload")
    row, *notes = ask(f"kuser wl-rr --sysroot {tmp_path}")
    (refused,) = [n["note"] for n in notes if "is not used" in n["note"]]
    assert refused.startswith(f"{tmp_path}/bin/workload is not used: its build-id is ")
    assert "be_rr" in functions() or "set_policy" in functions()
    # The very file is taken from there, and from where the user's gdb looks.
    right = tmp_path / "right"
    (right / "bin").mkdir(parents=True)
    shutil.copy(row["symbols"], right / "bin/workload")
    ask(f"kuser wl-fifo --sysroot {right}")
    symbols = Path(gdb.current_progspace().filename)
    assert symbols.resolve() == (right / "bin/workload").resolve()
    gdb.execute(f"set sysroot {right}")
    ask("kuser wl-batch")
    assert Path(gdb.current_progspace().filename).resolve() == symbols.resolve()


def test_derived_files_are_private() -> None:
    ask("kuser wl-idle")
    text = gdb.execute("info files", to_string=True)
    core = Path(re.search(r"`(.*process-\d+-\d+/core)'", text)[1])
    assert core.stat().st_mode & 0o777 == 0o600
    for folder in core.parents[:2]:
        assert folder.stat().st_mode & 0o777 == 0o700
    program = Path(gdb.current_progspace().filename).resolve()
    assert program.is_relative_to(core.parents[1])
    assert program.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("2", r"kthreadd \(pid 2\) is a kernel thread: it has no user memory"),
        ("wl-zombie", "has exited: it has no user memory"),
        ("99999999", "no task '99999999'"),
        ("1 --sysroot /nonexistent", "/nonexistent is no folder"),
    ],
)
def test_what_cannot_be_opened(words: str, message: str) -> None:
    before = gdb.selected_thread().ptid, len(gdb.inferiors())
    with pytest.raises(gdb.error, match=message):
        gdb.execute(f"kuser {words}", to_string=True)
    assert (gdb.selected_thread().ptid, len(gdb.inferiors())) == before


def test_an_interrupt_leaves_things_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask("kuser wl-nice")
    before = gdb.selected_thread().ptid, gdb.selected_inferior().num
    count = len(gdb.inferiors())

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    # As late as can be: gdb has the core by then.
    with monkeypatch.context() as patch:
        patch.setattr(processes, "_load_unwinding", interrupted)
        patch.setattr(processes, "_is_debug", lambda path: True)
        patch.setattr(processes, "_load_program", lambda *_: None)
        with pytest.raises((KeyboardInterrupt, gdb.error)):
            gdb.execute("kuser wl-tcp", to_string=True)
    assert (gdb.selected_thread().ptid, gdb.selected_inferior().num) == before
    assert len(gdb.inferiors()) == count
    ask("kuser wl-tcp")
    assert "be_tcp_listener" in functions()
