# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said when a dump has been opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdbkdump import __version__
from gdbkdump.commands import find_command
from gdbkdump.errors import KdumpError
from gdbkdump.render.model import Note, Record, Text, blocks_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.render.model import Block
    from gdbkdump.session import Session

_SHOWN = (
    "KERNEL", "DUMPFILE", "RELEASE", "DATE", "UPTIME", "CPUS", "TASKS", "PANIC", "PID",
    "COMMAND", "CPU",
)  # fmt: skip


def banner(session: Session) -> Iterator[Block]:
    """Yield kernel, dump, date, panic, how long opening took, and what is wrong."""
    try:
        yield from _summary(session)
    except KdumpError as error:
        # Little is known of such a dump, but why must be said.
        yield Record({"DUMPFILE": str(session.path)})
        for problem in (*session.problems, str(error)):
            yield Note(problem)
    seconds = f"{session.opened_in:.2f}"
    yield Text([f"gdbkdump {__version__}: opened in {seconds} s; khelp lists commands"])


def _summary(session: Session) -> Iterator[Block]:
    ksys = find_command("ksys")
    for block in blocks_of(ksys.run(session, ksys.parse([]))):
        if isinstance(block, Record):
            fields = block.fields
            yield Record({name: fields[name] for name in _SHOWN if name in fields})
        else:
            yield block
