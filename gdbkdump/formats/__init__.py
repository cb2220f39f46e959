# SPDX-License-Identifier: GPL-2.0-or-later
"""Dump files: bytes on disk to physical memory and notes; knows no kernel struct."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from gdbkdump.errors import FormatError
from gdbkdump.formats.elf import ElfDump

if TYPE_CHECKING:
    from pathlib import Path

    from gdbkdump.formats.base import DumpFile

# First bytes of what is not (or not yet) read, and what to do about it.
_ADVICE: tuple[tuple[int, bytes, str], ...] = (
    (
        0,
        b"KDUMP   ",
        "a kdump-compressed dump: convert it with makedumpfile -E or crash",
    ),
    (0, b"DISKDUMP", "an old diskdump file, which is not supported"),
    (0, b"makedumpfile\0", "a flattened dump: restore it with makedumpfile -R first"),
    (0, b"\xed\x23\x8f\x61\x73\x01\x19\xa8", "an LKCD dump, which is not supported"),
    (0, b"\xa8\x19\x01\x73\x61\x8f\x23\xed", "an LKCD dump, which is not supported"),
    (0, bytes.fromhex("a8190173618f23fd"), "an s390 stand-alone dump, not supported"),
    (0, b"sadu\0\0mp", "a sadump file, which is not supported"),
    (0, b"\xd2\xbe\xd2\xbe", "a VMware snapshot: convert it with vmss2core"),
    (0, b"\xd3\xbe\xd3\xbe", "a VMware snapshot: convert it with vmss2core"),
    (0, b"\xd0\xbe\xd0\xbe", "a VMware snapshot: convert it with vmss2core"),
    (0, b"QEVM", "a QEMU migration stream: dump with virsh dump --memory-only"),
    (0, b"Libv", "a libvirt save image: dump with virsh dump --memory-only"),
    (0, b"\xed\xeb\x0f\xf0", "an old Xen core, which is not supported"),
    (0, b"\xee\xeb\x0f\xf0", "an old Xen core, which is not supported"),
    (0, b"EMiL", "a LiME memory image, which is not supported"),
    (0, b"AVML", "an AVML memory image, which is not supported"),
    (0, b"PAGEDU64", "a Windows crash dump"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd-compressed file: decompress it first"),
    (0, b"\x1f\x8b", "a gzip-compressed file: decompress it first"),
    (0, b"\xfd7zXZ\0", "an xz-compressed file: decompress it first"),
    (0, b"BZh", "a bzip2-compressed file: decompress it first"),
    (257, b"ustar", "a tar archive: unpack it first"),
)


def open_dump(path: Path) -> DumpFile:
    """Open the dump file at ``path``.

    :raise FormatError: it is none that we read; the message names what it is
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise FormatError(f"cannot open {path}: {error.strerror}") from None
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise FormatError(f"{path} is a directory, not a dump")
        head = os.pread(fd, 512, 0)
        if head[:4] == b"\x7fELF":
            return ElfDump(path, fd)
        raise FormatError(f"{path} is not an ELF vmcore: {_describe(head)}")
    except OSError as error:
        os.close(fd)
        raise FormatError(f"cannot read {path}: {error.strerror}") from None
    except FormatError:
        os.close(fd)
        raise


def _describe(head: bytes) -> str:
    if not head:
        return "it is empty"
    for offset, magic, what in _ADVICE:
        if head[offset : offset + len(magic)] == magic:
            return f"it is {what}"
    return "no known dump format starts like this"
