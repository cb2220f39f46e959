# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that are no dump we read: what they are, and what to do about it."""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import tarfile
import zipfile

import pytest

from gdbkdump.errors import FormatError
from gdbkdump.formats import open_dump


def tar():
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("vmcore"))
    return made.getvalue()


def zipped():
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("vmcore", "x")
    return made.getvalue()


@pytest.mark.parametrize(
    ("head", "advice"),
    [
        (b"", "it is empty"),
        (b"\0" * 4096, "no known dump format"),
        (gzip.compress(b"x" * 4096), "gzip-compressed file: decompress it first"),
        (lzma.compress(b"x" * 4096), "xz-compressed file: decompress it first"),
        (struct.pack("<I", 0xFD2FB528), "zstd-compressed file: decompress it first"),
        (struct.pack("<I", 0x184D2204), "lz4-compressed file: decompress it first"),
        (tar(), "a tar archive: unpack it first"),
        (zipped(), "a zip archive: unpack it first"),
        # include/migration/qemu-file-types.h: QEMU_VM_FILE_MAGIC, big-endian.
        (struct.pack(">I", 0x5145564D), "virsh dump --memory-only"),
        (b"LibvirtQemudSave", "virsh dump --memory-only"),
        (struct.pack("<I", 0xBED2BED2), "vmss2core"),
        (struct.pack("<I", 0xBED3BED3), "vmss2core"),
        (struct.pack("<I", 0xF00FEBED), "an old Xen core"),
        (struct.pack("<I", 0x4C4D5641), "convert it with avml-convert"),
        (b"PAGEDU64", "a Windows crash dump"),
        (b"MDMP\x93\xa7\0\0", "a minidump of a Windows program"),
        # qemu block/qcow2.h: QCOW_MAGIC, big-endian.
        (struct.pack(">I", 0x514649FB), "virsh dump --memory-only"),
        # mm/swapfile.c and kernel/power/swap.c: the last 10 bytes of the first page.
        (bytes(4086) + b"SWAPSPACE2" + bytes(4096), "swap space, without a dump"),
        (bytes(4086) + b"S1SUSPEND\0" + bytes(4096), "a hibernation image"),
    ],
)
def test_what_is_no_dump_is_named(tmp_path, head, advice):
    path = tmp_path / "vmcore"
    path.write_bytes(head)
    with pytest.raises(FormatError) as raised:
        open_dump(path)
    assert advice in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
