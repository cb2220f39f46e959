# SPDX-License-Identifier: GPL-2.0-or-later
"""kstacks: what all tasks are doing, each stack shown once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gdbkdump.commands import argument, command
from gdbkdump.commands.arguments import STATES, refuse_input, select_tasks
from gdbkdump.errors import CommandError
from gdbkdump.kernel.sched import task_problems, task_state
from gdbkdump.render.escape import decode, escape
from gdbkdump.render.model import Listing, Note
from gdbkdump.unwind.frame import StackEnd
from gdbkdump.unwind.unwinder import unwind_task

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from gdbkdump.debuginfo.base import SymbolAt
    from gdbkdump.kernel.sched import Task
    from gdbkdump.render.model import Block, Line
    from gdbkdump.session import Session
    from gdbkdump.unwind.frame import Stack

_SHOWN_PIDS = 12
_PROGRESS_STEP = 1000


class _Group:
    # Tasks with one and the same chain of functions, innermost first.
    def __init__(self, frames: tuple[SymbolAt | None, ...], reason: str) -> None:
        self.frames = frames
        self.reason = reason
        self.tasks: list[Task] = []


@command(
    "kstacks",
    "Show identical stacks once, most frequent first.",
    category="tasks",
    arguments=[
        argument(
            "which",
            nargs="*",
            metavar="FILTER",
            completes="filter",
            help="which tasks, as in kforeach",
        ),
        argument(
            "-t",
            dest="state",
            metavar="STATE",
            completes=STATES,
            help="tasks in STATE (UN, IN)",
        ),
        argument(
            "-c",
            dest="function",
            metavar="FUNCTION",
            completes="symbol",
            help="stacks with FUNCTION",
        ),
        argument(
            "-m",
            dest="module",
            metavar="MODULE",
            completes="module",
            help="stacks within MODULE",
        ),
        argument("--active", action="store_true", help="tasks on a CPU"),
        argument(
            "--folded",
            type=Path,
            metavar="FILE",
            completes="file",
            help="write them for flame graphs and speedscope instead",
        ),
    ],
    examples=["kstacks", "kstacks -t UN", "kstacks -c mutex_lock", "kstacks user"],
)
def kstacks(session: Session, args: Namespace) -> Iterator[Block]:
    """Aggregate the stacks of tasks: count, states, pids, and the functions.

    Two stacks are the same if they are in the same functions. --folded writes a line a
    stack, outermost function first, with the count, as flamegraph.pl and speedscope
    read it.
    """
    words = [*args.which, *(["active"] if args.active else [])]
    if args.state:
        if args.state not in STATES:
            raise CommandError(f"no state {args.state!r} ({' '.join(STATES)})")
        words.append(args.state)
    if args.folded:
        refuse_input(session, args.folded)
    groups = _collect(session, select_tasks(session, words))
    chosen = [group for group in groups if _fits(group, args)]
    if args.folded:
        yield _write_folded(args.folded, chosen)
    else:
        yield Listing(chosen, lambda g: _lines(session, g), lambda g: _data(session, g))
        yield from _broken(chosen)
    for problem in task_problems(session.kernel):
        yield Note(problem)


def _collect(session: Session, tasks: list[Task]) -> list[_Group]:
    groups: dict[object, _Group] = {}
    symbol_at = session.kernel.debuginfo.symbol_at
    for done, task in enumerate(tasks):
        stack = unwind_task(session.kernel, task)
        frames = tuple([symbol_at(frame.pc) for frame in stack.frames])
        key = (tuple([f.address if f else None for f in frames]), _reason(stack))
        group = groups.get(key)
        if group is None:
            group = groups[key] = _Group(frames, _reason(stack))
        group.tasks.append(task)
        if done % _PROGRESS_STEP == 0:
            session.report("unwinding stacks", done, len(tasks))
    session.report("unwinding stacks", len(tasks), len(tasks))
    return sorted(groups.values(), key=lambda group: -len(group.tasks))


def _reason(stack: Stack) -> str:
    # Reasons hold addresses, which differ from stack to stack.
    return (
        "cannot be followed further" if stack.end is StackEnd.BROKEN else stack.reason
    )


def _fits(group: _Group, args: Namespace) -> bool:
    names = [frame for frame in group.frames if frame]
    if args.function and args.function not in {frame.name for frame in names}:
        return False
    return not args.module or args.module in {frame.module for frame in names}


def _states(session: Session, group: _Group) -> Counter[str]:
    return Counter(task_state(session.kernel, task) for task in group.tasks)


def _lines(session: Session, group: _Group) -> Iterator[Line]:
    states = " ".join(f"{s} {n}" for s, n in _states(session, group).most_common())
    pids = [str(task.pid) for task in group.tasks[:_SHOWN_PIDS]]
    more = len(group.tasks) - len(pids)
    comms = Counter(decode(task.comm) for task in group.tasks)
    name, count = comms.most_common(1)[0]
    others = f" and {len(comms) - 1} more names" if len(comms) > 1 else ""
    yield [
        ("number", f"{len(group.tasks):>7}"),
        ("", "  STATE: "),
        ("state", states),
        ("", "  COMMAND: "),
        ("comm", f'"{name}"' if count == len(group.tasks) else f'"{name}"{others}'),
        ("", f"  PID: {' '.join(pids)}{f' (+{more})' if more else ''}"),
    ]
    for frame in group.frames:
        yield [("", " " * 9), *_frame(frame)]
    if group.reason:
        yield [("", " " * 9), ("note", f"({group.reason})")]
    yield ""


def _frame(frame: SymbolAt | None) -> list[tuple[str, str]]:
    if frame is None:
        return [("note", "(unknown)")]
    module = f" [{frame.module}]" if frame.module else ""
    return [("symbol", frame.name), ("", module)]


def _data(session: Session, group: _Group) -> dict[str, Any]:
    return {
        "count": len(group.tasks),
        "states": dict(_states(session, group)),
        "pids": [task.pid for task in group.tasks],
        "frames": [
            {"symbol": f.name, "module": f.module or None} if f else None
            for f in group.frames
        ],
        "reason": group.reason or None,
    }


def _broken(groups: list[_Group]) -> Iterator[Note]:
    broken = sum(len(g.tasks) for g in groups if g.reason.startswith("cannot"))
    if broken:
        yield Note(f"{broken} stacks cannot be followed to their end (kbt says why)")


def _write_folded(path: Path, groups: list[_Group]) -> Note:
    lines = []
    for group in groups:
        names = [
            escape(frame.name).replace(";", ":") if frame else "(unknown)"
            for frame in reversed(group.frames)
        ]
        if names:
            lines.append(f"{';'.join(names)} {len(group.tasks)}\n")
    try:
        path.write_text("".join(lines))
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror}") from None
    return Note(f"{len(lines)} stacks written to {path}")
