# SPDX-License-Identifier: GPL-2.0-or-later
"""Build kernels that Debian does not ship, from the source package of one it does."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packages import AptRoot, KernelPackages, KernelSource, newest_first, run
from progress import BuildError, step

# What a module of ours is built with.
_KEPT = ("arch", "include", "scripts", "tools")
_KEPT_ARCH = ("x86",)


@dataclass(frozen=True)
class BuiltSource(KernelSource):
    """A kernel to build; its image package is that of the source.

    :ivar config: what is on, all else is off
    """

    config: str


def find_source(source: BuiltSource, apt: AptRoot) -> list[KernelPackages]:
    """Find the source package; its release is to be that of the built kernel."""
    local = source.name.partition("-")[2]
    return newest_first(
        KernelPackages(f"{version.partition('-')[0]}-{local}", version, "", (name,))
        for name, version in apt.versions(source.image)
    )


def _unpack(
    source: BuiltSource, packages: KernelPackages, apt: AptRoot, at: Path
) -> Path:
    (name,) = packages.image
    with step(f"download {name} {packages.version}"):
        deb = apt.download(name, packages.version, at)
    with step(f"unpack {name}"):
        run("dpkg-deb", "-x", deb, at / "package")
        (archive,) = (at / "package/usr/src").glob("linux-source-*.tar.*")
        run("tar", "-C", at, "-xf", archive)
        deb.unlink()
        shutil.rmtree(at / "package")
    (tree,) = at.glob("linux-source-*")
    return tree.rename(at / "tree")


def _check_config(source: BuiltSource, tree: Path) -> None:
    """Check that nothing that was asked for was dropped for want of something else."""
    made = set((tree / ".config").read_text().splitlines())
    wanted = (line for line in source.config.splitlines() if line.startswith("CONFIG_"))
    if dropped := [line for line in wanted if line not in made]:
        raise BuildError(f"the kernel's configuration lacks {', '.join(dropped)}")


def _prune(tree: Path) -> None:
    for path in tree.iterdir():
        if path.is_dir() and path.name not in _KEPT:
            shutil.rmtree(path)
    for path in (tree / "arch").iterdir():
        if path.is_dir() and path.name not in _KEPT_ARCH:
            shutil.rmtree(path)
    for pattern in ("*.o", "*.a", "*.cmd", "vmlinux*"):
        for path in tree.rglob(pattern):
            path.unlink()


def make_built_kernel(
    source: BuiltSource, packages: KernelPackages, apt: AptRoot, kernel: Path
) -> None:
    """Build a kernel into the (empty) directory `kernel`.

    Leaves vmlinuz, vmlinux, no modules, and in tree/ what building a module takes.
    """
    tree = _unpack(source, packages, apt, kernel)
    config = kernel / "config"
    config.write_text(source.config)
    local = packages.release.partition("-")[2]
    make = ("make", "-C", tree, f"-j{os.cpu_count() or 1}", f"LOCALVERSION=-{local}")
    with step(f"build kernel {packages.release}"):
        run(*make, "allnoconfig", environment={"KCONFIG_ALLCONFIG": str(config)})
        _check_config(source, tree)
        run(*make, "bzImage", "modules_prepare")
    (tree / "arch/x86/boot/bzImage").rename(kernel / "vmlinuz")
    (tree / "vmlinux").rename(kernel / "vmlinux")
    _prune(tree)
    for name in ("modules", "guest-modules"):
        (kernel / name).mkdir()
    (kernel / "guest-modules/order").touch()


def build_module_in(tree: Path, sources: Iterable[Path], directory: Path) -> None:
    """Build a module from its sources and Kbuild file; leave its .ko in `directory`."""
    work = directory / "build"
    work.mkdir()
    for source in sources:
        shutil.copy(source, work)
    run("make", "-C", tree, f"M={work}", "modules")
    for module in work.glob("*.ko"):
        module.rename(directory / module.name)
    shutil.rmtree(work)
