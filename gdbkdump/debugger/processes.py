# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes of the dump as inferiors of gdb: memory, threads, program, libraries.

Each has a view core of its own. Programs and libraries are put into a folder as the
process sees them, which becomes gdb's sysroot: links to files that are of the very
build, or copies out of the page cache.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import gdb

from gdbkdump.debugger import console
from gdbkdump.debugger.dapthreads import show_all_threads
from gdbkdump.debugger.inferiors import load_core, select
from gdbkdump.debugger.paths import plain_path
from gdbkdump.errors import FormatError, KdumpError
from gdbkdump.render.escape import decode, escape
from gdbkdump.session import OpenedProcess
from gdbkdump.target.usercore import write_user_core
from gdbkdump.target.userfiles import (
    UserFile,
    copy_file,
    file_build_id,
    library_files,
    path_below,
    program_file,
    program_shift,
    unwind_file,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.debugger.adapter import Debugger
    from gdbkdump.kernel.sched import Task
    from gdbkdump.session import Session
    from gdbkdump.target.usercore import UserProcess


_DEBUG = ".debug"


class Processes:
    """Opens processes, each once.

    :param folder: private
    """

    def __init__(self, debugger: Debugger, session: Session, folder: Path) -> None:
        """Take a session; nothing is opened yet."""
        self._debugger = debugger
        self._session = session
        self._folder = folder
        self._kernel = gdb.selected_inferior()
        self._opened: dict[int, tuple[gdb.Inferior, OpenedProcess]] = {}
        self._number = 0

    def open(self, user: UserProcess, sysroot: Path | None) -> OpenedProcess:
        """Select the thread of a process in an inferior of its own.

        :param sysroot: where the guest's files are on this machine; what the user set
            in gdb if None
        :raise KdumpError: gdb cannot open it
        """
        pid = user.process.pid
        known = self._opened.get(pid)
        if known is None or not known[0].is_valid() or not known[0].threads():
            before = gdb.selected_thread()
            with console.quiet(), self._debugger.opening():
                known = self._open(user, sysroot or self._user_sysroot(), before)
            self._opened[pid] = known
        kernel_thread = _thread_of(self._kernel, user.task)
        thread = _thread_of(known[0], user.task)
        if thread:
            thread.switch()
        else:
            select(known[0])
        number = f"{self._kernel.num}.{kernel_thread.num}" if kernel_thread else ""
        return known[1]._replace(kernel_thread=number)

    def _user_sysroot(self) -> Path | None:
        # What we set is ours; "target:" is gdb's word for the files of this machine.
        value = str(gdb.parameter("sysroot") or "")
        if not value or value.startswith(("target:", str(self._folder))):
            return None
        return Path(value)

    def _open(
        self, user: UserProcess, sysroot: Path | None, before: gdb.InferiorThread | None
    ) -> tuple[gdb.Inferior, OpenedProcess]:
        self._number += 1
        folder = self._folder / f"process-{user.process.pid}-{self._number}"
        folder.mkdir(mode=0o700)
        placed = _Placer(self, folder / "root", sysroot)
        program = self._place_files(user, placed)
        _write_core(folder / "core", user, self._session)
        inferior = _add_inferior()
        # Ctrl-C too leaves things as they were.
        with contextlib.ExitStack() as undo:
            undo.callback(_give_up, inferior, before, self._kernel)
            try:
                self._load(inferior, user, program, placed, folder)
            except gdb.error as error:
                raise FormatError(f"gdb cannot open the process: {error}") from None
            undo.pop_all()
        names = {each.task.pid: each.task.comm for each in user.threads}
        for thread in inferior.threads():
            thread.name = escape(decode(names.get(thread.ptid[1], b"?")))
        show_all_threads(inferior.threads())
        return inferior, OpenedProcess(
            inferior.num, "", program, placed.nr_libraries, placed.problems
        )

    def _load(
        self,
        inferior: gdb.Inferior,
        user: UserProcess,
        program: Path | None,
        placed: _Placer,
        folder: Path,
    ) -> None:
        select(inferior)
        if program:
            _load_program(program, user, folder)
        load_core(folder / "core", str(placed.root))
        self._debugger.standstill.add_selected()
        for number, (path, shift) in enumerate(placed.without_code):
            frames = folder / f"frames-{number}"
            placed.problems += _load_unwinding(path, shift, user, frames)

    def _place_files(self, user: UserProcess, placed: _Placer) -> Path | None:
        kernel, dump = self._session.kernel, self._session.dump
        program = program_file(kernel, dump, user.process)
        path = placed.place(program) if program else None
        if path and _is_debug(path):
            shift = program_shift(kernel, user.process, path)
            placed.without_code.append((path, shift))
        try:
            libraries = library_files(kernel, dump, user.process, user.image)
        except KdumpError as error:
            placed.problems.append(f"its shared libraries are not known: {error}")
            return path
        for library in libraries:
            found = placed.place(library)
            placed.nr_libraries += found is not None
            if found and _is_debug(found):
                placed.without_code.append((found, library.shift))
        return path

    def candidates(self, wanted: UserFile) -> Iterator[Path]:
        """Yield where a file of that build may be on this machine."""
        if wanted.build_id is not None:
            yield from self._by_build_id(wanted.build_id, "")
            yield Path(os.fsdecode(wanted.path))

    def debug_files(self, wanted: UserFile) -> Iterator[Path]:
        """Yield where debug information of a file of that build may be."""
        if wanted.build_id is not None:
            yield from self._by_build_id(wanted.build_id, _DEBUG)

    def _by_build_id(self, digits: str, suffix: str) -> Iterator[Path]:
        for root in self._debugger.settings.debug_dirs:
            yield root / ".build-id" / digits[:2] / f"{digits[2:]}{suffix}"

    def copy(self, wanted: UserFile) -> Path:
        """Return a copy of a file out of the page cache, each is made once.

        :raise KdumpError: not all of it is in the dump, or it cannot be written
        """
        session = self._session
        target = self._folder / f"file-{wanted.file:x}"
        if not target.exists():
            try:
                copy_file(session.kernel, session.dump, wanted.file, target)
            except OSError as error:
                raise FormatError(f"{target}: {error.strerror}") from None
        return target


class _Placer:
    # Puts files into the tree that gdb takes for the root of the process.
    def __init__(self, processes: Processes, root: Path, sysroot: Path | None) -> None:
        self.root = root
        self.nr_libraries = 0
        self.problems: list[str] = []
        # Files with debug information alone, and by how much what they are of moved.
        self.without_code: list[tuple[Path, int]] = []
        self._processes = processes
        self._sysroot = sysroot

    def place(self, wanted: UserFile) -> Path | None:
        try:
            found = self._find(wanted)
        except KdumpError as error:
            name = decode(wanted.name)
            self.problems.append(f"gdb has no symbols of {name}: {error}")
            return None
        path = path_below(self.root, wanted.name)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.is_symlink():
            path.symlink_to(found)
        return path

    def _find(self, wanted: UserFile) -> Path:
        # Only what is of the same build; the page cache has the very file.
        named = self._in_sysroot(wanted)
        if named:
            return named
        for candidate in self._processes.candidates(wanted):
            if file_build_id(candidate) == wanted.build_id:
                return candidate.absolute()
        try:
            return self._processes.copy(wanted)
        except KdumpError:
            # Its symbols without its code, which is in the dump as far as it was used.
            for candidate in self._processes.debug_files(wanted):
                if file_build_id(candidate) == wanted.build_id:
                    return candidate.absolute()
            raise

    def _in_sysroot(self, wanted: UserFile) -> Path | None:
        if self._sysroot is None:
            return None
        for name in (wanted.path, wanted.name):
            candidate = path_below(self._sysroot, name)
            build_id = file_build_id(candidate)
            if build_id and build_id == wanted.build_id:
                return candidate.absolute()
            if build_id:
                known = wanted.build_id or "not in the dump"
                self.problems.append(
                    f"{candidate} is not used: its build-id is {build_id}, that of the"
                    f" process's file is {known}"
                )
                return None
        return None


def _write_core(core: Path, user: UserProcess, session: Session) -> None:
    try:
        write_user_core(core, user, session.report)
    except OSError as error:
        raise FormatError(f"{core}: {error.strerror}") from None


def _add_inferior() -> gdb.Inferior:
    known = {inferior.num for inferior in gdb.inferiors()}
    gdb.execute("add-inferior -no-connection", to_string=True)
    return next(each for each in gdb.inferiors() if each.num not in known)


def _is_debug(path: Path) -> bool:
    return path.resolve().suffix == _DEBUG


def _load_unwinding(
    debug: Path, shift: int, user: UserProcess, target: Path
) -> list[str]:
    # Without it a backtrace ends in the first function that has no frame pointer.
    try:
        target.write_bytes(unwind_file(user.image, debug, shift))
        gdb.execute(f"add-symbol-file {target} -o 0", to_string=True)
    except (KdumpError, OSError, gdb.error) as error:
        return [f"gdb cannot unwind what {debug.name} is of: {error}"]
    return []


def _load_program(program: Path, user: UserProcess, folder: Path) -> None:
    # Before the core: from where it says it begins gdb learns how a program was moved.
    # Not so of one with debug information alone, whose headers are not the program's.
    path = plain_path(program, folder / "program")
    if _is_debug(program):
        shift = program_shift(user.kernel, user.process, program)
        gdb.execute(f"symbol-file {path} -o {shift:#x}", to_string=True)
    else:
        gdb.execute(f"file {path}", to_string=True)


def _give_up(
    inferior: gdb.Inferior, before: gdb.InferiorThread | None, kernel: gdb.Inferior
) -> None:
    with contextlib.suppress(gdb.error):
        select(inferior)
        gdb.execute("core-file", to_string=True)
    if before is not None and before.is_valid():
        before.switch()
    else:
        select(kernel)
    gdb.execute(f"remove-inferiors {inferior.num}", to_string=True)


def _thread_of(inferior: gdb.Inferior, task: Task) -> gdb.InferiorThread | None:
    if not inferior.is_valid():
        return None
    found = (each for each in inferior.threads() if each.ptid[1] == task.pid)
    return next(found, None)
