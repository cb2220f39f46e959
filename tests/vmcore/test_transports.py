# SPDX-License-Identifier: GPL-2.0-or-later
"""The view core and our gdb remote server: nothing that gdb prints tells which it is.

More of it: tests/run_in_gdb.py runs test_boot.py through both.
"""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.stock_gdb import INIT, run_gdb
from tests.support.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A word that gdb chooses by what its target is, and the width that follows from it.
TARGET_ID = re.compile(r"\b(?:LWP|Thread) (?=\d+ \")|(?<=Target Id) +")
OPENED_IN = re.compile(r"(?<=opened in )[\d.]+ s")


@pytest.fixture(scope="module")
def small(dump_dir: Path) -> Path:
    if dump_dir.name != "small-6.1" and (dump_dir.parent / "small-6.1").exists():
        pytest.skip("the protocol does not depend on the dump: small-6.1 has to do")
    return dump_dir


def by(transport: str, folder: Path, *commands: str) -> list[str]:
    """The lines that gdb prints, but for what is allowed to differ."""
    environment = {"GDBKDUMP_TRANSPORT": transport}
    found = run_gdb(
        folder / "vmlinux", folder / "vmcore", *commands, environment=environment
    )
    found = OPENED_IN.sub("x s", TARGET_ID.sub("", found))
    return found.splitlines()


def test_all_that_is_printed_is_the_same(dump_dir: Path) -> None:
    threads = "all" if not dump_dir.name.startswith("big") else "1-500 12000-12124"
    commands = ["info threads", f"thread apply {threads} bt", "info all-registers",
                "kps -A", "p $_thread", "p init_task.comm"]  # fmt: skip
    core, remote = (by(name, dump_dir, *commands) for name in ("core", "remote"))
    assert len(core) > 1000
    assert core == remote


def test_refusals_are_the_same(small: Path) -> None:
    commands = ["x/2gx 16", "x/s 0xffffc00000000000", "stepi", "continue",
                "set var init_task.prio = 3", "p 1 + 1"]  # fmt: skip
    stock = ["gdb", "-nx", "-q", small / "vmlinux", small / "vmcore", "-x", INIT]
    answers = []
    for transport in ("core", "remote"):
        environment = dict(os.environ, GDBKDUMP_TRANSPORT=transport)
        environment.pop("VIRTUAL_ENV", None)
        words = [word for text in commands for word in ("-ex", text)]
        done = subprocess.run(
            [*stock, *words],
            input="q\n",
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
            check=True,
        )
        printed = done.stdout[done.stdout.index("khelp") :]
        answers.append((printed, done.stderr))
    assert answers[0][1].count("Cannot access memory") == 2
    assert answers[0][1].count("The program is not being run.") == 2
    assert answers[0] == answers[1]


@pytest.fixture
def terminal(small: Path) -> Iterator[Terminal]:
    """gdb at a terminal, through the server."""
    command = ["gdb", "-nx", "-q", small / "vmlinux", small / "vmcore", "-x", INIT]
    environment = dict(os.environ, GDBKDUMP_TRANSPORT="remote")
    environment.pop("VIRTUAL_ENV", None)
    terminal = Terminal([*command, "-ex", "set pagination off"], environment)
    terminal.listen("khelp lists commands")
    yield terminal
    terminal.close()


def test_ctrl_c_and_quit_at_a_terminal(terminal: Terminal) -> None:
    (server,) = terminal.children()
    terminal.say("thread apply all bt\n")
    terminal.listen("#1 ")
    # The terminal makes a signal of it, to all in the foreground.
    terminal.say("\x03")
    terminal.listen("Quit")
    terminal.say("p $ktask(1)->pid\n")
    terminal.listen("$1 = 1")
    assert terminal.children() == [server]
    terminal.say("q\n")
    rest = terminal.end()
    assert terminal.process.returncode == 0
    assert "(y or n)" not in rest
    assert "nferior" not in rest


def test_a_server_that_dies_is_told_of(terminal: Terminal, small: Path) -> None:
    (server,) = terminal.children()
    os.kill(server, 9)
    terminal.say("thread 5\n")
    told = terminal.listen("the k-commands do not need it")
    assert "gdb's server of the dump was killed by signal 9: " in told
    terminal.say("p 40 + 2\n")
    told = terminal.listen("= 42")
    assert told.count("Remote") == 1
    assert "Traceback" not in told
    terminal.say("kps 1\n")
    terminal.listen("init")
    terminal.say(f"kopen {small / 'vmcore'} {small / 'vmlinux'}\n")
    terminal.listen("khelp lists commands")
    terminal.say("thread find init\n")
    terminal.listen("has name 'init'")
    assert len(terminal.children()) == 1
    terminal.say("q\n")
    assert "(y or n)" not in terminal.end()


def test_the_server_ends_with_gdb(terminal: Terminal) -> None:
    (server,) = terminal.children()
    terminal.process.kill()
    waiting = ["timeout", "20", "tail", f"--pid={server}", "-f", "/dev/null"]
    subprocess.run(waiting, check=True)
