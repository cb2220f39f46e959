# SPDX-License-Identifier: GPL-2.0-or-later
"""How a process and what the dump has of it look, in every command that shows one."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from gdbkdump.commands.arguments import find_tasks
from gdbkdump.errors import CommandError
from gdbkdump.render.model import Note, Shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gdbkdump.kernel.process import Process
    from gdbkdump.kernel.sched import Task
    from gdbkdump.render.model import Block
    from gdbkdump.session import Session
    from gdbkdump.target.usercore import UserThread
    from gdbkdump.target.userimage import UserImage

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


def memory_fields(
    process: Process, threads: Sequence[UserThread], image: UserImage
) -> dict[str, Any]:
    """Return what a record says of a process and its memory, sizes in bytes."""
    known = sum(thread.state.registers is not None for thread in threads)
    return {
        "PID": process.pid,
        "COMMAND": process.leader.comm,
        "THREADS": len(threads),
        "REGISTERS": known,
        "MAPPINGS": len(image.mappings),
        "IN DUMP": size(image.present),
        "UNTOUCHED": size(image.untouched),
        "MISSING": size(sum(image.missing.values())),
    }


def thread_notes(threads: Sequence[UserThread]) -> Iterator[Block]:
    """Yield why some threads have no registers, and how many."""
    reasons = Counter(
        thread.state.reason for thread in threads if thread.state.registers is None
    )
    for reason, count in reasons.items():
        yield Note(
            f"{count} of {len(threads)} threads have no user registers: {reason}"
        )


def memory_notes(image: UserImage) -> Iterator[Block]:
    """Yield what is missing of the memory, by reason, and what is damaged."""
    for reason, size in image.missing.items():
        yield Note(f"{size // _PAGE} pages are not in the dump: {reason}")
    for problem in image.problems:
        yield Note(problem)
