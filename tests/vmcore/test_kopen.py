# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb without a vmlinux, with a bare one and with a wrong one; and kopen."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gdbkdump.cli import main
from gdbkdump.kernel.percpu import per_cpu

INIT = Path(__file__).resolve().parents[2] / "gdb-init.py"


def gdb(folder, *words, batch=True, **environment):
    """Run gdb where no vmlinux is found."""
    command = ["gdb", "-nx", "-q", *(["-batch"] if batch else []), *map(str, words)]
    known = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        cwd=folder,
        env={**known, **environment},
        timeout=300,
        check=False,
    )


def ex(*commands):
    return [word for text in commands for word in ("-ex", text)]


def after_banner(done):
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout.partition("khelp lists commands\n")[2]


@pytest.fixture
def alone(dump_dir, tmp_path):
    """A folder with a link to the dump, and no vmlinux."""
    (tmp_path / "vmcore").symlink_to(dump_dir / "vmcore")
    return tmp_path


@pytest.fixture
def small(alone, dump_dir):
    """The same, for what does not depend on the kernel."""
    usual = dump_dir.parent / "small-6.1"
    if usual.exists() and dump_dir.name != usual.name:
        pytest.skip("that does not depend on the dump: small-6.1 has to do")
    return alone


def printed(output):
    """What each $N is."""
    return re.findall(r"^\$\d+ = (.*)$", output, re.M)


def test_what_stock_gdb_does_with_a_dump_alone(alone, session):
    kernel = session.kernel
    init_task, rq = kernel.symbol("init_task"), per_cpu(kernel, "runqueues", 0)
    questions = (
        "p init_task.comm",
        "p $ktask(1)->comm",
        f"p ((struct task_struct *){init_task:#x})->pid",
        f'p &$kper_cpu("runqueues", 0) == (struct rq *){rq:#x}',
        "p sizeof(struct task_struct)",
        "p linux_banner[0]@5",
        "p vfs_read",
        "p modules.next->prev == &modules",
    )
    text = kernel.symbol("schedule")
    done = gdb(
        alone, "-iex", "set print null-stop on", "-c", "vmcore", "-x", INIT,
        *ex(*questions, "ptype struct list_head", f"info symbol {text:#x}",
            "info functions ^vfs_read$", "complete p init_ta", "info line vfs_read",
            "kstruct task_struct.comm init_task", "bt"),
    )  # fmt: skip
    output = after_banner(done)
    size = kernel.struct("task_struct").size
    assert printed(output) == [
        '"swapper/0"',
        '"init"',
        "0",
        "1",
        str(size),
        '"Linux"',
        "{ssize_t (struct file *, char *, size_t, loff_t *)}"
        f" {kernel.symbol('vfs_read'):#x} <vfs_read>",
        "1",
    ]
    assert "struct list_head *next;" in output
    assert "schedule in section .text" in output
    assert "ssize_t vfs_read(struct file *, char *, size_t, loff_t *);" in output
    assert "p init_task\n" in output
    assert re.search(r"^#\d+ +0x[0-9a-f]+ in vfs_write \(\)$", output, re.M)
    assert re.search(
        r"^#\d+ +0x[0-9a-f]+ in (v?panic|__crash_kexec) \(\)$", output, re.M
    )
    note = [
        line for line in done.stdout.splitlines() if line.startswith("note: no vml")
    ]
    assert note == [
        "note: no vmlinux of this kernel found: gdb has the dump's own symbols and"
        " types, but no lines, arguments, locals and inlined functions"
    ]


def test_the_only_word_is_the_dump(small):
    done = gdb(small, "vmcore", "-x", INIT, *ex("p init_task.pid", "kset -p"))
    assert printed(after_banner(done)) == ["0"]
    # Not so of a vmlinux, and of a file that is not there.
    done = gdb(small, "nothing", "-x", INIT)
    assert done.returncode == 2
    assert "no dump was given" in done.stderr


