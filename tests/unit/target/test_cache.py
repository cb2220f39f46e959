# SPDX-License-Identifier: GPL-2.0-or-later
"""The cache of what is made from a kernel build."""

from __future__ import annotations

import os
import stat

import pytest

from gdbkdump.target.cache import BuildCache

ID = "3b43fad5034874490492495d552c0af6a5fab235"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gdbkdump" / "frames"


def refuse():
    raise AssertionError("it is there already")


def test_a_file_is_made_once(home):
    cache = BuildCache("frames", 1)
    path = cache.file(ID, "gaps", lambda: b"some")
    assert (path.read_bytes(), path.parent) == (b"some", home)
    assert cache.file(ID, "gaps", refuse) == path
    assert BuildCache("frames", 1).file(ID, "gaps", refuse) == path


def test_nobody_else_may_read_it(home):
    before = os.umask(0)
    try:
        path = BuildCache("frames", 1).file(ID, "gaps", lambda: b"some")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_another_build_variant_or_version_is_another_file():
    made = [
        BuildCache("frames", version).file(build_id, variant, lambda: b"some")
        for version, build_id, variant in (
            (1, ID, "gaps"),
            (2, ID, "gaps"),
            (1, ID, "all"),
            (1, ID[::-1], "gaps"),
        )
    ]
    assert len(set(made)) == 4


def test_what_fails_leaves_nothing_behind(home):
    def fail():
        raise KeyboardInterrupt

    cache = BuildCache("frames", 1)
    with pytest.raises(KeyboardInterrupt):
        cache.file(ID, "gaps", fail)
    assert list(home.iterdir()) == []


def test_what_cannot_be_written_leaves_nothing_behind(home, monkeypatch):
    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        BuildCache("frames", 1).file(ID, "gaps", lambda: b"some")
    assert list(home.iterdir()) == []


def test_the_size_is_bounded_and_what_was_used_last_is_kept():
    cache = BuildCache("frames", 1, max_total=250)
    ids = [f"{n:040x}" for n in range(4)]
    for i, build_id in enumerate(ids[:2]):
        path = cache.file(build_id, "all", lambda: bytes(100))
        os.utime(path, ns=(i, i))
    before = path.parent / f"{ids[0]}-all-v1"
    cache.file(ids[0], "all", refuse)
    assert before.stat().st_mtime_ns == 0  # gdb would take it for changed
    cache.file(ids[2], "all", lambda: bytes(100))
    assert {p.name[39] for p in path.parent.iterdir()} == {"0", "2"}
    # One that is too large on its own is still of use.
    large = cache.file(ids[3], "all", lambda: bytes(1000))
    assert list(path.parent.iterdir()) == [large]


def test_a_folder_that_others_can_write_to_is_not_trusted(home):
    path = BuildCache("frames", 1).file(ID, "gaps", lambda: b"some")
    home.chmod(0o777)
    with pytest.raises(PermissionError, match="written to by others"):
        BuildCache("frames", 1).file(ID, "gaps", lambda: b"new")
    assert path.read_bytes() == b"some"


def test_a_home_that_is_a_file(home):
    home.parent.parent.joinpath("gdbkdump").write_bytes(b"")
    with pytest.raises(OSError, match="gdbkdump"):
        BuildCache("frames", 1).file(ID, "gaps", lambda: b"some")


@pytest.mark.parametrize("key", ["", "../../x", "abcdefgh", "AB" * 20, "0" * 7])
def test_only_a_build_id_becomes_a_name(key):
    with pytest.raises(ValueError, match=f"^{key}$"):
        BuildCache("frames", 1).file(key, "gaps", lambda: b"some")
