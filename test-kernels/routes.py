# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests whose capture kernel takes the routes that kdump knows.

routes/ has what runs in them. What they save comes out of their disks, what goes over
the network is written to a file by QEMU itself, and what they print about a core, where
it is, is cut out of the console.
"""

import re
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from boot import BOOTED, Machine, check_vmcore, make_disk, run_stages
from initramfs import Capture, build_capture
from progress import BuildError
from rootfs import code_files, dig_holes, make_code_image, make_image, take_file
from scenarios import RouteScenario

_SCRIPTS = Path(__file__).resolve().parent / "routes"
# Where QEMU's own network, which ends in itself, takes the connection.
_SINK = "10.0.2.100:9000"

# Step -> what it saves on the disk with the file system.
_FILES = {
    "copy": "vmcore",
    "makedumpfile": "vmcore.kdump",
    "elf": "vmcore.elf",
}
# Step -> the disk without one, as it is and as it is kept.
_RAW_DISKS = {
    "raw": ("raw", "vmcore.raw"),
    "raw_flattened": ("flat", "vmcore.raw-flat"),
}
# Step -> the file that QEMU writes.
_SENT = {"network": "vmcore.sent"}


@dataclass(frozen=True)
class RouteParts:
    """What such a guest is made of, beside what every guest is.

    :ivar capture: directory of the kernel that captures
    :ivar debian: directory made by rootfs.make_debian, if it looks at cores in place
    """

    capture: Path
    debian: Path | None


def route_sources(scenario: RouteScenario) -> list[Path]:
    """Return the files of ours that what comes out depends on."""
    scripts = sorted(_SCRIPTS.iterdir())
    return scripts + (code_files() if scenario.in_place else [])


def prepare_programs(scenario: RouteScenario, directory: Path) -> None:
    """Put what is needed into the directory of the guest's programs."""
    if scenario.live:
        (directory / "truth").rename(directory / "record")
        shutil.copy(_SCRIPTS / "live", directory / "truth")
        shutil.copy(_SCRIPTS / "tell", directory / "tell")


def build_route_capture(scenario: RouteScenario, parts: RouteParts) -> Capture:
    """Build the archive of the capture kernel."""
    steps = " ".join(scenario.steps)
    return build_capture(
        parts.capture, _SCRIPTS / "capture", [_SCRIPTS / "tell"], steps
    )


def run_route(
    machine: Machine,
    scenario: RouteScenario,
    parts: RouteParts,
    kernel: Path,
    directory: Path,
) -> dict[str, float]:
    """Boot, crash and take the routes; return how many seconds each stage took.

    Expects `initrd` in the directory; leaves console.log, truth.img, what was saved,
    and printed/ with what code/ printed about cores in place.
    """
    machine = _with_devices(machine, scenario, parts, directory)
    seconds, _ = run_stages(machine, kernel, directory, _stages(scenario))
    _keep_saved(scenario, directory)
    _keep_printed(directory)
    (directory / "code.img").unlink(missing_ok=True)
    return seconds


def _with_devices(
    machine: Machine, scenario: RouteScenario, parts: RouteParts, directory: Path
) -> Machine:
    disks = ["truth"]
    make_disk(directory / "truth.img", 512)
    if set(_FILES) & set(scenario.steps):
        disks.append("save")
        make_image(directory / "save.img", 3 * machine.memory_mib)
    for step, (disk, _) in _RAW_DISKS.items():
        if step in scenario.steps:
            disks.append(disk)
            make_disk(directory / f"{disk}.img", machine.memory_mib + 64)
    images: list[tuple[str, Path]] = []
    if parts.debian:
        look = _SCRIPTS / "look"
        code = make_code_image(parts.debian, [look], directory / "code")
        images = [("debian", parts.debian / "debian.img"), ("code", code)]
    devices: list[str] = []
    for step, name in _SENT.items():
        if step in scenario.steps:
            devices += _network(directory / name)
    return replace(
        machine, disks=tuple(disks), images=tuple(images), devices=tuple(devices)
    )


def _network(target: Path) -> list[str]:
    """Return a network device; what is sent over it to one address is in a file."""
    target.touch(mode=0o600)
    # A program, not a chardev: it ends with the connection, so that nc does, too.
    receive = f"dd bs=64k status=none of={shlex.quote(str(target))}"
    forward = f"guestfwd=tcp:{_SINK}-cmd:{receive}".replace(",", ",,")
    network = f"user,id=net,restrict=on,{forward}"
    return ["-netdev", network, "-device", "virtio-net-pci,netdev=net"]


def _stages(scenario: RouteScenario) -> dict[str, float]:
    stages: dict[str, float] = {BOOTED: 120, "workload ready": 900}
    if scenario.live:
        stages["looked at alive"] = 900
    stages["truth written"] = 900
    stages |= {f"step {step}": 900 for step in scenario.steps}
    return stages | {"routes taken": 900}


def _keep_saved(scenario: RouteScenario, directory: Path) -> None:
    save = directory / "save.img"
    for step in scenario.steps:
        if step in _FILES:
            take_file(save, _FILES[step], directory / _FILES[step])
        if step in _RAW_DISKS:
            disk, name = _RAW_DISKS[step]
            (directory / f"{disk}.img").rename(directory / name)
            dig_holes(directory / name)
        if step in _SENT and not (directory / _SENT[step]).stat().st_size:
            raise BuildError("nothing came over the network")
    save.unlink(missing_ok=True)
    if "copy" in scenario.steps:
        check_vmcore(directory / "vmcore")
    else:
        (directory / _FILES["elf"]).rename(directory / "vmcore")


def _keep_printed(directory: Path) -> None:
    """Cut what was printed between our lines out of the console, a file each."""
    console = (directory / "console.log").read_bytes().replace(b"\r\n", b"\n")
    pattern = rb"^test-kernels: begin (\S+)\n(.*?)^test-kernels: end \1$"
    blocks = re.findall(pattern, console, re.DOTALL | re.MULTILINE)
    if blocks:
        (directory / "printed").mkdir()
    for name, content in blocks:
        (directory / "printed" / name.decode()).write_bytes(content)
