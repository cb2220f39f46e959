# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb's remote protocol: what is asked rightly, wrongly, and what is no packet."""

from __future__ import annotations

import random
import re
import socket
import threading

import pytest
from support.fakes import DictMemory

from gdbkdump.arch.x86_64 import X86_64
from gdbkdump.errors import CorruptError
from gdbkdump.target.remote import (
    PACKET_SIZE,
    PacketReader,
    ProtocolError,
    RemoteTarget,
    escape,
    frame,
    serve_gdb,
)
from gdbkdump.target.threads import KernelThread

BASE = 0xFFFF888000001000
ODD = bytes(range(256))
THREADS = [
    KernelThread(1, 0x1000, b"init", 0, {"ip": 0x1122334455667788, "flags": 0x46}),
    KernelThread(0x400001, 0x2000, b"swapper/0", 0, {}),
]


@pytest.fixture
def memory() -> DictMemory:
    found = DictMemory()
    found.put(BASE, ODD * 16)
    return found


@pytest.fixture
def target(memory: DictMemory) -> RemoteTarget:
    return RemoteTarget(X86_64(), THREADS, memory.read)


def unescape(data: bytes) -> bytes:
    return re.sub(rb"\}(.)", lambda m: bytes([m[1][0] ^ 0x20]), data, flags=re.DOTALL)


def test_memory_is_read_in_hex_and_in_binary(target: RemoteTarget) -> None:
    assert target.answer(b"m%x,100" % BASE) == ODD.hex().encode()
    binary = target.answer(b"x%x,100" % BASE)
    assert binary[:1] == b"b"
    assert unescape(binary[1:]) == ODD
    # What would end the packet, or stand for repetition, may not be in it.
    assert not set(b"$#*") & set(binary)
    assert target.answer(b"x%x,0" % BASE) == b"b"


def test_memory_ends_where_it_cannot_be_read(target: RemoteTarget) -> None:
    last = BASE + 4096 - 3
    assert target.answer(b"m%x,10" % last) == ODD[-3:].hex().encode()
    assert target.answer(b"m%x,10" % (BASE + 4096)) == b"E01"
    assert target.answer(b"m%x,10" % (BASE - 1)) == b"E01"
    assert target.answer(b"x10,10") == b"E01"


def test_a_reply_is_never_longer_than_a_packet() -> None:
    # All of it has to be escaped.
    target = RemoteTarget(X86_64(), THREADS, lambda address, size: b"#" * size)
    for letter in b"mx":
        reply = target.answer(b"%c%x,ffffffff" % (letter, BASE))
        assert PACKET_SIZE - 64 < len(reply) <= PACKET_SIZE


@pytest.mark.parametrize(
    "packet",
    [b"m", b"m,", b"m10", b"m10,", b"m-1,4", b"mxyz,4", b"m10,4;", b"m 10,4",
     b"m" + b"f" * 17 + b",4", b"x10," + b"f" * 9, b"m\xff\x00,4",
     b"m\xd9\xa1,\xd9\xa1"],
)  # fmt: skip
def test_a_request_for_memory_that_is_none(target: RemoteTarget, packet: bytes) -> None:
    assert target.answer(packet) == b"E01"


def test_any_failure_of_the_dump_is_an_error() -> None:
    for error in (CorruptError("a page"), OSError(5, "Input/output error")):

        def read(address: int, size: int, error: Exception = error) -> bytes:
            raise error

        target = RemoteTarget(X86_64(), THREADS, read)
        assert target.answer(b"m%x,10" % BASE) == b"E01"


def test_registers_are_those_of_the_selected_thread(target: RemoteTarget) -> None:
    assert target.answer(b"Hg1") == b"OK"
    registers = target.answer(b"g")
    assert registers[16 * 16 : 17 * 16] == b"8877665544332211"
    assert registers[17 * 16 : 17 * 16 + 8] == b"46000000"
    assert registers[: 16 * 16] == b"0" * 256
    assert target.answer(b"Hg400001") == b"OK"
    assert target.answer(b"g")[:280] == b"0" * 280
    # One that is not there leaves the selection as it was.
    assert target.answer(b"Hg77") == b"E01"
    assert target.answer(b"qC") == b"QC400001"


def test_the_description_tells_as_many_bytes_as_are_sent(target: RemoteTarget) -> None:
    xml = read_object(target, b"features:read:target.xml").decode()
    bits = sum(map(int, re.findall(r'bitsize="(\d+)"', xml)))
    assert len(target.answer(b"g")) * 4 == bits
    # Which of them are unknown: x87, SSE.
    assert target.answer(b"g").count(b"x") * 4 == 8 * 80 + 8 * 32 + 16 * 128 + 32


def read_object(target: RemoteTarget, name: bytes, step: int = 100) -> bytes:
    found = b""
    while True:
        reply = target.answer(b"qXfer:%b:%x,%x" % (name, len(found), step))
        found += unescape(reply[1:])
        if reply[:1] == b"l":
            return found
        assert reply[:1] == b"m"
        assert len(unescape(reply[1:])) == step


