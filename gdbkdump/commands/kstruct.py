# SPDX-License-Identifier: GPL-2.0-or-later
"""Layouts of C types, and objects of them in memory."""

from __future__ import annotations

import re
from argparse import SUPPRESS
from typing import TYPE_CHECKING, Any, NamedTuple

from gdbkdump.commands import argument, command
from gdbkdump.commands.arguments import parse_address, parse_cpus, parse_number
from gdbkdump.commands.objects import (
    check_radix,
    object_data,
    object_lines,
    read_object,
)
from gdbkdump.errors import CommandError
from gdbkdump.kernel import clayout
from gdbkdump.kernel.percpu import per_cpu_ptr
from gdbkdump.kernel.typespec import follow, locate, parse_offset, parse_spec
from gdbkdump.memory.virtual import MASK64
from gdbkdump.render.model import Address, Listing

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Iterator

    from gdbkdump.commands.objects import Shown
    from gdbkdump.kernel.typespec import Place, TypeSpec
    from gdbkdump.render.model import Result
    from gdbkdump.session import Session

_KEYWORDS = ("struct", "union", "enum")
_MAX_COUNT = 1 << 20


class _Where(NamedTuple):
    # The CPU is None where the address is nobody's copy.
    address: int
    cpu: int | None


@command(
    "kstruct",
    "Show the layout of a C type, or an object of it in memory.",
    category="symbols",
    arguments=[
        argument(
            "type",
            metavar="TYPE[.MEMBER,...]",
            completes="struct",
            help="a struct, union, enum or typedef, or some of its members",
        ),
        argument(
            "address",
            nargs="?",
            metavar="ADDRESS[:CPUS]",
            completes="symbol",
            help="where an object is; without it the layout is shown",
        ),
        argument(
            "number", nargs="?", metavar="COUNT", help="show COUNT objects in a row"
        ),
        argument("more", nargs="*", default=[], help=SUPPRESS),
        argument(
            "-o",
            dest="offsets",
            action="store_true",
            help="show offsets, or with an ADDRESS the members' addresses",
        ),
        argument(
            "-l",
            dest="list_offset",
            metavar="OFFSET",
            help="ADDRESS is OFFSET (or STRUCT.MEMBER) bytes into the object",
        ),
        argument("-c", dest="count", metavar="COUNT", help="the same as COUNT"),
        argument("-x", dest="is_hex", action="store_true", help="integers in hex"),
        argument(
            "-d", dest="is_decimal", action="store_true", help="integers in decimal"
        ),
    ],
    examples=[
        "kstruct list_head",
        "kstruct -o task_struct.comm,pid",
        "kstruct task_struct.comm,pid,mm.pgd init_task",
        "kstruct -x rq.nr_running,curr runqueues:a",
        "kstruct struct list_head modules",
    ],
    crash="struct, union, *",
)
def kstruct(session: Session, args: Namespace) -> Result:
    """Members are separated by commas.

    A path (mm.pgd, se.run_node, comm[0]) goes into structs and through pointers.
    ADDRESS is hex, a symbol, symbol+offset or, inside gdb, a $expression. With
    :CPUS it is a per-CPU symbol or pointer: ":2" or ":0,2-3" are those CPUs'
    copies, ":a" all. COUNT objects follow each other in memory, a negative COUNT
    goes back.

    What cannot be read is shown with the reason. Integers are decimal unless -x is
    given; arrays of equal elements are shortened.
    """
    check_radix("kstruct", is_hex=args.is_hex, is_decimal=args.is_decimal)
    words = [args.type, args.address, args.number, *args.more]
    words = [word for word in words if word is not None]
    if words[0] in _KEYWORDS and len(words) > 1:
        words[:2] = [f"{words[0]} {words[1]}"]
    spec = parse_spec(session.kernel, words[0])
    if len(words) == 1:
        return _layout(spec, with_offsets=args.offsets)
    places = _places(session, args, spec, words[1:])
    if args.offsets:
        return _addresses(session, spec, places)
    return _objects(session, spec, places, is_hex=args.is_hex)


