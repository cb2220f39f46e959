# SPDX-License-Identifier: GPL-2.0-or-later
"""Arguments and locals of a task's frames, as gdb's DWARF has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdbkdump.session import FrameVariables

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_FRAMES = 1024
# A kernel struct printed whole is no local any more but a page.
_MAX_ELEMENTS, _MAX_DEPTH = 64, 1


def frame_variables() -> Iterator[FrameVariables]:
    """Yield what is known in each frame of the selected thread, innermost first."""
    try:
        frame: gdb.Frame | None = gdb.newest_frame()
        for _ in range(_MAX_FRAMES):
            if frame is None:
                return
            yield _variables(frame)
            frame = frame.older()
    except gdb.error:
        return  # where gdb cannot unwind there are no variables to show


def _variables(frame: gdb.Frame) -> FrameVariables:
    arguments: list[tuple[str, str]] = []
    variables: list[tuple[str, str]] = []
    seen: set[str] = set()
    for symbol in _symbols(frame):
        # An inner block's variable hides an outer one of its name.
        if symbol.name not in seen:
            seen.add(symbol.name)
            chosen = arguments if symbol.is_argument else variables
            chosen.append((symbol.name, _value(frame, symbol)))
    return FrameVariables(
        frame.pc(),
        frame.name() or "",
        frame.type() == gdb.INLINE_FRAME,
        arguments,
        variables,
    )


def _symbols(frame: gdb.Frame) -> Iterator[gdb.Symbol]:
    try:
        block: gdb.Block | None = frame.block()
    except RuntimeError:
        return  # no debug information there
    while block is not None and not block.is_static and not block.is_global:
        for symbol in block:
            if symbol.is_argument or symbol.is_variable:
                yield symbol
        if block.function:
            return
        block = block.superblock


def _value(frame: gdb.Frame, symbol: gdb.Symbol) -> str:
    try:
        value = symbol.value(frame)
        return value.format_string(max_elements=_MAX_ELEMENTS, max_depth=_MAX_DEPTH)
    except (gdb.error, RuntimeError) as error:
        return f"<{error}>"
