# SPDX-License-Identifier: GPL-2.0-or-later
"""A small Debian with gdb and Python, and our program, as images of ext4 disks.

Nothing is installed and nothing mounted: packages are unpacked as they are, and what
their scripts would do is not needed to run gdb.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from packages import AptRoot, run
from progress import BuildError, step

_ROOT = Path(__file__).resolve().parent.parent
_LIBRARIES = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
# Where file systems are mounted; the image is read-only.
_MOUNT_POINTS = ("code", "dev", "proc", "tmp")
_UNUSED = ("usr/share/doc", "usr/share/man", "usr/share/locale")


def make_image(image: Path, mebibytes: int, content: Path | None = None) -> None:
    """Make a sparse ext4 image, with a directory's content if one is given."""
    options = ("-q", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0")
    source = ("-d", content) if content else ()
    image.touch(mode=0o600)
    run("mke2fs", *options, *source, image, f"{mebibytes}M")


def take_file(image: Path, name: str, target: Path) -> None:
    """Copy a file out of an ext4 image, pages of zeros as holes."""
    target.touch(mode=0o600)
    # debugfs tells errors on standard error, and exits with 0 all the same.
    run("debugfs", "-R", f"dump {name} {target}", image)
    if not target.stat().st_size:
        raise BuildError(f"the guest did not save {name}")
    dig_holes(target)


def dig_holes(file: Path) -> None:
    """Make holes of a file's pages of zeros."""
    run("fallocate", "--dig-holes", file)


def _compile(tree: Path, directory: Path, at: str) -> None:
    """Compile what is in a directory by the tree's Python.

    :param at: where the directory is to be found in the guest
    """
    libraries = ":".join(str(tree / name) for name in _LIBRARIES)
    run(
        *(tree / "lib64/ld-linux-x86-64.so.2", "--library-path", libraries),
        *(tree / "usr/bin/python3", "-m", "compileall", "-q"),
        *("--invalidation-mode", "unchecked-hash", "-s", directory, "-p", at),
        directory,
        environment={"PYTHONHOME": str(tree / "usr"), "PYTHONPATH": ""},
    )


def make_debian(apt: AptRoot, packages: Iterable[str], directory: Path) -> None:
    """Fill an (empty) directory with tree/ and its image, debian.img."""
    debs, tree = directory / "debs", directory / "tree"
    debs.mkdir()
    with step(f"download {' '.join(packages)} and what they depend on"):
        archives = apt.download_with_dependencies(packages, debs)
    with step("unpack them and make an image"):
        for deb in archives:
            run("dpkg-deb", "-x", deb, tree)
        shutil.rmtree(debs)
        for name in _UNUSED:
            shutil.rmtree(tree / name, ignore_errors=True)
        for name in _MOUNT_POINTS:
            (tree / name).mkdir(exist_ok=True)
        for library in (tree / "usr/lib").glob("python3*"):
            _compile(tree, library, f"/usr/lib/{library.name}")
        make_image(directory / "debian.img", 512, tree)


def code_files() -> list[Path]:
    """Return the files of our program, in a fixed order."""
    package = sorted((_ROOT / "gdbkdump").rglob("*.py"))
    return [*package, _ROOT / "gdb-init.py"]


def make_code_image(debian: Path, scripts: Iterable[Path], code: Path) -> Path:
    """Copy our program as it is now into a new directory, and make an image of that.

    :param debian: made by make_debian
    :param scripts: what else is to be there
    """
    for path in code_files():
        target = code / path.relative_to(_ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for script in scripts:
        shutil.copy(script, code)
    _compile(debian / "tree", code, "/code")
    image = code.with_suffix(".img")
    make_image(image, 24, code)
    return image
