# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that are made from a kernel build, made once and kept for its other dumps.

They lie below ``$XDG_CACHE_HOME/gdbkdump``, for nobody but their owner to read: what is
in them may come from a dump. A file is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_TOTAL = 256 << 20
_KEY = re.compile(r"[0-9a-f]{8,128}")


def cache_folder(kind: str) -> Path:
    """Return the folder of one kind of files; it need not be there."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base / "gdbkdump" / kind


class BuildCache:
    """Files of one kind.

    :param kind: what they are, the name of their folder
    :param version: of what makes them; files of another version are made anew
    :param max_total: bytes to keep at most, but for the file that was made last
    """

    def __init__(self, kind: str, version: int, max_total: int = _MAX_TOTAL) -> None:
        """Choose a folder; it is made when there is something to keep."""
        self._folder = cache_folder(kind)
        self._version = version
        self._max_total = max_total

    def file(self, build_id: str, variant: str, make: Callable[[], bytes]) -> Path:
        """Return the path of a file, which is made unless it is there.

        :param build_id: of the kernel, in hex
        :param variant: a word that tells it from others of that build
        :raise OSError: it cannot be kept; nothing is left behind
        """
        if not _KEY.fullmatch(build_id):
            raise ValueError(build_id)
        path = self._folder / f"{build_id}-{variant}-v{self._version}"
        if not self._is_kept(path):
            make_private(self._folder)
            write_private(path, make())
            self._drop_oldest(path)
        return path

    def _is_kept(self, path: Path) -> bool:
        try:
            _check_private(self._folder)
            status = path.stat()
            # What was used last is kept longest. gdb compares the other time stamp.
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
        except OSError:
            return False
        return True

    def _drop_oldest(self, new: Path) -> None:
        kept = []
        for path in self._folder.iterdir():
            status = path.stat()
            kept.append((path == new, status.st_atime_ns, status.st_size, path))
        total = sum(size for _, _, size, _ in kept)
        for is_new, _, size, path in sorted(kept):
            if total <= self._max_total or is_new:
                return
            path.unlink(missing_ok=True)
            total -= size


def _check_private(folder: Path) -> None:
    # Who can write there can tell gdb what to show.
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} can be written to by others")


def make_private(folder: Path) -> None:
    """Make a folder if need be.

    :raise OSError: that cannot be done, or others can write there
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_private(folder)


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read; it is there whole or not at all.

    :raise OSError: that cannot be done; nothing is left behind
    """
    # mkstemp() makes it 0600.
    fd, name = tempfile.mkstemp(prefix=".", dir=path.parent)
    with contextlib.ExitStack() as undo:
        undo.callback(Path(name).unlink)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        Path(name).rename(path)
        undo.pop_all()
