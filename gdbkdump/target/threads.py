# SPDX-License-Identifier: GPL-2.0-or-later
"""Every Linux task as a thread of gdb: its number, its name, its registers.

A task on a CPU has the registers its CPU saved as it went down; any other has what
``__switch_to_asm`` pushed (``arch/x86/include/asm/switch_to.h``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import FaultError
from gdbkdump.kernel.panic import cpu_registers
from gdbkdump.kernel.sched import panic_cpu, running_tasks, stack_states, tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from gdbkdump.arch.base import Registers
    from gdbkdump.kernel.base import Kernel
    from gdbkdump.kernel.sched import Task

# Pids end below PID_MAX_LIMIT (4194304); the idle tasks, all of pid 0, come after it.
FIRST_IDLE_ID = 4194304 + 1
_FIRST_INVENTED_ID = FIRST_IDLE_ID + 8192


class KernelThread(NamedTuple):
    """One thread of the view core.

    :param id: what gdb calls the LWP; unique, the pid but for idle tasks
    :param task: address of its ``struct task_struct``
    :param mark: of a task that was on a CPU: which one, and whether it panicked
    :param registers: empty where they are not in the dump; gdb then shows pc 0
    """

    id: int
    task: int
    name: bytes
    cpu: int
    registers: Registers
    mark: str = ""


@dataclass
class Threads:
    """All threads, and how many of them lack registers, by the reason."""

    threads: list[KernelThread] = field(default_factory=list)
    silent_cpus: list[int] = field(default_factory=list)
    without_stack: int = 0
    unreadable: int = 0

    def problems(self) -> list[str]:
        """Return what the reader of a backtrace has to know, one line each."""
        lines = []
        if self.silent_cpus:
            cpus = ", ".join(map(str, sorted(self.silent_cpus)))
            lines.append(
                f"CPU {cpus} saved no registers: no backtrace of what ran there"
            )
        if self.unreadable:
            lines.append(
                f"the stacks of {self.unreadable} of {len(self.threads)} tasks cannot"
                " be read: no registers"
            )
        return lines


def kernel_threads(kernel: Kernel) -> Threads:
    """Return a thread for each task, in the order of ``tasks()``."""
    result = Threads()
    stacks = stack_states(kernel)
    read_switched = _switch_frame_reader(kernel)
    running = running_tasks(kernel)
    panicked = panic_cpu(kernel)
    ids: set[int] = set()
    for task in tasks(kernel):
        if task.address in running:
            registers = _cpu_registers(kernel, running[task.address], result)
        elif not task.stack:
            # A zombie has given its stack back (put_task_stack()).
            result.without_stack += 1
            registers = {}
        else:
            try:
                registers = read_switched(stacks[task.address].sp)
            except FaultError:
                result.unreadable += 1
                registers = {}
        id_ = _unique_id(task, ids)
        mark = _mark(running.get(task.address), panicked)
        result.threads.append(
            KernelThread(id_, task.address, task.comm, task.cpu, registers, mark)
        )
    return result


def _mark(cpu: int | None, panicked: int | None) -> str:
    if cpu is None:
        return ""
    return f"CPU {cpu}, panicked" if cpu == panicked else f"CPU {cpu}"


def _unique_id(task: Task, ids: set[int]) -> int:
    # gdb drops a thread whose id comes twice, as a damaged task may make it do.
    id_ = FIRST_IDLE_ID + task.cpu if task.is_idle else task.pid
    if not 0 < id_ < 1 << 30:
        id_ = _FIRST_INVENTED_ID
    while id_ in ids:
        id_ = max(id_, _FIRST_INVENTED_ID + len(ids)) + 1
    ids.add(id_)
    return id_


def _cpu_registers(kernel: Kernel, cpu: int, result: Threads) -> Registers:
    # What a running task saved at its last switch is stale, so it is not taken.
    try:
        registers = cpu_registers(kernel, cpu)
    except FaultError:
        registers = None
    if registers is None:
        result.silent_cpus.append(cpu)
    return registers or {}


def _switch_frame_reader(kernel: Kernel) -> Callable[[int], Registers]:
    arch = kernel.arch
    frame = kernel.struct(arch.switch_frame)
    names = list(arch.switch_registers)
    pushed = [arch.switch_registers[name] for name in names]
    fields = kernel.fields(arch.switch_frame, names)
    fixed = arch.kernel_segments

    def read(sp: int) -> Registers:
        registers = dict(zip(pushed, fields.read(sp), strict=True))
        registers["sp"] = sp + frame.size
        registers.update(fixed)
        return registers

    return read
