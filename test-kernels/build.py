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
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from boot import MACHINE_CHECK, NMI, Machine, run_guest
from built import BuiltSource, build_module_in, find_source, make_built_kernel
from crash import crash_truth, read_panic
from hypervisor import run_dumped_guest
from initramfs import (
    build_initramfs,
    compile_dynamic,
    compile_guest,
    compile_program,
)
from module import build_module, make_headers
from packages import (
    AptRoot,
    DownloadError,
    KernelPackages,
    KernelSource,
    find_packages,
    make_capture_kernel,
    make_kernel,
    make_modules,
    run,
)
from progress import BuildError, ChanceError, log, step
from rootfs import make_debian
from routes import (
    RouteParts,
    build_route_capture,
    prepare_programs,
    route_sources,
    run_route,
)
from scenarios import (
    CrashScenario,
    HypervisorScenario,
    ProcessScenario,
    RouteScenario,
    Scenario,
    load_debian,
    load_scenarios,
)
from truth import read_truth

_HERE = Path(__file__).resolve().parent
_CRASHME = _HERE / "crashme"
_HYPERVISOR = _HERE / "hypervisor"
_PROCESS = _HERE / "process"
_MODULE_SOURCES = ("Kbuild", "crashme.c")
# For what chance may spoil: a boot that stops, an NMI that comes in an interrupt.
_TRIES = 5
# The kinds of crash that the machine starts, not the guest.
_EVENTS = {"nmi-user": NMI, "nmi-idle": NMI, "mce": MACHINE_CHECK}

# How old a dump of other code of ours may get: another checkout may still want it.
_OUTDATED_S = 24 * 60 * 60

# What making a dump needs from Debian; scripts that install it read this.
DEBIAN_PACKAGES = (
    "bc",
    "bison",
    "busybox-static",
    "debian-archive-keyring",
    "e2fsprogs",
    "dwarves",
    "flex",
    "gcc",
    "kexec-tools",
    "kmod",
    "libc6-dev",
    "libelf-dev",
    "make",
    "makedumpfile",
    "qemu-system-x86",
)

# What the guest loads: its disks, and something to look at (an ext4 file system on a
# loop device, a network device).
_MODULES = ("virtio_pci", "virtio_blk", "loop", "dummy")
# Those that the hypervisor dumps load it too: it tells QEMU where VMCOREINFO is.
_FW_CFG = "qemu_fw_cfg"
# What a capture kernel loads that may send a dump over the network.
_CAPTURE_MODULES = ("virtio_pci", "virtio_blk", "virtio_net")


