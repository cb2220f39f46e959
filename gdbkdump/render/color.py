# SPDX-License-Identifier: GPL-2.0-or-later
"""Colour: our style names to terminal sequences, by pygments' token styles."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pygments.token import _TokenType

# Style names that blocks use, and the pygments token that each looks like.
STYLES = {
    "address": "Literal.Number.Hex",
    "symbol": "Name.Function",
    "type": "Keyword.Type",
    "member": "Name.Attribute",
    "string": "Literal.String",
    "number": "Literal.Number",
    "comm": "Name.Class",
    "state": "Keyword",
    "file": "Comment",
    "heading": "Generic.Heading",
    "note": "Generic.Emph",
    "error": "Generic.Error",
    "dim": "Comment",
}


@lru_cache(maxsize=64)
def _sequences(style: str) -> tuple[str, str]:
    from pygments.formatters import Terminal256Formatter
    from pygments.token import string_to_tokentype

    token: _TokenType | None = string_to_tokentype(STYLES[style])
    formatter = Terminal256Formatter(style="default")
    while token is not None:
        # A style defines few tokens; the rest look like the token above them.
        found = formatter.style_string.get(str(token))
        if found is not None and found[0]:
            return found[0], found[1]
        token = token.parent
    return "", ""


def paint(style: str, text: str) -> str:
    """Return the text between the sequences of a style; text must be escaped."""
    if not style or not text:
        return text
    start, end = _sequences(style)
    return f"{start}{text}{end}"
