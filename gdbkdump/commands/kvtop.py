# SPDX-License-Identifier: GPL-2.0-or-later
"""From virtual to physical, level by level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gdbkdump.commands import argument, command
from gdbkdump.commands.arguments import context_task, find_tasks, parse_address
from gdbkdump.errors import CommandError, FaultError, FaultReason
from gdbkdump.kernel.mm import user_memory
from gdbkdump.kernel.region import page_struct, regions
from gdbkdump.render.model import Absent, Address, Listing

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Sequence

    from gdbkdump.arch.base import Mapping, PageTable, TableEntry
    from gdbkdump.kernel.region import Region
    from gdbkdump.kernel.sched import Task
    from gdbkdump.render.model import Result
    from gdbkdump.session import Session

_UNITS = ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB"))


class _Answer(NamedTuple):
    # All that is known of an address; fault says why it has no leaf.
    address: int
    task: Task | None
    levels: Sequence[TableEntry]
    leaf: Mapping | None
    fault: str
    regions: Sequence[Region]

    @property
    def paddr(self) -> int | None:
        leaf = self.leaf
        return None if leaf is None else leaf.paddr + self.address - leaf.vaddr


@command(
    "kvtop",
    "Translate virtual addresses to physical ones, level by level.",
    category="memory",
    arguments=[
        argument(
            "addresses",
            nargs="+",
            metavar="ADDRESS",
            completes="symbol",
            help="hex, symbol, symbol+offset or $expression",
        ),
        argument(
            "-u",
            dest="user",
            action="store_true",
            help="addresses of the current task's user space",
        ),
        argument(
            "-c",
            dest="task",
            metavar="PID|TASK",
            completes="task",
            help="addresses of that task's user space",
        ),
        argument(
            "-k", dest="kernel", action="store_true", help="addresses of the kernel"
        ),
    ],
    examples=[
        "kvtop init_task",
        "kvtop linux_banner schedule+0x10",
        "kvtop -c 1 400000",
    ],
    crash="vtop",
)
def kvtop(session: Session, args: Namespace) -> Result:
    """Each level shows where its entry is in physical memory, its value and flags.

    Then follow the page; what the address belongs to, where that is certain; where
    in the dump file the bytes are, or why they are not there; and the struct page.
    Without -u, -c or -k the upper half of the address space is the kernel's.
    """
    if args.kernel and (args.user or args.task):
        raise CommandError("kvtop: -k excludes -u and -c")

    def answers() -> Iterator[_Answer]:
        for text in args.addresses:
            address = parse_address(session, text)
            is_user = bool(args.user or args.task) or not (args.kernel or address >> 63)
            task = _task(session, args) if is_user else None
            yield _translate(session, address, task)

    return Listing(
        answers(),
        lambda answer: _lines(session, answer),
        lambda answer: _data(session, answer),
    )


def _task(session: Session, args: Namespace) -> Task:
    task = find_tasks(session, args.task)[0] if args.task else context_task(session)
    if not task.mm:
        comm = task.comm.decode("utf-8", "backslashreplace")
        raise CommandError(
            f"kvtop: {comm} (pid {task.pid}) has no user memory (-c chooses a task)"
        )
    return task


def _translate(session: Session, address: int, task: Task | None) -> _Answer:
    kernel = session.kernel
    memory = user_memory(kernel, task.mm) if task else kernel.memory
    table: PageTable = memory.page_table
    levels: Sequence[TableEntry] = ()
    try:
        levels = table.walk(address)
        leaf = table.translate(address)
    except FaultError as fault:
        reason = fault.reason.value
        if task and fault.reason is FaultReason.UNMAPPED:
            reason = "not mapped by the task's page tables"
        return _Answer(address, task, levels, None, reason, ())
    paddr = leaf.paddr + address - leaf.vaddr
    found = () if task else tuple(regions(kernel, address, paddr))
    return _Answer(address, task, levels, leaf, "", found)


def _lines(session: Session, answer: _Answer) -> Iterator[str]:
    paddr = answer.paddr
    physical = f"({answer.fault})" if paddr is None else f"{paddr:x}"
    yield f"{'VIRTUAL':<16}  PHYSICAL"
    yield f"{answer.address:016x}  {physical}"
    yield ""
    if answer.task:
        comm = answer.task.comm.decode("utf-8", "backslashreplace")
        yield f"  TASK: {answer.task.address:016x} (pid {answer.task.pid}, {comm})"
    flags = session.kernel.memory.page_table.flags
    for entry in answer.levels:
        text = f"  {entry.level:>4}: {entry.paddr:x} => {entry.value:x}"
        yield f"{text}  ({flags(entry.value)})" if entry.value else text
    if answer.leaf and paddr is not None:
        yield f"  PAGE: {answer.leaf.paddr:x}  ({_size(answer.leaf.size)})"
        yield from _more_lines(session, answer, paddr)
    yield ""


def _more_lines(session: Session, answer: _Answer, paddr: int) -> Iterator[str]:
    for region in answer.regions:
        yield f"    IN: {region.name}" + (f", {region.detail}" if region.detail else "")
    where = _file_offset(session, paddr)
    if isinstance(where, Absent):
        yield f"  FILE: {where.reason}"
    else:
        yield f"  FILE: offset {int(where):#x} of {session.path.name}"
    page = page_struct(session.kernel, paddr)
    if page is not None:
        yield f"STRUCT: {page:016x} (struct page)"


def _size(size: int) -> str:
    return next(f"{size // unit}{name}" for unit, name in _UNITS if size >= unit)


def _file_offset(session: Session, paddr: int) -> Address | Absent:
    found = session.dump.file_range(paddr)
    if found:
        return Address(found[0])
    try:
        session.dump.read_phys(paddr, 1)
    except FaultError as fault:
        return Absent(reason=fault.reason.value)
    if not session.dump.is_flat:
        return Absent(reason="in the dump, packed with others")
    return Absent(reason="not in one run of bytes")


def _data(session: Session, answer: _Answer) -> dict[str, Any]:
    flags = session.kernel.memory.page_table.flags
    paddr = answer.paddr
    data: dict[str, Any] = {
        "virtual": Address(answer.address),
        "physical": Absent(reason=answer.fault) if paddr is None else Address(paddr),
        "pid": answer.task.pid if answer.task else None,
        "levels": [
            {
                "level": entry.level,
                "address": Address(entry.paddr),
                "value": Address(entry.value),
                "flags": flags(entry.value).split("|") if entry.value else [],
            }
            for entry in answer.levels
        ],
    }
    if answer.leaf is None or paddr is None:
        return data
    page = page_struct(session.kernel, paddr)
    return data | {
        "page": Address(answer.leaf.paddr),
        "page_size": answer.leaf.size,
        "regions": [region._asdict() for region in answer.regions],
        "file_offset": _file_offset(session, paddr),
        "page_struct": None if page is None else Address(page),
    }
