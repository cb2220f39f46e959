# SPDX-License-Identifier: GPL-2.0-or-later
"""kbt: kernel stacks, laid out as crash's bt."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from gdbkdump.commands import argument, command
from gdbkdump.commands.arguments import context_task, find_tasks, tasks_on_cpus
from gdbkdump.commands.taskview import (
    register_data,
    register_lines,
    task_data,
    task_line,
)
from gdbkdump.errors import CommandError, KdumpError
from gdbkdump.render.model import Address, Listing, Note
from gdbkdump.unwind.frame import FrameKind, StackEnd
from gdbkdump.unwind.scan import scan_stack
from gdbkdump.unwind.stacks import TASK_STACK
from gdbkdump.unwind.unwinder import unwind_task, unwinder

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Iterator

    from gdbkdump.debuginfo.base import SymbolAt
    from gdbkdump.kernel.sched import Task
    from gdbkdump.render.model import Block, Line, Span
    from gdbkdump.session import FrameVariables, Session
    from gdbkdump.unwind.frame import Frame, Stack
    from gdbkdump.unwind.scan import Found
    from gdbkdump.unwind.stacks import StackRange

_U64 = struct.Struct("<Q").iter_unpack


@command(
    "kbt",
    "Show the kernel stack of tasks.",
    category="tasks",
    crash="bt",
    arguments=[
        argument(
            "tasks",
            nargs="*",
            metavar="TASK",
            completes="task",
            help="pid, task address, comm or /regex/",
        ),
        argument(
            "-a", dest="all_cpus", action="store_true", help="the task on every CPU"
        ),
        argument("-c", dest="cpus", metavar="CPUS", help="the tasks on CPUs (0,2-4)"),
        argument("-l", dest="lines", action="store_true", help="show file and line"),
        argument("-s", dest="offsets", action="store_true", help="show symbol+offset"),
        argument(
            "-f", dest="words", action="store_true", help="show the words of each frame"
        ),
        argument(
            "-v", dest="variables", action="store_true", help="arguments and locals"
        ),
        argument(
            "-t", dest="scan", action="store_true", help="what else is on the stack"
        ),
    ],
    examples=["kbt", "kbt 1", "kbt -a", "kbt -c 0,2 -s", "kbt /kworker/ | grep sched"],
)
def kbt(session: Session, args: Namespace) -> Iterator[Block]:
    r"""Unwind stacks by the kernel's own tables (ORC), innermost frame first.

    Without arguments it is the stack of the task that panicked, or that kset chose. In
    brackets stands where on the stack the return address is. Where an exception or
    interrupt came in, the registers it interrupted are shown, and a line between dashes
    where the stack changes. At the end of a stack that user mode entered are the
    registers of user mode. Frames behind code that has no ORC are marked "?"; where a
    stack cannot be followed any further, a line in parentheses says why.

    -t adds what looks like return addresses on the task's stack, from where it stands
    up; most of it is stale, so it is listed apart and marked. -l and -v take gdb and a
    vmlinux or module with debug information.

    Registers of tasks on a CPU are those that the CPU saved when it was stopped. If it
    did not, its stack is not shown, as it is not known what is on it.
    """
    notes: list[str] = []
    tasks = _chosen(session, args, notes)
    if args.lines and session.source_line is None:
        yield Note("-l: source lines need gdb and a vmlinux with debug information")
    if args.variables and session.frame_variables is None:
        yield Note("-v: variables need gdb and a vmlinux with debug information")
    view = _View(session, args)
    stacks = (
        (unwind_task(session.kernel, task), i > 0) for i, task in enumerate(tasks)
    )
    yield Listing(
        stacks,
        lambda item: view.lines(*item),
        lambda item: view.data(item[0]),
    )
    for note in notes + _problems(session):
        yield Note(note)


def _chosen(session: Session, args: Namespace, notes: list[str]) -> Iterable[Task]:
    if bool(args.tasks) + bool(args.cpus) + args.all_cpus > 1:
        raise CommandError("tasks, -a or -c CPUS, one of them")
    if args.all_cpus or args.cpus:
        return tasks_on_cpus(session, args.cpus or "all", notes)
    if not args.tasks:
        return [context_task(session)]
    found = [task for text in args.tasks for task in find_tasks(session, text)]
    return dict.fromkeys(found)


def _problems(session: Session) -> list[str]:
    try:
        return [f"ORC of {problem}" for problem in unwinder(session.kernel).problems]
    except KdumpError:
        return []  # each stack said so itself


class _View:
    # Stacks as text and as data, with what the options ask for.
    def __init__(self, session: Session, args: Namespace) -> None:
        self._kernel = session.kernel
        self._debuginfo = session.kernel.debuginfo
        self._reader = session.kernel.reader
        self._source_line = session.source_line if args.lines else None
        self._has_offsets = args.offsets
        self._has_words = args.words
        self._has_scan = args.scan
        self._frame_variables = session.frame_variables if args.variables else None
        # kforeach makes a view a task, and the functions are the same few.
        key = ("names of frames", args.offsets)
        self._names: dict[tuple[int, int], list[Span]] = session.kernel.once(key, dict)

    def _symbol_at(self, address: int) -> SymbolAt | None:
        try:
            return self._debuginfo.symbol_at(address)
        except KdumpError:
            return None  # a damaged symbol table costs names, not frames

    # Text

    def lines(self, stack: Stack, needs_gap: bool) -> Iterator[Line]:
        if needs_gap:
            yield ""
        yield task_line(stack.task, stack.cpu)
        known = self._variables(stack)
        last: StackRange | None = None
        for number, frame in enumerate(stack.frames):
            if frame.registers and frame.kind is FrameKind.EXCEPTION:
                yield from self._exception(frame)
            if last not in (frame.stack, None) and last.name != TASK_STACK:
                yield [("dim", f"--- <{last.name}> ---")]
            last = frame.stack
            yield from self._frame(stack, number)
            for variables in known.pop(frame.ip, ()):
                yield from _variable_lines(variables)
        if stack.reason:
            style = "error" if stack.end is StackEnd.BROKEN else "note"
            yield [("", "    "), (style, f"({stack.reason})")]
        if stack.user_registers:
            yield from register_lines(stack.user_registers)
        if self._has_scan:
            for found in self._scan(stack):
                yield [("", f"    [{found.slot:016x}] ? "), *self._scanned(found)]

    def _variables(self, stack: Stack) -> dict[int, list[FrameVariables]]:
        # By address: inlined functions share that of the frame that they are in.
        known: dict[int, list[FrameVariables]] = {}
        if self._frame_variables is not None:
            for frame in self._frame_variables(stack.task.address):
                known.setdefault(frame.pc, []).append(frame)
        return known

    def _scan(self, stack: Stack) -> Iterator[Found]:
        start = stack.frames[0].sp if stack.frames else 0
        return scan_stack(self._kernel, stack.task, start)

    def _scanned(self, found: Found) -> list[Span]:
        symbol = self._symbol_at(found.ip - 1)
        name = f"{symbol.name}+{found.ip - symbol.address}" if symbol else "(unknown)"
        module = f" [{symbol.module}]" if symbol and symbol.module else ""
        return [("dim", name), ("", f" at {found.ip:016x}{module}")]

    def _exception(self, frame: Frame) -> Iterator[Line]:
        assert frame.registers is not None
        name = _with_offset(self._symbol_at(frame.ip)) or "unknown or invalid address"
        yield [("", "    [exception RIP: "), ("symbol", name), ("", "]")]
        yield from register_lines(frame.registers)

    def _frame(self, stack: Stack, number: int) -> Iterator[Line]:
        frame = stack.frames[number]
        place = frame.slot or frame.sp
        yield [
            (
                "",
                f"{f'#{number}':>3} [{place:016x}] {'' if frame.is_reliable else '? '}",
            ),
            *self._name(frame),
        ]
        line = self._source_line(frame.pc) if self._source_line else None
        if line:
            yield [("", "    "), ("file", line)]
        if self._has_words:
            yield from self._stack_words(stack, number)

    def _name(self, frame: Frame) -> list[Span]:
        key = (frame.pc, frame.ip)
        spans = self._names.get(key)
        if spans is None:
            spans = self._names[key] = self._make_name(frame)
        return spans

    def _make_name(self, frame: Frame) -> list[Span]:
        symbol = self._symbol_at(frame.pc)
        name = symbol.name if symbol else "(unknown)"
        if symbol and self._has_offsets:
            name = f"{name}+{frame.ip - symbol.address}"
        spans = [("symbol", name), ("", " at "), ("address", f"{frame.ip:016x}")]
        if symbol and symbol.module:
            spans.append(("", f" [{symbol.module}]"))
        return spans

    def _stack_words(self, stack: Stack, number: int) -> Iterator[Line]:
        # What the frame holds, and the return address to the next one, as crash does;
        # of the last frame on a stack all there is, which ends in the saved registers.
        frame = stack.frames[number]
        following = stack.frames[number + 1 : number + 2]
        if frame.stack is None or (not following and stack.end is StackEnd.BROKEN):
            return
        start, end = frame.slot + 8 if frame.slot else frame.sp, frame.stack.end
        if following and following[0].stack == frame.stack:
            end = following[0].slot + 8 if following[0].slot else following[0].sp
        data = self._reader.read_partial(start, max(0, end - start))
        for i in range(0, len(data) - 7, 16):
            pair = " ".join([f"{word:016x}" for (word,) in _U64(data[i : i + 16])])
            yield f"    {start + i:016x}: {pair}"
        if len(data) < end - start:
            yield [("", "    "), ("error", f"({start + len(data):016x} is unreadable)")]

    # Data

    def data(self, stack: Stack) -> dict[str, Any]:
        known = self._variables(stack)
        data = self._stack_data(stack)
        if self._frame_variables is not None:
            for frame, entry in zip(stack.frames, data["frames"], strict=True):
                found = known.pop(frame.ip, [])
                entry["variables"] = [_variable_data(item) for item in found]
        if self._has_scan:
            data["scan"] = [
                {"slot": Address(found.slot), "ip": Address(found.ip)}
                for found in self._scan(stack)
            ]
        return data

    def _stack_data(self, stack: Stack) -> dict[str, Any]:
        return task_data(stack.task, stack.cpu) | {
            "active": stack.cpu is not None,
            "frames": [self._frame_data(frame) for frame in stack.frames],
            "user_registers": register_data(stack.user_registers),
            "end": stack.end.value,
            "reason": stack.reason or None,
        }

    def _frame_data(self, frame: Frame) -> dict[str, Any]:
        symbol = self._symbol_at(frame.pc)
        data = {
            "ip": Address(frame.ip),
            "sp": Address(frame.sp),
            "slot": Address(frame.slot) if frame.slot else None,
            "symbol": symbol.name if symbol else None,
            "offset": frame.ip - symbol.address if symbol else None,
            "module": symbol.module or None if symbol else None,
            "kind": frame.kind.value,
            "stack": frame.stack.name if frame.stack else None,
            "reliable": frame.is_reliable,
            "registers": register_data(frame.registers),
        }
        if self._source_line:
            data["line"] = self._source_line(frame.pc)
        return data


def _variable_lines(frame: FrameVariables) -> Iterator[Line]:
    if not (frame.arguments or frame.variables or frame.is_inline):
        return
    arguments = ", ".join(f"{name}={value}" for name, value in frame.arguments)
    inline = " (inlined)" if frame.is_inline else ""
    yield [("", "      "), ("symbol", frame.function), ("", f"({arguments}){inline}")]
    for name, value in frame.variables:
        # A value may have several lines: a struct.
        first, *rest = value.split("\n")
        yield [("", "        "), ("member", name), ("", f" = {first}")]
        yield from (f"        {line}" for line in rest)


def _variable_data(frame: FrameVariables) -> dict[str, Any]:
    return {
        "function": frame.function,
        "inlined": frame.is_inline,
        "arguments": dict(frame.arguments),
        "locals": dict(frame.variables),
    }


def _with_offset(symbol: SymbolAt | None) -> str:
    if symbol is None:
        return ""
    module = f" [{symbol.module}]" if symbol.module else ""
    return f"{symbol.name}+{symbol.offset}{module}"
