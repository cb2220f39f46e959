# SPDX-License-Identifier: GPL-2.0-or-later
"""Snappy blocks in plain Python, for where no package is installed.

Mirrors snappy's ``format_description.txt``.
"""

from __future__ import annotations


def unpacked_size(data: bytes) -> tuple[int, int]:
    """Return how many bytes a block stands for, and where its elements begin.

    :raise ValueError: that is cut or absurd
    """
    size = 0
    for i, byte in enumerate(data[:5]):
        size |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return size, i + 1
    raise ValueError("a snappy block without a length")


def decompress(data: bytes, size: int) -> bytes:
    """Return what ``data`` stands for.

    :param size: bytes that it may be at most
    :raise ValueError: it is damaged, or stands for more
    """
    told, at = unpacked_size(data)
    if told > size:
        raise ValueError("a snappy block stands for too much")
    out = bytearray()
    end = len(data)
    while at < end:
        tag = data[at]
        at += 1
        kind = tag & 3
        if kind == 0:
            length, at = _literal(data, at, tag >> 2)
            out += data[at : at + length]
            at += length
        else:
            if kind == 1:
                length, extra, high = (tag >> 2 & 7) + 4, 1, tag >> 5 << 8
            else:
                length, extra, high = (tag >> 2) + 1, 2 * kind - 2, 0
            distance = high | int.from_bytes(data[at : at + extra], "little")
            at += extra
            start = len(out) - distance
            if not distance or start < 0:
                raise ValueError("a snappy copy is out of bounds")
            if length <= distance:
                out += out[start : start + length]
            else:
                out += (out[start:] * (length // distance + 1))[:length]
        if len(out) > told:
            break
    if at != end or len(out) != told:
        raise ValueError("a snappy block is damaged")
    return bytes(out)


def _literal(data: bytes, at: int, length: int) -> tuple[int, int]:
    # Lengths from 60 on say in how many bytes the length is.
    if length < 60:
        return length + 1, at
    extra = length - 59
    return int.from_bytes(data[at : at + extra], "little") + 1, at + extra
