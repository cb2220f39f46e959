# SPDX-License-Identifier: GPL-2.0-or-later
"""kforeach: one command for many tasks."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gdbkdump.commands import (
    argument,
    command,
    command_names,
    find_command,
    find_command_word,
)
from gdbkdump.commands.arguments import select_tasks
from gdbkdump.errors import CommandError, KdumpError
from gdbkdump.kernel.sched import task_problems
from gdbkdump.render.model import Gap, Note, blocks_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.render.model import Block
    from gdbkdump.session import Session

# These show many tasks as well as one, and all where none is named.
_OF_MANY = ("kps", "kstacks")


@command(
    "kforeach",
    "Run a command for each of many tasks.",
    category="tasks",
    crash="foreach",
    arguments=[
        argument(
            "words",
            nargs=argparse.REMAINDER,
            metavar="[FILTER ...] COMMAND",
            completes="filter or command",
            help="which tasks, then the command with its options",
        ),
    ],
    examples=["kforeach kbt", "kforeach UN kbt -s", "kforeach user /^ssh/ kregs -u"],
)
def kforeach(session: Session, args: argparse.Namespace) -> Iterator[Block]:
    """Make each task in turn the one that commands work on, and run the command.

    A filter is a pid, task address, comm, /regex/ or state (RU IN UN ZO ST TR ID), or
    kernel, user, gleader or active. Of several names one must fit, and of several
    states; each of the last four must. Without a filter it is every task. kps and
    kstacks are run once, for all of them.
    """
    filters, words = _split(args.words)
    if words[0] == "kforeach":
        raise CommandError("kforeach does not run itself")
    inner = find_command(words[0])
    options = inner.parse(words[1:])
    chosen = select_tasks(session, filters)
    if inner.name in _OF_MANY and not options.which:
        options.which = [f"{task.address:#x}" for task in chosen]
        if chosen:
            yield from blocks_of(inner.run(session, options))
        return
    before = session.task
    failed: list[str] = []
    try:
        for number, task in enumerate(chosen):
            session.task = task.address
            try:
                if number:
                    yield Gap()
                yield from blocks_of(inner.run(session, options))
            except KdumpError as error:
                failed.append(f"{inner.name} failed for PID {task.pid}: {error}")
    finally:
        session.task = before
    if failed:
        yield Note(
            f"{len(failed)} of {len(chosen)} tasks failed, the first: {failed[0]}"
        )
    for problem in task_problems(session.kernel):
        yield Note(problem)


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    at = find_command_word(words)
    if at is not None:
        return words[:at], words[at:]
    names = command_names()
    # Of crash's names the first word is one, if any is.
    meant = next((f" {word} is k{word}?" for word in words if f"k{word}" in names), "")
    raise CommandError(
        f"which command?{meant} (kforeach [FILTER ...] COMMAND, as in: kforeach UN kbt)"
    )
