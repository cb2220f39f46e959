# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines put together, for output that costs the same whatever its length."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SIZE = 64 << 10
_LATEST_S = 0.1


def pieces(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines with their newlines, many at once, none kept back for long."""
    piece: list[str] = []
    size, last = 0, time.monotonic()
    for line in lines:
        piece.append(line)
        size += len(line)
        if size > _SIZE or time.monotonic() - last > _LATEST_S:
            yield "\n".join(piece) + "\n"
            piece.clear()
            size, last = 0, time.monotonic()
    if piece:
        yield "\n".join(piece) + "\n"
