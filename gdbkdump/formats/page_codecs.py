# SPDX-License-Identifier: GPL-2.0-or-later
"""What pages of a kdump-compressed file are packed with, by their flag.

Of the packages the first that is installed is taken: they do in ten microseconds what
plain Python does in a hundred. makedumpfile writes raw LZO1X and snappy blocks without
headers, zstd frames, and zlib streams.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from gdbkdump.errors import MissingPackageError
from gdbkdump.formats import lzo, snappy

# What unpacks: ``(data, size)`` to exactly ``size`` bytes, else ValueError.
Unpack = Callable[[bytes, int], bytes]

# makedumpfile's diskdump_mod.h: DUMP_DH_COMPRESSED_*.
ZLIB, LZO, SNAPPY, ZSTD = 1, 2, 4, 0x20
_ZSTD_UNKNOWN_SIZE = (-1, (1 << 64) - 1)


class Codec(NamedTuple):
    """A compression method.

    :param name: as makedumpfile's manual has it
    :param debian: package that makes it faster, or without which it cannot be read
    :param pip: the same on PyPI
    """

    name: str
    debian: str
    pip: str


CODECS = {
    ZLIB: Codec("zlib", "", ""),
    LZO: Codec("lzo", "python3-lzo", "python-lzo"),
    SNAPPY: Codec("snappy", "python3-snappy", "python-snappy"),
    ZSTD: Codec("zstd", "python3-zstandard", "zstandard"),
}
ALL_FLAGS = sum(CODECS)


def names(flags: int) -> tuple[str, ...]:
    """Return the names of the methods that a header's flags promise."""
    return tuple(codec.name for flag, codec in CODECS.items() if flags & flag)


def find_codec(flag: int) -> tuple[Unpack, bool]:
    """Return what unpacks pages of that flag, and whether it is the fast one.

    :raise MissingPackageError: only a package does, which is not installed
    """
    return {ZLIB: _zlib, LZO: _lzo, SNAPPY: _snappy, ZSTD: _zstd}[flag]()


def _exact(page: bytes, size: int) -> bytes:
    if len(page) != size:
        raise ValueError(f"{len(page)} bytes where {size} are a page")
    return page


def _package(name: str) -> Any:
    # Optional, and of no use to most dumps: looked for when the first page wants it.
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _zlib() -> tuple[Unpack, bool]:
    def unpack(data: bytes, size: int) -> bytes:
        try:
            return _exact(zlib.decompress(data, zlib.MAX_WBITS, size), size)
        except zlib.error as error:
            raise ValueError(str(error)) from None

    return unpack, True


def _lzo() -> tuple[Unpack, bool]:
    package = _package("lzo")
    if package is None:
        return lambda data, size: _exact(lzo.decompress(data, size), size), False

    def unpack(data: bytes, size: int) -> bytes:
        try:
            return _exact(package.decompress(data, False, size), size)
        except package.error as error:
            raise ValueError(str(error)) from None

    return unpack, True


def _snappy() -> tuple[Unpack, bool]:
    package = _package("snappy")
    if package is None:
        return lambda data, size: _exact(snappy.decompress(data, size), size), False

    def unpack(data: bytes, size: int) -> bytes:
        # The package allocates what the data says it needs.
        if snappy.unpacked_size(data)[0] != size:
            raise ValueError("not a page")
        try:
            return _exact(package.uncompress(data), size)
        except package.UncompressError as error:
            raise ValueError(str(error)) from None

    return unpack, True


def _zstd() -> tuple[Unpack, bool]:
    module = _package("compression.zstd")  # Python 3.14
    if module is not None:
        return _stdlib_zstd(module), True
    package = _package("zstandard")
    if package is None:
        codec = CODECS[ZSTD]
        raise MissingPackageError(codec.pip, codec.debian)
    decompress = package.ZstdDecompressor().decompress

    def unpack(data: bytes, size: int) -> bytes:
        try:
            # It allocates what a frame says it needs, whatever it is told here.
            told = package.frame_content_size(data)
            if told not in (size, *_ZSTD_UNKNOWN_SIZE):
                raise ValueError("not a page")
            return _exact(decompress(data, max_output_size=size), size)
        except package.ZstdError as error:
            raise ValueError(str(error)) from None

    return unpack, True


def _stdlib_zstd(module: Any) -> Unpack:
    def unpack(data: bytes, size: int) -> bytes:
        try:
            stream = module.ZstdDecompressor()
            page: bytes = stream.decompress(data, size + 1)
        except module.ZstdError as error:
            raise ValueError(str(error)) from None
        if not stream.eof:
            raise ValueError("zstd data is cut, or stands for too much")
        return _exact(page, size)

    return unpack
