# SPDX-License-Identifier: GPL-2.0-or-later
"""kuser: a process of the dump, in gdb as an inferior of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdbkdump.commands import argument, command
from gdbkdump.commands.arguments import context_task
from gdbkdump.commands.processview import (
    find_one,
    process_fields,
    process_notes,
    size,
)
from gdbkdump.errors import CommandError
from gdbkdump.kernel.process import executable_path
from gdbkdump.render.model import Absent, Address, Column, Note, Record, Table
from gdbkdump.target.usercore import open_process

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from gdbkdump.render.model import Block
    from gdbkdump.session import Session
    from gdbkdump.target.usercore import UserProcess

_THREADS = (
    Column("PID", 8, ">"), Column("RIP", 16, style="address"),
    Column("RSP", 16, style="address"), Column("FS_BASE", 16, style="address"),
    Column("COMM", 15, style="comm"),
)  # fmt: skip
_MAPPINGS = (
    Column("START", 16, style="address"), Column("END", 16, style="address"),
    Column("PERM", 4), Column("OFFSET", 8, ">", style="number"),
    Column("IN DUMP", 10, ">", key="in_dump"), Column("UNTOUCHED", 10, ">"),
    Column("MISSING", 10, ">"), Column("NAME", 1, style="file"),
)  # fmt: skip


@command(
    "kuser",
    "Open a process of the dump: its memory, threads, program and libraries.",
    category="tasks",
    crash="vm, bt (user space)",
    arguments=[
        argument(
            "task",
            nargs="?",
            metavar="PID",
            completes="task",
            help="pid, address or comm (default: the current task)",
        ),
        argument(
            "-t", dest="threads", action="store_true", help="list its threads instead"
        ),
        argument(
            "-m", dest="mappings", action="store_true", help="list its mappings instead"
        ),
        argument(
            "--sysroot",
            metavar="DIR",
            completes="file",
            help="where its files are on this machine, as below /",
        ),
    ],
    examples=["kuser 1", "kuser -m bash", "kuser 812 --sysroot /srv/guest-root"],
)
def kuser(session: Session, args: Namespace) -> Iterator[Block]:
    """In gdb the process becomes an inferior of its own, with the thread selected.

    So "bt" goes on where the thread was in user space, and memory, variables,
    "info sharedlibrary" are those of the process. "inferior 1", or "thread" with
    what is shown as KERNEL THREAD, leads back to the kernel, "kuser PID" to the
    process again; k-commands work in both.

    Its program and libraries are taken from --sysroot if they are of the same build
    there, from debug folders and this machine by build-id, else out of the page
    cache of the dump if all of them is in it.

    What is not in the dump cannot be read, and is counted by the reason why. Memory
    that was never written reads as zeros, as in the process.
    """
    task = find_one(session, args.task) if args.task else context_task(session)
    user = open_process(session.kernel, session.dump, task, session.report)
    if args.threads or args.mappings:
        if args.threads:
            yield Table(_THREADS, _thread_rows(user))
        if args.mappings:
            yield Table(_MAPPINGS, _mapping_rows(user))
        yield from process_notes(user)
        return
    yield from _open(session, user, args.sysroot)


def _open(session: Session, user: UserProcess, sysroot: str | None) -> Iterator[Block]:
    path = executable_path(session.kernel, user.process)
    fields = process_fields(user) | {"PROGRAM": path}
    problems: list[str] = []
    if session.open_process is not None:
        opened = session.open_process(user, _folder(sysroot))
        problems = opened.problems
        symbols = str(opened.program) if opened.program else Absent()
        fields |= {
            "SYMBOLS": symbols,
            "LIBRARIES": opened.nr_libraries,
            "INFERIOR": opened.inferior,
            "KERNEL THREAD": opened.kernel_thread,
        }
    elif sysroot:
        raise CommandError("kuser: --sysroot is for gdb, which has none of it here")
    yield Record(fields)
    yield from process_notes(user)
    yield from map(Note, problems)


def _folder(sysroot: str | None) -> Path | None:
    if sysroot is None:
        return None
    folder = Path(sysroot).expanduser()
    if not folder.is_dir():
        raise CommandError(f"kuser: {folder} is no folder")
    return folder.absolute()


def _thread_rows(user: UserProcess) -> Iterator[list[Any]]:
    for thread in user.threads:
        registers = thread.state.registers
        if registers is None:
            values: list[Any] = [Absent(reason=thread.state.reason)] * 3
        else:
            values = [Address(registers[name]) for name in ("ip", "sp", "fs_base")]
        yield [thread.task.pid, *values, thread.task.comm]


def _mapping_rows(user: UserProcess) -> Iterator[list[Any]]:
    for each in user.image.mappings:
        vma = each.vma
        yield [
            Address(vma.start),
            Address(vma.end),
            vma.permissions,
            vma.pgoff * 4096 if vma.file else 0,
            size(each.present),
            size(each.untouched),
            size(sum(each.missing.values())),
            each.name,
        ]
