# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel without BTF: gdb's DWARF types inside gdb, what it recorded outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gdbkdump.cli import main
from gdbkdump.session import open_session
from tests.support.stock_gdb import run_gdb


@pytest.fixture(scope="module")
def vmcore(sparse_copy):
    """A copy of a small dump whose BTF has lost its magic number."""
    path = sparse_copy
    session = open_session(path)
    kernel = session.kernel
    address = kernel.memory.translate(kernel.symbol("__start_BTF"))
    offset, _ = session.dump.file_range(address)
    session.close()
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(4))
    return path


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    """A cache of the test's own, but for gdb's indexes, which take long to make."""
    real = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = tmp_path_factory.mktemp("cache") / "gdbkdump"
    folder.mkdir()
    (real / "gdbkdump/index").mkdir(parents=True, exist_ok=True)
    (folder / "index").symlink_to(real / "gdbkdump/index")
    return folder.parent


@pytest.fixture
def environment(own_cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_cache))


COMMANDS = ["kps", "kbt -a", "kmod", "klog -l err"]


@pytest.mark.usefixtures("environment")
def test_types_of_dwarf_and_then_of_the_record(vmcore, dump_dir, capsys):
    # Nothing is known yet: said, and no command invents anything.
    assert main([str(vmcore), "-c", "kps"]) == 1
    assert "no type 'struct task_struct'" in capsys.readouterr().err

    commands = [c for text in COMMANDS for c in (f"echo == {text}\\n", text)]
    output = run_gdb(dump_dir / "vmlinux", vmcore, *commands)
    in_gdb = output.partition("== kps\n")[2]

    wanted = []
    for text in COMMANDS:
        assert main([str(dump_dir / "vmcore"), "-c", text]) == 0
        wanted.append(capsys.readouterr().out)
        # The record alone, without gdb, gives the same.
        assert main([str(vmcore), "-c", text]) == 0
        assert capsys.readouterr().out == wanted[-1]
    expected = wanted[0] + "".join(
        f"== {text}\n{lines}"
        for text, lines in zip(COMMANDS[1:], wanted[1:], strict=True)
    )
    assert in_gdb == expected


@pytest.mark.usefixtures("environment")
def test_a_record_is_private(vmcore, own_cache):
    assert main([str(vmcore), "-c", "kset"]) == 0
    records = list((own_cache / "gdbkdump/types").iterdir())
    assert records
    assert [record for record in records if record.stat().st_mode & 0o077] == []
