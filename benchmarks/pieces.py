# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure gdb on an ELF vmcore in many pieces: through the view core, and the server.

A dump is written anew with its memory in so many PT_LOADs, no two of which follow each
other in the file; gdb then does with each what transports.py asks. Figures go into
README.md, and from them comes gdbkdump's limit (target/viewcore.py).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from transports import INIT, ROOT, ask

sys.path.insert(0, str(ROOT / "tests"))

from support.pieces import write_pieces

_NUMBERS = (1_000, 5_000, 10_000, 20_000, 50_000, 70_000, 200_000)


def start(
    dump: Path, vmcore: Path, gdb: str = "gdb", transport: str = "auto"
) -> tuple[float, int]:
    """Return seconds to gdb's prompt, and peak MiB of gdb alone."""
    status = "python print(open('/proc/self/status').read())"
    command = [gdb, "-nx", "-batch", str(dump / "vmlinux"), str(vmcore)]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "-x", str(INIT), "-ex", status],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=dict(os.environ, GDBKDUMP_TRANSPORT=transport),
        check=True,
    )
    seconds = time.perf_counter() - started
    (peak,) = (x.split()[1] for x in done.stdout.splitlines() if x[:6] == "VmHWM:")
    return seconds, int(peak) >> 10


def _measure(
    dump: Path, vmcore: Path, gdb: str, transport: str, turns: int
) -> dict[str, str]:
    """Return the best of all turns: others may be at work on the machine."""
    starts = [start(dump, vmcore, gdb, transport) for _ in range(turns)]
    seconds, peak = min(starts)
    answers = [
        ask(dump, str(vmcore), gdb, GDBKDUMP_TRANSPORT=transport) for _ in range(turns)
    ]
    best = {
        what: min((answer[what] for answer in answers), key=_seconds)
        for what in answers[0]
    }
    return {"start": f"{seconds:.2f} s", "peak": f"{peak} MiB", **best}


def _seconds(cell: str) -> float:
    return float(cell.split()[0])


def main() -> int:
    """Measure and print a Markdown table for each number of pieces."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dump", type=Path, help="directory of a dump")
    parser.add_argument("--gdb", default="gdb")
    parser.add_argument("--pieces", type=int, nargs="+", default=_NUMBERS)
    parser.add_argument("--turns", type=int, default=2)
    args = parser.parse_args()
    head = True
    for number in args.pieces:
        with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as d:
            vmcore = Path(d) / "vmcore"
            write_pieces(args.dump / "vmcore", vmcore, number)
            for transport, name in (("core", "view core"), ("remote", "server")):
                row = _measure(args.dump, vmcore, args.gdb, transport, args.turns)
                if head:
                    columns = ("pieces", "through", *row)
                    sys.stdout.write(f"| {' | '.join(columns)} |\n")
                    sys.stdout.write(f"|{'---|' * len(columns)}\n")
                    head = False
                cells = (f"{number:,}", name, *row.values())
                sys.stdout.write(f"| {' | '.join(cells)} |\n")
                sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
