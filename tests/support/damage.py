# SPDX-License-Identifier: GPL-2.0-or-later
"""Damage to a copy of a dump, which is undone."""

from __future__ import annotations

import os
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_PHDR = struct.Struct("<IIQQQQQQ")
_PT_LOAD = 1
_PAGE = 4096


@contextmanager
def changed(path: Path, patches: Sequence[tuple[int, bytes]]) -> Iterator[None]:
    """Write (offset, bytes) into the file, and take them back."""
    fd = os.open(path, os.O_RDWR)
    before = [(at, os.pread(fd, len(data), at)) for at, data in patches]
    try:
        for at, data in patches:
            os.pwrite(fd, data, at)
        yield
    finally:
        for at, data in before:
            os.pwrite(fd, data, at)
        os.close(fd)


@contextmanager
def without_page(path: Path, paddr: int) -> Iterator[None]:
    """Let an ELF dump lack a page, as if it had been left out when it was saved."""
    page, size = paddr & -_PAGE, path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
        (phoff,) = struct.unpack_from("<Q", head, 32)
        (count,) = struct.unpack_from("<H", head, 56)
        file.seek(phoff)
        headers = list(_PHDR.iter_unpack(file.read(count * _PHDR.size)))
    table = [part for header in headers for part in _split(header, page)]
    patches = [
        (32, struct.pack("<Q", size)),
        (56, struct.pack("<H", len(table))),
        (size, b"".join(_PHDR.pack(*header) for header in table)),
    ]
    with changed(path, patches):
        yield
    os.truncate(path, size)


def _split(header: tuple[int, ...], page: int) -> Iterator[tuple[int, ...]]:
    type_, flags, offset, vaddr, paddr, filesz, memsz, align = header
    if type_ != _PT_LOAD or not paddr <= page < paddr + filesz:
        yield header
        return
    before = page - paddr
    yield type_, flags, offset, vaddr, paddr, before, before + _PAGE, align
    after = before + _PAGE
    yield (type_, flags, offset + after, vaddr + after, paddr + after,
           filesz - after, memsz - after, align)  # fmt: skip
