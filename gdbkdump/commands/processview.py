# SPDX-License-Identifier: GPL-2.0-or-later
"""How a process and what the dump has of it look, in every command that shows one."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from gdbkdump.commands.arguments import find_tasks
from gdbkdump.errors import CommandError
from gdbkdump.render.model import Note, Shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.kernel.sched import Task
    from gdbkdump.render.model import Block
    from gdbkdump.session import Session
    from gdbkdump.target.usercore import UserProcess

_PAGE = 4096
_NAMED = 5


def find_one(session: Session, text: str) -> Task:
    """Return the thread of a pid, task address or comm, which must be of one process.

    :raise CommandError: there is none, or several processes are called so
    """
    found = find_tasks(session, text)
    pids = sorted({task.tgid for task in found})
    if len(pids) > 1:
        names = ", ".join(map(str, pids[:_NAMED])) + (", ..." if pids[_NAMED:] else "")
        raise CommandError(f"{text!r} is {len(pids)} processes: give a pid ({names})")
    return found[0]


def size(number: int) -> Shown:
    """Return bytes as a person reads them; in JSON they stay a number."""
    text = (
        f"{number / (1 << 20):.1f} MiB" if number >= 1 << 20 else f"{number >> 10} KiB"
    )
    return Shown(text, number)


def process_fields(user: UserProcess) -> dict[str, Any]:
    """Return what a record says of a process and its memory."""
    image = user.image
    return {
        "PID": user.process.pid,
        "COMMAND": user.process.leader.comm,
        "THREADS": len(user.threads),
        "REGISTERS": sum(each.state.registers is not None for each in user.threads),
        "MAPPINGS": len(image.mappings),
        "IN DUMP": size(image.present),
        "UNTOUCHED": size(image.untouched),
        "MISSING": size(sum(image.missing.values())),
    }


def process_notes(user: UserProcess) -> Iterator[Block]:
    """Yield which registers and which memory the dump lacks, and why."""
    reasons = Counter(
        each.state.reason for each in user.threads if each.state.registers is None
    )
    for reason, count in reasons.items():
        yield Note(
            f"{count} of {len(user.threads)} threads have no user registers: {reason}"
        )
    for reason, missing in user.image.missing.items():
        yield Note(f"{missing // _PAGE} pages are not in the dump: {reason}")
    for problem in user.image.problems:
        yield Note(problem)
