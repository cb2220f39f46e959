# SPDX-License-Identifier: GPL-2.0-or-later
"""Packed pages: each method by its package and, where there is one, in plain Python."""

from __future__ import annotations

import random
import zlib

import pytest
from support.mkdiskdump import KdumpFile

from gdbkdump.errors import MissingPackageError
from gdbkdump.formats import open_dump, page_codecs
from gdbkdump.formats.page_codecs import LZO, SNAPPY, ZLIB, ZSTD, find_codec

PAGE = 4096


def pages():
    """Return pages of each kind: zeros, noise, patterns of each distance, text."""
    chance = random.Random(5)
    found = [bytes(PAGE), chance.randbytes(PAGE), b"\xff" * PAGE]
    for distance in (1, 2, 3, 7, 8, 9, 60, 64, 65, 2047, 2048, 2049):
        found.append((chance.randbytes(distance) * PAGE)[:PAGE])
    for words in (3, 40, 700):
        known = [chance.randbytes(chance.randrange(1, 30)) for _ in range(words)]
        found.append(b"".join(chance.choices(known, k=PAGE))[:PAGE])
    far = chance.randbytes(100)
    found.append(far + bytes(1900) + far + chance.randbytes(1896) + far)
    return found


PAGES = pages()


def packer(flag):
    if flag == ZLIB:
        return zlib.compress
    if flag == LZO:
        lzo = pytest.importorskip("lzo")
        return lambda page: lzo.compress(page, 1, False)
    if flag == SNAPPY:
        return pytest.importorskip("snappy").compress
    return pytest.importorskip("zstandard").ZstdCompressor(level=1).compress


@pytest.fixture(params=["package", "plain"])
def way(request, monkeypatch):
    """With the packages, and as if none were installed."""
    if request.param == "plain":
        monkeypatch.setattr(page_codecs, "_package", lambda name: None)
    return request.param


ALL = pytest.mark.parametrize("flag", [ZLIB, LZO, SNAPPY, ZSTD])
PLAIN = pytest.mark.parametrize("flag", [LZO, SNAPPY])


@ALL
def test_pages_come_back(flag, way):
    pack = packer(flag)
    if (flag, way) == (ZSTD, "plain"):
        with pytest.raises(MissingPackageError, match="install python3-zstandard,"):
            find_codec(flag)
        return
    unpack, is_fast = find_codec(flag)
    assert is_fast == (way == "package" or flag == ZLIB)
    for page in PAGES:
        assert unpack(pack(page), PAGE) == page


@ALL
def test_other_lengths_are_refused(flag, way):
    if (flag, way) == (ZSTD, "plain"):
        pytest.skip("there is no zstd in plain Python")
    pack = packer(flag)
    unpack, _ = find_codec(flag)
    for page in (b"", PAGES[3][:-1], PAGES[3] + b"x", PAGES[15] + PAGES[16]):
        with pytest.raises(ValueError):
            unpack(pack(page), PAGE)
    for page in PAGES:
        data = pack(page)
        for cut in (0, 1, len(data) // 2, len(data) - 1):
            with pytest.raises(ValueError):
                unpack(data[:cut], PAGE)


@PLAIN
def test_plain_python_takes_what_the_package_takes(flag, monkeypatch):
    pack = packer(flag)
    fast, _ = find_codec(flag)
    monkeypatch.setattr(page_codecs, "_package", lambda name: None)
    plain, _ = find_codec(flag)
    chance = random.Random(6)

    def outcome(unpack, data):
        try:
            return unpack(data, PAGE)
        except ValueError:
            return None

    taken = 0
    for page in PAGES:
        packed = pack(page)
        for _ in range(60):
            data = bytearray(packed)
            data[chance.randrange(len(data))] = chance.randrange(256)
            if chance.random() < 0.3:
                del data[chance.randrange(len(data)) :]
            mine = outcome(plain, bytes(data))
            assert mine == outcome(fast, bytes(data))
            taken += mine is not None
    # Else the test would show nothing: a change of a literal byte is no damage.
    assert 50 < taken < len(PAGES) * 50


@ALL
def test_a_dump_of_one_method(flag, way, tmp_path):
    file = KdumpFile(dict(enumerate(PAGES)), status=flag)
    pack = packer(flag)
    file.pack = lambda page: (flag, pack(page))
    dump = open_dump(file.write(tmp_path / "vmcore"))
    name = {ZLIB: "zlib", LZO: "lzo", SNAPPY: "snappy", ZSTD: "zstd"}[flag]
    assert dump.saving.compression == (name,)
    if (flag, way) == (ZSTD, "plain"):
        assert "install python3-zstandard, elsewhere pip" in dump.problems[0]
        with pytest.raises(MissingPackageError):
            dump.read_phys(0, 8)
    else:
        for i, page in enumerate(PAGES):
            assert dump.read_phys(i * PAGE, PAGE) == page
        is_slow = way == "plain" and flag != ZLIB
        assert [f"install python3-{name}" in p for p in dump.problems] == (
            [True] if is_slow else []
        )
    dump.close()
