# SPDX-License-Identifier: GPL-2.0-or-later
"""Dumps that libkdumpfile reads, in its own process, however that ends."""

from __future__ import annotations

import json
import os
import random
import struct
import sys

import pytest
from support.mkdiskdump import KdumpFile
from support.mklkcd import write_lkcd
from support.mks390 import write_s390

from gdbkdump.errors import FaultError, FaultReason, FormatError
from gdbkdump.formats import kdumpfile_worker, library, open_dump
from gdbkdump.session import open_session

_FIRST_PAGE = 65536


def page(seed):
    """A page that does not shrink to nothing, and one that does not shrink at all."""
    rest = bytes(4000) if seed % 2 else random.Random(seed).randbytes(4000)
    return struct.pack("<Q", seed).ljust(96, b"\7") + rest


PAGES = {0x1000 * n: page(n) for n in (1, 2, 3, 16, 17, 4096)}


@pytest.fixture
def lkcd(tmp_path):
    return write_lkcd(tmp_path / "dump", PAGES.items(), compress=True)


@pytest.fixture
def dump(lkcd):
    opened = open_dump(lkcd)
    yield opened
    opened.close()


def test_pages_of_an_lkcd_dump(dump):
    assert dump.format == "Linux Kernel Crash Dump v9 (libkdumpfile)"
    assert (dump.machine, dump.is_flat, list(dump.notes)) == (62, False, [])
    assert [(e.vaddr, e.paddr, e.size) for e in dump.extents] == [
        (None, 0x1000, 0x3000), (None, 0x10000, 0x2000), (None, 0x1000000, 0x1000),
    ]  # fmt: skip
    for paddr, data in PAGES.items():
        assert dump.read_phys(paddr, 4096) == data
    whole = b"".join(PAGES[n] for n in (0x1000, 0x2000, 0x3000))
    assert dump.read_phys(0x1FFF, 0x1002) == whole[0xFFF:0x2001]
    assert dump.file_range(0x1000) is None


def test_a_child_has_a_process_of_its_own(dump):
    # As gdb's server is, and asks while its parent does.
    reader, writer = os.pipe()
    child = os.fork()
    for _ in range(50):
        found = [dump.read_phys(paddr, 4096) == data for paddr, data in PAGES.items()]
    if child == 0:
        os.write(writer, bytes(found))
        os._exit(0)
    assert all(found)
    assert os.read(reader, 100) == b"\1" * len(PAGES)
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    ("paddr", "size", "lacks"),
    [(0, 1, 0), (0x3FFF, 2, 0x4000), (0x9000, 8, 0x9000), (1 << 51, 8, 1 << 51)],
)
def test_pages_that_are_not_there(dump, paddr, size, lacks):
    with pytest.raises(FaultError) as raised:
        dump.read_phys(paddr, size)
    assert (raised.value.address, raised.value.reason) == (lacks, FaultReason.HOLE)


def test_a_damaged_page_is_one_error_and_the_others_are_there(lkcd):
    data = bytearray(lkcd.read_bytes())
    # The first page's bytes, behind its address, size and flags.
    data[_FIRST_PAGE + 16 : _FIRST_PAGE + 24] = b"\xff" * 8
    lkcd.write_bytes(data)
    dump = open_dump(lkcd)
    with pytest.raises(FormatError, match="libkdumpfile at 0x1000: "):
        dump.read_phys(0x1000, 16)
    assert dump.read_phys(0x2000, 4096) == PAGES[0x2000]
    dump.close()


@pytest.mark.parametrize("size", [8, 300, 741])
def test_a_cut_header_is_one_error(lkcd, size):
    lkcd.write_bytes(lkcd.read_bytes()[:size])
    with pytest.raises(FormatError, match="libkdumpfile"):
        open_dump(lkcd)


@pytest.mark.parametrize("size", [_FIRST_PAGE, _FIRST_PAGE + 7, _FIRST_PAGE + 100])
def test_what_was_cut_off_is_not_there(lkcd, size):
    lkcd.write_bytes(lkcd.read_bytes()[:size])
    dump = open_dump(lkcd)
    with pytest.raises((FaultError, FormatError)):
        dump.read_phys(0x2000, 8)
    dump.close()


def test_a_page_that_is_cut_is_lost(lkcd):
    # The library would read zeros behind the end of the file.
    data = lkcd.read_bytes()
    lkcd.write_bytes(data[:-17])
    dump = open_dump(lkcd)
    assert (dump.is_incomplete, dump.problems) == (
        True, ["the file is truncated: it has no end mark"],
    )  # fmt: skip
    with pytest.raises(FaultError, match="not in the dump"):
        dump.read_phys(4096 << 12, 4096)
    assert dump.read_phys(17 << 12, 4096) == PAGES[17 << 12]
    dump.close()


