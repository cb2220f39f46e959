# SPDX-License-Identifier: GPL-2.0-or-later
"""A client of gdb's machine interface (gdb/mi/), strict about every line it gets."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_TIMEOUT_S = 240
_RECORD = re.compile(r"(\d*)([\^*+=])([\w-]+)(?:,(.*))?")
_STREAM = re.compile(r'([~@&])("(?:[^"\\]|\\.)*")')
_ESCAPE = re.compile(rb'\\([0-7]{3}|[abefnrtv"\\])')
_ESCAPED = {
    b"a": b"\a", b"b": b"\b", b"e": b"\x1b", b"f": b"\f", b"n": b"\n", b"r": b"\r",
    b"t": b"\t", b"v": b"\v", b'"': b'"', b"\\": b"\\",
}  # fmt: skip


class MiError(Exception):
    """gdb answered with an error; the message is gdb's."""


class MiClient:
    """A gdb that talks MI.

    :ivar console: what came for the user's console so far
    :ivar log: what came for the log (errors, echoed commands) so far
    """

    def __init__(self, *command: object, home: Path | None = None) -> None:
        """Start it and wait for its first prompt.

        :param home: where it finds a .gdbinit
        """
        environment = dict(os.environ, VIRTUAL_ENV=sys.prefix)
        if home:
            # Caches are found by it too.
            usual = str(Path.home() / ".cache")
            environment.setdefault("XDG_CACHE_HOME", usual)
            environment["HOME"] = str(home)
        self.console = self.log = ""
        self._data = b""
        self._token = 0
        self._process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        self._deadline = time.monotonic() + _TIMEOUT_S
        while self._line() != "(gdb) ":
            pass

    def run(self, command: str) -> dict[str, Any]:
        """Return the results of a command.

        :raise MiError: it failed
        """
        self._token += 1
        assert self._process.stdin
        self._process.stdin.write(f"{self._token}{command}\n".encode())
        self._process.stdin.flush()
        self._deadline = time.monotonic() + _TIMEOUT_S
        while True:
            record = _RECORD.fullmatch(self._line())
            if record and record[2] == "^" and record[1] == str(self._token):
                break
        results = _parse_results(record[4] or "")
        if record[3] == "error":
            raise MiError(results["msg"])
        return {"class": record[3], **results}

    def console_of(self, command: str) -> str:
        """Return what a command of the user's console prints."""
        before = len(self.console)
        quoted = command.replace("\\", "\\\\").replace('"', '\\"')
        self.run(f'-interpreter-exec console "{quoted}"')
        return self.console[before:]

    def _line(self) -> str:
        # One line; what is no MI is a failure, as an IDE would be lost.
        while b"\n" not in self._data:
            left = self._deadline - time.monotonic()
            assert self._process.stdout
            if not select.select([self._process.stdout], [], [], max(0, left))[0]:
                raise TimeoutError("gdb does not answer")
            data = os.read(self._process.stdout.fileno(), 1 << 20)
            if not data:
                raise EOFError("gdb is gone")
            self._data += data
        raw, _, self._data = self._data.partition(b"\n")
        line = raw.decode("utf-8", "backslashreplace")
        stream = _STREAM.fullmatch(line)
        if stream:
            text = _unquote(stream[2])
            if stream[1] == "&":
                self.log += text
            else:
                self.console += text
        elif line != "(gdb) " and not _RECORD.fullmatch(line):
            raise AssertionError(f"not MI: {line!r}")
        return line

    def close(self) -> int:
        """End gdb, and return its exit code."""
        self.run("-gdb-exit")
        return self._process.wait(60)

    def kill(self) -> None:
        """End gdb, whatever it does."""
        self._process.kill()
        self._process.wait()


def _unquote(text: str) -> str:
    def plain(match: re.Match[bytes]) -> bytes:
        code = match[1]
        return _ESCAPED[code] if code in _ESCAPED else bytes([int(code, 8)])

    raw = _ESCAPE.sub(plain, text[1:-1].encode())
    return raw.decode("utf-8", "backslashreplace")


def _parse_results(text: str) -> dict[str, Any]:
    found, rest = _parse_tuple(text, "")
    assert not rest, rest
    return found


def _parse_tuple(text: str, end: str) -> tuple[dict[str, Any], str]:
    found = {}
    while text and text[0] != end:
        name, _, text = text.partition("=")
        found[name], text = _parse_value(text)
        text = text.removeprefix(",")
    return found, text[len(end) :]


def _parse_list(text: str) -> tuple[Sequence[Any], str]:
    found = []
    while text[0] != "]":
        # Results in a list have names, which all are the same.
        text = re.sub(r"^[\w-]+=", "", text)
        value, text = _parse_value(text)
        found.append(value)
        text = text.removeprefix(",")
    return found, text[1:]


def _parse_value(text: str) -> tuple[Any, str]:
    if text[0] == "{":
        return _parse_tuple(text[1:], "}")
    if text[0] == "[":
        return _parse_list(text[1:])
    match = re.match(r'"(?:[^"\\]|\\.)*"', text)
    assert match, text[:80]
    return _unquote(match[0]), text[match.end() :]