def digest(*parts: bytes) -> str:
    """Return what tells such parts from all others, in a few letters."""
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

    def __init__(self, directory: Path, with_module: Collection[KernelSource]) -> None:
        """Lay out the directory.

        :param with_module: kernels that are of no use without their headers
        """
        self._directory = directory
        self._with_module = with_module
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
            if isinstance(source, BuiltSource):
                candidates = find_source(source, apt)
            else:
                candidates = find_packages(source, apt)
        for found in candidates:
            try:
                self.kernel(source, found)
                if source in self._with_module:
                    self._headers(source, found)
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

    def kernel(
        self,
        source: KernelSource,
        packages: KernelPackages,
        modules: tuple[str, ...] = _MODULES,
    ) -> Path:
        """Return the directory of a kernel and some of its modules, made if need be."""
        parts = [repr((packages, modules)).encode()]
        if isinstance(source, BuiltSource):
            parts.append(source.config.encode())
        key = digest(*parts)
        directory = self._directory / f"kernels/{packages.release}-{key}"
        if not directory.exists():
            with self._making(directory) as work:
                if isinstance(source, BuiltSource):
                    make_built_kernel(source, packages, self._apt(source), work)
                else:
                    make_kernel(packages, self._apt(source), modules, work)
                if modules != _MODULES:
                    _share(self.kernel(source, packages), work)
        return directory

    def module(self, source: KernelSource, packages: KernelPackages) -> Path:
        """Return our module for a kernel, made if need be."""
        sources = [_CRASHME / name for name in _MODULE_SOURCES]
        key = digest(repr(packages).encode(), *(path.read_bytes() for path in sources))
        directory = self._directory / f"kernels/crashme-{packages.release}-{key}"
        if not directory.exists():
            headers = self._headers(source, packages)
            with self._making(directory) as work, step(f"build {directory.name}"):
                if isinstance(source, BuiltSource):
                    build_module_in(headers, sources, work)
                else:
                    build_module(headers, packages.release, sources, work)
        return directory / "crashme.ko"

    def fw_cfg(self, source: KernelSource, packages: KernelPackages) -> Path:
        """Return the module qemu_fw_cfg of a kernel, unpacked if need be."""
        key = digest(repr((packages, _FW_CFG)).encode())
        directory = self._directory / f"kernels/fw_cfg-{packages.release}-{key}"
        if not directory.exists():
            with self._making(directory) as work:
                make_modules(packages, self._apt(source), (_FW_CFG,), work)
        return directory / f"modules/{_FW_CFG}.ko"

    def _headers(self, source: KernelSource, packages: KernelPackages) -> Path:
        """Return the directory of a kernel's headers and compiler, made if need be."""
        if isinstance(source, BuiltSource):
            return self.kernel(source, packages) / "tree"
        key = digest(repr(packages).encode())
        directory = self._directory / f"kernels/headers-{packages.release}-{key}"
        if not directory.exists():
            with self._making(directory) as work:
                make_headers(packages, self._apt(source), work)
        return directory

    def capture_kernel(self, source: KernelSource, packages: KernelPackages) -> Path:
        """Return the directory of a kernel to capture with, made if need be."""
        key = digest(repr((packages, _CAPTURE_MODULES)).encode())
        directory = self._directory / f"kernels/capture-{packages.release}-{key}"
        if not directory.exists():
            with self._making(directory) as work:
                apt = self._apt(source)
                make_capture_kernel(packages, apt, _CAPTURE_MODULES, work)
        return directory

    def debian(self) -> Path:
        """Return the directory of a small Debian to look at cores in, made likewise."""
        source = load_debian()
        key = digest(repr(source).encode(), (_HERE / "rootfs.py").read_bytes())
        directory = self._directory / f"kernels/debian-{key}"
        if not directory.exists():
            apt = AptRoot(self._directory / "apt/debian", source.suites)
            with self._making(directory) as work:
                apt.update()
                make_debian(apt, source.packages, work)
        return directory

    def _needed(self, source: KernelSource) -> KernelPackages:
        return self.packages(source) or self.find_packages(source)

    def _key(self, scenario: Scenario, packages: KernelPackages) -> str:
        guest = sorted((_HERE / "guest").iterdir())
        parts = repr((scenario, packages, _MODULES))
        if isinstance(scenario, CrashScenario):
            guest += sorted(_CRASHME.iterdir())
        if isinstance(scenario, HypervisorScenario):
            guest += sorted(_HYPERVISOR.iterdir())
        if isinstance(scenario, ProcessScenario):
            guest += sorted(_PROCESS.iterdir())
        if isinstance(scenario, RouteScenario):
            guest += route_sources(scenario)
            parts += repr((self._needed(scenario.capture), _CAPTURE_MODULES))
            parts += repr(load_debian()) if scenario.in_place else ""
        return digest(parts.encode(), *(path.read_bytes() for path in guest))

    def dump(self, scenario: Scenario, packages: KernelPackages) -> Path:
        """Return where a dump is, or is to be."""
        key = self._key(scenario, packages)
        return self._directory / f"store/{scenario.name}-{key}"

    def make_dump(
        self, scenario: Scenario, packages: KernelPackages, kvm: bool
    ) -> Path:
        """Boot the kernel and crash it; return the directory of the dump."""
        directory = self.dump(scenario, packages)
        kernel = self.kernel(scenario.kernel, packages)
        module = more = route = None
        if isinstance(scenario, CrashScenario):
            module = self.module(scenario.kernel, packages)
            if scenario.more_modules:
                more = self.kernel(scenario.kernel, packages, (scenario.more_modules,))
        if isinstance(scenario, HypervisorScenario):
            module = self.fw_cfg(scenario.kernel, packages)
        if isinstance(scenario, RouteScenario):
            route = self._route_parts(scenario)
        guest = _Guest(scenario, packages, kernel, module, more, route, kvm)
        for _ in range(_TRIES - 1):
            try:
                self._try_dump(directory, guest)
                return directory
            except ChanceError as error:
                log(f"{error}; once more")
        self._try_dump(directory, guest)
        return directory

    def _route_parts(self, scenario: RouteScenario) -> RouteParts:
        packages = self._needed(scenario.capture)
        find = self.capture_kernel if scenario.sends else self.kernel
        capture = find(scenario.capture, packages)
        return RouteParts(capture, self.debian() if scenario.in_place else None)

    def _try_dump(self, directory: Path, guest: "_Guest") -> None:
        with self._making(directory) as work, step(f"make {guest.scenario.name}"):
            _fill_dump(work, guest)

    def publish(self, scenario: Scenario, directory: Path) -> None:
        """Let dumps/NAME point to the directory."""
        link = self._directory / "dumps" / scenario.name
        target = Path("..") / directory.relative_to(self._directory)
        if link.is_symlink() and link.readlink() == target:
            return
        if isinstance(scenario, RouteScenario) and scenario.in_place:
            self._remove_outdated(scenario, directory)
        link.unlink(missing_ok=True)
        link.symlink_to(target)

    def _remove_outdated(self, scenario: Scenario, newest: Path) -> None:
        """Remove what other code of ours made, unless it may still be in use."""
        for directory in (self._directory / "store").glob(f"{scenario.name}-*"):
            age = time.time() - directory.stat().st_mtime
            if directory != newest and age > _OUTDATED_S:
                shutil.rmtree(directory)


