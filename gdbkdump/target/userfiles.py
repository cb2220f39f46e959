# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs and libraries of a process: which files, of which build, and their bytes.

The dynamic linker keeps a list of what it loaded (``struct link_map`` of ``link.h``),
which the program's DT_DEBUG leads to. The bytes are in the page cache, with luck all.
"""

from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gdbkdump.errors import CorruptError, KdumpError
from gdbkdump.formats.notes import parse_notes
from gdbkdump.kernel.pagecache import cached_file
from gdbkdump.kernel.process import auxv, executable, executable_path
from gdbkdump.target.elffile import ALLOC, PROGBITS, Section, elf_file
from gdbkdump.target.viewcore import open_private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gdbkdump.formats.base import DumpFile
    from gdbkdump.kernel.base import Kernel
    from gdbkdump.kernel.process import Process
    from gdbkdump.target.userimage import UserImage

    ReadAt = Callable[[int, int], bytes]

_PAGE = 4096
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_WORDS2 = struct.Struct("<QQ")
_LINK_MAP = struct.Struct("<5Q")
_PT_DYNAMIC, _PT_NOTE, _PT_PHDR = 2, 4, 6
_DT_NULL, _DT_DEBUG = 0, 21
_AT_PHDR, _AT_PHENT, _AT_PHNUM, _AT_ENTRY = 3, 4, 5, 9
_NT_GNU_BUILD_ID = 3
# No program has more; each bounds a damaged one.
_MAX_PHDRS, _MAX_DYNAMIC, _MAX_OBJECTS, _MAX_NOTES = 256, 1024, 65536, 1 << 16
_MAX_PATH = 4096
_MAX_EH_FRAME = 256 << 20
# Of a file that is copied out of the page cache.
_MAX_FILE = 4 << 30


@dataclass(frozen=True)
class UserFile:
    """A program or library.

    :param name: as the process calls it: an absolute path
    :param path: where it was, as /proc/PID/maps shows it
    :param file: ``struct file *``
    :param build_id: in hex; None where it has none or its start is not in the dump
    :param shift: by how much a library was moved
    """

    name: bytes
    path: bytes
    file: int
    build_id: str | None
    shift: int = 0


def program_file(kernel: Kernel, dump: DumpFile, process: Process) -> UserFile | None:
    """Return the program of a process, or None where that cannot be told."""
    path = executable_path(kernel, process)
    if not path:
        return None
    return _user_file(kernel, dump, path, path, executable(kernel, process))


def program_shift(kernel: Kernel, process: Process, path: Path) -> int:
    """Return by how much the program of a process was moved.

    :param path: a file with its headers
    :raise CorruptError: neither the file nor the process says where it begins
    """
    with open(path, "rb") as file:
        head = file.read(_EHDR.size)
    entry = _auxv(kernel, process).get(_AT_ENTRY)
    if len(head) < _EHDR.size or entry is None:
        raise CorruptError(f"where {path} was loaded is not known")
    shift: int = entry - _EHDR.unpack(head)[4]
    return shift


def library_files(
    kernel: Kernel, dump: DumpFile, process: Process, image: UserImage
) -> list[UserFile]:
    """Return the libraries that the dynamic linker has loaded, in its order.

    :raise KdumpError: the linker's list is not in the dump, or damaged
    """
    found = []
    for name, dynamic, shift in _link_maps(image, _auxv(kernel, process)):
        mapping = image.find(dynamic)
        if mapping is not None and mapping.vma.file and name.startswith(b"/"):
            file, path = mapping.vma.file, mapping.name
            found.append(_user_file(kernel, dump, name, path, file, shift))
    return found


def _auxv(kernel: Kernel, process: Process) -> dict[int, int]:
    return dict(_WORDS2.iter_unpack(auxv(kernel, process)))


def _link_maps(
    image: UserImage, vector: dict[int, int]
) -> Iterator[tuple[bytes, int, int]]:
    # Name, address of the dynamic section, shift of each; the program has no name.
    node = _first_link_map(image, vector)
    seen: set[int] = set()
    while node:
        if node in seen or len(seen) == _MAX_OBJECTS:
            raise CorruptError(f"the dynamic linker's list loops at {node:#x}")
        seen.add(node)
        shift, name, dynamic, node, _ = _LINK_MAP.unpack(
            image.read(node, _LINK_MAP.size)
        )
        yield _c_string(image, name), dynamic, shift


def _first_link_map(image: UserImage, vector: dict[int, int]) -> int:
    # elf_locate_base() of gdb: the program headers in memory, PT_DYNAMIC, DT_DEBUG.
    table, count = vector.get(_AT_PHDR), vector.get(_AT_PHNUM, 0)
    if not table or count > _MAX_PHDRS or vector.get(_AT_PHENT) != _PHDR.size:
        return 0
    headers = list(_PHDR.iter_unpack(image.read(table, count * _PHDR.size)))
    own = next((vaddr for type_, _, _, vaddr, *_ in headers if type_ == _PT_PHDR), None)
    bias = 0 if own is None else table - own
    dynamic = next((h[3] + bias for h in headers if h[0] == _PT_DYNAMIC), 0)
    for i in range(_MAX_DYNAMIC if dynamic else 0):
        tag, value = _WORDS2.unpack(image.read(dynamic + 16 * i, 16))
        if tag == _DT_NULL:
            break
        if tag == _DT_DEBUG and value:
            # struct r_debug: int r_version, struct link_map *r_map.
            return int(_WORDS2.unpack(image.read(value, 16))[1])
    return 0


def _c_string(image: UserImage, address: int) -> bytes:
    text = b""
    while address and len(text) < _MAX_PATH:
        piece, nul, _ = image.read(address, _PAGE - address % _PAGE).partition(b"\0")
        text += piece
        address += len(piece)
        if nul:
            break
    return text[:_MAX_PATH]


def _user_file(
    kernel: Kernel, dump: DumpFile, name: bytes, path: bytes, file: int, shift: int = 0
) -> UserFile:
    try:
        build_id = read_build_id(_CachedBytes(kernel, dump, file).read)
    except KdumpError:
        build_id = None
    return UserFile(name, path, file, build_id, shift)


def copy_file(kernel: Kernel, dump: DumpFile, file: int, target: Path) -> None:
    """Copy a file out of the page cache; only its owner may read the copy.

    :raise KdumpError: not all of it is in the dump
    :raise OSError: it cannot be written
    """
    cached = _CachedBytes(kernel, dump, file)
    if not 0 < cached.size <= _MAX_FILE:
        raise CorruptError(f"a program or library of {cached.size} bytes")
    with contextlib.ExitStack() as undo, open_private(target) as out:
        undo.callback(target.unlink)
        for at in range(0, cached.size, 1 << 20):
            out.write(cached.read(at, 1 << 20))
        undo.pop_all()


class _CachedBytes:
    # A file by offset, as far as it is in the page cache and that in the dump.
    def __init__(self, kernel: Kernel, dump: DumpFile, file: int) -> None:
        self._cached = cached_file(kernel, file)
        self._dump = dump
        self.size = self._cached.size

    def read(self, offset: int, size: int) -> bytes:
        size = max(0, min(size, self.size - offset))
        first, end = offset // _PAGE, -(-(offset + size) // _PAGE)
        pieces = []
        for low, high, paddr in self._cached.pages(first, end):
            if low != first:
                break
            pieces.append(self._dump.read_phys(paddr, (high - low) * _PAGE))
            first = high
        if first < end:
            raise CorruptError(f"page {first} of the file is not in the page cache")
        start = offset % _PAGE
        return b"".join(pieces)[start : start + size]


def unwind_file(image: UserImage, debug: Path, shift: int) -> bytes:
    """Return an ELF file with the rules for unwinding a program or library.

    A file with debug information alone says where they are, the process has them.

    :param debug: that file
    :param shift: by how much the program or library was moved
    :raise KdumpError: they are not in the dump, or it does not say where
    """
    address, size = _find_eh_frame(debug)
    if not 0 < size <= _MAX_EH_FRAME:
        raise CorruptError(f"{debug}: an .eh_frame of {size} bytes")
    address = (address + shift) & 0xFFFFFFFFFFFFFFFF
    data = image.read(address, size)
    return elf_file([Section(".eh_frame", PROGBITS, data, ALLOC, address, align=8)])


def _find_eh_frame(path: Path) -> tuple[int, int]:
    with open(path, "rb") as file:
        fd = file.fileno()
        head = os.pread(fd, _EHDR.size, 0)
        if len(head) < _EHDR.size:
            raise CorruptError(f"{path} is cut")
        *_, shoff, _, _, _, _, shentsize, count, index = _EHDR.unpack(head)
        table = os.pread(fd, count * shentsize, shoff) if shoff >> 63 == 0 else b""
        if shentsize != _SHDR.size or len(table) != count * shentsize or index >= count:
            raise CorruptError(f"{path} has no section headers")
        sections = list(_SHDR.iter_unpack(table))
        names = os.pread(fd, min(sections[index][5], _MAX_NOTES), sections[index][4])
    for name, _, _, address, _, size, *_ in sections:
        if names[name : name + 10] == b".eh_frame\0":
            return address, size
    raise CorruptError(f"{path} has no .eh_frame")


def path_below(root: Path, name: bytes) -> Path:
    """Return a path of the process as one below a folder, which it never leaves."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".", b"..")]
    return root.joinpath(*map(os.fsdecode, parts))


