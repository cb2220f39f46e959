# SPDX-License-Identifier: GPL-2.0-or-later
"""drgn as a second opinion on a real dump: its own formats, DWARF and helpers."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path


# One at a time: the tests go through the dumps one after the other.
@lru_cache(maxsize=1)
def open_drgn(directory: Path) -> Any:
    """Return drgn's program of a dump with its vmlinux; skip where there is no drgn."""
    drgn = pytest.importorskip("drgn")
    program = drgn.Program()
    program.set_core_dump(str(directory / "vmcore"))
    program.load_debug_info([str(directory / "vmlinux")])
    return program
