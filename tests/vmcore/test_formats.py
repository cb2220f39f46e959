# SPDX-License-Identifier: GPL-2.0-or-later
"""One crash in all formats: the same rows and pages as those of the ELF vmcore.

test-kernels/variants.py makes them of small-6.1, one of each of the others.
"""

from __future__ import annotations

import json
import random
import subprocess
from contextlib import closing

import pytest
from support.ask_drgn import ask_drgn
from support.mksadump import write_disks, write_sadump
from support.stock_gdb import INIT, run_gdb

from gdbkdump.cli import main
from gdbkdump.commands import find_command
from gdbkdump.errors import FaultError, FaultReason
from gdbkdump.formats import open_dump
from gdbkdump.kernel.sched import tasks
from gdbkdump.render import json_text
from gdbkdump.session import open_session

PAGE = 4096
COMPRESSED = [
    "raw.d31", "zlib.d0", "zlib.d31", "lzo.d17", "lzo.d31", "snappy.d31", "zstd.d31",
    "split1", "lzo.flat",
]  # fmt: skip
ELF = ["elf.d1", "elf.d8", "elf.d31", "elf.flat"]
CUT = ["elf.full-disk", "lzo.full-disk", "lzo.killed"]


@pytest.fixture(scope="module")
def variant(dump_dir):
    """Return the path of a dump in another format."""
    folder = dump_dir / "variants"
    if not folder.exists():
        pytest.skip("no variants: python test-kernels/variants.py makes them")

    def find(name):
        path = folder / name
        if not path.exists():
            pytest.skip(f"{name} is not made of this dump")
        return path

    return find


@pytest.fixture(scope="module")
def elf(dump_dir):
    with closing(open_dump(dump_dir / "vmcore")) as dump:
        yield dump


def rows(session, text):
    name, *words = text.split()
    command = find_command(name)
    result = command.run(session, command.parse(words))
    return [json.loads(line) for line in json_text.lines(result)]


_TRY = """python exec('''
def try_read(address):
    try:
        return gdb.selected_inferior().read_memory(address, 8).tobytes().hex()
    except gdb.MemoryError as error:
        return str(error)
''')"""

# What the file says of itself.
OWN = ("dumpfile", "format", "header", "dump_level")


@pytest.mark.parametrize("name", [*COMPRESSED, *ELF])
def test_rows_are_those_of_the_elf_vmcore(variant, session, name):
    with closing(open_session(variant(name))) as other:
        assert other.problems == session.problems
        for text in ("klog", "kps", "kbt -a", "kmod", "kregs -a"):
            assert rows(other, text) == rows(session, text)
        facts = [rows(which, "ksys")[0] for which in (other, session)]
        mine, theirs = [{k: v for k, v in f.items() if k not in OWN} for f in facts]
        assert mine == theirs
        assert len(mine) > 10


