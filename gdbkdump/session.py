# SPDX-License-Identifier: GPL-2.0-or-later
"""The composition root: a dump opened, its kernel understood, and no gdb in sight."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.arch import find_arch
from gdbkdump.debuginfo import btf, kallsyms
from gdbkdump.debuginfo.base import DebugInfo
from gdbkdump.errors import (
    CommandError,
    CorruptError,
    FaultError,
    FormatError,
    KdumpError,
)
from gdbkdump.formats import is_process_core, open_dump
from gdbkdump.formats.base import silent
from gdbkdump.formats.hints import NO_HINTS, Hints
from gdbkdump.formats.pagecache import DEFAULT_BYTES
from gdbkdump.kernel.base import Kernel
from gdbkdump.kernel.module import module_infos
from gdbkdump.memory import bootstrap
from gdbkdump.memory.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from gdbkdump.arch.base import Arch
    from gdbkdump.debuginfo.base import TypeSource
    from gdbkdump.formats.base import DumpFile, Report
    from gdbkdump.formats.vmcoreinfo import VmcoreInfo
    from gdbkdump.kernel.module import Module
    from gdbkdump.memory.virtual import MappedMemory
    from gdbkdump.target.usercore import UserProcess

    TypesWithoutBtf = Callable[[Kernel], TypeSource | None]


# What is searched for is read-only data, right behind the kernel's text; bounds what
# damaged page tables may make of an image.
_MAX_SEARCHED = 256 << 20
_MAX_RELEASE = 64  # __NEW_UTS_LEN


class FrameVariables(NamedTuple):
    """What debug information tells of a frame, values as gdb prints them.

    :param is_inline: whether the function was inlined into the next frame
    """

    pc: int
    function: str
    is_inline: bool
    arguments: list[tuple[str, str]]
    variables: list[tuple[str, str]]


class OpenedProcess(NamedTuple):
    """A process that gdb has as an inferior of its own.

    :param kernel_thread: what gdb calls the thread's kernel side, ``1.12``
    :param program: the file that gdb has its symbols from, or None
    :param nr_libraries: shared libraries whose files were found
    """

    inferior: int
    kernel_thread: str
    program: Path | None
    nr_libraries: int
    problems: list[str]


class Session:
    """One open dump.

    :ivar vmlinux: the file with debug information, or None
    :ivar task: address of the task that commands work on unless told otherwise; 0 for
        the one that panicked
    :ivar problems: what is wrong with the dump, one line each
    :ivar evaluate: value of a ``$expression`` the user typed (inside gdb), or None
    :ivar select_task: selects a task's thread (inside gdb), or None
    :ivar load_module: loads a module's debug file, found below folders or the usual
        places (inside gdb), or None
    :ivar module_files: debug files that are loaded, by module
    :ivar frame_variables: arguments and locals of a task's frames, innermost first
        (inside gdb), or None
    :ivar source_line: ``file:line`` of a text address where there is DWARF, or None
    :ivar open_process: opens a process as an inferior, its files below a folder or in
        the usual places (inside gdb), or None
    """

    def __init__(
        self, dump: DumpFile, kernel: Kernel, problems: list[str], report: Report
    ) -> None:
        """Put the parts together."""
        self.dump = dump
        self.kernel = kernel
        self.problems = problems
        self.report = report
        self.vmlinux: Path | None = None
        self.task = 0
        self.opened_in = 0.0
        self.evaluate: Callable[[str], int] | None = None
        self.select_task: Callable[[int], None] | None = None
        self.load_module: Callable[[Module, Sequence[Path]], None] | None = None
        self.module_files: dict[str, Path] = {}
        self.frame_variables: Callable[[int], list[FrameVariables]] | None = None
        self.source_line: Callable[[int], str | None] | None = None
        self.open_process: (
            Callable[[UserProcess, Path | None], OpenedProcess] | None
        ) = None

    @property
    def path(self) -> Path:
        """The dump file."""
        return self.dump.path

    def evaluated(self, text: str) -> int:
        """Return the value of a ``$expression``.

        :raise CommandError: there is no gdb to evaluate it
        """
        if self.evaluate is None:
            raise CommandError(f"{text}: only gdb can evaluate an expression")
        return self.evaluate(text)

    def close(self) -> None:
        """Give the dump file back."""
        self.dump.close()


def open_session(
    path: Path,
    *more: Path,
    hints: Hints = NO_HINTS,
    report: Report = silent,
    types_without_btf: TypesWithoutBtf | None = None,
    cache_bytes: int = DEFAULT_BYTES,
) -> Session:
    """Open a dump.

    :param more: the other files of a split dump
    :param hints: what the user says where the dump does not
    :param report: called with what is being done, done, total on long work
    :param types_without_btf: where types come from if the dump has no BTF
    :param cache_bytes: to be kept of memory that is not read from the file as it is
    :raise FormatError: it is no dump, or what it takes to read it is missing
    """
    started = time.perf_counter()
    dump = open_dump(
        path, *more, base=hints.base, report=report, cache_bytes=cache_bytes
    )
    with contextlib.ExitStack() as undo:
        undo.callback(dump.close)
        session = _open(dump, hints, report, types_without_btf)
        undo.pop_all()
    session.opened_in = time.perf_counter() - started
    return session


def _open(
    dump: DumpFile,
    hints: Hints,
    report: Report,
    types_without_btf: TypesWithoutBtf | None,
) -> Session:
    first: KdumpError | None = None
    for info, remark in _vmcoreinfos(dump, hints, report):
        problems = [*dump.problems, *remark]
        try:
            kernel = _open_kernel(dump, info, problems, types_without_btf)
        except KdumpError as error:
            # What the dump says of itself is tried first, so its failure is the one
            # that tells most.
            first = first or error
        else:
            return Session(dump, kernel, problems, report)
    assert first is not None
    if hints.base is not None:
        raise FormatError(
            f"{dump.path}: with its first byte at {hints.base:#x} no kernel is found"
            f" in it ({first})"
        )
    if dump.problems:
        raise FormatError(f"{dump.path}: {dump.problems[-1]}, and {first}")
    if is_process_core(dump.path):
        raise FormatError(
            f"{dump.path} is the core of a process, not of a kernel: gdb PROGRAM CORE"
            " opens it"
        )
    raise first


def _vmcoreinfos(
    dump: DumpFile, hints: Hints, report: Report
) -> Iterator[tuple[VmcoreInfo | None, list[str]]]:
    # What the user says, and that alone. Else the note; if that is cut, gone or wrong
    # the kernel's own copy in RAM; then none.
    if hints.vmcoreinfo is not None:
        yield bootstrap.given_vmcoreinfo(dump, hints.vmcoreinfo), []
        return
    noted, is_whole = bootstrap.noted_vmcoreinfo(dump)
    state = "is missing" if noted is None else "is wrong" if is_whole else "is cut"
    if is_whole and bootstrap.is_complete(noted):
        yield noted, []
    copies = bootstrap.scan_vmcoreinfo(dump, report)
    for info, paddr in copies:
        what = (
            f"the VMCOREINFO note {state}; the kernel's own copy at {paddr:#x} is used"
        )
        yield info, [what, *_other_kernels(info, copies)]
    if not is_whole and bootstrap.is_complete(noted):
        yield noted, ["the VMCOREINFO note is cut and no copy of it is in RAM"]
    yield None, [f"the VMCOREINFO note {state}"]


def _other_kernels(
    info: VmcoreInfo, copies: Sequence[tuple[VmcoreInfo, int]]
) -> list[str]:
    # Of the kernel that captures a crash, or of a guest of this one.
    here = _image_of(info)
    return [
        f"at {paddr:#x} is what may be the VMCOREINFO of another kernel,"
        f" {(other.osrelease or '')[:_MAX_RELEASE]}: gdbkdump --vmcoreinfo {paddr:#x}"
        for other, paddr in copies
        if _image_of(other) != here
    ]


def _image_of(info: VmcoreInfo) -> tuple[str | None, str | None]:
    # Without KASLR all kernels have the same addresses, and are in other places.
    return info.get("SYMBOL(_stext)"), info.get("NUMBER(phys_base)")


def _open_kernel(
    dump: DumpFile,
    info: VmcoreInfo | None,
    problems: list[str],
    types_without_btf: TypesWithoutBtf | None,
) -> Kernel:
    arch = find_arch(dump.machine)
    if info:
        place = arch.image_delta(info, dump.extents)
        root = info.symbol("init_top_pgt") or info.symbol("swapper_pg_dir")
        symbols = None
    else:
        symbols, place, root = _symbols_alone(dump, arch, problems)
    if root is None:
        raise FormatError("VMCOREINFO does not say where the page tables are")
    memory, image = bootstrap.open_kernel_memory(
        dump, arch, info, place, root, problems
    )
    symbols = symbols or _find_symbols(memory, info, image)
    types, why = _find_types(memory, symbols, image)
    debuginfo = DebugInfo(types, symbols, image, lambda: module_infos(kernel, problems))
    guest_cpus = arch.guest_cpus(dump.notes)
    kernel = Kernel(memory, debuginfo, arch, info, guest_cpus)
    _check_banner(kernel)
    if types is None and types_without_btf:
        debuginfo.types = types_without_btf(kernel)
    if debuginfo.types is None:
        problems.append(
            f"{why}, so its structures are not known: open it once in gdb with its"
            " vmlinux, which records them"
        )
    return kernel


def _symbols_alone(
    dump: DumpFile, arch: Arch, problems: list[str]
) -> tuple[kallsyms.Kallsyms, bootstrap.Place, int | None]:
    # No VMCOREINFO at all: kallsyms is where the image is, and says all else.
    for memory, place, how in bootstrap.image_memories(dump, arch):
        image = place[:2]
        data = _read_image(memory, image)
        symbols = kallsyms.scan(Reader(memory), image[0], data, image[0])
        if symbols:
            found = symbols.find("init_top_pgt") or symbols.find("swapper_pg_dir")
            problems.append(f"the kernel was found by {how} and its kallsyms")
            return symbols, place, found[0].address if found else None
    raise FormatError(
        "no VMCOREINFO in notes or RAM, and no kernel is where a PT_LOAD or the page"
        " tables of a CPU would have it"
    )


def _read_image(memory: MappedMemory, image: tuple[int, int]) -> bytes:
    # Freed pages of the image may be excluded: zeros there, to be searched only.
    start, end = image[0], min(image[1], image[0] + _MAX_SEARCHED)
    pieces = []
    for address in range(start, end, 4096):
        size = min(4096, end - address)
        try:
            pieces.append(memory.read(address, size))
        except FaultError:
            pieces.append(bytes(size))
    return b"".join(pieces)


def _find_symbols(
    memory: MappedMemory, info: VmcoreInfo | None, image: tuple[int, int]
) -> kallsyms.Kallsyms:
    reader = Reader(memory)
    why = "is not in the dump"
    try:
        found = kallsyms.from_vmcoreinfo(reader, info) if info else None
    except KdumpError as error:
        found, why = None, f"is damaged ({error})"
    if found is None:
        text = (info.symbol("_stext") if info else None) or image[0]
        found = kallsyms.scan(reader, image[0], _read_image(memory, image), text)
    if found is None:
        raise FormatError(
            f"the kernel's symbol table (kallsyms) {why}: without it nothing can be"
            " found; gdb without gdbkdump still shows memory"
        )
    return found


def _find_types(
    memory: MappedMemory, symbols: kallsyms.Kallsyms, image: tuple[int, int]
) -> tuple[btf.Btf | None, str]:
    # And why there are none. That the last type is whole is seen when all are counted,
    # which the first look-up would do.
    try:
        data = _read_types(memory, symbols, image)
        found = btf.Btf(data) if data else None
        if found:
            found.positions()
    except KdumpError as error:
        return None, f"the BTF of the dump is damaged ({error})"
    return found, "no BTF in the dump"


def _read_types(
    memory: MappedMemory, symbols: kallsyms.Kallsyms, image: tuple[int, int]
) -> bytes | None:
    start, stop = symbols.find("__start_BTF"), symbols.find("__stop_BTF")
    if start and stop:
        first, size = start[0].address, stop[0].address - start[0].address
        if not 0 < size <= btf.MAX_BYTES:
            raise CorruptError(f"BTF: {size} bytes")
        return memory.read(first, size)
    data = _read_image(memory, image)
    found = btf.scan(data)
    return data[found[0] : sum(found)] if found else None


def _check_banner(kernel: Kernel) -> None:
    # What is read through all of the above must be this kernel and no other.
    banner = kernel.reader.c_string(kernel.symbol("linux_banner"), 512)
    release = kernel.vmcoreinfo.osrelease if kernel.vmcoreinfo else None
    wanted = b"Linux version " + (release or "").encode()
    if not banner.startswith(wanted):
        raise FormatError(
            f"the dump is inconsistent: linux_banner reads {banner[:64]!r}"
            f" where {wanted.decode()!r} is expected"
        )
