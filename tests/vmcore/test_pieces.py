# SPDX-License-Identifier: GPL-2.0-or-later
"""A vmcore in more pieces than e_phnum can count, and than gdb searches well."""

from __future__ import annotations

import json
import struct
import sys
from contextlib import closing

import pytest
from support.pieces import write_pieces
from support.stock_gdb import newest_gdb, run_gdb

from gdbkdump.commands import find_command
from gdbkdump.render import json_text
from gdbkdump.session import open_session
from gdbkdump.target.viewcore import MAX_RANGES, kernel_ranges

COUNT = 70_000


@pytest.fixture(scope="module")
def cut(dump_dir, tmp_path_factory):
    """Cut a small variant of the dump into pieces."""
    source = dump_dir / "variants/elf.d31"
    if not source.exists():
        pytest.skip("no elf.d31 is made of this dump")
    path = tmp_path_factory.mktemp("pieces") / "vmcore"
    assert write_pieces(source, path, COUNT) >= COUNT
    yield path
    path.unlink()


def rows(session, text):
    name, *words = text.split()
    command = find_command(name)
    result = command.run(session, command.parse(words))
    return [json.loads(line) for line in json_text.lines(result)]


def test_rows_are_those_of_the_vmcore(cut, session):
    with cut.open("rb") as file:
        assert struct.unpack_from("<H", file.read(64), 56) == (0xFFFF,)
    with closing(open_session(cut)) as other:
        assert other.problems == session.problems
        assert len(other.dump.extents) >= COUNT
        for text in ("klog", "kps", "kbt -a", "kmod", "kregs -a"):
            assert rows(other, text) == rows(session, text)
        assert len(kernel_ranges(other.kernel, other.dump, [])) > MAX_RANGES


@pytest.mark.parametrize(("which", "transport"), [("gdb", "auto"), ("newest", "core")])
def test_gdb_sees_the_same(cut, dump_dir, which, transport):
    gdb, environment = which, {"GDBKDUMP_TRANSPORT": transport}
    if which == "newest":
        gdb = newest_gdb()
        environment["VIRTUAL_ENV"] = sys.prefix
    commands = ("echo BEGIN\\n", "bt -frame-arguments none", "p $ktask(1)->comm")
    commands += ("p linux_banner[0]@40", "thread apply 1-20 bt 3", "kps -A")
    usual, mine = (
        run_gdb(
            dump_dir / "vmlinux", path, *commands, gdb=gdb, environment=environment
        ).partition("BEGIN\n")[2]
        for path in (dump_dir / "vmcore", cut)
    )
    assert len(usual.splitlines()) > 60
    # gdb names threads of the two transports differently, and nothing else.
    assert mine.replace("(Thread ", "(LWP ") == usual
