# SPDX-License-Identifier: GPL-2.0-or-later
"""krd on memory with gaps: each byte is shown or told as missing, once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from support.fakes import DictMemory, fake_kernel

from gdbkdump.commands import find_command
from gdbkdump.errors import CommandError, FaultError, FaultReason
from gdbkdump.render import json_text, text


class TornMemory(DictMemory):
    """Pages, of which the last one ends early, as in a truncated file."""

    end = 0x14000 - 0x803

    def read(self, address, size):
        if address + size > self.end and address < 0x14000:
            super().read(address, max(0, self.end - address))
            raise FaultError("virtual", max(address, self.end), FaultReason.MISSING)
        return super().read(address, size)


@pytest.fixture
def session():
    memory = TornMemory()
    memory.put(0x10000, bytes(range(256)) * 16)
    memory.put(0x12000, b"A" * 8192)
    memory.put(0x15000, b"text\0rest")
    kernel = fake_kernel(memory, symbols={"start": 0x10000})
    return SimpleNamespace(
        kernel=kernel,
        dump=SimpleNamespace(read_phys=memory.read),
        evaluated=lambda expression: 0x15000,
    )


def run(session, line):
    command = find_command("krd")
    return list(text.lines(command.run(session, command.parse(line.split()))))


def rows(session, line):
    command = find_command("krd")
    result = command.run(session, command.parse(line.split()))
    return [item for block in [result] for item in map(block.to_data, block.items)]


def test_words_and_text(session):
    assert run(session, "10020 2") == [
        "0000000000010020:  2726252423222120 2f2e2d2c2b2a2928    !\"#$%&'()*+,-./"
    ]
    assert run(session, "-8 start 3") == [
        "0000000000010000:  00 01 02" + " " * 42 + "..."
    ]
    assert run(session, "-32 -x start+4 3") == [
        "0000000000010004:  07060504 0b0a0908 0f0e0d0c"
    ]
    assert run(session, "-a 15000") == ["0000000000015000:  text"]
    assert run(session, "-a $x") == ["0000000000015000:  text"]


@pytest.mark.parametrize(
    "start", [0x10000, 0x10008, 0x10009, 0x10FF1, 0x11FF8, 0x13001]
)
@pytest.mark.parametrize("bits", [8, 64])
def test_every_byte_is_shown_or_missing_once(session, start, bits):
    count = (0x16000 - start) // (bits // 8)
    address = start
    for row in rows(session, f"-{bits} {start:x} {count}"):
        assert row["address"] == address
        address += row["size"]
        if "words" in row:
            raw = session.kernel.reader.read(row["address"], row["size"])
            assert row["words"] == [
                int.from_bytes(raw[i : i + bits // 8], "little")
                for i in range(0, len(raw), bits // 8)
            ]
    assert address == start + count * (bits // 8)


def test_gaps_say_why_and_neighbours_are_one(session):
    lines = run(session, "-x 10ff0 7168")
    gaps = [line for line in lines if "unreadable" in line]
    assert gaps == [
        "0000000000011000:  <4096 bytes unreadable: not mapped by the kernel's page"
        " tables>",
        "00000000000137f8:  <2056 bytes unreadable: lost: the dump is truncated>",
        "0000000000014000:  <4096 bytes unreadable: not mapped by the kernel's page"
        " tables>",
        "0000000000016000:  <36848 bytes unreadable: not mapped by the kernel's page"
        " tables>",
    ]
    assert "0000000000012000:  4141414141414141 4141414141414141" in lines
    assert lines[0] == "0000000000010ff0:  f7f6f5f4f3f2f1f0 fffefdfcfbfaf9f8"


def test_json_has_the_reason(session):
    command = find_command("krd")
    result = command.run(session, command.parse(["10ff8", "2"]))
    first, second = json_text.lines(result)
    assert first == (
        '{"address": "0x10ff8", "size": 8, "words": ["0xfffefdfcfbfaf9f8"]}'
    )
    assert second == (
        '{"address": "0x11000", "size": 8, "unreadable":'
        ' "not mapped by the kernel\'s page tables"}'
    )


def test_nothing_at_all_fails(session):
    with pytest.raises(FaultError, match="0x20000: not mapped"):
        run(session, "20000 100")


def test_the_top_of_the_address_space_is_the_end(session):
    with pytest.raises(FaultError):
        run(session, "fffffffffffffff8 100")


@pytest.mark.parametrize("count", ["0", "x", "0x8000001"])
def test_counts_are_bounded(session, count):
    with pytest.raises(CommandError):
        run(session, f"start {count}")
