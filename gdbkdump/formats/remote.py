# SPDX-License-Identifier: GPL-2.0-or-later
"""A dump that is elsewhere: ``remote:HOST:PORT`` or ``remote:unix:PATH``.

``gdbkdump serve`` has the file; what is read of it crosses the connection in blocks,
more of them at once where reading goes straight on, and is kept.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from gdbkdump.errors import FaultError, FormatError
from gdbkdump.formats import wire
from gdbkdump.formats.base import silent
from gdbkdump.formats.pagecache import DEFAULT_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gdbkdump.formats.base import Extent, Note, Report
    from gdbkdump.formats.wire import Piece

PREFIX = "remote:"
TOKEN_VARIABLE = "GDBKDUMP_TOKEN"
TOKEN_FILE_VARIABLE = "GDBKDUMP_TOKEN_FILE"
_CONNECT_TIMEOUT_S = 20
# A megabyte from a disk that has to start first does not take so long.
_REPLY_TIMEOUT_S = 60
_BLOCK_SHIFT = 16
_BLOCK = 1 << _BLOCK_SHIFT
# What one request may ask for has to have room.
_MIN_BLOCKS = 2 * wire.MAX_READ >> _BLOCK_SHIFT
# So many blocks at most are read ahead.
_MAX_AHEAD = 16
_PHYS_LIMIT = 1 << 52

Address = tuple[str, int] | str


def parse_address(text: str) -> Address:
    """Return where ``HOST:PORT`` or ``unix:PATH`` is; a string is a path.

    :raise FormatError: it is neither
    """
    if text.startswith("unix:") and len(text) > 5:
        return text.removeprefix("unix:")
    host, colon, port = text.rpartition(":")
    # The decimal digits of other scripts are none of a port's.
    if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise FormatError(f"{text!r} is neither HOST:PORT nor unix:PATH")
    return host.strip("[]"), int(port)


def host_and_port(host: str, port: int) -> str:
    """Return what parse_address() takes apart."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def needs_token(path: Path) -> bool:
    """Tell whether a server that such a path names asks for a token."""
    return not isinstance(_address_of(path), str)


def _address_of(path: Path) -> Address:
    return parse_address(str(path).removeprefix(PREFIX))


def read_token() -> str | None:
    """Return the token of the environment, or of the file that it names.

    :raise FormatError: there is no such file
    """
    token = os.environ.get(TOKEN_VARIABLE)
    named = os.environ.get(TOKEN_FILE_VARIABLE)
    if token or not named:
        return token
    try:
        return Path(named).read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        raise FormatError(f"cannot read the token in {named}") from None


