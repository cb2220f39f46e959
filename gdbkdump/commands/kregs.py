# SPDX-License-Identifier: GPL-2.0-or-later
"""kregs: the registers of CPUs at the crash, of sleeping tasks, and of user mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gdbkdump.commands import argument, command
from gdbkdump.commands.arguments import context_task, find_tasks, tasks_on_cpus
from gdbkdump.commands.taskview import (
    register_data,
    register_lines,
    task_data,
    task_line,
)
from gdbkdump.errors import CommandError, KdumpError
from gdbkdump.kernel.panic import cpu_registers, unsaved_registers
from gdbkdump.kernel.sched import running_tasks, stack_states
from gdbkdump.render.model import Listing, Note
from gdbkdump.unwind.unwinder import unwind_task

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from gdbkdump.arch.base import Registers
    from gdbkdump.kernel.sched import Task
    from gdbkdump.render.model import Block, Line
    from gdbkdump.session import Session


class _Saved(NamedTuple):
    task: Task
    cpu: int | None
    registers: Registers | None
    what: str


@command(
    "kregs",
    "Show registers.",
    category="tasks",
    crash="bt -a, help -r",
    arguments=[
        argument("task", nargs="*", completes="task", help="pid, address or comm"),
        argument("-a", dest="all_cpus", action="store_true", help="of every CPU"),
        argument("-c", dest="cpus", metavar="CPUS", help="of CPUs (0,2-4)"),
        argument("-u", dest="user", action="store_true", help="those of user mode"),
    ],
    examples=["kregs", "kregs -a", "kregs -c 0", "kregs -u 1"],
)
def kregs(session: Session, args: Namespace) -> Iterator[Block]:
    """Show what was in the registers.

    Of a task on a CPU they are those that the CPU saved when it was stopped; of another
    one those that the switch to the next task saved. With -u they are those with which
    it entered the kernel last.
    """
    notes: list[str] = []
    chosen = list(_choose(session, args, notes))
    several = len(chosen) > 1

    def to_lines(task: Task) -> Iterator[Line]:
        saved = _saved(session, task, args.user)
        yield task_line(task, saved.cpu)
        if saved.registers:
            yield from register_lines(saved.registers)
        if saved.what:
            yield [("", "    "), ("note", f"({saved.what})")]
        if several:
            yield ""

    def to_data(task: Task) -> dict[str, Any]:
        saved = _saved(session, task, args.user)
        return task_data(task, saved.cpu) | {
            "active": saved.cpu is not None,
            "registers": register_data(saved.registers),
            "reason": saved.what or None,
        }

    yield Listing(chosen, to_lines, to_data)
    for note in notes:
        yield Note(note)


def _choose(session: Session, args: Namespace, notes: list[str]) -> Iterator[Task]:
    if bool(args.task) + bool(args.cpus) + args.all_cpus > 1:
        raise CommandError("tasks, -a or -c CPUS, one of them")
    if args.all_cpus or args.cpus:
        yield from tasks_on_cpus(session, args.cpus or "all", notes)
    elif args.task:
        for text in args.task:
            yield from find_tasks(session, text)
    else:
        yield context_task(session)


def _saved(session: Session, task: Task, user: bool) -> _Saved:
    kernel = session.kernel
    cpu = running_tasks(kernel).get(task.address)
    try:
        if user:
            stack = unwind_task(kernel, task)
            reason = (
                "" if stack.user_registers else stack.reason or "never in user mode"
            )
            return _Saved(task, cpu, stack.user_registers, reason)
        if cpu is None:
            return _Saved(task, None, _switched_out(session, task), "")
        registers = cpu_registers(kernel, cpu)
    except KdumpError as error:
        return _Saved(task, cpu, None, str(error))
    if registers is None:
        return _Saved(task, cpu, None, unsaved_registers(kernel, cpu))
    what = "in user mode" if kernel.arch.is_user(registers) else ""
    return _Saved(task, cpu, registers, what)


def _switched_out(session: Session, task: Task) -> Registers:
    kernel = session.kernel
    if not task.stack:
        raise CommandError("the task has exited, its stack is freed")
    names = ["bp", "bx", "r12", "r13", "r14", "r15"]
    frame = kernel.fields("inactive_task_frame", [*names, "ret_addr"])
    sp = stack_states(kernel)[task.address].sp
    *values, ip = frame.read(sp)
    size = kernel.struct("inactive_task_frame").size
    saved = dict(zip(names, values, strict=True))
    return saved | {"ip": ip, "sp": sp + size}
