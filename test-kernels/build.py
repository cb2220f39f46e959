# SPDX-License-Identifier: GPL-2.0-or-later
"""Make the dumps of kernels.toml, or find them in the cache.

Run with --help; the README beside this file says what is in a dump's directory.
"""

import argparse
import fcntl
import gzip
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from boot import Machine, run_guest
from initramfs import build_initramfs, compile_guest
from packages import (
    AptRoot,
    DownloadError,
    KernelPackages,
    KernelSource,
    find_packages,
    make_kernel,
    run,
)
from progress import BuildError, log, step
from truth import read_truth

_HERE = Path(__file__).resolve().parent

# What making a dump needs from Debian; scripts that install it read this.
DEBIAN_PACKAGES = (
    "busybox-static",
    "debian-archive-keyring",
    "gcc",
    "kexec-tools",
    "kmod",
    "libc6-dev",
    "qemu-system-x86",
)

# What the guest loads: its disks, and something to look at (an ext4 file system on a
# loop device, a network device).
_MODULES = ("virtio_pci", "virtio_blk", "loop", "dummy")


@dataclass(frozen=True)
class Scenario:
    """One dump to make, as kernels.toml says."""

    name: str
    kernel: KernelSource
    memory_mib: int
    cpus: int
    crashkernel: str
    processes: int
    threads: int
    kexec: str
    cpu: str


def load_scenarios() -> dict[str, Scenario]:
    """Read kernels.toml."""
    data = tomllib.loads((_HERE / "kernels.toml").read_text())
    kernels = {
        name: KernelSource(
            name, tuple(kernel["suites"]), kernel["debug"], tuple(kernel["image"])
        )
        for name, kernel in data["kernels"].items()
    }
    return {
        name: Scenario(
            name=name,
            kernel=kernels[dump["kernel"]],
            kexec=dump["kexec"],
            cpu=dump["cpu"],
            **data["sizes"][dump["size"]],
        )
        for name, dump in data["dumps"].items()
    }