def test_threads_are_listed_in_order(target: RemoteTarget) -> None:
    xml = read_object(target, b"threads:read:", 7).decode()
    assert re.findall(r'id="(\w+)"', xml) == ["1", "400001"]
    assert target.answer(b"?") == b"T00thread:1;"
    assert [target.answer(b"T" + id_) for id_ in (b"1", b"400001", b"2", b"")] == [
        b"OK",
        b"OK",
        b"E01",
        b"E01",
    ]


@pytest.mark.parametrize(
    "packet",
    [b"", b"vMustReplyEmpty", b"vCont?", b"qXfer:libraries:read::0,1000",
     b"qXfer:auxv:read::0,1000", b"qXfer:features:read:other.xml:0,10", b"qXfer:",
     b"qXfer:threads:write::0:", b"qXfer:threads:read::x,y", b"qTStatus", b"Z0,10,1",
     b"qSymbol::", b"\xff\xfe", b"!", b"vFile:open:2f,0,0"],
)  # fmt: skip
def test_what_is_not_supported_gets_an_empty_reply(
    target: RemoteTarget, packet: bytes
) -> None:
    assert target.answer(packet) == b""


@pytest.mark.parametrize("packet", [b"M10,1:00", b"X10,1:a", b"G00", b"P1=00"])
def test_nothing_can_be_written(target: RemoteTarget, packet: bytes) -> None:
    assert target.answer(packet) == b"E.a dump is not written to"


@pytest.mark.parametrize("packet", [b"c", b"s", b"C05", b"S05"])
def test_what_is_resumed_stops_where_it_is(target: RemoteTarget, packet: bytes) -> None:
    target.answer(b"Hg400001")
    told, stop = b"O" + b"gdbkdump: a dump does not run\n".hex().encode(), b"T00thread:"
    assert talk(target, frame(packet)) == b"+" + frame(told) + frame(stop + b"400001;")


def test_a_dump_without_tasks(memory: DictMemory) -> None:
    target = RemoteTarget(X86_64(), [], memory.read)
    assert read_object(target, b"threads:read:") == b"<threads></threads>"
    assert target.answer(b"g") == b"E01"
    assert target.answer(b"m%x,2" % BASE) == b"0001"


def test_random_packets_get_a_reply(target: RemoteTarget) -> None:
    chance = random.Random(1)
    seeds = [b"m%x,100" % BASE, b"qXfer:threads:read::0,10", b"Hg1", b"g", b"T1"]
    for _ in range(20_000):
        packet = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(4)):
            packet[chance.randrange(len(packet))] = chance.randrange(256)
        del packet[chance.randrange(1, len(packet) + 1) :]
        reply = target.answer(bytes(packet))
        assert reply is None or len(reply) <= PACKET_SIZE


def packets(reader: PacketReader, data: bytes) -> list[bytes | None]:
    return list(reader.feed(data))


def test_packets_are_found_wherever_the_stream_is_cut() -> None:
    stream = b"+" + frame(b"qC") + b"+\x03" + frame(b"Hg0") + b"-" + frame(b"")
    for size in range(1, len(stream) + 1):
        reader = PacketReader()
        found = [
            packet
            for at in range(0, len(stream), size)
            for packet in packets(reader, stream[at : at + size])
        ]
        assert found == [b"qC", b"Hg0", b""]


def test_a_bad_checksum_is_told_until_nobody_acknowledges() -> None:
    reader = PacketReader()
    assert packets(reader, b"$g#00$g#67$g#zz$g#") == [None, b"g", None]
    assert packets(reader, b"67") == [b"g"]
    reader.acknowledges = False
    assert packets(reader, b"$g#00") == [b"g"]


def test_garbage_is_skipped_and_an_endless_packet_is_not_kept() -> None:
    reader = PacketReader()
    assert packets(reader, b"\0\xff+++" * 100_000) == []
    assert packets(reader, frame(b"g")) == [b"g"]
    with pytest.raises(ProtocolError, match="a packet of more than"):
        packets(reader, b"$" + b"m" * (PACKET_SIZE + 4))


def test_escape_is_reversed() -> None:
    assert unescape(escape(ODD)) == ODD
    assert escape(b"}") == b"}]"


def talk(target: RemoteTarget, *requests: bytes) -> bytes:
    """Send requests one after the other; all that comes back is returned."""
    ours, theirs = socket.socketpair()
    served = threading.Thread(target=serve_gdb, args=(theirs, target))
    served.start()
    with ours, theirs:
        ours.sendall(b"".join(requests))
        ours.shutdown(socket.SHUT_WR)
        served.join(10)
        assert not served.is_alive()
        theirs.close()
        return b"".join(iter(lambda: ours.recv(65536), b""))


def test_a_session(target: RemoteTarget) -> None:
    reply = talk(
        target,
        frame(b"qC"),
        b"$qC#00",
        frame(b"QStartNoAckMode"),
        b"+",
        frame(b"T1"),
        frame(b"k"),
        frame(b"qC"),
    )
    # Nothing after the end of the session.
    ok = frame(b"OK")
    assert reply == b"+" + frame(b"QC1") + b"-" + b"+" + ok + ok
