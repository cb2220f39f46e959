# SPDX-License-Identifier: GPL-2.0-or-later
"""``gdb -batch ... -x gdb-init.py`` as a script sees it: exit codes, one line each."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gdbkdump.target.cache import cache_folder

INIT = Path(__file__).resolve().parent.parent.parent / "gdb-init.py"


@pytest.fixture(scope="module")
def small(dump_dir: Path) -> Path:
    if shutil.which("gdb") is None:
        pytest.skip("gdb is not installed")
    usual = dump_dir.parent / "small-6.1"
    if usual.exists() and dump_dir.name != usual.name:
        pytest.skip("how gdb ends does not depend on the dump: small-6.1 has to do")
    return dump_dir


@pytest.fixture(scope="module")
def other_vmlinux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ELF executable with a build-id that no kernel has."""
    folder = tmp_path_factory.mktemp("other")
    source = folder / "main.c"
    source.write_text("void _start(void) { for (;;); }\nint secret = 42;\n")
    program = folder / "vmlinux"
    options = ["-g", "-nostdlib", "-static", "-no-pie", f"-Wl,--build-id=0x{'5a' * 20}"]
    subprocess.run(["gcc", *options, "-o", program, source], check=True)
    return program


def gdb(*words: object, batch: bool = True) -> subprocess.CompletedProcess[str]:
    command = ["gdb", "-nx", "-q", *(["-batch"] if batch else []), *map(str, words)]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
    )


