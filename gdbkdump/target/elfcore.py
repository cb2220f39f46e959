# SPDX-License-Identifier: GPL-2.0-or-later
"""ELF core files: header, program headers, notes (``fs/binfmt_elf.c``)."""

from __future__ import annotations

import struct
from typing import NamedTuple

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_NOTE = struct.Struct("<III")
_ET_CORE, _PT_LOAD, _PT_NOTE = 4, 1, 4
_PN_XNUM = 0xFFFF
NT_FPREGSET, NT_PRPSINFO, NT_AUXV = 2, 3, 6
NT_FILE, NT_X86_XSTATE = 0x46494C45, 0x202


class Load(NamedTuple):
    """A PT_LOAD: ``flags`` are PF_X 1, PF_W 2, PF_R 4."""

    vaddr: int
    size: int
    flags: int
    offset: int
    file_size: int


def note(type_: int, desc: bytes, name: bytes = b"CORE") -> bytes:
    """Return an ELF note."""
    owner = name + b"\0"
    parts = _NOTE.pack(len(owner), len(desc), type_), owner, desc
    return b"".join(part + bytes(-len(part) % 4) for part in parts)


def headers_size(nr_loads: int) -> int:
    """Return the bytes of the headers in front of the notes."""
    extended = _SHDR.size if nr_loads + 1 >= _PN_XNUM else 0
    return _EHDR.size + extended + (nr_loads + 1) * _PHDR.size


def headers(machine: int, notes_size: int, loads: list[Load]) -> bytes:
    """Return ELF header and program headers; the notes follow them at once."""
    count = len(loads) + 1
    is_extended = count >= _PN_XNUM
    section = b""
    if is_extended:
        # More than e_phnum holds: the number is in section header 0 (sh_info).
        section = _SHDR.pack(0, 0, 0, 0, 0, 0, 0, count, 0, 0)
    phoff = _EHDR.size + len(section)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head = _EHDR.pack(
        ident, _ET_CORE, machine, 1, 0, phoff, _EHDR.size if is_extended else 0, 0,
        _EHDR.size, _PHDR.size, _PN_XNUM if is_extended else count,
        _SHDR.size if is_extended else 0, int(is_extended), 0,
    )  # fmt: skip
    start = headers_size(len(loads))
    table = [_PHDR.pack(_PT_NOTE, 0, start, 0, 0, notes_size, notes_size, 4)]
    table += [
        _PHDR.pack(_PT_LOAD, each.flags, each.offset, each.vaddr, 0, each.file_size,
                   each.size, 4096)
        for each in loads
    ]  # fmt: skip
    return b"".join((head, section, *table))
