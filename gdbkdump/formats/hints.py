# SPDX-License-Identifier: GPL-2.0-or-later
"""What the user says of a dump that does not tell it itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from gdbkdump.errors import CommandError


class Hints(NamedTuple):
    """What is not to be looked for.

    :param base: the file is bare memory, of which this is the first physical address
    :param vmcoreinfo: where VMCOREINFO is: a physical address (of the note, as
        /sys/kernel/vmcoreinfo has it, or of its text), or a file that holds it
    """

    base: int | None = None
    vmcoreinfo: int | Path | None = None


NO_HINTS = Hints()


def parse_hints(base: str | None, vmcoreinfo: str | None) -> Hints:
    """Return what was said in words; addresses are hexadecimal.

    :raise CommandError: it is neither an address nor a file
    """
    return Hints(
        None if base is None else _address("base", base),
        None if vmcoreinfo is None else _place(vmcoreinfo),
    )


def _address(name: str, text: str) -> int:
    if not re.fullmatch(r"(0x)?[0-9a-f]+", text, re.I | re.A):
        raise CommandError(f"{name}: {text!r} is no physical address in hex")
    return int(text, 16)


def _place(text: str) -> int | Path:
    if Path(text).is_file():
        return Path(text)
    if "/" in text:
        raise CommandError(f"vmcoreinfo: there is no file {text}")
    try:
        return _address("vmcoreinfo", text)
    except CommandError:
        raise CommandError(
            f"vmcoreinfo: {text!r} is neither a file nor a physical address in hex"
        ) from None
