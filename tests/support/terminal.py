# SPDX-License-Identifier: GPL-2.0-or-later
"""A program at a terminal, talked to line by line."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TIMEOUT_S = 60


class Terminal:
    """A program that has a pseudo-terminal for all three of its files."""

    def __init__(self, command: Sequence[object], environment: Mapping[str, str]):
        """Start it."""
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=dict(environment, TERM="dumb"),
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self._rest = ""

    def say(self, text: str) -> None:
        """Type something."""
        os.write(self._master, text.encode())

    def listen(self, until: str) -> str:
        """Return what is printed, up to some text; what follows comes next time."""
        end = time.monotonic() + _TIMEOUT_S
        while until not in self._rest:
            more = self._read(end - time.monotonic())
            if not more:
                raise AssertionError(f"no {until!r} in {self._rest!r}")
            self._rest += more
        at = self._rest.index(until) + len(until)
        found, self._rest = self._rest[:at], self._rest[at:]
        return found

    def end(self) -> str:
        """Return what is printed until the program ends."""
        end = time.monotonic() + _TIMEOUT_S
        while more := self._read(end - time.monotonic()):
            self._rest += more
        self.process.wait(_TIMEOUT_S)
        return self._rest

    def close(self) -> None:
        """End the program."""
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def children(self) -> list[int]:
        """Return the processes that the program has started."""
        done = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        return [int(word) for word in done.stdout.split()]

    def _read(self, seconds: float) -> str:
        ready, _, _ = select.select([self._master], [], [], max(0, seconds))
        try:
            return os.read(self._master, 65536).decode() if ready else ""
        except OSError:
            return ""  # EIO: nobody has the other end any more


def _take_terminal() -> None:
    # The first terminal that a session opens becomes its own.
    os.close(os.open(os.ttyname(0), os.O_RDWR))