class Connection:
    """Requests to a server; a connection that is lost is made again once."""

    def __init__(self, address: Address, token: str | None) -> None:
        """Connect.

        :raise FormatError: that is not possible, or the token is wrong
        """
        self._address = address
        self._token = token
        self._socket: socket.socket | None = None
        self._pid = 0
        self._connected()

    def __str__(self) -> str:
        """Return where it leads, for a person."""
        address = self._address
        return address if isinstance(address, str) else host_and_port(*address)

    def request(self, what: int, paddr: int, size: int, limit: int) -> bytes:
        """Return what the server replies.

        :param limit: bytes that the reply may have
        :raise FormatError: it says that it failed, or cannot be reached any more
        """
        try:
            return self._request(what, paddr, size, limit)
        except OSError:
            self.close()
        try:
            return self._request(what, paddr, size, limit)
        except OSError as error:
            raise FormatError(f"the connection to {self} is lost: {error}") from None

    def _request(self, what: int, paddr: int, size: int, limit: int) -> bytes:
        connection = self._connected()
        # Whatever ends it too early, Ctrl-C for one, leaves half a reply behind.
        self._socket = None
        connection.sendall(wire.REQUEST.pack(what, size, paddr))
        failed, length = wire.REPLY.unpack(wire.receive(connection, wire.REPLY.size))
        if length > limit:
            raise FormatError(f"{self} replies with {length} bytes: it is no server")
        reply = wire.receive(connection, length)
        self._socket = connection
        if failed:
            raise FormatError(f"{self}: {reply[:200].decode(errors='replace')}")
        return reply

    def _connected(self) -> socket.socket:
        # A child of the process that connected needs a connection of its own.
        if self._socket is None or self._pid != os.getpid():
            self._socket = self._connect()
            self._pid = os.getpid()
        return self._socket

    def _connect(self) -> socket.socket:
        try:
            if isinstance(self._address, str):
                connection = socket.socket(socket.AF_UNIX)
                connection.settimeout(_CONNECT_TIMEOUT_S)
                connection.connect(self._address)
            else:
                connection = socket.create_connection(self._address, _CONNECT_TIMEOUT_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._introduce(connection)
        except OSError as error:
            raise FormatError(f"cannot reach {self}: {error}") from None
        connection.settimeout(_REPLY_TIMEOUT_S)
        return connection

    def _introduce(self, connection: socket.socket) -> None:
        hello = wire.receive(connection, wire.HELLO.size)
        magic, version, needs_token, challenge = wire.HELLO.unpack(hello)
        if magic != wire.MAGIC:
            raise FormatError(f"{self} is not a gdbkdump server")
        if version != wire.VERSION:
            raise FormatError(
                f"{self} runs another version of gdbkdump serve ({version},"
                f" here {wire.VERSION})"
            )
        if needs_token and not self._token:
            raise FormatError(
                f"{self} wants a token: set {TOKEN_VARIABLE} to the one that gdbkdump"
                " serve printed"
            )
        connection.sendall(wire.prove(self._token or "", challenge))
        if wire.receive(connection, 1) != wire.ACCEPTED:
            raise FormatError(f"{self} refuses the token")

    def close(self) -> None:
        """Give the connection back."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class RemoteDump:
    """A dump behind a connection."""

    is_flat = False

    def __init__(
        self, path: Path, report: Report = silent, cache_bytes: int = DEFAULT_BYTES
    ) -> None:
        """Connect, and ask what is there.

        :param path: ``remote:`` and where the server is
        :raise FormatError: there is none, or it does not let us in
        """
        self.path = path
        self.paths: Sequence[Path] = [path]
        self._connection = Connection(_address_of(path), read_token())
        report("asking the server", 0, 1)
        told = wire.unpack_description(
            self._connection.request(wire.DESCRIBE, 0, 0, wire.MAX_DESCRIPTION)
        )
        report("asking the server", 1, 1)
        self.format = f"remote {told.format}"
        self.machine = told.machine
        self.is_incomplete = told.is_incomplete
        self.problems = told.problems
        self.missing = told.missing
        self.excluded = told.excluded
        self.notes: Sequence[Note] = told.notes
        self.extents: Sequence[Extent] = told.extents
        self.saving = told.saving
        self._blocks: dict[int, bytes | list[Piece]] = {}
        self._max_blocks = max(_MIN_BLOCKS, cache_bytes >> _BLOCK_SHIFT)
        self._next = -1
        self._ahead = 1

    def read_phys(self, paddr: int, size: int) -> bytes:
        """Return ``size`` bytes of physical memory.

        :raise FaultError: not all of them can be had
        """
        number = paddr >> _BLOCK_SHIFT
        at = paddr & (_BLOCK - 1)
        block = self._blocks.get(number)
        if isinstance(block, bytes) and at + size <= _BLOCK:
            return block[at : at + size]
        return b"".join(self._pieces(paddr, size))

    def _pieces(self, paddr: int, size: int) -> list[bytes]:
        found = []
        end = paddr + size
        while paddr < end:
            number = paddr >> _BLOCK_SHIFT
            block = self._block(number, ((end - 1) >> _BLOCK_SHIFT) + 1)
            stop = min(end, (number + 1) << _BLOCK_SHIFT)
            found.append(_part(block, number << _BLOCK_SHIFT, paddr, stop))
            paddr = stop
        return found

    def _block(self, number: int, wanted: int) -> bytes | list[Piece]:
        # ``wanted`` is the block up to which reading is known to go on.
        block = self._blocks.get(number)
        if block is None:
            goes_on = number == self._next
            self._ahead = min(self._ahead * 2, _MAX_AHEAD) if goes_on else 1
            count = max(self._ahead, wanted - number)
            self._fetch(number, min(count, wire.MAX_READ >> _BLOCK_SHIFT))
            block = self._blocks[number]
        return block

    def _fetch(self, number: int, count: int) -> None:
        paddr, size = number << _BLOCK_SHIFT, count << _BLOCK_SHIFT
        self._next = number + count
        if len(self._blocks) + count > self._max_blocks:
            # The oldest, by when they came: a pass over all memory drops all anyway.
            for old in list(self._blocks)[: count + self._max_blocks // 4]:
                del self._blocks[old]
        reply = self._connection.request(wire.READ, paddr, size, 2 * size + 4096)
        for piece in wire.unpack_pieces(reply, paddr, size):
            self._keep(piece)

    def _keep(self, piece: Piece) -> None:
        # Cut at the blocks' borders; a block that is whole is kept as its bytes.
        start = piece.start
        while start < piece.end:
            number = start >> _BLOCK_SHIFT
            end = min(piece.end, (number + 1) << _BLOCK_SHIFT)
            data = piece.data[start - piece.start : end - piece.start]
            if piece.reason is None and len(data) == _BLOCK:
                self._blocks[number] = data
            else:
                block = self._blocks.get(number)
                if not isinstance(block, list) or start == number << _BLOCK_SHIFT:
                    block = self._blocks[number] = []
                block.append(piece._replace(start=start, end=end, data=data))
            start = end

    def file_range(self, paddr: int) -> tuple[int, int] | None:
        """Return None: the file is not here."""
        return None

    def close(self) -> None:
        """Give the connection back."""
        self._connection.close()


def _part(block: bytes | list[Piece], base: int, start: int, end: int) -> bytes:
    if isinstance(block, bytes):
        return block[start - base : end - base]
    found = []
    for piece in block:
        if piece.end <= start or piece.start >= end:
            continue
        if piece.reason is not None:
            raise FaultError("physical", max(start, piece.start), piece.reason)
        low, high = max(start, piece.start), min(end, piece.end)
        found.append(piece.data[low - piece.start : high - piece.start])
    return b"".join(found)
