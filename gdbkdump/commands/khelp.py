# SPDX-License-Identifier: GPL-2.0-or-later
"""khelp: what there is, by category, with what crash users know it by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdbkdump.commands import all_commands, argument, command, find_command
from gdbkdump.render.model import Column, Table, Text

if TYPE_CHECKING:
    from argparse import Namespace

    from gdbkdump.render.model import Block
    from gdbkdump.session import Session


@command(
    "khelp",
    "List the commands, or explain one.",
    category="system",
    crash="help",
    arguments=[
        argument("command", nargs="?", completes="command", help="command to explain"),
    ],
    examples=["khelp", "khelp kps"],
    needs_dump=False,
)
def khelp(session: Session | None, args: Namespace) -> Block:
    """List all commands; inside gdb "help COMMAND" explains one as well."""
    if args.command:
        return Text(find_command(args.command).help_text().rstrip().split("\n"))
    commands = sorted(all_commands(), key=lambda item: (item.category, item.name))
    return Table(
        [
            Column("COMMAND", style="symbol"),
            Column("CRASH"),
            Column("CATEGORY"),
            Column("SUMMARY"),
        ],
        [(item.name, item.crash, item.category, item.summary) for item in commands],
    )
