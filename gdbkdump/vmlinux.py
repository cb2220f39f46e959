# SPDX-License-Identifier: GPL-2.0-or-later
"""The vmlinux of a dump: finding it, and telling whether it is that kernel's.

What the dump says of itself is read through the dump (``.notes`` and ``linux_banner``
in the kernel image): BUILD-ID in VMCOREINFO is garbage in some stable kernels.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdbkdump.errors import (
    FormatError,
    KdumpError,
    MismatchError,
    MissingPackageError,
)
from gdbkdump.formats.notes import parse_notes
from gdbkdump.kernel.utsname import linux_banner

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from elftools.elf.elffile import ELFFile

    from gdbkdump.kernel.base import Kernel
    from gdbkdump.session import Session

_NT_GNU_BUILD_ID = 3
_SHF_ALLOC = 2
# As in init/version-timestamp.c, without its newline.
_BANNER = re.compile(rb"Linux version [^\0\n]{16,480}(?=\n\0)")
_RELEASE = re.compile(rb"Linux version (\S+)")
# No kernel has more of either; bounds a damaged header.
_MAX_NOTES = 1 << 20
_MAX_RODATA = 256 << 20
_DEBUGINFOD_TIMEOUT_S = 900
# R_X86_64_64 and R_X86_64_32: all that call frame information has.
_RELOCATIONS = {1: struct.Struct("<Q"), 10: struct.Struct("<I")}


@dataclass(frozen=True)
class Identity:
    """What tells one kernel build from another.

    :param build_id: in hex, or None where it is not known
    :param banners: what may be ``linux_banner``; a vmlinux holds a second one, the weak
        one that the linker passed over (``init/version.c``)
    """

    release: str | None
    build_id: str | None
    banners: tuple[bytes, ...]

    def __str__(self) -> str:
        """Return release and build-id."""
        release = self.release or "of a release that it does not tell"
        return f"{release} (build-id {self.build_id or 'unknown'})"


@dataclass(frozen=True)
class Vmlinux:
    """A vmlinux file.

    :param has_debug_info: whether it has DWARF itself
    :param text: link address of its ``.text``
    """

    path: Path
    identity: Identity
    has_debug_info: bool
    text: int


def read_vmlinux(path: Path) -> Vmlinux:
    """Return what a vmlinux says of itself.

    :raise FormatError: it is no ELF executable
    """
    with _elf_file(path, "vmlinux") as elf:
        return _read_elf(path, elf)


def read_debug_file(path: Path) -> tuple[str | None, set[str]]:
    """Return build-id and loaded sections of a module's file with debug information.

    :raise FormatError: it is none
    """
    with _elf_file(path, "module") as elf:
        if not _has_debug_info(elf):
            raise FormatError(f"{path} has no debug information")
        names = {
            section.name
            for section in elf.iter_sections()
            if section["sh_flags"] & _SHF_ALLOC
        }
        return _build_id(_contents(elf, ".note.gnu.build-id", _MAX_NOTES)), names


@contextmanager
def _elf_file(path: Path, what: str) -> Iterator[ELFFile]:
    # Late: a session without a vmlinux needs no ELF parser.
    try:
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile
    except ImportError:
        raise MissingPackageError("pyelftools") from None
    try:
        with open(path, "rb") as file:
            if file.read(4) != b"\x7fELF":
                raise FormatError(f"{path} is not a {what}: it is no ELF file")
            yield ELFFile(file)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror}") from None
    except (ELFError, ValueError, OverflowError, MemoryError):
        raise FormatError(f"{path} is a damaged ELF file") from None


def read_debug_frame(path: Path) -> bytes:
    """Return the section .debug_frame of a vmlinux, empty if it has none.

    :raise FormatError: it is no ELF file
    """
    with _elf_file(path, "vmlinux") as elf:
        found = elf.get_section_by_name(".debug_frame")
        # Not _contents(): this section may be compressed.
        return b"" if found is None else bytes(found.data())


def read_module_frame(path: Path, sections: Mapping[str, int]) -> bytes:
    """Return the section .debug_frame of a module, moved to where its code was.

    :param sections: run-time addresses; what is in another section stays near 0
    :raise FormatError: it is no ELF file, or damaged
    """
    with _elf_file(path, "module") as elf:
        found = elf.get_section_by_name(".debug_frame")
        moves = elf.get_section_by_name(".rela.debug_frame")
        data = b"" if found is None else bytes(found.data())
        return _move(elf, data, moves, sections) if data and moves else data


def _move(elf: ELFFile, data: bytes, moves: Any, sections: Mapping[str, int]) -> bytes:
    moved = bytearray(data)
    symbols: Any = elf.get_section(moves["sh_link"])
    for move in moves.iter_relocations():
        form = _RELOCATIONS.get(move["r_info_type"])
        at = move["r_offset"]
        if form is None or at + form.size > len(moved):
            raise FormatError("the relocations of .debug_frame are damaged")
        symbol = symbols.get_symbol(move["r_info_sym"])
        base = 0
        if isinstance(symbol["st_shndx"], int):
            base = sections.get(elf.get_section(symbol["st_shndx"]).name, 0)
        value = base + symbol["st_value"] + move["r_addend"]
        form.pack_into(moved, at, value & (1 << 8 * form.size) - 1)
    return bytes(moved)


def _has_debug_info(elf: ELFFile) -> bool:
    return any(
        elf.get_section_by_name(name) is not None
        for name in (".debug_info", ".zdebug_info")
    )


def _read_elf(path: Path, elf: ELFFile) -> Vmlinux:
    if elf["e_type"] == "ET_CORE":
        raise FormatError(
            f"{path} is not a vmlinux but a core (the dump comes after vmlinux)"
        )
    text = elf.get_section_by_name(".text")
    if text is None:
        raise FormatError(f"{path} is not a vmlinux: it has no .text section")
    notes = b"".join(
        _contents(elf, name, _MAX_NOTES) for name in (".notes", ".note.gnu.build-id")
    )
    banners = tuple(_BANNER.findall(_contents(elf, ".rodata", _MAX_RODATA)))
    release = _release(banners[0]) if banners else None
    identity = Identity(release, _build_id(notes), banners)
    return Vmlinux(path, identity, _has_debug_info(elf), text["sh_addr"])


def _contents(elf: ELFFile, name: str, limit: int) -> bytes:
    # A file of debug information alone has these sections without contents.
    section = elf.get_section_by_name(name)
    if section is None or section["sh_type"] == "SHT_NOBITS":
        return b""
    elf.stream.seek(section["sh_offset"])
    data: bytes = elf.stream.read(min(section["sh_size"], limit))
    return data


def _release(banner: bytes) -> str | None:
    match = _RELEASE.match(banner)
    return match[1].decode("utf-8", "backslashreplace") if match else None


def _build_id(notes: bytes) -> str | None:
    for note in parse_notes(notes, []):
        if note.name == b"GNU" and note.type == _NT_GNU_BUILD_ID and note.desc:
            return note.desc.hex()
    return None


def build_id(path: Path) -> str | None:
    """Return the build-id of a vmlinux in hex, or None where it has none.

    :raise FormatError: it is no ELF executable
    """
    return read_vmlinux(path).identity.build_id


def dump_identity(kernel: Kernel) -> Identity:
    """Return which kernel build the dump is of, as the kernel image in it says."""
    info = kernel.vmcoreinfo
    release = info.osrelease if info else None
    try:
        banner = linux_banner(kernel)
    except KdumpError:
        return Identity(release, _dump_build_id(kernel), ())
    return Identity(_release(banner) or release, _dump_build_id(kernel), (banner,))


def _dump_build_id(kernel: Kernel) -> str | None:
    try:
        start, stop = kernel.symbol("__start_notes"), kernel.symbol("__stop_notes")
        if start < stop <= start + _MAX_NOTES:
            return _build_id(kernel.reader.read(start, stop - start))
    except KdumpError:
        pass  # no such symbols, or the page is not in the dump
    noted = kernel.vmcoreinfo.get("BUILD-ID") if kernel.vmcoreinfo else None
    # All zeros is what the broken kernels write most.
    return noted if noted and noted.strip("0") and len(noted) in (32, 40) else None


def check_vmlinux(kernel: Kernel, path: Path) -> Vmlinux:
    """Return the vmlinux at a path if it is of the very kernel build in the dump.

    :raise MismatchError: it is not, or nothing in it tells
    :raise FormatError: it is no vmlinux at all
    """
    vmlinux = read_vmlinux(path)
    _compare(vmlinux, dump_identity(kernel))
    return vmlinux


def use_vmlinux(session: Session, path: Path, *, force: bool) -> Vmlinux | None:
    """Take the vmlinux that the user named as the session's.

    :param force: with a wrong one go on without any, and say so
    :raise KdumpError: it is a wrong one
    """
    try:
        vmlinux = check_vmlinux(session.kernel, path)
    except (MismatchError, FormatError) as error:
        if not force:
            raise
        session.problems.append(f"{error}; nothing of it is used")
        return None
    session.vmlinux = path
    return vmlinux


def _compare(vmlinux: Vmlinux, theirs: Identity) -> None:
    ours = vmlinux.identity
    has_id = bool(ours.build_id and theirs.build_id)
    has_banner = bool(ours.banners and theirs.banners)
    if (has_id and ours.build_id != theirs.build_id) or (
        has_banner and not set(ours.banners) & set(theirs.banners)
    ):
        raise MismatchError(
            f"{vmlinux.path} is of another kernel build: it is {ours},"
            f" the dump is of {theirs}"
        )
    if not (has_id or has_banner):
        raise MismatchError(
            f"{vmlinux.path} has neither a build-id nor linux_banner: nothing tells"
            " whether it belongs to the dump"
        )


def kaslr_offset(kernel: Kernel, vmlinux: Vmlinux) -> int:
    """Return run-time minus link addresses of the kernel image."""
    noted = kernel.vmcoreinfo.hex("KERNELOFFSET") if kernel.vmcoreinfo else None
    if noted is not None:
        return noted
    return kernel.symbol("_text") - vmlinux.text


def find_vmlinux(
    session: Session, debug_dirs: Sequence[Path] = (), *, debuginfod: bool = True
) -> Path | None:
    """Return the vmlinux of a dump from the usual places, or None.

    These are the current folder, the dump's, and what distributions use. A file counts
    only if it is of the very build; others in these places are passed over.

    :param debug_dirs: roots to search as /usr/lib/debug is searched, before it
    :param debuginfod: ask the servers of DEBUGINFOD_URLS, where it is set, last
    """
    identity = dump_identity(session.kernel)
    near = (Path.cwd(), session.path.parent)
    for path in _candidates(identity, near, debug_dirs):
        if _fits(path, identity):
            return path
    if debuginfod and identity.build_id:
        fetched = _from_debuginfod(identity.build_id)
        if fetched and _fits(fetched, identity):
            return fetched
    return None


def _fits(path: Path, identity: Identity) -> bool:
    try:
        if not path.is_file():
            return False
        _compare(read_vmlinux(path), identity)
    except (KdumpError, OSError):
        return False
    return True


def _candidates(
    identity: Identity, near: Iterable[Path], debug_dirs: Sequence[Path]
) -> Iterator[Path]:
    release = folder_name(identity.release)
    names = ["vmlinux"]
    if release:
        names = [f"vmlinux-{release}", f"vmlinux-{release}.debug", "vmlinux"]
    for folder in near:
        yield from (folder / name for name in names)
    if release:
        yield Path("/lib/modules", release, "build/vmlinux")
    for root in (*debug_dirs, Path("/usr/lib/debug")):
        if release:
            yield from (root / "boot" / name for name in names[:-1])
            yield from _in_modules(root, release)
        if identity.build_id:
            digits = identity.build_id
            yield root / ".build-id" / digits[:2] / f"{digits[2:]}.debug"
        if root in debug_dirs:
            yield from (root / name for name in names)


def folder_name(release: str | None) -> str | None:
    """Return a release if it can be the name of a folder, else None.

    It is text of the dump: it must not lead out of where it is looked for.
    """
    if not release or "/" in release or release in (".", ".."):
        return None
    return release


def module_trees(root: Path, release: str) -> list[Path]:
    """Return where below a root of debug files those of modules may be."""
    return [root / place / release for place in ("lib/modules", "usr/lib/modules")]


def _in_modules(root: Path, release: str) -> Iterator[Path]:
    # Fedora's and openSUSE's packages put it there.
    for folder in module_trees(root, release):
        yield folder / "vmlinux"
        yield folder / "vmlinux.debug"


def _from_debuginfod(digits: str) -> Path | None:
    program = shutil.which("debuginfod-find")
    if program is None or not os.environ.get("DEBUGINFOD_URLS"):
        return None
    try:
        done = subprocess.run(
            [program, "debuginfo", digits],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_DEBUGINFOD_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    answer = os.fsdecode(done.stdout).rstrip("\n")
    return Path(answer) if done.returncode == 0 and answer else None
