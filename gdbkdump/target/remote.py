# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb's remote serial protocol, served from the engine.

The packets that gdb sends to look at a machine that stands still (``gdb/remote.c``,
*Remote Protocol* in gdb's manual); what would write or run is refused. All that comes
from the peer is bounded and checked, as it is when it comes from a file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gdbkdump.errors import FaultError, FaultReason, KdumpError
from gdbkdump.kernel.initmem import freed_init_memory

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Sequence

    from gdbkdump.arch.base import Arch
    from gdbkdump.kernel.base import Kernel
    from gdbkdump.target.threads import KernelThread

    Read = Callable[[int, int], bytes]

# Of a packet without its frame. gdb reads memory and lists in pieces of this size.
PACKET_SIZE = 0x40000
# A byte of memory takes two of a packet, in hex, or when all of them are escaped.
_MAX_READ = PACKET_SIZE // 2 - 16
_RECEIVE = 1 << 16
_UNSUPPORTED = b""
_ERROR = b"E01"
# gdb prints the text where it can.
_READ_ONLY = b"E.a dump is not written to"
_WRITING = frozenset((b"G", b"M", b"P", b"X"))
# MI continues past all hooks. What is printed comes as output of the program.
_RESUMING = frozenset((b"c", b"C", b"s", b"S"))
_NOT_RUN = b"O" + b"gdbkdump: a dump does not run\n".hex().encode()
_OK = b"OK"
_MEMORY = re.compile(rb"([0-9a-f]{1,16}),([0-9a-f]{1,8})")
_TRANSFER = re.compile(rb"(\w+):read:([\w.]*):([0-9a-f]{1,8}),([0-9a-f]{1,8})")
_THREAD = re.compile(rb"[0-9a-f]{1,8}")
_FEATURES = (
    f"PacketSize={PACKET_SIZE:x};QStartNoAckMode+;qXfer:features:read+;"
    "qXfer:threads:read+;binary-upload+"
).encode()


class ProtocolError(KdumpError):
    """The peer does not speak the protocol."""


class PacketReader:
    """Takes a stream of bytes apart: ``$``, the packet, ``#``, two digits."""

    def __init__(self) -> None:
        """Begin with acknowledgements, as the protocol does."""
        self.acknowledges = True
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes | None]:
        """Yield the packets that ``data`` completes; None for a damaged one.

        :raise ProtocolError: it is longer than any packet
        """
        buffer = self._buffer
        buffer += data
        while True:
            # Before a packet come acknowledgements and Ctrl-C, to a stopped machine.
            start = buffer.find(b"$")
            if start < 0:
                buffer.clear()
                return
            end = buffer.find(b"#", start)
            if end < 0 or len(buffer) < end + 3:
                if len(buffer) - start > PACKET_SIZE + 4:
                    raise ProtocolError(f"a packet of more than {PACKET_SIZE} bytes")
                del buffer[:start]
                return
            packet = bytes(buffer[start + 1 : end])
            digits = bytes(buffer[end + 1 : end + 3])
            del buffer[: end + 3]
            is_good = not self.acknowledges or digits.lower() == _checksum(packet)
            yield packet if is_good else None


def _checksum(packet: bytes) -> bytes:
    return b"%02x" % (sum(packet) & 255)


def frame(packet: bytes) -> bytes:
    """Return a packet as it is sent."""
    return b"$%b#%b" % (packet, _checksum(packet))


def escape(data: bytes) -> bytes:
    """Return binary data as it is put into a packet."""
    for special in (b"}", b"$", b"#", b"*"):
        data = data.replace(special, b"}" + bytes([special[0] ^ 0x20]))
    return data


