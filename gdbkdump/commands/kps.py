# SPDX-License-Identifier: GPL-2.0-or-later
"""kps: the tasks."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from gdbkdump.commands import argument, command
from gdbkdump.commands.arguments import STATES, parse_cpus, select_tasks
from gdbkdump.commands.taskview import task_data, task_line
from gdbkdump.errors import CommandError, FaultError, KdumpError
from gdbkdump.kernel.mm import (
    MmReader,
    arguments,
    rss_caches,
    totalram_pages,
)
from gdbkdump.kernel.sched import (
    policy_name,
    running_tasks,
    runqueue_clocks,
    stack_states,
    task_by_address,
    task_problems,
    task_state,
    task_times,
    tasks,
)
from gdbkdump.kernel.timekeeping import clock_ns, uptime_ns
from gdbkdump.render.escape import decode
from gdbkdump.render.model import (
    Absent,
    Address,
    Column,
    Line,
    Listing,
    Note,
    Shown,
    Table,
)

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from gdbkdump.kernel.base import Kernel
    from gdbkdump.kernel.sched import Task, TaskTimes
    from gdbkdump.render.model import Block
    from gdbkdump.session import Session


@command(
    "kps",
    "List tasks.",
    category="tasks",
    crash="ps",
    arguments=[
        argument(
            "which",
            nargs="*",
            metavar="TASK",
            completes="filter",
            help="pid, task address, comm, /regex/ or state (UN, RU, ...)",
        ),
        argument("-u", dest="user", action="store_true", help="user tasks only"),
        argument("-k", dest="kernel", action="store_true", help="kernel threads only"),
        argument(
            "-G", dest="leaders", action="store_true", help="thread group leaders"
        ),
        argument("-A", dest="active", action="store_true", help="tasks on a CPU"),
        argument("-C", dest="cpus", metavar="CPUS", help="tasks of CPUs 0,2-3"),
        argument("-y", dest="policy", metavar="POLICY", help="FIFO, RR, NORMAL, ..."),
        argument("-s", dest="kstack", action="store_true", help="show KSTACKP"),
        argument("-S", dest="summary", action="store_true", help="count the states"),
        argument(
            "-m", dest="last_run", action="store_true", help="time since last run"
        ),
        argument(
            "-l", dest="last_ns", action="store_true", help="time of last run, ns"
        ),
        argument("-p", dest="parents", action="store_true", help="show the parents"),
        argument("-c", dest="children", action="store_true", help="show the children"),
        argument("-t", dest="times", action="store_true", help="show run times"),
        argument("-a", dest="args", action="store_true", help="arguments, environment"),
    ],
    examples=["kps", "kps -u -G", "kps UN", "kps /kworker/", "kps -m UN", "kps -a 1"],
)
def kps(session: Session, args: Namespace) -> Iterator[Block]:
    """Show a line a task; ">" marks those that were on a CPU.

    Kernel threads stand in brackets. PPID is the parent process. RSS is exact, counters
    that threads or CPUs keep apart are added, so it may differ from what ps showed.
    """
    chosen = _choose(session, args)
    kernel = session.kernel
    if args.summary:
        yield _summary(kernel, chosen)
    elif args.last_run or args.last_ns:
        yield _last_runs(session, chosen, args.last_ns)
    elif args.times:
        yield _with_details(session, chosen, _times)
    elif args.args:
        yield _with_details(session, chosen, _arguments)
    elif args.parents:
        yield _with_details(session, chosen, _parents)
    elif args.children:
        yield _with_details(session, chosen, _children)
    else:
        yield from _table(session, chosen, args.kstack)
    for problem in task_problems(kernel):
        yield Note(problem)


# Which tasks


def _choose(session: Session, args: Namespace) -> list[Task]:
    kernel = session.kernel
    kinds = {
        "user": args.user,
        "kernel": args.kernel,
        "gleader": args.leaders,
        "active": args.active,
    }
    words = [word for word, is_asked in kinds.items() if is_asked]
    chosen = select_tasks(session, [*args.which, *words])
    if args.cpus:
        wanted = set(parse_cpus(session, args.cpus))
        chosen = [task for task in chosen if task.cpu in wanted]
    if args.policy:
        chosen = _with_policy(kernel, chosen, args.policy)
    return chosen


def _with_policy(kernel: Kernel, chosen: list[Task], text: str) -> list[Task]:
    wanted = {word.upper().removeprefix("SCHED_") for word in text.split(",")}
    names = {task.address: policy_name(kernel, task) for task in chosen}
    known = {"NORMAL", "FIFO", "RR", "BATCH", "IDLE", "DEADLINE", "EXT"}
    for word in wanted - known:
        raise CommandError(f"no policy {word!r} ({' '.join(sorted(known))})")
    return [task for task in chosen if names[task.address] in wanted]


# The table


def _table(session: Session, chosen: list[Task], kstack: bool) -> Iterator[Block]:
    columns = [
        Column("", 1, key="active"),
        Column("PID", 7, ">"),
        Column("PPID", 7, ">"),
        Column("CPU", 4, ">"),
        Column("KSTACKP" if kstack else "TASK", 16, "^", "address"),
        Column("ST", 3, ">", "state", "state"),
        Column("%MEM", 5, ">", key="mem_percent"),
        Column("VSZ", 8, ">", key="vsz_kib"),
        Column("RSS", 8, ">", key="rss_kib"),
        Column(" COMM", 5, "<", "comm", "comm"),
    ]
    unreadable: list[str] = []
    yield Table(columns, _rows(session, chosen, kstack, unreadable))
    if unreadable:
        yield Note(f"memory sizes of {len(unreadable)} tasks: {unreadable[0]}")


def _rows(
    session: Session, chosen: list[Task], kstack: bool, unreadable: list[str]
) -> Iterator[Sequence[Any]]:
    kernel = session.kernel
    running = running_tasks(kernel)
    sizes = _Sizes(kernel, unreadable)
    parents: dict[int, Any] = {}
    marks = (Shown("", False), Shown(">", True))
    for task in chosen:
        if task.parent not in parents:
            parent = task_by_address(kernel, task.parent)
            parents[task.parent] = (
                parent.tgid
                if parent
                else Absent(reason="its parent is not in the task list")
            )
        yield (
            marks[task.address in running],
            task.pid,
            parents[task.parent],
            task.cpu,
            _stack_pointer(kernel, task) if kstack else Address(task.address),
            task_state(kernel, task),
            *sizes.cells(task),
            _comm(task),
        )


class _Sizes:
    # %MEM, VSZ and RSS in KiB of each address space.
    def __init__(self, kernel: Kernel, unreadable: list[str]) -> None:
        self._reader = MmReader(kernel)
        self._caches = rss_caches(tasks(kernel))
        self._total = totalram_pages(kernel)
        self._kib = kernel.page_size // 1024
        self._unreadable = unreadable
        self._cells: dict[int, tuple[Any, ...]] = {0: ("0.0", 0, 0)}

    def cells(self, task: Task) -> tuple[Any, ...]:
        found = self._cells.get(task.mm)
        if found is None:
            found = self._cells[task.mm] = self._read(task.mm)
        return found

    def _read(self, mm: int) -> tuple[Any, ...]:
        try:
            size = self._reader.size(mm)
        except KdumpError as error:
            self._unreadable.append(str(error))
            return (Absent(reason=str(error)),) * 3
        resident = max(0, size.resident + self._caches.get(mm, 0))
        tenths = (resident * 2000 // max(1, self._total) + 1) // 2
        percent = f"{tenths // 10}.{tenths % 10}"
        return percent, size.total * self._kib, resident * self._kib


def _stack_pointer(kernel: Kernel, task: Task) -> Address | Absent:
    try:
        return Address(stack_states(kernel)[task.address].sp)
    except FaultError as error:
        return Absent(reason=str(error))


def _comm(task: Task) -> Shown | str:
    name = decode(task.comm)
    return Shown(f" [{name}]" if task.is_kernel_thread else f" {name}", task.comm)


# The other views


def _summary(kernel: Kernel, chosen: list[Task]) -> Table:
    counts = Counter(task_state(kernel, task) for task in chosen)
    return Table(
        [Column("STATE", 6, ">", "state"), Column("COUNT", 6, ">")],
        [(state, counts[state]) for state in STATES if counts[state]],
    )


def _last_runs(session: Session, chosen: list[Task], raw: bool) -> Listing:
    kernel = session.kernel
    fields = kernel.fields("task_struct", ["sched_info.last_arrival"])
    arrivals = sorted(
        ((fields.read(task.address)[0], task) for task in chosen),
        key=lambda item: -item[0],
    )
    # The run queues' clocks stopped with the kernel; the newest is "now".
    now = max(runqueue_clocks(kernel), default=0)

    def to_lines(item: tuple[int, Task]) -> Iterable[Line]:
        arrival, task = item
        ago = f"{arrival}" if raw else _ago(max(0, now - arrival))
        yield [("", f"[{ago}] [{task_state(kernel, task)}]  "), *task_line(task)]

    def to_data(item: tuple[int, Task]) -> dict[str, Any]:
        arrival, task = item
        return task_data(task) | {
            "state": task_state(kernel, task),
            "last_run_ns": arrival,
            "ago_ns": max(0, now - arrival),
        }

    return Listing(arrivals, to_lines, to_data)


def _ago(nanoseconds: int) -> str:
    milliseconds = nanoseconds // 1_000_000
    days, rest = divmod(milliseconds, 86_400_000)
    hours, rest = divmod(rest, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{days} {hours:02}:{minutes:02}:{rest // 1000:02}.{rest % 1000:03}"


Details = tuple[list[Line], dict[str, Any]]


def _with_details(
    session: Session,
    chosen: list[Task],
    details: Callable[[Session, Task], Details],
) -> Listing:
    # Each task is read once, when its turn comes.
    def items() -> Iterator[tuple[Task, Details]]:
        for task in chosen:
            try:
                yield task, details(session, task)
            except KdumpError as error:
                yield task, ([f"    ({error})"], {"absent": {"details": str(error)}})

    def to_lines(item: tuple[Task, Details]) -> Iterable[Line]:
        yield task_line(item[0])
        yield from item[1][0]

    return Listing(items(), to_lines, lambda item: task_data(item[0]) | item[1][1])


def _times(session: Session, task: Task) -> Details:
    times: TaskTimes = task_times(session.kernel, task)
    uptime = uptime_ns(session.kernel)
    run = None if uptime is None else max(0, uptime - times.start_boottime_ns)
    lines: list[Line] = [
        f"    RUN TIME: {'?' if run is None else clock_ns(run)}",
        f"  START TIME: {times.start_ns}",
        f"       UTIME: {times.utime_ns}",
        f"       STIME: {times.stime_ns}",
        "",
    ]
    return lines, {"run_ns": run, **times._asdict()}


def _arguments(session: Session, task: Task) -> Details:
    if not task.mm:
        return ["(no user memory)", ""], {"args": None, "env": None}
    lines: list[Line] = []
    data: dict[str, Any] = {}
    for kind, title in (("arg", "ARG"), ("env", "ENV")):
        try:
            values = arguments(session.kernel, task.mm, kind)
        except KdumpError as error:
            lines.append(f"{title}: ? ({error})")
            data[f"{kind}s"] = Absent(reason=str(error))
            continue
        texts = [decode(value) for value in values] or [""]
        if kind == "arg":
            lines.append(f"{title}: {' '.join(texts)}".rstrip())
        else:
            lines.append(f"{title}: {texts[0]}".rstrip())
            lines += [f"     {text}" for text in texts[1:]]
        data[f"{kind}s"] = values
    return [*lines, ""], data


def _parents(session: Session, task: Task) -> Details:
    chain: list[Task] = []
    here: Task | None = task
    while here and here.parent != here.address and len(chain) < 1024:
        here = task_by_address(session.kernel, here.parent)
        if here:
            chain.append(here)
    lines: list[Line] = [
        [("", " " * (i + 1)), *task_line(parent)] for i, parent in enumerate(chain)
    ]
    return [*lines, ""], {"parents": [task_data(parent) for parent in chain]}


def _children(session: Session, task: Task) -> Details:
    children = [
        other
        for other in tasks(session.kernel)
        if other.parent == task.address and other.is_leader and not other.is_idle
    ]
    lines: list[Line] = [[("", "  "), *task_line(child)] for child in children]
    if not children:
        lines.append("  (no children)")
    return [*lines, ""], {"children": [task_data(child) for child in children]}