# Layouts


def _layout(spec: TypeSpec, *, with_offsets: bool) -> Result:
    def to_lines(spec: TypeSpec) -> Iterable[str]:
        if spec.paths:
            return clayout.describe_members(spec.type, _members(spec), 0)
        return clayout.describe(spec.type, base=0 if with_offsets else None)

    return Listing([spec], to_lines, lambda spec: _layout_data(spec, _members(spec)))


def _members(spec: TypeSpec) -> list[clayout.Part]:
    return [_part(path, locate(spec.type, path), 0) for path in spec.paths]


def _part(path: str, place: Place, base: int) -> clayout.Part:
    return clayout.Part(path, place.type, place.address - base, place.member)


def _layout_data(spec: TypeSpec, parts: list[clayout.Part]) -> dict[str, Any]:
    data = clayout.layout_data(spec.type)
    if parts:
        data["members"] = [clayout.part_data(part) for part in parts]
    return data


def _addresses(session: Session, spec: TypeSpec, places: Iterable[_Where]) -> Result:
    def parts(where: _Where) -> list[clayout.Part]:
        # A path through a pointer leads out of the object.
        return [
            _part(
                path,
                follow(session.kernel, spec.type, where.address, path),
                where.address,
            )
            for path in spec.paths
        ]

    def to_lines(where: _Where) -> Iterable[str]:
        if spec.paths:
            return clayout.describe_members(spec.type, parts(where), where.address)
        return clayout.describe(spec.type, base=where.address)

    def to_data(where: _Where) -> dict[str, Any]:
        data = _layout_data(spec, parts(where))
        for member in data.get("members", ()):
            member["address"] = Address(where.address + member["offset"])
        return {**data, "address": Address(where.address)}

    return Listing(places, to_lines, to_data)


# Objects


def _places(
    session: Session, args: Namespace, spec: TypeSpec, words: list[str]
) -> list[_Where]:
    if len(words) > 2 or (len(words) == 2 and args.count is not None):
        raise CommandError(f"kstruct: one ADDRESS and one COUNT, not {' '.join(words)}")
    back = parse_offset(session.kernel, args.list_offset) if args.list_offset else 0
    count = parse_number(words[1] if len(words) == 2 else args.count or "1")
    if not 0 < abs(count) <= _MAX_COUNT:
        raise CommandError(f"kstruct: a COUNT of {count}; 1 to {_MAX_COUNT} are shown")
    size = spec.type.size
    return [
        _Where((where.address - back + i * size) & MASK64, where.cpu)
        for where in _starts(session, words[0])
        for i in (range(count) if count > 0 else range(count + 1, 1))
    ]


def _starts(session: Session, text: str) -> list[_Where]:
    name, colon, chosen = text.rpartition(":")
    if not colon:
        return [_Where(parse_address(session, text), None)]
    if not re.fullmatch(r"a|all|[\d,-]+", chosen):
        raise CommandError(f"{text!r}: after the colon come CPUs: 0,2-3 or a for all")
    base = parse_address(session, name)
    return [
        _Where(per_cpu_ptr(session.kernel, base, cpu), cpu)
        for cpu in parse_cpus(session, chosen)
    ]


def _objects(
    session: Session, spec: TypeSpec, places: list[_Where], *, is_hex: bool
) -> Result:
    kernel = session.kernel

    def items() -> Iterator[Shown]:
        for where in places:
            extra = {} if where.cpu is None else {"cpu": where.cpu}
            yield read_object(kernel, spec, where.address, **extra)

    def to_lines(shown: Shown) -> Iterator[str]:
        if "cpu" in shown.extra:
            yield f"[{shown.extra['cpu']}]: {shown.address:016x}"
        elif len(places) > 1:
            yield f"{shown.address:016x}"
        yield from object_lines(kernel, spec, shown, is_hex=is_hex)

    return Listing(items(), to_lines, lambda shown: object_data(spec, shown))
