# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure what an IDE waits for: requests of the Debug Adapter Protocol on a dump.

From the first byte of the request to the last of the response, one after the other, in
one session; "attach" is from the start of gdb. Figures go into README.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# As users have it: Python compiles a module the first time only.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.path.insert(0, str(ROOT / "tests"))

from support.dap_client import DapClient  # noqa: E402

_STACKS = 1000


class _Stopwatch:
    # Prints a row for each step, its seconds since the one before.
    def __init__(self) -> None:
        self._last = time.perf_counter()

    def row(self, what: str, result: str = "") -> None:
        now = time.perf_counter()
        sys.stdout.write(f"| {what} | {now - self._last:.3f} | {result} |\n")
        sys.stdout.flush()
        self._last = time.perf_counter()


def _measure(gdb: str, dump: Path) -> None:
    watch = _Stopwatch()
    client = DapClient([gdb, "-nx", "-q", "-i=dap", "-x", ROOT / "gdb-init.py"])
    try:
        client.attach(program=str(dump / "vmlinux"), coreFile=str(dump / "vmcore"))
        stopped = client.wait_for_event("stopped")["threadId"]
        watch.row("start and attach")
        threads = client.request("threads")["threads"]
        watch.row("threads", f"{len(threads)} threads")
        for turn in ("first", "again"):
            frames = client.request("stackTrace", threadId=stopped)["stackFrames"]
            watch.row(f"stackTrace, {turn}", f"{len(frames)} frames")
        _variables(client, frames[2]["id"], watch)
        client.request("evaluate", expression="kps", context="repl")
        watch.row("evaluate kps")
        numbers = [
            client.send("stackTrace", threadId=thread["id"], levels=20)
            for thread in threads[:_STACKS]
        ]
        total = sum(len(client.wait_for(n)["stackFrames"]) for n in numbers)
        watch.row(f"stackTrace of {len(numbers)} threads", f"{total} frames")
        client.close()
        watch.row("disconnect and end")
    finally:
        client.kill()


def _variables(client: DapClient, frame: int, watch: _Stopwatch) -> None:
    scopes = client.request("scopes", frameId=frame)["scopes"]
    watch.row("scopes", f"{len(scopes)} scopes")
    for scope in scopes:
        reference = scope["variablesReference"]
        body = client.request("variables", variablesReference=reference)
        watch.row(f"variables, {scope['name']}", f"{len(body['variables'])} variables")
    found = client.request("evaluate", expression="init_task", context="watch")
    watch.row("evaluate init_task")
    reference = found["variablesReference"]
    body = client.request("variables", variablesReference=reference)
    watch.row("variables, its members", f"{len(body['variables'])} variables")


def main() -> int:
    """Measure and print a Markdown table for each dump."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dump", type=Path, nargs="+", help="directory of a dump")
    parser.add_argument("--gdb", default="gdb", help="gdb 16 or later")
    args = parser.parse_args()
    for dump in args.dump:
        sys.stdout.write(f"{dump.name}\n\n| request | seconds | |\n|---|---|---|\n")
        _measure(args.gdb, dump.absolute())
    return 0


if __name__ == "__main__":
    sys.exit(main())
