# SPDX-License-Identifier: GPL-2.0-or-later
"""Processes: a thread group, and what ``fs/binfmt_elf.c`` tells of it in a core."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.debuginfo.layout import ArrayType
from gdbkdump.errors import CommandError, FaultError, KdumpError
from gdbkdump.kernel.mm import arguments
from gdbkdump.kernel.path import file_path
from gdbkdump.kernel.sched import task_by_address, task_state_letter, tasks

if TYPE_CHECKING:
    from gdbkdump.kernel.base import Kernel
    from gdbkdump.kernel.sched import Task

_MAX_AUXV = 256  # words; AT_VECTOR_SIZE is about 50
_AT_NULL = 0
# enum pid_type, in this order since Linux kernel commit 6883f81aac6f ("pid: Implement
# PIDTYPE_TGID") (in v4.19).
_PIDTYPE_PGID, _PIDTYPE_SID = 2, 3


class Process(NamedTuple):
    """A thread group that has user memory.

    :param leader: its first thread; may have exited while others live
    :param threads: the leader first, then by pid
    :param mm: ``struct mm_struct *``
    """

    leader: Task
    threads: tuple[Task, ...]
    mm: int

    @property
    def pid(self) -> int:
        """What user space calls the pid."""
        return self.leader.tgid


class ProcessFacts(NamedTuple):
    """What NT_PRPSINFO holds (``struct elf_prpsinfo``).

    :param state: number of the state's letter in ``RSDTZW``
    """

    state: int
    letter: str
    nice: int
    flags: int
    uid: int
    gid: int
    ppid: int
    pgrp: int
    sid: int
    arguments: bytes


def find_process(kernel: Kernel, task: Task) -> Process:
    """Return the process of a thread.

    :raise CommandError: it has no user memory
    """
    group = [each for each in tasks(kernel) if each.tgid == task.tgid]
    mm = next((each.mm for each in (task, *group) if each.mm), 0)
    if task.is_kernel_thread or not mm:
        comm = task.comm.decode("utf-8", "backslashreplace")
        what = "is a kernel thread" if task.is_kernel_thread else "has exited"
        raise CommandError(f"{comm} (pid {task.pid}) {what}: it has no user memory")
    group.sort(key=lambda each: (not each.is_leader, each.pid))
    leader = group[0] if group and group[0].is_leader else task
    return Process(leader, tuple(group) or (task,), mm)


def executable(kernel: Kernel, process: Process) -> int:
    """Return the ``struct file *`` that is executed, 0 where there is none."""
    (file,) = kernel.fields("mm_struct", ["exe_file"]).read(process.mm)
    return int(file)


def executable_path(kernel: Kernel, process: Process) -> bytes | None:
    """Return its path, or None where it cannot be told."""
    try:
        file = executable(kernel, process)
        return file_path(kernel, file) if file else None
    except KdumpError:
        return None


def auxv(kernel: Kernel, process: Process) -> bytes:
    """Return the auxiliary vector up to its end (``mm->saved_auxv``)."""
    member = kernel.struct("mm_struct").member("saved_auxv")
    type_ = member.type.strip()
    assert isinstance(type_, ArrayType)
    count = min(type_.count, _MAX_AUXV)
    words = kernel.reader.array(process.mm + member.offset, "Q", count)
    end = count
    for at in range(0, count - 1, 2):
        if words[at] == _AT_NULL:
            end = at + 2
            break
    return words[:end].tobytes()


def process_facts(kernel: Kernel, process: Process) -> ProcessFacts:
    """Return what a core file tells of a process (``fill_psinfo()``).

    :raise KdumpError: that cannot be read
    """
    task = process.leader
    prio, cred = kernel.fields("task_struct", ["static_prio", "cred"]).read(
        task.address
    )
    uid, gid = kernel.fields("cred", ["uid.val", "gid.val"]).read(cred)
    letter = task_state_letter(kernel, task)
    parent = task_by_address(kernel, task.parent)
    return ProcessFacts(
        "RSDTZW".find(letter),
        letter,
        prio - 120,
        task.flags,
        uid,
        gid,
        parent.tgid if parent else 0,
        _group(kernel, task, _PIDTYPE_PGID),
        _group(kernel, task, _PIDTYPE_SID),
        _arguments(kernel, process),
    )


def _group(kernel: Kernel, task: Task, type_: int) -> int:
    # Since Linux kernel commit 2c4704756cab ("pids: Move the pgrp and session pid
    # pointers from task_struct to signal_struct") (in v4.19).
    pids = kernel.struct("signal_struct").offset("pids")
    pid = kernel.reader.u64(task.signal + pids + 8 * type_)
    numbers = kernel.struct("pid").offset("numbers")
    return kernel.reader.i32(pid + numbers) if pid else 0


def _arguments(kernel: Kernel, process: Process) -> bytes:
    # None where they are not in the dump: the name is in the core all the same.
    try:
        return b" ".join(arguments(kernel, process.mm, "arg"))
    except FaultError:
        return b""
