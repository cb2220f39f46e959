# SPDX-License-Identifier: GPL-2.0-or-later
"""Tasks: the walk over all of them, their states, who was on a CPU.

Mirrors ``include/linux/sched.h``, ``sched/signal.h`` (``for_each_process_thread``),
``kernel/sched/sched.h`` and ``fs/proc/array.c`` (``task_state_array``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import (
    CorruptError,
    FaultError,
    KdumpError,
    SymbolNotFoundError,
)
from gdbkdump.kernel.mm import RSS_COUNTERS
from gdbkdump.kernel.percpu import cpus, per_cpu

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gdbkdump.kernel.base import Kernel

PF_KTHREAD = 0x00200000
_TASK_UNINTERRUPTIBLE = 0x2
# Above the bits that the kernel reports; in place since Linux kernel commit
# 8ef9925b02c2 ("sched/debug: Add explicit TASK_PARKED printing") (in v4.14).
_TASK_DEAD, _TASK_WAKING, _TASK_NOLOAD, _TASK_NEW = 0x80, 0x200, 0x400, 0x800
# PID_MAX_LIMIT bounds live threads; a walk that finds more runs wild.
_MAX_TASKS = 4 << 20
# How crash names what the kernel's task_state_array calls by a letter.
_CRASH_STATES = {
    "R": "RU", "S": "IN", "D": "UN", "T": "ST", "t": "TR", "X": "DE", "Z": "ZO",
    "P": "PA", "I": "ID",
}  # fmt: skip


_RSS_CACHES = tuple(f"rss_stat.count[{i}]" for i in RSS_COUNTERS)
# Where tracers remember return addresses; unwind/trampoline.py has more of them.
_TRACES = ("ret_stack", "rethooks.first", "kretprobe_instances.first")


class Task(NamedTuple):
    """What every command wants to know of a task.

    :param address: of its ``struct task_struct``
    :param state: ``__state | exit_state``
    :param cpu: the CPU it runs on, or ran on last
    :param mm: ``struct mm_struct *``, 0 for kernel threads and zombies
    :param parent: ``struct task_struct *``
    :param is_idle: whether it is the idle task of its CPU
    :param rss_cache: pages it counted and did not yet add to its mm
        (SPLIT_RSS_COUNTING, before 6.2)
    """

    address: int
    pid: int
    tgid: int
    comm: bytes
    cpu: int
    state: int
    flags: int
    mm: int
    stack: int
    parent: int
    signal: int
    is_idle: bool
    rss_cache: int

    @property
    def is_kernel_thread(self) -> bool:
        """Whether it never had user memory."""
        return bool(self.flags & PF_KTHREAD) or self.is_idle

    @property
    def is_leader(self) -> bool:
        """Whether it is the first thread of its process."""
        return self.pid == self.tgid


class _Links(NamedTuple):
    # task_struct.tasks both ways, and thread_node.next.
    next: int
    prev: int
    next_thread: int


class _Walk:
    # The members are read in one go for each task: 12,000 tasks in a tenth of a second.
    # All of them are in the first 3 KiB of the 9; each page costs a compressed dump.
    def __init__(self, kernel: Kernel) -> None:
        type_ = kernel.struct("task_struct")
        # Since Linux kernel commit 2f064a59a11f ("sched: Change task_struct::state")
        # (in v5.14), and bcf9033e5449 ("sched: move CPU field back into thread_info if
        # THREAD_INFO_IN_TASK=y") (in v5.16).
        state = kernel.first_member("task_struct", "__state", "state")
        cpu = kernel.first_member("task_struct", "thread_info.cpu", "cpu")
        self.fields = kernel.fields(
            "task_struct",
            ["pid", "tgid", "comm", cpu, state, "exit_state", "flags", "mm", "stack",
             "real_parent", "signal", "tasks.next", "tasks.prev", "thread_node.next",
             *(path for path in _RSS_CACHES if type_.has(path))],
        )  # fmt: skip
        self.tasks = type_.offset("tasks")
        self.thread_node = type_.offset("thread_node")
        self.thread_head = kernel.struct("signal_struct").offset("thread_head")

    def read(self, address: int, is_idle: bool = False) -> tuple[Task, _Links]:
        """Return the task, and where it leads to."""
        (pid, tgid, comm, cpu, state, exit_state, flags, mm, stack, parent, signal,
         after, before, thread, *rss) = self.fields.read(address)  # fmt: skip
        task = Task(
            address, pid, tgid, comm, cpu, (state | exit_state) & 0xFFFFFFFF,
            flags, mm, stack, parent, signal, is_idle, sum(rss),
        )  # fmt: skip
        return task, _Links(after, before, thread)


class StackState(NamedTuple):
    """What unwinding wants to know of a task.

    :param sp: stack pointer at its last switch (``thread.sp``), stale if it is running
    :param is_traced: whether the kernel keeps return addresses for it, which tracing
        may have replaced on its stack
    """

    sp: int
    is_traced: bool


class StackStates(dict[int, StackState]):
    """The state of each task's stack, by the task's address; read when it is asked for.

    :raise FaultError: by a look-up, if its ``thread_struct`` cannot be read
    """

    def __init__(self, kernel: Kernel) -> None:
        """Take a kernel; nothing of a task is read yet."""
        super().__init__()
        type_ = kernel.struct("task_struct")
        traces = [path for path in _TRACES if type_.has(path)]
        self._fields = kernel.fields("task_struct", ["thread.sp", *traces])

    def __missing__(self, address: int) -> StackState:
        """Read it."""
        sp, *traces = self._fields.read(address)
        state = self[address] = StackState(sp, any(traces))
        return state


def stack_states(kernel: Kernel) -> StackStates:
    """Return where the stacks of tasks were left."""
    return kernel.once("stack_states", lambda: StackStates(kernel))


def tasks(kernel: Kernel) -> list[Task]:
    """Return all tasks: the idle task of each CPU, then by pid.

    What is wrong with the walk is in ``task_problems()``.
    """
    return kernel.once("tasks", lambda: _read_tasks(kernel))[0]


def task_problems(kernel: Kernel) -> list[str]:
    """Return why ``tasks()`` may not be all: broken lists, a count that differs."""
    return kernel.once("tasks", lambda: _read_tasks(kernel))[1]


def _read_tasks(kernel: Kernel) -> tuple[list[Task], list[str]]:
    problems: list[str] = []
    walk = _Walk(kernel)
    idle = _read_idle(kernel, walk, problems)
    threads: list[Task] = []
    seen: set[int] = set()
    known = len(problems)
    broken: list[str] = []
    for way in ("next", "prev"):
        try:
            for task in _for_each_process_thread(kernel, walk, way, seen, broken):
                threads.append(task)
            break
        except KdumpError as error:
            # The other way round leads to what is behind the damage.
            problems.append(
                f"the task list breaks after {len(threads)} tasks ({way}): {error}"
            )
    if broken:
        problems.append(_first("lists of threads break", broken))
    if len(problems) > known:
        threads += _read_unlisted(kernel, walk, seen, problems)
    counted = kernel.reader.i32(kernel.symbol("nr_threads"))
    if counted != len(threads):
        problems.append(
            f"{len(threads)} tasks found where the kernel counts {counted} (nr_threads)"
        )
    return idle + sorted(threads, key=lambda task: task.pid), problems


def _read_unlisted(
    kernel: Kernel, walk: _Walk, seen: set[int], problems: list[str]
) -> list[Task]:
    # What the broken lists did not lead to has a number all the same. Imported late:
    # few dumps need it.
    from gdbkdump.kernel.pid import pid_table, pid_task

    found = []
    lost = []
    for number, pid in pid_table(kernel, problems):
        try:
            address = pid_task(kernel, pid)
            if address in seen or not address:
                continue
            task, _ = walk.read(address)
            if task.pid != number:
                raise CorruptError(f"the task at {address:#x} has pid {task.pid}")
        except KdumpError as error:
            lost.append(f"pid {number}: {error}")
        else:
            seen.add(address)
            found.append(task)
    if found:
        problems.append(f"{len(found)} more tasks were found by their pids")
    if lost:
        problems.append(_first("tasks cannot be read", lost))
    return found


def _first(what: str, lines: Sequence[str]) -> str:
    # One line for what may be thousands of the same kind.
    return f"{len(lines)} {what}, the first is {lines[0]}"


def _read_idle(kernel: Kernel, walk: _Walk, problems: list[str]) -> list[Task]:
    found = []
    runqueues, lost = _runqueues(kernel)
    for cpu, _, address in runqueues:
        try:
            if address:
                found.append(walk.read(address, is_idle=True)[0])
        except KdumpError as error:
            problems.append(f"the idle task of CPU {cpu}: {error}")
    problems += lost
    return found


def _for_each_process_thread(
    kernel: Kernel, walk: _Walk, way: str, seen: set[int], broken: list[str]
) -> Iterator[Task]:
    # One list of all processes, from init_task and back to it, either way round.
    head = kernel.symbol("init_task") + walk.tasks
    node = kernel.reader.u64(head + (0 if way == "next" else 8))
    while node != head:
        leader, links = walk.read(node - walk.tasks)
        if leader.address in seen:
            if way == "prev":
                return
            raise CorruptError(f"task_struct.tasks loops at {leader.address:#x}")
        if len(seen) > _MAX_TASKS:
            raise CorruptError(f"more than {_MAX_TASKS} tasks")
        seen.add(leader.address)
        node = links.next if way == "next" else links.prev
        yield leader
        try:
            yield from _other_threads(kernel, walk, leader, links.next_thread, seen)
        except KdumpError as error:
            broken.append(f"process {leader.pid}: {error}")


def _other_threads(
    kernel: Kernel, walk: _Walk, leader: Task, node: int, seen: set[int]
) -> Iterator[Task]:
    # The list goes round through signal->thread_head and back to the leader.
    head = leader.signal + walk.thread_head
    end = leader.address + walk.thread_node
    for _ in range(_MAX_TASKS):
        if node == head:
            node = kernel.reader.u64(head)
        if node in (end, head):
            return
        address = node - walk.thread_node
        if address in seen:
            raise CorruptError(f"signal_struct.thread_head loops at {address:#x}")
        task, links = walk.read(address)
        node = links.next_thread
        seen.add(address)
        yield task


def _runqueues(kernel: Kernel) -> tuple[list[tuple[int, int, int]], list[str]]:
    # CPU, current task, idle task; a CPU that never came up has neither. Then those
    # that cannot be read, one line each.
    return kernel.once("runqueues", lambda: _read_runqueues(kernel))


def _read_runqueues(
    kernel: Kernel,
) -> tuple[list[tuple[int, int, int]], list[str]]:
    fields = kernel.fields("rq", ["curr", "idle"])
    found, lost = [], []
    for cpu in cpus(kernel, "possible"):
        try:
            current, idle = fields.read(per_cpu(kernel, "runqueues", cpu))
            found.append((cpu, current, idle))
        except KdumpError as error:
            lost.append(f"who ran on CPU {cpu}: {error}")
    return found, lost


def running_tasks(kernel: Kernel) -> dict[int, int]:
    """Return the CPU of each task that was on one (``rq->curr``), by its address."""
    return {current: cpu for cpu, current, _ in _runqueues(kernel)[0] if current}


def task_by_address(kernel: Kernel, address: int) -> Task | None:
    """Return the task whose ``task_struct`` is at ``address``, or None."""
    by_address = kernel.once(
        "tasks by address", lambda: {task.address: task for task in tasks(kernel)}
    )
    return by_address.get(address)


def find_task(kernel: Kernel, pid: int) -> Task | None:
    """Return the task of a thread id, or None; 0 is the idle task of the first CPU."""
    return next((task for task in tasks(kernel) if task.pid == pid), None)


def current_task(kernel: Kernel, cpu: int) -> Task | None:
    """Return the task that was on a CPU, or None.

    :raise FaultError: it cannot be read
    """
    for number, current, _ in _runqueues(kernel)[0]:
        if number == cpu and current:
            # In a damaged dump it may be missing in the list and be there anyway.
            return task_by_address(kernel, current) or _Walk(kernel).read(current)[0]
    return None


def panic_cpu(kernel: Kernel) -> int | None:
    """Return the CPU that panicked, or None where none did."""
    # atomic_t panic_cpu on all architectures since 4.5; x86 has crashing_cpu besides.
    for name in ("panic_cpu", "crashing_cpu"):
        try:
            cpu = kernel.reader.i32(kernel.symbol(name))
        except (SymbolNotFoundError, FaultError):
            continue
        if cpu in cpus(kernel, "possible"):
            return cpu
    return None


def is_alive(kernel: Kernel) -> bool:
    """Tell whether the kernel says that no CPU panicked (PANIC_CPU_INVALID)."""
    try:
        return kernel.reader.i32(kernel.symbol("panic_cpu")) == -1
    except (SymbolNotFoundError, FaultError):
        return False


def panic_task(kernel: Kernel) -> Task | None:
    """Return the task that was on the CPU that panicked, or None."""
    cpu = panic_cpu(kernel)
    return None if cpu is None else current_task(kernel, cpu)


def unknown_task(kernel: Kernel) -> str:
    """Return why ``default_task()`` knows of none."""
    cpu = panic_cpu(kernel)
    if cpu is None:
        return "what ran on the CPUs cannot be read"
    return f"CPU {cpu} panicked, but what ran on it cannot be read"


def default_task(kernel: Kernel) -> Task | None:
    """Return the task to begin with: the panicking one, else that on the first CPU."""
    if panic_cpu(kernel) is not None:
        return panic_task(kernel)
    chosen = (cpu for cpu, current, _ in _runqueues(kernel)[0] if current)
    first = min(chosen, default=None)
    return None if first is None else current_task(kernel, first)


def _read_state_letters(kernel: Kernel) -> list[str]:
    # "R (running)", "S (sleeping)", ... one a bit from bit 0 on, then idle.
    letters = []
    at = kernel.symbol("task_state_array")
    for i in range(16):
        text = kernel.reader.c_string(kernel.reader.u64(at + 8 * i), 32)
        if text[1:3] != b" (":
            break
        letters.append(chr(text[0]))
        if text[:1] == b"I":
            return letters
    raise CorruptError(f"task_state_array at {at:#x} does not end in idle")


def task_state_letter(kernel: Kernel, task: Task) -> str:
    """Return the letter that /proc/PID/stat shows (``task_state_to_char()``)."""
    letters = kernel.once("task states", lambda: _read_state_letters(kernel))
    if task.state & (_TASK_UNINTERRUPTIBLE | _TASK_NOLOAD) == (
        _TASK_UNINTERRUPTIBLE | _TASK_NOLOAD
    ):
        return "I"
    reported = task.state & ((1 << (len(letters) - 2)) - 1)
    if not reported and task.state & ~(_TASK_DEAD | _TASK_WAKING | _TASK_NEW):
        # TASK_RTLOCK_WAIT and TASK_FROZEN look uninterruptible to user space.
        return "D" if task.state >= 0x1000 else letters[0]
    return letters[reported.bit_length()]


def task_state(kernel: Kernel, task: Task) -> str:
    """Return crash's two letters: RU IN UN ZO ST TR DE PA ID WA NE."""
    return kernel.once(("state", task.state), lambda: _crash_state(kernel, task))


