# SPDX-License-Identifier: GPL-2.0-or-later
"""A process of a dump for tests: its parts, and its program on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.commands.arguments import find_tasks
from gdbkdump.kernel.process import executable, find_process
from gdbkdump.target.usercore import user_threads
from gdbkdump.target.userfiles import copy_file
from gdbkdump.target.userimage import UserImage

if TYPE_CHECKING:
    from pathlib import Path

    from gdbkdump.kernel.process import Process
    from gdbkdump.kernel.sched import Task
    from gdbkdump.session import Session
    from gdbkdump.target.usercore import UserThread


class Opened(NamedTuple):
    """A process, its memory, its threads."""

    task: Task
    process: Process
    image: UserImage
    threads: list[UserThread]


def open_process(session: Session, name: str) -> Opened:
    """Return the process of a pid or comm."""
    kernel = session.kernel
    task = find_tasks(session, name)[0]
    process = find_process(kernel, task)
    image = UserImage(kernel, session.dump, process)
    return Opened(task, process, image, user_threads(kernel, process))


def copy_program(session: Session, opened: Opened, path: Path) -> Path:
    """Copy the program that a process runs out of the page cache."""
    file = executable(session.kernel, opened.process)
    copy_file(session.kernel, session.dump, file, path)
    return path
