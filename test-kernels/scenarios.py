# SPDX-License-Identifier: GPL-2.0-or-later
"""The dumps there are to make, as kernels.toml says."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from built import BuiltSource
from packages import KernelSource

_FILE = Path(__file__).resolve().parent / "kernels.toml"


@dataclass(frozen=True)
class Scenario:
    """One dump to make: a guest with the workload, crashed by sysrq-c."""

    name: str
    kernel: KernelSource
    memory_mib: int
    cpus: int
    crashkernel: str
    processes: int
    threads: int
    kexec: str
    cpu: str

    @property
    def group(self) -> str:
        """What the dump is for: tests choose their dumps by it."""
        return "workload"

    def guest_settings(self) -> dict[str, str]:
        """Return the shell variables that the guest's scripts read."""
        return {
            "kexec_mode": self.kexec,
            "processes": str(self.processes),
            "threads": str(self.threads),
        }


@dataclass(frozen=True)
class CrashScenario(Scenario):
    """One dump to make: a guest that crashes in our module, or beside it.

    crash_cpu is the CPU of cm-crash; on each of spin_cpus (digits) a task loops in
    user space; offline_cpu is a digit, or nothing; all modules below the folder
    more_modules are loaded. append is for the kernel's command line.
    """

    append: str
    kind: str
    crash_cpu: int
    spin_cpus: str
    offline_cpu: str
    more_modules: str = ""

    @property
    def group(self) -> str:
        """What the dump is for: tests choose their dumps by it."""
        return "crash"

    def guest_settings(self) -> dict[str, str]:
        """Return the shell variables that the guest's scripts read."""
        own = ("kind", "crash_cpu", "spin_cpus", "offline_cpu")
        return super().guest_settings() | {
            name: str(getattr(self, name)) for name in own
        }


@dataclass(frozen=True)
class HypervisorScenario(Scenario):
    """Dumps to make of one guest by the hypervisor, all of the same moment.

    state is "alive" or "panicked"; vmcoreinfo tells whether the hypervisor learns where
    VMCOREINFO is; dumps are names of files (hypervisor.py). append is for the kernel's
    command line.
    """

    append: str
    state: str
    vmcoreinfo: bool
    dumps: tuple[str, ...]

    @property
    def group(self) -> str:
        """What the dumps are for: tests choose their dumps by it."""
        return "hypervisor"

    def guest_settings(self) -> dict[str, str]:
        """Return the shell variables that the guest's scripts read."""
        return super().guest_settings() | {"state": self.state}


@dataclass(frozen=True)
class ProcessScenario(Scenario):
    """One dump to make: a guest with one process, crashed by sysrq-c.

    append is for the kernel's command line.
    """

    append: str

    @property
    def group(self) -> str:
        """What the dump is for: tests choose their dumps by it."""
        return "process"


@dataclass(frozen=True)
class RouteScenario(Scenario):
    """One dump to make: a guest whose capture kernel takes routes that kdump knows.

    capture is the kernel that captures; steps are what it does, see routes/capture;
    live is how the kernel that is to crash is looked at before, see routes/look. append
    is for its command line.
    """

    append: str
    capture: KernelSource
    steps: tuple[str, ...]
    live: tuple[str, ...]

    @property
    def group(self) -> str:
        """What the dump is for: tests choose their dumps by it."""
        return "route"

    @property
    def in_place(self) -> bool:
        """Tell whether our own program runs in the guest."""
        return bool(self.live) or any(step.startswith("nothing") for step in self.steps)

    @property
    def sends(self) -> bool:
        """Tell whether the capture kernel needs a network."""
        return "network" in self.steps

    def guest_settings(self) -> dict[str, str]:
        """Return the shell variables that the guest's scripts read."""
        return super().guest_settings() | {"live": " ".join(self.live)}


def _kernel_sources(tables: Mapping[str, Any]) -> dict[str, KernelSource]:
    return {name: _kernel_source(name, table) for name, table in tables.items()}


def _kernel_source(name: str, table: Mapping[str, Any]) -> KernelSource:
    suites, image = tuple(table["suites"]), tuple(table["image"])
    if "config" in table:
        config = (_FILE.parent / table["config"]).read_text()
        return BuiltSource(name, suites, "", image, config)
    return KernelSource(name, suites, table["debug"], image)


def load_scenarios() -> dict[str, Scenario]:
    """Read kernels.toml."""
    data = tomllib.loads(_FILE.read_text())
    kernels = _kernel_sources(data["kernels"])
    sizes = data["sizes"]
    found: list[Scenario] = [
        Scenario(
            name=name,
            kernel=kernels[dump["kernel"]],
            kexec=dump["kexec"],
            cpu=dump["cpu"],
            **sizes[dump["size"]],
        )
        for name, dump in data["dumps"].items()
    ]
    found += [
        CrashScenario(
            name=f"crash-{kind}-{name}",
            kernel=kernels[name],
            kexec=guest["kexec"],
            cpu=guest["cpu"],
            kind=kind,
            **sizes[guest["size"]],
            **data["crash_kinds"][kind],
        )
        for name, guest in data["crashes"].items()
        for kind in guest["kinds"]
    ]
    found += [
        HypervisorScenario(
            name=f"qemu-{name}",
            kernel=kernels[guest["kernel"]],
            kexec="kexec-syscall",
            cpu=guest["cpu"],
            state=guest["state"],
            vmcoreinfo=guest["vmcoreinfo"],
            dumps=tuple(guest["dumps"]),
            **sizes["hypervisor"],
        )
        for name, guest in data["hypervisor"].items()
    ]
    found += [
        ProcessScenario(
            name=f"process-{name}",
            kernel=kernels[name],
            kexec=guest["kexec"],
            cpu=guest["cpu"],
            **sizes[guest["size"]],
        )
        for name, guest in data["processes"].items()
    ]
    found += [
        RouteScenario(
            name=f"route-{name}",
            kernel=kernels[route["kernel"]],
            capture=kernels[route.get("capture", route["kernel"])],
            kexec=route["kexec"],
            cpu=route["cpu"],
            steps=tuple(route["steps"]),
            live=tuple(route.get("live", ())),
            **sizes[route["size"]],
        )
        for name, route in data["routes"].items()
    ]
    return {scenario.name: scenario for scenario in found}


@dataclass(frozen=True)
class DebianSource:
    """What a small Debian to run in a guest is made of."""

    suites: tuple[str, ...]
    packages: tuple[str, ...]


def load_debian() -> DebianSource:
    """Read it from kernels.toml."""
    table = tomllib.loads(_FILE.read_text())["debian"]
    return DebianSource(tuple(table["suites"]), tuple(table["packages"]))
