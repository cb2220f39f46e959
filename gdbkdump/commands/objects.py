# SPDX-License-Identifier: GPL-2.0-or-later
"""Objects in memory as kstruct, klist and ktree show them: whole, or some members."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gdbkdump.errors import CommandError, FaultError, FaultReason
from gdbkdump.kernel import cvalue
from gdbkdump.kernel.typespec import Place, follow, parse_spec
from gdbkdump.render.model import Absent, AbsentKind, Address

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from gdbkdump.kernel.base import Kernel
    from gdbkdump.kernel.typespec import TypeSpec


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
