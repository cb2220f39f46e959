# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbol file given to gdb in the place of a vmlinux with debug information."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdbkdump.debugger import console
from gdbkdump.debugger.paths import plain_path
from gdbkdump.debuginfo.btf import Btf
from gdbkdump.errors import KdumpError
from gdbkdump.target.cache import BuildCache
from gdbkdump.target.modulesymbols import VERSION as MODULES_VERSION
from gdbkdump.target.modulesymbols import ModuleSymbols
from gdbkdump.target.symbolfile import (
    PERCPU,
    VERSION,
    digest,
    partial_symbol_file,
    symbol_file,
)
from gdbkdump.vmlinux import dump_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from gdbkdump.kernel.module import Module
    from gdbkdump.session import Session

    LoadModule = Callable[[Module, Sequence[Path]], None]


def load_symbol_file(session: Session, folder: Path) -> None:
    """Give gdb the dump's own symbols and types.

    What cannot be had of them becomes one of the session's problems. The last one that
    is there says why there is no vmlinux, and is told what that means.

    :param folder: private, for what is not to be kept
    """
    kernel = session.kernel
    noted = kernel.vmcoreinfo.hex("KERNELOFFSET") if kernel.vmcoreinfo else None
    offset = noted or 0
    why = session.problems.pop()
    damage: list[str] = []
    path: Path | None
    try:
        path = _kept(session, folder, offset, is_movable=noted is not None)
    except KdumpError:
        # Half of it is better than nothing, but is not for other dumps.
        path = _partial(session, folder, offset, damage)
    if path:
        try:
            gdb.execute(_command(session, path, offset), to_string=True)
        except gdb.error as error:
            damage.append(f"gdb cannot read the symbols of the dump: {error}")
    session.problems.append(f"{why}: {_what_gdb_has(session, damage)}")
    session.problems += damage


def _what_gdb_has(session: Session, damage: list[str]) -> str:
    if damage:
        return "gdb has but what is whole of the dump's own symbols and types"
    has_types = isinstance(session.kernel.debuginfo.types, Btf)
    what = "symbols and types, but" if has_types else "symbols, but no types,"
    return (
        f"gdb has the dump's own {what} no lines, arguments, locals and inlined"
        " functions"
    )


def _partial(
    session: Session, folder: Path, offset: int, damage: list[str]
) -> Path | None:
    data = partial_symbol_file(session.kernel, offset, damage)
    if data is None:
        return None
    path = folder / "symbols"
    path.write_bytes(data)
    return path


def _command(session: Session, path: Path, offset: int) -> str:
    command = f"add-symbol-file {path} -o {offset:#x}"
    kernel = session.kernel
    if kernel.has_symbol("__per_cpu_start") and not kernel.symbol("__per_cpu_start"):
        # Until 6.15 per-CPU symbols of x86-64 are offsets, which do not move.
        command += f" -s {PERCPU} 0"
    return command


class ModuleSymbolFile:
    """The symbol file of the modules.

    :param folder: private, for what is not to be kept
    """

    def __init__(self, session: Session, folder: Path) -> None:
        """Take a session; nothing is loaded yet."""
        self._session = session
        self._folder = folder
        self._path: Path | None = None

    def load(self) -> None:
        """Give gdb symbols and types of the modules."""
        session = self._session
        try:
            known = ModuleSymbols(session.kernel, session.problems)
            path = self._kept(known) if known else None
            if path:
                gdb.execute(f"add-symbol-file {path} -o 0", to_string=True)
        except (KdumpError, OSError, gdb.error) as error:
            session.problems.append(f"gdb has no symbols of modules: {error}")
        else:
            self._path = path

    def behind(self, load: LoadModule) -> LoadModule:
        """Return a loader of modules' debug files that lets them win over ours.

        gdb takes a name from the first file that has it.
        """

        def load_and_move(module: Module, dirs: Sequence[Path]) -> None:
            load(module, dirs)
            path = self._path
            if path:
                with console.quiet():
                    gdb.execute(f"remove-symbol-file {path}", to_string=True)
                    gdb.execute(f"add-symbol-file {path} -o 0", to_string=True)

        return load_and_move

    def _kept(self, known: ModuleSymbols) -> Path:
        kernel = self._session.kernel
        build_id = dump_identity(kernel).build_id
        path = self._folder / "modules"
        if build_id:
            cache = BuildCache("modules", MODULES_VERSION)
            try:
                kept = cache.file(build_id, known.digest(digest(kernel)), known.file)
            except OSError:
                pass  # a home that cannot be written to costs time, nothing else
            else:
                return plain_path(kept, path)
        path.write_bytes(known.file())
        return path


def _kept(session: Session, folder: Path, offset: int, *, is_movable: bool) -> Path:
    kernel = session.kernel
    build_id = dump_identity(kernel).build_id
    if build_id and is_movable:
        try:
            path = BuildCache("symbols", VERSION).file(
                build_id, digest(kernel), lambda: symbol_file(kernel, offset)
            )
        except OSError:
            pass  # a home that cannot be written to costs time, nothing else
        else:
            return plain_path(path, folder / "symbols")
    path = folder / "symbols"
    path.write_bytes(symbol_file(kernel, offset))
    return path
