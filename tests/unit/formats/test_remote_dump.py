# SPDX-License-Identifier: GPL-2.0-or-later
"""A dump behind a connection: all of it, who gets it, and peers that lie."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.mkdump import ElfCore, Segment, note

from gdbkdump.errors import FaultError, FaultReason, FormatError
from gdbkdump.formats import open_dump, wire
from gdbkdump.formats.remote import Connection, RemoteDump, parse_address
from gdbkdump.serve import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK = 1 << 16
CHANCE = random.Random(7)
FIRST = CHANCE.randbytes(300_000)
SECOND = CHANCE.randbytes(5000)
PLACE = 0x100000
# Ends within a page; what follows begins within one.
SEGMENTS = [
    Segment(PLACE, FIRST, vaddr=0xFFFF888000100000, size=400_000),
    Segment(PLACE + 500_123, SECOND),
]


class Listener:
    """What ``gdbkdump serve`` does, in threads of the test."""

    def __init__(self, path: Path, serve: Callable[[socket.socket], None]) -> None:
        self.served = 0
        self._serve = serve
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen(8)
        self.name = Path(f"remote:unix:{path}")
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.served += 1
            threading.Thread(target=self._client, args=[connection]).start()

    def _client(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._serve(connection)
            except OSError:
                return

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    core = ElfCore(SEGMENTS, notes=note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\n"))
    found = tmp_path / "vmcore"
    found.write_bytes(core.build())
    return found


@pytest.fixture
def listener(path: Path, tmp_path: Path) -> Iterator[Listener]:
    dump = open_dump(path)
    found = Listener(tmp_path / "socket", Server(dump, None).serve)
    yield found
    found.close()
    dump.close()


def test_what_is_told_of_the_dump_is_the_same(path: Path, listener: Listener) -> None:
    here, there = open_dump(path), open_dump(listener.name)
    assert there.notes == here.notes
    wanted = [(e.vaddr, e.paddr, e.size, e.file_size, e.missing) for e in here.extents]
    assert len(wanted) == 2
    assert [
        (e.vaddr, e.paddr, e.size, e.file_size, e.missing) for e in there.extents
    ] == wanted
    for name in ("machine", "problems", "missing", "excluded", "saving",
                 "is_incomplete"):  # fmt: skip
        assert getattr(there, name) == getattr(here, name), name
    assert there.format == "remote ELF vmcore"
    assert not there.is_flat
    assert there.file_range(PLACE) is None


def answer(read: Callable[[int, int], bytes], paddr: int, size: int) -> object:
    try:
        return read(paddr, size)
    except FaultError as fault:
        return fault.address, fault.reason


def test_every_read_is_as_it_is_there(path: Path, listener: Listener) -> None:
    here, there = open_dump(path), open_dump(listener.name)
    chance = random.Random(1)
    end = PLACE + 500_123 + len(SECOND)
    faults: set[object] = set()
    for _ in range(3000):
        paddr = chance.randrange(PLACE - 5000, end + 5000)
        size = chance.choice([1, 8, 200, 4096, 5000, 70_000, 200_000])
        wanted = answer(here.read_phys, paddr, size)
        assert answer(there.read_phys, paddr, size) == wanted, (hex(paddr), size)
        if isinstance(wanted, tuple):
            faults.add(wanted[1])
    assert faults == {FaultReason.HOLE, FaultReason.EXCLUDED}


def test_blocks_are_kept_and_read_ahead(path: Path, tmp_path: Path) -> None:
    requests = []
    server = Server(open_dump(path), None)
    ask = server._answer

    def note_request(what: int, size: int, paddr: int) -> bytes:
        requests.append((size, paddr))
        return ask(what, size, paddr)

    server._answer = note_request  # type: ignore[method-assign]
    listener = Listener(tmp_path / "other", server.serve)
    dump = RemoteDump(listener.name)
    requests.clear()
    for at in range(0, len(FIRST) - 8, 1000):
        assert dump.read_phys(PLACE + at, 8) == FIRST[at : at + 8]
    # One block, then two, then four.
    assert requests == [
        (n * BLOCK, PLACE + k * BLOCK) for n, k in ((1, 0), (2, 1), (4, 3))
    ]
    dump.read_phys(PLACE, len(FIRST))
    assert len(requests) == 3
    listener.close()


def test_memory_of_the_client_is_bounded(listener: Listener) -> None:
    dump = RemoteDump(listener.name)
    for number in range(3000):
        with pytest.raises(FaultError):
            dump.read_phys((1 << 40) + number * 2 * BLOCK, 8)
    assert len(dump._blocks) <= 1024
    small = RemoteDump(listener.name, cache_bytes=0)
    for number in range(0, 3000, 10):
        answer(small.read_phys, number * BLOCK, 8)
    assert len(small._blocks) <= 128
    # More at once than may be kept is read all the same.
    data = small.read_phys(PLACE, len(FIRST))
    assert data == FIRST
    assert dump.read_phys(PLACE, 8) == FIRST[:8]


def test_a_lost_connection_is_made_again(listener: Listener) -> None:
    dump = RemoteDump(listener.name)
    dump._connection._socket.shutdown(socket.SHUT_RDWR)
    assert dump.read_phys(PLACE, 8) == FIRST[:8]
    assert listener.served == 2
    listener.close()
    dump._connection._socket.shutdown(socket.SHUT_RDWR)
    Path(str(dump.path).removeprefix("remote:unix:")).unlink()
    with pytest.raises(FormatError, match=r"cannot reach .*No such file"):
        dump.read_phys(PLACE + 200_000, 8)


def test_a_token_is_asked_for(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener(tmp_path / "t", Server(open_dump(path), "secret").serve)
    for token, message in ((None, "wants a token"), ("wrong", "refuses the token")):
        monkeypatch.setenv("GDBKDUMP_TOKEN", token or "")
        with pytest.raises(FormatError, match=message):
            open_dump(listener.name)
    monkeypatch.setenv("GDBKDUMP_TOKEN", "secret")
    assert open_dump(listener.name).read_phys(PLACE, 4) == FIRST[:4]
    monkeypatch.delenv("GDBKDUMP_TOKEN")
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv("GDBKDUMP_TOKEN_FILE", str(tmp_path / "token"))
    assert open_dump(listener.name).read_phys(PLACE, 4) == FIRST[:4]
    monkeypatch.setenv("GDBKDUMP_TOKEN_FILE", str(tmp_path / "none"))
    with pytest.raises(FormatError, match="cannot read the token"):
        open_dump(listener.name)
    listener.close()


def talk(listener: Listener, *messages: bytes) -> bytes:
    """What the server says to a client that is none of ours."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(listener.name).removeprefix("remote:unix:"))
        hello = wire.receive(client, wire.HELLO.size)
        assert hello.startswith(b"gdbkdump")
        client.sendall(b"".join(messages))
        client.shutdown(socket.SHUT_WR)
        return _all_of(client)