def _share(kernel: Path, other: Path) -> None:
    """Let two directories of one kernel have its big files together."""
    for name in ("vmlinux", "vmlinuz"):
        (other / name).unlink()
        os.link(kernel / name, other / name)


@dataclass(frozen=True)
class _Guest:
    """A guest to run, with all it is made of."""

    scenario: Scenario
    packages: KernelPackages
    kernel: Path
    module: Path | None
    # A kernel directory, for its modules.
    more: Path | None
    route: RouteParts | None
    kvm: bool

    def machine(self) -> Machine:
        """Return the machine to run it on."""
        scenario = self.scenario
        machine = Machine(
            cpu=scenario.cpu,
            cpus=scenario.cpus,
            memory_mib=scenario.memory_mib,
            crashkernel=scenario.crashkernel,
            kvm=self.kvm,
        )
        if isinstance(scenario, CrashScenario):
            event = _EVENTS.get(scenario.kind)
            return replace(machine, event=event, append=scenario.append)
        if isinstance(scenario, ProcessScenario):
            return replace(machine, append=scenario.append)
        if isinstance(scenario, HypervisorScenario):
            return replace(
                machine,
                append=scenario.append,
                vmcoreinfo=scenario.vmcoreinfo,
                disks=("truth",),
            )
        if isinstance(scenario, RouteScenario):
            return replace(machine, append=scenario.append)
        return machine


def _make_programs(scenario: Scenario, directory: Path) -> None:
    """Fill the directory with the guest's programs."""
    directory.mkdir()
    compile_guest(directory)
    if isinstance(scenario, CrashScenario):
        compile_program(_CRASHME / "crashtasks.c", directory)
        shutil.copy(_CRASHME / "workload", directory / "workload")
    if isinstance(scenario, HypervisorScenario):
        (directory / "workload").rename(directory / "guest-workload")
        shutil.copy(_HYPERVISOR / "workload", directory / "workload")
    if isinstance(scenario, ProcessScenario):
        compile_dynamic(_PROCESS / "program.c", _PROCESS / "library.c", directory)
        shutil.copy(_PROCESS / "workload", directory / "workload")
    if isinstance(scenario, RouteScenario):
        prepare_programs(scenario, directory)


def _run_guest(work: Path, guest: _Guest) -> dict[str, float]:
    scenario = guest.scenario
    if isinstance(scenario, HypervisorScenario):
        return run_dumped_guest(
            guest.machine(), guest.kernel, work, scenario.dumps, scenario.state
        )
    if isinstance(scenario, RouteScenario):
        assert guest.route
        return run_route(guest.machine(), scenario, guest.route, guest.kernel, work)
    return run_guest(guest.machine(), guest.kernel, work)


def _build_archive(guest: _Guest, binaries: Path, settings: dict[str, str]) -> bytes:
    capture = None
    if isinstance(guest.scenario, RouteScenario):
        assert guest.route
        capture = build_route_capture(guest.scenario, guest.route)
    more = guest.more / "guest-modules" if guest.more else None
    return build_initramfs(
        guest.kernel, binaries, settings, guest.module, more, capture
    )


def _run_scenario(work: Path, guest: _Guest) -> Any:
    """Crash a guest; leave vmcore, console.log and the guest's records."""
    binaries = work / "binaries"
    _make_programs(guest.scenario, binaries)
    settings = guest.scenario.guest_settings()
    (work / "initrd").write_bytes(_build_archive(guest, binaries, settings))
    seconds = _run_guest(work, guest)
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


def _link_debug_files(work: Path, guest: _Guest) -> None:
    """Hard links: they hold when a newer kernel takes the place of this one."""
    os.link(guest.kernel / "vmlinux", work / "vmlinux")
    (work / "modules").mkdir()
    is_ours = isinstance(guest.scenario, CrashScenario)
    modules = [*(guest.kernel / "modules").iterdir()]
    modules += [guest.module] if guest.module and is_ours else []
    modules += (guest.more / "modules").iterdir() if guest.more else []
    for module in {path.name: path for path in modules}.values():
        os.link(module, work / "modules" / module.name)


def _qemu_version() -> str:
    return run("qemu-system-x86_64", "--version").splitlines()[0]


