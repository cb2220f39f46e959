# SPDX-License-Identifier: GPL-2.0-or-later
"""One crash in all formats that makedumpfile writes, and in those it could write.

    variants.py DIRECTORY...        of dumps that build.py made

They are kept in the dump's directory, in `variants/`; README.md lists them.
"""

import json
import resource
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from build import Cache, cache_directory, digest
from progress import BuildError, log, step
from repack import repack

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Variant:
    """A dump in another format.

    :param options: of makedumpfile
    :param how: what is done with it
    :param source: another variant, instead of the vmcore, that it is made of
    :param whole: of a file that cannot be written to its end, the one that can
    """

    options: str = ""
    how: str = "file"
    source: str = ""
    whole: str = ""


_VARIANTS = {
    "elf.d1": Variant("-E -d 1"),
    "elf.d8": Variant("-E -d 8"),
    "elf.d31": Variant("-E -d 31"),
    "raw.d31": Variant("-d 31"),
    "zlib.d0": Variant("-c -d 0"),
    "zlib.d31": Variant("-c -d 31"),
    "lzo.d17": Variant("-l -d 17"),
    "lzo.d31": Variant("-l -d 31"),
    "elf.flat": Variant("-E -d 31 -F", "stream"),
    "lzo.flat": Variant("-l -d 31 -F", "stream"),
    # Without it all that is below a gigabyte is in the first file.
    "split": Variant("-l -d 31 --split --splitblock-size 16", "split"),
    "elf.full-disk": Variant("-E -d 31", "full disk", whole="elf.d31"),
    "lzo.full-disk": Variant("-l -d 31", "full disk", whole="lzo.d31"),
    "lzo.killed": Variant("-l -d 31", "killed", whole="lzo.d31"),
    "lzo.erased": Variant("-l -d 31", "erased"),
    # Debian's makedumpfile has neither; these keep all else as it is.
    "snappy.d31": Variant("4", "repack", "raw.d31"),
    "zstd.d31": Variant("32", "repack", "raw.d31"),
}
_SETS = {
    "small-6.1": tuple(name for name in _VARIANTS if name != "lzo.d17"),
    "big-6.1": ("zlib.d31", "lzo.d31", "raw.d31", "zstd.d31"),
}
# Made on the way, and too large to be kept.
_DROPPED = {"big-6.1": ("raw.d31",)}
# Debian 12's makedumpfile takes pages of newer kernels, task_structs among them, for
# pages of users; zeros and free pages it knows.
_OTHERS = ("lzo.d17",)


