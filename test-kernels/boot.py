# SPDX-License-Identifier: GPL-2.0-or-later
"""Run one guest in QEMU from boot through its crash to the saved dump.

The guest has no network; it talks through its serial console (a file here) and two
raw disks, one for the truth and one for the vmcore. We talk to it by QMP, and only to
send an NMI or a machine check.
"""

import json
import os
import struct
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packages import find_program
from progress import BuildError, ChanceError, log

_MIB = 1 << 20
_APPEND = "console=ttyS0 panic=1 printk.devkmsg=on sysrq_always_enabled"

# What guest/init and its programs say, and how many seconds each may take from the
# one before. Generous: an emulated CPU on a busy machine is slow, and a limit is
# only there to end a hang.
BOOTED = "capture kernel loaded"
_STAGES = {
    BOOTED: 120,
    "workload ready": 900,
    "truth written": 900,
    "vmcore size": 1800,
    "vmcore saved": 120,
}
_POWER_OFF_LIMIT = 120
# What a kernel says if it was given no time to see its timer tick (seen in 5.10).
_STARVED = "IO-APIC + timer doesn't work"
# Between "truth written" and "vmcore size", where the machine is to crash the guest.
_EVENT_LIMIT = 60


@dataclass(frozen=True)
class Event:
    """Something that the machine does to the guest.

    :ivar marker: what the guest says when it waits for it
    :ivar command: of QMP
    """

    marker: str
    command: Mapping[str, Any]


def _machine_check(cpu: int) -> Mapping[str, Any]:
    """Return the command for an error that has corrupted the CPU's context."""
    # Bank 9; MCi_STATUS: VAL, UC, EN, PCC; MCG_STATUS: MCIP, RIPV. No other CPU's.
    line = f"mce {cpu} 9 {0xB200000000000134:#x} 5 0 0"
    return {"execute": "human-monitor-command", "arguments": {"command-line": line}}


NMI = Event("waiting for an NMI", {"execute": "inject-nmi"})
MACHINE_CHECK = Event("waiting for a machine check", _machine_check(1))


@dataclass(frozen=True)
class Machine:
    """The emulated machine."""

    cpu: str
    cpus: int
    memory_mib: int
    crashkernel: str
    kvm: bool
    # What is to crash it, when the guest says that it waits for that.
    event: Event | None = None
    append: str = ""
    # Whether QEMU is to learn from it where VMCOREINFO is.
    vmcoreinfo: bool = False
    disks: tuple[str, ...] = ("truth", "core")
    # Images of disks that the guest may only read, by name.
    images: tuple[tuple[str, Path], ...] = ()
    # QEMU's options for anything else.
    devices: tuple[str, ...] = ()


class Console:
    """The console's file, watched for the guest's lines."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self._path = path
        self._process = process

    def _text(self) -> str:
        return self._path.read_text(errors="replace") if self._path.exists() else ""

    def fail(self, problem: str) -> BuildError:
        """Describe a failure, with the end of the console."""
        tail = "\n".join(f"  | {line}" for line in self._text().splitlines()[-25:])
        return BuildError(f"{problem}; the console ends with\n{tail}")

    def wait_for(self, marker: str, limit: float) -> str:
        """Wait for one of our lines and return what follows the marker in it."""
        return self.wait_for_text(f"test-kernels: {marker}", limit)

    def wait_for_text(self, marker: str, limit: float) -> str:
        """Wait for a line and return what follows the marker in it."""
        deadline = time.monotonic() + limit
        while True:
            ended = self._process.poll() is not None
            text = self._text()
            _, found, rest = text.partition(marker)
            if found and "\n" in rest:
                return rest.partition("\n")[0].strip()
            if "test-kernels: failed" in text or ended:
                raise self._stopped(f'the guest stopped before "{marker}"', marker)
            if time.monotonic() > deadline:
                raise self._stopped(f'no "{marker}" within {limit:.0f} s', marker)
            time.sleep(0.2)

    def _stopped(self, problem: str, marker: str) -> BuildError:
        # A boot of 7.3-rc7 was seen to stop where all CPUs wait for each other to
        # switch the clock source, and to oops in code that was just being patched.
        error, text = self.fail(problem), self._text()
        in_boot = BOOTED in marker and "test-kernels: failed" not in text
        return ChanceError(str(error)) if in_boot or _STARVED in text else error


def qemu_command(machine: Machine, directory: Path, kernel: Path) -> list[str]:
    """Return the command that boots the kernel; QMP is on its stdin and stdout."""
    accel = "kvm" if machine.kvm else "tcg,thread=multi"
    append = f"{_APPEND} crashkernel={machine.crashkernel} {machine.append}"
    command = [
        *(str(find_program("qemu-system-x86_64")), "-machine", "q35"),
        *("-accel", accel),
        *("-cpu", "host" if machine.kvm else machine.cpu),
        *("-smp", str(machine.cpus), "-m", f"{machine.memory_mib}M"),
        *("-nodefaults", "-display", "none", "-nic", "none", "-no-reboot"),
        *("-serial", f"file:{directory / 'console.log'}"),
        *("-kernel", str(kernel / "vmlinuz"), "-initrd", str(directory / "initrd")),
        *("-append", append),
        *("-qmp", "stdio"),
    ]
    if machine.vmcoreinfo:
        command += ["-device", "vmcoreinfo"]
    drives = [(name, directory / f"{name}.img", "unsafe") for name in machine.disks]
    drives += [(name, image, "unsafe,readonly=on") for name, image in machine.images]
    for name, image, cache in drives:
        drive = f"file={image},if=none,id={name},format=raw,cache={cache}"
        command += ["-drive", drive]
        command += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    return [*command, *machine.devices]


def make_disk(path: Path, mebibytes: int) -> None:
    """Make an empty sparse disk that only its owner may read: dumps hold secrets."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.truncate(fd, mebibytes * _MIB)
    os.close(fd)


