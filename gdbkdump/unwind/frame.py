# SPDX-License-Identifier: GPL-2.0-or-later
"""What unwinding gives: frames, where each is, and why there are no more of them."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import KdumpError

if TYPE_CHECKING:
    from gdbkdump.arch.base import Registers
    from gdbkdump.kernel.sched import Task
    from gdbkdump.unwind.stacks import StackRange


class UnwindError(KdumpError):
    """A stack cannot be followed any further."""


class FrameKind(enum.Enum):
    """How a frame was left, and so what its ``ip`` means."""

    CALL = "call"  # by a call: ip is a return address
    EXCEPTION = "exception"  # interrupted there: ip is exact
    CPU = "cpu"  # not at all: the CPU saved its own registers there


class Frame(NamedTuple):
    """A function that had not returned.

    :param sp: stack pointer once the functions it called have returned
    :param slot: where the return address ``ip`` is on the stack, 0 if it is none
    :param stack: the stack that ``sp`` is on, None if it is on none that is known
    :param registers: what else is known of the registers, for all but CALL
    :param is_reliable: false for what a guess led to
    """

    ip: int
    sp: int
    slot: int
    kind: FrameKind
    stack: StackRange | None
    registers: Registers | None = None
    is_reliable: bool = True

    @property
    def pc(self) -> int:
        """An address within the instruction that the frame stands at.

        That is not always ``ip``: after a call that never returns comes the next
        function.
        """
        return self.ip - 1 if self.kind is FrameKind.CALL else self.ip


class StackEnd(enum.Enum):
    """Why there are no more frames."""

    USER = "user"  # user mode entered the kernel here
    BOTTOM = "bottom"  # the first function of a kernel thread, or of a CPU
    BROKEN = "broken"  # what comes next cannot be told
    UNSAVED = "unsaved"  # the registers to start from were not saved
    FREED = "freed"  # the task had exited, it has no stack


@dataclass
class Stack:
    """The frames of one task, innermost first.

    :ivar cpu: the CPU it was on, or None if it was switched out
    :ivar user_registers: of user mode, where that is how the stack ends
    :ivar reason: for a person, where ``end`` alone does not say it
    """

    task: Task
    cpu: int | None = None
    frames: list[Frame] = field(default_factory=list)
    user_registers: Registers | None = None
    end: StackEnd = StackEnd.BROKEN
    reason: str = ""
