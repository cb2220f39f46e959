# SPDX-License-Identifier: GPL-2.0-or-later
"""A writer of ELF vmcores, and of the kernel tables that they hold.

Everything that a reader trusts can be given wrong here: header fields, sizes, notes,
page-table entries; and a file can be cut anywhere.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from support.fakes import DictMemory

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
PT_LOAD, PT_NOTE = 1, 4
PRESENT, RW, PSE, NX = 1, 2, 0x80, 1 << 63


@dataclass
class Segment:
    """A PT_LOAD; with ``size`` beyond the data's the rest is a hole.

    :param file_size: what the header says instead of the truth
    """

    paddr: int
    data: bytes
    vaddr: int = 0
    size: int | None = None
    file_size: int | None = None
    offset: int | None = None


def note(name: bytes, type_: int, desc: bytes) -> bytes:
    """Return an ELF note."""
    owner = name + b"\0"
    head = struct.pack("<III", len(owner), len(desc), type_)
    return head + _padded(owner, 4) + _padded(desc, 4)


def vmcoreinfo(**values: object) -> bytes:
    """Return the text of a VMCOREINFO; ``SYMBOL_x`` stands for ``SYMBOL(x)``."""
    lines = []
    for key, value in values.items():
        kind, _, name = key.partition("_")
        if name and kind in ("SYMBOL", "NUMBER", "SIZE", "OFFSET", "LENGTH"):
            key = f"{kind}({name})"
        text = f"{value:x}" if kind == "SYMBOL" else str(value)
        lines.append(f"{key}={text}\n")
    return "".join(lines).encode()


@dataclass
class ElfCore:
    """An ELF core in the making; fields that a test does not set are right.

    :param xnum: put the number of program headers into section header 0
    """

    segments: list[Segment] = field(default_factory=list)
    notes: bytes = b""
    machine: int = 62
    type: int = 4
    ident: bytes = b"\x7fELF\x02\x01\x01" + bytes(9)
    phentsize: int = PHDR.size
    phnum: int | None = None
    phoff: int = 64
    xnum: int | None = None
    notes_size: int | None = None

    def build(self) -> bytes:
        """Return the bytes of the file."""
        count = len(self.segments) + bool(self.notes)
        at = _align(64 + 64 * (self.xnum is not None) + count * PHDR.size, 16)
        if self.xnum is not None:
            self.phoff = 128
        headers: list[bytes] = []
        body: list[bytes] = []
        end = at
        if self.notes:
            size = len(self.notes) if self.notes_size is None else self.notes_size
            headers.append(PHDR.pack(PT_NOTE, 0, at, 0, 0, size, size, 0))
            body.append(_padded(self.notes, 16))
            end += len(body[-1])
        for segment in self.segments:
            offset = end if segment.offset is None else segment.offset
            headers.append(_load(segment, offset))
            body.append(_padded(segment.data, 16))
            end += len(body[-1])
        head = self._header(count)
        if self.xnum is not None:
            # sh_info of section 0 holds the number where e_phnum is PN_XNUM.
            head += bytes(44) + struct.pack("<I", self.xnum) + bytes(16)
        return (head + b"".join(headers)).ljust(at, b"\0") + b"".join(body)

    def _header(self, count: int) -> bytes:
        phnum = count if self.phnum is None else self.phnum
        shoff = 64 if self.xnum is not None else 0
        if self.xnum is not None:
            phnum = 0xFFFF
        return EHDR.pack(
            self.ident, self.type, self.machine, 1, 0, self.phoff, shoff, 0, 64,
            self.phentsize, phnum, 64, 0, 0,
        )  # fmt: skip

    def write(self, path: Path, size: int | None = None) -> Path:
        """Write the file, or its first ``size`` bytes."""
        path.write_bytes(self.build()[:size])
        return path


def _load(segment: Segment, offset: int) -> bytes:
    file_size = len(segment.data) if segment.file_size is None else segment.file_size
    size = file_size if segment.size is None else segment.size
    return PHDR.pack(
        PT_LOAD, 7, offset, segment.vaddr, segment.paddr, file_size, size, 0
    )


def _align(number: int, to: int) -> int:
    return (number + to - 1) // to * to


def _padded(data: bytes, to: int) -> bytes:
    return data.ljust(_align(len(data), to), b"\0")


class PageTables:
    """Page tables in physical memory, built leaf by leaf.

    :param start: physical address of the root; further tables follow it
    """

    def __init__(
        self, memory: DictMemory, start: int, levels: int = 4, mask: int = 0
    ) -> None:
        self.memory = memory
        self.root = start
        self.levels = levels
        self.mask = mask  # an encryption bit, set in every entry
        self._next = start + 4096
        memory.put(start, bytes(4096))

    def map(self, vaddr: int, paddr: int, *, level: int = 1, flags: int = RW) -> int:
        """Map a page of 4 KiB, 2 MiB (level 2) or 1 GiB (level 3).

        :return: physical address of the entry
        """
        table = self.root
        for here in range(self.levels, level, -1):
            entry = self.slot(table, vaddr, here)
            value = int.from_bytes(self.memory.read(entry, 8), "little")
            if not value & PRESENT:
                value = self._next | PRESENT | RW | self.mask
                self.memory.put(self._next, bytes(4096))
                self.memory.words(entry, value)
                self._next += 4096
            table = value & 0x000FFFFFFFFFF000 & ~self.mask
        entry = self.slot(table, vaddr, level)
        size_flag = PSE if level > 1 else 0
        self.memory.words(entry, paddr | PRESENT | flags | size_flag | self.mask)
        return entry

    def slot(self, table: int, vaddr: int, level: int) -> int:
        """Return where a table has its entry for an address."""
        return table + (vaddr >> (3 + 9 * level) & 511) * 8


class BtfWriter:
    """BTF, type by type; each method returns the id of what it adds."""

    def __init__(self, first_id: int = 1, first_string: int = 0) -> None:
        self._words: list[int] = []
        self._strings = b"\0"
        self._base = first_string
        self._id = first_id

    def string(self, text: str) -> int:
        """Add a string, unless it is there."""
        if not text:
            return 0
        key = text.encode() + b"\0"
        at = self._strings.find(b"\0" + key) + 1
        if not at:
            at = len(self._strings)
            self._strings += key
        return self._base + at

    def add(
        self, kind: int, name: str, size: int, body: Sequence[int], count: int = 0,
        flag: bool = False,
    ) -> int:  # fmt: skip
        """Add a type of any kind."""
        info = kind << 24 | count | (0x80000000 if flag else 0)
        self._words += [self.string(name), info, size, *body]
        self._id += 1
        return self._id - 1

    def integer(self, name: str, size: int, encoding: int = 0) -> int:
        """Add an integer; encoding 1 is signed, 4 is bool."""
        return self.add(1, name, size, [encoding << 24 | size * 8])

    def pointer(self, target: int) -> int:
        """Add a pointer."""
        return self.add(2, "", target, [])

    def array(self, element: int, count: int) -> int:
        """Add an array."""
        return self.add(3, "", 0, [element, 0, count])

    def struct(
        self, name: str, size: int, members: Sequence[tuple[str, int, int]],
        *, union: bool = False, bits: Mapping[str, int] | None = None,
    ) -> int:  # fmt: skip
        """Add a struct of (name, type, bit offset); ``bits`` are bit field sizes."""
        body = []
        for name_, type_, offset in members:
            word = offset | (bits or {}).get(name_, 0) << 24
            body += [self.string(name_), type_, word]
        kind = 5 if union else 4
        return self.add(kind, name, size, body, len(members), bool(bits))

    def enum(self, name: str, **values: int) -> int:
        """Add an enum."""
        body = []
        for each, value in values.items():
            body += [self.string(each), value & 0xFFFFFFFF]
        return self.add(6, name, 4, body, len(values))

    def typedef(self, name: str, target: int) -> int:
        """Add a typedef."""
        return self.add(8, name, target, [])

    def build(self) -> bytes:
        """Return the section."""
        types = struct.pack(f"<{len(self._words)}I", *self._words)
        head = struct.pack(
            "<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(self._strings)
        )
        return head + types + self._strings


@dataclass
class KallsymsTables:
    """The tables of kallsyms as bytes at an address, and where each of them is."""

    data: bytes
    at: dict[str, int]


def kallsyms_tables(
    start: int, symbols: Sequence[tuple[str, int, str]], base: int, *, new: bool = False
) -> KallsymsTables:
    """Write kallsyms as ``scripts/kallsyms.c`` does, one token a character.

    :param symbols: (name, address, type letter), by address; below ``base`` absolute
    :param new: the order of the tables since 6.4
    """
    names, markers = _names(symbols)
    index = struct.pack("<256H", *range(0, 512, 2))
    # Token 0 never occurs in a name, and one byte more would not keep the rhythm.
    tokens = b"".join(bytes([max(1, code)]) + b"\0" for code in range(256))
    offsets = [a if a < base else base - 1 - a for _, a, _ in symbols]
    order = sorted(range(len(symbols)), key=lambda i: (symbols[i][0].encode(), i))
    tables = {
        "offsets": struct.pack(f"<{len(offsets)}i", *offsets),
        "relative_base": struct.pack("<Q", base),
        "num_syms": struct.pack("<I", len(symbols)),
        "names": names,
        "markers": struct.pack(f"<{len(markers)}I", *markers),
        "seqs": b"".join(i.to_bytes(3, "big") for i in order),
        "token_table": tokens,
        "token_index": index,
    }
    sequence = list(tables)
    if new:
        sequence = [
            "num_syms", "names", "markers", "token_table", "token_index", "offsets",
            "relative_base", "seqs",
        ]  # fmt: skip
    data, at = b"", {}
    for name in sequence:
        at[name] = start + len(data)
        data += _padded(tables[name], 8)
    return KallsymsTables(data, at)


def _names(symbols: Sequence[tuple[str, int, str]]) -> tuple[bytes, list[int]]:
    names, markers = b"", []
    for i, (name, _, letter) in enumerate(symbols):
        if i % 256 == 0:
            markers.append(len(names))
        text = (letter + name).encode()
        length = bytes([len(text)])
        if len(text) > 127:
            # Since 6.1: ULEB128 of two bytes.
            length = bytes([len(text) & 0x7F | 0x80, len(text) >> 7])
        names += length + text
    return names, markers