def test_a_page_that_is_there_twice_is_not_read(tmp_path):
    pages = [*PAGES.items(), (0x2000, page(40))]
    dump = open_dump(write_lkcd(tmp_path / "dump", pages))
    assert next((e.paddr, e.size) for e in dump.extents) == (0x1000, 0x3000)
    assert dump.problems[0].startswith("4096 bytes of pages are there twice")
    with pytest.raises(FaultError) as raised:
        dump.read_phys(0x1F00, 4096)
    assert (raised.value.address, raised.value.reason) == (0x2000, FaultReason.CORRUPT)
    assert dump.read_phys(0x3000, 4096) == PAGES[0x3000]
    dump.close()


@pytest.mark.parametrize(("offset", "bad"), [(0, 0x123), (8, 0), (8, 1 << 20), (12, 8)])
def test_a_head_of_no_page_ends_the_dump(lkcd, offset, bad):
    data = bytearray(lkcd.read_bytes())
    (size,) = struct.unpack_from("<I", data, _FIRST_PAGE + 8)
    second = _FIRST_PAGE + 16 + size
    struct.pack_into("<I", data, second + offset, bad)
    lkcd.write_bytes(data)
    dump = open_dump(lkcd)
    assert dump.is_incomplete
    assert dump.problems == [
        f"what should be a page at {second:#x} is none: the rest is lost"
    ]
    assert [(e.paddr, e.size) for e in dump.extents] == [(0x1000, 4096)]
    dump.close()


def test_what_the_library_may_not_be_asked_is_excluded(worker):
    body = "sys.stdin.buffer.read(12); os._exit(3)"
    dump = worker(body, ram=[[0, 8192], [12288, 4096]], there=[[0, 4096]])
    assert dump.excluded == 8192
    for paddr in (4096, 8191, 12288):
        with pytest.raises(FaultError) as raised:
            dump.read_phys(paddr, 1)
        assert raised.value.reason is FaultReason.EXCLUDED
    with pytest.raises(FormatError, match="exit code 3"):
        dump.read_phys(4095, 1)
    dump.close()


@pytest.mark.parametrize(
    "magic", ["a8190173618f23ed", "a8190173618f23fd", "4449534b44554d50"],
)  # fmt: skip
def test_formats_that_are_the_librarys_business(tmp_path, magic):
    path = tmp_path / "dump"
    path.write_bytes(bytes.fromhex(magic).ljust(1 << 17, b"\0"))
    with pytest.raises(FormatError, match="libkdumpfile"):
        open_dump(path)


def test_an_s390_dump(tmp_path):
    memory = b"".join(PAGES.values())
    path = write_s390(tmp_path / "dump", memory)
    dump = open_dump(path)
    assert (dump.format, dump.machine) == ("S390 Dump (libkdumpfile)", 22)
    assert [(e.paddr, e.size) for e in dump.extents] == [(0, len(memory))]
    assert dump.read_phys(0, len(memory)) == memory
    assert dump.read_phys(8190, 4) == memory[8190:8194]
    with pytest.raises(FaultError, match="not RAM"):
        dump.read_phys(len(memory) - 1, 2)
    dump.close()
    with pytest.raises(FormatError) as raised:
        open_session(path)
    assert str(raised.value) == (
        "a dump of a machine that is not supported: it is s390, and only x86-64 is"
        " (crash, built for that machine, reads it)"
    )


def test_an_s390_dump_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setattr(library.shutil, "which", lambda name: sys.executable)
    with pytest.raises(FormatError, match="is a dump of an s390 machine, and only x86"):
        open_dump(write_s390(tmp_path / "dump", bytes(8192)))