def ours(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of ours on standard error; there is no traceback anywhere."""
    assert "Traceback" not in done.stdout + done.stderr
    lines = [x for x in done.stderr.splitlines() if x.startswith("gdbkdump: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("command", "code"),
    [("kps 1", 0), ("kps --nonsense", 1), ("kps 99999999", 1), ("krd 0x10", 1)],
)
def test_a_failed_command_ends_gdb(small: Path, command: str, code: int) -> None:
    marker = "echo still here\\n"
    done = gdb(small / "vmlinux", small / "vmcore", "-x", INIT, "-ex", command,
               "-ex", marker)  # fmt: skip
    assert done.returncode == code
    assert ("still here" in done.stdout) == (code == 0)
    if code:
        ours(done)


def test_a_failed_command_does_not_when_strict_is_off(small: Path) -> None:
    done = gdb(small / "vmlinux", small / "vmcore", "-x", INIT,
               "-ex", "set kdump strict off", "-ex", "kps --nonsense",
               "-ex", "echo still here\\n")  # fmt: skip
    assert done.returncode == 0
    assert "still here" in done.stdout


def test_another_kernels_vmlinux_is_refused(small: Path, other_vmlinux: Path) -> None:
    done = gdb(other_vmlinux, small / "vmcore", "-x", INIT, "-ex", "p secret")
    assert done.returncode == 3
    assert f"{other_vmlinux} is of another kernel build" in ours(done)
    assert "5a5a5a5a" in ours(done)
    assert "= 42" not in done.stdout


def test_after_a_mismatch_gdb_knows_nothing(small: Path, other_vmlinux: Path) -> None:
    done = gdb(other_vmlinux, small / "vmcore", "-x", INIT, "-ex", "p secret",
               "-ex", "kps", batch=False)  # fmt: skip
    assert "= 42" not in done.stdout
    assert "No symbol table is loaded" in done.stderr
    assert done.stderr.count("is of another kernel build") == 2


def test_a_vmlinux_that_is_none(small: Path, tmp_path: Path) -> None:
    text = tmp_path / "vmlinux"
    text.write_text("no kernel\n" * 1000)
    done = gdb(text, small / "vmcore", "-x", INIT)
    assert done.returncode == 2
    assert f"{text} is not a vmlinux: it is no ELF file" in ours(done)
    done = gdb(tmp_path / "missing", small / "vmcore", "-x", INIT)
    assert done.returncode == 2
    assert f"cannot read {tmp_path / 'missing'}" in ours(done)


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (b"", "it is empty"),
        (b"KDUMP   " + bytes(4096), "header version 0, blocks of 0 bytes"),
        (b"\x1f\x8b" + bytes(4096), "it is a gzip-compressed file"),
        (b"\x7fELF\x02\x01\x01" + bytes(57), "is not a dump"),
        (b"\x7fELF", "the ELF header is cut"),
    ],
)
def test_what_is_no_dump_is_named(
    small: Path, tmp_path: Path, contents: bytes, words: str
) -> None:
    core = tmp_path / "vm core"
    core.write_bytes(contents)
    done = gdb(small / "vmlinux", core, "-x", INIT)
    assert done.returncode == 2
    assert str(core) in ours(done)
    assert words in ours(done)


def test_no_core_and_swapped_files(small: Path, tmp_path: Path) -> None:
    done = gdb(small / "vmlinux", "-x", INIT)
    assert done.returncode == 2
    assert "no dump was given: gdb VMLINUX VMCORE" in ours(done)
    done = gdb(small / "vmcore", small / "vmlinux", "-x", INIT)
    assert done.returncode == 2
    assert "the dump comes after vmlinux" in ours(done)


def test_without_a_dump_the_prompt_stays_sane(small: Path) -> None:
    done = gdb("-x", INIT, "-ex", "kps", "-ex", "p 40 + 2", batch=False)
    assert "$1 = 42" in done.stdout
    assert done.stderr.count("no dump was given") == 2
    assert "Traceback" not in done.stderr


def test_help_needs_no_dump(small: Path) -> None:
    done = gdb("-x", INIT, "-ex", "khelp", "-ex", "khelp kps")
    assert (done.returncode, done.stderr) == (0, "")
    assert "List tasks." in done.stdout.splitlines()
    assert any(line.startswith("kvtop ") for line in done.stdout.splitlines())


def test_a_script_that_opens_its_dump_itself_is_told_nothing(small: Path) -> None:
    done = gdb("-x", INIT, "-ex", f"kopen {small / 'vmcore'}", "-ex", "kset")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["-batch", "-ex", "kset 1"], 0),
        (["-batch", "-ex", "kset 99999999"], 1),
        (["-batch", "-ex", "p 42"], 0),
        (["-ex", "quit"], 0),
        (["-ex", "kset 1", "-ex", "quit"], 0),
    ],
)
def test_gdb_ends_as_it_should_with_us_in_gdbinit(
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_folder("index").parent.parent))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".gdbinit").write_text(f"source {INIT}\n")
    command = ["gdb", "-q", small / "vmlinux", small / "vmcore", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert ('COMMAND: "init"' in done.stdout) == ("kset 1" in words)


@pytest.mark.parametrize("in_gdbinit", [True, False])
def test_the_core_of_a_process_is_gdbs(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_gdbinit: bool
) -> None:
    core = tmp_path / "core"
    with subprocess.Popen(["sleep", "60"]) as process:
        save = ["gcore", "-o", core, str(process.pid)]
        subprocess.run(save, capture_output=True, check=True)
        process.kill()
    core = next(tmp_path.glob("core.*"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".gdbinit").write_text(f"source {INIT}\n" if in_gdbinit else "")
    command = ["gdb", "-q", "-batch", "/bin/sleep", core]
    command += [] if in_gdbinit else ["-x", INIT]
    command += ["-ex", "info threads", "-ex", "kset"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "nanosleep" in done.stdout
    assert done.returncode == 1
    assert ours(done).endswith(f"no dump is open: {core} is the core of a process")
    alone = [sys.executable, "-m", "gdbkdump", core, "-c", "kset"]
    done = subprocess.run(alone, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is the core of a process, not of a kernel" in ours(done)


def test_odd_names_and_a_truncated_dump(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / 'it\'s a "test" $HOME'
    folder.mkdir()
    core = folder / "vm core"
    size = (small / "vmcore").stat().st_size // 2
    subprocess.run(["cp", "--sparse=always", small / "vmcore", core], check=True)
    with core.open("r+b") as file:
        file.truncate(size)
    (folder / "vm linux").symlink_to(small / "vmlinux")
    before = core.stat().st_mtime_ns
    done = gdb(folder / "vm linux", core, "-x", INIT, "-ex", "x/s linux_banner")
    assert done.returncode == 0, done.stderr
    assert "the file is truncated" in done.stdout
    assert '"Linux version ' in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert (core.stat().st_size, core.stat().st_mtime_ns) == (size, before)


def test_vmlinux_is_found_by_its_build_id(small: Path) -> None:
    # The dump's own folder is one of the places.
    done = gdb("-c", small / "vmcore", "-x", INIT, "-ex", "p init_task.comm")
    assert done.returncode == 0
    assert f"KERNEL: {small / 'vmlinux'}" in done.stdout
    assert '"swapper/0' in done.stdout


def test_nothing_is_left_behind(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = gdb(small / "vmlinux", small / "vmcore", "-x", INIT, "-ex", "info files")
    assert f"{tmp_path}/gdbkdump-" in done.stdout
    assert list(tmp_path.iterdir()) == []
