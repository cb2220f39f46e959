# SPDX-License-Identifier: GPL-2.0-or-later
"""A process of a dump for tests: its parts, and its program on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdbkdump.commands.arguments import find_tasks
from gdbkdump.kernel.process import executable
from gdbkdump.target import usercore
from gdbkdump.target.userfiles import copy_file

if TYPE_CHECKING:
    from pathlib import Path

    from gdbkdump.session import Session
    from gdbkdump.target.usercore import UserProcess


def open_process(session: Session, name: str) -> UserProcess:
    """Return the process of a pid or comm."""
    task = find_tasks(session, name)[0]
    return usercore.open_process(session.kernel, session.dump, task)


def copy_program(session: Session, user: UserProcess, path: Path) -> Path:
    """Copy the program that a process runs out of the page cache."""
    file = executable(session.kernel, user.process)
    copy_file(session.kernel, session.dump, file, path)
    return path
