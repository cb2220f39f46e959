# SPDX-License-Identifier: GPL-2.0-or-later
"""kgcore: a process of the dump as a core file for any debugger."""

from __future__ import annotations

import contextlib
import re
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from gdbkdump.commands import argument, command
from gdbkdump.commands.arguments import refuse_input
from gdbkdump.commands.processview import (
    find_one,
    process_fields,
    process_notes,
    size,
)
from gdbkdump.errors import CommandError
from gdbkdump.render.model import Note, Record, Shown
from gdbkdump.target.usercore import ProcessCore, open_process

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from gdbkdump.render.model import Block
    from gdbkdump.session import Session

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_DEFAULT_LIMIT = "16G"


@command(
    "kgcore",
    "Write a core file of a process, for gdb or any other debugger.",
    category="tasks",
    crash="gcore (extension)",
    arguments=[
        argument("task", metavar="PID", completes="task", help="pid, address or comm"),
        argument(
            "file",
            metavar="FILE",
            completes="file",
            help="where to write it; must not be there",
        ),
        argument("-f", "--force", action="store_true", help="overwrite FILE"),
        argument(
            "-n",
            "--dry-run",
            dest="dry_run",
            action="store_true",
            help="write nothing, say what the core would hold",
        ),
        argument(
            "--limit",
            metavar="SIZE",
            default=_DEFAULT_LIMIT,
            help=f"write no more than that, 512M or 2G (default: {_DEFAULT_LIMIT})",
        ),
    ],
    examples=["kgcore 1 init.core", "kgcore -n bash bash.core"],
)
def kgcore(session: Session, args: Namespace) -> Iterator[Block]:
    """Write what the kernel would have written, had the process crashed.

    The core has all threads with their registers of user mode, the memory, names of
    mapped files and the auxiliary vector. Open it with "gdb PROGRAM FILE".

    What is not in the dump (excluded pages, swapped out ones, pages of files that are
    not in the page cache) is not in the core, so that a debugger cannot read it; how
    much of what is missing is said. The core is sparse and only you can read it.
    """
    limit = _parse_size(args.limit)
    path = Path(args.file).expanduser()
    if not args.dry_run:
        _check_target(session, path, force=args.force)
    task = find_one(session, args.task)
    user = open_process(session.kernel, session.dump, task, session.report)
    core = ProcessCore(user)
    if core.size > limit:
        raise CommandError(
            f"kgcore: the core would have {core.size} bytes, more than --limit"
            f" {args.limit}"
        )
    if not args.dry_run:
        _write(session, core, path, force=args.force)
    yield Record(
        {
            "FILE": Shown("(not written)", None) if args.dry_run else str(path),
            **process_fields(user),
            "SIZE": size(core.size),
        }
    )
    yield from process_notes(user)
    if not args.dry_run and not user.image.present:
        yield Note("the core holds no memory at all: the dump has none of the process")


def _parse_size(text: str) -> int:
    match = re.fullmatch(r"(\d{1,15})([KMGT]?)", text.upper())
    if not match:
        raise CommandError(f"{text!r} is no size (such as 512M or 2G)")
    return int(match[1]) * _UNITS[match[2]]


def _check_target(session: Session, path: Path, *, force: bool) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise CommandError(f"kgcore: {path.parent} is no folder") from None
        if path.is_symlink():
            raise CommandError(f"kgcore: {path} is a link that leads nowhere") from None
        return
    except OSError as error:
        raise CommandError(f"kgcore: {path}: {error.strerror}") from None
    refuse_input(session, path)
    if not stat.S_ISREG(status.st_mode):
        raise CommandError(f"kgcore: {path} is no regular file")
    if not force:
        raise CommandError(f"kgcore: {path} is there already (--force overwrites it)")


def _write(session: Session, core: ProcessCore, path: Path, *, force: bool) -> None:
    # Beside it and then renamed: it is there whole or not at all.
    try:
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with contextlib.ExitStack() as undo:
            undo.callback(Path(name).unlink)
            with open(fd, "wb") as file:
                core.write(file, session.report, f"writing {path.name}")
            if not force and path.exists():
                raise CommandError(
                    f"kgcore: {path} was made by somebody else meanwhile"
                )
            Path(name).replace(path)
            undo.pop_all()
    except OSError as error:
        raise CommandError(f"kgcore: {path}: {error.strerror}") from None
