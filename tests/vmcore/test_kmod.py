# SPDX-License-Identifier: GPL-2.0-or-later
"""kmod against /proc/modules and /sys/module of the guest."""

from __future__ import annotations

import pytest

from gdbkdump.errors import CommandError
from gdbkdump.kernel.module import (
    for_each_module,
    module_build_id,
    module_sections,
)


def test_modules_are_those_of_proc(run, truth):
    rows = [row for row in run("kmod") if "note" not in row]
    assert [(row["name"], row["size"]) for row in rows] == [
        (module["name"], module["size"]) for module in truth["modules"]
    ]
    assert [int(row["text_base"], 16) for row in rows] == [
        module["address"] for module in truth["modules"]
    ]
    assert {row["object_file"] for row in rows} == {None}


def test_sections_and_build_ids(session, truth):
    wanted = {module["name"]: module for module in truth["modules"]}
    for module in for_each_module(session.kernel):
        sections = module_sections(session.kernel, module)
        assert sections == wanted[module.name]["sections"]
        build_id = module_build_id(session.kernel, sections)
        assert build_id == wanted[module.name]["build_id"]


def test_taints(run, truth):
    assert {row["name"]: row["taint"] for row in run("kmod", "-t")} == {
        module["name"]: module["taints"]
        for module in truth["modules"]
        if module["taints"]
    }


def test_parameters(run):
    told = run("kmod", "-p", "loop")
    rows = {(row["module"], row["parameter"]): row for row in told if "note" not in row}
    unknown = [row for row in rows.values() if row["value"] is None]
    notes = [row["note"] for row in told if "note" in row]
    assert all(note.startswith(f"{len(unknown)} parameters are not") for note in notes)
    assert len(notes) == bool(unknown)
    # drivers/block/loop.c: the default, and the guest set no other.
    assert rows["loop", "max_part"]["value"] == "0"
    assert rows["loop", "max_part"]["type"] == "int"


def test_wrong_use(run):
    with pytest.raises(CommandError, match="no module 'nosuch'"):
        run("kmod", "nosuch")
    with pytest.raises(CommandError, match="loaded into gdb, which is not there"):
        run("kmod", "-S")
