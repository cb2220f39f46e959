# SPDX-License-Identifier: GPL-2.0-or-later
"""The PT_NOTE walk, bounded by the bytes at hand (``include/uapi/linux/elf.h``)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from gdbkdump.formats.base import Note

if TYPE_CHECKING:
    from collections.abc import Iterator

NT_PRSTATUS = 1
NT_PRPSINFO = 3
NT_AUXV = 6
_HEADER = struct.Struct("<III")
# A CPU has one note, so this is beyond every machine; it bounds a corrupt file.
MAX_NOTES = 65536


def parse_notes(data: bytes, problems: list[str]) -> Iterator[Note]:
    """Yield the notes in ``data``; what is cut or absurd is said in ``problems``.

    A description that runs past the end is yielded as far as it goes: half of a
    VMCOREINFO is still of use.
    """
    position = 0
    for _ in range(MAX_NOTES):
        if position + _HEADER.size > len(data):
            return
        name_size, desc_size, type_ = _HEADER.unpack_from(data, position)
        if not name_size and not desc_size:
            # The kernel leaves the room of CPUs that did not answer as zeros.
            position += _HEADER.size
            continue
        start = position + _HEADER.size
        desc = start + ((name_size + 3) & ~3)
        end = desc + desc_size
        if end > len(data):
            problems.append(f"note at {position:#x} of PT_NOTE is cut or corrupt")
        if desc > len(data):
            return
        name = data[start : start + name_size].rstrip(b"\0")
        yield Note(name, type_, data[desc:end], end > len(data))
        position = desc + ((desc_size + 3) & ~3)
    problems.append(f"more than {MAX_NOTES} notes: the rest is ignored")
