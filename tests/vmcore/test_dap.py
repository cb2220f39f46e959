# SPDX-License-Identifier: GPL-2.0-or-later
"""A dump in an IDE: requests of the Debug Adapter Protocol to ``gdb -i=dap``.

gdb has the server since 14 and knows of cores since 18; the newest gdb is taken.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess

import pytest

from gdbkdump.commands import find_command
from gdbkdump.render import json_text
from gdbkdump.render.escape import decode, escape
from gdbkdump.session import open_session
from tests.support.dap_client import DapClient, DapError
from tests.support.stock_gdb import INIT, newest_gdb

# Per-CPU symbols are offsets on the first, addresses on the second.
DUMPS = ("small-6.1", "small-7")
CRASHES = ("crash-null-6.1", "crash-hardirq-6.1")


def start(*words):
    return DapClient([newest_gdb(), "-nx", "-q", "-i=dap", "-x", INIT, *words])


def only(directory, names):
    """Skip a dump that would show nothing new, if there are others."""
    if directory.name not in names and (directory.parent / names[0]).exists():
        pytest.skip(f"{' and '.join(names)} have to do")
    return directory


@pytest.fixture(scope="module")
def client(dump_dir):
    only(dump_dir, DUMPS)
    client = start()
    client.attach(program=str(dump_dir / "vmlinux"), coreFile=str(dump_dir / "vmcore"))
    yield client
    client.kill()


@pytest.fixture(scope="module")
def numbers(client):
    """The protocol's number of each thread, by what gdb calls its LWP: the pid."""
    shown = evaluate(client, "info threads", "repl")
    found = re.findall(r"^[* ] +(\d+) +(?:LWP|Thread) (\d+)", shown, re.M)
    return {int(lwp): int(number) for number, lwp in found}


def rows_of(session, name, *words):
    item = find_command(name)
    lines = json_text.lines(item.run(session, item.parse(words)))
    return [row for row in map(json.loads, lines) if "note" not in row]


def frames_of(client, thread):
    return client.request("stackTrace", threadId=thread)["stackFrames"]


def variables_of(client, frame, scope):
    """Names and values of a scope, and where each can be unfolded."""
    scopes = client.request("scopes", frameId=frame["id"])["scopes"]
    (found,) = [item for item in scopes if item["name"] == scope]
    return children_of(client, found)


def children_of(client, item):
    reference = item["variablesReference"]
    found = client.request("variables", variablesReference=reference)["variables"]
    return {child["name"]: child for child in found}


def evaluate(client, expression, context="watch", **more):
    return client.request("evaluate", expression=expression, context=context, **more)[
        "result"
    ]


def base(name):
    """Return a function's name without what the compiler put behind it."""
    return re.sub(r"\.(cold|isra|constprop|part)\b.*", "", name)


def real_names(frames, pcs):
    """Names of the functions at these addresses, one after the other.

    Functions inlined there come before them, at the same address. One that was left
    by a jump is made up of DWARF, at an address that is on no stack.
    """
    rest = [(int(f["instructionPointerReference"], 16), f["name"]) for f in frames]
    rest = [(pc, name) for pc, name in rest if pc in pcs]
    names = []
    for pc, following in zip(pcs, [*pcs[1:], None], strict=True):
        run = []
        while rest and rest[0][0] == pc and not (run and pc == following):
            run.append(rest.pop(0)[1])
        names.append(run[-1] if run else None)
    assert not rest
    return names


def stack_of(session, pid):
    from gdbkdump.kernel.sched import find_task
    from gdbkdump.unwind.unwinder import unwind_task

    return unwind_task(session.kernel, find_task(session.kernel, pid))


def symbols_of(session, stack):
    found = [session.kernel.debuginfo.symbol_at(frame.pc) for frame in stack.frames]
    return [base(symbol.name) if symbol else None for symbol in found]


