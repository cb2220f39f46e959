# SPDX-License-Identifier: GPL-2.0-or-later
"""One crash as ELF, through the view core, and compressed, through our server.

gdb says the same of both, in its own commands too, but for what is listed here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.stock_gdb import INIT, newest_gdb

if TYPE_CHECKING:
    from pathlib import Path

    from gdbkdump.session import Session

NAME = r"/proc/self/fd/\d+/gdb"
NO_PROCESS = "You can't do that without a process to debug."
NO_PID = "Can't determine the current process's PID: you must name one."

LOOK = """\
info threads
info threads 1-3 9
info threads -gid 5
info threads 500
thread
thread 5
thread 1.7
thread 9999
thread find kworker
thread name renamed
thread find renamed
thread apply 1-9 -q bt 2
thread apply all -q -s p $rip
bt full
bt -3
bt -frame-info location
frame apply all -q p $pc
info frame
up
down 10
frame function panic
info locals
info registers
info registers general
info all-registers
info registers nothing
p $st0
p $eflags
p $fs_base
p $_siginfo
p $_exitcode
p $_thread
p $_inferior
p init_task.comm
p init_task.tasks
p *init_task.active_mm
p *(int *)16
p *(int *)0xffffc00000000000
p __per_cpu_offset[0]@2
p $kper_cpu("runqueues", 1)->nr_running
x/8i $pc
x/2s init_task.comm
x/20gx $sp
x/2gx 16
x/2gx 0xfffffffffffffff8
x/2gx 0xffffffffffffffff
x/4i 0xffffc00000000000
x/20gx 0xffff888000000000
output init_task.pid
printf "%s %d\\n", init_task.comm, init_task.pid
printf "%s\\n", 16
find &init_task, +10000, "swapper"
find &init_task, +100000000, "no such text"
find 0xffffc00000000000, +100, 1
dump memory $FOLDER/a 16 32
dump memory $FOLDER/a &init_task &init_task+1
disassemble panic,+20
disassemble /r 0xffffc00000000000,+8
info symbol panic
info symbol 0
info line panic
info scope panic
info source
info sharedlibrary
info signals SIGINT
info auxv
info os
info record
info checkpoints
info program
list panic
compare-sections
show may-call-functions
show confirm
show architecture
python t = gdb.selected_thread(); print(t.num, t.name, t.ptid[1:], t.is_stopped())
python i = gdb.selected_inferior(); print(len(i.threads()), i.was_attached)
python print(bytes(gdb.selected_inferior().read_memory(int($INIT_TASK), 16)))
python print(gdb.selected_inferior().read_memory(16, 16))
python print(gdb.selected_inferior().search_memory($INIT_TASK, 10000, b'swapper'))
python print(gdb.selected_inferior().write_memory($INIT_TASK, b'x'))
display init_task.pid
undisplay 1
tbreak panic
hbreak panic
watch init_task.pid
catch syscall
info breakpoints
delete
tstatus
complete h
help user-defined
show user hook-quit
maint print registers
maint print remote-registers
maint print dummy-frames
maint flush register-cache
kbt
kps UN
krd 16
thread
frame
"""
REFUSED = """\
step
stepi
next 5
nexti
finish
until
advance panic
continue
c&
jump panic
signal 0
queue-signal 0
reverse-step
rc
fg
return
start
starti
run
interrupt
call panic("x")
p panic("x")
call (long)1
set var init_task.prio = 3
p init_task.comm[0] = 'x'
set {int}16 = 1
p init_task.prio
attach
attach 999999
target native
target remote /nowhere
checkpoint
generate-core-file $FOLDER/a
restore $FOLDER/a binary 0
load
kill
kill inferiors 1
thread apply 1 2 step
with print pretty on -- step
python gdb.execute("continue")
python gdb.execute("run")
stop
info threads 1
bt 1
kps 1
"""
# What gdb does not let us choose: of a core, of a remote target.
DIFFERENT = {
    # Refused by the server; a core has nobody to ask.
    "set var $rip = 5": (
        NO_PROCESS,
        r"Could not write register \"rip\"; remote failure reply '(E\.)?"
        r"a dump is not written to'",
    ),
    # The name of a target, and a process that only a core has.
    "inferior": (r"\[.*\[process 1\] .*", r"\[.*\[Remote target\] .*"),
    "info connections": (
        r"(?s).* core  Local core dump.*",
        rf"(?s).* remote {NAME} .*",
    ),
    "info proc": (r".*unable to find command name.*", NO_PID),
    "info proc status": ("unable to handle request", NO_PID),
    "p $_tlb": (r"\$\d+ = void|You can't do .*", r"\$\d+ = void|Unable to read tlb"),
    "monitor help": (r"\"monitor\" command not .*", "Target does not support this.*"),
    "set scheduler-locking on": (r"Target 'core' cannot support.*", ""),
    "set non-stop on": ("", "Cannot change this setting while the inferior is .*"),
    "disconnect": (
        "You can't do that when your target is `core'",
        "Ending remote debugging.",
    ),
}
# A word that gdb chooses by what its target is.
TARGET_ID = re.compile(r"\b(?:LWP|Thread) (?=\d+(?: \"|  |\)|'|$))", re.MULTILINE)
# Data of the formats themselves, gdb 17's emoji, and what is made anew each time.
OWN = re.compile(r"❌️ |⚠️ |/tmp/gdbkdump-\w+|opened in [\d.]+ s|\(gdb\) ")


@pytest.fixture(scope="module")
def variants(dump_dir: Path) -> Path:
    folder = dump_dir / "variants"
    if not (folder / "elf.d31").exists():
        pytest.skip("there is no ELF file of this dump that makedumpfile wrote")
    return folder


def run(gdb: str | Path, vmcore: Path, typed: str, *options: str) -> str:
    """What gdb prints, its questions and errors included."""
    environment = dict(os.environ, VIRTUAL_ENV=sys.prefix)
    environment["GDBKDUMP_VMCORE"] = str(vmcore)
    environment["GDBKDUMP_VMLINUX"] = str(vmcore.parents[1] / "vmlinux")
    done = subprocess.run(
        [gdb, "-nx", "-q", "-x", INIT, *options],
        input=typed,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        encoding="utf-8",
        errors="replace",
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    return OWN.sub("", done.stdout)


def said(gdb: str | Path, vmcore: Path, commands: list[str]) -> dict[str, str]:
    """What gdb says to each command."""
    marked = "".join(f"echo \\n@@\\n\n{command}\n" for command in commands)
    unlimited = "-ex", "set width 0", "-ex", "set height 0"
    text = run(gdb, vmcore, f"{marked}quit\n", *unlimited)
    _, *answers = text.split("\n@@\n")
    return dict(zip(commands, map(str.strip, answers), strict=True))


def both(
    gdb: str | Path, variants: Path, commands: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    core, remote = (
        said(gdb, variants / name, commands) for name in ("elf.d31", "zlib.d31")
    )
    return core, remote


def without_ids(text: str) -> str:
    # The width of a column follows from the word.
    return re.sub(" +", " ", TARGET_ID.sub("", text))


Answers = tuple[dict[str, str], dict[str, str]]


@pytest.fixture(scope="module", params=["13.1", "newest"])
def answers(
    request: pytest.FixtureRequest,
    variants: Path,
    session: Session,
    tmp_path_factory: pytest.TempPathFactory,
) -> Answers:
    """What one gdb says to all of it, of the ELF file and of the compressed one."""
    gdb = newest_gdb() if request.param == "newest" else "gdb"
    folder = tmp_path_factory.mktemp("written")
    lines = LOOK + REFUSED + "\n".join(DIFFERENT)
    lines = lines.replace("$INIT_TASK", hex(session.kernel.symbol("init_task") or 0))
    return both(gdb, variants, lines.replace("$FOLDER", str(folder)).splitlines())


def test_nothing_else_differs(answers: Answers) -> None:
    core, remote = answers
    assert len(core) > 150
    for line in core.keys() - DIFFERENT.keys():
        assert without_ids(core[line]) == without_ids(remote[line]), line


def test_what_gdb_does_not_let_us_choose(answers: Answers) -> None:
    core, remote = answers
    for command, (of_core, of_remote) in DIFFERENT.items():
        assert re.fullmatch(of_core, core[command]), core[command]
        assert re.fullmatch(of_remote, remote[command]), remote[command]


def test_what_is_said_of_a_dump(answers: Answers) -> None:
    _, found = answers
    assert found["next 5"] == "The program is not being run."
    assert found["run"].startswith("A dump is open here: ")
    assert found["kill"] == found["return"] == NO_PROCESS
    assert "may-call-functions is off" in found['call panic("x")']
    # After all that.
    assert found["p init_task.prio"].endswith(" = 120")
    assert "context_switch" in found["bt 1"]
    assert "init" in found["kps 1"]


@pytest.mark.parametrize("leaving", ["core-file /nowhere", "detach"])
def test_a_dump_is_left_without_a_question(variants: Path, leaving: str) -> None:
    commands = [leaving, "info threads", "bt", "show may-call-functions",
                "show remotetimeout", "show dcache line-size", "kps 1"]  # fmt: skip
    core, remote = both("gdb", variants, commands)
    assert "y or n" not in remote.pop(leaving)
    assert core.pop(leaving).endswith(
        ("No core file now.", "No such file or directory.")
    )
    assert core == remote
    assert remote["bt"] == "No stack."
    assert remote["show may-call-functions"].endswith("is on.")
    assert remote["show remotetimeout"].endswith(" 2.")


def test_other_programs_run_as_ever(variants: Path) -> None:
    commands = ["add-inferior -no-connection", "inferior 2", "file /bin/true",
                "starti", "stepi", "info inferiors", "kill", "inferior 1",
                "stepi"]  # fmt: skip
    core, remote = both("gdb", variants, commands)
    for found in (core, remote):
        assert "stopped." in found["starti"]
        assert "process " in found["info inferiors"]
        assert re.search(r"\[Inferior 2 \(process \d+\) killed\]", found["kill"])
    assert core["stepi"] == remote["stepi"] == "The program is not being run."


@pytest.mark.parametrize("version", ["13.1", "newest"])
def test_machine_interface_continues_to_where_it_is(
    variants: Path, version: str
) -> None:
    # It has no hooks. A core is an error there, a remote target has to stop again.
    gdb = newest_gdb() if version == "newest" else "gdb"
    typed = "1-exec-continue\n2-exec-next\n3-stack-info-frame\n4-gdb-exit\n"
    of_core, of_remote = (
        run(gdb, variants / name, typed, "-i=mi") for name in ("elf.d31", "zlib.d31")
    )
    assert '1^error,msg="The program is not being run."' in of_core
    assert '@"gdbkdump: a dump does not run\\n"' in of_remote
    for found in (of_core, of_remote):
        assert '2^error,msg="The program is not being run."' in found
        assert re.search(r'3\^done,frame=\{.*func="crash_setup_regs"', found)
