# SPDX-License-Identifier: GPL-2.0-or-later
"""Objects in memory as kstruct, klist and ktree show them: whole, or some members."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gdbkdump.errors import CommandError, FaultError, FaultReason
from gdbkdump.kernel import cvalue
from gdbkdump.kernel.typespec import Place, follow, parse_spec
from gdbkdump.render.model import Absent, AbsentKind, Address, Listing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from gdbkdump.kernel.base import Kernel
    from gdbkdump.kernel.typespec import TypeSpec

    _Item = tuple[int, Mapping[str, Any], "list[Shown]"]


class Shown(NamedTuple):
    """An object, read: its members by path, or all of it under the path ``""``."""

    address: int
    values: Sequence[tuple[str, Any]]
    extra: Mapping[str, Any] = {}


def parse_specs(kernel: Kernel, texts: Sequence[str] | None) -> list[TypeSpec]:
    """Return what each ``-s struct[.member,...]`` means.

    :raise CommandError: there is no such type or member
    """
    return [parse_spec(kernel, text) for text in texts or ()]


def read_object(kernel: Kernel, spec: TypeSpec, address: int, **extra: Any) -> Shown:
    """Return an object's members; those that cannot be read say why.

    :param extra: what else is known of the object, for JSON
    :raise FaultError: the whole object is asked for and nothing of it can be read
    """
    if not spec.paths:
        value = cvalue.decode(kernel, Place(spec.type, address))
        return Shown(address, [("", value)], extra)
    values = []
    for path in spec.paths:
        try:
            place = follow(kernel, spec.type, address, path)
            value = cvalue.decode(kernel, place)
        except FaultError as fault:
            value = cvalue.Fault(fault)
        values.append((path, value))
    return Shown(address, values, extra)


def object_lines(
    kernel: Kernel, spec: TypeSpec, shown: Shown, *, is_hex: bool
) -> Iterator[str]:
    """Yield an object as crash prints it."""
    printer = cvalue.Printer(kernel, is_hex=is_hex)
    for path, value in shown.values:
        first, *rest = printer.lines(value)
        if path:
            yield f"  {path} = {first}"
            yield from (f"  {line}" for line in rest)
        else:
            yield f"{spec.label} {first}"
            yield from rest


def object_data(spec: TypeSpec, shown: Shown) -> dict[str, Any]:
    """Return an object for JSON: ``{"type", "address", "members": {...}}``."""
    data: dict[str, Any] = {"type": spec.label, "address": Address(shown.address)}
    data.update(shown.extra)
    if spec.paths:
        data["members"] = {path: plain(value) for path, value in shown.values}
        return data
    value = plain(shown.values[0][1])
    data["members" if isinstance(value, dict) else "value"] = value
    return data


def listing_of(
    kernel: Kernel,
    found: Iterable[tuple[int, Mapping[str, Any]]],
    specs: Sequence[TypeSpec],
    *,
    is_hex: bool,
) -> Listing:
    """Return objects one after the other: their addresses, then what ``specs`` show.

    :param found: address of each object, and what else is known of it
    """

    def items() -> Iterator[_Item]:
        for address, extra in found:
            yield address, extra, [_try_read(kernel, spec, address) for spec in specs]

    def to_lines(item: _Item) -> Iterator[str]:
        address, extra, shown = item
        words = [f"{address:016x}", *(_extra_text(*each) for each in extra.items())]
        yield "  ".join(words)
        for spec, each in zip(specs, shown, strict=True):
            yield from object_lines(kernel, spec, each, is_hex=is_hex)

    def to_data(item: _Item) -> dict[str, Any]:
        address, extra, shown = item
        objects = [
            object_data(spec, each) for spec, each in zip(specs, shown, strict=True)
        ]
        if len(objects) == 1:
            return {**extra, **objects[0]}
        data = {"address": Address(address), **extra}
        return data | {"objects": objects} if objects else data

    return Listing(items(), to_lines, to_data)


def _extra_text(name: str, value: Any) -> str:
    return f"{name} {int(value):x}" if isinstance(value, Address) else f"{name} {value}"


def _try_read(kernel: Kernel, spec: TypeSpec, address: int) -> Shown:
    # One object that cannot be read must not end a walk.
    try:
        return read_object(kernel, spec, address)
    except FaultError as fault:
        return Shown(address, [("", cvalue.Fault(fault))])


def plain(value: Any) -> Any:
    """Return a decoded value as render/model.py knows them."""
    if isinstance(value, dict):
        return {name: plain(member) for name, member in cvalue.flatten(value)}
    if isinstance(value, list):
        return [plain(element) for element in value]
    if isinstance(value, cvalue.Fault):
        excluded = value.reason is FaultReason.EXCLUDED
        kind = AbsentKind.EXCLUDED if excluded else AbsentKind.UNREADABLE
        return Absent(kind, value.reason.value)
    if isinstance(value, cvalue.Pointer):
        return Address(value)
    if isinstance(value, cvalue.EnumValue):
        return value.name or int(value)
    return bytes(value) if isinstance(value, bytes) else value


def check_radix(name: str, *, is_hex: bool, is_decimal: bool) -> None:
    """Refuse ``-x`` together with ``-d``.

    :raise CommandError: both are given
    """
    if is_hex and is_decimal:
        raise CommandError(f"{name}: -x and -d exclude each other")
