# SPDX-License-Identifier: GPL-2.0-or-later
"""The walk over tasks on kernels made by hand: both layouts, loops, holes, counts."""

from __future__ import annotations

import struct

import pytest

from gdbkdump.errors import CorruptError
from gdbkdump.kernel.sched import (
    current_task,
    find_task,
    panic_cpu,
    running_tasks,
    task_problems,
    task_state,
    tasks,
)
from gdbkdump.kernel.timekeeping import clock_ns
from tests.support.fakes import (
    CHAR,
    S32,
    U8,
    U32,
    U64,
    DictMemory,
    array,
    fake_kernel,
    member,
    pointer,
    structure,
)

LIST = structure(
    "list_head", 16, member("next", 0, pointer()), member("prev", 8, pointer())
)


def task_struct(state_name, cpu):
    return structure(
        "task_struct", 136,
        member("thread_info", 0, structure("thread_info", 8, *cpu[:1])),
        member(state_name, 8, U32), member("exit_state", 12, U32),
        member("flags", 16, U32), *cpu[1:],
        member("pid", 24, S32), member("tgid", 28, S32),
        member("mm", 32, pointer()), member("stack", 40, pointer()),
        member("real_parent", 48, pointer()), member("signal", 56, pointer()),
        member("tasks", 64, LIST), member("thread_node", 80, LIST),
        member("comm", 96, array(CHAR, 16)),
        member("thread", 112, structure("thread_struct", 8, member("sp", 0, U64))),
        member("pid_links", 120, LIST),
    )  # fmt: skip


NEW = task_struct("__state", [member("cpu", 4, U32)])
OLD = task_struct("state", [member("flags", 0, U32), member("cpu", 20, U32)])
SIGNAL = structure("signal_struct", 16, member("thread_head", 0, LIST))
RQ = structure("rq", 16, member("curr", 0, pointer()), member("idle", 8, pointer()))
CPUMASK = structure("cpumask", 8, member("bits", 0, array(U64, 1)))
HEAD = structure("hlist_head", 8, member("first", 0, pointer()))
PID = structure("pid", 24, member("tasks", 16, array(HEAD, 1)))
ROOT = structure("xarray", 16, member("xa_head", 8, pointer()))
IDR = structure("idr", 16, member("idr_rt", 0, ROOT))
PID_NS = structure("pid_namespace", 24, member("idr", 8, IDR))
XA_NODE = structure("xa_node", 552, member("shift", 0, U8),
                    member("slots", 40, array(U64, 64)))  # fmt: skip
STATES = ("R (running)", "S (sleeping)", "D (disk sleep)", "T (stopped)",
          "t (tracing stop)", "X (dead)", "Z (zombie)", "P (parked)",
          "I (idle)")  # fmt: skip

INIT, STEP, SIGNALS, RUNQUEUES = 0x100000, 0x1000, 0x400000, 0x800000
PIDS, NODE, NAMESPACE = 0x900000, 0x980000, 0x9A0000


