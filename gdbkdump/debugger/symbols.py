# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbol file given to gdb in the place of a vmlinux with debug information."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdbkdump.debugger.paths import plain_path
from gdbkdump.errors import KdumpError
from gdbkdump.target.cache import BuildCache
from gdbkdump.target.symbolfile import (
    PERCPU,
    VERSION,
    digest,
    partial_symbol_file,
    symbol_file,
)
from gdbkdump.vmlinux import dump_identity

if TYPE_CHECKING:
    from pathlib import Path

    from gdbkdump.session import Session


def load_symbol_file(session: Session, folder: Path) -> None:
    """Give gdb the dump's own symbols and types.

    What cannot be had of them becomes one of the session's problems.

    :param folder: private, for what is not to be kept
    """
    kernel = session.kernel
    noted = kernel.vmcoreinfo.hex("KERNELOFFSET") if kernel.vmcoreinfo else None
    offset = noted or 0
    try:
        path = _kept(session, folder, offset, is_movable=noted is not None)
    except KdumpError:
        # Half of it is better than nothing, but is not for other dumps.
        data = partial_symbol_file(kernel, offset, session.problems)
        if data is None:
            return
        path = folder / "symbols"
        path.write_bytes(data)
    command = f"add-symbol-file {path} -o {offset:#x}"
    if kernel.has_symbol("__per_cpu_start") and not kernel.symbol("__per_cpu_start"):
        # Until 6.15 per-CPU symbols of x86-64 are offsets, which do not move.
        command += f" -s {PERCPU} 0"
    try:
        gdb.execute(command, to_string=True)
    except gdb.error as error:
        session.problems.append(f"gdb cannot read the symbols of the dump: {error}")


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
