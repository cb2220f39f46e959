# SPDX-License-Identifier: GPL-2.0-or-later
"""The direction of dependencies, and what each command must declare."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from gdbkdump.commands import all_commands, command_names

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "gdbkdump"

# Room: what it may import besides itself and errors (docs/design.md has the picture).
MAY_IMPORT = {
    "errors": set(),
    "formats": {"arch"},
    "arch": {"formats"},
    "render": set(),
    "memory": {"formats", "arch"},
    "debuginfo": {"memory", "formats"},
    "kernel": {"memory", "debuginfo", "arch", "formats"},
    "unwind": {"kernel", "memory", "debuginfo", "arch"},
    "commands": {
        "session",
        "target",
        "kernel",
        "unwind",
        "memory",
        "debuginfo",
        "render",
        "arch",
    },
    "target": {"kernel", "unwind", "debuginfo", "memory", "formats", "arch"},
    "vmlinux": {"session", "kernel", "formats"},
    "recordedtypes": {"debuginfo", "kernel", "target", "vmlinux"},
    "modulefiles": {"session", "kernel", "vmlinux"},
    "session": {"formats", "arch", "memory", "debuginfo", "kernel", "target"},
    "cli": {
        "session",
        "formats",
        "commands",
        "render",
        "vmlinux",
        "recordedtypes",
        "debuginfo",
        "kernel",
        "serve",
    },
    "serve": {"formats", "render"},
    "__main__": {"cli"},
    "__init__": set(),
}


def _imports(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "gdbkdump":
                names = [f"gdbkdump.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("gdbkdump.")}
        rooms |= {name for name in names if name == "gdb" or name.startswith("gdb.")}
    return rooms - {"__version__"}


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_table(path: Path) -> None:
    room = _room(path)
    if room == "debugger":
        return
    assert _imports(path) - {room, "errors"} <= MAY_IMPORT[room]


@pytest.mark.parametrize("name", command_names())
def test_a_command_is_one_file_with_help_and_test(name: str) -> None:
    (command,) = [item for item in all_commands() if item.name == name]
    assert command.summary.endswith(".")
    assert command.function.__name__ == name
    assert all(
        example.removeprefix("pipe ").startswith("k") for example in command.examples
    )
    help_text = command.help_text()
    assert all(len(line) < 80 for line in help_text.splitlines())
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert f"test_{name}.py" in tests


@pytest.mark.parametrize("name", command_names())
def test_examples_parse(name: str) -> None:
    (command,) = [item for item in all_commands() if item.name == name]
    for example in command.examples:
        words = example.removeprefix("pipe ").partition(" | ")[0].split()
        assert words[0] == name
        command.parse([word.strip("'") for word in words[1:]])
