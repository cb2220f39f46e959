# SPDX-License-Identifier: GPL-2.0-or-later
"""Red-black, radix and maple trees and xarrays, with what is stored in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gdbkdump.commands import argument, command
from gdbkdump.commands.arguments import parse_address
from gdbkdump.commands.objects import check_radix, listing_of, parse_specs
from gdbkdump.debuginfo.layout import StructType, type_name
from gdbkdump.errors import CommandError
from gdbkdump.kernel.mapletree import mt_for_each
from gdbkdump.kernel.radixtree import is_xarray, radix_subtree, radix_tree_for_each
from gdbkdump.kernel.rbtree import rb_subtree, rbtree_inorder_for_each
from gdbkdump.kernel.typespec import member_place, parse_offset
from gdbkdump.kernel.xarray import xa_for_each
from gdbkdump.memory.virtual import MASK64
from gdbkdump.render.model import Address

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Iterator

    from gdbkdump.kernel.base import Kernel
    from gdbkdump.render.model import Result
    from gdbkdump.session import Session

    _Found = tuple[int, dict[str, Any]]

_KINDS = ("rbtree", "radix", "xarray", "maple")
# The kind of a root by its type, and where in it the tree proper begins.
_ROOTS = {
    "rb_root": ("rbtree", ""),
    "rb_root_cached": ("rbtree", "rb_root"),
    "radix_tree_root": ("radix", ""),
    "xarray": ("xarray", ""),
    "idr": ("radix", "idr_rt"),
    "ida": ("radix", "xa"),
    "address_space": ("xarray", "i_pages"),
    "maple_tree": ("maple", ""),
}


class _Tree(NamedTuple):
    kind: str
    address: int
    is_node: bool


@command(
    "ktree",
    "Walk a red-black, radix or maple tree or an xarray.",
    category="symbols",
    arguments=[
        argument(
            "root",
            metavar="ADDRESS",
            completes="symbol",
            help="of the root: hex, symbol, symbol+offset or $expression",
        ),
        argument(
            "-t",
            dest="kind",
            metavar="KIND",
            completes=_KINDS,
            help=f"{', '.join(_KINDS)}, or as few letters as tell them apart",
        ),
        argument(
            "-r",
            dest="root_member",
            metavar="STRUCT.MEMBER",
            help="ADDRESS is a STRUCT and the root its MEMBER, which tells the kind",
        ),
        argument(
            "-o",
            dest="offset",
            metavar="OFFSET",
            help="where an rb_node is in an object: a number or STRUCT.MEMBER",
        ),
        argument(
            "-s",
            dest="specs",
            action="append",
            metavar="TYPE[.MEMBER,...]",
            help="show each object, or some of its members (repeatable)",
        ),
        argument(
            "-N",
            dest="is_node",
            action="store_true",
            help="ADDRESS is a node of the tree: walk from there down",
        ),
        argument("-x", dest="is_hex", action="store_true", help="integers in hex"),
        argument(
            "-d", dest="is_decimal", action="store_true", help="integers in decimal"
        ),
    ],
    examples=[
        "ktree -r pid_namespace.idr init_pid_ns -s pid.level",
        "ktree -t rbtree key_serial_tree -o key.serial_node -s key.serial",
    ],
    crash="tree",
)
def ktree(session: Session, args: Namespace) -> Result:
    """Each line is the address of an entry, in the order of the tree.

    The index follows, or the range of indexes in a maple tree; values that are
    stored in place of pointers are shown as such. -o takes an rb_node back to its
    object.

    A damaged tree is shown up to the damage; then the command fails and says
    where.
    """
    check_radix("ktree", is_hex=args.is_hex, is_decimal=args.is_decimal)
    kernel = session.kernel
    specs = parse_specs(kernel, args.specs)
    tree = _tree(session, args)
    if args.offset and tree.kind != "rbtree":
        raise CommandError(
            f"ktree: -o is for rbtrees; an entry of a {tree.kind} tree"
            " is the object itself"
        )
    offset = parse_offset(kernel, args.offset) if args.offset else 0
    found = _entries(kernel, tree, offset)
    return listing_of(kernel, found, specs, is_hex=args.is_hex)


def _tree(session: Session, args: Namespace) -> _Tree:
    address = parse_address(session, args.root)
    kind = _kind(args.kind) if args.kind else None
    if args.root_member and args.is_node:
        raise CommandError("ktree: -r and -N exclude each other")
    if args.root_member:
        told, offset = _root_of(session.kernel, args.root_member)
        address = (address + offset) & MASK64
        kind = kind or told
    if kind is None:
        raise CommandError(
            f"ktree: say what tree it is: -t {'|'.join(_KINDS)}, or -r STRUCT.MEMBER"
        )
    return _Tree(kind, address, args.is_node)


def _kind(text: str) -> str:
    # crash's own letters are ra, rb, x and m.
    found = [kind for kind in _KINDS if kind.startswith(text.lower())]
    if len(found) != 1:
        raise CommandError(f"ktree: -t {text!r} is none of {', '.join(_KINDS)}")
    return found[0]


def _root_of(kernel: Kernel, text: str) -> tuple[str | None, int]:
    if text[:1].isdigit():
        return None, parse_offset(kernel, text)
    place = member_place(kernel, text)
    type_ = place.type.strip()
    found = _ROOTS.get(type_.name) if isinstance(type_, StructType) else None
    if found is None or not isinstance(type_, StructType):
        known = ", ".join(_ROOTS)
        raise CommandError(
            f"{text} is a {type_name(place.type)}, none of these roots: {known}"
        )
    kind, member = found
    return kind, place.address + (type_.offset(member) if member else 0)


def _entries(kernel: Kernel, tree: _Tree, offset: int) -> Iterator[_Found]:
    if tree.kind == "rbtree":
        walk = rb_subtree if tree.is_node else rbtree_inorder_for_each
        return (((node - offset) & MASK64, {}) for node in walk(kernel, tree.address))
    if tree.kind == "maple":
        root = tree.address if tree.is_node else None
        return (
            (entry, {"first": Address(first), "last": Address(last)})
            for first, last, entry in mt_for_each(kernel, tree.address, root=root)
        )
    # An exceptional entry of a radix tree of old has its value above bit 1.
    is_old = tree.kind == "radix" and not is_xarray(kernel)
    value_bit, value_shift = (2, 2) if is_old else (1, 1)
    return (
        (entry, {"index": index, "value": entry >> value_shift})
        if entry & value_bit
        else (entry, {"index": index})
        for index, entry in _indexes(kernel, tree, is_old=is_old)
    )


def _indexes(kernel: Kernel, tree: _Tree, *, is_old: bool) -> Iterable[tuple[int, int]]:
    if is_old and tree.is_node:
        return radix_subtree(kernel, tree.address | 1, tree.address)
    if is_old:
        return radix_tree_for_each(kernel, tree.address)
    head = (tree.address & ~3 | 2) if tree.is_node else None
    return xa_for_each(kernel, tree.address, head=head)