def _fill_dump(work: Path, guest: _Guest) -> None:
    """Fill the directory of a dump; README.md lists what is in it."""
    start = time.monotonic()
    stages = _run_scenario(work, guest)
    if isinstance(guest.scenario, CrashScenario):
        read_panic(guest.scenario.kind, work)
    _keep_records(work)
    _link_debug_files(work, guest)
    info = {
        "name": guest.scenario.name,
        "release": guest.packages.release,
        "packages": asdict(guest.packages),
        "scenario": asdict(guest.scenario),
        "accelerator": "kvm" if guest.kvm else "tcg",
        "qemu": _qemu_version(),
        "stage_seconds": stages,
        "seconds": round(time.monotonic() - start, 1),
    }
    _write_json(work / "info.json", info)
    _refresh_truth(work, guest.scenario)


def _read_truth(dump: Path, scenario: Scenario) -> dict[str, Any]:
    with gzip.open(dump / "truth.raw.gz", "rb") as records:
        truth = read_truth(records)
    if isinstance(scenario, CrashScenario):
        truth["crash"] = crash_truth(scenario.kind, truth, dump)
        truth["panic"] = truth["crash"]["panic"]
    return truth


def _refresh_truth(dump: Path, scenario: Scenario) -> None:
    """Convert the guest's records, unless today's scripts have done that."""
    scripts = [_HERE / name for name in ("truth.py", "crash.py")]
    converter = digest(*(path.read_bytes() for path in scripts))
    info = json.loads((dump / "info.json").read_text())
    if info.get("converter") == converter:
        return
    with step(f"convert the truth of {info['name']}"):
        truth = _read_truth(dump, scenario)
    _write_json(dump / "truth.json", truth, indent=None)
    info["group"] = scenario.group
    info |= {"nr_tasks": len(truth["tasks"]), "converter": converter}
    _write_json(dump / "info.json", info)


def _find_cached(cache: Cache, scenario: Scenario) -> Path | None:
    packages = cache.packages(scenario.kernel)
    if isinstance(scenario, RouteScenario) and not cache.packages(scenario.capture):
        packages = None
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
    _refresh_truth(directory, scenario)
    cache.publish(scenario, directory)
    return directory


def _list(cache: Cache, scenarios: Mapping[str, Scenario]) -> None:
    for name, scenario in scenarios.items():
        directory = _find_cached(cache, scenario)
        state = "cached" if directory else "not cached"
        sys.stdout.write(f"{name:<20} {state:<11} {directory or '-'}\n")


def _parse_arguments(scenarios: Mapping[str, Scenario]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make kernel dumps to test with, or find them in the cache.",
        epilog="The directory of each dump is printed, one a line.",
    )
    parser.add_argument("name", nargs="*", metavar="NAME", help="see --list")
    parser.add_argument("--all", action="store_true", help="make all dumps")
    parser.add_argument(
        "--group",
        action="append",
        default=[],
        choices=sorted({scenario.group for scenario in scenarios.values()}),
        help="make all dumps of a group",
    )
    parser.add_argument("--list", action="store_true", help="show what is cached")
    parser.add_argument(
        "--update", action="store_true", help="take the newest kernels there are now"
    )
    parser.add_argument(
        "--kvm", action="store_true", help="use /dev/kvm (by default all is emulated)"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.name) - set(scenarios):
        parser.error(f"no such dump: {', '.join(sorted(unknown))}")
    if not (arguments.name or arguments.group or arguments.all or arguments.list):
        parser.error("name a dump, or use --group, --all or --list")
    return arguments


def _is_wanted(scenario: Scenario, arguments: argparse.Namespace) -> bool:
    named = scenario.name in arguments.name or scenario.group in arguments.group
    return named or arguments.all


def _sources(scenarios: Iterable[Scenario]) -> set[KernelSource]:
    """Return the kernels that run in these guests."""
    sources = {scenario.kernel for scenario in scenarios}
    routes = [each for each in scenarios if isinstance(each, RouteScenario)]
    return sources | {scenario.capture for scenario in routes}


def cache_directory() -> Path:
    """Return where kernels and dumps are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gdbkdump"


def main() -> int:
    """Run the command line."""
    scenarios = load_scenarios()
    arguments = _parse_arguments(scenarios)
    crashes = [each for each in scenarios.values() if isinstance(each, CrashScenario)]
    cache = Cache(cache_directory(), {each.kernel for each in crashes})
    # Unwind when told to stop, so that no QEMU and no half-made dump is left.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if arguments.list:
        _list(cache, scenarios)
        return 0
    wanted = [each for each in scenarios.values() if _is_wanted(each, arguments)]
    try:
        with cache.lock():
            if arguments.update:
                for source in _sources(wanted):
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
