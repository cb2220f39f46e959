# SPDX-License-Identifier: GPL-2.0-or-later
"""Debug files of modules, given to gdb with the address of each section."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

import gdb

from gdbkdump.debugger.paths import plain_path
from gdbkdump.errors import FormatError, KdumpError
from gdbkdump.kernel.module import for_each_module
from gdbkdump.kernel.panic import cpu_registers
from gdbkdump.kernel.sched import panic_task
from gdbkdump.modulefiles import find_module_file
from gdbkdump.unwind.stacks import task_stack
from gdbkdump.unwind.unwinder import unwind_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from gdbkdump.kernel.base import Kernel
    from gdbkdump.kernel.module import Module
    from gdbkdump.kernel.sched import Task
    from gdbkdump.session import Session

# What gdb's commands take. Section names are the file's own, so untrusted.
_PLAIN_SECTION = re.compile(r"[\w.]+", re.ASCII)


@contextlib.contextmanager
def _no_index_cache() -> Iterator[None]:
    # gdb relocates a module as it reads it, so the index of one has the addresses of
    # one dump; cached by build-id it would be taken for those of the next dump too.
    is_on = gdb.parameter("index-cache enabled")
    if is_on:
        gdb.execute("set index-cache enabled off")
    try:
        yield
    finally:
        if is_on:
            gdb.execute("set index-cache enabled on")


class ModuleLoader:
    """Loads debug files, each module's once.

    :param folder: private, for links to files whose names gdb would misread
    :param debug_dirs: roots to search as /usr/lib/debug is searched
    """

    def __init__(
        self, session: Session, folder: Path, debug_dirs: Callable[[], Sequence[Path]]
    ) -> None:
        """Take a session; nothing is loaded yet."""
        self._session = session
        self._folder = folder
        self._debug_dirs = debug_dirs

    def load(self, module: Module, dirs: Sequence[Path]) -> None:
        """Load a module's debug file, unless it is loaded.

        :raise KdumpError: there is none, or gdb cannot read it
        """
        session = self._session
        if module.name in session.module_files:
            return
        found = find_module_file(session, module, dirs, self._debug_dirs())
        text = found.sections.get(".text")
        if text is None:
            raise FormatError(f"module {module.name}: {found.path} has no .text")
        path = plain_path(found.path, self._folder / f"module-{module.address:x}.ko")
        command = f"add-symbol-file {path} {text:#x}"
        for name, address in found.sections.items():
            if name != ".text" and _PLAIN_SECTION.fullmatch(name):
                command += f" -s {name} {address:#x}"
        try:
            with _no_index_cache():
                gdb.execute(command, to_string=True)
        except gdb.error as error:
            raise FormatError(f"gdb cannot read {found.path}: {error}") from None
        session.module_files[module.name] = found.path

    def load_panicking(self) -> None:
        """Load those of the modules on the stack that panicked.

        What is not found becomes one of the session's problems.
        """
        session = self._session
        try:
            panicking = _panicking_modules(session.kernel)
        except KdumpError:
            return  # the banner says that there is no such task
        for module in panicking:
            try:
                self.load(module, ())
            except KdumpError as error:
                session.problems.append(str(error))


def _panicking_modules(kernel: Kernel) -> list[Module]:
    task = panic_task(kernel)
    modules = list(for_each_module(kernel)) if task else []
    if task is None or not _mentions(kernel, task, modules):
        return []
    pcs = [frame.pc for frame in unwind_task(kernel, task).frames]
    return [module for module in modules if any(module.holds(pc) for pc in pcs)]


def _mentions(kernel: Kernel, task: Task, modules: list[Module]) -> bool:
    # Most kernels panic outside modules, and the tables to unwind with take time to
    # load: no word of the stack may lead into a module before that is done. On another
    # stack (of an interrupt) that cannot be told so cheaply.
    registers = cpu_registers(kernel, task.cpu)
    if registers is None:
        return False
    stack = task_stack(kernel, task.stack) if task.stack else None
    if stack is None or not stack.start <= registers["sp"] < stack.end:
        return True
    data = kernel.reader.read_partial(registers["sp"], stack.end - registers["sp"])
    words = [registers["ip"], *memoryview(data[: len(data) & ~7]).cast("Q")]
    low = min((base for m in modules for base, _ in m.ranges), default=0)
    high = max((base + size for m in modules for base, size in m.ranges), default=0)
    return any(low <= word < high for word in words)
