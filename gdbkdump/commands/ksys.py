# SPDX-License-Identifier: GPL-2.0-or-later
"""ksys: the dump, the kernel, the machine and the panic in a dozen lines."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from gdbkdump.commands import argument, command
from gdbkdump.errors import KdumpError
from gdbkdump.kernel import timekeeping
from gdbkdump.kernel.mm import totalram_pages
from gdbkdump.kernel.panic import panic_message, taint_flags
from gdbkdump.kernel.percpu import cpus
from gdbkdump.kernel.sched import (
    default_task,
    is_alive,
    panic_cpu,
    task_problems,
    task_state,
    tasks,
    unknown_task,
)
from gdbkdump.kernel.utsname import cpu_khz, utsname
from gdbkdump.render.escape import decode
from gdbkdump.render.model import Absent, Address, Note, Record, Shown

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator

    from gdbkdump.kernel.base import Kernel
    from gdbkdump.render.model import Block
    from gdbkdump.session import Session

# makedumpfile.h: what the bits of -d leave out.
_LEFT_OUT = (
    (1, "zero"), (2, "cache"), (4, "private cache"), (8, "user"), (16, "free"),
)  # fmt: skip


@command(
    "ksys",
    "Show dump, kernel, machine and panic.",
    category="system",
    crash="sys",
    arguments=[
        argument("-t", dest="taint", action="store_true", help="only the taint flags"),
    ],
    examples=["ksys", "ksys --json", "ksys -t"],
)
def ksys(session: Session, args: Namespace) -> Iterator[Block]:
    """Summarise the dump as crash does when it starts.

    CPUS are those the kernel had; after a panic the others are no longer "online", so
    that says little. TASKS counts threads, with the idle task of each CPU.
    """
    if args.taint:
        yield _taint(session.kernel)
        return
    yield Record(_summary(session))
    for problem in (*session.problems, *task_problems(session.kernel)):
        yield Note(problem)


def _taint(kernel: Kernel) -> Record:
    mask = kernel.reader.u64(kernel.symbol("tainted_mask"))
    return Record({"TAINTED_MASK": Shown(f"{mask:x}  {taint_flags(kernel)}", mask)})


def _summary(session: Session) -> dict[str, Any]:
    kernel = session.kernel
    uts = utsname(kernel)
    fields: dict[str, Any] = {
        "KERNEL": str(session.vmlinux) if session.vmlinux else "in the dump itself",
        "DUMPFILE": _dumpfile(session),
        **_saving(session),
        "CPUS": len(cpus(kernel, "present")),
        "DATE": _either(lambda: _date(kernel)),
        "UPTIME": _either(lambda: _uptime(kernel)),
        "LOAD AVERAGE": _either(lambda: _load(kernel)),
        "TASKS": _either(lambda: len(tasks(kernel))),
        "NODENAME": uts.nodename,
        "RELEASE": uts.release,
        "VERSION": uts.version,
        "MACHINE": _machine(kernel, uts.machine),
        "MEMORY": _either(lambda: _memory(kernel)),
        "TAINT": _either(lambda: _taint_letters(kernel)),
        "PANIC": _either(lambda: _panic(kernel)),
    }
    return fields | _panic_context(kernel)


def _either(get: Callable[[], Any]) -> Any:
    # One fact that cannot be read must not hide the others.
    try:
        value = get()
    except KdumpError as error:
        return Absent(reason=str(error))
    return Absent(reason="not in this dump") if value is None else value


def _dumpfile(session: Session) -> Shown:
    flags = []
    if session.dump.excluded:
        flags.append("[PARTIAL DUMP]")
    if session.dump.is_incomplete:
        flags.append("[INCOMPLETE]")
    names = ", ".join(str(path) for path in session.dump.paths)
    return Shown(" ".join([names, *flags]), str(session.path))


def _saving(session: Session) -> dict[str, Any]:
    # What the file itself tells; an ELF vmcore tells little.
    dump, saving = session.dump, session.dump.saving
    version = "" if saving.version is None else f" version {saving.version}"
    # A hypervisor has no need of the kernel's help to dump it, even alive.
    by = ["by the hypervisor"] if session.kernel.guest_cpus else []
    fields: dict[str, Any] = {
        "FORMAT": ", ".join([dump.format + version, *saving.compression, *by])
    }
    if any(saving.utsname):
        fields["HEADER"] = " ".join(decode(name) for name in saving.utsname if name)
    if saving.dump_level is not None:
        fields["DUMP LEVEL"] = Shown(_dump_level(saving.dump_level), saving.dump_level)
    if saving.erased:
        fields["ERASED"] = "; ".join(decode(line) for line in saving.erased)
    return fields


def _dump_level(level: int) -> str:
    left_out = [name for bit, name in _LEFT_OUT if level & bit]
    return f"{level} ({', '.join(left_out)} pages filtered)" if left_out else str(level)


def _date(kernel: Kernel) -> Shown | None:
    seconds = timekeeping.crash_time(kernel)
    if seconds is None:
        real = timekeeping.real_time_ns(kernel)
        if real is None:
            return None
        seconds = real // 1_000_000_000
    when = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return Shown(f"{when:%a %b %e %H:%M:%S UTC %Y}", seconds)


def _uptime(kernel: Kernel) -> Shown | None:
    uptime = timekeeping.uptime_ns(kernel)
    return None if uptime is None else Shown(timekeeping.clock_ns(uptime), uptime)


def _load(kernel: Kernel) -> Shown:
    loads = timekeeping.load_average(kernel)
    return Shown(", ".join(loads), loads)


def _machine(kernel: Kernel, machine: bytes) -> str:
    khz = cpu_khz(kernel)
    text = decode(machine)
    return f"{text}  ({khz // 1000} Mhz)" if khz else text


def _memory(kernel: Kernel) -> Shown:
    size = totalram_pages(kernel) * kernel.page_size
    unit, name = (1 << 30, "GB") if size >= 1 << 30 else (1 << 20, "MB")
    tenths = size * 10 // unit
    return Shown(f"{tenths // 10}.{tenths % 10} {name}", size)


def _taint_letters(kernel: Kernel) -> str | None:
    letters = taint_flags(kernel)
    return "none" if letters == "" else letters


def _panic(kernel: Kernel) -> Shown | None:
    message = panic_message(kernel)
    if message is None and is_alive(kernel):
        return Shown("none: it was alive", None)
    return None if message is None else Shown(f'"{decode(message)}"', message)


def _panic_context(kernel: Kernel) -> dict[str, Any]:
    try:
        task = default_task(kernel)
    except KdumpError as error:
        return {"TASK": Absent(reason=str(error))}
    if task is None:
        return {"TASK": Absent(reason=unknown_task(kernel))}
    state = task_state(kernel, task)
    panicked = panic_cpu(kernel)
    mark = "ACTIVE" if panicked is None else "PANIC"
    return {
        "PID": task.pid,
        "COMMAND": Shown(f'"{decode(task.comm)}"', task.comm),
        "TASK": Address(task.address),
        "CPU": task.cpu if panicked is None else panicked,
        "STATE": Shown(f"{state} ({mark})", state),
    }
