# SPDX-License-Identifier: GPL-2.0-or-later
"""The frame file of one dump for return addresses that tracing replaced.

What a function returns to is then a trampoline, and only the tracer's records know
where it was called from. gdb has rules for addresses, not for frames; so where such a
function stands it is given rules that look the return address up by the CFA, and for
all else those that it would have had. No other file's rules may come before.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import TYPE_CHECKING

from gdbkdump.errors import FaultError
from gdbkdump.kernel.sched import tasks
from gdbkdump.target.cfi import Cie, Fde, frame_file, replaced_ops, rule, section
from gdbkdump.target.debugframe import copy_ops
from gdbkdump.unwind.orc import Base
from gdbkdump.unwind.trampoline import has_replaced
from gdbkdump.unwind.unwinder import unwind_task, unwinder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gdbkdump.kernel.base import Kernel
    from gdbkdump.target.debugframe import DebugFrame

    # The CFI of the file around an address, and what is added to its addresses.
    FrameOf = Callable[[int], tuple[DebugFrame, int] | None]


def trace_frames(kernel: Kernel, frame_of: FrameOf) -> bytes | None:
    """Return the frame file, or None if no return address was replaced.

    :param frame_of: where the compiler's own rules are
    :raise KdumpError: the tasks cannot be read, or the rules are damaged
    """
    found = _find_replaced(kernel)
    if not found:
        return None
    fdes = (_fde(kernel, pc, found[pc], frame_of) for pc in sorted(found))
    return frame_file(section((fde for fde in fdes if fde), 0))


def _find_replaced(kernel: Kernel) -> Mapping[int, Sequence[tuple[int, int]]]:
    # By the address within the instruction that a function stands at: its CFAs, in
    # order, and its real return addresses.
    found: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for task in tasks(kernel):
        try:
            if not has_replaced(kernel, task):
                continue
        except FaultError:
            continue  # no frame of it can be found either
        frames = unwind_task(kernel, task).frames
        for inner, outer in itertools.pairwise(frames):
            if outer.slot and kernel.reader.u64(outer.slot) != outer.ip:
                found[inner.pc].append((outer.slot + 8, outer.ip))
    return {pc: sorted(pairs) for pc, pairs in found.items()}


def _fde(
    kernel: Kernel, pc: int, found: Sequence[tuple[int, int]], frame_of: FrameOf
) -> Fde | None:
    row = unwinder(kernel).row(pc)
    if row is None or row.sp_base is Base.SP_INDIRECT:
        return None  # of no known frame, or of one with rules of its own
    ops, cie = replaced_ops(found), Cie.CALL_AS_C
    compiled = frame_of(pc)
    own = compiled[0].find(pc - compiled[1]) if compiled else None
    if compiled and own and own.is_usual:
        at = pc - compiled[1]
        ops = b"".join(op for _, op in copy_ops(own, at, at + 1)) + ops
    elif known := rule(row):
        ops, cie = known.cfa + known.bp + known.saved + ops, known.cie
    return Fde(pc, pc + 1, cie, [(pc, ops)])
