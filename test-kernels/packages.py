# SPDX-License-Identifier: GPL-2.0-or-later
"""Get kernels out of Debian packages without installing any.

Find them in a private apt root that follows the machine's own mirror, download, and
keep of each package only what booting and debugging need.
"""

import functools
import lzma
import os
import platform
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from progress import BuildError, step

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class DownloadError(BuildError):
    """A package that the lists name could not be had."""


@dataclass(frozen=True)
class KernelSource:
    """Where a kernel comes from, as kernels.toml says."""

    name: str
    suites: tuple[str, ...]
    debug: str
    image: tuple[str, ...]


@dataclass(frozen=True)
class KernelPackages:
    """The packages of one kernel, all of one version."""

    release: str
    version: str
    debug: str
    image: tuple[str, ...]


def find_program(name: str) -> Path:
    """Find a program, also among those that only root has in its PATH."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if not path:
        raise BuildError(f"{name} is not installed")
    return Path(path)


def run(
    *command: str | Path,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a program to its end and return what it printed.

    :param environment: what differs from our own
    """
    program = find_program(str(command[0]))
    done = subprocess.run(
        (program, *command[1:]),
        cwd=cwd,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        words = " ".join(map(str, command))
        raise BuildError(f"{words}: exit {done.returncode}\n{done.stderr.strip()}")
    return done.stdout


def _site_of_suite(suite: str) -> str:
    """Find the mirror for a suite: the one this machine uses for its own suites."""
    codename = platform.freedesktop_os_release()["VERSION_CODENAME"]
    wanted = f"{codename}-security" if suite.endswith("-security") else codename
    targets = run("apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)")
    for line in targets.splitlines():
        site, _, release = line.partition(" ")
        if release == wanted:
            return site
    raise BuildError(f"apt has no source for {wanted}, so none for {suite}")


class AptRoot:
    """Package lists of other Debian suites, apart from those of the machine."""

    def __init__(self, directory: Path, suites: Iterable[str]) -> None:
        """Lay out the directory; nothing is fetched yet."""
        self._directory = directory
        (directory / "lists/partial").mkdir(parents=True, exist_ok=True)
        (directory / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
        signed_by = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
        (directory / "sources.list").write_text(
            "".join(
                f"deb {signed_by}{_site_of_suite(suite)} {suite} main\n"
                for suite in suites
            )
        )

    def _options(self) -> tuple[str, ...]:
        settings = {
            "Dir::Etc::SourceList": self._directory / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": self._directory / "lists",
            "Dir::Cache": self._directory / "cache",
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",
        }
        return tuple(f"-o{name}={value}" for name, value in settings.items())

    def update(self) -> None:
        """Fetch the package lists."""
        run("apt-get", *self._options(), "update")

    def names(self, pattern: str) -> list[str]:
        """Return the names of the packages that match a regular expression."""
        found = run(
            "apt-cache", *self._options(), "search", "--names-only", pattern
        ).splitlines()
        return [line.partition(" ")[0] for line in found]

    def versions(self, names: Collection[str]) -> set[tuple[str, str]]:
        """Return every (package, version) there is of the named packages."""
        if not names:
            return set()
        table = run("apt-cache", *self._options(), "madison", *names)
        rows = (line.split("|") for line in table.splitlines())
        return {(row[0].strip(), row[1].strip()) for row in rows}

    def download(self, package: str, version: str, directory: Path) -> Path:
        """Download one package and return its path."""
        before = set(directory.glob("*.deb"))
        words = ("apt-get", *self._options(), "download", f"{package}={version}")
        try:
            run(*words, cwd=directory)
        except BuildError as error:
            reason = str(error).splitlines()[-1]
            raise DownloadError(f"{package} {version}: {reason}") from error
        (deb,) = set(directory.glob("*.deb")) - before
        return deb

    def download_with_dependencies(
        self, packages: Iterable[str], directory: Path
    ) -> list[Path]:
        """Download packages and all they depend on, as if nothing were installed.

        :param packages: names, or NAME=VERSION
        """
        (directory / "partial").mkdir()
        nothing = directory / "status"
        nothing.touch()
        settings = (
            f"-oDir::State::Status={nothing}",
            f"-oDir::Cache::Archives={directory}",
        )
        words = ("-y", "--no-install-recommends", "--download-only", "install")
        try:
            run("apt-get", *self._options(), *settings, *words, *packages)
        except BuildError as error:
            reason = str(error).splitlines()[-1]
            raise DownloadError(f"{' '.join(packages)}: {reason}") from error
        return sorted(directory.glob("*.deb"))


def _compare_versions(one: str, other: str) -> int:
    def holds(relation: str) -> bool:
        command = ("dpkg", "--compare-versions", one, relation, other)
        return subprocess.run(command).returncode == 0

    return 1 if holds("gt") else -1 if holds("lt") else 0


def newest_first(kernels: Iterable[KernelPackages]) -> list[KernelPackages]:
    """Sort kernels by the versions of their packages."""
    by_version = functools.cmp_to_key(_compare_versions)
    return sorted(kernels, key=lambda kernel: by_version(kernel.version), reverse=True)


def _kernels_with_debug(source: KernelSource, apt: AptRoot) -> list[KernelPackages]:
    releases = {
        name: match[1]
        for name in apt.names(source.debug)
        if (match := re.search(source.debug, name))
    }
    found = []
    for debug, version in apt.versions(releases):
        release = releases[debug]
        image = tuple(name.format(release=release) for name in source.image)
        found.append(KernelPackages(release, version, debug, image))
    return found


def find_packages(source: KernelSource, apt: AptRoot) -> list[KernelPackages]:
    """Find the kernels that have both images and debug symbols, newest first."""
    kernels = _kernels_with_debug(source, apt)
    images = apt.versions({name for kernel in kernels for name in kernel.image})
    complete = [
        kernel
        for kernel in kernels
        if all((name, kernel.version) in images for name in kernel.image)
    ]
    return newest_first(complete)


def _unpack(deb: Path, directory: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """Extract the wanted files; the rest of the package never reaches the disk."""
    command = ("dpkg-deb", "--fsys-tarfile", deb)
    names = []
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as archive,
    ):
        for member in archive:
            if member.isfile() and wanted(member.name):
                archive.extract(member, directory, filter="data")
                names.append(directory / member.name)
    return names


def _modules_below(base: Path, folder: str) -> list[str]:
    files = (base / "kernel" / folder).rglob("*.ko*")
    return sorted(path.name.partition(".")[0] for path in files)


def _insmod_order(tree: Path, release: str, modules: Iterable[str]) -> list[Path]:
    """Return the files of modules and all they depend on, in loading order.

    :param modules: names; "net/sched/" are all below that folder
    """
    if not (tree / "lib").exists():
        (tree / "lib").symlink_to("usr/lib")
    base = tree / "lib/modules" / release
    run("depmod", "-b", tree, release)
    depends = {
        Path(name).name.partition(".")[0]: [*reversed(needs.split()), name]
        for name, _, needs in (
            line.partition(":")
            for line in (base / "modules.dep").read_text().splitlines()
        )
    }
    named = (
        name
        for module in modules
        for name in (_modules_below(base, module) if "/" in module else [module])
    )
    # A module the kernel has built in has no line, and needs no loading.
    order = (name for module in named for name in depends.get(module, ()))
    return [base / name for name in dict.fromkeys(order)]


def _copy_module(module: Path, directory: Path) -> str:
    """Copy a module, decompressed: the guest's insmod cannot do that."""
    content = module.read_bytes()
    if module.suffix == ".xz":
        content = lzma.decompress(content)
    name = module.name.removesuffix(".xz")
    (directory / name).write_bytes(content)
    return name


def _copy_modules(
    tree: Path, release: str, modules: Iterable[str], directory: Path
) -> list[str]:
    """Fill a new directory with modules; return their names in loading order."""
    directory.mkdir()
    return [
        _copy_module(module, directory)
        for module in _insmod_order(tree, release, modules)
    ]


def _unpack_image(
    debs: Iterable[Path], release: str, modules: Iterable[str], kernel: Path
) -> list[str]:
    """Fill in vmlinuz and guest-modules/; return the modules in loading order."""
    tree = kernel / "unpacked"
    tree.mkdir()
    for deb in debs:
        for path in _unpack(deb, tree, lambda name: True):
            # boot/vmlinuz-RELEASE up to 6.x, usr/lib/modules/RELEASE/vmlinuz later
            if path.name.startswith("vmlinuz"):
                path.rename(kernel / "vmlinuz")
    order = _copy_modules(tree, release, modules, kernel / "guest-modules")
    (kernel / "guest-modules/order").write_text("".join(f"{n}\n" for n in order))
    shutil.rmtree(tree)
    return order


def _unpack_debug(deb: Path, release: str, modules: list[str], kernel: Path) -> None:
    """Fill in vmlinux and modules/ with the debug files of the given modules."""

    def wanted(name: str) -> bool:
        last = name.rpartition("/")[2]
        return last in modules or last in ("vmlinux", f"vmlinux-{release}")

    tree = kernel / "unpacked"
    (kernel / "modules").mkdir()
    for path in _unpack(deb, tree, wanted):
        is_vmlinux = path.name.startswith("vmlinux")
        path.rename(kernel / ("vmlinux" if is_vmlinux else f"modules/{path.name}"))
    shutil.rmtree(tree)
    missing = set(modules) - {path.name for path in (kernel / "modules").iterdir()}
    if missing or not (kernel / "vmlinux").exists():
        raise BuildError(f"{deb.name} lacks vmlinux or {sorted(missing)}")


def make_capture_kernel(
    packages: KernelPackages, apt: AptRoot, modules: Iterable[str], kernel: Path
) -> None:
    """Fill an (empty) directory with vmlinuz and guest-modules/ alone."""
    with step(f"download and unpack {packages.release} to capture with"):
        debs = [apt.download(name, packages.version, kernel) for name in packages.image]
        _unpack_image(debs, packages.release, modules, kernel)
    for deb in debs:
        deb.unlink()


def make_kernel(
    packages: KernelPackages, apt: AptRoot, modules: Iterable[str], kernel: Path
) -> None:
    """Download and unpack a kernel into the (empty) directory `kernel`."""
    debs = []
    for package in (packages.debug, *packages.image):
        with step(f"download {package} {packages.version}"):
            debs.append(apt.download(package, packages.version, kernel))
    with step(f"unpack {packages.release}"):
        order = _unpack_image(debs[1:], packages.release, modules, kernel)
        _unpack_debug(debs[0], packages.release, order, kernel)
    for deb in debs:
        deb.unlink()


def make_modules(
    packages: KernelPackages, apt: AptRoot, modules: Iterable[str], directory: Path
) -> None:
    """Unpack more modules of a kernel, and what they depend on, into modules/."""
    tree = directory / "unpacked"
    tree.mkdir()
    for package in packages.image:
        with step(f"download {package} {packages.version}"):
            deb = apt.download(package, packages.version, directory)
        _unpack(deb, tree, lambda name: "/modules" in name)
        deb.unlink()
    _copy_modules(tree, packages.release, modules, directory / "modules")
    shutil.rmtree(tree)
