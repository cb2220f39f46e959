# SPDX-License-Identifier: GPL-2.0-or-later
"""kset: the context is chosen by task or CPU, and stays."""

from __future__ import annotations

import pytest

from gdbkdump.commands import find_command
from gdbkdump.errors import CommandError
from gdbkdump.session import open_session


@pytest.fixture
def own_session(dump_dir):
    session = open_session(dump_dir / "vmcore")
    yield session
    session.close()


def kset(session, *words):
    command = find_command("kset")
    return command.run(session, command.parse(words)).fields


def test_the_context(own_session):
    first = kset(own_session)
    assert first["COMMAND"].data == b"wl-crash"
    assert kset(own_session, "wl-fifo")["COMMAND"].data == b"wl-fifo"
    assert kset(own_session)["COMMAND"].data == b"wl-fifo"
    assert kset(own_session, "-c", str(first["CPU"])) == first
    assert kset(own_session, "1")["PID"] == 1
    assert kset(own_session, "-p") == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no-such-task"], "no task 'no-such-task'"),
        (["-c", "999"], "no CPU 999"),
        (["-c", "0", "1"], "one of them"),
        (["/kworker/"], "names"),
    ],
)
def test_wrong_use_says_what_is_wrong(own_session, words, message):
    with pytest.raises(CommandError, match=message):
        kset(own_session, *words)
