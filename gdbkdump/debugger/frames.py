# SPDX-License-Identifier: GPL-2.0-or-later
"""The frame files given to gdb, each at its place among the files that gdb has.

gdb takes the rules for a frame from the first file that has some for its address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdbkdump.debugger import console
from gdbkdump.debugger.paths import plain_path
from gdbkdump.errors import KdumpError, SymbolNotFoundError, TypeNotFoundError
from gdbkdump.kernel.module import for_each_module
from gdbkdump.modulefiles import find_module_file
from gdbkdump.target.cache import BuildCache
from gdbkdump.target.debugframe import DebugFrame
from gdbkdump.target.framefile import VERSION, dump_frames, kernel_frames
from gdbkdump.target.tracefile import trace_frames
from gdbkdump.unwind.tables import open_tables
from gdbkdump.vmlinux import (
    dump_identity,
    kaslr_offset,
    read_debug_frame,
    read_module_frame,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from gdbkdump.kernel.module import Module
    from gdbkdump.session import Session
    from gdbkdump.target.threads import KernelThread
    from gdbkdump.unwind.tables import Tables
    from gdbkdump.vmlinux import Vmlinux

    LoadModule = Callable[[Module, Sequence[Path]], None]


class FrameFiles:
    """The frame files of one session; a kernel that has no tables has none.

    :param vmlinux: what gdb has symbols of, or None
    :param folder: private, for what is not to be kept
    :param debug_dirs: roots to search as /usr/lib/debug is searched
    """

    def __init__(
        self,
        session: Session,
        vmlinux: Vmlinux | None,
        folder: Path,
        debug_dirs: Callable[[], Sequence[Path]],
    ) -> None:
        """Locate the tables."""
        self._debug_dirs = debug_dirs
        self._session = session
        self._vmlinux = vmlinux
        self._folder = folder
        self._tables = self._open_tables()
        self._is_kernel_done = False
        self._dump_file: Path | None = None

    def _open_tables(self) -> Tables | None:
        try:
            return open_tables(self._session.kernel)
        except (SymbolNotFoundError, TypeNotFoundError):
            return None  # CONFIG_UNWINDER_GUESS, or no types
        except KdumpError as error:
            self._report(error)
            return None

    def _report(self, error: Exception) -> None:
        self._session.problems.append(
            f"gdb's own backtraces are wrong beyond entry code: {error}"
        )

    def load_before_symbols(self) -> None:
        """Load what is to win over the vmlinux, and what its DWARF lacks."""
        self._load_traces()
        vmlinux = self._vmlinux
        if self._tables and vmlinux and vmlinux.has_debug_info:
            self._load_kernel(self._tables, "gaps", vmlinux)

    def load_after_symbols(self, threads: Sequence[KernelThread]) -> None:
        """Load what counts only where no other file has rules.

        DWARF may be in a file that gdb finds by itself, so where the vmlinux has none
        the rules for everything come here.
        """
        if self._tables and not self._is_kernel_done:
            self._load_kernel(self._tables, "all", None)
        if self._tables:
            self._load_dump(self._tables, threads)

    def behind(self, load: LoadModule) -> LoadModule:
        """Return a loader of modules' debug files that lets them win over our rules."""

        def load_and_move(module: Module, dirs: Sequence[Path]) -> None:
            load(module, dirs)
            path = self._dump_file
            if path:
                with console.quiet():
                    gdb.execute(f"remove-symbol-file {path}", to_string=True)
                    _add(path, 0)

        return load_and_move

    def _load_traces(self) -> None:
        # Few dumps have any; all other rules are wrong there.
        try:
            data = trace_frames(self._session.kernel, self._compiled)
            if data:
                _add(self._write("frames-traces", data), 0)
        except (KdumpError, OSError, gdb.error) as error:
            self._report(error)

    def _compiled(self, pc: int) -> tuple[DebugFrame, int] | None:
        kernel = self._session.kernel
        modules = kernel.once("modules", lambda: list(for_each_module(kernel)))
        module = next((each for each in modules if each.holds(pc)), None)
        key = "compiled", module.name if module else ""
        return kernel.once(key, lambda: self._read_compiled(module))

    def _read_compiled(self, module: Module | None) -> tuple[DebugFrame, int] | None:
        vmlinux = self._vmlinux
        if module:
            try:
                found = find_module_file(self._session, module, (), self._debug_dirs())
            except KdumpError:
                return None  # so gdb will have no variables of it to be wrong about
            return DebugFrame(read_module_frame(found.path, found.sections)), 0
        if vmlinux is None or not vmlinux.has_debug_info:
            return None
        return DebugFrame(read_debug_frame(vmlinux.path)), self._offset() or 0

    def _load_kernel(
        self, tables: Tables, variant: str, vmlinux: Vmlinux | None
    ) -> None:
        self._is_kernel_done = True
        kernel = self._session.kernel
        offset = self._offset()

        def make() -> bytes:
            section = read_debug_frame(vmlinux.path) if vmlinux else b""
            frame = DebugFrame(section) if section else None
            return kernel_frames(kernel, tables, offset or 0, frame)

        try:
            # What a damaged dump gives is for no other one.
            word = f"{variant}-{tables.digest()}"
            _add(self._keep(word, make, is_movable=offset is not None), offset or 0)
        except (KdumpError, OSError, gdb.error) as error:
            self._report(error)

    def _offset(self) -> int | None:
        kernel = self._session.kernel
        if self._vmlinux:
            return kaslr_offset(kernel, self._vmlinux)
        return kernel.vmcoreinfo.hex("KERNELOFFSET") if kernel.vmcoreinfo else None

    def _keep(
        self, variant: str, make: Callable[[], bytes], *, is_movable: bool
    ) -> Path:
        build_id = dump_identity(self._session.kernel).build_id
        if build_id and is_movable:
            try:
                path = BuildCache("frames", VERSION).file(build_id, variant, make)
            except OSError:
                pass  # a home that cannot be written to costs time, nothing else
            else:
                return plain_path(path, self._folder / f"frames-{variant}")
        return self._write(f"frames-{variant}", make())

    def _load_dump(self, tables: Tables, threads: Sequence[KernelThread]) -> None:
        kernel = self._session.kernel
        has_dwarf = bool(self._vmlinux and self._vmlinux.has_debug_info)
        try:
            data = dump_frames(kernel, tables, threads, has_dwarf=has_dwarf)
            path = self._write("frames-dump", data)
            _add(path, 0)
        except (KdumpError, OSError, gdb.error) as error:
            self._report(error)
        else:
            self._dump_file = path
        self._session.problems += tables.problems

    def _write(self, name: str, data: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(data)
        return path


def _add(path: Path, offset: int) -> None:
    # gdb says that it has no symbols, which is so.
    gdb.execute(f"add-symbol-file {path} -o {offset:#x}", to_string=True)
