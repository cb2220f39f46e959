# SPDX-License-Identifier: GPL-2.0-or-later
"""How far long work has come, in one line that goes away."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_PATIENCE_S = 2.0
_INTERVAL_S = 0.2


class Progress:
    """Shows work of more than two seconds on a terminal.

    A line is cleared by spaces: the TUI of gdb 18 shows an escape sequence for that.

    :param write: writes to that terminal, at once
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        """Show nothing yet."""
        self._write = write
        self._began: dict[str, float] = {}
        self._shown = 0.0
        self._line = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Say how far ``what`` is; done == total ends it."""
        now = time.monotonic()
        began = self._began.setdefault(what, now)
        if done >= total:
            del self._began[what]
            if self._shown:
                self._shown = 0.0
                self._show("")
                self._write("\r")
        elif now - began >= _PATIENCE_S and now - self._shown >= _INTERVAL_S:
            self._shown = now
            self._show(f"{what}: {done * 100 // max(1, total)}%")

    def _show(self, line: str) -> None:
        self._write(f"\r{line.ljust(len(self._line))}")
        self._line = line