def test_all_tasks_are_named_threads(client, numbers, session, truth):
    named = {t["id"]: t["name"] for t in client.request("threads")["threads"]}
    rows = rows_of(session, "kps")
    # A client may show a name in a terminal.
    tasks = {row["pid"]: escape(row["comm"]) for row in rows if row["pid"]}
    found = {lwp: named[number].partition(" [")[0] for lwp, number in numbers.items()}
    idle = {4194305 + row["cpu"]: row["comm"] for row in rows if not row["pid"]}
    assert found == tasks | idle
    # What the guest saw of the tasks that stayed as they were.
    for task in truth["tasks"]:
        if task["comm"].startswith("wl-") and task["comm"] != "wl-crash":
            comm = decode(os.fsencode(task["comm"]))
            assert found[task["pid"]] == escape(comm)
    panic = truth["panic"]
    wanted = f"{panic['comm']} [CPU {panic['cpu']}, panicked]"
    assert named[numbers[panic["pid"]]] == wanted


def test_the_client_is_told_once_and_of_the_thread_that_panicked(
    client, numbers, truth
):
    stops = [event["body"] for event in client.events if event["event"] == "stopped"]
    assert [stop["threadId"] for stop in stops] == [numbers[truth["panic"]["pid"]]]
    told = {event["event"] for event in client.events}
    # It would ask for each thread of thousands, or think that all is over.
    assert not told & {"thread", "exited", "terminated", "continued"}


def test_frames_are_those_of_kbt(client, numbers, session, truth):
    compared = 0
    for row in rows_of(session, "kps"):
        stack = stack_of(session, row["pid"]) if row["pid"] else None
        if stack is None or not stack.frames or row["active"]:
            continue
        frames = client.request("stackTrace", threadId=numbers[row["pid"]])
        pcs = [frame.ip for frame in stack.frames]
        names = real_names(frames["stackFrames"], pcs)
        wanted = symbols_of(session, stack)
        # DWARF and kallsyms name the entry code at different labels.
        assert [base(n or "") for n in names][:-1] == wanted[:-1], row
        compared += 1
    assert compared > 50


def test_a_page_of_frames_is_a_slice_of_them(client, numbers, truth):
    thread = numbers[truth["panic"]["pid"]]
    whole = frames_of(client, thread)
    page = client.request("stackTrace", threadId=thread, startFrame=3, levels=4)
    assert page["stackFrames"] == whole[3:7]
    assert len(whole) > 8


def test_arguments_of_a_system_call(client, numbers, session, truth):
    # `regs` of do_syscall_64() are the registers of user mode, which the guest told.
    task = next(t for t in truth["tasks"] if t["comm"] == "wl-futex-wait")
    (frame,) = [
        frame
        for frame in frames_of(client, numbers[task["pid"]])
        if frame["name"] == "do_syscall_64"
    ]
    regs = variables_of(client, frame, "Arguments")["regs"]
    inside = children_of(client, children_of(client, regs)["value"])
    number, *arguments, sp, ip = (int(word, 0) for word in task["syscall"].split())
    names = ("orig_ax", "di", "si", "dx", "r10", "r8", "r9", "sp", "ip")
    found = {name: int(inside[name]["value"]) % (1 << 64) for name in names}
    assert list(found.values()) == [number, *arguments, sp, ip]


def test_registers_of_the_panicking_cpu(client, numbers, session, truth):
    thread = numbers[truth["panic"]["pid"]]
    frame = frames_of(client, thread)[0]
    found = variables_of(client, frame, "Registers")
    (row,) = rows_of(session, "kregs")
    wanted = {f"r{n}": row["registers"][n] for n in ("bx", "sp", "bp", "di", "si")}
    for name, value in wanted.items():
        # gdb shows them signed, or as a pointer.
        shown = int(found[name]["value"].split()[0], 0) % (1 << 64)
        assert shown == int(value, 16), name


