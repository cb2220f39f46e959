# SPDX-License-Identifier: GPL-2.0-or-later
"""The log of both eras, on rings made by hand: wraps, damage, unfinished records."""

from __future__ import annotations

import struct

import pytest

from gdbkdump.errors import CorruptError
from gdbkdump.kernel.printk import printk_records
from tests.support.fakes import (
    S32,
    U8,
    U32,
    U64,
    DictMemory,
    array,
    fake_kernel,
    member,
    pointer,
    structure,
)

U16 = type(U8)("unsigned short", 2, False)
ATOMIC = structure("", 8, member("counter", 0, U64))

# Before 5.10: struct printk_log {u64 ts_nsec; u16 len, text_len, dict_len; u8 facility;
# u8 flags:5, level:3; u32 caller_id}
PRINTK_LOG = structure(
    "printk_log",
    24,
    member("ts_nsec", 0, U64),
    member("len", 8, U16),
    member("text_len", 10, U16),
    member("dict_len", 12, U16),
    member("facility", 14, U8),
    member("flags", 15, U8, (0, 5)),
    member("level", 15, U8, (5, 3)),
    member("caller_id", 16, U32),
)
BUFFER, SIZE = 0x10000, 256


def log_record(text, level=6, caller=1, context=b""):
    size = 24 + len(text) + len(context)
    padded = size + 7 & ~7
    head = struct.pack(
        "<QHHHBBI",
        5_000_000_000,
        padded,
        len(text),
        len(context),
        0,
        level << 5,
        caller,
    )
    return (head.ljust(24, b"\0") + text + context).ljust(padded, b"\0")


def old_log(data, first, following, count, first_index=0):
    memory = DictMemory()
    memory.put(BUFFER, data.ljust(SIZE, b"\0"))
    memory.words(0x1000, BUFFER, SIZE, first_index, following, first, first + count)
    names = ["log_buf", "log_buf_len", "log_first_idx", "log_next_idx",
             "log_first_seq", "log_next_seq"]  # fmt: skip
    symbols = {name: 0x1000 + 8 * i for i, name in enumerate(names)}
    return fake_kernel(memory, [PRINTK_LOG], symbols)


def read(kernel):
    problems = []
    return list(printk_records(kernel, problems)), problems


def test_old_records_with_dictionary_and_caller():
    context = b"SUBSYSTEM=pci\0DEVICE=+pci:0000"
    data = log_record(b"one", 3, 0x80000002, context) + log_record(b"two\nlines")
    records, problems = read(old_log(data, 7, len(data), 2))
    assert problems == []
    assert [record.text for record in records] == [b"one", b"two\nlines"]
    assert [record.seq for record in records] == [7, 8]
    assert records[0].level == 3
    assert records[0].caller == "C2"
    assert records[1].caller == "T1"
    assert records[0].context == (("SUBSYSTEM", b"pci"), ("DEVICE", b"+pci:0000"))


def test_old_buffer_wraps_at_an_empty_record():
    newest = log_record(b"newest")
    older = log_record(b"older")
    data = newest.ljust(SIZE - 64, b"\0") + older
    records, problems = read(old_log(data, 3, len(newest), 2, SIZE - 64))
    assert problems == []
    assert [record.text for record in records] == [b"older", b"newest"]


@pytest.mark.parametrize(
    ("length", "problem"), [(9000, "absurd lengths"), (8, "absurd lengths")]
)
def test_old_record_with_an_absurd_length(length, problem):
    good, bad = log_record(b"good"), bytearray(log_record(b"bad"))
    struct.pack_into("<H", bad, 8, length)
    records, problems = read(old_log(good + bytes(bad), 0, 100, 2))
    assert [record.text for record in records] == [b"good"]
    assert problem in problems[0]


def test_old_log_without_records():
    records, problems = read(old_log(b"", 0, 0, 1))
    assert records == []
    assert problems == ["log record 0 is empty"]


