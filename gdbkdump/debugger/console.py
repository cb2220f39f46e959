# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb's console: output in large pieces, colour where it is seen, progress."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

import gdb

from gdbkdump.render.escape import escape

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# gdb.write() costs 30 us whatever the length, so lines are gathered.
_PIECE = 64 << 10
_LATEST_S = 0.1


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Answer gdb's questions ("Discard symbol table?") with yes meanwhile."""
    confirm = gdb.parameter("confirm")
    gdb.execute("set confirm off")
    try:
        yield
    finally:
        gdb.execute(f"set confirm {'on' if confirm else 'off'}")


def write_lines(lines: Iterable[str]) -> None:
    """Write lines as they come: many at once, none kept back for long."""
    piece: list[str] = []
    size, last = 0, time.monotonic()
    for line in lines:
        piece.append(line)
        size += len(line)
        if size > _PIECE or time.monotonic() - last > _LATEST_S:
            _write("\n".join(piece) + "\n")
            piece.clear()
            size, last = 0, time.monotonic()
    if piece:
        _write("\n".join(piece) + "\n")


def _write(text: str) -> None:
    # gdb takes text in the locale's encoding; what that cannot say is escaped.
    try:
        gdb.write(text)
    except UnicodeEncodeError:
        gdb.write(text.encode("ascii", "backslashreplace").decode("ascii"))


def write_error(text: str) -> None:
    """Write one line to standard error; control characters come escaped."""
    gdb.flush()
    gdb.write(f"gdbkdump: {escape(text)}\n", gdb.STDERR)
    gdb.flush(gdb.STDERR)


def is_terminal() -> bool:
    """Tell whether output goes to a terminal, not into ``pipe`` or a string."""
    # In both, and in batch mode, gdb takes the width for unlimited.
    return os.isatty(1) and bool(gdb.parameter("width"))


def wants_colour() -> bool:
    """Tell whether output should be coloured, as gdb's own output is."""
    if "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb":
        return False
    return bool(gdb.parameter("style enabled")) and is_terminal()


class Progress:
    """Shows on a terminal how far work of more than two seconds has come."""

    def __init__(self) -> None:
        """Begin now."""
        self._began: dict[str, float] = {}
        self._shown = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Say how far ``what`` is; done == total ends it."""
        now = time.monotonic()
        began = self._began.setdefault(what, now)
        if now - began < 2 or now - self._shown < 0.2 or not os.isatty(2):
            return
        self._shown = now
        text = "" if done >= total else f"{what}: {done * 100 // max(1, total)}%"
        gdb.write(f"\r\x1b[K{text}", gdb.STDERR)
        gdb.flush(gdb.STDERR)
