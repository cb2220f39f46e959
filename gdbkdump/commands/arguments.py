# SPDX-License-Identifier: GPL-2.0-or-later
"""What people type for an address, a task or a CPU; one reading for all commands."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gdbkdump.errors import CommandError, KdumpError, SymbolNotFoundError
from gdbkdump.kernel.percpu import cpus
from gdbkdump.kernel.sched import (
    current_task,
    default_task,
    running_tasks,
    task_by_address,
    task_problems,
    task_state,
    tasks,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gdbkdump.kernel.sched import Task
    from gdbkdump.session import Session

_SYMBOL = re.compile(r"&?([A-Za-z_.$][\w.$]*)(?:([+-])(0x[0-9a-fA-F]+|\d+))?")
_MAX_CPU = 1 << 13


def parse_number(text: str) -> int:
    """Return a decimal, ``0x`` hex or ``0`` octal-free number.

    :raise CommandError: it is none
    """
    try:
        return int(text, 16 if text.lower().startswith(("0x", "-0x")) else 10)
    except ValueError:
        raise CommandError(f"{text!r} is not a number") from None


def parse_address(session: Session, text: str) -> int:
    """Return an address: hex with or without 0x, ``symbol+off``, or ``$expression``.

    As in crash, a bare word of hex digits is an address unless a symbol has that name.

    :raise CommandError: it is none of these
    """
    if text.startswith("$"):
        return session.evaluated(text) & 0xFFFFFFFFFFFFFFFF
    if re.fullmatch(r"0x[0-9a-fA-F]{1,16}", text):
        return int(text, 16)
    named = _SYMBOL.fullmatch(text)
    if named:
        try:
            base = session.kernel.symbol(named[1])
            shift = parse_number(named[3]) if named[3] else 0
            return base - shift if named[2] == "-" else base + shift
        except SymbolNotFoundError:
            pass
    if re.fullmatch(r"[0-9a-fA-F]{1,16}", text):
        return int(text, 16)
    raise CommandError(
        f"{text!r} is neither an address nor a symbol of this kernel"
        " (ksym -q TEXT searches)"
    )


def parse_cpus(session: Session, text: str) -> list[int]:
    """Return the CPUs of ``all`` or ``0,2-4``.

    :raise CommandError: it is no such list, or the kernel has no such CPU
    """
    possible = cpus(session.kernel, "possible")
    if text in ("a", "all"):
        return possible
    chosen: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part)
        if not match:
            raise CommandError(f"{text!r} is no list of CPUs (such as 0,2-4, or all)")
        first, last = int(match[1]), int(match[2] or match[1])
        chosen += range(first, min(last, _MAX_CPU) + 1)
    for cpu in chosen:
        if cpu not in possible:
            raise CommandError(
                f"this kernel has no CPU {cpu} (it has {possible[0]}-{possible[-1]})"
            )
    return chosen


def find_tasks(session: Session, text: str) -> list[Task]:
    """Return the tasks of a pid, a task address, a comm, or a ``/regex/`` on the comm.

    :raise CommandError: there is none, or the expression is none
    """
    found = _match_tasks(session, text)
    if not found:
        # In a damaged dump it may have been there.
        lost = "; not all tasks could be read: see ksys"
        raise CommandError(
            f"no task {text!r} (a pid, task address, comm or /regex/)"
            f"{lost if task_problems(session.kernel) else ''}"
        )
    return found


def _match_tasks(session: Session, text: str) -> list[Task]:
    kernel = session.kernel
    if text.startswith("$"):
        value = session.evaluated(text) & 0xFFFFFFFFFFFFFFFF
        by_address = task_by_address(kernel, value)
        if by_address:
            return [by_address]
        return [task for task in tasks(kernel) if task.pid == value]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "/'":
        return _match_comm(tasks(kernel), text[1:-1], is_regex=text[0] == "/")
    if text.isdecimal():
        pid = int(text)
        found = [task for task in tasks(kernel) if task.pid == pid]
        if found:
            return found
    if re.fullmatch(r"(0x)?[0-9a-fA-F]{9,16}", text):
        task = task_by_address(kernel, int(text, 16))
        return [task] if task else []
    return _match_comm(tasks(kernel), text.removeprefix("\\"), is_regex=False)


def _match_comm(all_tasks: list[Task], text: str, *, is_regex: bool) -> list[Task]:
    if not is_regex:
        # The kernel cuts names at 15 bytes, people type them whole.
        wanted = text.strip("[]").encode()
        return [t for t in all_tasks if t.comm == wanted or t.comm == wanted[:15]]
    try:
        pattern = re.compile(text.encode())
    except re.error as error:
        raise CommandError(f"/{text}/ is no regular expression: {error}") from None
    return [task for task in all_tasks if pattern.search(task.comm)]


def refuse_input(session: Session, path: Path) -> None:
    """Check that a file that is to be written is none that is being read.

    :raise CommandError: it is
    """
    inputs = [*session.dump.paths, session.vmlinux, *session.module_files.values()]
    for used in inputs:
        if used and used.exists() and path.exists() and path.samefile(used):
            raise CommandError(f"{path} is what is being read")


# What kps shows as ST.
STATES = ("RU", "IN", "UN", "ZO", "ST", "TR", "DE", "PA", "ID", "WA", "NE")
KINDS = ("kernel", "user", "gleader", "active")


def select_tasks(session: Session, words: Sequence[str]) -> list[Task]:
    """Return the tasks that filters leave; all without one.

    Names (pid, task address, comm, /regex/) and states are alternatives among their
    like; ``kernel``, ``user``, ``gleader`` and ``active`` must hold besides.

    :raise CommandError: a name fits no task
    """
    kernel = session.kernel
    states = {word for word in words if word in STATES}
    kinds = {word for word in words if word in KINDS}
    names = [word for word in words if word not in states | kinds]
    chosen = tasks(kernel)
    if names:
        found = (task for word in names for task in find_tasks(session, word))
        chosen = list(dict.fromkeys(found))
    if states:
        chosen = [task for task in chosen if task_state(kernel, task) in states]
    if "kernel" in kinds:
        chosen = [task for task in chosen if task.is_kernel_thread]
    if "user" in kinds:
        chosen = [task for task in chosen if not task.is_kernel_thread]
    if "gleader" in kinds:
        chosen = [task for task in chosen if task.is_leader]
    if "active" in kinds:
        running = running_tasks(kernel)
        chosen = [task for task in chosen if task.address in running]
    return chosen


def tasks_on_cpus(session: Session, text: str, notes: list[str]) -> list[Task]:
    """Return the tasks that were on CPUs, which are given as for ``parse_cpus()``.

    :param notes: gets a line for each CPU whose task cannot be had
    """
    found = []
    for cpu in parse_cpus(session, text):
        try:
            task = current_task(session.kernel, cpu)
        except KdumpError as error:
            notes.append(f"CPU {cpu}: the task that it ran: {error}")
            continue
        if task is None:
            notes.append(
                f"CPU {cpu}: what it ran is not known, or not in the task list"
            )
        else:
            found.append(task)
    return found


def context_task(session: Session) -> Task:
    """Return the task that commands work on: that of ``kset``, else the panicking one.

    Where no CPU panicked it is that of the first CPU.

    :raise CommandError: it is not known, and none was chosen
    """
    if session.task:
        task = task_by_address(session.kernel, session.task)
    else:
        task = default_task(session.kernel)
    if task is None:
        raise CommandError("no task is known to begin with: say which, or use kset")
    return task