def other_dump(dump_dir):
    """A dump of another kernel build."""
    mine = (dump_dir / "vmlinux").stat().st_ino
    for path in sorted(dump_dir.parent.glob("small-*/vmlinux")):
        if path.stat().st_ino != mine:
            return path.parent
    pytest.skip("one kernel small is in the cache")
    return None


def test_kopen_opens_and_replaces(small, dump_dir, session, tmp_path):
    other = other_dump(dump_dir)
    (tmp_path / "two words").mkdir()
    (tmp_path / "two words/vmcore").symlink_to(other / "vmcore")
    done = gdb(
        small, "-x", INIT,
        *ex("p 40 + 2", "kopen vmcore", "p $ktask(1) == $ktask(1)->group_leader",
            "p/x &init_task", "kopen 'two words/vmcore'", "p/x &init_task",
            "info threads", "kopen vmcore", "p/x &init_task", "bt"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    values = printed(done.stdout)
    mine = f"{session.kernel.symbol('init_task'):#x}"
    assert values[:3] == ["42", "1", mine]
    assert values[3] != mine
    assert values[4] == mine
    assert done.stderr == ""
    # Of the three, each names its own file.
    shown = re.findall(r"^DUMPFILE: (.*)$", done.stdout, re.M)
    assert [Path(path).parent.name for path in shown] == [
        small.name,
        "two words",
        small.name,
    ]
    assert re.search(r"^#0 .* in ", done.stdout, re.M)


def test_kopen_that_fails_leaves_what_is_open(small, dump_dir):
    other = other_dump(dump_dir)
    done = gdb(
        small, "-x", INIT,
        *ex("kopen vmcore", "kopen nothing", "kopen", "kopen --what vmcore",
            f"kopen vmcore {other / 'vmlinux'}", "kset -p", "p init_task.pid"),
        batch=False,
    )  # fmt: skip
    assert printed(done.stdout) == ["0"]
    lines = [x for x in done.stderr.splitlines() if x.startswith("gdbkdump: ")]
    assert len(lines) == 5
    assert "No such file" in lines[1]
    assert "required" in lines[2]
    assert "unrecognized arguments: --what" in lines[3]
    assert "is of another kernel build" in lines[4]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "code"), [("kopen nothing", 2), ("kopen", 1), ("kopen vmcore", 0)]
)
def test_exit_codes_of_kopen(small, command, code):
    done = gdb(small, "-x", INIT, *ex(command, "echo still here\\n"))
    assert done.returncode == code
    assert ("still here" in done.stdout) == (code == 0)


def test_completion_and_help_of_kopen(small):
    done = gdb(small, "-x", INIT, *ex("complete kopen vmc", "help kopen"))
    assert "kopen vmcore\n" in done.stdout
    assert "Usage: kopen [OPTION]... VMCORE [VMLINUX]" in done.stdout


def check_own_symbols(done, session):
    output = after_banner(done)
    assert printed(output) == ["0", f"{session.kernel.symbol('init_task'):#x}"]
    assert re.search(r"^#\d+ +0x[0-9a-f]+ in vfs_write \(\)$", output, re.M)


ASK = ex("p init_task.pid", "p/x &init_task", "bt")


def test_a_wrong_vmlinux_that_is_insisted_on(small, dump_dir, session):
    wrong = other_dump(dump_dir) / "vmlinux"
    refused = gdb(small, wrong, "vmcore", "-x", INIT, *ASK)
    assert refused.returncode == 3
    for done in (
        gdb(small, wrong, "vmcore", "-x", INIT, *ASK, GDBKDUMP_FORCE="1"),
        gdb(small, "-x", INIT, "-ex", f"kopen --force vmcore {wrong}", *ASK),
        gdb(small, "-x", INIT, "-ex", "set kdump force on",
            "-ex", f"kopen vmcore {wrong}", *ASK),
    ):  # fmt: skip
        check_own_symbols(done, session)
        assert "is of another kernel build" in done.stdout
        assert "nothing of it is used: gdb has the dump's own symbols" in done.stdout


