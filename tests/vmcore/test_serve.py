# SPDX-License-Identifier: GPL-2.0-or-later
"""gdbkdump serve and remote: as two processes, over a socket and over loopback."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.stock_gdb import INIT, run_gdb
from tests.support.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.session import Session

COMMANDS = ["kps", "klog", "kbt -a", "kmod", "kstacks"]
# What names the file, or is of the moment.
OWN_LINES = re.compile(r".*(DUMPFILE|KERNEL:|FORMAT|opened in|file format|No such).*\n")


class Serving:
    """A server of a dump."""

    def __init__(self, vmcore: Path, listen: str) -> None:
        """Start it, and wait until it listens."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gdbkdump", "serve", vmcore, "--listen", listen],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()
        told = self.process.stdout.readline().split()
        self.name = told[-1]
        self.token = told[0].partition("=")[2] if len(told) > 2 else ""
        assert told[-2] == "gdbkdump"

    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return {"GDBKDUMP_TOKEN": self.token}


@pytest.fixture(scope="module")
def small(dump_dir: Path) -> Path:
    if dump_dir.name != "small-6.1" and (dump_dir.parent / "small-6.1").exists():
        pytest.skip("the protocol does not depend on the dump: small-6.1 has to do")
    return dump_dir


@pytest.fixture
def serving(small: Path) -> Iterator[Serving]:
    found = Serving(small / "vmcore", "0")
    yield found
    found.process.kill()
    found.process.wait()


def program(name: object, token: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gdbkdump", str(name), *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=dict(os.environ, GDBKDUMP_TOKEN=token),
        check=False,
    )


def test_commands_print_the_same(small: Path, serving: Serving) -> None:
    words = [word for command in COMMANDS for word in ("-c", command)]
    here = program(small / "vmcore", "", *words)
    there = program(serving.name, serving.token, *words)
    assert (there.returncode, there.stderr) == (0, "")
    assert len(here.stdout) > 10_000
    assert there.stdout == here.stdout


def test_gdb_prints_the_same(small: Path, serving: Serving) -> None:
    commands = ["info threads", "thread apply 1-9 bt", "kps"]
    vmlinux = small / "vmlinux"
    environment = {"GDBKDUMP_TRANSPORT": "remote", **serving.environment()}
    here, there = (
        OWN_LINES.sub("", run_gdb(vmlinux, name, *commands, environment=environment))
        for name in (small / "vmcore", Path(serving.name))
    )
    # Of a file that it can read gdb tells something before we come.
    assert there.splitlines() == here.splitlines()[-len(there.splitlines()) :]
    assert there.count("\nThread ") == 9


@pytest.mark.parametrize(
    ("token", "message"), [("", "wants a token"), ("wrong", "refuses the token")]
)
def test_without_the_token_there_is_nothing(
    serving: Serving, token: str, message: str
) -> None:
    assert serving.name.startswith("remote:127.0.0.1:")
    assert len(serving.token) >= 32
    done = program(serving.name, token, "-c", "ksys")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert program(serving.name, serving.token, "-c", "kset").returncode == 0


def test_a_socket_is_its_owners_and_goes_with_the_server(
    small: Path, tmp_path: Path
) -> None:
    path = tmp_path / "dump.socket"
    for _ in range(2):
        serving = Serving(small / "vmcore", f"unix:{path}")
        assert serving.token == ""
        assert path.stat().st_mode & 0o777 == 0o600
        assert program(serving.name, "", "-c", "kset").returncode == 0
        # The second time a socket is there that nobody serves.
        serving.process.kill()
        serving.process.wait()
    serving = Serving(small / "vmcore", f"unix:{path}")
    done = program("serve", "", str(small / "vmcore"), "--listen", f"unix:{path}")
    assert done.returncode == 2
    assert "cannot listen there: Address already in use" in done.stderr
    serving.process.terminate()
    assert serving.process.wait(20) == 0
    assert not path.exists()


def test_clients_do_not_disturb_each_other(serving: Serving) -> None:
    command = [
        sys.executable,
        "-m",
        "gdbkdump",
        serving.name,
        "-c",
        "kps",
        "-c",
        "klog",
    ]
    environment = dict(os.environ, **serving.environment())
    clients = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(4)
    ]
    clients[0].kill()
    outputs = [client.communicate()[0] for client in clients]
    assert len(outputs[1]) > 1000
    assert outputs[1] == outputs[2] == outputs[3]


def test_a_server_that_dies_is_told_of(
    small: Path, serving: Serving, session: Session
) -> None:
    command = ["gdb", "-nx", "-q", small / "vmlinux", serving.name, "-x", INIT]
    environment = dict(os.environ, **serving.environment())
    environment.pop("VIRTUAL_ENV", None)
    terminal = Terminal([*command, "-ex", "set pagination off"], environment)
    try:
        terminal.listen("khelp lists commands")
        _end_with_children(serving)
        # Nobody has read there yet.
        start, end, _ = max(session.kernel.memory.windows, key=lambda w: w[1] - w[0])
        terminal.say(f"krd {(start + end) // 2 & -4096:#x}\n")
        told = terminal.listen("Connection refused")
        assert re.search(r"gdbkdump: cannot reach 127.0.0.1:\d+: ", told)
        assert "Traceback" not in told
        terminal.say("x/4gx &init_task\n")
        terminal.say("p 40 + 2\n")
        assert "Traceback" not in terminal.listen("= 42")
        terminal.say("q\n")
        terminal.end()
        assert terminal.process.returncode == 0
    finally:
        terminal.close()


def _end_with_children(serving: Serving) -> None:
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(serving.process.pid)],
        capture_output=True,
        text=True,
        check=True,
    )
    for pid in [serving.process.pid, *map(int, found.stdout.split())]:
        os.kill(pid, 9)
    time.sleep(0.1)


@pytest.mark.parametrize("listen", ["nothing", "unix:", "127.0.0.1:99999"])
def test_an_address_that_is_none(small: Path, listen: str) -> None:
    done = program("serve", "", str(small / "vmcore"), "--listen", listen)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "neither HOST:PORT nor unix:PATH" in done.stderr
