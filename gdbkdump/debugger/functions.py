# SPDX-License-Identifier: GPL-2.0-or-later
"""``$kper_cpu()``, ``$ktask()`` and ``$kcontainer_of()`` for any gdb expression.

They give typed values where vmlinux has DWARF, untyped addresses where not. Addresses
and offsets are the dump's own (kallsyms, BTF).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gdb

from gdbkdump.errors import CommandError, KdumpError
from gdbkdump.kernel.percpu import per_cpu, per_cpu_ptr
from gdbkdump.kernel.sched import find_task, panic_cpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from gdbkdump.kernel.base import Kernel

    GetKernel = Callable[[], Kernel]

_MASK = (1 << 64) - 1


class _Function(gdb.Function):
    # Gives errors of the dump, and a wrong number of arguments, as gdb's own.
    def __init__(
        self, function: Callable[..., gdb.Value], counts: range, kernel: GetKernel
    ) -> None:
        self.__doc__ = function.__doc__
        self._function = function
        self._counts = counts
        self._kernel = kernel
        super().__init__(function.__name__)

    def invoke(self, *arguments: gdb.Value) -> gdb.Value:
        if len(arguments) not in self._counts:
            usage = (self.__doc__ or "").partition("\n")[0]
            raise gdb.GdbError(f"gdbkdump: wrong number of arguments: {usage}")
        try:
            return self._function(self._kernel(), *arguments)
        except KdumpError as error:
            raise gdb.GdbError(f"gdbkdump: {error}") from None


def register_functions(kernel: GetKernel) -> None:
    """Declare the functions.

    :param kernel: gives the kernel of the open dump
    """
    _Function(kper_cpu, range(1, 3), kernel)
    _Function(ktask, range(1, 2), kernel)
    _Function(kcontainer_of, range(3, 4), kernel)


def kper_cpu(
    kernel: Kernel, what: gdb.Value, cpu: gdb.Value | None = None
) -> gdb.Value:
    """$kper_cpu("NAME" or POINTER, CPU): a CPU's copy of per-CPU data.

    For a name it is the variable itself, for a per-CPU pointer the pointer to that
    CPU's object. Without CPU it is that of the CPU that panicked.
    """
    number = panic_cpu(kernel) if cpu is None else int(cpu)
    if number is None:
        raise CommandError("no CPU panicked in this dump: say which")
    if what.type.strip_typedefs().code == gdb.TYPE_CODE_PTR and not _is_text(what):
        copy = per_cpu_ptr(kernel, int(what) & _MASK, number)
        return gdb.Value(copy).cast(what.type)
    name = what.string()
    variable = gdb.Value(per_cpu(kernel, name, number))
    type_ = _variable_type(name)
    if type_ is None:
        return variable.cast(gdb.lookup_type("void").pointer())
    return variable.cast(type_.pointer()).dereference()


def ktask(kernel: Kernel, pid: gdb.Value) -> gdb.Value:
    """$ktask(PID): the struct task_struct * of a thread id."""
    task = find_task(kernel, int(pid))
    if task is None:
        raise CommandError(f"no task {int(pid)}")
    return gdb.Value(task.address).cast(_pointer_to("struct task_struct"))


def kcontainer_of(
    kernel: Kernel, pointer: gdb.Value, type_: gdb.Value, member: gdb.Value
) -> gdb.Value:
    """$kcontainer_of(POINTER, "struct NAME", "MEMBER"): the object it points into."""
    name = type_.string().strip()
    bare = name.partition(" ")[2] if name.startswith(("struct ", "union ")) else name
    offset = kernel.struct(bare.strip()).offset(member.string())
    address = ((int(pointer) & _MASK) - offset) & _MASK
    return gdb.Value(address).cast(_pointer_to(name))


def _is_text(value: gdb.Value) -> bool:
    target = value.type.strip_typedefs().target().strip_typedefs()
    return target.sizeof == 1 and target.code in (gdb.TYPE_CODE_INT, gdb.TYPE_CODE_CHAR)


def _variable_type(name: str) -> gdb.Type | None:
    symbol = gdb.lookup_global_symbol(name) or gdb.lookup_static_symbol(name)
    return symbol.type if symbol else None


def _pointer_to(name: str) -> gdb.Type:
    try:
        return gdb.lookup_type(name).pointer()
    except gdb.error:
        return gdb.lookup_type("void").pointer()
