# SPDX-License-Identifier: GPL-2.0-or-later
"""A client of the Debug Adapter Protocol, as small as a test can do with.

Requests are sent one after the other; what else arrives is kept as events.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

Body = dict[str, Any]
_TIMEOUT_S = 240


class DapError(Exception):
    """A request failed; the message is the adapter's."""


class DapClient:
    """A debug adapter and what it said.

    :ivar events: all events so far, in order
    """

    def __init__(self, command: Sequence[object]) -> None:
        """Start the adapter and introduce us as VS Code does."""
        # Its gdb embeds the Python that we run under, whose packages it lacks.
        environment = dict(os.environ, VIRTUAL_ENV=sys.prefix)
        self.events: list[Body] = []
        self._data = b""
        self._responses: dict[int, Body] = {}
        self._sent = 0
        self._process = subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self.capabilities = self.request(
            "initialize",
            clientID="vscode",
            adapterID="gdb",
            pathFormat="path",
            linesStartAt1=True,
            columnsStartAt1=True,
            supportsVariableType=True,
            supportsVariablePaging=True,
            supportsMemoryReferences=True,
        )

    def attach(self, request: str = "attach", **arguments: object) -> None:
        """Attach (or launch), with the configuration that comes in between.

        :raise DapError: it failed
        """
        number = self.send(request, **arguments)
        self.wait_for_event("initialized")
        self.request("setExceptionBreakpoints", filters=[])
        self.request("configurationDone")
        self.wait_for(number)

    def request(self, command: str, **arguments: object) -> Body:
        """Return the body of a request's response.

        :raise DapError: it failed
        """
        return self.wait_for(self.send(command, **arguments))

    def send(self, command: str, **arguments: object) -> int:
        """Send a request and return its number."""
        self._sent += 1
        message = {"seq": self._sent, "type": "request", "command": command}
        data = json.dumps({**message, "arguments": arguments}).encode()
        assert self._process.stdin
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(data) + data)
        self._process.stdin.flush()
        return self._sent

    def wait_for(self, number: int) -> Body:
        """Return the body of the response to a request that was sent.

        :raise DapError: it failed
        """
        deadline = time.monotonic() + _TIMEOUT_S
        while number not in self._responses:
            self._receive(deadline)
        response = self._responses.pop(number)
        if not response["success"]:
            raise DapError(response.get("message"))
        return cast("Body", response.get("body", {}))

    def wait_for_event(self, name: str) -> Body:
        """Return the body of the first event of a name, which may have been already."""
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            for event in self.events:
                if event["event"] == name:
                    return cast("Body", event.get("body", {}))
            self._receive(deadline)

    @property
    def output(self) -> str:
        """What the adapter has written to the client's console so far."""
        bodies = [event["body"] for event in self.events if event["event"] == "output"]
        return "".join(body["output"] for body in bodies)

    def _receive(self, deadline: float) -> None:
        # One message, whose header is never in doubt: a stray line is a failure.
        head = self._until(b"\r\n\r\n", deadline)
        assert head.startswith(b"Content-Length: "), head
        size = int(head[16:])
        while len(self._data) < size:
            self._read(deadline)
        message = json.loads(self._data[:size])
        self._data = self._data[size:]
        if message["type"] == "response":
            self._responses[message["request_seq"]] = message
        else:
            self.events.append(message)

    def _until(self, mark: bytes, deadline: float) -> bytes:
        while mark not in self._data:
            self._read(deadline)
        head, _, self._data = self._data.partition(mark)
        return head

    def _read(self, deadline: float) -> None:
        assert self._process.stdout
        left = deadline - time.monotonic()
        ready, _, _ = select.select([self._process.stdout], [], [], max(0, left))
        if not ready:
            raise TimeoutError("the adapter does not answer")
        data = os.read(self._process.stdout.fileno(), 1 << 20)
        if not data:
            raise EOFError("the adapter is gone")
        self._data += data

    def close(self) -> int:
        """Disconnect, take what is still said, and return the adapter's exit code."""
        self.request("disconnect")
        deadline = time.monotonic() + _TIMEOUT_S
        with contextlib.suppress(EOFError):
            while True:
                self._receive(deadline)
        return self._process.wait(60)

    def kill(self) -> None:
        """End the adapter, whatever it does."""
        self._process.kill()
        self._process.wait()
