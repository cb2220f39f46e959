# SPDX-License-Identifier: GPL-2.0-or-later
"""The text user interface of gdb on a dump, as a terminal shows it (tmux has it)."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from gdbkdump.commands import find_command
from gdbkdump.kernel.sched import panic_task
from gdbkdump.render import text
from gdbkdump.unwind.unwinder import unwind_task
from tests.support.stock_gdb import INIT, newest_gdb

WIDTH, HEIGHT = 120, 50
TIMEOUT_S = 120


class Screen:
    """A terminal with gdb on it."""

    def __init__(self, gdb, *words):
        self._server = f"gdbkdump-test-{os.getpid()}"
        command = shlex.join([str(gdb), "-nx", "-q", *map(str, words)])
        size = ("-x", str(WIDTH), "-y", str(HEIGHT))
        self._tmux("-f", "/dev/null", "new-session", "-d", *size, command)

    def _tmux(self, *words):
        environment = dict(
            os.environ, TERM="screen-256color", VIRTUAL_ENV=sys.prefix, LC_ALL="C.UTF-8"
        )
        return subprocess.run(
            ["tmux", "-L", self._server, *words],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def lines(self):
        return [line.rstrip() for line in self._tmux("capture-pane", "-p").splitlines()]

    def run(self, command, wanted):
        """Type a command; return the screen once a line of it matches."""
        self._tmux("send-keys", "-l", command)
        self._tmux("send-keys", "Enter")
        return self.wait(wanted)

    def wait(self, wanted):
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            lines = self.lines()
            if any(re.search(wanted, line) for line in lines):
                return lines
            time.sleep(0.1)
        raise TimeoutError("\n".join([f"no {wanted!r} on the screen:", *self.lines()]))

    def close(self):
        subprocess.run(
            ["tmux", "-L", self._server, "kill-server"],
            capture_output=True,
            check=False,
        )


@pytest.fixture(scope="module", params=["gdb", "newest"])
def screen(request, dump_dir):
    usual = dump_dir.parent / "small-6.1"
    if usual.exists() and dump_dir.name != usual.name:
        pytest.skip("the TUI does not depend on the dump: small-6.1 has to do")
    for program in ("gdb", "tmux"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    gdb = newest_gdb() if request.param == "newest" else "gdb"
    files = dump_dir / "vmlinux", dump_dir / "vmcore"
    screen = Screen(gdb, *files, "-x", INIT, "-iex", "set debuginfod enabled off")
    try:
        screen.wait("khelp lists commands")
        yield screen
    finally:
        screen.close()


@pytest.fixture(scope="module")
def panicked(session):
    return unwind_task(session.kernel, panic_task(session.kernel))


def test_assembly_with_functions_and_the_arrow(screen, session, panicked):
    frame = panicked.frames[0]
    lines = screen.run("layout asm", rf">\s*0x{frame.ip:x}")
    (arrow,) = [line for line in lines if re.search(r"│\s*>", line)]
    symbol = session.kernel.debuginfo.symbol_at(frame.ip)
    assert f"0x{frame.ip:x} <{symbol.name}+{symbol.offset}>" in arrow
    # Another frame: the arrow follows.
    number = next(i for i, f in enumerate(panicked.frames) if f.ip != frame.ip)
    caller = panicked.frames[number]
    name = session.kernel.debuginfo.symbol_at(caller.pc).name
    lines = screen.run(f"frame function {name}", rf">\s*0x{caller.ip:x} <{name}\+")
    assert any(f"In: {name}" in line for line in lines)


def test_registers_are_those_of_kregs(screen, session, panicked):
    screen.run("layout regs", "Register group|Register Values Unavailable")
    # gdb 13 fills them in when a frame is selected.
    screen.run("up", "^#2 ")
    registers = panicked.frames[0].registers
    screen.run("frame 0", rf"rsp +0x{registers['sp']:x} ")
    # The rest of the window is drawn after that line.
    time.sleep(0.5)
    lines = screen.lines()
    found = re.findall(r"│ ?(r[a-z0-9]+) +(0x[0-9a-f]+) ", "\n".join(lines))
    assert len(found) >= 8
    for name, value in found:
        ours = name if name[1:].isdigit() else name[1:]
        assert int(value, 16) == registers[ours], name


def test_no_source_is_said_to_be_missing(screen):
    lines = screen.run("layout src", "No Source Available|kexec")
    assert any("__crash_kexec" in line for line in lines)


def test_commands_in_the_command_window(screen, session):
    screen.run("tui enable", "__crash_kexec")
    item = find_command("kps")
    wanted = list(text.lines(item.run(session, item.parse(["wl-futex-wait"]))))
    screen.run("kps wl-futex-wait", re.escape(wanted[1].rstrip()))
    # The end of long work, with its progress line gone.
    work = (
        "import time; from gdbkdump.debugger import console; p = console.progress();"
        "p('working', 1, 4); time.sleep(2.1); p('working', 2, 4); time.sleep(1);"
        "p('working', 4, 4); gdb.write('fi' + 'nished\\n')"
    )
    screen.run(f"python {work}", r"^working: 50%$")
    lines = screen.wait("finished$")
    assert "finished" in lines
    assert not any("working: " in line for line in lines)
    # Leaving it gives the terminal back as it was.
    lines = screen.run("tui disable", "khelp lists commands")
    assert any(line.startswith("(gdb)") for line in lines)
