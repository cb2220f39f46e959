# SPDX-License-Identifier: GPL-2.0-or-later
"""Debug files of modules in stock gdb: found, loaded where they were, or refused."""

from __future__ import annotations

import json

import pytest

from gdbkdump.errors import FormatError, MismatchError
from gdbkdump.kernel.module import for_each_module
from gdbkdump.modulefiles import find_module_file
from gdbkdump.session import open_session
from tests.support.stock_gdb import run_gdb


def test_all_are_loaded_where_they_were(dump_dir, session, truth):
    symbols = session.kernel.debuginfo
    functions = ["loop_configure", "virtblk_probe", "lo_ioctl"]
    known = [name for name in functions if symbols.symbols(name)]
    assert known
    asked = [f"p/x (long)&{name}" for name in known]
    out = run_gdb(dump_dir / "vmlinux", dump_dir / "vmcore", "kmod -S --json", *asked)
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    modules = {module["name"] for module in truth["modules"]}
    assert {row["name"]: row["object_file"] for row in rows} == {
        name: str(dump_dir / "modules" / f"{name}.ko") for name in modules
    }
    assert out.splitlines()[-len(known) :] == [
        f"${i} = {symbols.symbol(name):#x}" for i, name in enumerate(known, 1)
    ]


@pytest.fixture
def alone(dump_dir, tmp_path):
    """The dump, as if it had been copied without what lies beside it."""
    (tmp_path / "vmcore").symlink_to(dump_dir / "vmcore")
    session = open_session(tmp_path / "vmcore")
    yield session
    session.close()


def test_none_is_said(alone):
    module = next(iter(for_each_module(alone.kernel)))
    with pytest.raises(FormatError, match=f"module {module.name}: no debug file found"):
        find_module_file(alone, module, [], [])


def test_another_build_is_refused(alone, dump_dir):
    mine = dump_dir / "modules/loop.ko"
    others = [
        path
        for path in dump_dir.parent.glob("small-*/modules")
        if not (path / "loop.ko").samefile(mine)
    ]
    (module,) = [m for m in for_each_module(alone.kernel) if m.name == "loop"]
    if not others:
        pytest.skip("the modules of one kernel alone are in the cache")
    with pytest.raises(MismatchError, match=r"loop\.ko is of another build"):
        find_module_file(alone, module, [others[0]], [])


def test_the_right_one_among_wrong_ones(alone, dump_dir):
    folders = [*dump_dir.parent.glob("small-*/modules"), dump_dir / "modules"]
    for module in for_each_module(alone.kernel):
        found = find_module_file(alone, module, folders, [])
        assert found.path.samefile(dump_dir / "modules" / f"{module.name}.ko")
        assert all(module.holds(address) for address in found.sections.values())
        assert ".text" in found.sections
        assert not any(name.startswith(".init") for name in found.sections)
