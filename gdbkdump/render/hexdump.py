# SPDX-License-Identifier: GPL-2.0-or-later
"""Bytes as words and as text."""

from __future__ import annotations

_PRINTABLE = bytes(byte if 32 <= byte < 127 else ord(".") for byte in range(256))


def words_of(data: bytes, bits: int) -> list[int]:
    """Return the little-endian words of ``bits`` bits; a cut last one is as it is."""
    size = bits // 8
    return [
        int.from_bytes(data[at : at + size], "little")
        for at in range(0, len(data), size)
    ]


def signed(word: int, bits: int) -> int:
    """Return a word as two's complement."""
    return word - (1 << bits) if word >> (bits - 1) else word


def ascii_text(data: bytes) -> str:
    """Return the bytes as text, a dot for each that is not printable ASCII."""
    return data.translate(_PRINTABLE).decode("ascii")
