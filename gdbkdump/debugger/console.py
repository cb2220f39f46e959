# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb's console: output in large pieces, colour where it is seen, progress."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import gdb

from gdbkdump.render.escape import escape
from gdbkdump.render.pieces import pieces
from gdbkdump.render.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Answer gdb's questions ("Discard symbol table?") with yes meanwhile."""
    confirm = gdb.parameter("confirm")
    gdb.execute("set confirm off")
    try:
        yield
    finally:
        gdb.execute(f"set confirm {'on' if confirm else 'off'}")


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Let nothing reach standard output meanwhile.

    gdb announces a stop past every way that it has to catch what a command prints.
    """
    gdb.flush()
    kept = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.dup2(null, 1)
        yield
    finally:
        gdb.flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)


def write_lines(lines: Iterable[str]) -> None:
    """Write lines as they come: gdb.write() costs 30 us whatever the length."""
    for piece in pieces(lines):
        _write(piece)


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


def progress() -> Progress:
    """Return what shows on a terminal how far long work has come."""
    return Progress(_show)


def _show(text: str) -> None:
    if os.isatty(2):
        gdb.write(text, gdb.STDERR)
        gdb.flush(gdb.STDERR)
