# SPDX-License-Identifier: GPL-2.0-or-later
"""What this machine needs before dumps can be made, opened and tested.

Debian packages, and a virtual environment for the tools; used by run-demo, run-tests
and .ci/run.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from build import DEBIAN_PACKAGES
from progress import BuildError, log, step

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gdbkdump"

# gdb's own Python takes its packages from Debian, not from a virtual environment.
GDB_PACKAGES = (
    "gdb",
    "python3-lzo",
    "python3-pyelftools",
    "python3-pygments",
    "python3-snappy",
    "python3-tabulate",
    "python3-zstandard",
)
# libkdumpfile reads formats that we leave to it; its bindings are for Debian's Python.
TEST_PACKAGES = (
    "makedumpfile",
    "python3-libkdumpfile",
    "python3-pip",
    "python3-venv",
    "tmux",
)


def _is_installed(package: str) -> bool:
    query = ("dpkg-query", "-W", "-f", "${Status}", package)
    status = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    return status == "install ok installed"


def need_packages(packages: Iterable[str]) -> None:
    """Install what is missing of these Debian packages; says what first.

    :raise BuildError: it cannot be done
    """
    missing = [package for package in packages if not _is_installed(package)]
    if not missing:
        return
    log(f"to be installed with apt-get: {' '.join(missing)}")
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    if sudo and not shutil.which("sudo"):
        raise BuildError(f"as root, run: apt-get install {' '.join(missing)}")
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    for command in (
        ["apt-get", "-q", "update"],
        ["apt-get", "-q", "install", "-y", "--no-install-recommends", *missing],
    ):
        with step(" ".join(command[:3])):
            done = subprocess.run(
                [*sudo, *command],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            raise BuildError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def need_all(*, tests: bool) -> None:
    """Install what dumps and gdb need, and the tests if asked."""
    need_packages((*DEBIAN_PACKAGES, *GDB_PACKAGES, *(TEST_PACKAGES if tests else ())))


def _requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    return [*project["dependencies"], *optional["codecs"], *optional["dev"]]


def venv() -> Path:
    """Return the python of a virtual environment with what pyproject.toml asks for."""
    return _make_venv(_requirements()) / "bin/python"


def newest_gdb() -> Path:
    """Return a gdb newer than Debian's, out of a wheel that carries one."""
    return _make_venv(["gdb-for-pwndbg>=18"]) / "bin/gdb"


def _make_venv(needed: list[str]) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    key = hashlib.sha256(repr((sorted(needed), version)).encode()).hexdigest()[:12]
    directory = CACHE / "venv" / key
    if not (directory / "complete").exists():
        shutil.rmtree(directory, ignore_errors=True)
        names = " ".join(re.split(r"[<>=~; ]", name)[0] for name in needed)
        with step(f"install into a virtual environment: {names}"):
            _run([sys.executable, "-m", "venv", str(directory)])
            _run([str(directory / "bin/pip"), "install", "-q", *needed])
        (directory / "complete").touch()
    return directory


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def make_variants(dumps: Iterable[Path]) -> None:
    """Make the dumps in other formats too, with what pyproject.toml asks for.

    :raise BuildError: one cannot be made
    """
    command = [str(venv()), str(ROOT / "test-kernels/variants.py"), *map(str, dumps)]
    if subprocess.run(command, check=False).returncode:
        raise BuildError("the dumps could not be made in other formats")


def make_dumps(names: Iterable[str]) -> list[Path]:
    """Return the directories of these dumps, made if need be.

    :raise BuildError: one cannot be made
    """
    command = [sys.executable, str(ROOT / "test-kernels/build.py"), *names]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise BuildError("the dumps could not be made")
    # By the names that build.py publishes them under, which tests know them by.
    stores = [Path(line).name for line in done.stdout.splitlines()]
    return [CACHE / "dumps" / store.rpartition("-")[0] for store in stores]