@pytest.fixture(scope="module")
def sadump(variant, elf, tmp_path_factory):
    """The same memory as the firmware of some machines would write it, on two disks."""
    variant("zlib.d31")  # one dump is as good as another
    path = tmp_path_factory.mktemp("sadump") / "whole"
    frames = {
        pfn
        for extent in elf.extents
        for pfn in range(-(-extent.paddr // PAGE), (extent.paddr + extent.size) // PAGE)
    }
    pages = ((pfn * PAGE, elf.read_phys(pfn * PAGE, PAGE)) for pfn in sorted(frames))
    write_sadump(path, pages, max(frames) + 1)
    disks = [path.with_name("disk1"), path.with_name("disk2")]
    write_disks(disks, path, [len(frames) // 3])
    yield path, disks
    for each in (path, *disks):
        each.unlink()


def test_a_sadump_shows_the_same(sadump, session, dump_dir):
    path, disks = sadump
    for files in ([path], disks):
        with closing(open_session(*files)) as other:
            for text in ("klog", "kps", "kbt -a", "kmod", "kregs -a"):
                assert rows(other, text) == rows(session, text)
    commands = ("bt -frame-arguments none", "kps wl-crash")
    shown = [
        run_gdb(dump_dir / "vmlinux", core, *commands).splitlines()
        for core in (path, dump_dir / "vmcore")
    ]
    assert frames(shown[0]) == frames(shown[1])
    assert shown[0][-1] == shown[1][-1]


def read(dump, pfn):
    try:
        return dump.read_phys(pfn * PAGE, PAGE)
    except FaultError as error:
        return error.reason


def sample(dump, count):
    """Return page frame numbers, as many of RAM as there may be elsewhere."""
    chance = random.Random(9)
    frames = [
        pfn
        for extent in dump.extents
        for pfn in range(extent.paddr // PAGE, (extent.paddr + extent.size) // PAGE)
    ]
    top = max(frames) + 100
    return chance.sample(frames, count) + chance.sample(range(top), count // 10)


@pytest.mark.parametrize("name", [*COMPRESSED, *ELF, *CUT])
def test_pages_are_those_of_the_elf_vmcore(variant, elf, name):
    seen = dict.fromkeys(FaultReason, 0)
    right = 0
    with closing(open_dump(variant(name))) as dump:
        for pfn in sample(elf, 12000):
            page, whole = read(dump, pfn), read(elf, pfn)
            if isinstance(page, bytes):
                assert page == whole
                right += 1
                continue
            seen[page] += 1
            if page is FaultReason.EXCLUDED and name == "elf.d1":
                # Level 1 leaves out pages of zeros and nothing else.
                assert whole == bytes(PAGE)
            # What makedumpfile did not come to is not in an ELF file's headers at all.
            if page is FaultReason.HOLE and name != "elf.full-disk":
                assert whole is FaultReason.HOLE
    assert right > 1000
    assert seen[FaultReason.CORRUPT] == 0
    assert bool(seen[FaultReason.MISSING]) == (name in CUT)
    assert bool(seen[FaultReason.EXCLUDED]) == (name != "zlib.d0")


@pytest.mark.parametrize("name", ["zlib.d31", "lzo.full-disk", "lzo.killed"])
def test_pages_are_counted(variant, elf, name):
    # Each of them, by what reading it says.
    found = dict.fromkeys(FaultReason, 0)
    with closing(open_dump(variant(name))) as dump:
        end = max(e.paddr + e.size for e in elf.extents)
        for pfn in range(end // PAGE):
            result = read(dump, pfn)
            if not isinstance(result, bytes):
                found[result] += 1
        assert dump.missing == found[FaultReason.MISSING] * PAGE
        assert dump.excluded == found[FaultReason.EXCLUDED] * PAGE > 0
        assert dump.is_incomplete == (name != "zlib.d31")


@pytest.mark.parametrize("name", CUT)
def test_a_dump_that_was_cut_shows_what_is_there(variant, session, name):
    with closing(open_session(variant(name))) as cut:
        assert cut.dump.is_incomplete
        assert cut.dump.missing > 0
        assert any("could not write all" in p or "is cut" in p for p in cut.problems)
        there = {task.address: task for task in tasks(session.kernel)}
        some = rows(cut, "kps")
        tasks_there = [row for row in some if "task" in row]
        assert 20 < len(tasks_there) < len(there)
        for row in tasks_there:
            task = there[int(row["task"], 16)]
            assert (row["pid"], row["comm"]) == (task.pid, task.comm.decode())
        # What is not there is told, with the reason.
        notes = [row["note"] for row in some if "note" in row]
        assert any("lost" in note or "not RAM" in note for note in notes)
        assert rows(cut, "klog") == rows(session, "klog")


def test_an_excluded_page_is_said_to_be(variant, session, elf, capsys):
    path = variant("lzo.d31")
    with closing(open_dump(path)) as dump:
        pfn = next(
            pfn
            for pfn in sample(elf, 5000)
            if read(dump, pfn) is FaultReason.EXCLUDED and any(read(elf, pfn))
        )
    for name in ("lzo.d31", "elf.d31", "elf.flat"):
        assert main([str(variant(name)), "-c", f"krd -p {pfn * PAGE:#x}"]) in (0, 1)
        out, err = capsys.readouterr()
        assert "page excluded by makedumpfile" in out + err
        assert f"{pfn * PAGE:x}:  0000" not in out


def test_what_was_erased_is_told(variant):
    with closing(open_session(variant("lzo.erased"))) as other:
        facts = rows(other, "ksys")[0]
    assert facts["erased"] == "erase init_uts_ns.name.nodename size 65"
    assert set(facts["nodename"]) == {"X"}
    assert facts["dump_level"] == 31


@pytest.mark.parametrize("words", [("split1",), ("split3",), ("split2", "split1")])
def test_a_split_dump_by_some_of_its_names(variant, session, words, capsys):
    paths = [str(variant(name)) for name in words]
    if len(paths) > 1:
        paths.append(str(variant("split3")))
    assert main([*paths, "-c", "ksys", "-c", "kps -A"]) == 0
    out, _ = capsys.readouterr()
    for name in ("split1", "split2", "split3"):
        assert f"variants/{name}" in out.splitlines()[1]
    assert [line for line in out.splitlines() if "wl-crash" in line]


def test_a_split_dump_without_a_part(variant, elf, tmp_path):
    for name in ("split1", "split3"):
        (tmp_path / name).symlink_to(variant(name))
    found = dict.fromkeys(FaultReason, 0)
    with (
        closing(open_dump(tmp_path / "split1")) as dump,
        closing(open_dump(variant("split1"))) as whole,
    ):
        assert "no file with pages" in dump.problems[0]
        for pfn in sample(elf, 8000):
            mine, theirs = read(dump, pfn), read(whole, pfn)
            if mine is FaultReason.SPLIT:
                assert theirs is FaultReason.EXCLUDED or isinstance(theirs, bytes)
                found[mine] += 1
            else:
                assert mine == theirs
    assert found[FaultReason.SPLIT] > 100


def test_gdb_opens_a_split_dump_whose_tasks_are_not_there(variant, session, tmp_path):
    # The kernel is in the second of them, most of what it allocated in the last.
    for name in ("split1", "split2"):
        (tmp_path / name).symlink_to(variant(name))
    path = tmp_path / "split1"
    command = ["gdb", "-nx", "-q", "-batch", "-x", INIT, "-ex", f"kopen {path}"]
    command += ["-ex", "p sizeof(struct list_head)", "-ex", "x/s linux_banner"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no file with pages" in done.stdout
    assert "$1 = 16\n" in done.stdout
    banner = session.kernel.reader.c_string(session.kernel.symbol("linux_banner"), 64)
    assert banner.decode() in done.stdout
    (tmp_path / "split2").unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no file with pages" in done.stderr
    assert "page tables are unreadable" in done.stderr


@pytest.mark.parametrize("name", ["raw.d31", "zlib.d31", "lzo.d31", "zstd.d31"])
def test_drgn_reads_the_same(variant, dump_dir, name):
    with closing(open_session(variant(name))) as other:
        chance = random.Random(4)
        found = chance.sample(tasks(other.kernel), 40)
        asked = [(task.address, 256) for task in found]
        asked += [(task.address + 4096, 2048) for task in found]
        asked.append((other.kernel.symbol("linux_banner"), 100))
        mine = [other.kernel.reader.read(*item).hex() for item in asked]
    assert ask_drgn(dump_dir, reads=asked, core=variant(name))["reads"] == mine


def test_gdb_takes_all_files_of_a_split_dump(variant, dump_dir, tmp_path):
    # Where they cannot be found: by names that are no numbers.
    parts = []
    for i, letter in enumerate("abc"):
        path = tmp_path / f"part-{letter}"
        path.symlink_to(variant(f"split{i + 1}"))
        parts.append(path)
    words = ["gdb", "-nx", "-batch", dump_dir / "vmlinux", *parts, "-x", INIT]
    done = subprocess.run(
        [*words, "-ex", "ksys"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "part-a, " in done.stdout
    assert "part-c" in done.stdout
    assert "no file with pages" not in done.stdout


def frames(lines):
    # gdb says where a core begins before it is taught better.
    first = max(i for i, line in enumerate(lines) if line.startswith("#0 "))
    return [line for line in lines[first:] if line.startswith("#")]


def test_gdb_shows_the_same(variant, session, dump_dir, elf):
    # Though it calls three of them no core dump: "file format not recognized".
    (delta,) = {w[2] for w in session.kernel.memory.windows if w[0] >> 39 != 0x1FFFFFF}
    with closing(open_dump(variant("elf.d31"))) as dump:
        pfn = next(
            pfn
            for pfn in sample(elf, 5000)
            if read(dump, pfn) is FaultReason.EXCLUDED and any(read(elf, pfn))
        )
    look = f"python print(try_read({pfn * PAGE + delta:#x}))"
    commands = ("bt -frame-arguments none", _TRY, look, "p $ktask(1)->comm", "kps -A")
    vmlinux = dump_dir / "vmlinux"
    usual = run_gdb(vmlinux, dump_dir / "vmcore", *commands).splitlines()
    assert len(frames(usual)) > 5
    assert read(elf, pfn)[:8].hex() in usual
    for name in ("elf.d31", "elf.flat", "lzo.d31", "lzo.flat"):
        lines = run_gdb(vmlinux, variant(name), *commands).splitlines()
        assert frames(lines) == frames(usual)
        assert lines[-6:] == usual[-6:]
        # gdb reads no zeros where a page was left out.
        assert f"Cannot access memory at address {pfn * PAGE + delta:#x}" in lines