class RemoteTarget:
    """A kernel that stands still, as packets ask for it.

    :param read: of virtual memory; raises FaultError at the first byte that it lacks
    """

    def __init__(self, arch: Arch, threads: Sequence[KernelThread], read: Read) -> None:
        """Take what is to be served; nothing is read yet."""
        self._arch = arch
        self._threads = {thread.id: thread for thread in threads}
        self._read = read
        self._first = threads[0].id if threads else 1
        self._selected = self._first
        ids = "".join(f'<thread id="{thread.id:x}"/>' for thread in threads)
        self._objects = {
            (b"features", b"target.xml"): arch.target_description.encode(),
            (b"threads", b""): f"<threads>{ids}</threads>".encode(),
        }
        self._by_letter: dict[bytes, Callable[[bytes], bytes]] = {
            b"m": self._read_hex,
            b"x": self._read_binary,
            b"g": self._registers,
            b"H": self._select,
            b"T": self._is_alive,
            b"q": self._query,
            b"?": lambda packet: b"T00thread:%x;" % self._first,
        }

    def answer(self, packet: bytes) -> bytes | None:
        """Return the reply to a packet, or None where the session ends without one."""
        letter = packet[:1]
        if letter == b"k":
            return None
        handler = self._by_letter.get(letter)
        if handler is not None:
            return handler(packet)
        if packet.startswith((b"vKill", b"D", b"QStartNoAckMode")):
            return _OK
        if letter in _RESUMING:
            # Of an error gdb makes a stop of the first thread; so it is the one shown.
            return b"T00thread:%x;" % self._selected
        return _READ_ONLY if letter in _WRITING else _UNSUPPORTED

    def _read_hex(self, packet: bytes) -> bytes:
        data = self._memory(packet)
        return _ERROR if data is None else data.hex().encode()

    def _read_binary(self, packet: bytes) -> bytes:
        data = self._memory(packet)
        return _ERROR if data is None else b"b" + escape(data)

    def _memory(self, packet: bytes) -> bytes | None:
        # As many bytes as there are from the address on; None if there is none.
        match = _MEMORY.fullmatch(packet, 1)
        if match is None:
            return None
        address, size = int(match[1], 16), min(int(match[2], 16), _MAX_READ)
        try:
            return self._read(address, size)
        except FaultError as fault:
            there = fault.address - address
            try:
                return self._read(address, there) if 0 < there < size else None
            except (KdumpError, OSError):
                return None
        except (KdumpError, OSError):
            return None

    def _registers(self, packet: bytes) -> bytes:
        thread = self._threads.get(self._selected)
        return (
            _ERROR if thread is None else self._arch.remote_registers(thread.registers)
        )

    def _thread_id(self, text: bytes) -> int | None:
        id_ = int(text, 16) if _THREAD.fullmatch(text) else None
        return id_ if id_ in self._threads else None

    def _select(self, packet: bytes) -> bytes:
        text = packet[2:]
        if packet[1:2] != b"g" or text in (b"0", b"-1"):
            # Hc says which thread is to run, 0 and -1 are any.
            return _OK
        id_ = self._thread_id(text)
        if id_ is None:
            return _ERROR
        self._selected = id_
        return _OK

    def _is_alive(self, packet: bytes) -> bytes:
        return _ERROR if self._thread_id(packet[1:]) is None else _OK

    def _query(self, packet: bytes) -> bytes:
        if packet.startswith(b"qSupported"):
            return _FEATURES
        if packet.startswith(b"qXfer:"):
            return self._transfer(packet.removeprefix(b"qXfer:"))
        if packet == b"qC":
            return b"QC%x" % self._selected
        # Said to be started by gdb: one that was there before is announced when left.
        return b"0" if packet == b"qAttached" else _UNSUPPORTED

    def _transfer(self, request: bytes) -> bytes:
        match = _TRANSFER.fullmatch(request)
        data = self._objects.get((match[1], match[2])) if match else None
        if match is None or data is None:
            return _UNSUPPORTED
        start, size = int(match[3], 16), min(int(match[4], 16), _MAX_READ)
        piece = data[start : start + size]
        mark = b"m" if start + size < len(data) else b"l"
        return mark + escape(piece)


def gdb_memory(kernel: Kernel) -> Read:
    """Return what reads the kernel memory that gdb is to see, as the view core has it.

    By the names of what was in freed memory gdb would show what is there now.
    """
    read = kernel.memory.read
    gone = freed_init_memory(kernel)
    if gone is None:
        return read
    start, end = gone

    def read_kept(address: int, size: int) -> bytes:
        if address < end and start < address + size:
            first = max(address, start)
            raise FaultError("virtual", first, FaultReason.UNMAPPED)
        return read(address, size)

    return read_kept


def serve_gdb(connection: socket.socket, target: RemoteTarget) -> None:
    """Answer one gdb until it ends the session or is gone.

    :raise ProtocolError: it is no gdb
    """
    reader = PacketReader()
    while data := connection.recv(_RECEIVE):
        for packet in reader.feed(data):
            if packet is None:
                connection.sendall(b"-")
                continue
            reply = target.answer(packet)
            if reply is None:
                return
            acknowledgement = b"+" if reader.acknowledges else b""
            notice = frame(_NOT_RUN) if packet[:1] in _RESUMING else b""
            connection.sendall(acknowledgement + notice + frame(reply))
            if packet == b"QStartNoAckMode":
                reader.acknowledges = False