# Since 5.10: struct printk_ringbuffer with 4 descriptors and 64 bytes of text.
LPOS = structure("", 16, member("begin", 0, U64), member("next", 8, U64))
DESC = structure(
    "prb_desc", 24, member("state_var", 0, ATOMIC), member("text_blk_lpos", 8, LPOS)
)
DEV_INFO = structure(
    "dev_printk_info",
    16,
    member("subsystem", 0, array(U8, 8)),
    member("device", 8, array(U8, 8)),
)
INFO = structure(
    "printk_info",
    40,
    member("seq", 0, U64),
    member("ts_nsec", 8, U64),
    member("text_len", 16, U16),
    member("facility", 18, U8),
    member("flags", 19, U8, (0, 5)),
    member("level", 19, U8, (5, 3)),
    member("caller_id", 20, U32),
    member("dev_info", 24, DEV_INFO),
)
DESC_RING = structure(
    "", 48,
    member("count_bits", 0, S32), member("descs", 8, pointer()),
    member("infos", 16, pointer()), member("head_id", 24, ATOMIC),
    member("tail_id", 32, ATOMIC),
)  # fmt: skip
TEXT_RING = structure("", 16, member("size_bits", 0, S32), member("data", 8, pointer()))
RING = structure(
    "printk_ringbuffer",
    64,
    member("desc_ring", 0, DESC_RING),
    member("text_data_ring", 48, TEXT_RING),
)
TYPES = [DESC, DEV_INFO, INFO, RING]
COMMITTED, FINALIZED, RESERVED, REUSABLE = 1, 2, 0, 3


def ring(rows, tail, head, text, count_bits=2):
    """Rows are (id, state, begin, next, length); seq is the id."""
    memory = DictMemory()
    descs, infos, data = 0x20000, 0x30000, 0x40000
    for id_, state, begin, following, length in rows:
        i = id_ % (1 << count_bits)
        memory.words(descs + 24 * i, state << 62 | id_, begin, following)
        info = struct.pack("<QQHBBI", id_, id_ * 1000, length, 1, 4 << 5, 9)
        memory.put(infos + 40 * i, info.ljust(40, b"\0"))
    memory.put(descs + 24 * 3, b"") if rows else None
    memory.put(data, text.ljust(64, b"\0"))
    memory.put(0x1000, struct.pack("<QQQQQ", count_bits, descs, infos, head, tail))
    memory.put(0x1000 + 48, struct.pack("<QQ", 6, data))
    memory.words(0x800, 0x1000)
    memory.put(descs + 1000, b"\0")
    memory.put(infos + 1000, b"\0")
    return fake_kernel(memory, TYPES, {"prb": 0x800})


def test_ring_gives_records_from_tail_to_head():
    text = (
        struct.pack("<Q", 5) + b"five".ljust(8) + struct.pack("<Q", 6) + b"six".ljust(8)
    )
    rows = [(5, FINALIZED, 0, 16, 4), (6, COMMITTED, 16, 32, 3)]
    records, problems = read(ring(rows, 5, 6, text))
    assert problems == []
    assert [(r.seq, r.text, r.level, r.caller) for r in records] == [
        (5, b"five", 4, "T9"),
        (6, b"six", 4, "T9"),
    ]


def test_a_block_that_wraps_is_at_the_start_behind_its_id():
    text = struct.pack("<Q", 5) + b"wrapped!"
    rows = [(5, FINALIZED, 56, 64 + 16, 8)]
    records, _ = read(ring(rows, 5, 5, text))
    assert [record.text for record in records] == [b"wrapped!"]


def test_a_block_that_ends_with_the_ring_does_not_wrap():
    text = bytes(48) + struct.pack("<Q", 5) + b"the end!"
    records, _ = read(ring([(5, FINALIZED, 48, 64, 8)], 5, 5, text))
    assert [record.text for record in records] == [b"the end!"]


def test_empty_lines_are_records_and_lost_text_is_counted():
    rows = [(5, FINALIZED, 3, 3, 0), (6, FINALIZED, 1, 1, 0), (7, RESERVED, 0, 16, 0)]
    records, problems = read(ring(rows, 5, 7, b""))
    assert [(record.seq, record.text) for record in records] == [(5, b"")]
    assert problems == ["2 log records were unfinished or have lost their text"]


def test_the_tail_may_hold_nothing():
    text = struct.pack("<Q", 6) + b"six".ljust(8)
    rows = [(5, REUSABLE, 1, 1, 0), (6, FINALIZED, 0, 16, 3)]
    records, problems = read(ring(rows, 5, 6, text))
    assert [record.text for record in records] == [b"six"]
    assert problems == []


def test_a_head_that_is_nowhere_ends_the_walk():
    records, problems = read(ring([(5, FINALIZED, 3, 3, 0)], 5, 4000, b""))
    assert len(records) == 1
    assert "the log ring's head is not where its tail leads" in problems


def test_absurd_sizes_are_refused():
    with pytest.raises(CorruptError, match=r"2\*\*40 records"):
        read(ring([], 5, 5, b"", count_bits=40))
