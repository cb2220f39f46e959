# SPDX-License-Identifier: GPL-2.0-or-later
"""``gdbkdump serve``: a dump stays where it is, others read it over a connection.

Each client has a process of its own, so that none can harm another or the server, and
can have nothing but what the dump holds: requests have a physical address and a size,
and no names.
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import os
import secrets
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gdbkdump.errors import FormatError, KdumpError
from gdbkdump.formats import open_dump, wire
from gdbkdump.formats.hints import parse_hints
from gdbkdump.formats.remote import TOKEN_VARIABLE, host_and_port, parse_address
from gdbkdump.render.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gdbkdump.formats.base import DumpFile
    from gdbkdump.formats.remote import Address

_MAX_CLIENTS = 64
_HANDSHAKE_TIMEOUT_S = 10
_EPILOG = """\
examples:
  gdbkdump serve vmcore --listen 4321
      then, where it is to be looked at, with the token that was printed:
      GDBKDUMP_TOKEN=... gdbkdump remote:127.0.0.1:4321
  gdbkdump serve vmcore --listen unix:/run/user/1000/dump
      gdbkdump remote:unix:/run/user/1000/dump -c ksys

Only this machine can connect unless an address is named (--listen 0.0.0.0:4321). The
token keeps others out, but what is read is not encrypted: over a network that is not
yours alone go through ssh -L 4321:127.0.0.1:4321.
"""


def main(argv: Sequence[str]) -> int:
    """Serve until it is interrupted; return the exit code."""
    parser = argparse.ArgumentParser(
        "gdbkdump serve",
        description="Let others open a dump that stays here.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("vmcores", type=Path, nargs="+", metavar="VMCORE",
                        help="the dump, all files of it if it is split")  # fmt: skip
    parser.add_argument("--listen", required=True, metavar="[ADDR:]PORT|unix:PATH",
                        help="where clients connect; port 0 is any")  # fmt: skip
    parser.add_argument("--base", metavar="ADDR",
                        help="of bare memory: its first physical address")  # fmt: skip
    args = parser.parse_args(argv)
    text = args.listen
    address = parse_address(text if ":" in text else f"127.0.0.1:{text}")
    base = parse_hints(args.base, None).base
    dump = open_dump(*args.vmcores, base=base, report=Progress(_show))
    with contextlib.closing(dump), _listen(address) as listener:
        token = None if isinstance(address, str) else secrets.token_urlsafe(24)
        _announce(dump, listener, token)
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            Server(dump, token).run(listener)
        except KeyboardInterrupt:
            return 0
    return 0


def _show(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(text)
        sys.stderr.flush()


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _listen(address: Address) -> Iterator[socket.socket]:
    path = address if isinstance(address, str) else None
    try:
        listener = _bind_unix(path) if path else _bind_tcp(address)
    except OSError as error:
        raise FormatError(f"cannot listen there: {error.strerror or error}") from None
    try:
        with listener:
            listener.listen(_MAX_CLIENTS)
            yield listener
    finally:
        if path:
            Path(path).unlink(missing_ok=True)


def _bind_tcp(address: Address) -> socket.socket:
    assert not isinstance(address, str)
    host, port = address
    family, _, _, _, place = socket.getaddrinfo(
        host or "127.0.0.1", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return socket.create_server(place[:2], family=family)


def _bind_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    # For its owner alone, from the start.
    before = os.umask(0o177)
    try:
        try:
            listener.bind(path)
        except OSError:
            if not _is_stale(path):
                raise
            Path(path).unlink()
            listener.bind(path)
    finally:
        os.umask(before)
    return listener


def _is_stale(path: str) -> bool:
    # A socket that nobody serves any more was left behind.
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return Path(path).is_socket()
        except OSError:
            return False
    return False


def _announce(dump: DumpFile, listener: socket.socket, token: str | None) -> None:
    for problem in dump.problems:
        sys.stderr.write(f"note: {problem}\n")
    name = listener.getsockname()
    where = f"unix:{name}" if isinstance(name, str) else host_and_port(*name[:2])
    sys.stdout.write(f"serving {dump.path} on {where}; open it with\n")
    variable = f"{TOKEN_VARIABLE}={token} " if token else ""
    sys.stdout.write(f"  {variable}gdbkdump remote:{where}\n")
    sys.stdout.flush()


class Server:
    """A dump, and who reads it.

    :param token: what a client has to know, or None
    """

    def __init__(self, dump: DumpFile, token: str | None) -> None:
        """Prepare what each client asks for first."""
        self._packer = wire.PiecePacker(dump)
        self._token = token
        self._description = wire.pack_description(dump)
        self._clients: set[int] = set()

    def run(self, listener: socket.socket) -> None:
        """Serve clients until a signal ends it."""
        while True:
            connection, _ = listener.accept()
            with connection:
                self._reap()
                if len(self._clients) >= _MAX_CLIENTS:
                    continue
                pid = os.fork()
                if pid == 0:
                    listener.close()
                    self._serve_and_exit(connection)
                self._clients.add(pid)

    def _reap(self) -> None:
        for pid in list(self._clients):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self._clients.discard(pid)

    def _serve_and_exit(self, connection: socket.socket) -> None:
        code = 1
        try:
            with contextlib.suppress(OSError, KeyboardInterrupt):
                self.serve(connection)
            code = 0
        finally:
            if code:
                sys.excepthook(*sys.exc_info())
            os._exit(code)

    def serve(self, connection: socket.socket) -> None:
        """Answer one client until it is gone.

        :raise OSError: it is gone, or silent when it should introduce itself
        """
        connection.settimeout(_HANDSHAKE_TIMEOUT_S)
        if not self._lets_in(connection):
            return
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        while True:
            request = wire.REQUEST.unpack(wire.receive(connection, wire.REQUEST.size))
            try:
                failed, reply = 0, self._answer(*request)
            except (KdumpError, OSError) as error:
                failed, reply = 1, str(error).encode()
            connection.sendall(wire.REPLY.pack(failed, len(reply)) + reply)

    def _lets_in(self, connection: socket.socket) -> bool:
        challenge = secrets.token_bytes(32)
        needs_token = self._token is not None
        connection.sendall(
            wire.HELLO.pack(wire.MAGIC, wire.VERSION, needs_token, challenge)
        )
        proof = wire.receive(connection, wire.PROOF_SIZE)
        wanted = wire.prove(self._token or "", challenge)
        lets_in = not needs_token or hmac.compare_digest(proof, wanted)
        connection.sendall(wire.ACCEPTED if lets_in else wire.REFUSED)
        return lets_in

    def _answer(self, what: int, size: int, paddr: int) -> bytes:
        if what == wire.DESCRIBE:
            return self._description
        if what != wire.READ:
            raise FormatError(f"no request {what}")
        if size > wire.MAX_READ or paddr + size > 1 << 64:
            raise FormatError(f"{size} bytes at {paddr:#x} are too much")
        return self._packer.pack(paddr, size)
