# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb's command line as gdb's main() reads it."""

from __future__ import annotations

import shlex

import pytest

from gdbkdump.debugger.files import CommandLine, parse_command_line


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("", CommandLine()),
        ("vmlinux vmcore", CommandLine("vmlinux", "vmcore")),
        ("-c vmcore vmlinux", CommandLine("vmlinux", "vmcore")),
        ("--core=vmcore -s vmlinux", CommandLine("vmlinux", "vmcore")),
        ("-batch -ex kps vmlinux vmcore",
         CommandLine("vmlinux", "vmcore", is_batch=True)),
        ("vmlinux one two", CommandLine("vmlinux", "one", more=("two",))),
        ("-q -i=mi2 vmlinux", CommandLine("vmlinux", interpreter="mi2")),
        ("--interpreter dap -x a/gdb-init.py",
         CommandLine(interpreter="dap", sources_us=True)),
        ("-ix gdb-init.py vmlinux", CommandLine("vmlinux")),
        ("-ex 'source gdb-init.py' vmlinux", CommandLine("vmlinux", sources_us=True)),
        ("--args program its own", CommandLine("program")),
    ],
)  # fmt: skip
def test_what_a_command_line_names(line: str, wanted: CommandLine) -> None:
    assert parse_command_line(shlex.split(line)) == wanted
