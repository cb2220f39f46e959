# SPDX-License-Identifier: GPL-2.0-or-later
"""Core files of a process: a whole one for any debugger, and a view onto the dump.

Mirrors ``fs/binfmt_elf.c`` (``elf_core_dump()``). Zeros that were never written are a
PT_LOAD without bytes in the file, which debuggers read as zeros; what is not in the
dump has no PT_LOAD, so that they say it cannot be read.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import CommandError, KdumpError
from gdbkdump.formats.base import silent
from gdbkdump.formats.notes import NT_PRSTATUS
from gdbkdump.kernel.process import auxv, find_process, process_facts
from gdbkdump.kernel.sched import running_tasks
from gdbkdump.kernel.userregs import user_registers
from gdbkdump.target.elfcore import (
    NT_AUXV,
    NT_FILE,
    NT_FPREGSET,
    NT_PRPSINFO,
    NT_X86_XSTATE,
    Load,
    headers,
    headers_size,
    note,
)
from gdbkdump.target.userimage import UserImage
from gdbkdump.target.viewcore import MAX_RANGES, Range, file_table, open_private
from gdbkdump.unwind.unwinder import unwind_task

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from gdbkdump.formats.base import DumpFile, Report
    from gdbkdump.kernel.base import Kernel
    from gdbkdump.kernel.process import Process
    from gdbkdump.kernel.sched import Task
    from gdbkdump.kernel.userregs import UserRegisters
    from gdbkdump.target.userimage import MappingImage, Run

_PRPSINFO = struct.Struct("<BcBb4xQIIiiii16s80s")
_PAGE = 4096
_PIECE = 1 << 20
_ZEROS = bytes(_PAGE)
_VDSO = b"[vdso]"
_WORD3 = struct.Struct("<QQQ")


class UserThread(NamedTuple):
    """A thread and its registers of user mode."""

    task: Task
    state: UserRegisters


class UserProcess(NamedTuple):
    """A process as debuggers see one.

    :param task: the thread that they select
    """

    kernel: Kernel
    dump: DumpFile
    task: Task
    process: Process
    threads: list[UserThread]
    image: UserImage


def _registers(kernel: Kernel, task: Task) -> UserRegisters:
    # Of what was on a CPU the stack itself tells: if user mode had just entered the
    # kernel (the entry stack), those at the top of the task's stack are old.
    state = user_registers(kernel, task)
    if state.registers is not None and task.address in running_tasks(kernel):
        with contextlib.suppress(KdumpError):
            found = unwind_task(kernel, task).user_registers
            if found:
                return state._replace(registers=state.registers | found)
    return state


def open_process(
    kernel: Kernel, dump: DumpFile, task: Task, report: Report = silent
) -> UserProcess:
    """Return the process of a thread, its registers and where its memory is.

    :raise CommandError: it has no user memory, or no thread of it has registers
    :raise KdumpError: its mappings or page tables are damaged
    """
    process = find_process(kernel, task)
    threads = [UserThread(each, _registers(kernel, each)) for each in process.threads]
    if all(thread.state.registers is None for thread in threads):
        raise CommandError(
            f"no thread of process {process.pid} has user registers:"
            f" {threads[0].state.reason}"
        )
    if any(_is_compat(kernel, thread.state) for thread in threads):
        raise CommandError(
            f"process {process.pid} is a 32-bit program, which no core of ours holds"
            " (kvtop -c and krd read its memory, kregs -u its registers)"
        )
    image = UserImage(kernel, dump, process, report)
    return UserProcess(kernel, dump, task, process, threads, image)


def _is_compat(kernel: Kernel, state: UserRegisters) -> bool:
    return state.registers is not None and kernel.arch.is_compat(state.registers)


class ProcessCore:
    """The core file of a process, laid out and not yet written."""

    def __init__(self, user: UserProcess) -> None:
        """Lay it out.

        :raise KdumpError: what notes tell of the process cannot be read
        """
        self._machine = user.kernel.arch.machine
        self._image = image = user.image
        self._chunks = [chunk for each in image.mappings for chunk in _chunks(each)]
        self._notes = list(_process_notes(user))
        self._notes.append(note(NT_FILE, _mapped_files(image)))
        size = headers_size(len(self._chunks)) + sum(map(len, self._notes))
        self._loads = []
        at = -(-size // _PAGE) * _PAGE
        for chunk in self._chunks:
            stored = chunk.size if chunk.has_bytes else 0
            self._loads.append(Load(chunk.start, chunk.size, chunk.flags, at, stored))
            at += stored
        self.size = at

    def write(self, file: BinaryIO, report: Report, name: str) -> None:
        """Write it; pages of zeros become holes.

        :param name: of the work, for the progress line
        :raise KdumpError: the dump cannot be read any more
        """
        notes = b"".join(self._notes)
        file.write(headers(self._machine, len(notes), self._loads) + notes)
        for chunk, load in zip(self._chunks, self._loads, strict=True):
            if not load.file_size:
                continue
            file.seek(load.offset)
            for run in chunk.runs:
                self._write_run(file, run, report, name)
        file.truncate(self.size)
        report(name, self.size, self.size)

    def _write_run(self, file: BinaryIO, run: Run, report: Report, name: str) -> None:
        for at in range(0, run.size, _PIECE):
            data = self._image.read_run(run, at, min(_PIECE, run.size - at))
            for start, end in _nonzero(data):
                file.write(data[start:end]) if end else file.seek(start, 1)
            report(name, file.tell(), self.size + 1)


def _nonzero(data: bytes) -> Iterator[tuple[int, int]]:
    # Start and end of what is to be written; (size, 0) for zeros to be skipped.
    start = 0
    for at in range(0, len(data), _PAGE):
        end = min(at + _PAGE, len(data))
        if data[at:end] == _ZEROS[: end - at]:
            if start < at:
                yield start, at
            yield end - at, 0
            start = end
    if start < len(data):
        yield start, len(data)


class _Chunk(NamedTuple):
    # Neighbouring runs of one mapping that are all in the dump, or all zeros.
    start: int
    end: int
    flags: int
    has_bytes: bool
    runs: list[Run]

    @property
    def size(self) -> int:
        return self.end - self.start


def _chunks(mapping: MappingImage) -> list[_Chunk]:
    read, write, execute = (mapping.vma.flags >> bit & 1 for bit in range(3))
    flags = read << 2 | write << 1 | execute
    chunks: list[_Chunk] = []
    for run in mapping.runs:
        has_bytes = run.paddr is not None
        last = chunks[-1] if chunks else None
        if last and last.end == run.start and last.has_bytes == has_bytes:
            last.runs.append(run)
            chunks[-1] = last._replace(end=run.end)
        else:
            chunks.append(_Chunk(run.start, run.end, flags, has_bytes, [run]))
    return chunks


def _process_notes(user: UserProcess) -> Iterator[bytes]:
    # All but NT_FILE. Threads without registers have none; the first is selected.
    kernel = user.kernel
    known = [each for each in user.threads if each.state.registers is not None]
    known.sort(key=lambda thread: thread.task.address != user.task.address)
    for number, thread in enumerate(known):
        state = thread.state
        assert state.registers is not None
        desc = kernel.arch.make_prstatus(thread.task.pid, state.registers)
        yield note(NT_PRSTATUS, desc)
        if not number:
            yield note(NT_PRPSINFO, _psinfo(kernel, user.process))
            yield note(NT_AUXV, auxv(kernel, user.process))
        if state.fxsave:
            yield note(NT_FPREGSET, state.fxsave)
        if state.xsave:
            yield note(NT_X86_XSTATE, state.xsave, b"LINUX")


def _psinfo(kernel: Kernel, process: Process) -> bytes:
    facts = process_facts(kernel, process)
    return _PRPSINFO.pack(
        max(0, facts.state), facts.letter.encode(), facts.letter == "Z", facts.nice,
        facts.flags & 0xFFFFFFFF, facts.uid, facts.gid, process.pid, facts.ppid,
        facts.pgrp, facts.sid, process.leader.comm[:15], facts.arguments[:79],
    )  # fmt: skip


def _mapped_files(image: UserImage) -> bytes:
    # Only what is in the core: for the rest debuggers would take the bytes of a file of
    # that name on their own machine, whatever is in it.
    table: list[bytes] = []
    names: list[bytes] = []
    for each in image.mappings:
        if each.vma.file and each.name:
            for chunk in _chunks(each):
                offset = each.vma.pgoff + (chunk.start - each.vma.start) // _PAGE
                table.append(_WORD3.pack(chunk.start, chunk.end, offset))
                names.append(each.name + b"\0")
    return struct.pack("<QQ", len(table), _PAGE) + b"".join(table + names)


def write_user_core(target: Path, user: UserProcess, report: Report) -> None:
    """Write what gdb is to open; only its owner may read it.

    That is a core whose memory is in the dump file; but a copy of it where memory does
    not lie in that file as it was, or in too many pieces.

    :raise CommandError: there is no room for the copy
    :raise OSError: it cannot be written
    """
    ranges = list(_ranges(user.image, user.dump)) if user.dump.is_flat else None
    if ranges is not None and len(ranges) <= MAX_RANGES:
        _write_view(target, user, ranges)
        return
    core = ProcessCore(user)
    free = shutil.disk_usage(target.parent).free
    if user.image.present > free:
        raise CommandError(
            f"a copy of process {user.process.pid} needs {user.image.present} bytes,"
            f" {target.parent} has {free} (TMPDIR chooses another place)"
        )
    with open_private(target) as file:
        core.write(file, report, f"copying process {user.process.pid}")


def _write_view(target: Path, user: UserProcess, ranges: Sequence[Range]) -> None:
    image = user.image
    vdso = [each for each in image.mappings if each.name == _VDSO]
    zeros = [
        chunk
        for each in image.mappings
        for chunk in _chunks(each)
        if not chunk.has_bytes
    ]
    all_notes = b"".join(
        [*_process_notes(user), note(NT_FILE, file_table(ranges, user.dump.path))]
    )
    copies = [chunk for each in vdso for chunk in _chunks(each) if chunk.has_bytes]
    at = headers_size(len(copies) + len(zeros)) + len(all_notes)
    loads = []
    for chunk in copies:
        # gdb reads the vDSO's symbols only from a PT_LOAD.
        loads.append(Load(chunk.start, chunk.size, chunk.flags, at, chunk.size))
        at += chunk.size
    loads += [Load(chunk.start, chunk.size, chunk.flags, at, 0) for chunk in zeros]
    with open_private(target) as file:
        file.write(headers(user.kernel.arch.machine, len(all_notes), loads) + all_notes)
        file.writelines(
            image.read_run(run, 0, run.size) for chunk in copies for run in chunk.runs
        )


def _ranges(image: UserImage, dump: DumpFile) -> Iterator[Range]:
    # Without the vDSO: its build-id in a PT_LOAD would be that of the dump, in which,
    # as gdb 18 sees it, all libraries lie, and none of them would fit.
    for each in image.mappings:
        for run in each.runs:
            if run.paddr is None or each.name == _VDSO:
                continue
            at = 0
            while at < run.size:
                found = dump.file_range(run.paddr + at)
                if found is None:
                    break
                size = min(found[1], run.size - at)
                yield Range(run.start + at, run.start + at + size, found[0])
                at += size
