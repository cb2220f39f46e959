# SPDX-License-Identifier: GPL-2.0-or-later
"""A dynamic program whose memory is in every place it can be (test-kernels/process)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.dap_client import DapClient
from support.process import copy_program, open_process
from support.stock_gdb import INIT, newest_gdb, run_gdb

from gdbkdump.commands import find_command
from gdbkdump.errors import FaultError
from gdbkdump.kernel.usermemory import UserPages, Where
from gdbkdump.session import open_session
from gdbkdump.target.userfiles import (
    copy_file,
    file_build_id,
    library_files,
    program_file,
)

MARKER = b"gdbkdump-process-marker\0"
PAGE, PAGES, HUGE = 4096, 16, 2 << 20


@pytest.fixture(scope="module")
def opened(process_dir):
    """The dump, opened by the engine alone."""
    session = open_session(process_dir / "vmcore")
    yield session
    session.close()


@pytest.fixture(scope="module")
def user(opened):
    """The process as debuggers see it."""
    return open_process(opened, "us-main")


@pytest.fixture(scope="module")
def truth(process_dir):
    return json.loads((process_dir / "truth.json").read_text())


@pytest.fixture(scope="module")
def told(truth):
    """What the program said of itself."""
    (row,) = truth["workload"]
    return row


@pytest.fixture(scope="module")
def places(user, told):
    """Where each page of what begins at an address is; its name is one of ``told``."""
    pages = UserPages(user.kernel, user.process.mm)

    def find(name, count=PAGES):
        start = int(told[name], 16)
        end = start + count * PAGE
        vma = user.image.find(start).vma
        found = {}
        for piece in pages.pieces(vma):
            low, high = max(piece.start, start), min(piece.end, end)
            for at in range(low, high, PAGE):
                found[(at - start) // PAGE] = piece.where
        return [found[i] for i in range(count)]

    return find


def check_pages(user, told, name, numbers):
    """Check that pages have their number and the marker, as the program wrote them."""
    start = int(told[name], 16)
    for i in numbers:
        data = user.image.read(start + i * PAGE, 64 + len(MARKER))
        assert int.from_bytes(data[:4], "little") == i, (name, i)
        assert data[64:] == MARKER, (name, i)


def test_memory_that_may_not_be_touched(user, told, places):
    assert places("none") == [Where.MAPPED] * PAGES
    check_pages(user, told, "none", range(PAGES))


def test_huge_pages(user, told, places):
    for name in ("thp", "huge"):
        assert places(name, HUGE // PAGE) == [Where.MAPPED] * (HUGE // PAGE)
        check_pages(user, told, name, range(HUGE // PAGE))
    # The kernel had one to give: a leaf of 2 MiB.
    start = int(told["thp"], 16)
    table = user.kernel.memory.page_table
    mm = user.kernel.object("mm_struct", user.process.mm)
    own = table.with_root(user.kernel.memory.translate(mm["pgd"]))
    leaves = list(own.user_pages(start, start + HUGE, []))
    assert [leaf.size for leaf in leaves] == [HUGE]


def test_memory_that_is_swapped_out(user, told, places):
    found = places("swapped")
    # A page or two may have been kept or come back.
    assert found.count(Where.SWAPPED) >= PAGES - 2
    assert set(found) <= {Where.SWAPPED, Where.MAPPED}
    start = int(told["swapped"], 16)
    for i, where in enumerate(found):
        if where is Where.SWAPPED:
            with pytest.raises(FaultError):
                user.image.read(start + i * PAGE, 8)


def test_files_in_the_page_cache_alone(user, told, places):
    assert places("cached") == [Where.PAGE_CACHE] * PAGES
    check_pages(user, told, "cached", range(PAGES))
    check_pages(user, told, "deleted", [0])


def test_files_that_the_page_cache_has_dropped(user, told, places):
    # But for the page that the process has changed.
    wanted = [Where.NOT_CACHED] * PAGES
    wanted[5] = Where.MAPPED
    assert places("dropped") == wanted
    check_pages(user, told, "dropped", [5])
    assert user.image.read(int(told["dropped"], 16) + 5 * PAGE + 8, 1) == b"x"


def test_a_mapping_that_is_longer_than_its_file(user, told, places):
    assert places("beyond", 4) == [Where.PAGE_CACHE, *[Where.BEYOND_FILE] * 3]
    check_pages(user, told, "beyond", [0])


def test_shared_memory_that_was_written_in_part(user, told, places):
    found = places("shared")
    assert found[2:] == [Where.UNTOUCHED] * (PAGES - 2)
    check_pages(user, told, "shared", [0, 1])
    assert user.image.read(int(told["shared"], 16) + 7 * PAGE, 64) == bytes(64)


def test_mappings_are_those_of_proc(user, truth):
    proc = truth["processes"][str(user.process.pid)]
    found = [
        (m.vma.start, m.vma.end, m.vma.permissions, m.name.decode())
        for m in user.image.mappings
    ]
    assert found == [
        (m["start"], m["end"], m["flags"], m["path"])
        for m in proc["maps"]
        if m["path"] != "[vsyscall]"
    ]
    assert b"/mnt/data/deleted (deleted)" in {m.name for m in user.image.mappings}
    assert b"/memfd:us memfd (deleted)" in {m.name for m in user.image.mappings}


def test_programs_and_libraries_with_their_builds(user, opened, tmp_path):
    kernel, dump = user.kernel, opened.dump
    program = program_file(kernel, dump, user.process)
    assert program.name == b"/bin/program"
    libraries = library_files(kernel, dump, user.process, user.image)
    assert [library.name for library in libraries] == [
        b"/bin/liblibrary.so",
        b"/lib/x86_64-linux-gnu/libc.so.6",
        b"/lib64/ld-linux-x86-64.so.2",
    ]
    copy = copy_program(opened, user, tmp_path / "program")
    # An ELF reader that is not ours, on what came out of the page cache.
    output = subprocess.run(
        ["readelf", "-Wn", copy], capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r"Build ID: (\w+)", output)[1] == program.build_id
    assert file_build_id(copy) == program.build_id
    assert len({each.build_id for each in (program, *libraries)} - {None}) == 4


@pytest.fixture(scope="module", params=["debian", "newest"])
def gdb(request):
    """Arguments of run_gdb: they differ in how they look at a core's files."""
    if request.param == "debian":
        return {}
    # It needs packages of our Python.
    return {"gdb": str(newest_gdb()), "environment": {"VIRTUAL_ENV": sys.prefix}}