def test_the_program_insists_too(small, dump_dir, session, monkeypatch, capsys):
    wrong = str(other_dump(dump_dir) / "vmlinux")
    assert main([str(small / "vmcore"), wrong, "-c", "kset"]) == 3
    assert main([str(small / "vmcore"), wrong, "--force", "-c", "kset"]) == 0
    out, err = capsys.readouterr()
    assert "PID" in out
    assert "nothing of it is used" in err
    command = [sys.executable, "-m", "gdbkdump", str(small / "vmcore"), wrong]
    command += ["--force", "-nx", "-batch", *ASK]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    check_own_symbols(done, session)


def test_a_vmlinux_without_debug_information(small, dump_dir, session):
    bare = small / "vmlinux"
    command = ["objcopy", "--strip-debug", dump_dir / "vmlinux", bare]
    subprocess.run(command, check=True)
    done = gdb(small, "vmlinux", "vmcore", "-x", INIT, *ASK)
    check_own_symbols(done, session)
    assert f"{bare} has no debug information: gdb has the dump's own" in done.stdout
    bare.unlink()


def test_the_vmlinux_is_left_alone_if_asked_for(small, dump_dir, session):
    vmlinux = dump_dir / "vmlinux"
    for done in (
        gdb(small, vmlinux, "vmcore", "-x", INIT, *ASK, GDBKDUMP_OWN_SYMBOLS="1"),
        gdb(small, "-x", INIT, "-ex", f"kopen --own-symbols vmcore {vmlinux}", *ASK),
    ):
        check_own_symbols(done, session)
        assert "note: no vmlinux is loaded, as asked for: gdb has the dump's" in (
            done.stdout
        )


def test_modules_have_names_until_their_debug_files_have_lines(crash_dir, tmp_path):
    if crash_dir.name != "crash-null-6.1":
        pytest.skip("that does not depend on the dump: crash-null-6.1 has to do")
    (tmp_path / "vmcore").symlink_to(crash_dir / "vmcore")
    done = gdb(
        tmp_path, crash_dir / "vmlinux", "vmcore", "-x", INIT,
        *ex("bt 3", "whatis crashme_write", f"kmod -d {crash_dir}/modules -s crashme",
            "bt 3", "info line crashme_write"),
    )  # fmt: skip
    before, _, after = after_banner(done).partition("crashme.ko")
    assert re.search(r" in crashme_\w+ \(\)\n", before)
    assert "crashme.c" not in before
    assert re.search(r" in crashme_\w+ \(.*\)\s+at .*crashme\.c:\d+\n", after)
    assert re.search(r"^Line \d+ of .*crashme\.c", after, re.M)


@pytest.mark.parametrize("first", ["vmcore", "none"])
def test_core_file_at_the_prompt_opens_a_dump(small, tmp_path, first):
    # gdb 13 runs no hook for what is typed there. Another dump has other tasks.
    link = tmp_path / "other"
    link.symlink_to((small / "vmcore").resolve())
    typed = [f"core-file {link}", "kset 1", "info threads 1", "ksys"]
    if first != "none":
        typed.insert(0, f"kopen {small / first}")
    done = subprocess.run(
        ["gdb", "-nx", "-q", "-x", INIT],
        input="\n".join(typed),
        capture_output=True,
        text=True,
        cwd=small,
        timeout=300,
        check=False,
    )
    assert done.stdout.count(f"DUMPFILE: {link}") == 2
    assert 'COMMAND: "init"' in done.stdout
    assert '"swapper/0 [CPU 0]"' in done.stdout
    assert done.stdout.count("khelp lists commands") == len(typed) - 3
    assert "Traceback" not in done.stderr
