# SPDX-License-Identifier: GPL-2.0-or-later
"""LZO1X in plain Python, for where no package is installed.

Mirrors ``lib/lzo/lzo1x_decompress_safe.c`` (the format is told in
``Documentation/staging/lzo.rst``). Slow, by Python's measure fast: one token at a time,
everything else in slices.
"""

from __future__ import annotations


def decompress(data: bytes, size: int) -> bytes:
    """Return what ``data`` stands for.

    :param size: bytes that it may be at most
    :raise ValueError: it is damaged, or stands for more
    """
    try:
        out, used = _decompress(data, size)
    except IndexError:
        raise ValueError("LZO data is cut") from None
    if used != len(data):
        raise ValueError("LZO data goes on after its end")
    if len(out) > size:
        raise ValueError("LZO data stands for too much")
    return bytes(out)


def _first_literals(data: bytes) -> tuple[int, int]:
    # A first byte above 17 is a run of its own; state 4 is that after a long run.
    count = data[0] - 17
    return (count, min(count, 4)) if count > 0 else (0, 0)


def _decompress(data: bytes, size: int) -> tuple[bytearray, int]:
    # Whatever is read past the end makes the next token an IndexError.
    count, state = _first_literals(data)
    at = 1 + count if count else 0
    out = bytearray(data[1:at])
    while True:
        token = data[at]
        at += 1
        if token >= 64:
            length = (token >> 5) + 1
            distance = 1 + (token >> 2 & 7) + (data[at] << 3)
            state = token & 3
            at += 1
        elif token >= 16:
            bits = 31 if token >= 32 else 7
            length = token & bits
            if not length:
                length, at = _long(data, at, bits)
            length += 2
            low = data[at]
            distance = low >> 2 | data[at + 1] << 6
            at += 2
            state = low & 3
            if token >= 32:
                distance += 1
            else:
                distance += (token & 8) << 11
                if not distance:
                    return out, at
                distance += 0x4000
        elif state == 0:
            if not token:
                token, at = _long(data, at, 15)
            end = at + token + 3
            out += data[at:end]
            at = end
            state = 4
            continue
        else:
            # After a long run the match is a byte longer and further away.
            length, nearest = (3, 2049) if state == 4 else (2, 1)
            distance = nearest + (token >> 2) + (data[at] << 2)
            at += 1
            state = token & 3
        # Not a function of its own: that alone would cost a quarter more.
        start = len(out) - distance
        if start < 0:
            raise ValueError("an LZO match is before the beginning")
        if length <= distance:
            out += out[start : start + length]
        elif length > size:
            raise ValueError("LZO data stands for too much")
        else:
            # It overlaps what it makes: a pattern.
            out += (out[start:] * (length // distance + 1))[:length]
        if state:
            out += data[at : at + state]
            at += state


def _long(data: bytes, at: int, base: int) -> tuple[int, int]:
    # A length that does not fit: zeros count 255 each.
    start = at
    while not data[at]:
        at += 1
    return (at - start) * 255 + base + data[at], at + 1
