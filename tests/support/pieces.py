# SPDX-License-Identifier: GPL-2.0-or-later
"""A writer of ELF vmcores in many pieces, out of one in few.

Memory that follows in the one file is apart in the other: first come the pieces of even
numbers, then the others. So nobody can take two of them for one.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_PHDR = struct.Struct("<IIQQQQQQ")
_EHDR_SIZE, _SHDR_SIZE = 64, 64
_PT_LOAD = 1
_PN_XNUM = 0xFFFF
_PAGE, _SECTOR = 4096, 512


class _Piece(NamedTuple):
    flags: int
    offset: int
    vaddr: int
    paddr: int
    size: int
    memory_size: int


def write_pieces(source: Path, target: Path, count: int) -> int:
    """Write a vmcore whose memory is in ``count`` PT_LOADs or a few more.

    They end with pages, if there are as many pages, else with sectors.

    :param source: an ELF vmcore with one PT_NOTE
    :return: how many there are
    """
    with source.open("rb") as file, target.open("wb") as out:
        head = bytearray(file.read(_EHDR_SIZE))
        others, loads = _segments(file, head)
        pieces = list(_cut(loads, count))
        at = _EHDR_SIZE + _SHDR_SIZE
        end = at + _PHDR.size * (len(others) + len(pieces))
        table: list[bytes] = []
        for type_, flags, offset, vaddr, paddr, size, *rest in others:
            table.append(_PHDR.pack(type_, flags, end, vaddr, paddr, size, *rest))
            end = _copy(file, offset, size, out, end)
        places = {}
        for piece in (*pieces[::2], *pieces[1::2]):
            places[piece] = end
            end = _copy(file, piece.offset, piece.size, out, end)
        for piece in pieces:
            flags, _, *rest = piece
            table.append(_PHDR.pack(_PT_LOAD, flags, places[piece], *rest, 0))
        out.truncate(end)
        _write_headers(out, head, table)
    return len(pieces)


def _segments(
    file: BinaryIO, head: bytearray
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    (start,), (count,) = (
        struct.unpack_from(form, head, at) for form, at in (("<Q", 32), ("<H", 56))
    )
    file.seek(start)
    rows = list(_PHDR.iter_unpack(file.read(_PHDR.size * count)))
    loads = [row for row in rows if row[0] == _PT_LOAD]
    return [row for row in rows if row[0] != _PT_LOAD], loads


def _cut(loads: Iterable[tuple[int, ...]], count: int) -> Iterator[_Piece]:
    loads = list(loads)
    total = sum(row[5] for row in loads)
    grain = _PAGE if count * _PAGE <= total else _SECTOR
    done = number = 0
    for _, flags, offset, vaddr, paddr, size, memory_size, _ in loads:
        start = 0
        while start < size:
            number = max(number + 1, -(-(done + start) * count // total))
            end = number * total // count - done
            end = min(size, max(start + grain, end // grain * grain))
            last = memory_size if end == size else end
            places = (offset + start, vaddr + start, paddr + start)
            yield _Piece(flags, *places, end - start, last - start)
            start = end
        if not size:
            yield _Piece(flags, offset, vaddr, paddr, 0, memory_size)
        done += size


def _copy(file: BinaryIO, offset: int, size: int, out: BinaryIO, at: int) -> int:
    file.seek(offset)
    data = file.read(size)
    # Zeros need no place on the disk.
    if data.count(0) < len(data):
        out.seek(at)
        out.write(data)
    return at + size


def _write_headers(out: BinaryIO, head: bytearray, table: list[bytes]) -> None:
    # Section header 0 holds the number in sh_info where e_phnum is PN_XNUM.
    many = len(table) >= _PN_XNUM
    struct.pack_into("<QQ", head, 32, _EHDR_SIZE + _SHDR_SIZE, _EHDR_SIZE * many)
    numbers = (min(len(table), _PN_XNUM), _SHDR_SIZE * many, int(many), 0)
    struct.pack_into("<4H", head, 56, *numbers)
    section = struct.pack("<IIQQQQIIQQ", *[0] * 7, len(table) * many, 0, 0)
    out.seek(0)
    out.write(head + section + b"".join(table))
