# SPDX-License-Identifier: GPL-2.0-or-later
"""The other files of a split dump, found beside the first by their names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gdbkdump.errors import FormatError
from gdbkdump.formats.diskdump import MAGIC, read_header
from gdbkdump.formats.file import PlainFile

if TYPE_CHECKING:
    from pathlib import Path

    from gdbkdump.formats.file import DumpBytes

_NUMBER = re.compile(r"(.*?)(\d+)(\D*)", re.S)
_MAX_FILES = 1024


def find_others(first: DumpBytes) -> list[DumpBytes]:
    """Return the files that are named as the first but for a number (vmcore1, vmcore2).

    Only those that are of the same set count; they are of no use to another dump.
    """
    header = read_header(first)
    if not header.is_split:
        return []
    found: list[DumpBytes] = []
    ranges = {(header.start_pfn, header.end_pfn)}
    for path in _named_alike(first.path):
        file = _open(path)
        if file is None:
            continue
        try:
            other = read_header(file)
        except FormatError:
            file.close()
            continue
        place = (other.start_pfn, other.end_pfn)
        is_part = other.is_split and other.identity == header.identity
        if is_part and (place not in ranges or place[0] == place[1]):
            ranges.add(place)
            found.append(file)
        else:
            file.close()
    return found


def _open(path: Path) -> DumpBytes | None:
    try:
        file = PlainFile(path)
    except FormatError:
        return None
    if file.read_header(0, len(MAGIC)) == MAGIC:
        return file
    file.close()
    return None


def _named_alike(path: Path) -> list[Path]:
    match = _NUMBER.fullmatch(path.name)
    if match is None:
        return []
    before, _, after = match.groups()
    alike = re.compile(rf"{re.escape(before)}\d+{re.escape(after)}")
    try:
        names = sorted(p.name for p in path.parent.iterdir() if alike.fullmatch(p.name))
    except OSError:
        return []
    return [path.parent / name for name in names[:_MAX_FILES] if name != path.name]
