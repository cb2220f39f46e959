# SPDX-License-Identifier: GPL-2.0-or-later
"""Types recorded for kernels without BTF: all that is needed, private, by build."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gdbkdump import recordedtypes
from gdbkdump.recordedtypes import NEEDED, record_types, recorded_types
from gdbkdump.vmlinux import Identity
from tests.support.fakes import (
    U32,
    DictMemory,
    FakeTypes,
    fake_kernel,
    member,
    pointer,
    structure,
)

PACKAGE = Path(recordedtypes.__file__).parent
NAMED = re.compile(
    r"(?:kernel\.(?:struct|object|fields|first_member|has_member)|debuginfo\.struct)"
    r'\(\s*"([a-z_0-9]+)"'
)


def test_all_that_the_engine_names_is_recorded():
    named = {
        name
        for room in ("kernel", "unwind", "target")
        for path in (PACKAGE / room).glob("*.py")
        for name in NAMED.findall(path.read_text())
    }
    assert "task_struct" in named
    assert named - set(NEEDED) == set()


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    identity = Identity("6.1.0", "ab" * 20, ())
    monkeypatch.setattr(recordedtypes, "dump_identity", lambda kernel: identity)
    return fake_kernel(DictMemory())


def test_what_is_recorded_is_read_back(kernel, tmp_path):
    mm = structure("mm_struct", 8, member("total_vm", 0, U32))
    task = structure(
        "task_struct", 16, member("pid", 0, U32), member("mm", 8, pointer(mm))
    )
    assert recorded_types(kernel) is None
    path = record_types(kernel, FakeTypes([task, mm]))
    assert path == tmp_path / "gdbkdump/types" / f"{'ab' * 20}.json"
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    found = recorded_types(kernel)
    read = found.find("struct", "task_struct")
    assert (read.size, read.offset("mm"), read.member("pid").type.size) == (16, 8, 4)
    assert read.member("mm").type.target.offset("total_vm") == 0
    assert record_types(kernel, FakeTypes([])) is None  # done already


def test_a_damaged_cache_is_none(kernel, tmp_path):
    path = tmp_path / "gdbkdump/types" / f"{'ab' * 20}.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert recorded_types(kernel) is None
