# SPDX-License-Identifier: GPL-2.0-or-later
"""kset: the task that commands work on unless told otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdbkdump.commands import argument, command
from gdbkdump.commands.arguments import context_task, find_tasks, parse_cpus
from gdbkdump.errors import CommandError
from gdbkdump.kernel.sched import (
    current_task,
    panic_cpu,
    panic_task,
    running_tasks,
    task_state,
    unknown_task,
)
from gdbkdump.render.escape import decode
from gdbkdump.render.model import Address, Record, Shown

if TYPE_CHECKING:
    from argparse import Namespace

    from gdbkdump.kernel.sched import Task
    from gdbkdump.session import Session


@command(
    "kset",
    "Show or choose the task that commands work on.",
    category="tasks",
    crash="set",
    arguments=[
        argument("task", nargs="?", completes="task", help="pid, task address or comm"),
        argument("-c", dest="cpu", metavar="CPU", help="the task that was on a CPU"),
        argument(
            "-p", dest="panic", action="store_true", help="the task that panicked"
        ),
    ],
    examples=["kset", "kset 1", "kset -c 2", "kset -p"],
)
def kset(session: Session, args: Namespace) -> Record:
    """Choose the context of kbt, krd -u, kvtop and others.

    Without arguments the present one is shown. Inside gdb the thread is selected too.
    """
    if args.task or args.cpu or args.panic:
        task = _chosen(session, args)
        session.task = task.address
        if session.select_task:
            session.select_task(task.address)
    else:
        task = context_task(session)
    return _record(session, task)


def _chosen(session: Session, args: Namespace) -> Task:
    if bool(args.task) + bool(args.cpu) + args.panic > 1:
        raise CommandError("a task, -c CPU or -p, one of them")
    if args.task:
        found = find_tasks(session, args.task)
        if len(found) > 1:
            pids = " ".join(str(task.pid) for task in found[:8])
            raise CommandError(f"{args.task!r} names {len(found)} tasks: {pids} ...")
        return found[0]
    if args.panic:
        task = panic_task(session.kernel)
        if task is None:
            if panic_cpu(session.kernel) is not None:
                raise CommandError(unknown_task(session.kernel))
            raise CommandError("no CPU panicked in this dump")
        return task
    chosen = parse_cpus(session, args.cpu)
    if len(chosen) != 1:
        raise CommandError("-c takes one CPU")
    task = current_task(session.kernel, chosen[0])
    if task is None:
        raise CommandError(f"no task is known on CPU {chosen[0]}")
    return task


def _record(session: Session, task: Task) -> Record:
    kernel = session.kernel
    marks = []
    if task == panic_task(kernel):
        marks.append("PANIC")
    elif task.address in running_tasks(kernel):
        marks.append("ACTIVE")
    state = task_state(kernel, task)
    shown = f"{state} ({'|'.join(marks)})" if marks else state
    return Record(
        {
            "PID": task.pid,
            "COMMAND": Shown(f'"{decode(task.comm)}"', task.comm),
            "TASK": Address(task.address),
            "CPU": task.cpu,
            "STATE": Shown(shown, state),
        }
    )
