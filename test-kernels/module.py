# SPDX-License-Identifier: GPL-2.0-or-later
"""Build a module of ours against Debian's headers, without installing them.

With the headers apt finds all they need, from the same suite: the kernel's own
compiler, binutils, pahole, and their C library, which may be newer than ours. So
programs are unpacked beside the headers and run with the loader and the libraries
that came with them.
"""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from packages import AptRoot, KernelPackages, run
from progress import step

# Some suites have the C library below /lib, others below /usr/lib.
_LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
_WRAPPER = """\
#!/bin/sh
here="${{0%/*}}"
exec "$here/{loader}" --library-path "{libraries}" "$here/{program}" "$@"
"""


def _is_program(path: Path) -> bool:
    """Tell whether a file is a program that names its loader, as all but static do."""
    if path.is_symlink() or not path.is_file() or ".so" in path.name:
        return False
    with path.open("rb") as file:
        start = file.read(4096)
    return start.startswith(b"\x7fELF") and b"/ld-linux" in start


def _wrap(program: Path, tree: Path) -> None:
    """Put a script in place of a program, which runs it with the tree's libraries."""
    real = program.with_name(f"{program.name}.elf")
    program.rename(real)
    loader = next(
        tree / directory / "ld-linux-x86-64.so.2"
        for directory in _LIBRARIES
        if (tree / directory / "ld-linux-x86-64.so.2").exists()
    )
    libraries = (os.path.relpath(tree / name, program.parent) for name in _LIBRARIES)
    program.write_text(
        _WRAPPER.format(
            loader=os.path.relpath(loader, program.parent),
            libraries=":".join(f"$here/{path}" for path in libraries),
            program=real.name,
        )
    )
    program.chmod(0o755)
    # Debian's modpost and objtool start the program of their own name and ".real-...".
    name, dot, variant = program.name.partition(".real-")
    if dot:
        program.with_name(f"{name}.elf.real-{variant}").symlink_to(program.name)


def make_headers(packages: KernelPackages, apt: AptRoot, tree: Path) -> None:
    """Download and unpack a kernel's headers and tools into an (empty) directory."""
    package = f"linux-headers-{packages.release}"
    debs = tree / "debs"
    debs.mkdir()
    with step(f"download {package} {packages.version} and a compiler"):
        wanted = f"{package}={packages.version}"
        archives = apt.download_with_dependencies([wanted], debs)
    with step(f"unpack {package}"):
        for deb in archives:
            run("dpkg-deb", "-x", deb, tree)
        shutil.rmtree(debs)
        shutil.rmtree(tree / "usr/share")
        programs = [path for path in (tree / "usr").rglob("*") if _is_program(path)]
        for program in programs:
            _wrap(program, tree)


def build_module(
    tree: Path, release: str, sources: Iterable[Path], directory: Path
) -> None:
    """Build a module from its sources and Kbuild file; leave its .ko in `directory`.

    :param tree: made by make_headers
    """
    headers = tree / "usr/src"
    build = headers / f"linux-headers-{release}"
    common = headers / f"linux-headers-{release.removesuffix('-cloud-amd64')}-common"
    work = directory / "build"
    work.mkdir()
    for source in sources:
        shutil.copy(source, work)
    programs = tree / "usr/bin"
    make = ("make", "-C", build, "-f", common / "Makefile", f"KBUILD_OUTPUT={build}")
    run(
        *(*make, f"M={work}", "modules"),
        environment={"PATH": f"{programs}:{os.environ['PATH']}"},
    )
    for module in work.glob("*.ko"):
        module.rename(directory / module.name)
    shutil.rmtree(work)
