# SPDX-License-Identifier: GPL-2.0-or-later
"""A dump in an IDE that speaks gdb's machine interface (MI).

Each is started and spoken to as its sources say it does: MIEngine (VS Code's cpptools,
Visual Studio), Eclipse CDT, Emacs (gdb-mi.el), and those that leave all to .gdbinit.
"""

from __future__ import annotations

import json
import re
import shutil

import pytest

from gdbkdump.commands import find_command
from gdbkdump.render import json_text
from gdbkdump.render.escape import escape
from tests.support.mi_client import MiClient, MiError
from tests.support.stock_gdb import INIT, newest_gdb


@pytest.fixture(scope="module")
def small(dump_dir):
    usual = dump_dir.parent / "small-6.1"
    if usual.exists() and dump_dir.name != usual.name:
        pytest.skip("MI does not depend on the dump: small-6.1 has to do")
    return dump_dir


def rows_of(session, name, *words):
    item = find_command(name)
    lines = json_text.lines(item.run(session, item.parse(words)))
    return [row for row in map(json.loads, lines) if "note" not in row]


def mi_engine(gdb, small, home):
    # "setupCommands" of launch.json come after its own first ones.
    client = MiClient(gdb, "--interpreter=mi", "-nx")
    client.run("-gdb-set auto-solib-add on")
    client.run("-enable-pretty-printing")
    client.run(f'-interpreter-exec console "source {INIT}"')
    client.run(f"-file-exec-and-symbols {small / 'vmlinux'}")
    assert client.run(f"-target-select core {small / 'vmcore'}")["class"] == "connected"
    return client


def eclipse(gdb, small, home):
    client = MiClient(gdb, "--interpreter", "mi2", "--nx")
    client.run("-gdb-version")
    client.run(f"-environment-cd {home}")
    client.run("-gdb-set python print-stack none")
    client.run("-gdb-set print object on")
    client.run("-gdb-set print sevenbit-strings on")
    client.run("-gdb-set charset ISO-8859-1")
    client.run(f"source {INIT}")
    client.run("-gdb-set auto-solib-add on")
    client.run(f"-file-exec-and-symbols {small / 'vmlinux'}")
    assert client.run(f"-target-select core {small / 'vmcore'}")["class"] == "connected"
    (group,) = client.run("-list-thread-groups")["groups"]
    assert client.run(f"-list-thread-groups {group['id']}")["threads"]
    return client


def emacs(gdb, small, home):
    files = small / "vmlinux", small / "vmcore"
    client = MiClient(gdb, "-nx", "-i=mi", *files, "-x", INIT)
    client.run("-inferior-tty-set /dev/null")
    client.run("-gdb-set height 0")
    client.run("-gdb-set non-stop 1")
    client.run("-enable-pretty-printing")
    client.run("-enable-frame-filters")
    client.run("-file-list-exec-source-file")
    assert client.run("-gdb-show prompt")["value"] == "(gdb) "
    client.run("-gdb-set target-async 1")
    client.run("-list-target-features")
    return client


def gdbinit(gdb, small, home):
    # gdb reads it before it opens the files of its command line.
    (home / ".gdbinit").write_text(f"source {INIT}\n")
    return MiClient(gdb, "-i=mi", small / "vmlinux", small / "vmcore", home=home)


def gdbinit_and_console(gdb, small, home):
    (home / ".gdbinit").write_text(f"source {INIT}\n")
    client = MiClient(gdb, "-i=mi", small / "vmlinux", home=home)
    client.run(f'-interpreter-exec console "core-file {small / "vmcore"}"')
    return client


IDES = [mi_engine, eclipse, emacs, gdbinit, gdbinit_and_console]


@pytest.fixture(
    scope="module",
    params=[("gdb", ide) for ide in IDES]
    + [("newest", ide) for ide in (mi_engine, emacs)],
    ids=lambda param: f"{param[1].__name__}-{param[0]}",
)
def client(request, small, tmp_path_factory):
    name, ide = request.param
    if shutil.which("gdb") is None:
        pytest.skip("gdb is not installed")
    gdb = newest_gdb() if name == "newest" else "gdb"
    client = ide(gdb, small, tmp_path_factory.mktemp("home"))
    yield client
    client.kill()


def test_all_an_ide_asks_for(client, session, truth):
    # In one test, as the time goes into opening.
    check_threads(client, session, truth)
    check_panicking_thread(client, session, truth)
    check_system_call(client, truth)
    check_memory_and_code(client, session, truth)
    check_console(client, session, truth)
    assert client.close() == 0
    assert "Traceback" not in client.console + client.log