@pytest.fixture(scope="module")
def in_gdb(process_dir, gdb):
    """What stock gdb says once kuser has opened the process."""
    commands = [
        "kuser us-main --json", "bt", "info sharedlibrary", "p library_counter",
        "p corners", "p library_number", "p &corners", "kuser us-float --json",
        "p/x $xmm5.uint128", "p $st0", "p library_number", "bt",
    ]  # fmt: skip
    marked = [word for text in commands for word in (f"echo == {text}\\n", text)]
    files = process_dir / "vmlinux", process_dir / "vmcore"
    parts = run_gdb(*files, *marked, **gdb).split("== ")[1:]
    return [part.partition("\n")[2].strip() for part in parts]


def test_backtraces_through_a_library(in_gdb):
    frames = re.findall(r"^#\d+ .*?(\w+) \((.*)\) at .*?(\w+\.c):\d+", in_gdb[1], re.M)
    frames = [frame for frame in frames if frame[2] in ("library.c", "program.c")]
    assert [name for name, _, _ in frames] == ["library_descend"] * 6 + ["main"]
    levels = [int(re.search(r"level=.*?(\d+),", text)[1]) for _, text, _ in frames[:6]]
    assert levels == [0, 1, 2, 3, 4, 5]
    # product + product * level, from 3 and level 5 on (library.c).
    products = [int(re.search(r"product=.*?(\d+)$", t)[1]) for _, t, _ in frames[:6]]
    assert products == [2160, 1080, 360, 90, 18, 3]


def test_variables_of_program_and_library(in_gdb, told):
    names = re.findall(r"/root(/\S+)$", in_gdb[2], re.M)
    assert names == [
        "/bin/liblibrary.so",
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/lib64/ld-linux-x86-64.so.2",
    ]
    assert in_gdb[3].endswith("= 4712")
    assert "{x = 1, y = 2, name = " in in_gdb[4] and '"second"}' in in_gdb[4]
    assert f"{told['corners']} <corners>" in in_gdb[6]
    # Of each thread its own.
    assert in_gdb[5].endswith("= 0")
    assert in_gdb[10].endswith("= 77")


def test_registers_of_sse_and_x87(in_gdb):
    assert in_gdb[8].endswith("= 0x6b64756d700000116b64756d70000010")
    assert re.search(r"= 3\.14159265358979323\d*$", in_gdb[9])
    assert re.search(r"#0 .*hold_floats ", in_gdb[11])
    assert "start_thread" in in_gdb[11]


