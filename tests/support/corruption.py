# SPDX-License-Identifier: GPL-2.0-or-later
"""Damaged dumps, and what every reader owes them.

A file of known pages is damaged at every structure's edge. Whatever the damage, to open
it and to read its pages gives the right bytes or one of our errors: never another
exception, a page that is not the one asked for, a hang, or memory beyond all measure.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import struct
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import FaultError, FormatError, KdumpError
from gdbkdump.formats import open_dump

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import FrameType

PAGE = 4096
_SECONDS = 10
_MEMORY = 1 << 30
# What a field of any width may become: nothing, one off, signs, all of it.
_WORDS = {1: (0, 1, 0x7F, 0xFF), 2: (0, 1, 0x7FFF, 0xFFFF),
          4: (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF),
          8: (0, 1, 1 << 12, 1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63,
              (1 << 64) - 1)}  # fmt: skip


class Damage(NamedTuple):
    """One damaged file.

    :param what: what was done to it
    """

    what: str
    data: bytes


def fields_of(
    start: int, names: str, code: str, order: str = "<"
) -> dict[str, tuple[int, int]]:
    """Return (offset, bytes) of the fields of a packed structure by name."""
    found = {}
    at = start
    for name, letter in zip(names.split(), code, strict=True):
        size = struct.calcsize(f"{order}{letter}")
        found[name] = (at, size)
        at += size
    return found


def truncated(data: bytes, edges: Mapping[str, int]) -> Iterator[Damage]:
    """Yield the file cut at each structure's edge, and one byte before and after."""
    for name, edge in edges.items():
        for at in (edge - 1, edge, edge + 1):
            if 0 <= at < len(data):
                yield Damage(f"cut at {name} {at - edge:+d}", data[:at])


def overwritten(
    data: bytes, fields: Mapping[str, tuple[int, int]], order: str = "little"
) -> Iterator[Damage]:
    """Yield the file with each field (offset, bytes) given each absurd value."""
    for name, (at, size) in fields.items():
        right = data[at : at + size]
        near = int.from_bytes(right, order)  # type: ignore[arg-type]
        values = {*_WORDS[size], near + 1, max(0, near - 1), near ^ 0x10}
        for value in sorted(values):
            new = (value & (1 << size * 8) - 1).to_bytes(size, order)  # type: ignore[arg-type]
            if new != right:
                yield Damage(
                    f"{name} is {value:#x}", data[:at] + new + data[at + size :]
                )


def blotted(data: bytes, areas: Mapping[str, tuple[int, int]]) -> Iterator[Damage]:
    """Yield the file with each area (offset, bytes) zeroed, filled and turned round."""
    for name, (at, size) in areas.items():
        old = data[at : at + size]
        for how, new in (
            ("zeros", bytes(size)),
            ("ones", b"\xff" * size),
            ("backwards", old[::-1]),
            ("garbage", bytes((i * 193 + 71) & 0xFF for i in range(size))),
        ):
            if new != old:
                yield Damage(f"{name} is {how}", data[:at] + new + data[at + size :])


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Bound time and memory of what runs inside."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"took more than {_SECONDS} s")

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, stop)
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, hard))
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def try_all(
    directory: Path,
    cases: Iterable[tuple[str, Sequence[bytes]]],
    pages: Mapping[int, bytes],
    base: int | None = None,
) -> Counter[str]:
    """Check damaged dumps of one file or several; count what came of them.

    :param directory: for the files; each case finds none of those before
    :param cases: what was done, and the files as they are named
    :raise AssertionError: with all that went wrong: one damage tells little of a reader
    """
    outcomes: Counter[str] = Counter()
    wrong = []
    for what, files in cases:
        for old in directory.iterdir():
            old.unlink()
        paths = [directory / f"vmcore{number + 1}" for number in range(len(files))]
        for path, data in zip(paths, files, strict=True):
            path.write_bytes(data)
        try:
            outcomes[check(paths, pages, base)] += 1
        except Exception as error:  # noqa: BLE001
            wrong.append(f"{what}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)
    return outcomes


def check(
    paths: Sequence[Path], pages: Mapping[int, bytes], base: int | None = None
) -> str:
    """Open a damaged dump and read it through; tell what came of it.

    :param pages: by page frame number, what a page must be if it can be read at all
    :param base: of bare memory
    :raise AssertionError: a page is not the one that was asked for
    """
    with bounded():
        try:
            dump = open_dump(paths[0], *paths[1:], base=base)
        except KdumpError as error:
            assert str(error) and "\n" not in str(error)
            return "refused"
        try:
            lost = 0
            for pfn, page in pages.items():
                try:
                    data = dump.read_phys(pfn * PAGE, PAGE)
                except (FaultError, FormatError) as error:
                    assert "\n" not in str(error)
                    lost += 1
                    continue
                assert data == page, f"page {pfn:#x} is not what was saved"
            assert all("\n" not in problem for problem in dump.problems)
            # What else the house asks a dump for.
            assert dump.missing >= 0 and dump.excluded >= 0
            for extent in list(dump.extents)[:64]:
                dump.file_range(extent.paddr)
        finally:
            dump.close()
    return "lost" if lost else "read"
