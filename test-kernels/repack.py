# SPDX-License-Identifier: GPL-2.0-or-later
"""Write a kdump-compressed file anew with another compression.

makedumpfile is often built without snappy and zstd. All but the pages, their
descriptors and the flag in the header stay byte for byte what makedumpfile wrote; a
page that does not shrink stays as it is, and all pages of zeros share one place.
"""

import importlib
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from progress import BuildError

SNAPPY, ZSTD = 4, 0x20
_DESCRIPTOR = struct.Struct("<QIIQ")
_STATUS = 424


def _packer(flag: int) -> Callable[[bytes], bytes]:
    name = {SNAPPY: "snappy", ZSTD: "zstandard"}[flag]
    try:
        package = importlib.import_module(name)
    except ImportError as error:
        raise BuildError(f"cannot repack: {error}") from None
    pack: Callable[[bytes], bytes]
    if flag == SNAPPY:
        pack = package.compress
    else:
        pack = package.ZstdCompressor(level=1).compress
    return pack


def _layout(head: bytes) -> tuple[int, int, int]:
    """Return the block size, and where the second bitmap and the descriptors are."""
    size, sub_blocks, bitmaps = struct.unpack_from("<iiI", head, _STATUS + 4)
    first = (1 + sub_blocks) * size
    return size, first + bitmaps * size // 2, first + bitmaps * size


def repack(source: Path, target: Path, flag: int) -> None:
    """Write the dump of raw pages ``source`` with pages packed as ``flag`` says."""
    pack = _packer(flag)
    with source.open("rb") as old, target.open("wb") as new:
        size, bitmap, table = _layout(old.read(4096))
        old.seek(0)
        head = bytearray(old.read(table))
        struct.pack_into("<I", head, _STATUS, flag)
        count = int.from_bytes(head[bitmap:], "little").bit_count()
        descriptors = old.read(count * _DESCRIPTOR.size)
        new.seek(table + len(descriptors))
        at = new.tell()
        table_anew = []
        places: dict[int, bytes] = {}
        for offset, page in _pages(old, descriptors, size):
            if offset not in places:
                data = pack(page) if any(page) else page
                entry = (at, len(data), flag) if len(data) < size else (at, size, 0)
                new.write(data if len(data) < size else page)
                at = new.tell()
                places[offset] = _DESCRIPTOR.pack(*entry, 0)
            table_anew.append(places[offset])
        new.seek(0)
        new.write(bytes(head) + b"".join(table_anew))


def _pages(old: object, descriptors: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    for offset, length, flags, _ in _DESCRIPTOR.iter_unpack(descriptors):
        if flags or length != size:
            raise BuildError("the pages to repack are not raw")
        old.seek(offset)  # type: ignore[attr-defined]
        yield offset, old.read(size)  # type: ignore[attr-defined]