def check_vmcore(vmcore: Path) -> None:
    """Check that the segments of the ELF file reach exactly to its end."""
    with vmcore.open("rb") as file:
        header = file.read(64)
        magic, offset, count = struct.unpack_from("<4s28xQ16xH", header)
        file.seek(offset)
        segments = list(struct.iter_unpack("<8xQ16xQ16x", file.read(56 * count)))
    end = max((at + size for at, size in segments), default=0)
    if magic != b"\x7fELF" or end != vmcore.stat().st_size:
        raise BuildError(f"{vmcore} is not a whole ELF dump")


def _crash(process: subprocess.Popen[bytes], event: Event) -> None:
    """Let the event happen, once the guest has had time to come to rest."""
    assert process.stdin is not None
    time.sleep(1)
    for command in ({"execute": "qmp_capabilities"}, event.command):
        process.stdin.write(json.dumps(command).encode() + b"\n")
    process.stdin.flush()


def _stages(machine: Machine) -> dict[str, float]:
    """Return the lines to wait for, and their limits."""
    stages: dict[str, float] = {}
    for marker, limit in _STAGES.items():
        stages[marker] = limit
        if marker == "truth written" and machine.event:
            stages[machine.event.marker] = _EVENT_LIMIT
    return stages


def run_guest(machine: Machine, kernel: Path, directory: Path) -> dict[str, float]:
    """Boot, crash and save; return how many seconds each stage took.

    Expects `initrd` in the directory; leaves console.log, truth.img and vmcore.
    """
    make_disk(directory / "truth.img", 512)
    make_disk(directory / "core.img", machine.memory_mib + 64)
    seconds, answer = run_stages(machine, kernel, directory, _stages(machine))
    vmcore = (directory / "core.img").rename(directory / "vmcore")
    os.truncate(vmcore, int(answer["vmcore size"]))
    check_vmcore(vmcore)
    return seconds


def run_stages(
    machine: Machine, kernel: Path, directory: Path, stages: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, str]]:
    """Run a guest to its end; return seconds, and the rest of the line, of each stage.

    Expects `initrd` and the machine's disks in the directory; leaves console.log.

    :param stages: the guest's lines to wait for, and their limits in seconds
    """
    seconds = {}
    answer = {}
    process = subprocess.Popen(
        qemu_command(machine, directory, kernel),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    console = Console(directory / "console.log", process)
    try:
        for marker, limit in stages.items():
            start = time.monotonic()
            answer[marker] = console.wait_for(marker, limit)
            seconds[marker] = round(time.monotonic() - start, 1)
            log(f"  {marker} {answer[marker]}: {seconds[marker]:.0f} s")
            if machine.event and marker == machine.event.marker:
                _crash(process, machine.event)
        process.wait(_POWER_OFF_LIMIT)
    except subprocess.TimeoutExpired:
        raise console.fail("the guest did not power off") from None
    finally:
        process.kill()
        process.wait()
    return seconds, answer