def check_threads(client, session, truth):
    info = client.run("-thread-info")
    found = {thread["target-id"]: thread["name"] for thread in info["threads"]}
    rows = rows_of(session, "kps")
    assert len(info["threads"]) == len(rows)
    names = {f"LWP {r['pid']}": escape(r["comm"]) for r in rows if r["pid"]}
    assert {lwp: found[lwp].partition(" [")[0] for lwp in names} == names
    panic = truth["panic"]
    (current,) = [
        thread
        for thread in info["threads"]
        if thread["id"] == info["current-thread-id"]
    ]
    assert current["name"] == f"{panic['comm']} [CPU {panic['cpu']}, panicked]"


def thread_of(client, pid):
    threads = client.run("-thread-info")["threads"]
    (found,) = [t["id"] for t in threads if t["target-id"] == f"LWP {pid}"]
    return found


def check_panicking_thread(client, session, truth):
    thread = thread_of(client, truth["panic"]["pid"])
    frames = client.run(f"-stack-list-frames --thread {thread}")["stack"]
    (row,) = rows_of(session, "kbt")
    wanted = [int(frame["ip"], 16) for frame in row["frames"]]
    # Functions inlined into a frame are at its address.
    assert list(dict.fromkeys(int(f["addr"], 16) for f in frames)) == wanted
    level = next(f["level"] for f in frames if f["func"] == "__handle_sysrq")
    command = f"-stack-list-variables --thread {thread} --frame {level} --all-values"
    variables = client.run(command)["variables"]
    values = {item["name"]: item["value"] for item in variables}
    # 'c' was written to /proc/sysrq-trigger.
    assert values["key"] == str(ord("c"))


def check_system_call(client, truth):
    task = next(t for t in truth["tasks"] if t["comm"] == "wl-pipe")
    thread = thread_of(client, task["pid"])
    frames = client.run(f"-stack-list-frames --thread {thread}")["stack"]
    (level,) = [f["level"] for f in frames if f["func"] == "do_syscall_64"]
    number, first = (int(word, 0) for word in task["syscall"].split()[:2])
    for member, value in (("orig_ax", number), ("di", first)):
        place = f"--thread {thread} --frame {level}"
        result = client.run(f"-data-evaluate-expression {place} regs->{member}")
        assert result["value"] == str(value)
    name = client.run(f"-var-create --thread {thread} --frame {level} - * regs->di")
    assert name["value"] == str(first)


def check_memory_and_code(client, session, truth):
    banner = truth["version"].encode()
    body = client.run(f"-data-read-memory-bytes &linux_banner {len(banner)}")
    assert bytes.fromhex(body["memory"][0]["contents"]) == banner
    start = session.kernel.symbol("panic")
    code = client.run(f"-data-disassemble -s {start} -e {start + 32} -- 2")["asm_insns"]
    assert {line["func-name"] for line in code} == {"panic"}
    found = bytes.fromhex("".join(line["opcodes"] for line in code))
    assert found == session.kernel.reader.read(start, len(found))


def check_console(client, session, truth):
    pid = truth["panic"]["pid"]
    printed = client.console_of(f"kps {pid} --json")
    rows = [json.loads(line) for line in printed.splitlines()]
    assert rows == rows_of(session, "kps", str(pid))
    table = client.console_of("kps")
    assert len(table.splitlines()) == len(rows_of(session, "kps")) + 1
    # Neither colour nor what a name of a task would do to a terminal.
    assert "\x1b" not in table
    message = r"^gdbkdump: no task '99999999'"
    with pytest.raises(MiError, match=message):
        client.run('-interpreter-exec console "kps 99999999"')
    assert f"RELEASE: {truth['release']}" in client.console


def test_what_cannot_be_opened(small, tmp_path):
    folder = tmp_path / "with a space"
    folder.mkdir()
    text = folder / "vmcore"
    text.write_text("no dump\n")
    client = MiClient("gdb", "-nx", "-i=mi", "-x", INIT)
    try:
        assert client.log == ""
        with pytest.raises(MiError, match=r"^gdbkdump: no dump is open"):
            client.run('-interpreter-exec console "kps"')
        # Unquoted, as MIEngine has it.
        message = f"^gdbkdump: {re.escape(str(text))} is not a vmcore"
        with pytest.raises(MiError, match=message):
            client.run(f"-target-select core {text}")
        missing = f"^gdbkdump: cannot open {tmp_path}/missing: No such file"
        with pytest.raises(MiError, match=missing):
            client.run(f"-target-select core {tmp_path}/missing")
        client.run("-file-exec-and-symbols /bin/sleep")
        with pytest.raises(MiError, match="/sleep is of another kernel build"):
            client.run(f"-target-select core {small / 'vmcore'}")
        text.unlink()
        client.run(f"-file-exec-and-symbols {small / 'vmlinux'}")
        text.symlink_to(small / "vmcore")
        client.run(f"-target-select core {text}")
        assert client.run("-data-evaluate-expression init_task.pid")["value"] == "0"
        with pytest.raises(MiError, match=r"^No core file specified"):
            client.run("-target-select core")
    finally:
        client.kill()
