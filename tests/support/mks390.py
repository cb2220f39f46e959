# SPDX-License-Identifier: GPL-2.0-or-later
"""A writer of s390 stand-alone dumps, of the layout that zipl's dump tools write.

No such machine is at hand, so this is written from the layout as the s390-tools, crash
and libkdumpfile know it: a big-endian header, memory as it was, an end mark.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MAGIC, _VERSION, _HEADER_SIZE, _PAGE = 0xA8190173618F23FD, 5, 4096, 4096
_HEADER = struct.Struct(">QIIIIQQQI4xQQIIIQBHH")
_LEVEL_ALL, _ARCH_64 = 4, 2
_TIME = 0xDDDD_0000_0000_0000


def write_s390(path: Path, memory: bytes) -> Path:
    """Write a dump of memory from physical address 0 on."""
    header = _HEADER.pack(
        _MAGIC, _VERSION, _HEADER_SIZE, _LEVEL_ALL, _PAGE, len(memory), 0, len(memory),
        len(memory) // _PAGE, _TIME, 0, _ARCH_64, 0, _ARCH_64, len(memory), 0, 2, 2,
    )  # fmt: skip
    end = b"DUMP_END" + struct.pack(">Q", _TIME)
    path.write_bytes(header.ljust(_HEADER_SIZE, b"\0") + memory + end)
    return path