def test_kuser_counts_what_is_missing(in_gdb, user):
    lines = [json.loads(line) for line in in_gdb[0].splitlines()]
    row, notes = lines[0], [line["note"] for line in lines[1:]]
    assert row["libraries"] == 3
    for name, count in (
        (Where.NOT_CACHED, PAGES - 1),
        (Where.BEYOND_FILE, 3),
    ):
        assert f"{count} pages are not in the dump: {name.value}" in notes
    assert any(note.endswith(Where.SWAPPED.value) for note in notes)
    assert row["missing"] == sum(int(note.split()[0]) for note in notes) * PAGE
    assert row["missing"] == sum(user.image.missing.values())


def test_a_core_of_it_in_plain_gdb(opened, user, told, gdb, tmp_path):
    program = copy_program(opened, user, tmp_path / "program")
    for library in library_files(user.kernel, opened.dump, user.process, user.image):
        path = tmp_path / "root" / library.name.decode().lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        copy_file(user.kernel, opened.dump, library.file, path)
    kgcore = find_command("kgcore")
    core = tmp_path / "core"
    list(kgcore.run(opened, kgcore.parse(["us-main", str(core)])))
    missing = [
        int(told["swapped"], 16) + PAGES // 2 * PAGE,
        int(told["dropped"], 16),
        int(told["beyond"], 16) + PAGE,
    ]
    commands = ["thread apply all bt", "p corners[1].y", "info auxv"]
    for name in ("none", "thp", "huge", "cached", "deleted", "shared"):
        commands.append(f"x/s {told[name]}+64")
    commands += [f"x/s {told['dropped']}+{5 * PAGE + 64}", "p library_counter"]
    commands += [f"x/8xb {at}" for at in missing]
    done = subprocess.run(
        [gdb.get("gdb", "gdb"), "-nx", "-batch", "-iex",
         f"set sysroot {tmp_path / 'root'}", program, core,
         *(word for text in commands for word in ("-ex", text))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.count('"gdbkdump-process-marker"') == 7
    # The program was moved; where to, AT_ENTRY says.
    assert done.stdout.count(" library_descend (level=") == 6
    assert "main (argc=" in done.stdout
    assert "hold_floats (" in done.stdout
    assert "$1 = 4\n" in done.stdout
    for at in missing:
        assert f"Cannot access memory at address {at:#x}" in done.stderr


def test_a_core_is_as_large_as_what_is_there(opened, user, tmp_path):
    kgcore = find_command("kgcore")
    core = tmp_path / "core"
    list(kgcore.run(opened, kgcore.parse(["us-main", str(core)])))
    assert user.image.present < core.stat().st_size < user.image.present + (64 << 10)
    data = core.read_bytes()
    assert data.count(MARKER) >= 2 * HUGE // PAGE + 2 * PAGES
    assert Path(core).stat().st_mode & 0o777 == 0o600


def test_beside_our_remote_server(process_dir):
    # The kernel is then a remote target, the process a core.
    files = process_dir / "vmlinux", process_dir / "vmcore"
    output = run_gdb(
        *files, "kuser us-main", "kuser us-float", "kbt -l", "info threads",
        "inferior 1", "p init_task.comm",
        environment={"GDBKDUMP_TRANSPORT": "remote"},
    )  # fmt: skip
    assert "core.c:" in output
    assert '"swapper/0' in output
    assert re.search(r'\* 2\.2 .*"us-float"', output)
    assert "Exception" not in output


def test_a_process_of_a_dump_that_is_no_flat_file(hypervisor_dir):
    packed = hypervisor_dir / "vmcore.zlib"
    if not packed.exists():
        pytest.skip("not made of this guest")
    truth = json.loads((hypervisor_dir / "truth.json").read_text())
    told = next(row for row in truth["workload"] if row["role"] == "wl-memory")
    output = run_gdb(
        hypervisor_dir / "vmlinux", packed, "kuser wl-memory", "bt", "p role",
        f"x/s {told['marker_at']}",
    )  # fmt: skip
    names = re.findall(r"^#\d+ .*?(\w+) \(", output.partition("INFERIOR")[2], re.M)
    assert names[:4] == ["pause", "sleep_forever", "ready_and_sleep", "be_memory"]
    assert '"wl-memory"' in output
    assert '"gdbkdump-test-marker"' in output


def test_an_ide_sees_its_threads_and_the_kernels(process_dir):
    command = [newest_gdb(), "-nx", "-q", "-i=dap", "-x", INIT]
    client = DapClient(command)
    files = {"program": process_dir / "vmlinux", "coreFile": process_dir / "vmcore"}
    client.attach(**{name: str(path) for name, path in files.items()})
    before = client.request("threads")["threads"]
    client.request("evaluate", expression="kuser us-main", context="repl")
    after = client.request("threads")["threads"]
    new = [thread for thread in after if thread not in before]
    assert len(after) == len(before) + 2
    assert {thread["name"] for thread in new} == {"us-main", "us-float"}
    told = [e["body"]["threadId"] for e in client.events if e["event"] == "thread"]
    assert {thread["id"] for thread in new} <= set(told)

    def functions(thread):
        frames = client.request("stackTrace", threadId=thread["id"])["stackFrames"]
        return [frame["name"] for frame in frames]

    (main,) = [thread for thread in new if thread["name"] == "us-main"]
    assert functions(main)[1:7] == ["library_descend"] * 6
    (kernel,) = [t for t in before if t["name"] == "us-main"]
    assert "schedule" in functions(kernel)
    (again,) = [thread for thread in new if thread["name"] == "us-float"]
    assert "start_thread" in functions(again)
    client.kill()


@pytest.fixture(scope="module")
def without_last_pages(process_dir, tmp_path_factory):
    """A copy of the dump whose page cache lacks the last page of two files."""
    if process_dir.name != "process-6.1":
        pytest.skip("what is damaged is a page cache without large folios")
    path = tmp_path_factory.mktemp("copy") / "vmcore"
    subprocess.run(["cp", "--sparse=always", process_dir / "vmcore", path], check=True)
    session = open_session(path)
    user = open_process(session, "us-main")
    library = library_files(user.kernel, session.dump, user.process, user.image)[0]
    program = program_file(user.kernel, session.dump, user.process)
    with path.open("r+b") as file:
        for each in (program, library):
            file.seek(offset_of_last_slot(session, each.file))
            file.write(bytes(8))
    session.close()
    yield path
    path.unlink()


def offset_of_last_slot(session, file):
    """Return where in the dump the page cache has the last page of a small file."""
    kernel = session.kernel
    mapping = kernel.object("file", file)["f_mapping"]
    head = mapping["i_pages.xa_head"]
    index = (mapping["host"]["i_size"] - 1) // PAGE
    assert head & 3 == 2 and 0 < index < 64
    slots = kernel.struct("xa_node").offset("slots")
    paddr = kernel.memory.translate(head - 2 + slots + 8 * index)
    return session.dump.file_range(paddr)[0]


def test_debug_information_of_what_the_page_cache_lacks(
    process_dir, without_last_pages, opened, user, gdb, tmp_path
):
    files = (
        program_file(user.kernel, opened.dump, user.process),
        *library_files(user.kernel, opened.dump, user.process, user.image),
    )
    for number, each in enumerate(files[:2]):
        whole = tmp_path / f"file{number}"
        copy_file(user.kernel, opened.dump, each.file, whole)
        digits = each.build_id
        debug = tmp_path / ".build-id" / digits[:2] / f"{digits[2:]}.debug"
        debug.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["objcopy", "--only-keep-debug", whole, debug], check=True)
    folder = {"GDBKDUMP_DEBUG_DIR": str(tmp_path)}
    words = gdb | {"environment": gdb.get("environment", {}) | folder}
    output = run_gdb(
        process_dir / "vmlinux", without_last_pages, "kuser us-main", "bt", "x/i main",
        "p library_counter", **words,
    )  # fmt: skip
    # Names and lines from there, code and rules to unwind with from the dump.
    assert len(re.findall(r"^#.* library_descend \(level=", output, re.M)) == 6
    assert re.search(r"^#7 .* main \(.*program\.c:\d+$", output, re.M)
    assert re.search(r"<main>:\s+\w+", output)
    assert output.rstrip().endswith("= 4712")


def test_files_that_cannot_be_had(process_dir, without_last_pages):
    output = run_gdb(
        process_dir / "vmlinux", without_last_pages, "kuser us-main", "bt 1",
        "info sharedlibrary",
    )  # fmt: skip
    for name in ("program", r"liblibrary\.so"):
        assert re.search(
            rf"note: gdb has no symbols of /bin/{name}: page \d+ of the file is not in"
            " the page cache",
            output,
        )
    # The C library is another file, and whole.
    assert re.search(r"^#0 .*pause", output, re.M)
    assert re.search(r"^\s+No\s+.*liblibrary\.so$", output, re.M)