def _digest(*parts: bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()[:16]


def _write_json(path: Path, data: Any, indent: int | None = 1) -> None:
    """Write a file in one go: readers see the old one or the new one."""
    temporary = path.with_name(f"{path.name}.new")
    temporary.write_text(json.dumps(data, indent=indent))
    temporary.replace(path)


class Cache:
    """The directory that keeps kernels and dumps.

    Each is under a name that says what it was made from. All is made in work/ and
    renamed into its place when whole.
    """

    def __init__(self, directory: Path) -> None:
        """Lay out the directory."""
        self._directory = directory
        for name in ("apt", "kernels", "store", "dumps", "work"):
            (directory / name).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs out while something is made; clean up after killed ones."""
        with (self._directory / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log("another run is making dumps; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            for leftover in (self._directory / "work").iterdir():
                shutil.rmtree(leftover)
            yield

    @contextmanager
    def _making(self, final: Path) -> Iterator[Path]:
        """Yield a directory to fill; it takes its final name if all went well."""
        work = Path(tempfile.mkdtemp(dir=self._directory / "work"))
        work.chmod(0o755)
        try:
            yield work
            work.rename(final)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def packages(self, source: KernelSource) -> KernelPackages | None:
        """Return which packages a kernel was last found to be, without the network."""
        path = self._directory / f"kernels/{source.name}.json"
        if not path.exists():
            return None
        known = json.loads(path.read_text())
        if known.pop("source") != repr(source):
            return None
        return KernelPackages(**known | {"image": tuple(known["image"])})

    def _apt(self, source: KernelSource) -> AptRoot:
        return AptRoot(self._directory / "apt" / source.name, source.suites)

    def find_packages(self, source: KernelSource) -> KernelPackages:
        """Find and unpack the newest kernel that is to be had, and remember it."""
        apt = self._apt(source)
        suites = ", ".join(source.suites)
        with step(f"look for kernel {source.name} in {suites}"):
            apt.update()
            candidates = find_packages(source, apt)
        for found in candidates:
            try:
                self.kernel(source, found)
            except DownloadError as error:
                # A suite near its end lists packages the mirror has dropped.
                log(f"not to be had: {error}")
                continue
            self._remember(source, found)
            return found
        raise BuildError(f"no kernel {source.name} with debug symbols in {suites}")

    def _remember(self, source: KernelSource, found: KernelPackages) -> None:
        log(f"kernel {source.name} is {found.release}, version {found.version}")
        _write_json(
            self._directory / f"kernels/{source.name}.json",
            asdict(found) | {"source": repr(source)},
        )

    def kernel(self, source: KernelSource, packages: KernelPackages) -> Path:
        """Return the directory of an unpacked kernel, made if need be."""
        key = _digest(repr((packages, _MODULES)).encode())
        directory = self._directory / f"kernels/{packages.release}-{key}"
        if not directory.exists():
            with self._making(directory) as work:
                make_kernel(packages, self._apt(source), _MODULES, work)
        return directory

    def dump(self, scenario: Scenario, packages: KernelPackages) -> Path:
        """Return where a dump is, or is to be."""
        guest = sorted((_HERE / "guest").iterdir())
        key = _digest(
            repr((scenario, packages, _MODULES)).encode(),
            *(path.read_bytes() for path in guest),
        )
        return self._directory / f"store/{scenario.name}-{key}"

    def make_dump(
        self, scenario: Scenario, packages: KernelPackages, kvm: bool
    ) -> Path:
        """Boot the kernel and crash it; return the directory of the dump."""
        directory = self.dump(scenario, packages)
        kernel = self.kernel(scenario.kernel, packages)
        with self._making(directory) as work, step(f"make {scenario.name}"):
            _fill_dump(work, kernel, scenario, packages, kvm)
        return directory

    def publish(self, scenario: Scenario, directory: Path) -> None:
        """Let dumps/NAME point to the directory."""
        link = self._directory / "dumps" / scenario.name
        target = Path("..") / directory.relative_to(self._directory)
        if link.is_symlink() and link.readlink() == target:
            return
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def _guest_settings(scenario: Scenario) -> dict[str, str]:
    return {
        "kexec_mode": scenario.kexec,
        "processes": str(scenario.processes),
        "threads": str(scenario.threads),
    }


def _run_scenario(work: Path, kernel: Path, scenario: Scenario, kvm: bool) -> Any:
    """Crash a guest; leave vmcore, console.log and the guest's records."""
    machine = Machine(
        cpu=scenario.cpu,
        cpus=scenario.cpus,
        memory_mib=scenario.memory_mib,
        crashkernel=scenario.crashkernel,
        kvm=kvm,
    )
    binaries = work / "binaries"
    binaries.mkdir()
    compile_guest(binaries)
    initramfs = build_initramfs(kernel, binaries, _guest_settings(scenario))
    (work / "initrd").write_bytes(initramfs)
    seconds = run_guest(machine, kernel, work)
    (work / "initrd").unlink()
    shutil.rmtree(binaries)
    return seconds


def _keep_records(work: Path) -> None:
    """Keep the guest's records compressed, without the rest of their disk."""
    with (work / "truth.img").open("rb") as disk:
        size = _records_size(disk.fileno())
        with gzip.open(work / "truth.raw.gz", "wb", compresslevel=6) as packed:
            while size > 0:
                chunk = disk.read(min(size, 1 << 20))
                packed.write(chunk)
                size -= len(chunk)
    (work / "truth.img").unlink()


def _records_size(fd: int) -> int:
    """Return where the data of a sparse disk ends, holes in between included."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:
            os.lseek(fd, 0, os.SEEK_SET)
            return end
        end = os.lseek(fd, start, os.SEEK_HOLE)


def _link_debug_files(work: Path, kernel: Path) -> None:
    """Hard links: they hold when a newer kernel takes the place of this one."""
    os.link(kernel / "vmlinux", work / "vmlinux")
    (work / "modules").mkdir()
    for module in (kernel / "modules").iterdir():
        os.link(module, work / "modules" / module.name)


def _qemu_version() -> str:
    return run("qemu-system-x86_64", "--version").splitlines()[0]


def _fill_dump(
    work: Path, kernel: Path, scenario: Scenario, packages: KernelPackages, kvm: bool
) -> None:
    """Fill the directory of a dump; README.md lists what is in it."""
    start = time.monotonic()
    stages = _run_scenario(work, kernel, scenario, kvm)
    _keep_records(work)
    _link_debug_files(work, kernel)
    info = {
        "name": scenario.name,
        "release": packages.release,
        "packages": asdict(packages),
        "scenario": asdict(scenario),
        "accelerator": "kvm" if kvm else "tcg",
        "qemu": _qemu_version(),
        "stage_seconds": stages,
        "seconds": round(time.monotonic() - start, 1),
    }
    _write_json(work / "info.json", info)
    _refresh_truth(work)


def _refresh_truth(dump: Path) -> None:
    """Convert the guest's records, unless that was done by the truth.py of today."""
    converter = _digest((_HERE / "truth.py").read_bytes())
    info = json.loads((dump / "info.json").read_text())
    if info.get("converter") == converter:
        return
    with (
        step(f"convert the truth of {info['name']}"),
        gzip.open(dump / "truth.raw.gz", "rb") as records,
    ):
        truth = read_truth(records)
    _write_json(dump / "truth.json", truth, indent=None)
    info |= {"nr_tasks": len(truth["tasks"]), "converter": converter}
    _write_json(dump / "info.json", info)


def _find_cached(cache: Cache, scenario: Scenario) -> Path | None:
    packages = cache.packages(scenario.kernel)
    directory = cache.dump(scenario, packages) if packages else None
    return directory if directory and directory.exists() else None


def _provide(cache: Cache, scenario: Scenario, kvm: bool) -> Path:
    """Return the directory of a dump, made if need be."""
    directory = _find_cached(cache, scenario)
    if not directory:
        packages = cache.packages(scenario.kernel)
        packages = packages or cache.find_packages(scenario.kernel)
        directory = cache.dump(scenario, packages)
        if not directory.exists():
            cache.make_dump(scenario, packages, kvm)
    _refresh_truth(directory)
    cache.publish(scenario, directory)
    return directory


def _list(cache: Cache, scenarios: dict[str, Scenario]) -> None:
    for name, scenario in scenarios.items():
        directory = _find_cached(cache, scenario)
        state = "cached" if directory else "not cached"
        sys.stdout.write(f"{name:<12} {state:<11} {directory or '-'}\n")


def _parse_arguments(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make kernel dumps to test with, or find them in the cache.",
        epilog="The directory of each dump is printed, one a line.",
    )
    parser.add_argument("name", nargs="*", help=f"one of: {', '.join(names)}")
    parser.add_argument("--all", action="store_true", help="make all dumps")
    parser.add_argument("--list", action="store_true", help="show what is cached")
    parser.add_argument(
        "--update", action="store_true", help="take the newest kernels there are now"
    )
    parser.add_argument(
        "--kvm", action="store_true", help="use /dev/kvm (by default all is emulated)"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.name) - set(names):
        parser.error(f"no such dump: {', '.join(sorted(unknown))}")
    if not (arguments.name or arguments.all or arguments.list):
        parser.error("name a dump, or use --all or --list")
    return arguments


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gdbkdump"


def main() -> int:
    """Run the command line."""
    scenarios = load_scenarios()
    arguments = _parse_arguments(list(scenarios))
    cache = Cache(_cache_directory())
    # Unwind when told to stop, so that no QEMU and no half-made dump is left.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if arguments.list:
        _list(cache, scenarios)
        return 0
    wanted = [scenarios[name] for name in arguments.name] or [*scenarios.values()]
    try:
        with cache.lock():
            if arguments.update:
                for source in {scenario.kernel for scenario in wanted}:
                    cache.find_packages(source)
            for scenario in wanted:
                directory = _provide(cache, scenario, arguments.kvm)
                sys.stdout.write(f"{directory}\n")
                sys.stdout.flush()
    except BuildError as error:
        log(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