def test_globals_with_per_cpu_variables(client, numbers, session, truth):
    # __schedule() is in the file of `runqueues`, which no CPU has at its own address.
    task = next(t for t in truth["tasks"] if t["comm"] == "wl-timer")
    (frame,) = [
        frame
        for frame in frames_of(client, numbers[task["pid"]])
        if frame["name"] == "__schedule"
    ]
    found = variables_of(client, frame, "Globals")
    cpu = truth["panic"]["cpu"]
    queue = children_of(client, found[f"runqueues [CPU {cpu}]"])
    assert queue["cpu"]["value"] == str(cpu)
    (panicked,) = rows_of(session, "kps", str(truth["panic"]["pid"]))
    assert queue["curr"]["memoryReference"] == panicked["task"]
    assert "runqueues" not in found
    # A register is a variable of this name in every file that includes <asm/asm.h>.
    assert "requires a frame" in found["current_stack_pointer"]["value"]


def test_a_per_cpu_variable_by_itself_is_unreadable(client, session, truth):
    with pytest.raises(DapError, match="Cannot access memory"):
        evaluate(client, "runqueues.nr_running")
    cpu = truth["panic"]["cpu"]
    assert evaluate(client, f'$kper_cpu("runqueues", {cpu}).cpu') == str(cpu)


def test_evaluate(client, session, truth):
    pid = truth["panic"]["pid"]
    assert evaluate(client, f"$ktask({pid})->pid") == str(pid)
    assert evaluate(client, f"$ktask({pid})->comm", "hover").startswith(
        '"wl-crash\\000'
    )
    printed = evaluate(client, f"kps {pid} --json", "repl")
    assert [json.loads(line) for line in printed.splitlines()] == rows_of(
        session, "kps", str(pid)
    )
    with pytest.raises(DapError, match=r"^gdbkdump: no task '99999999'"):
        evaluate(client, "kps 99999999", "repl")


def test_memory_and_code(client, session, truth):
    kernel = session.kernel
    banner = kernel.symbol("linux_banner")
    wanted = truth["version"].encode()
    body = client.request("readMemory", memoryReference=hex(banner), count=len(wanted))
    assert base64.b64decode(body["data"]) == wanted
    start = kernel.symbol("panic")
    body = client.request(
        "disassemble", memoryReference=hex(start), instructionCount=20
    )
    code = b"".join(
        bytes.fromhex(line["instructionBytes"].replace(" ", ""))
        for line in body["instructions"]
    )
    assert len(body["instructions"]) == 20
    assert body["instructions"][0]["symbol"] == "panic"
    assert code == kernel.reader.read(start, len(code))