@pytest.mark.parametrize("size", [4000, 4096, 8192, 8192 + 4096 + 7])
def test_a_cut_s390_dump_is_one_error(tmp_path, size):
    path = write_s390(tmp_path / "dump", bytes(8192))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(FormatError, match="libkdumpfile: "):
        open_dump(path)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_diskdump(tmp_path, version):
    # Also netdump's, where it saved to a disk: kdump's format began as this one.
    pages = {paddr // 4096: data for paddr, data in PAGES.items()}
    made = KdumpFile(pages, [4, 5], version, max_mapnr=4100).build()
    path = tmp_path / "dump"
    path.write_bytes(b"DISKDUMP" + made[8:])
    dump = open_dump(path)
    assert (dump.format, dump.machine) == ("Diskdump (libkdumpfile)", 62)
    assert dump.excluded == 8192
    for paddr, data in PAGES.items():
        assert dump.read_phys(paddr, 4096) == data
    for paddr, why in ((0x4000, FaultReason.EXCLUDED), (0x6000, FaultReason.HOLE)):
        with pytest.raises(FaultError) as raised:
            dump.read_phys(paddr, 1)
        assert raised.value.reason is why
    dump.close()


def test_a_cut_diskdump_is_one_error(tmp_path):
    pages = {paddr // 4096: data for paddr, data in PAGES.items()}
    made = KdumpFile(pages, version=1, max_mapnr=4100).build()
    path = tmp_path / "dump"
    for size in (464, 4096, 3 * 4096, 6 * 4096, len(made) - 3000, len(made) - 1):
        path.write_bytes(b"DISKDUMP" + made[8:size])
        with pytest.raises(FormatError, match="libkdumpfile: "):
            open_dump(path)


def test_without_the_library_it_is_named(lkcd, monkeypatch):
    # This Python has it not: it is Debian's package, for Debian's Python.
    monkeypatch.setattr(library.shutil, "which", lambda name: sys.executable)
    with pytest.raises(FormatError) as raised:
        open_dump(lkcd)
    assert "on Debian install python3-libkdumpfile" in str(raised.value)
    assert "\n" not in str(raised.value)


TOLD = {"format": "x", "arch": "x86_64", "ram": [[0, 4096]], "there": [[0, 4096]],
        "damaged": [], "problem": None, "vmcoreinfo": None, "prstatus": []}  # fmt: skip


@pytest.fixture
def worker(lkcd, tmp_path, monkeypatch):
    """Put a program in the place of the worker; return a function that does so."""

    def put(body, **changes):
        told = json.dumps(TOLD | changes)
        program = tmp_path / "worker.py"
        program.write_text(f"import os, sys, time\nprint('{told}', flush=True)\n{body}")
        monkeypatch.setattr(kdumpfile_worker, "__file__", str(program))
        return open_dump(lkcd)

    return put


PYKDUMPFILE = """
MACHPHYSADDR = 1
class NoDataError(Exception): pass
class Blob:
    def get(self): return b"OSRELEASE=1"
class Bitmap:
    def find_set(self, at):
        if at > 2: raise NoDataError()
        return max(at, 1)
    def find_clear(self, at): return 3
class Context:
    attr = {"file": {"description": "new", "pagemap": Bitmap()}, "max_pfn": 9,
            "arch": {"name": "x86_64"}, "linux": {"vmcoreinfo": {"raw": Blob()}}}
    def open(self, path): self.path = path
    def read(self, space, address, size):
        assert space == MACHPHYSADDR
        if address == 0x2000: raise NoDataError("no")
        return memoryview(bytes([size]) * size)
"""


def test_the_new_module_has_other_names(lkcd, tmp_path, monkeypatch):
    # pykdumpfile, which is Debian's python3-libkdumpfile from 0.5.5 on.
    (tmp_path / "kdumpfile.py").write_text(PYKDUMPFILE)
    program = tmp_path / "worker.py"
    program.write_text(
        f"import runpy, sys\nsys.path[:0] = [{str(tmp_path)!r}]\n"
        f"runpy.run_path({kdumpfile_worker.__file__!r}, run_name='__main__')"
    )
    monkeypatch.setattr(kdumpfile_worker, "__file__", str(program))
    dump = open_dump(lkcd)
    assert dump.format == "new (libkdumpfile)"
    assert [(e.paddr, e.size) for e in dump.extents] == [(0x1000, 0x2000)]
    assert [note.desc for note in dump.notes] == [b"OSRELEASE=1"]
    assert dump.read_phys(0x1000, 7) == b"\7" * 7
    with pytest.raises(FaultError, match="not in the dump"):
        dump.read_phys(0x2000, 1)
    dump.close()


def test_its_death_is_one_error_and_it_is_started_again(worker, tmp_path):
    count = tmp_path / "count"
    dump = worker(
        f"open({str(count)!r}, 'a').write('x')\n"
        "sys.stdin.buffer.read(12)\n"
        "os.kill(os.getpid(), 11)"
    )
    for _ in range(2):
        with pytest.raises(FormatError, match=r"died of this file \(signal 11\)"):
            dump.read_phys(0, 8)
    assert count.read_text() == "xx"
    dump.close()


def test_its_silence_is_one_error(worker, monkeypatch):
    monkeypatch.setattr(library, "_READ_LIMIT_S", 0.2)
    dump = worker("time.sleep(100)")
    with pytest.raises(FormatError, match="libkdumpfile does not answer"):
        dump.read_phys(0, 8)
    dump.close()


def test_answers_that_are_none(worker):
    # Not before it is asked, or they would come together with what it tells first.
    dump = worker(
        "sys.stdin.buffer.read(12)\n"
        "sys.stdout.buffer.write(bytes(5)); sys.stdout.flush(); input()"
    )
    with pytest.raises(FormatError, match="libkdumpfile at 0x0: "):
        dump.read_phys(0, 8)
    dump.close()


class EverySecondPage:
    """A map of pages as the library has it."""

    def find_set(self, at):
        return at + at % 2

    def find_clear(self, at):
        return at + 1 - at % 2


@pytest.mark.parametrize("limit", [8, 100])
def test_more_runs_of_pages_than_are_listed(monkeypatch, limit):
    monkeypatch.setattr(kdumpfile_worker, "_MAX_RUNS", limit)
    attributes = {"max_pfn": 40, "file": {"pagemap": EverySecondPage()}}
    pages = kdumpfile_worker._find_mapped_pages(attributes, 4096)
    count = min(limit, 20)
    assert pages.there == [(8192 * i, 4096) for i in range(count)]
    assert (pages.problem is not None) == (limit < 20)