def _run(command: list[str | Path], **options: object) -> None:
    done = subprocess.run(
        [str(word) for word in command],
        capture_output="stdout" not in options,
        stderr=subprocess.PIPE if "stdout" in options else None,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    if done.returncode:
        words = " ".join(str(word) for word in command)
        raise BuildError(f"{words} failed:\n{done.stderr[-1000:].decode()}")


def _file(variant: Variant, source: Path, target: Path) -> None:
    _run(["makedumpfile", *variant.options.split(), source, target])
    if "-E" in variant.options:
        # It writes zeros where the vmcore has holes.
        _run(["fallocate", "--dig-holes", target])


def _stream(variant: Variant, source: Path, target: Path) -> None:
    with target.open("wb") as file:
        _run(["makedumpfile", *variant.options.split(), source], stdout=file)


def _split(variant: Variant, source: Path, target: Path) -> None:
    parts = [target.with_name(f"{target.name}{i}") for i in (1, 2, 3)]
    _run(["makedumpfile", *variant.options.split(), source, *parts])


def _limit(variant: Variant, target: Path) -> int:
    """Return the size of a file that lacks what is last, and so highest, in memory."""
    return target.with_name(variant.whole).stat().st_size * 7 // 8


def _full_disk(variant: Variant, source: Path, target: Path) -> None:
    # A file system of our own in a name space of our own; makedumpfile fails.
    words = ["makedumpfile", *variant.options.split(), str(source), "/mnt/dump"]
    script = (
        f"mount -t tmpfs -o size={_limit(variant, target)} none /mnt || exit 1;"
        f" {shlex.join(words)} >&2; cat /mnt/dump"
    )
    with target.open("wb") as file:
        _run(["unshare", "--map-root-user", "--mount", "sh", "-c", script], stdout=file)


def _killed(variant: Variant, source: Path, target: Path) -> None:
    # Without the last words of one that notices a full disk.
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        size = _limit(variant, target)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    words = ["makedumpfile", *variant.options.split(), str(source), str(target)]
    done = subprocess.run(words, capture_output=True, preexec_fn=limit, check=False)
    if done.returncode == 0:
        raise BuildError("makedumpfile was to fail on a file that grows too large")


def _erased(variant: Variant, source: Path, target: Path) -> None:
    vmlinux = source.parent / "vmlinux"
    words = ["makedumpfile", *variant.options.split(), "-x", str(vmlinux)]
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as config:
        config.write("[vmlinux]\nerase init_uts_ns.name.nodename\n")
        config.flush()
        _run([*words, "--config", config.name, source, target])


def _repack(variant: Variant, source: Path, target: Path) -> None:
    repack(source, target, int(variant.options))


_WAYS: dict[str, Callable[[Variant, Path, Path], None]] = {
    "file": _file,
    "stream": _stream,
    "split": _split,
    "full disk": _full_disk,
    "killed": _killed,
    "erased": _erased,
    "repack": _repack,
}


def _key(names: tuple[str, ...]) -> str:
    version = subprocess.run(["makedumpfile", "-v"], capture_output=True, check=False)
    scripts = [(_HERE / name).read_bytes() for name in ("variants.py", "repack.py")]
    return digest(repr(names).encode(), version.stdout, *scripts)


def _is_image_high(dump: Path) -> bool:
    """Tell whether the kernel, which goes where chance puts it, is high in memory."""
    with (dump / "vmcore").open("rb") as file:
        head = file.read(4096)
    count = int.from_bytes(head[56:58], "little")
    loads: list[tuple[int, int]] = [
        (paddr, size)
        for type_, _, _, _, paddr, size, _, _ in struct.iter_unpack(
            "<IIQQQQQQ", head[64 : 64 + 56 * count]
        )
        if type_ == 1
    ]
    top = max(paddr + size for paddr, size in loads)
    paddr, size = loads[0]
    return paddr + size > top * 3 // 4


def _make(work: Path, dump: Path, name: str, names: tuple[str, ...]) -> None:
    is_image_high = _is_image_high(dump)
    for each in names:
        variant = _VARIANTS[each]
        if variant.whole and is_image_high:
            log(f"no {each}: it would lack the kernel itself")
            continue
        source = work / variant.source if variant.source else dump / "vmcore"
        try:
            _WAYS[variant.how](variant, source, work / each)
        except BuildError as error:
            if variant.how != "full disk":
                raise
            # Containers may forbid name spaces; the rest is of use without it.
            (work / each).unlink(missing_ok=True)
            log(f"no {each}: {error}")
    for each in _DROPPED.get(name, ()):
        (work / each).unlink()
    for path in work.iterdir():
        path.chmod(0o600)


def provide(dump: Path) -> None:
    """Make the variants of a dump, unless they are there."""
    info = json.loads((dump / "info.json").read_text())
    if info["group"] != "workload":
        return
    names = _SETS.get(info["name"], _OTHERS)
    key = _key(names)
    final = dump / "variants"
    if (final / "key").exists() and (final / "key").read_text() == key:
        return
    with (
        step(f"make the variants of {info['name']}"),
        tempfile.TemporaryDirectory(dir=cache_directory() / "work") as made,
    ):
        work = Path(made) / "variants"
        work.mkdir()
        _make(work, dump, info["name"], names)
        (work / "key").write_text(key)
        if final.exists():
            final.rename(Path(made) / "old")
        work.rename(final)


def main() -> int:
    """Run the command line."""
    try:
        with Cache(cache_directory(), ()).lock():
            for name in sys.argv[1:]:
                provide(Path(name).resolve())
    except BuildError as error:
        log(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
