# SPDX-License-Identifier: GPL-2.0-or-later
"""klog: the kernel log."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from gdbkdump.commands import argument, command
from gdbkdump.errors import CommandError
from gdbkdump.kernel.printk import printk_records
from gdbkdump.kernel.timekeeping import boot_clock_offset_ns
from gdbkdump.render.escape import decode
from gdbkdump.render.model import Line, Listing, Note

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from gdbkdump.kernel.printk import PrintkRecord
    from gdbkdump.render.model import Block
    from gdbkdump.session import Session

_LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")


@command(
    "klog",
    "Show the kernel log.",
    category="system",
    crash="log",
    arguments=[
        argument("-T", dest="wall", action="store_true", help="wall-clock time (UTC)"),
        argument("-t", dest="no_time", action="store_true", help="no time stamps"),
        argument("-m", dest="level", action="store_true", help="show <level>"),
        argument("-c", dest="caller", action="store_true", help="show the caller"),
        argument("-d", dest="dict", action="store_true", help="show the dictionary"),
        argument(
            "-l",
            dest="only",
            metavar="LEVEL",
            completes=_LEVELS,
            help="at most this level (err, 0-7)",
        ),
    ],
    examples=["klog", "klog -l err", "klog -T -m", "pipe klog | tail -20"],
)
def klog(session: Session, args: Namespace) -> Iterator[Block]:
    """Print the records of the kernel's ring buffer, oldest first.

    Time stamps are seconds since boot. -T adds the boot time to them; like dmesg -T it
    is off by the time the machine slept before a message. Records that were being
    written as the kernel died are counted in a note.
    """
    limit = _level(args.only) if args.only else 7
    offset = boot_clock_offset_ns(session.kernel) if args.wall else 0
    if offset is None:
        raise CommandError("the wall clock of this kernel cannot be read: leave -T out")
    problems: list[str] = []
    records = (r for r in printk_records(session.kernel, problems) if r.level <= limit)
    yield Listing(
        records,
        lambda record: _lines(record, args, offset),
        lambda record: _data(record, offset if args.wall else None),
    )
    for problem in problems:
        yield Note(problem)


def _level(text: str) -> int:
    if text in _LEVELS:
        return _LEVELS.index(text)
    if text.isdecimal() and int(text) < len(_LEVELS):
        return int(text)
    raise CommandError(f"no log level {text!r} (0-7, or {' '.join(_LEVELS)})")


def _stamp(nanoseconds: int) -> str:
    # Cut, not rounded, as the kernel's print_time() does.
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"[{seconds:5}.{rest // 1000:06}] "


def _wall(nanoseconds: int) -> str:
    seconds = nanoseconds // 1_000_000_000
    when = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return f"[{when:%a %b %e %H:%M:%S UTC %Y}] "


def _lines(record: PrintkRecord, args: Namespace, offset: int) -> Iterator[Line]:
    prefix = ""
    if args.wall:
        prefix = _wall(record.timestamp_ns + offset)
    elif not args.no_time:
        prefix = _stamp(record.timestamp_ns)
    if args.caller and record.caller is not None:
        prefix += f"[{record.caller:>7}] "
    if args.level:
        prefix += f"<{record.level:x}>"
    style = "error" if record.level <= _LEVELS.index("err") else ""
    for i, line in enumerate(record.text.split(b"\n")):
        head = prefix if not i else " " * len(prefix)
        yield [("dim", head), (style, decode(line))]
    if args.dict:
        for key, value in record.context:
            yield f"{' ' * len(prefix)}{key}={decode(value)}"


def _data(record: PrintkRecord, offset: int | None) -> dict[str, Any]:
    data: dict[str, Any] = {
        "seq": record.seq,
        "time_ns": record.timestamp_ns,
        "facility": record.facility,
        "level": record.level,
        "text": record.text,
    }
    if offset is not None:
        data["wall_time_ns"] = record.timestamp_ns + offset
    if record.caller is not None:
        data["caller"] = record.caller
    if record.context:
        data["dict"] = {key.lower(): value for key, value in record.context}
    return data
