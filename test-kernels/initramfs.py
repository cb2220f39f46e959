# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the guest's file systems: busybox, our programs, kexec, modules.

They are cpio archives in the "newc" format, see the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packages import find_program, run

_GUEST = Path(__file__).resolve().parent / "guest"


class _Cpio:
    """An archive in memory; parent directories are added as needed."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()

    def _add(self, name: str, mode: int, data: bytes, device: int = 0) -> None:
        self._names.add(name)
        fields = (len(self._names), mode, 0, 0, 1, 0, len(data), 0, 0)
        numbers = (*fields, device >> 8, device & 0xFF, len(name) + 1, 0)
        header = b"070701" + "".join(f"{n:08x}" for n in numbers).encode()
        for part in (header + name.encode() + b"\0", data):
            self._parts.append(part + bytes(-len(part) % 4))

    def add_directory(self, name: str) -> None:
        """Add a directory unless it is there."""
        if name not in (".", *self._names):
            self.add_directory(str(Path(name).parent))
            self._add(name, stat.S_IFDIR | 0o755, b"")

    def add(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """Add a file."""
        self.add_directory(str(Path(name).parent))
        self._add(name, stat.S_IFREG | mode, data)

    def add_device(self, name: str, major: int, minor: int) -> None:
        """Add a character device."""
        self.add_directory(str(Path(name).parent))
        self._add(name, stat.S_IFCHR | 0o600, b"", major << 8 | minor)

    def content(self) -> bytes:
        """Return the finished archive."""
        self._add("TRAILER!!!", 0, b"")
        return b"".join(self._parts)


def _libraries(program: Path) -> list[Path]:
    """Return the libraries and the loader of a program, as ldd finds them."""
    found = re.findall(r"(?:=> )?(/\S+) \(0x", run("ldd", program))
    return [Path(path) for path in found]


def compile_program(source: Path, directory: Path) -> None:
    """Compile a C program of the guest into a directory."""
    run(
        *("gcc", "-O1", "-g", "-Wall", "-Wextra", "-static", "-pthread"),
        *("-o", directory / source.stem, source),
    )


def compile_dynamic(program: Path, library: Path, directory: Path) -> None:
    """Compile a program with a shared library; its C library is kexec's."""
    options = ("-O1", "-g", "-Wall", "-Wextra", "-pthread")
    shared = directory / f"lib{library.stem}.so"
    soname = f"-Wl,-soname,{shared.name}"
    run("gcc", *options, "-fPIC", "-shared", soname, "-o", shared, library)
    run(
        *("gcc", *options, "-fPIE", "-pie", "-Wl,-rpath,/bin"),
        *("-o", directory / program.stem, program, shared),
    )


def compile_guest(directory: Path) -> None:
    """Compile the guest's C programs into a directory."""
    for source in sorted(_GUEST.glob("*.c")):
        compile_program(source, directory)


def _new_archive(
    kernel: Path, programs: Iterable[Path], init: Path = _GUEST / "init"
) -> _Cpio:
    """Start an archive with what both kernels need."""
    archive = _Cpio()
    archive.add_device("dev/console", 5, 1)
    archive.add("init", init.read_bytes(), 0o755)
    archive.add("bin/busybox", find_program("busybox").read_bytes(), 0o755)
    for program in programs:
        archive.add(f"bin/{program.name}", program.read_bytes(), 0o755)
    for module in sorted((kernel / "guest-modules").iterdir()):
        archive.add(f"modules/{module.name}", module.read_bytes())
    return archive


def _add_program(archive: _Cpio, name: str, program: Path) -> None:
    """Add a program of the host with its libraries."""
    archive.add(name, program.read_bytes(), 0o755)
    for library in _libraries(program):
        archive.add(str(library).lstrip("/"), library.read_bytes(), 0o755)


@dataclass(frozen=True)
class Capture:
    """What is to capture the dump.

    :ivar kernel: directory made by packages.make_kernel or make_capture_kernel
    """

    kernel: Path
    archive: bytes


def build_capture(
    kernel: Path, init: Path, scripts: Iterable[Path], steps: str
) -> Capture:
    """Build what captures a dump by an init of its own, with makedumpfile.

    :param steps: words that the init reads in /steps
    """
    archive = _new_archive(kernel, scripts, init)
    _add_program(archive, "bin/makedumpfile", find_program("makedumpfile"))
    archive.add("steps", steps.encode())
    return Capture(kernel, archive.content())


def build_initramfs(
    kernel: Path,
    binaries: Path,
    settings: dict[str, str],
    module: Path | None = None,
    more: Path | None = None,
    capture: Capture | None = None,
) -> bytes:
    """Build the archive of the kernel that will crash.

    :param kernel: directory made by packages.make_kernel
    :param binaries: the guest's programs
    :param settings: shell variables for guest/init
    :param module: one that is not loaded by guest/init
    :param more: a directory of such ones
    :param capture: by default the same kernel, with savecore
    """
    savecore = binaries / "savecore"
    if not capture:
        capture = Capture(kernel, _new_archive(kernel, [savecore]).content())
    archive = _new_archive(kernel, sorted({*binaries.iterdir()} - {savecore}))
    if module:
        archive.add(f"modules/{module.name}", module.read_bytes())
    for path in sorted(more.iterdir()) if more else ():
        archive.add(f"modules/more/{path.name}", path.read_bytes())
    _add_program(archive, "sbin/kexec", find_program("kexec"))
    archive.add("capture/vmlinuz", (capture.kernel / "vmlinuz").read_bytes())
    archive.add("capture/initrd", capture.archive)
    lines = (f"{name}='{value}'\n" for name, value in settings.items())
    archive.add("scenario", "".join(lines).encode())
    return archive.content()