def read_build_id(read: ReadAt) -> str | None:
    """Return the build-id of an ELF file in hex, or None where it has none.

    :param read: gives bytes at an offset, fewer at the end
    """
    head = read(0, _EHDR.size)
    if len(head) < _EHDR.size or head[:6] != b"\x7fELF\x02\x01":
        return None
    _, _, _, _, _, phoff, _, _, _, phentsize, phnum, *_ = _EHDR.unpack(head)
    if phentsize != _PHDR.size or phnum > _MAX_PHDRS:
        return None
    table = read(phoff, phnum * _PHDR.size)
    for header in _PHDR.iter_unpack(table[: len(table) // _PHDR.size * _PHDR.size]):
        type_, _, offset, _, _, size, *_ = header
        if type_ == _PT_NOTE:
            for note in parse_notes(read(offset, min(size, _MAX_NOTES)), []):
                if note.name == b"GNU" and note.type == _NT_GNU_BUILD_ID:
                    return note.desc.hex()
    return None


def file_build_id(path: Path) -> str | None:
    """Return the build-id of a file of this machine; None where it is no such file."""
    try:
        # The name is the dump's: to open a device might do something.
        if not path.is_file():
            return None
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return None
    try:
        return read_build_id(lambda offset, size: os.pread(fd, size, offset))
    except (OSError, OverflowError, struct.error):
        return None
    finally:
        os.close(fd)
