# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory, files and cores of processes of dumps that lack pages or are not flat."""

from __future__ import annotations

import io
import struct
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from elftools.elf.elffile import ELFFile

from gdbkdump.errors import CommandError, CorruptError, FaultError, FaultReason
from gdbkdump.kernel.process import Process
from gdbkdump.kernel.usermemory import Piece, Where
from gdbkdump.kernel.userregs import UserRegisters
from gdbkdump.kernel.vma import Vma
from gdbkdump.target import usercore, userfiles, userimage
from gdbkdump.target.elffile import NOBITS, Section, elf_file
from gdbkdump.target.usercore import ProcessCore, UserProcess, UserThread

PAGE = 4096
START = 0x7F0000000000


class Dump:
    """Pages by physical address; flat ones are in the file at half their address."""

    def __init__(self, pages, *, is_flat=True):
        self.pages = pages
        self.is_flat = is_flat
        self.path = None

    def file_range(self, paddr):
        if not self.is_flat or paddr // PAGE not in self.pages:
            return None
        return paddr // 2, PAGE - paddr % PAGE

    def read_phys(self, paddr, size):
        data = b""
        for at in range(paddr, paddr + size):
            if at // PAGE not in self.pages:
                raise FaultError("physical", at, FaultReason.EXCLUDED)
            data += bytes([self.pages[at // PAGE]])
        return data


class Mapped(NamedTuple):
    name: bytes
    pieces: list[tuple[int, Where, int | None]]
    flags: int = 5
    file: int = 0


@pytest.fixture
def image_of(monkeypatch):
    """An image of mappings: lists of pages, where they are, of which frame."""

    def make(dump, *mapped):
        found, pieces, at = [], {}, START
        for each in mapped:
            begin = at
            rows = []
            for count, where, frame in each.pieces:
                paddr = None if frame is None else frame * PAGE
                rows.append(Piece(at, at + count * PAGE, where, paddr))
                at += count * PAGE
            vma = Vma(begin, begin, at, each.flags, 3, each.file, 0, 0, 0)
            found.append(vma)
            pieces[begin] = rows
            at += PAGE
        names = {vma.start: each.name for vma, each in zip(found, mapped, strict=True)}
        pages = SimpleNamespace(problems=[], pieces=lambda vma: pieces[vma.start])
        monkeypatch.setattr(userimage, "UserPages", lambda *_: pages)
        monkeypatch.setattr(userimage, "vmas", lambda *_: found)
        monkeypatch.setattr(
            userimage,
            "VmaNames",
            lambda *_: SimpleNamespace(name=lambda vma: names[vma.start]),
        )
        process = Process(None, (), 0)
        return userimage.UserImage(None, dump, process)

    return make


@pytest.mark.parametrize("is_flat", [True, False])
def test_pages_that_the_dump_lacks(image_of, is_flat):
    dump = Dump({8: 1, 9: 2, 11: 3}, is_flat=is_flat)
    image = image_of(
        dump,
        Mapped(b"", [(4, Where.MAPPED, 8), (2, Where.UNTOUCHED, None)]),
        Mapped(b"/f", [(1, Where.SWAPPED, None), (1, Where.PAGE_CACHE, 20)]),
    )
    assert [
        (r.start - START, r.end - START, r.paddr) for r in image.mappings[0].runs
    ] == [
        (0, 2 * PAGE, 8 * PAGE),
        (3 * PAGE, 4 * PAGE, 11 * PAGE),
        (4 * PAGE, 6 * PAGE, None),
    ]
    assert (image.present, image.untouched) == (3 * PAGE, 2 * PAGE)
    assert image.missing == {
        FaultReason.EXCLUDED.value: 2 * PAGE,
        Where.SWAPPED.value: PAGE,
    }
    assert image.read(START + PAGE - 1, 2) == b"\1\2"
    assert image.read(START + 4 * PAGE - 1, 2) == b"\3\0"
    for at in (START + 2 * PAGE - 1, START + 6 * PAGE - 1, START - 1, 0):
        with pytest.raises(FaultError):
            image.read(at, 2)


def test_what_an_address_is_in(image_of):
    image = image_of(
        Dump({}),
        Mapped(b"a", [(1, Where.UNTOUCHED, None)]),
        Mapped(b"b", [(1, Where.UNTOUCHED, None)]),
    )
    found = [image.find(START + at) for at in (0, PAGE - 1, PAGE, 2 * PAGE, 3 * PAGE)]
    assert [each and each.name for each in found] == [b"a", b"a", None, b"b", None]


@pytest.fixture
def core_of(monkeypatch, image_of):
    """The bytes of a core of mappings."""
    monkeypatch.setattr(usercore, "_psinfo", lambda *_: b"info")
    monkeypatch.setattr(usercore, "auxv", lambda *_: bytes(16))
    arch = SimpleNamespace(machine=62, make_prstatus=lambda pid, _: b"%d" % pid)
    kernel = SimpleNamespace(arch=arch)

    def make(dump, *mapped, threads=(7, 8), first=8):
        tasks = [SimpleNamespace(pid=pid, address=pid) for pid in threads]
        known = [UserThread(task, UserRegisters({"ip": 0})) for task in tasks]
        known.append(UserThread(SimpleNamespace(pid=9), UserRegisters(None, "why")))
        selected = next(task for task in tasks if task.pid == first)
        user = UserProcess(
            kernel, dump, selected, Process(None, (), 0), known, image_of(dump, *mapped)
        )
        core = ProcessCore(user)
        file = io.BytesIO()
        core.write(file, lambda *_: None, "")
        assert len(file.getvalue()) == core.size
        return ELFFile(file)

    return make


def test_a_core_holds_what_there_is(core_of):
    dump = Dump({8: 1, 9: 2, 11: 0, 12: 4})
    elf = core_of(
        dump,
        Mapped(b"/f", [(4, Where.MAPPED, 8), (1, Where.MAPPED, 12)], file=1),
        Mapped(b"", [(2, Where.UNTOUCHED, None), (1, Where.SWAPPED, None)], 3),
    )
    loads = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
    found = [
        (s["p_vaddr"] - START, s["p_memsz"], s["p_filesz"], s["p_flags"]) for s in loads
    ]
    # Excluded and swapped pages have none; zeros have no bytes.
    assert found == [
        (0, 2 * PAGE, 2 * PAGE, 5),
        (3 * PAGE, 2 * PAGE, 2 * PAGE, 5),
        (6 * PAGE, 2 * PAGE, 0, 6),
    ]
    assert loads[0].data() == b"\1" * PAGE + b"\2" * PAGE
    assert loads[1].data() == bytes(PAGE) + b"\4" * PAGE


def test_files_are_named_where_they_are_in_the_core(core_of):
    elf = core_of(
        Dump({8: 1, 10: 3}), Mapped(b"/some file", [(3, Where.MAPPED, 8)], file=1)
    )
    (notes,) = [s for s in elf.iter_segments() if s["p_type"] == "PT_NOTE"]
    (files,) = [n for n in notes.iter_notes() if n["n_type"] == "NT_FILE"]
    desc = files["n_desc"]
    entries = desc["Elf_Nt_File_Entry"]
    # The mapping begins at page 3 of the file.
    assert [(e["vm_start"] - START, e["vm_end"] - START, e["page_offset"]) for e in
            entries] == [(0, PAGE, 3), (2 * PAGE, 3 * PAGE, 5)]  # fmt: skip
    assert list(desc["filename"]) == [b"/some file"] * 2


def test_the_thread_that_was_asked_for_comes_first(core_of):
    elf = core_of(Dump({8: 1}), Mapped(b"", [(1, Where.MAPPED, 8)]))
    (notes,) = [s for s in elf.iter_segments() if s["p_type"] == "PT_NOTE"]
    found = [(n["n_type"], n["n_descdata"]) for n in notes.iter_notes()]
    assert [data for type_, data in found if type_ == "NT_PRSTATUS"] == [b"8", b"7"]


# What the dynamic linker tells.

PROGRAM, DYNAMIC, DEBUG, MAP = 0x10000, 0x11000, 0x12000, 0x13000


class Memory:
    """User memory that is also an image: one mapping a page, each with a file."""

    def __init__(self):
        self.data = bytearray(0x20000)

    def put(self, at, *words):
        self.data[at : at + 8 * len(words)] = struct.pack(f"<{len(words)}Q", *words)

    def read(self, address, size):
        if not PROGRAM <= address <= len(self.data) - size:
            raise FaultError("user", address, FaultReason.UNMAPPED)
        return bytes(self.data[address : address + size])


@pytest.fixture
def linked():
    """A program with two libraries."""
    memory = Memory()
    # PT_PHDR and PT_DYNAMIC; the program was moved by 0x10000.
    memory.data[PROGRAM + 64 : PROGRAM + 176] = struct.pack(
        "<IIQQQQQQIIQQQQQQ", 6, 4, 64, 64, 64, 112, 112, 8, 2, 6, 0, 0x1000, 0, 0, 0, 8
    )
    memory.put(DYNAMIC, 1, 5, 21, DEBUG, 0, 0)
    memory.put(DEBUG, 1, MAP)
    names = (b"", b"/lib/one.so", b"/lib/two.so")
    for number, name in enumerate(names):
        at = MAP + 0x100 * number
        after = at + 0x100 if number < 2 else 0
        memory.put(at, 0x700 + number, at + 0x80, 0x1000 * number, after, 0)
        memory.data[at + 0x80 : at + 0x80 + len(name)] = name
    return memory, {3: PROGRAM + 64, 4: 56, 5: 2}


def test_the_linkers_list(linked):
    assert list(userfiles._link_maps(*linked)) == [
        (b"", 0, 0x700),
        (b"/lib/one.so", 0x1000, 0x701),
        (b"/lib/two.so", 0x2000, 0x702),
    ]


def test_a_list_that_loops(linked):
    linked[0].put(MAP + 0x218, MAP)
    with pytest.raises(CorruptError, match="list loops at 0x13000"):
        list(userfiles._link_maps(*linked))


def test_a_list_that_leads_nowhere(linked):
    linked[0].put(MAP + 0x118, 0xDEAD0000)
    with pytest.raises(FaultError):
        list(userfiles._link_maps(*linked))


@pytest.mark.parametrize(
    "vector",
    [{}, {3: 0x10040}, {3: 0x10040, 4: 32, 5: 2}, {3: 0x10040, 4: 56, 5: 9999}],
)
def test_a_program_without_a_list(linked, vector):
    # Static ones, and vectors that cannot be.
    assert list(userfiles._link_maps(linked[0], vector)) == []


def test_a_dynamic_section_without_end(linked):
    memory, vector = linked
    for at in range(DYNAMIC, len(memory.data) - 16, 16):
        memory.put(at, 1, 1)
    with pytest.raises(FaultError):
        memory.put(DYNAMIC + 16, 21, 0xDEAD0000)
        list(userfiles._link_maps(memory, vector))
    memory.put(DYNAMIC + 16, 1, 1)
    assert list(userfiles._link_maps(memory, vector)) == []


def test_names_stay_below_the_folder(tmp_path):
    for name in (b"/lib/x", b"lib//./x", b"../../lib/x", b"/../lib/../../x/../lib/x"):
        path = userfiles.path_below(tmp_path, name)
        assert path.is_relative_to(tmp_path)
        assert ".." not in path.parts
    assert userfiles.path_below(tmp_path, b"../../lib/x") == tmp_path / "lib/x"


@pytest.mark.parametrize(
    "data", [b"", b"\x7fELF", bytes(4096), b"\x7fELF\2\1" + b"\xff" * 90]
)
def test_files_without_a_build_id(data):
    def read(offset, size):
        return data[offset : offset + size]

    assert userfiles.read_build_id(read) is None


def test_a_device_is_not_opened_for_its_build_id(tmp_path):
    assert userfiles.file_build_id(tmp_path) is None
    assert userfiles.file_build_id(tmp_path / "none") is None
    with open("/dev/zero", "rb"):
        link = tmp_path / "zero"
        link.symlink_to("/dev/zero")
        assert userfiles.file_build_id(link) is None


def test_a_32_bit_program_is_refused(monkeypatch):
    task = SimpleNamespace(tgid=7, address=0x1000)
    process = Process(task, (task,), 1)
    monkeypatch.setattr(usercore, "running_tasks", lambda _: {})
    monkeypatch.setattr(usercore, "find_process", lambda *_: process)
    monkeypatch.setattr(
        usercore, "user_registers", lambda *_: UserRegisters({"cs": 0x23, "ss": 0x2B})
    )
    arch = SimpleNamespace(is_compat=lambda registers: registers["cs"] == 0x23)
    with pytest.raises(CommandError, match="process 7 is a 32-bit program"):
        usercore.open_process(SimpleNamespace(arch=arch), None, task)


def test_files_that_do_not_say_where_their_eh_frame_is(tmp_path):
    memory = Memory()
    for data in (b"", b"\x7fELF" + bytes(60), b"\xff" * 4096, bytes(4096)):
        path = tmp_path / "debug"
        path.write_bytes(data)
        with pytest.raises(CorruptError):
            userfiles.unwind_file(memory, path, 0)


def test_an_eh_frame_out_of_the_process(tmp_path):
    path = tmp_path / "debug"
    path.write_bytes(elf_file([Section(".eh_frame", NOBITS, b"", 2, 0x2000, size=8)]))
    memory = Memory()
    memory.put(0x12000, 0x1122334455667788)
    elf = ELFFile(io.BytesIO(userfiles.unwind_file(memory, path, 0x10000)))
    section = elf.get_section_by_name(".eh_frame")
    assert section["sh_addr"] == 0x12000
    assert section.data() == bytes.fromhex("8877665544332211")
    with pytest.raises(FaultError):
        userfiles.unwind_file(memory, path, 0xDEAD0000)
