# SPDX-License-Identifier: GPL-2.0-or-later
"""Bitmaps: bits, runs and ranks against a slow count of each bit."""

from __future__ import annotations

import os
import random

import pytest

from gdbkdump.errors import FormatError
from gdbkdump.formats.base import silent
from gdbkdump.formats.bitmap import Bitmap, RankedBitmap
from gdbkdump.formats.file import PlainFile


@pytest.fixture
def kept(tmp_path):
    files = []

    def keep(data):
        path = tmp_path / f"bits{len(files)}"
        path.write_bytes(data)
        files.append(PlainFile(path))
        return files[-1]

    yield keep
    for file in files:
        file.close()


def patterns():
    chance = random.Random(1)
    sparse = bytearray(5000)
    for _ in range(40):
        sparse[chance.randrange(5000)] = 1 << chance.randrange(8)
    full = bytes(512) + b"\xff" * 1024 + bytes(700) + b"\xff" * 513
    return [chance.randbytes(3000), bytes(sparse), full, b"\xff" * 2048, bytes(2048)]


@pytest.mark.parametrize("data", patterns())
def test_bits_runs_and_ranks(kept, data):
    chance = random.Random(2)
    for count in (len(data) * 8, len(data) * 8 - 13, 4096, 4097):
        bits = [data[i >> 3] >> (i & 7) & 1 for i in range(count)]
        bitmap = Bitmap(kept(b"head" + data), 4, count)
        assert bitmap.count() == sum(bits)
        seen = [0] * count
        for start, end in bitmap.runs():
            assert start < end
            seen[start:end] = [1] * (end - start)
        assert seen == bits
        first, end = sorted(chance.sample(range(count + 1), 2))
        ranked = RankedBitmap(kept(data), 0, count, first, end, silent)
        assert ranked.total == sum(bits[first:end])
        for bit in [
            0,
            first,
            end,
            end - 1,
            count,
            *chance.choices(range(count), k=300),
        ]:
            inside = first <= bit < end and bits[bit]
            assert ranked.find(bit) == (sum(bits[first:bit]) if inside else None)
            assert bitmap.test(bit) == bool(bit < count and bits[bit])


def test_what_is_cut_is_no_zeros(kept):
    file = kept(b"\xff" * 1000)
    with pytest.raises(FormatError, match="ends within its page bitmaps"):
        RankedBitmap(file, 0, 8001, 0, 8001, silent)
    with pytest.raises(FormatError, match="ends within its page bitmaps"):
        list(Bitmap(file, 0, 8001).runs())


def test_a_terabyte_is_no_trouble(tmp_path):
    # 2^28 pages; a hole but for two pages' bits.
    path = tmp_path / "bits"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 1 << 25)
        file.seek((1 << 24) + 5)
        file.write(b"\x81")
    plain = PlainFile(path)
    ranked = RankedBitmap(plain, 0, 1 << 28, 0, 1 << 28, silent)
    bit = (1 << 27) + 40
    assert (ranked.total, ranked.find(bit), ranked.find(bit + 7)) == (2, 0, 1)
    assert list(ranked.runs()) == [(bit, bit + 1), (bit + 7, bit + 8)]
    plain.close()
