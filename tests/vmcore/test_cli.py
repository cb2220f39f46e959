# SPDX-License-Identifier: GPL-2.0-or-later
"""The gdbkdump program: exit codes, errors of one line, JSON, a closed pipe."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gdbkdump import cli
from gdbkdump.cli import main


@pytest.fixture
def vmcore(dump_dir):
    return str(dump_dir / "vmcore")


def test_json_and_text_say_the_same(vmcore, capsys):
    assert main([vmcore, "-c", "kps 1", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert main([vmcore, "-c", "kps 1"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert row["pid"] == 1
    assert f"{int(row['task'], 16):016x}" in line
    assert line.endswith(row["comm"])


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["-c", "kno"], 1, "no command 'kno'"),
        (["-c", ""], 1, "no command in ''"),
        (["-c", "ps"], 1, "no command 'ps' (did you mean kps? khelp lists all)"),
        (["-c", "ksy"], 1, "did you mean ksys or ksym"),
        (["-c", "xyzzy"], 1, "no command 'xyzzy' (khelp lists them: kbt "),
        (["-c", "kps 'open"], 1, "kps 'open: No closing quotation"),
        (["-c", "kps --what"], 1, "unrecognized arguments: --what (see: khelp kps)"),
        (["-c", "kps", "-ex", "bt"], 2, "-ex is an option of gdb, which -c does not"),
        (["-c", "kps", "--vmcoreinfo", "none"], 2, "neither a file nor a physical"),
        (["-c", "kps no-such-task"], 1, "no task 'no-such-task'"),
    ],
)
def test_a_failed_command_is_one_line(vmcore, capsys, words, code, message):
    assert main([vmcore, *words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("gdbkdump: ")
    assert err.count("\n") == 1


def test_the_others_run_after_a_failed_one(vmcore, capsys):
    assert main([vmcore, "-c", "kps no-such-task", "-c", "kset"]) == 1
    out, _ = capsys.readouterr()
    assert "COMMAND" in out


def test_options_of_gdb_come_after_the_dump(vmcore, capsys):
    assert main(["-q", vmcore]) == 2
    assert capsys.readouterr().err == (
        "gdbkdump: -q is an option of gdb, which comes after the dump:"
        " gdbkdump VMCORE -q\n"
    )


def test_no_dump(tmp_path, capsys):
    assert main([str(tmp_path / "none"), "-c", "kps"]) == 2
    assert "No such file" in capsys.readouterr().err
    assert main([str(tmp_path), "-c", "kps"]) == 2
    assert "is a directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"KDUMP   ", "blocks of 0 bytes"),
        (b"makedumpfile\0\0\0\0", "flattened dumps of type 0"),
        (b"\x28\xb5\x2f\xfd", "decompress it first"),
        (b"\x1f\x8b\x08", "decompress it first"),
        (b"QEVM", "--memory-only"),
        (b"PAGEDU64", "Windows"),
        (b"hello world", "no known dump format"),
    ],
)
def test_what_is_no_vmcore_is_named(tmp_path, capsys, head, what):
    path = tmp_path / "dump"
    path.write_bytes(head.ljust(8192, b"\0"))
    assert main([str(path), "-c", "kps"]) == 2
    assert what in capsys.readouterr().err


def test_vmlinux_as_dump(dump_dir, capsys):
    assert main([str(dump_dir / "vmlinux"), "-c", "kps"]) == 2
    assert "is not a dump but an executable" in capsys.readouterr().err


def test_a_vmlinux_of_another_build(vmcore, dump_dir, tmp_path, capsys):
    others = [p for p in dump_dir.parent.glob("*/vmlinux") if p.parent != dump_dir]
    mine = (dump_dir / "vmlinux").stat().st_ino
    wrong = [p for p in others if p.stat().st_ino != mine]
    if not wrong:
        pytest.skip("one kernel alone is in the cache")
    assert main([vmcore, str(wrong[0]), "-c", "kps"]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert "another kernel build" in err


def test_a_closed_pipe_is_no_error(vmcore):
    command = f"{sys.executable} -m gdbkdump {vmcore} -c klog | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, check=False
    )
    assert done.stderr == b""
    assert done.stdout.count(b"\n") == 1
    assert done.returncode == 0


def test_options_that_are_not_ours_are_gdbs():
    split = cli._split
    assert split(["core", "-c", "kps -u", "--json"]) == (
        ["core", "-c", "kps -u", "--json"],
        [],
    )
    assert split(["core", "--gdb=gdb18", "-ex", "bt"]) == (
        ["core", "--gdb=gdb18"],
        ["-ex", "bt"],
    )
    assert split(["core", "vmlinux", "--", "-batch"]) == (
        ["core", "vmlinux"],
        ["-batch"],
    )


def test_it_starts_gdb_with_the_dump_open(dump_dir, truth):
    command = [sys.executable, "-m", "gdbkdump", str(dump_dir / "vmcore")]
    command += [str(dump_dir / "vmlinux"), "-nx", "-batch", "-ex", "p $ktask(1)->pid"]
    command += ["-ex", "kps -A"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "$1 = 1\n" in done.stdout
    assert "wl-crash" in done.stdout.splitlines()[-1]


def test_ctrl_c_while_it_starts_is_one_line(tmp_path):
    # As if it came in the middle of the imports.
    code = (
        "import sys, gdbkdump.__main__ as program\n"
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.exit(program.main())\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "gdbkdump: interrupted\n")


def test_ctrl_c_while_gdb_loads_it_is_one_line(tmp_path):
    if shutil.which("gdb") is None:
        pytest.skip("gdb is not installed")
    finder = tmp_path / "finder.py"
    finder.write_text(
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.startswith('gdbkdump'):\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    init = Path(cli.__file__).resolve().parents[1] / "gdb-init.py"
    command = ["gdb", "-nx", "-batch", "-x", finder, "-x", init, "-ex", "p 42"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == (
        "gdbkdump: interrupted while it was loaded: source gdb-init.py again\n"
    )
    assert done.stdout == "$1 = 42\n"


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "dumb"}, False), ({"NO_COLOR": "1"}, False)],
)
def test_colour_only_where_it_is_wanted(
    vmcore, monkeypatch, capsys, variables, coloured
):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main([vmcore, "-c", "kps 1"]) == 0
    assert ("\x1b[" in capsys.readouterr().out) == coloured
