# SPDX-License-Identifier: GPL-2.0-or-later
"""drgn's view of a dump from a process of its own: its libdw clashes with gdb's.

Reads ``{"reads": [[address, size], ...], "pcs": [pid, ...], "stacks": [pid, ...]}``
from standard input and answers with hex strings, numbers and lists of numbers; null
where drgn cannot tell.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_NO_DRGN = 77


def ask_drgn(
    directory: Path,
    reads: Sequence[tuple[int, int]] = (),
    pcs: Sequence[int] = (),
    stacks: Sequence[int] = (),
    core: Path | None = None,
) -> dict[str, list[Any]]:
    """Return what drgn says of a dump; skip where there is no drgn.

    :param core: the dump, if it is another than the directory's own
    """
    python = os.environ.get("GDBKDUMP_TEST_PYTHON", sys.executable)
    done = subprocess.run(
        [python, __file__, directory, core or directory / "vmcore"],
        input=json.dumps(
            {"reads": list(reads), "pcs": list(pcs), "stacks": list(stacks)}
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == _NO_DRGN:
        pytest.skip("drgn is not installed")
    assert done.returncode == 0, done.stderr
    answer: dict[str, list[Any]] = json.loads(done.stdout)
    return answer


def _answer(
    directory: str, core: str, asked: dict[str, list[Any]]
) -> dict[str, list[Any]]:
    import drgn

    program = drgn.Program()
    program.set_core_dump(core)
    program.load_debug_info([f"{directory}/vmlinux"])

    def read(address: int, size: int) -> str | None:
        try:
            return bytes(program.read(address, size)).hex()
        except drgn.FaultError:
            return None

    def pc(pid: int) -> int | None:
        try:
            return int(program.stack_trace(pid)[0].pc)
        except (ValueError, LookupError):
            return None

    def stack(pid: int) -> list[int] | None:
        try:
            trace = program.stack_trace(pid)
        except (ValueError, LookupError):
            return None
        return [int(frame.pc) for frame in trace if not frame.is_inline]

    return {
        "stacks": [stack(pid) for pid in asked["stacks"]],
        "reads": [read(*item) for item in asked["reads"]],
        "pcs": [pc(pid) for pid in asked["pcs"]],
    }


if __name__ == "__main__":
    try:
        import drgn  # noqa: F401
    except ImportError:
        sys.exit(_NO_DRGN)
    json.dump(_answer(sys.argv[1], sys.argv[2], json.load(sys.stdin)), sys.stdout)