class Machine:
    """Processes of some threads each, chained as the kernel chains them."""

    def __init__(self, threads, type_=NEW):
        self.memory = DictMemory()
        self.type = type_
        self.leaders = []
        pid, at = 1, INIT + STEP
        self.put_task(INIT, 0, 0)
        for count in threads:
            self.leaders.append(at)
            for i in range(count):
                self.put_task(at + i * STEP, pid + i, pid)
            self.chain_threads(at, count, SIGNALS + pid * 64)
            pid, at = pid + count, at + count * STEP
        self.total = pid - 1
        self.number()
        self.chain([INIT, *self.leaders], 64)
        self.symbols()

    def put_task(self, at, pid, tgid, state=1):
        row = bytearray(144)
        struct.pack_into("<IIIIII", row, 0, 0, 1, state, 0, 0, 1)
        struct.pack_into("<iiQQQ", row, 24, pid, tgid, 0, 0, INIT)
        row[96:100] = b"t%03d" % pid
        self.memory.put(at, bytes(row))

    def number(self):
        """Fill the table of pids; tasks are in the order of their numbers."""
        self.memory.words(NAMESPACE + 16, NODE + 2)
        self.memory.put(NODE, bytes([6, *bytes(39)]) + bytes(8 * 64))
        self.memory.put(NODE + 0x1000, bytes(40 + 8 * 64))
        self.memory.words(NODE + 40, NODE + 0x1000 + 2)
        for pid in range(1, self.total + 1):
            self.memory.words(NODE + 0x1000 + 40 + 8 * pid, PIDS + 64 * pid)
            self.memory.words(PIDS + 64 * pid + 16, INIT + pid * STEP + 120)

    def chain(self, tasks_, offset):
        for here, following in zip(tasks_, tasks_[1:] + tasks_[:1], strict=True):
            self.memory.words(here + offset, following + offset)
            self.memory.words(following + offset + 8, here + offset)

    def chain_threads(self, leader, count, signal):
        nodes = [leader + i * STEP + 80 for i in range(count)]
        for here, following in zip([signal, *nodes], [*nodes, signal], strict=True):
            self.memory.words(here, following)
        for i in range(count):
            self.memory.words(leader + i * STEP + 56, signal)

    def symbols(self):
        memory = self.memory
        self.names = {
            "init_task": INIT, "nr_threads": 0x10, "task_state_array": 0x2000,
            "runqueues": RUNQUEUES, "__per_cpu_offset": 0x3000,
            "__cpu_possible_mask": 0x3100, "panic_cpu": 0x3200,
            "init_pid_ns": NAMESPACE,
        }  # fmt: skip
        memory.put(0x10, struct.pack("<i", self.total))
        for i, text in enumerate(STATES):
            memory.put(0x2800 + 32 * i, text.encode() + b"\0")
            memory.words(0x2000 + 8 * i, 0x2800 + 32 * i)
        memory.words(0x3000, 0, 0x10000)
        memory.words(0x3100, 3)
        memory.put(0x3200, struct.pack("<i", -1))
        memory.words(RUNQUEUES, self.leaders[0], INIT)
        memory.words(RUNQUEUES + 0x10000, 0, 0)

    def kernel(self):
        types = [self.type, SIGNAL, RQ, CPUMASK, PID, PID_NS, ROOT, XA_NODE]
        return fake_kernel(self.memory, types, self.names)


def pids(kernel):
    return [task.pid for task in tasks(kernel)]


@pytest.mark.parametrize("type_", [NEW, OLD])
def test_all_threads_of_all_processes(type_):
    kernel = Machine([3, 1, 2], type_).kernel()
    assert pids(kernel) == [0, 1, 2, 3, 4, 5, 6]
    assert [task.tgid for task in tasks(kernel)] == [0, 1, 1, 1, 4, 5, 5]
    assert task_problems(kernel) == []
    assert find_task(kernel, 5).comm == b"t005"
    assert {task.cpu for task in tasks(kernel)} == {1}


def test_a_count_that_differs_is_said():
    machine = Machine([1, 1])
    machine.memory.put(0x10, struct.pack("<i", 9))
    kernel = machine.kernel()
    assert task_problems(kernel) == [
        "2 tasks found where the kernel counts 9 (nr_threads)"
    ]


def test_a_loop_is_left_and_the_rest_found_from_the_end():
    machine = Machine([1] * 6)
    leaders = machine.leaders
    machine.memory.words(leaders[2] + 64, leaders[0] + 64)
    kernel = machine.kernel()
    assert pids(kernel) == [0, 1, 2, 3, 4, 5, 6]
    (problem,) = task_problems(kernel)
    assert problem.startswith("the task list breaks after 3 tasks (next): ")
    assert f"loops at {leaders[0]:#x}" in problem


def broken():
    """Return a machine whose list leads to the tasks 1, 2, 5 and 6 alone."""
    machine = Machine([1] * 6)
    machine.memory.words(machine.leaders[1] + 64, 0xDEAD0000)
    machine.memory.words(machine.leaders[4] + 72, 0xDEAD0000)
    return machine


