# SPDX-License-Identifier: GPL-2.0-or-later
"""A writer of LKCD dumps, of the layout that its kernel patches had (dump.h, v9).

There is none to be had from a real machine any more, so this is written from the layout
as crash and libkdumpfile know it: a header, and from ``dh_dump_buffer_size`` on pages,
each behind its address, size and flags.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MAGIC = 0xA8190173618F23ED
_VERSION = 9
_FIRST_PAGE = 65536
_HEADER = struct.Struct("<QIIIIQQQI256sQQ390sQIIIQ")
_PAGE = struct.Struct("<QII")
_RAW, _COMPRESSED, _END = 1, 2, 4
_GZIP = 2
_ZERO = {bytes(4096): zlib.compress(bytes(4096), 1)}


def write_lkcd(
    path: Path, pages: Iterable[tuple[int, bytes]], *, compress: bool = False
) -> Path:
    """Write a dump of pages of 4096 bytes by their physical addresses.

    :param compress: other pages than those of zeros too
    """
    names = ("Linux", "test", "2.6.5", "#1", "x86_64", "(none)")
    utsname = b"".join(name.encode().ljust(65, b"\0") for name in names)
    header = _HEADER.pack(
        MAGIC, _VERSION, _HEADER.size, 8, 4096, 0, 0, 0, 0, b"", 0, 0, utsname, 0,
        _GZIP, 0, 0, _FIRST_PAGE,
    )  # fmt: skip
    with path.open("wb") as file:
        file.write(header.ljust(_FIRST_PAGE, b"\0"))
        for address, data in pages:
            packed = zlib.compress(data, 1) if compress else _ZERO.get(data, data)
            is_smaller = len(packed) < len(data)
            stored = packed if is_smaller else data
            flags = _COMPRESSED if is_smaller else _RAW
            file.write(_PAGE.pack(address, len(stored), flags) + stored)
        file.write(_PAGE.pack(0, 0, _END))
    return path
