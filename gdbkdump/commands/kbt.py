# SPDX-License-Identifier: GPL-2.0-or-later
"""kbt: kernel stacks, laid out as crash's bt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gdbkdump.commands import argument, command
from gdbkdump.commands.arguments import context_task, find_tasks, parse_cpus
from gdbkdump.errors import CommandError, KdumpError
from gdbkdump.kernel.sched import current_task
from gdbkdump.render.escape import decode
from gdbkdump.render.model import Address, Listing, Note
from gdbkdump.unwind.frame import FrameKind, StackEnd
from gdbkdump.unwind.stacks import TASK_STACK
from gdbkdump.unwind.unwinder import unwind_task, unwinder

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Iterator

    from gdbkdump.arch.base import Registers
    from gdbkdump.debuginfo.base import SymbolAt
    from gdbkdump.kernel.sched import Task
    from gdbkdump.render.model import Block, Line, Span
    from gdbkdump.session import Session
    from gdbkdump.unwind.frame import Frame, Stack
    from gdbkdump.unwind.stacks import StackRange

# As crash lays them out. An exception within other entry code saved but the last five.
_REGISTERS = (
    "    RIP: {ip:016x}  RSP: {sp:016x}  RFLAGS: {flags:08x}",
    "    RAX: {ax:016x}  RBX: {bx:016x}  RCX: {cx:016x}",
    "    RDX: {dx:016x}  RSI: {si:016x}  RDI: {di:016x}",
    "    RBP: {bp:016x}   R8: {r8:016x}   R9: {r9:016x}",
    "    R10: {r10:016x}  R11: {r11:016x}  R12: {r12:016x}",
    "    R13: {r13:016x}  R14: {r14:016x}  R15: {r15:016x}",
    "    ORIG_RAX: {orig_ax:016x}  CS: {cs:04x}  SS: {ss:04x}",
)
_IRET_FRAME = (_REGISTERS[0], "    CS: {cs:04x}  SS: {ss:04x}")


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

    Registers of tasks on a CPU are those that the CPU saved when it was stopped. If it
    did not, its stack is not shown, as it is not known what is on it.
    """
    tasks = _chosen(session, args)
    if args.lines and session.source_line is None:
        yield Note("-l: source lines need gdb and a vmlinux with debug information")
    view = _View(session, args)
    stacks = (
        (unwind_task(session.kernel, task), i > 0) for i, task in enumerate(tasks)
    )
    yield Listing(
        stacks,
        lambda item: view.lines(*item),
        lambda item: view.data(item[0]),
    )
    for problem in _problems(session):
        yield Note(problem)


def _chosen(session: Session, args: Namespace) -> Iterable[Task]:
    if bool(args.tasks) + bool(args.cpus) + args.all_cpus > 1:
        raise CommandError("tasks, -a or -c CPUS, one of them")
    if args.all_cpus or args.cpus:
        return _on_cpus(session, args.cpus or "all")
    if not args.tasks:
        return [context_task(session)]
    found = [task for text in args.tasks for task in find_tasks(session, text)]
    return dict.fromkeys(found)


def _on_cpus(session: Session, text: str) -> list[Task]:
    found = []
    for cpu in parse_cpus(session, text):
        task = current_task(session.kernel, cpu)
        if task is not None:
            found.append(task)
        elif text != "all":
            raise CommandError(f"no task is known on CPU {cpu}")
    return found


def _problems(session: Session) -> list[str]:
    try:
        return [f"ORC of {problem}" for problem in unwinder(session.kernel).problems]
    except KdumpError:
        return []  # each stack said so itself


class _View:
    # Stacks as text and as data, with what the options ask for.
    def __init__(self, session: Session, args: Namespace) -> None:
        self._symbol_at = session.kernel.debuginfo.symbol_at
        self._reader = session.kernel.reader
        self._source_line = session.source_line if args.lines else None
        self._has_offsets = args.offsets
        self._has_words = args.words
        self._names: dict[tuple[int, int], list[Span]] = {}

    # Text

    def lines(self, stack: Stack, needs_gap: bool) -> Iterator[Line]:
        if needs_gap:
            yield ""
        yield _header(stack)
        last: StackRange | None = None
        for number, frame in enumerate(stack.frames):
            if frame.registers and frame.kind is FrameKind.EXCEPTION:
                yield from self._exception(frame)
            if last not in (frame.stack, None) and last.name != TASK_STACK:
                yield [("dim", f"--- <{last.name}> ---")]
            last = frame.stack
            yield from self._frame(stack, number)
        if stack.reason:
            style = "error" if stack.end is StackEnd.BROKEN else "note"
            yield [("", "    "), (style, f"({stack.reason})")]
        if stack.user_registers:
            yield from _registers(stack.user_registers)

    def _exception(self, frame: Frame) -> Iterator[Line]:
        assert frame.registers is not None
        name = _with_offset(self._symbol_at(frame.ip)) or "unknown or invalid address"
        yield [("", "    [exception RIP: "), ("symbol", name), ("", "]")]
        yield from _registers(frame.registers)

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
        words = self._reader.array(start, "Q", max(0, end - start) // 8)
        for i in range(0, len(words), 2):
            pair = " ".join([f"{word:016x}" for word in words[i : i + 2]])
            yield f"    {start + 8 * i:016x}: {pair}"

    # Data

    def data(self, stack: Stack) -> dict[str, Any]:
        task = stack.task
        return {
            "pid": task.pid,
            "task": Address(task.address),
            "cpu": task.cpu if stack.cpu is None else stack.cpu,
            "comm": task.comm,
            "active": stack.cpu is not None,
            "frames": [self._frame_data(frame) for frame in stack.frames],
            "user_registers": _addresses(stack.user_registers),
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
            "registers": _addresses(frame.registers),
        }
        if self._source_line:
            data["line"] = self._source_line(frame.pc)
        return data


def _header(stack: Stack) -> Line:
    task = stack.task
    cpu = task.cpu if stack.cpu is None else stack.cpu
    return [
        ("", f"PID: {task.pid:<7}  TASK: "),
        ("address", f"{task.address:016x}"),
        ("", f'  CPU: {cpu:<3}  COMMAND: "'),
        ("comm", decode(task.comm)),
        ("", '"'),
    ]


def _with_offset(symbol: SymbolAt | None) -> str:
    if symbol is None:
        return ""
    module = f" [{symbol.module}]" if symbol.module else ""
    return f"{symbol.name}+{symbol.offset}{module}"


def _registers(registers: Registers) -> Iterator[Line]:
    templates = _REGISTERS if "ax" in registers else _IRET_FRAME
    return (template.format_map(registers) for template in templates)


def _addresses(registers: Registers | None) -> dict[str, Address] | None:
    if registers is None:
        return None
    return {name: Address(value) for name, value in registers.items()}
