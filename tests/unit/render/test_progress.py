# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress: nothing for short work, a line for long work, nothing left behind."""

from __future__ import annotations

import pytest

from gdbkdump.render import progress
from gdbkdump.render.progress import Progress


@pytest.fixture
def shown(monkeypatch):
    """A clock that the test moves, and what was written."""
    written = []
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    return Progress(written.append), clock, written


def test_short_work_shows_nothing(shown):
    report, clock, written = shown
    for done in range(5):
        report("searching", done, 4)
        clock[0] += 0.4
    assert written == []


def test_long_work_is_shown_now_and_then_and_cleared(shown):
    report, clock, written = shown
    for done in range(32):
        report("searching", done, 32)
        clock[0] += 0.125
    assert written[:2] == ["\rsearching: 50%", "\rsearching: 56%"]
    assert len(written) <= 11
    report("searching", 32, 32)
    assert written[-2:] == ["\r" + " " * len("searching: 50%"), "\r"]
    # The next work begins anew.
    count = len(written)
    report("unwinding", 1, 2)
    assert len(written) == count


def test_a_shorter_line_covers_the_longer(shown):
    report, clock, written = shown
    for what in ("searching all", "unwinding"):
        report(what, 0, 2)
        clock[0] += 2.5
        report(what, 1, 2)
    assert written == ["\rsearching all: 50%", "\runwinding: 50%    "]