def test_code_before_an_address(client, session):
    # As VS Code asks for it; its view of a frame begins 50 instructions above.
    start = session.kernel.symbol("panic")
    ask = {"memoryReference": hex(start), "instructionCount": 40}
    forward = client.request("disassemble", **ask)["instructions"]
    ask |= {"memoryReference": forward[30]["address"], "instructionOffset": -30}
    around = client.request("disassemble", **ask)["instructions"]
    assert around == forward
    # On into the function before; then into what is no code of the kernel.
    ask |= {"memoryReference": hex(start), "instructionCount": 20}
    before = client.request("disassemble", **ask | {"instructionOffset": -20})
    lines = before["instructions"]
    ends = [int(x["address"], 16) + len(x["instructionBytes"]) // 2 for x in lines]
    assert [int(x["address"], 16) for x in lines[1:]] + [start] == ends
    text = session.kernel.symbol("_stext")
    ask |= {"memoryReference": hex(text), "instructionOffset": -3000}
    lines = client.request("disassemble", **ask)["instructions"]
    assert len(lines) == 20
    assert {x["presentationHint"] for x in lines} == {"invalid"}


def test_modules(client, dump_dir):
    paths = [m.get("path") for m in client.request("modules")["modules"]]
    assert str((dump_dir / "vmlinux").resolve()) in paths


def test_the_banner_is_in_the_console(client, truth):
    client.request("threads")
    assert f"RELEASE: {truth['release']}" in client.output
    assert "Traceback" not in client.output


@pytest.fixture(scope="module")
def other(dump_dir):
    return only(dump_dir, DUMPS[:1])


@pytest.mark.parametrize("how", ["attach", "launch", "command line"])
def test_other_ways_to_name_the_dump(other, session, how):
    wanted = len(rows_of(session, "kps"))
    given = [other / "vmlinux", other / "vmcore"] if how == "command line" else []
    client = start(*given)
    try:
        # The vmlinux is found by its build-id.
        arguments = {} if given else {"coreFile": str(other / "vmcore")}
        client.attach("launch" if how == "launch" else "attach", **arguments)
        assert len(client.request("threads")["threads"]) == wanted
        assert evaluate(client, "init_task.pid") == "0"
        assert client.close() == 0
    finally:
        client.kill()


def test_without_a_vmlinux_names_and_types_are_the_dumps(other, session, tmp_path):
    (tmp_path / "vmcore").symlink_to(other / "vmcore")
    client = start()
    try:
        client.attach(coreFile=str(tmp_path / "vmcore"))
        paths = [m.get("path", "") for m in client.request("modules")["modules"]]
        assert not any(path.endswith("vmlinux") for path in paths)
        stop = client.wait_for_event("stopped")
        names = [frame["name"] for frame in frames_of(client, stop["threadId"])]
        (row,) = rows_of(session, "kbt")
        assert [base(n) for n in names] == [base(f["symbol"]) for f in row["frames"]]
        assert evaluate(client, "init_task.comm").startswith('"swapper/0')
    finally:
        client.kill()


def test_a_failed_attach_says_why(other, tmp_path):
    text = tmp_path / "vmcore"
    text.write_text("no dump\n")
    client = start()
    try:
        with pytest.raises(DapError, match=f"^gdbkdump: {text} is not a vmcore"):
            client.attach(coreFile=str(text))
        # The next one may be right.
        with pytest.raises(DapError, match=r"^gdbkdump: .*/sleep is of another kernel"):
            client.attach(program="/bin/sleep", coreFile=str(other / "vmcore"))
        with pytest.raises(DapError, match=r"^gdbkdump: no dump is open: "):
            evaluate(client, "kps", "repl")
        client.attach(coreFile=str(other / "vmcore"))
        assert evaluate(client, "init_task.pid") == "0"
    finally:
        client.kill()


def test_a_file_as_target_is_not_written_to(other, tmp_path):
    # gdb alone takes it for a serial line, and writes its packets into it.
    text = tmp_path / "vmcore"
    text.write_text("no dump\n")
    client = start()
    try:
        with pytest.raises(DapError, match=f"^gdbkdump: {text} is not a vmcore"):
            client.attach(target=str(text))
    finally:
        client.kill()
    assert text.read_text() == "no dump\n"


def test_without_a_dump_gdb_is_as_it_was(other, tmp_path):
    core = tmp_path / "core"
    program = "/bin/sleep"
    commands = ["-ex", "starti", "-ex", f"gcore {core}"]
    subprocess.run(
        ["gdb", "-nx", "-batch", *commands, program], capture_output=True, check=True
    )
    client = start()
    try:
        with pytest.raises(DapError, match="attach requires"):
            client.attach()
        client.attach(program=program, coreFile=str(core))
        assert len(client.request("threads")["threads"]) == 1
        assert not client.output
        with pytest.raises(DapError, match=r"^gdbkdump: no dump is open"):
            evaluate(client, "kps", "repl")
    finally:
        client.kill()


def test_a_known_crash(crash_dir):
    only(crash_dir, CRASHES)
    crash = json.loads((crash_dir / "truth.json").read_text())["crash"]
    session = open_session(crash_dir / "vmcore")
    client = start()
    try:
        client.attach(
            program=str(crash_dir / "vmlinux"), coreFile=str(crash_dir / "vmcore")
        )
        stop = client.wait_for_event("stopped")
        frames = frames_of(client, stop["threadId"])
        ours = [frame for frame in frames if frame["name"].startswith("crashme_")]
        # The module's file was found beside the dump.
        assert [f["name"] for f in ours] == [f["function"] for f in crash["frames"]]
        for frame, known in zip(ours, crash["frames"], strict=True):
            for scope, key in (("Arguments", "arguments"), ("Locals", "variables")):
                wanted = {name: str(value) for name, value in known[key].items()}
                found = variables_of(client, frame, scope) if wanted else {}
                assert {name: found[name]["value"] for name in wanted} == wanted
    finally:
        client.kill()
        session.close()
