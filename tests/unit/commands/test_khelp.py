# SPDX-License-Identifier: GPL-2.0-or-later
"""khelp lists what is registered and explains one command."""

from __future__ import annotations

from typing import Any, cast

from gdbkdump.commands import command_names, find_command
from gdbkdump.render import text

NO_SESSION = cast("Any", None)


def khelp(*words):
    command = find_command("khelp")
    return list(text.lines(command.run(NO_SESSION, command.parse(words))))


def test_it_lists_every_command():
    assert {line.split()[0] for line in khelp()[1:]} == set(command_names())


def test_it_explains_one():
    assert khelp("kps")[0] == "List tasks."
    assert any(line.strip().startswith("-m ") for line in khelp("kps"))
    assert "In crash: ps" in khelp("kps")
