# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure gdb's own work through the view core, our gdb server, and gdbkdump serve.

Each way has gdb list all threads, print all their stacks, and read memory at 10,000
places chosen by chance, the same for all. Figures go into README.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# As users have it: Python compiles a module the first time only.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
INIT = ROOT / "gdb-init.py"

# Runs inside gdb.
_QUESTIONS = """
import gdb, random, time
from pathlib import Path
from gdbkdump.kernel.sched import tasks
from gdbkdump.session import open_session

def timed(what, do):
    started = time.perf_counter()
    do()
    gdb.write(f"MEASURED {what}\\t{time.perf_counter() - started:.2f} s\\n")

def run(command):
    return lambda: gdb.execute(command, to_string=True)

def reads(places, size):
    inferior = gdb.selected_inferior()
    def do():
        for at in places:
            try:
                inferior.read_memory(at, size)
            except gdb.MemoryError:
                pass  # the same for all
    return do

timed("info threads", run("info threads"))
timed("all stacks", run("thread apply all bt -frame-arguments none"))
timed("all stacks again", run("thread apply all bt -frame-arguments none"))
session = open_session(Path(ELF))
kernel, chance = session.kernel, random.Random(1)
start, end, _ = max(kernel.memory.windows, key=lambda window: window[1] - window[0])
stacks = [task.stack for task in tasks(kernel) if task.stack]
for name, places in (
    ("direct map", [chance.randrange(start, end - 4096) & -8 for _ in range(10000)]),
    ("stacks", [chance.choice(stacks) + chance.randrange(12288) & -8
                for _ in range(10000)]),
):
    for size in (8, 4096):
        timed(f"10,000 x {size} bytes, {name}", reads(places, size))
"""


def ask(dump: Path, vmcore: str, gdb: str, **more: str) -> dict[str, str]:
    """Return what gdb answers to each question took.

    :param dump: directory of the dump
    :param vmcore: that dump, in a form of its own
    :param more: set in gdb's environment
    """
    script = f"ELF = {str(dump / 'vmcore')!r}\n{_QUESTIONS}"
    command = [gdb, "-nx", "-batch", str(dump / "vmlinux"), vmcore, "-x", str(INIT)]
    done = subprocess.run(
        [*command, "-ex", f"python exec({script!r})"],
        capture_output=True,
        text=True,
        env=dict(os.environ, **more),
        check=True,
    )
    lines = [x for x in done.stdout.splitlines() if x.startswith("MEASURED ")]
    return dict(line.removeprefix("MEASURED ").split("\t") for line in lines)


def _serve_and_ask(dump: Path, gdb: str) -> dict[str, str]:
    command = [sys.executable, "-m", "gdbkdump", "serve", str(dump / "vmcore")]
    with subprocess.Popen(
        [*command, "--listen", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        server.stdout.readline()
        token, _, name = server.stdout.readline().split()
        try:
            return ask(dump, name, gdb, GDBKDUMP_TOKEN=token.partition("=")[2])
        finally:
            server.terminate()


def main() -> int:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dump", type=Path, help="directory of a dump")
    parser.add_argument("--gdb", default="gdb")
    parser.add_argument(
        "--compressed", metavar="FILE", help="the same dump, kdump-compressed"
    )
    args = parser.parse_args()
    vmcore = str(args.dump / "vmcore")
    columns = {
        "view core": ask(args.dump, vmcore, args.gdb, GDBKDUMP_TRANSPORT="core"),
        "server": ask(args.dump, vmcore, args.gdb, GDBKDUMP_TRANSPORT="remote"),
        "serve, loopback": _serve_and_ask(args.dump, args.gdb),
    }
    if args.compressed:
        columns["compressed"] = ask(args.dump, args.compressed, args.gdb)
    sys.stdout.write(f"| | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|\n")
    for what in columns["view core"]:
        cells = " | ".join(column[what] for column in columns.values())
        sys.stdout.write(f"| {what} | {cells} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
