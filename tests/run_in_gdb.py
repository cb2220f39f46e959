# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the tests that need gdb inside stock gdb, one gdb for each dump.

    python tests/run_in_gdb.py gdb                      a small C program, no dump
    python tests/run_in_gdb.py vmcore [--dump DIR]      the boot, on real dumps

pytest and what gdbkdump depends on are those of the Python that runs this file, if gdb
embeds the same version, else gdb's own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_INSIDE = Path(__file__).resolve().parent / "support" / "inside_gdb.py"
_TIMEOUT_S = 1200


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tier", choices=["gdb", "vmcore"])
    parser.add_argument("--dump", action="append", default=[], metavar="DIR")
    parser.add_argument("--gdb", default="gdb", metavar="PATH")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="merged report")
    parser.add_argument("pytest", nargs="*", help="more options for pytest, after --")
    return parser.parse_args()


def _dumps(asked: list[str]) -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    dumps = cache / "gdbkdump" / "dumps"
    if asked:
        return [Path(d) if Path(d).is_dir() else dumps / d for d in asked]
    return sorted(path.parent for path in dumps.glob("*/info.json"))


def _tests_of(dump: Path) -> list[str]:
    info = dump / "info.json"
    told = json.loads(info.read_text()) if info.exists() else {}
    # All but the last need what the guest said of its workload; the last takes the
    # frame file away in the end.
    names = ["test_boot.py", "test_processes.py", "test_frames.py"]
    group = told.get("group", "workload")
    if group != "workload":
        names = names[-1:]
    # With one process of its own there is little to unwind; test_process.py starts gdb.
    return [f"tests/vmcore/{name}" for name in names if group != "process"]


def _transports(dump: Path) -> list[str]:
    # What differs between the two does not depend on the dump.
    return ["auto", "remote"] if dump.name == "small-6.1" else ["auto"]


def _compile_fixture(folder: Path) -> Path:
    program = folder / "fixture"
    source = _ROOT / "tests" / "gdb" / "fixture.c"
    subprocess.run(["gcc", "-g", "-O0", "-o", program, source], check=True)
    return program


def _run(
    gdb: str, files: list[Path], tests: list[str], report: Path, transport: str
) -> int:
    environment = dict(
        os.environ,
        GDBKDUMP_TRANSPORT=transport,
        GDBKDUMP_TEST_PATH=os.pathsep.join(
            p for p in sys.path if p.endswith("-packages")
        ),
        GDBKDUMP_TEST_PYTHON=sys.executable,
        GDBKDUMP_TEST_VERSION=f"{sys.version_info[0]}.{sys.version_info[1]}",
        GDBKDUMP_TEST_ARGS="\n".join([*tests, f"--junitxml={report}"]),
    )
    for name in ("GDBKDUMP_VMCORE", "GDBKDUMP_VMLINUX"):
        environment.pop(name, None)
    # Not -batch: there a boot that fails would end gdb, which some tests look at.
    command = [gdb, "-nx", "-q", *map(str, files), "-x", str(_INSIDE)]
    done = subprocess.run(
        command,
        env=environment,
        cwd=_ROOT,
        stdin=subprocess.DEVNULL,
        timeout=_TIMEOUT_S,
        check=False,
    )
    # Without a report pytest has not run to its end, whatever gdb says.
    return done.returncode if report.exists() else done.returncode or 1


def _merge(reports: list[Path], target: Path) -> None:
    suites = ET.Element("testsuites")
    for report in reports:
        if report.exists():
            suites.extend(ET.parse(report).getroot().iter("testsuite"))
    ET.ElementTree(suites).write(target)


def main() -> int:
    args = _parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.tier == "gdb":
            runs = [("gdb", [_compile_fixture(folder)], ["tests/gdb"], "auto")]
        else:
            runs = [
                (
                    dump.name,
                    [dump / "vmlinux", dump / "vmcore"],
                    [*_tests_of(dump), f"--dump={dump}"],
                    transport,
                )
                for dump in _dumps(args.dump)
                if _tests_of(dump)
                for transport in _transports(dump)
            ]
        if not runs:
            sys.exit("no dumps: make some with test-kernels/build.py")
        codes = []
        reports = []
        for label, files, tests, transport in runs:
            sys.stdout.write(f"== {label} ({args.gdb}, {transport})\n")
            sys.stdout.flush()
            reports.append(folder / f"{label}-{transport}.xml")
            words = tests + args.pytest
            codes.append(_run(args.gdb, files, words, reports[-1], transport))
        if args.junit:
            _merge(reports, args.junit)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
