# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads through windows and page tables, and what they say when they fail."""

from __future__ import annotations

import pytest
from support.fakes import DictMemory
from support.mkdump import PageTables

from gdbkdump.arch.x86_64 import X86PageTable
from gdbkdump.errors import CorruptError, FaultError, FaultReason
from gdbkdump.memory.reader import Reader
from gdbkdump.memory.virtual import MAX_READ, MappedMemory

ROOT = 0x100000
DIRECT = 0xFFFF888000000000
VMALLOC = 0xFFFFC90000000000


@pytest.fixture
def memory():
    physical = DictMemory()
    tables = PageTables(physical, ROOT)
    # Two pages that are neighbours in one space and far apart in the other.
    tables.map(VMALLOC, 0x8000)
    tables.map(VMALLOC + 4096, 0x5000)
    physical.put(0x5000, bytes(range(256)) * 16)
    physical.put(0x8000, b"vmalloc " * 512)
    table = X86PageTable(physical.read, ROOT, 4)
    return MappedMemory(physical.read, table, [(DIRECT, DIRECT + (1 << 21), DIRECT)])


def test_a_window_needs_no_tables(memory):
    assert memory.read(DIRECT + 0x5004, 4) == b"\x04\x05\x06\x07"
    assert memory.translate(DIRECT + 0x5004) == 0x5004


def test_a_read_crosses_pages_that_are_no_neighbours(memory):
    assert memory.read(VMALLOC + 4094, 4) == b"c \x00\x01"
    assert memory.translate(VMALLOC + 4097) == 0x5001


def test_a_read_goes_on_from_a_window_into_the_tables(memory):
    with pytest.raises(FaultError) as caught:
        memory.read(DIRECT + (1 << 21) - 8, 16)
    assert caught.value.space == "virtual"


@pytest.mark.parametrize(
    ("address", "size", "fault"),
    [
        (DIRECT + 0x9000, 4, DIRECT + 0x9000),
        (DIRECT + 0x5FF0, 4096, DIRECT + 0x6000),
        (VMALLOC + 4096 + 4090, 10, VMALLOC + 8192),
        (0, 1, 0),
    ],
)
def test_a_fault_names_the_first_byte_that_is_missing(memory, address, size, fault):
    with pytest.raises(FaultError) as caught:
        memory.read(address, size)
    assert (caught.value.space, caught.value.address) == ("virtual", fault)


@pytest.mark.parametrize("address", [-1, 1 << 64, (1 << 64) - 4, 0x800000000000])
def test_what_is_no_address(memory, address):
    with pytest.raises(FaultError) as caught:
        memory.read(address, 8)
    assert caught.value.reason is FaultReason.NONCANONICAL or address == (1 << 64) - 4


@pytest.mark.parametrize("size", [-1, MAX_READ + 1, 1 << 60])
def test_absurd_sizes_are_refused_before_anything_is_read(memory, size):
    with pytest.raises(CorruptError, match="absurd"):
        memory.read(VMALLOC, size)


def test_scalars_and_strings(memory):
    reader = Reader(memory)
    assert reader.u8(DIRECT + 0x50FF) == 255
    assert reader.u16(DIRECT + 0x50FE) == 0xFFFE
    assert reader.u32(DIRECT + 0x5000) == 0x03020100
    assert reader.i32(DIRECT + 0x50FC) == -0x00010204
    assert reader.u64(DIRECT + 0x5000) == 0x0706050403020100
    assert reader.array(DIRECT + 0x5000, "I", 2).tolist() == [0x03020100, 0x07060504]
    with pytest.raises(CorruptError):
        reader.array(DIRECT, "I", -1)


def test_a_string_ends_at_its_nul_or_its_limit(memory):
    reader = Reader(memory)
    assert reader.c_string(VMALLOC + 4096 - 8) == b"vmalloc "
    assert reader.c_string(VMALLOC, 10) == b"vmalloc vm"
    assert reader.c_string(DIRECT + 0x5001, 4) == b"\x01\x02\x03\x04"
    # What follows the string's page need not be there.
    with pytest.raises(FaultError):
        reader.c_string(VMALLOC + 8191, 8)


def test_a_partial_read_keeps_what_there_is(memory):
    reader = Reader(memory)
    assert len(reader.read_partial(VMALLOC + 100, 1 << 20)) == 8192 - 100
    assert reader.read_partial(0, 8) == b""
