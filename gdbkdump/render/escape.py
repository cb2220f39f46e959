# SPDX-License-Identifier: GPL-2.0-or-later
"""Text of a dump made safe for a terminal."""

from __future__ import annotations

import re

# Control characters of C0 and C1, and what Unicode uses to reorder or break lines.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def escape(text: str) -> str:
    r"""Return the text with control characters as ``\xNN``, safe for any terminal."""
    if text.isascii() and text.isprintable():
        return text
    return _CONTROL.sub(_escape_one, text)


def _escape_one(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def decode(raw: bytes) -> str:
    r"""Return bytes of the dump as text; what is no UTF-8 becomes ``\xNN``."""
    return raw.decode("utf-8", "backslashreplace")