def _all_of(client: socket.socket) -> bytes:
    # A server that closes with something unread resets the connection.
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := client.recv(65536):
            received += data
    return received


def test_what_no_client_of_ours_asks_for(listener: Listener) -> None:
    proof = bytes(32)
    for what, size, paddr in ((9, 0, 0), (wire.READ, 1 << 31, PLACE),
                              (wire.READ, 4096, (1 << 64) - 1)):  # fmt: skip
        reply = talk(listener, proof, wire.REQUEST.pack(what, size, paddr))
        failed, length = wire.REPLY.unpack_from(reply, 1)
        assert (failed, length) == (1, len(reply) - 1 - wire.REPLY.size)
    # It still serves those that come after.
    assert talk(listener, b"short") == b""
    assert talk(listener, proof, b"cut") == wire.ACCEPTED
    assert open_dump(listener.name).read_phys(PLACE, 4) == FIRST[:4]


def test_nothing_is_read_before_the_token(path: Path, tmp_path: Path) -> None:
    listener = Listener(tmp_path / "t", Server(open_dump(path), "secret").serve)
    request = wire.REQUEST.pack(wire.READ, 4096, PLACE)
    assert talk(listener, bytes(32), request) == wire.REFUSED
    chance = random.Random(3)
    for _ in range(50):
        assert talk(listener, chance.randbytes(32), request) == wire.REFUSED
    listener.close()


HELLO = wire.HELLO.pack(wire.MAGIC, wire.VERSION, 0, bytes(32))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"", "cannot reach"),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n".ljust(64), "is not a gdbkdump server"),
        (wire.HELLO.pack(wire.MAGIC, 99, 0, bytes(32)), "another version"),
        (HELLO, "cannot reach"),
        (HELLO + b"\1" + wire.REPLY.pack(0, 1 << 62), "it is no server"),
        (HELLO + b"\1" + wire.REPLY.pack(1, 3) + b"no!", "no!"),
        (HELLO + b"\1" + wire.REPLY.pack(0, 2) + b"{}", "does not describe a dump"),
        (HELLO + b"\1" + wire.REPLY.pack(0, 2) + b"[[", "does not describe a dump"),
    ],
)
def test_a_server_that_is_none(tmp_path: Path, said: bytes, message: str) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass

    listener = Listener(tmp_path / "liar", serve)
    with pytest.raises(FormatError, match=message):
        open_dump(listener.name)
    listener.close()


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        struct.pack("<II", 0, 8) + b"short",
        struct.pack("<II", 0, 16) + bytes(16),
        struct.pack("<II", 1, 0),
        struct.pack("<II", 99, 8),
        struct.pack("<II", 1, 4),
    ],
)
def test_pieces_that_are_not_what_was_asked_for(packed: bytes) -> None:
    with pytest.raises(FormatError, match="the server sent"):
        wire.unpack_pieces(packed, PLACE, 8)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"cannot reach .*refused"):
        Connection(("127.0.0.1", 1), None)
    with pytest.raises(FormatError, match=r"cannot reach .*No such file"):
        open_dump(Path(f"remote:unix:{tmp_path}/none"))


def test_addresses() -> None:
    assert parse_address("host:80") == ("host", 80)
    assert parse_address("[::1]:80") == ("::1", 80)
    assert parse_address("unix:/a:b") == "/a:b"
    for text in (
        "host",
        "80",
        "host:",
        "host:http",
        "host:99999",
        "unix:",
        "host:٣",
        "",
    ):
        with pytest.raises(FormatError, match="neither HOST:PORT nor unix:PATH"):
            parse_address(text)
