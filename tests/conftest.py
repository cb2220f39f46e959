# SPDX-License-Identifier: GPL-2.0-or-later
"""Options and fixtures of all tiers: dumps, an open session, the guest's truth."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gdbkdump.commands import find_command
from gdbkdump.render import json_text, text
from gdbkdump.session import Session, open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--dump",
        action="append",
        default=[],
        help="a dump's directory (test-kernels/build.py prints it), or its name in the"
        " cache; default: all of the cache",
    )


def _cached_dumps() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "gdbkdump" / "dumps"


def _dump_directories(config: pytest.Config, group: str) -> list[Path]:
    found = _asked_directories(config.getoption("--dump"))
    return [directory for directory in found if _group_of(directory) == group]


def _group_of(directory: Path) -> str:
    info = directory / "info.json"
    # A dump that test-kernels did not make has no such file.
    told = json.loads(info.read_text()) if info.exists() else {}
    return str(told.get("group", "workload"))


def _asked_directories(asked: list[str]) -> list[Path]:
    if not asked:
        return sorted(p.parent for p in _cached_dumps().glob("*/info.json"))
    found = [Path(d) if Path(d).is_dir() else _cached_dumps() / d for d in asked]
    for directory in found:
        if not (directory / "vmcore").exists():
            raise pytest.UsageError(f"--dump {directory}: no vmcore there")
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # One parameter for the whole session, so that each dump is opened once.
    for fixture, group in (
        ("dump_dir", "workload"),
        ("crash_dir", "crash"),
        ("hypervisor_dir", "hypervisor"),
        ("process_dir", "process"),
        ("route_dir", "route"),
    ):
        if fixture not in metafunc.fixturenames:
            continue
        directories = _dump_directories(metafunc.config, group)
        metafunc.parametrize(
            fixture,
            directories,
            ids=[directory.name for directory in directories],
            scope="session",
            indirect=True,
        )


@pytest.fixture(scope="session")
def dump_dir(request: pytest.FixtureRequest) -> Path:
    """Directory of a dump: vmcore, vmlinux, truth.json, info.json, modules/."""
    directory: Path = request.param
    return directory


@pytest.fixture(scope="session")
def crash_dir(request: pytest.FixtureRequest) -> Path:
    """Directory of a dump whose panicking stack is known, without the workload."""
    directory: Path = request.param
    return directory


@pytest.fixture(scope="session")
def route_dir(request: pytest.FixtureRequest) -> Path:
    """Directory of what came out of one crash by routes that kdump knows."""
    directory: Path = request.param
    return directory


@pytest.fixture(scope="session")
def hypervisor_dir(request: pytest.FixtureRequest) -> Path:
    """Directory of dumps that the hypervisor made of one guest at one moment."""
    directory: Path = request.param
    return directory


@pytest.fixture(scope="session")
def process_dir(request: pytest.FixtureRequest) -> Path:
    """Directory of a dump with one process to look into."""
    directory: Path = request.param
    return directory


@pytest.fixture(scope="session")
def session(dump_dir: Path) -> Iterator[Session]:
    """The dump, opened by the engine alone."""
    opened = open_session(dump_dir / "vmcore")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def truth(dump_dir: Path) -> dict[str, Any]:
    """What the guest saw of itself just before the crash."""
    data: dict[str, Any] = json.loads((dump_dir / "truth.json").read_text())
    return data


@pytest.fixture(scope="session")
def run(session: Session) -> Callable[..., list[dict[str, Any]]]:
    """Run a command; its JSON objects are returned."""

    def run_command(name: str, *words: str) -> list[dict[str, Any]]:
        item = find_command(name)
        result = item.run(session, item.parse(words))
        return [json.loads(line) for line in json_text.lines(result)]

    return run_command


@pytest.fixture(scope="session")
def run_text(session: Session) -> Callable[..., list[str]]:
    """Run a command; its lines of text are returned."""

    def run_command(name: str, *words: str) -> list[str]:
        item = find_command(name)
        return list(text.lines(item.run(session, item.parse(words))))

    return run_command
