# SPDX-License-Identifier: GPL-2.0-or-later
"""How ``gdbkdump serve`` and ``remote:`` talk: who asks, what for, what comes back.

The server says hello with a random challenge; the client proves with it that it knows
the token, which itself is never sent. Then each request gets one reply. All numbers are
little-endian.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from base64 import b64decode, b64encode
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, NamedTuple

from gdbkdump.errors import FaultError, FaultReason, FormatError
from gdbkdump.formats.base import Extent, Note, Saving

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from gdbkdump.formats.base import DumpFile

MAGIC = b"gdbkdump"
VERSION = 1
# Magic, version, whether a token is needed, challenge.
HELLO = struct.Struct("<8sII32s")
PROOF_SIZE = 32
ACCEPTED, REFUSED = b"\1", b"\0"
# What is wanted, bytes, physical address.
REQUEST = struct.Struct("<IIQ")
DESCRIBE, READ = 1, 2
# Whether it failed (then its text is why), bytes that follow.
REPLY = struct.Struct("<IQ")
MAX_READ = 4 << 20
MAX_DESCRIPTION = 256 << 20
# What READ returns: pieces of memory, each with its kind and size; kind 0 is followed
# by the bytes, the others say why there are none.
_PIECE = struct.Struct("<II")
_REASONS = (None, *FaultReason)
_PAGE = 4096


class Piece(NamedTuple):
    """Some bytes of memory, or why they cannot be had."""

    start: int
    end: int
    data: bytes
    reason: FaultReason | None


def prove(token: str, challenge: bytes) -> bytes:
    """Return what only one who knows the token can make of a challenge."""
    return hmac.digest(token.encode(), challenge, hashlib.sha256)


def receive(connection: socket.socket, size: int) -> bytes:
    """Return exactly ``size`` bytes.

    :raise ConnectionError: the other end has closed the connection
    """
    buffer = bytearray()
    while len(buffer) < size:
        data = connection.recv(min(size - len(buffer), 1 << 20))
        if not data:
            raise ConnectionResetError("it was closed")
        buffer += data
    return bytes(buffer)


class PiecePacker:
    """Reads memory of a dump as READ returns it, with all that can be had of it."""

    def __init__(self, dump: DumpFile) -> None:
        """Look where memory begins or ends within a page; mostly nowhere."""
        self._dump = dump
        borders = {border for extent in dump.extents for border in _borders(extent)}
        self._odd = sorted(border for border in borders if border % _PAGE)

    def pack(self, paddr: int, size: int) -> bytes:
        """Return ``size`` bytes of physical memory, in pieces."""
        packed = bytearray()
        for piece in self._pieces(paddr, paddr + size):
            kind = _REASONS.index(piece.reason)
            packed += _PIECE.pack(kind, piece.end - piece.start) + piece.data
        return bytes(packed)

    def _pieces(self, at: int, end: int) -> Iterator[Piece]:
        read = self._dump.read_phys
        while at < end:
            try:
                yield Piece(at, end, read(at, end - at), None)
            except FaultError as fault:
                if at < fault.address < end:
                    yield Piece(at, fault.address, read(at, fault.address - at), None)
                    at = fault.address
                after = min(self._next_border(at), end)
                yield Piece(at, after, b"", fault.reason)
                at = after
            else:
                return

    def _next_border(self, at: int) -> int:
        # Where it may be otherwise again: at the next page, mostly.
        after = (at // _PAGE + 1) * _PAGE
        i = bisect_right(self._odd, at)
        return min(self._odd[i], after) if i < len(self._odd) else after


def _borders(extent: Extent) -> tuple[int, ...]:
    there = extent.paddr + extent.file_size
    return extent.paddr, there, there + extent.missing, extent.paddr + extent.size


def unpack_pieces(packed: bytes, paddr: int, size: int) -> list[Piece]:
    """Return what READ returned.

    :raise FormatError: it is not that
    """
    pieces: list[Piece] = []
    at, position = paddr, 0
    while at < paddr + size:
        if position + _PIECE.size > len(packed):
            raise FormatError("the server sent less than was asked for")
        kind, length = _PIECE.unpack_from(packed, position)
        position += _PIECE.size
        if kind >= len(_REASONS) or not 0 < length <= paddr + size - at:
            raise FormatError("the server sent what was not asked for")
        data = packed[position : position + length] if kind == 0 else b""
        position += len(data)
        if kind == 0 and len(data) < length:
            raise FormatError("the server sent less than was asked for")
        pieces.append(Piece(at, at + length, data, _REASONS[kind]))
        at += length
    return pieces


def pack_description(dump: DumpFile) -> bytes:
    """Return all that a client needs to know of a dump but its memory."""
    return json.dumps(
        {
            "path": str(dump.path),
            "format": dump.format,
            "machine": dump.machine,
            "is_incomplete": dump.is_incomplete,
            "problems": dump.problems,
            "missing": dump.missing,
            "excluded": dump.excluded,
            "notes": [
                [_text(note.name), note.type, _text(note.desc), note.is_cut]
                for note in dump.notes
            ],
            "extents": [
                [e.vaddr, e.paddr, e.size, e.file_size, e.missing] for e in dump.extents
            ],
            "saving": [
                dump.saving.version,
                dump.saving.dump_level,
                list(dump.saving.compression),
                list(map(_text, dump.saving.utsname)),
                list(map(_text, dump.saving.erased)),
            ],
        }
    ).encode()


def _text(data: bytes) -> str:
    return b64encode(data).decode()


class Description(NamedTuple):
    """What ``pack_description()`` packs; see ``DumpFile``."""

    path: str
    format: str
    machine: int
    is_incomplete: bool
    problems: list[str]
    missing: int
    excluded: int
    notes: list[Note]
    extents: list[Extent]
    saving: Saving


def unpack_description(packed: bytes) -> Description:
    """Return a description.

    :raise FormatError: it is none
    """
    try:
        return _unpack_description(json.loads(packed))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError("the server does not describe a dump") from None


def _unpack_description(told: dict[str, Any]) -> Description:
    version, dump_level, compression, utsname, erased = told["saving"]
    return Description(
        path=str(told["path"]),
        format=str(told["format"]),
        machine=int(told["machine"]),
        is_incomplete=bool(told["is_incomplete"]),
        problems=[str(line) for line in told["problems"]],
        missing=int(told["missing"]),
        excluded=int(told["excluded"]),
        notes=[
            Note(b64decode(name), int(type_), b64decode(desc), bool(is_cut))
            for name, type_, desc, is_cut in told["notes"]
        ],
        extents=[
            Extent(
                None if vaddr is None else int(vaddr),
                int(paddr), int(size), int(file_size), 0, int(missing),
            )
            for vaddr, paddr, size, file_size, missing in told["extents"]
        ],
        saving=Saving(
            None if version is None else int(version),
            None if dump_level is None else int(dump_level),
            tuple(map(str, compression)),
            tuple(map(b64decode, utsname)),
            tuple(map(b64decode, erased)),
        ),
    )  # fmt: skip
