# SPDX-License-Identifier: GPL-2.0-or-later
"""From ``gdb vmlinux vmcore -x gdb-init.py`` to a prompt where all is in place.

The dump is opened by our engine, the vmlinux proven to be of the same kernel build, its
symbols moved to where that kernel ran, and the user's core replaced by the view core.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import gdb

from gdbkdump.debugger import console, server
from gdbkdump.debugger.adapter import Debugger, register_commands
from gdbkdump.debugger.banner import banner
from gdbkdump.debugger.corecommands import watch_core_commands
from gdbkdump.debugger.debuginfo import GdbDebugInfo
from gdbkdump.debugger.files import (
    command_line,
    find_given_vmlinux,
    find_vmcores,
    is_before_files,
)
from gdbkdump.debugger.frames import FrameFiles
from gdbkdump.debugger.functions import register_functions
from gdbkdump.debugger.kopen import register_kopen
from gdbkdump.debugger.modules import ModuleLoader
from gdbkdump.debugger.parameters import Settings
from gdbkdump.debugger.paths import is_plain, plain_path
from gdbkdump.debugger.processes import Processes
from gdbkdump.debugger.symbols import ModuleSymbolFile, load_symbol_file
from gdbkdump.debugger.view import load_view
from gdbkdump.errors import (
    FormatError,
    KdumpError,
    MismatchError,
    TypeNotFoundError,
)
from gdbkdump.formats import is_process_core
from gdbkdump.kernel.sched import default_task
from gdbkdump.recordedtypes import record_types, recorded_types
from gdbkdump.render.text import lines
from gdbkdump.session import open_session
from gdbkdump.target.cache import cache_folder
from gdbkdump.vmlinux import (
    check_vmlinux,
    find_vmlinux,
    kaslr_offset,
    use_vmlinux,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gdbkdump.debuginfo.base import TypeSource
    from gdbkdump.kernel.base import Kernel
    from gdbkdump.session import Session
    from gdbkdump.vmlinux import Vmlinux

    Open = Callable[[Sequence[Path], Path | None], None]

# The versions after it read DWARF in a few seconds, in the background.
_LAST_SLOW_VERSION = 14


def boot() -> None:
    """Open what gdb was started on; with a failure the prompt stays usable."""
    debugger = Debugger(Settings(command_line().is_batch))
    register_commands(debugger)
    register_functions(lambda: debugger.session().kernel)

    def open_and_show(vmcores: Sequence[Path], vmlinux: Path | None) -> None:
        console.write_lines(lines(banner(open_dump(debugger, vmcores, vmlinux))))

    watch_core_commands(debugger, open_and_show)
    register_kopen(debugger, open_and_show)
    # gdb imports its server itself, where it is one.
    if "gdb.dap" in sys.modules:
        from gdbkdump.debugger import dap

        dap.teach(debugger, open_and_show)
    if is_before_files():
        _open_later(debugger, open_and_show)
    else:
        _open_given(debugger, open_and_show)


def _open_given(debugger: Debugger, open_: Open) -> None:
    vmcores = find_vmcores()
    if not vmcores:
        error = FormatError(
            "no dump was given: gdb VMLINUX VMCORE -x gdb-init.py, or kopen VMCORE"
        )
        line = command_line()
        # A front end names it later, and who reads us in .gdbinit may never; nor may a
        # script that names no file here, but in kopen.
        if line.is_batch and not line.exec_file:
            debugger.reason = f"no dump is open: {error}"
        elif line.interpreter == "console" and line.sources_us:
            debugger.refuse(error, 2 if line.exec_file else 0)
        return
    if is_process_core(vmcores[0]):
        # gdb's own business, for those who have us in .gdbinit.
        debugger.reason = f"no dump is open: {vmcores[0]} is the core of a process"
        return
    try:
        open_(vmcores, find_given_vmlinux())
    except MismatchError as error:
        debugger.refuse(error, 3)
    except KdumpError as error:
        debugger.refuse(error, 2)


def _open_later(debugger: Debugger, open_: Open) -> None:
    # Read from .gdbinit: gdb would open the dump after us, in place of our view. So
    # when it has done that, but before the first command needs it. Only the console
    # tells of its prompt, and in batch mode nothing happens but commands.
    def open_once(event: object = None) -> None:
        if debugger.open_pending is open_once:
            debugger.open_pending = None
            _open_given(debugger, open_)

    debugger.open_pending = open_once
    gdb.events.before_prompt.connect(open_once)
    if command_line().interpreter != "console":
        # gdb 13 dies of an event that is left when it quits.
        gdb.post_event(open_once)


def open_dump(
    debugger: Debugger, vmcores: Sequence[Path], vmlinux: Path | None
) -> Session:
    """Open a dump in place of what gdb has open.

    :param vmcores: the file, or all files of a split dump
    :param vmlinux: the one the user named; otherwise it is looked for
    :raise KdumpError: it cannot be opened
    """
    started = time.perf_counter()
    try:
        with debugger.opening(), _no_collection():
            session = _open(debugger, vmcores, vmlinux)
    except MismatchError:
        # What gdb has loaded must not answer for another kernel.
        if not debugger.is_open:
            _unload()
        raise
    except KeyboardInterrupt:
        raise FormatError("opening the dump was interrupted") from None
    session.opened_in = time.perf_counter() - started
    return session


def _open(debugger: Debugger, vmcores: Sequence[Path], given: Path | None) -> Session:
    _configure()
    session = open_session(
        *vmcores,
        hints=debugger.settings.hints,
        report=console.progress(),
        types_without_btf=lambda kernel: _dwarf_types(kernel, given),
        cache_bytes=debugger.settings.cache_bytes,
    )
    vmlinux = _find_vmlinux(session, given, debugger.settings)
    folder = _private_folder()
    # From here on what was open before is no more.
    with console.quiet():
        debugger.detach()
    _unload()
    frames = FrameFiles(session, vmlinux, folder, lambda: debugger.settings.debug_dirs)
    with console.quiet():
        frames.load_before_symbols()
        # The symbols first: gdb 15 and later read types while our engine works.
        if vmlinux:
            _load_symbols(session, vmlinux, folder)
        else:
            load_symbol_file(session, folder)
        threads = load_view(session, folder, debugger.settings.transport)
    debugger.attach(session, threads.threads)
    session.problems += threads.problems()
    _select_task(debugger, session)
    modules = ModuleLoader(session, folder, lambda: debugger.settings.debug_dirs)
    symbols = ModuleSymbolFile(session, folder)
    load_module = symbols.behind(frames.behind(modules.load))
    session.load_module = debugger.for_kernel(load_module)
    session.open_process = Processes(debugger, session, folder).open
    if vmlinux:
        modules.load_panicking()
    with console.quiet():
        symbols.load()
        frames.load_after_symbols(threads.threads)
    return session


def _select_task(debugger: Debugger, session: Session) -> None:
    try:
        task = default_task(session.kernel)
    except KdumpError:
        return  # the banner says so
    if task:
        debugger.select_task(task.address)


def _dwarf_types(kernel: Kernel, path: Path | None) -> TypeSource | None:
    # What was recorded is as good, and at hand at once.
    recorded = recorded_types(kernel)
    if recorded is not None:
        return recorded
    try:
        if path:
            check_vmlinux(kernel, path)
    except KdumpError:
        return None  # said later
    # Where they are moved to does not matter to types.
    if not gdb.objfiles() and path and is_plain(path):
        with contextlib.suppress(gdb.error), console.quiet():
            gdb.execute(f"symbol-file {path}", to_string=True)
    types = GdbDebugInfo()
    try:
        types.find("struct", "task_struct")
    except TypeNotFoundError:
        return None
    with contextlib.suppress(OSError):
        # Without a cache to write to, gdb alone can open such a dump.
        record_types(kernel, types)
    return types


def _configure() -> None:
    gdb.execute("set print thread-events off")
    if _major_version() <= _LAST_SLOW_VERSION:
        _use_index_cache()
    line = command_line()
    has_nobody_to_ask = line.is_batch or line.interpreter != "console"
    if has_nobody_to_ask and str(gdb.parameter("debuginfod enabled")) == "ask":
        # In batch mode gdb would answer its own question with yes.
        gdb.execute("set debuginfod enabled off")
    if line.interpreter.startswith("mi"):
        # gdb 17 and later begin warnings with one. The machine interface escapes half
        # of its bytes, and what a command has printed cannot be decoded then.
        with contextlib.suppress(gdb.error, RuntimeError):
            gdb.execute("set style emoji off")


def _major_version() -> int:
    major = re.match(r"\d+", gdb.VERSION.rpartition(" ")[2])
    return int(major[0]) if major else 0


def _use_index_cache() -> None:
    # Reading a kernel's DWARF takes these 20 s without one. Versions of gdb do not read
    # each other's, though the names of the files are the same.
    folder = cache_folder("index") / f"gdb-{_major_version()}"
    if not is_plain(folder):
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return  # a home that cannot be written to costs time, nothing else
    gdb.execute(f"set index-cache directory {folder}")
    gdb.execute("set index-cache enabled on")


def _find_vmlinux(
    session: Session, path: Path | None, settings: Settings
) -> Vmlinux | None:
    if settings.wants_own_symbols:
        session.problems.append("no vmlinux is loaded, as asked for")
        return None
    if path is None:
        asks = not command_line().is_batch
        path = find_vmlinux(session, settings.debug_dirs, debuginfod=asks)
    if path is None:
        session.problems.append("no vmlinux of this kernel found")
        return None
    return use_vmlinux(session, path, force=settings.is_forced)


def _private_folder() -> Path:
    # mkdtemp() makes it 0700. gdb may read the core again at any time, so it stays.
    base = tempfile.gettempdir()
    if not is_plain(base):
        base = "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="gdbkdump-", dir=base))

    def remove(event: object = None) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    if hasattr(gdb.events, "gdb_exiting"):
        gdb.events.gdb_exiting.connect(remove)
    atexit.register(remove)
    return folder


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    # Opening makes many objects and no garbage; looking for it takes a tenth.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _unload() -> None:
    # Without the executable gdb has no file to take link-time values from.
    with console.quiet():
        server.disconnect()
        for command in ("core-file", "exec-file", "symbol-file"):
            gdb.execute(command, to_string=True)


def _load_symbols(session: Session, vmlinux: Vmlinux, folder: Path) -> None:
    offset = kaslr_offset(session.kernel, vmlinux)
    path = plain_path(vmlinux.path, folder / "vmlinux")
    command = f"add-symbol-file {path} -o {offset:#x}"
    if session.kernel.symbol("__per_cpu_start") == 0:
        # Until 6.15 per-CPU symbols of x86-64 are offsets, which do not move.
        command += " -s .data..percpu 0"
    _announce_first_reading(vmlinux)
    try:
        gdb.execute(command, to_string=True)
    except gdb.error as error:
        raise FormatError(f"gdb cannot read {vmlinux.path}: {error}") from None
    if not vmlinux.has_debug_info and not _has_separate_debug_info():
        session.problems.append(f"{vmlinux.path} has no debug information")
        gdb.execute(f"remove-symbol-file {path}", to_string=True)
        load_symbol_file(session, folder)


def _announce_first_reading(vmlinux: Vmlinux) -> None:
    # gdb names the files of its index cache so (gdb/dwarf2/index-cache.c).
    index = f"{vmlinux.identity.build_id}.gdb-index"
    folder = gdb.parameter("index-cache directory")
    is_slow = _major_version() <= _LAST_SLOW_VERSION and vmlinux.has_debug_info
    if is_slow and os.isatty(2) and not Path(str(folder), index).exists():
        gdb.write(
            "gdbkdump: gdb reads this vmlinux for the first time (--own-symbols does"
            " without it)...\n",
            gdb.STDERR,
        )
        gdb.flush(gdb.STDERR)


def _has_separate_debug_info() -> bool:
    return any(objfile.owner is not None for objfile in gdb.objfiles())
