# SPDX-License-Identifier: GPL-2.0-or-later
"""Run one guest and let QEMU dump it, alive or panicked, in several formats.

The guest is stopped first, so all files show the same moment.
"""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from boot import BOOTED, Console, Machine, make_disk, qemu_command
from packages import run
from progress import BuildError, log

_STAGES = {BOOTED: 120, "workload ready": 300, "truth written": 300}
_PANICKED = "---[ end Kernel panic"
_PANIC_LIMIT = 60
# Long enough for all that the console's last line set going to come to rest.
_REST_S = 2

# What dump-guest-memory is asked for, by the file's name. Debian's QEMU can neither
# compress with lzo nor with snappy.
_FORMATS: dict[str, dict[str, Any]] = {
    "vmcore": {"paging": False, "format": "elf"},
    "vmcore.paging": {"paging": True, "format": "elf"},
    "vmcore.zlib": {"paging": False, "format": "kdump-zlib"},
}
RAW = "memory.raw"


class _Monitor:
    """QEMU's QMP on its stdin and stdout."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> None:
        """Run a command to its end.

        :raise BuildError: QEMU refuses it
        """
        assert self._process.stdin and self._process.stdout
        request = {"execute": command, "arguments": arguments}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        # Between them come the greeting and events.
        for line in self._process.stdout:
            answer = json.loads(line)
            if "error" in answer:
                raise BuildError(f"QEMU: {command}: {answer['error']['desc']}")
            if "return" in answer:
                return
        raise BuildError(f"QEMU ended during {command}")


def _dump(monitor: _Monitor, machine: Machine, path: Path) -> None:
    if path.name == RAW:
        size = machine.memory_mib << 20
        monitor.execute("pmemsave", val=0, size=size, filename=str(path))
    else:
        wanted = _FORMATS[path.name]
        monitor.execute("dump-guest-memory", protocol=f"file:{path}", **wanted)
    path.chmod(0o600)
    # QEMU writes pages of zeros; most of them are.
    run("fallocate", "--dig-holes", path)


def run_dumped_guest(
    machine: Machine, kernel: Path, directory: Path, dumps: tuple[str, ...], state: str
) -> dict[str, float]:
    """Boot, stop and dump; return how many seconds each stage took.

    Expects `initrd` in the directory; leaves console.log, truth.img and the dumps.
    """
    make_disk(directory / "truth.img", 512)
    seconds = {}
    process = subprocess.Popen(
        qemu_command(machine, directory, kernel),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    console = Console(directory / "console.log", process)
    try:
        for marker, limit in _STAGES.items():
            start = time.monotonic()
            console.wait_for(marker, limit)
            seconds[marker] = round(time.monotonic() - start, 1)
        if state == "panicked":
            console.wait_for_text(_PANICKED, _PANIC_LIMIT)
        time.sleep(_REST_S)
        monitor = _Monitor(process)
        monitor.execute("stop")
        for name in dumps:
            start = time.monotonic()
            _dump(monitor, machine, directory / name)
            seconds[name] = round(time.monotonic() - start, 1)
            log(f"  {name}: {seconds[name]:.0f} s")
    finally:
        process.kill()
        process.wait()
    return seconds