def test_what_is_behind_wild_pointers_is_found_by_its_pid():
    kernel = broken().kernel()
    assert pids(kernel) == [0, 1, 2, 3, 4, 5, 6]
    problems = task_problems(kernel)
    assert problems[0].startswith("the task list breaks after 2 tasks (next): ")
    assert problems[1].startswith("the task list breaks after 4 tasks (prev): ")
    assert problems[2:] == ["2 more tasks were found by their pids"]


def test_a_task_that_cannot_be_read_is_told():
    machine = broken()
    # Three is not its number any more, four has no memory.
    machine.memory.put(machine.leaders[2] + 24, struct.pack("<i", 77))
    machine.memory.words(PIDS + 64 * 4 + 16, 0xDEAD0000)
    kernel = machine.kernel()
    assert pids(kernel) == [0, 1, 2, 5, 6]
    found, counted = task_problems(kernel)[2:]
    assert found.startswith("2 tasks cannot be read, the first is pid 3: the task at ")
    assert found.endswith("has pid 77")
    assert counted == "4 tasks found where the kernel counts 6 (nr_threads)"


def test_a_table_of_pids_that_cannot_be_read():
    machine = broken()
    machine.memory.words(NODE + 40, 0xDEAD0002, NODE + 0x1000 + 2)
    kernel = machine.kernel()
    assert pids(kernel) == [0, 1, 2, 5, 6]
    assert f"xarray at {NAMESPACE + 8:#x} breaks at node" in task_problems(kernel)[2]


def test_threads_that_loop_leave_the_other_processes_alone():
    machine = Machine([3, 1])
    machine.memory.words(
        machine.leaders[0] + 2 * STEP + 80, machine.leaders[0] + STEP + 80
    )
    kernel = machine.kernel()
    assert pids(kernel) == [0, 1, 2, 3, 4]
    (problem,) = task_problems(kernel)
    assert problem.startswith("1 lists of threads break, the first is process 1: ")
    assert "signal_struct.thread_head loops" in problem


def test_runqueues_that_cannot_be_read():
    machine = Machine([1])
    machine.memory.words(0x3000, 0, 0x70000000)
    kernel = machine.kernel()
    assert pids(kernel) == [0, 1]
    assert running_tasks(kernel) == {machine.leaders[0]: 0}
    assert task_problems(kernel)[0].startswith("who ran on CPU 1: ")


def test_who_was_on_a_cpu():
    kernel = Machine([1, 1]).kernel()
    assert current_task(kernel, 0).pid == 1
    assert current_task(kernel, 1) is None
    assert panic_cpu(kernel) is None


@pytest.mark.parametrize(
    ("state", "letters"),
    [
        (0, "RU"), (1, "IN"), (2, "UN"), (0x102, "UN"), (0x402, "ID"), (4, "ST"),
        (8, "TR"), (0x20, "ZO"), (0x40, "PA"), (0x80, "DE"), (0x200, "WA"),
        (0x800, "NE"), (0x8000, "UN"), (0x2001, "IN"),
    ],
)  # fmt: skip
def test_states(state, letters):
    machine = Machine([1])
    machine.put_task(0x900000, 77, 77, state)
    kernel = machine.kernel()
    task = find_task(kernel, 1)._replace(state=state)
    assert task_state(kernel, task) == letters


def test_a_damaged_table_of_states():
    machine = Machine([1])
    machine.memory.put(0x2800 + 32 * 3, b"garbage\0")
    kernel = machine.kernel()
    with pytest.raises(CorruptError, match="task_state_array at 0x2000"):
        task_state(kernel, find_task(kernel, 1))


def test_durations():
    assert clock_ns(59_999_999_999) == "00:00:59"
    assert clock_ns(86_400_000_000_000 * 10 + 3_661_000_000_000) == "10 days, 01:01:01"
