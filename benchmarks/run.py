# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure whole processes, shell to last line, side by side with the peers.

Every tool answers the same question on the same dump, in turns, so that what else the
machine does hits all alike; the median counts. "cold" drops dump and vmlinux from the
page cache first and runs gdb without an index cache. Figures go into README.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# As users have it: Python compiles a module the first time only.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
INIT = ROOT / "gdb-init.py"

# The question, as gdbkdump and crash (and so drgn-crash) are asked it.
QUESTIONS = {
    "kps": "ps",
    "ksys": "sys",
    "klog": "log",
    "kbt -a": "bt -a",
}
# Asked on request: minutes of drgn.
STACK_QUESTIONS = {"kforeach kbt": "foreach bt", "kstacks": "foreach bt"}


@dataclass
class Run:
    """One way to answer a question: wall and CPU seconds, peak MiB of each try."""

    tool: str
    command: list[str]
    stdin: str = ""
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    mebibytes: list[float] = field(default_factory=list)
    failed: bool = False


def _files(dump: Path) -> tuple[Path, Path]:
    """Return vmcore and vmlinux; variants lie below the directory of their dump."""
    vmcore = dump / "vmcore" if dump.is_dir() else dump
    found = (folder / "vmlinux" for folder in vmcore.absolute().parents)
    return vmcore, next(path for path in found if path.exists())


def _tools(dump: Path, question: str, crash: str | None, drgn: str | None) -> list[Run]:
    vmcore, vmlinux = map(str, _files(dump))
    program = ["/usr/bin/python3", "-m", "gdbkdump"]
    runs = [
        Run(
            "gdbkdump -c",
            [*program, vmcore, "-c", question],
        ),
        Run(
            "gdb vmlinux vmcore -x gdb-init.py",
            ["gdb", "-nx", "-batch", vmlinux, vmcore, "-x", str(INIT), "-ex", question],
        ),
        Run(
            "gdbkdump --own-symbols",
            [*program, vmcore, "--own-symbols", "-nx", "-batch", "-ex", question],
        ),
        Run("gdb vmlinux, nothing else", ["gdb", "-nx", "-batch", vmlinux]),
    ]
    script = f"{(QUESTIONS | STACK_QUESTIONS)[question]}\nquit\n"
    if drgn:
        runs.append(Run("drgn-crash", [drgn, vmlinux, vmcore], script))
    if crash:
        runs.append(Run("crash", [crash, "-s", vmlinux, vmcore], script))
    return runs


def _measure(run: Run, environment: dict[str, str]) -> None:
    with tempfile.TemporaryFile() as stdin, open(os.devnull, "wb") as null:
        stdin.write(run.stdin.encode())
        stdin.seek(0)
        started = time.perf_counter()
        process = subprocess.Popen(
            run.command,
            stdin=stdin,
            stdout=null,
            stderr=null,
            cwd=ROOT,
            env=environment,
        )
        _, status, usage = os.wait4(process.pid, 0)
        run.seconds.append(time.perf_counter() - started)
    process.returncode = os.waitstatus_to_exitcode(status)
    run.cpu_seconds.append(usage.ru_utime + usage.ru_stime)
    run.mebibytes.append(usage.ru_maxrss / 1024)
    run.failed |= process.returncode != 0


def _drop(*paths: Path) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _answer(dump: Path, question: str, args: argparse.Namespace) -> list[Run]:
    runs = _tools(dump, question, args.crash, args.drgn)
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as empty:
        for turn in range(args.turns + (0 if args.cold else 1)):
            for run in runs:
                if args.cold:
                    _drop(*_files(dump))
                    environment["XDG_CACHE_HOME"] = tempfile.mkdtemp(dir=empty)
                _measure(run, environment)
            if turn == 0 and not args.cold:
                # The first turn only warms the caches.
                for run in runs:
                    run.seconds.clear()
                    run.cpu_seconds.clear()
                    run.mebibytes.clear()
    return runs


def _report(dump: Path, question: str, runs: list[Run]) -> None:
    reference = next((r for r in runs if r.tool == "drgn-crash"), runs[0])
    base = statistics.median(reference.seconds)
    for run in runs:
        median = statistics.median(run.seconds)
        failed = " (failed)" if run.failed else ""
        sys.stdout.write(
            f"| {dump.name} | {question} | {run.tool}{failed} | {median:.2f} "
            f"| {median / base:.2f} | {statistics.median(run.cpu_seconds):.2f} "
            f"| {max(run.mebibytes):.0f} |\n"
        )
    sys.stdout.flush()


def main() -> int:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "dump", type=Path, nargs="+", help="directory of a dump, or a file"
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument(
        "--question", action="append", choices=QUESTIONS | STACK_QUESTIONS
    )
    parser.add_argument("--crash", default=shutil.which("crash"))
    parser.add_argument("--drgn", default=shutil.which("drgn-crash"))
    args = parser.parse_args()
    sys.stdout.write(
        f"{os.cpu_count()} cores, {args.turns} turns, "
        f"{'cold' if args.cold else 'warm'} caches\n\n"
        "| dump | question | tool | seconds | of drgn-crash | CPU | peak MiB |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    for dump in args.dump:
        for question in args.question or QUESTIONS:
            _report(dump, question, _answer(dump, question, args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