def _crash_state(kernel: Kernel, task: Task) -> str:
    if task.state == _TASK_WAKING:
        return "WA"
    if task.state == _TASK_NEW:
        return "NE"
    if task.state == _TASK_DEAD:
        return "DE"
    letter = task_state_letter(kernel, task)
    return _CRASH_STATES.get(letter, letter)


class TaskTimes(NamedTuple):
    """Times of a task, in nanoseconds; starts count from boot.

    :param start_ns: monotonic clock
    :param start_boottime_ns: with suspends
    """

    start_ns: int
    start_boottime_ns: int
    utime_ns: int
    stime_ns: int


def task_times(kernel: Kernel, task: Task) -> TaskTimes:
    """Return when a task began and how long it ran (in ns since Linux 4.11)."""
    # Since Linux kernel commit cf25e24db61c ("time: Rename tsk->real_start_time to
    # ->start_boottime") (in v5.5).
    boot = kernel.first_member("task_struct", "start_boottime", "real_start_time")
    fields = kernel.fields("task_struct", ["start_time", boot, "utime", "stime"])
    return TaskTimes(*fields.read(task.address))


# include/uapi/linux/sched.h, which is an interface and does not change.
_POLICIES = {
    0: "NORMAL", 1: "FIFO", 2: "RR", 3: "BATCH", 5: "IDLE", 6: "DEADLINE", 7: "EXT",
}  # fmt: skip


def policy_name(kernel: Kernel, task: Task) -> str:
    """Return the scheduling policy, without ``SCHED_``."""
    (policy,) = kernel.fields("task_struct", ["policy"]).read(task.address)
    return _POLICIES.get(policy, str(policy))


def runqueue_clocks(kernel: Kernel) -> list[int]:
    """Return ``rq->clock`` of each possible CPU, in ns."""
    fields = kernel.fields("rq", ["clock"])
    return [
        fields.read(per_cpu(kernel, "runqueues", cpu))[0]
        for cpu in cpus(kernel, "possible")
    ]
