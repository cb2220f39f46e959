# SPDX-License-Identifier: GPL-2.0-or-later
"""Linked lists, from any of their nodes (``include/linux/list.h``, ``llist.h``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gdbkdump.commands import argument, command
from gdbkdump.commands.arguments import parse_address
from gdbkdump.commands.objects import check_radix, listing_of, parse_specs
from gdbkdump.errors import CommandError
from gdbkdump.kernel.list import for_each, for_each_hlist, for_each_llist, for_each_next
from gdbkdump.kernel.typespec import parse_offset
from gdbkdump.memory.virtual import MASK64

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

    from gdbkdump.render.model import Result
    from gdbkdump.session import Session

_KINDS = ("list", "hlist", "llist")


@command(
    "klist",
    "Walk a linked list and show its objects.",
    category="symbols",
    arguments=[
        argument(
            "start",
            metavar="ADDRESS",
            completes="symbol",
            help="where to begin: hex, symbol, symbol+offset or $expression",
        ),
        argument(
            "-H",
            dest="head",
            action="store_true",
            help="ADDRESS is the list's head, which is in no object",
        ),
        argument(
            "-h",
            dest="from_object",
            action="store_true",
            help="ADDRESS is an object, with its list_head at -o",
        ),
        argument(
            "-o",
            dest="offset",
            metavar="OFFSET",
            help="where the link is in an object: a number or STRUCT.MEMBER",
        ),
        argument(
            "-l",
            dest="link_offset",
            metavar="OFFSET",
            help="as -o, for an ADDRESS that is a link within an object",
        ),
        argument(
            "-s",
            dest="specs",
            action="append",
            metavar="TYPE[.MEMBER,...]",
            help="show each object, or some of its members (repeatable)",
        ),
        argument(
            "-t",
            dest="kind",
            choices=_KINDS,
            default="list",
            help="what ADDRESS is the head of, with -H (list)",
        ),
        argument("-e", dest="end", metavar="ADDRESS", help="end before this link"),
        argument(
            "-r", dest="reverse", action="store_true", help="follow prev, not next"
        ),
        argument("-x", dest="is_hex", action="store_true", help="integers in hex"),
        argument(
            "-d", dest="is_decimal", action="store_true", help="integers in decimal"
        ),
    ],
    examples=[
        "klist -H modules -o module.list -s module.name,state",
        "klist -h init_task -o task_struct.tasks -s task_struct.pid,comm",
        "klist -H -r modules -o module.list",
    ],
    crash="list",
)
def klist(session: Session, args: Namespace) -> Result:
    """Each line is the address of an object: of a link, less -o or -l.

    Without -H and -h the word at ADDRESS (plus -o) is the pointer to the next
    object, and the walk ends at NULL, at ADDRESS again, or at -e. With -h it goes
    once around the list, ADDRESS first. Lists of kinds hlist and llist take their
    head (-H).

    A damaged list is shown up to the damage; then the command fails and says
    where.
    """
    check_radix("klist", is_hex=args.is_hex, is_decimal=args.is_decimal)
    specs = parse_specs(session.kernel, args.specs)
    start = parse_address(session, args.start)
    end = parse_address(session, args.end) if args.end else None
    links = _walk(session, args, start)
    found: Iterator[tuple[int, dict[str, Any]]] = (
        (address, {}) for address in _until(links, end)
    )
    return listing_of(session.kernel, found, specs, is_hex=args.is_hex)


def _until(walk: Iterator[tuple[int, int]], end: int | None) -> Iterator[int]:
    for link, address in walk:
        if end is not None and end in (link, address):
            return
        yield address


def _walk(session: Session, args: Namespace, start: int) -> Iterator[tuple[int, int]]:
    # Yields each link with its object.
    kernel = session.kernel
    if args.offset and args.link_offset:
        raise CommandError("klist: -o and -l exclude each other")
    given: Any = args.offset or args.link_offset
    offset = parse_offset(kernel, given) if given else 0
    if args.head and args.from_object:
        raise CommandError("klist: -H and -h exclude each other")
    if not args.head and args.kind != "list":
        raise CommandError(f"klist: -t {args.kind} takes the address of a head (-H)")
    prev = kernel.struct("list_head").offset("prev") if args.reverse else 0
    if args.head:
        return _from_head(session, args, start, offset, prev)
    if args.from_object or args.link_offset:
        # All links of a ring are alike: its head, if it has one, is among them.
        link = start if args.link_offset else (start + offset) & MASK64
        return _ring(session, link, offset, prev)
    nodes = for_each_next(kernel, start, offset + prev)
    return ((node + offset, node) for node in nodes)


def _from_head(
    session: Session, args: Namespace, head: int, offset: int, prev: int
) -> Iterator[tuple[int, int]]:
    if args.kind != "list" and args.reverse:
        raise CommandError(f"klist: an {args.kind} cannot be walked in reverse")
    if args.kind == "hlist":
        walk = for_each_hlist(session.kernel, head)
    elif args.kind == "llist":
        walk = for_each_llist(session.kernel, head)
    else:
        walk = for_each(session.kernel, head, prev)
    return ((link, (link - offset) & MASK64) for link in walk)


def _ring(
    session: Session, link: int, offset: int, prev: int
) -> Iterator[tuple[int, int]]:
    yield link, (link - offset) & MASK64
    for each in for_each(session.kernel, link, prev):
        yield each, (each - offset) & MASK64
