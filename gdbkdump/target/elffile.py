# SPDX-License-Identifier: GPL-2.0-or-later
"""Small ELF files for gdb: sections, and nothing that would be loaded."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

PROGBITS, SYMTAB, STRTAB, NOBITS = 1, 2, 3, 8
ALLOC, EXECINSTR, WRITE = 2, 4, 1
_ET_EXEC, _EM_X86_64 = 2, 62
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_ALIGN = 8


class Section(NamedTuple):
    """A section.

    :param size: of one that has no contents (NOBITS)
    """

    name: str
    type: int
    data: bytes = b""
    flags: int = 0
    address: int = 0
    size: int = 0
    link: int = 0
    info: int = 0
    entry_size: int = 0
    align: int = 1


def elf_file(sections: Sequence[Section]) -> bytes:
    """Return an executable of x86-64 with these sections, the first being number 1."""
    names = b"\0"
    all_sections = [Section("", 0), *sections, Section(".shstrtab", STRTAB)]
    parts: list[bytes] = []
    headers = []
    offset = _EHDR.size
    for number, section in enumerate(all_sections):
        at_name = len(names) if number else 0
        names += section.name.encode() + b"\0" if number else b""
        data = section.data if number < len(all_sections) - 1 else names
        offset += _pad(parts, offset)
        headers.append(
            _SHDR.pack(
                at_name, section.type, section.flags, section.address,
                offset if number else 0, section.size or len(data), section.link,
                section.info, section.align if number else 0, section.entry_size,
            )
        )  # fmt: skip
        parts.append(data)
        offset += len(data)
    offset += _pad(parts, offset)
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    header = _EHDR.pack(ident, _ET_EXEC, _EM_X86_64, 1, 0, 0, offset, 0, _EHDR.size, 0,
                        0, _SHDR.size, len(headers), len(headers) - 1)  # fmt: skip
    return b"".join([header, *parts, *headers])


def _pad(parts: list[bytes], offset: int) -> int:
    size = -offset % _ALIGN
    parts.append(bytes(size))
    return size
