# SPDX-License-Identifier: GPL-2.0-or-later
"""Say on standard error what is going on; standard output is for results only."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class BuildError(Exception):
    """A dump cannot be made; the message says why, for a person."""


class ChanceError(BuildError):
    """A dump was not made, for a reason that need not come up again."""


def log(text: str) -> None:
    """Write one line for the person who waits."""
    sys.stderr.write(f"test-kernels: {text}\n")
    sys.stderr.flush()


@contextmanager
def step(text: str) -> Iterator[None]:
    """Announce a step that may be long, and say afterwards how long it was."""
    log(f"{text} ...")
    start = time.monotonic()
    yield
    log(f"{text}: {time.monotonic() - start:.0f} s")
