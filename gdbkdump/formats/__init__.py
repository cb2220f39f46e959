# SPDX-License-Identifier: GPL-2.0-or-later
"""Dump files: bytes on disk to physical memory and notes; knows no kernel struct."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gdbkdump.errors import CommandError, FormatError
from gdbkdump.formats.base import silent
from gdbkdump.formats.file import PlainFile
from gdbkdump.formats.pagecache import DEFAULT_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gdbkdump.formats.base import DumpFile, Report
    from gdbkdump.formats.file import DumpBytes

    Open = Callable[[list[DumpBytes], Report, int], DumpFile]

# First bytes of what is not (or not yet) read, and what to do about it.
_ADVICE: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xd2\xbe\xd2\xbe", "a VMware snapshot: convert it with vmss2core"),
    (0, b"\xd3\xbe\xd3\xbe", "a VMware snapshot: convert it with vmss2core"),
    (0, b"\xd0\xbe\xd0\xbe", "a VMware snapshot: convert it with vmss2core"),
    (0, b"QEVM", "a QEMU migration stream: dump with virsh dump --memory-only"),
    (0, b"Libv", "a libvirt save image: dump with virsh dump --memory-only"),
    (0, b"\xed\xeb\x0f\xf0", "an old Xen core, which is not supported"),
    (0, b"\xee\xeb\x0f\xf0", "an old Xen core, which is not supported"),
    (
        0,
        b"AVML",
        "a compressed AVML memory image: convert it with avml-convert",
    ),
    (0, b"PAGEDU64", "a Windows crash dump"),
    (0, b"PAGEDUMP", "a Windows crash dump"),
    (0, b"MDMP", "a minidump of a Windows program"),
    (
        0,
        b"QFI\xfb",
        "a disk image (qcow2), which has no memory that is read here: dump the guest"
        " with virsh dump --memory-only",
    ),
    (
        4086,
        b"S1SUSPEND",
        "a hibernation image, which is not supported: resume from it, then see"
        " /proc/kcore or let kdump save a dump",
    ),
    (4086, b"SWAPSPACE2", "swap space, without a dump in it"),
    (
        0,
        b"\x7fVirtualBox SavedState",
        "a saved state of VirtualBox: dump with VBoxManage debugvm VM dumpvmcore",
    ),
    (0, b"\x28\xb5\x2f\xfd", "a zstd-compressed file: decompress it first"),
    (0, b"\x1f\x8b", "a gzip-compressed file: decompress it first"),
    (0, b"\xfd7zXZ\0", "an xz-compressed file: decompress it first"),
    (0, b"BZh", "a bzip2-compressed file: decompress it first"),
    (0, b"\x04\x22\x4d\x18", "an lz4-compressed file: decompress it first"),
    (0, b"\x89LZO\0", "an lzop-compressed file: decompress it first"),
    (0, b"PK\3\4", "a zip archive: unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it first"),
    (257, b"ustar", "a tar archive: unpack it first"),
)


def open_dump(
    path: Path,
    *more: Path,
    base: int | None = None,
    report: Report = silent,
    cache_bytes: int = DEFAULT_BYTES,
) -> DumpFile:
    """Open the dump at ``path``.

    :param path: or ``remote:...`` (see remote.py)
    :param more: the other files of a split dump; without them those beside the first
        are looked for
    :param base: physical address of the first byte of bare memory
    :param report: called with what is being done, done, total on long work
    :param cache_bytes: to be kept of what was unpacked, or came over a connection
    :raise FormatError: it is none that we read; the message names what it is
    :raise MissingPackageError: a package is needed to read it
    """
    if is_remote(path):
        from gdbkdump.formats.remote import RemoteDump

        return RemoteDump(path, report, cache_bytes)
    files: list[DumpBytes] = []
    try:
        for each in (path, *more):
            files.append(PlainFile(each))
            files[-1] = _unflatten(files[-1], report)
        if base is not None:
            return _open_raw(files, base)
        return _open_files(files, report, cache_bytes)
    except OSError as error:
        _close(files)
        raise FormatError(f"cannot read {path}: {error.strerror}") from None
    except BaseException:
        # Whatever it is, Ctrl-C for one: nobody else can close them.
        _close(files)
        raise


def is_remote(path: Path) -> bool:
    """Tell whether a path is none, but says which server has the dump."""
    return str(path).startswith("remote:")


def dump_path(name: str | Path) -> Path:
    """Return the path of a dump as it holds in any folder."""
    path = Path(name)
    return path if is_remote(path) else path.absolute()


def is_executable(path: Path) -> bool:
    """Tell whether a file is a vmlinux or the like: ELF, and no core."""
    try:
        file = PlainFile(path)
        head = file.read_header(0, 18)
        file.close()
    except FormatError:
        return False
    return head[:4] == b"\x7fELF" and head[16:18] in (b"\1\0", b"\2\0", b"\3\0")


def sort_files(files: Sequence[Path]) -> tuple[list[Path], Path | None]:
    """Return the files of a dump and the vmlinux, if there is one among them.

    They are told by what they are: gdb's users name vmlinux first, crash's last.

    :raise CommandError: there are two vmlinux
    :raise FormatError: there is no dump
    """
    vmcores = [path for path in files if not is_executable(path)]
    rest = [path for path in files if path not in vmcores]
    if len(rest) > 1:
        raise CommandError(f"{rest[0]} and {rest[1]} are both no dump: one vmlinux")
    if not vmcores:
        raise FormatError(f"{rest[0]} is not a dump but an executable: name the dump")
    return vmcores, rest[0] if rest else None


def is_process_core(path: Path) -> bool:
    """Tell whether a file is an ELF core of no kernel, which is gdb's own business.

    A process has an auxiliary vector, and no physical addresses (fs/binfmt_elf.c).
    """
    from gdbkdump.formats.elf import ElfDump
    from gdbkdump.formats.notes import NT_AUXV

    try:
        file = PlainFile(path)
    except FormatError:
        return False
    try:
        if file.read_header(0, 4) != b"\x7fELF":
            return False
        dump = ElfDump(file)
        # Of a dump that is cut there may be no memory left.
        if not dump.is_incomplete and not any(extent.paddr for extent in dump.extents):
            return True
        notes = dump.notes
        return any(note.name == b"CORE" and note.type == NT_AUXV for note in notes)
    except (FormatError, OSError):
        return False
    finally:
        file.close()


def _close(files: Sequence[DumpBytes]) -> None:
    for file in files:
        file.close()


def _unflatten(file: DumpBytes, report: Report) -> DumpBytes:
    if file.read_header(0, len(_FLATTENED)) != _FLATTENED:
        return file
    from gdbkdump.formats.flattened import FlattenedFile

    return FlattenedFile(file, report)


def _open_files(files: list[DumpBytes], report: Report, cache_bytes: int) -> DumpFile:
    heads = [_head(file) for file in files]
    for magic, opener in _FORMATS:
        if heads[0].startswith(magic):
            for file, head in zip(files, heads, strict=True):
                if not head.startswith(magic):
                    raise FormatError(
                        f"{file.path} is not of one dump with {files[0].path}"
                    )
            return opener(files, report, cache_bytes)
    head = files[0].read_header(0, _MAX_HEAD)
    raise FormatError(f"{files[0].path} is not a vmcore: {_describe(head)}")


def _head(file: DumpBytes) -> bytes:
    head = file.read_header(0, 512)
    if not any(head.startswith(magic) for magic, _ in _FORMATS):
        # A backup of a sadump has a block of its medium before all else.
        behind = file.read_header(4096, len(_SADUMP))
        if behind == _SADUMP:
            return behind
    return head


def _open_elf(files: list[DumpBytes], report: Report, cache_bytes: int) -> DumpFile:
    # Imported here, as each of the others: a session has one format.
    from gdbkdump.formats.elf import ElfDump

    if len(files) > 1:
        raise FormatError(
            f"{files[0].path} and {files[1].path} are two dumps, not parts of one"
        )
    return ElfDump(files[0])


def _open_diskdump(
    files: list[DumpBytes], report: Report, cache_bytes: int
) -> DumpFile:
    from gdbkdump.formats.diskdump import DiskDump
    from gdbkdump.formats.splitset import find_others

    named = len(files)
    if named == 1:
        files += find_others(files[0])
    try:
        return DiskDump(files, report, cache_bytes)
    except FormatError as error:
        if len(files) == named:
            raise
        # Nobody named those: one that is damaged must not take the first one along.
        _close(files[named:])
        del files[named:]
        dump = DiskDump(files, report, cache_bytes)
        dump.problems.insert(0, f"the files beside it are left out, as {error}")
        return dump


def _open_raw(files: list[DumpBytes], base: int) -> DumpFile:
    from gdbkdump.formats.raw import open_bare

    if len(files) > 1:
        raise FormatError(f"{files[0].path}: bare memory has to be one file")
    head = files[0].read_header(0, 16)
    if files[0].kind or any(head.startswith(magic) for magic, _ in _FORMATS):
        raise FormatError(
            f"{files[0].path} is no bare memory but a dump that tells where its memory"
            " is: no base is needed"
        )
    return open_bare(files[0], base)


def _open_lime(files: list[DumpBytes], report: Report, cache_bytes: int) -> DumpFile:
    from gdbkdump.formats.raw import open_lime

    if len(files) > 1:
        raise FormatError(f"{files[0].path}: a memory image has to be one file")
    return open_lime(files[0], report)


def _open_sadump(files: list[DumpBytes], report: Report, cache_bytes: int) -> DumpFile:
    from gdbkdump.formats.sadump import SadumpDump

    return SadumpDump(files, report)


def _open_with_library(
    files: list[DumpBytes], report: Report, cache_bytes: int
) -> DumpFile:
    from gdbkdump.formats.library import LibraryDump

    if len(files) > 1:
        raise FormatError(f"{files[0].path}: of this format only one file can be read")
    dump = LibraryDump(files[0].path)
    files[0].close()
    return dump


def _open_s390(files: list[DumpBytes], report: Report, cache_bytes: int) -> DumpFile:
    from gdbkdump.formats.library import NoLibraryError

    try:
        return _open_with_library(files, report, cache_bytes)
    except NoLibraryError:
        # Nobody need install it to be told then.
        raise FormatError(
            f"{files[0].path} is a dump of an s390 machine, and only x86-64 is"
            " supported (crash, built for that machine, reads it)"
        ) from None


_MAX_HEAD = 4096
_FLATTENED = b"makedumpfile\0\0\0\0"
_SADUMP = b"sadump\0\0"
# First bytes of what is read, and what reads it.
_FORMATS: tuple[tuple[bytes, Open], ...] = (
    (b"\x7fELF", _open_elf),
    (b"KDUMP   ", _open_diskdump),
    (b"EMiL", _open_lime),
    (b"DISKDUMP", _open_with_library),  # before kdump
    (b"\xed\x23\x8f\x61\x73\x01\x19\xa8", _open_with_library),  # LKCD
    (b"\xa8\x19\x01\x73\x61\x8f\x23\xed", _open_with_library),  # big-endian
    (b"\xa8\x19\x01\x73\x61\x8f\x23\xfd", _open_s390),  # stand-alone
    (_SADUMP, _open_sadump),
)


def _describe(head: bytes) -> str:
    if not head:
        return "it is empty"
    for offset, magic, what in _ADVICE:
        if head[offset : offset + len(magic)] == magic:
            return f"it is {what}"
    return (
        "no known dump format starts like this (of bare memory say the first physical"
        " address: gdbkdump --base 0)"
    )
