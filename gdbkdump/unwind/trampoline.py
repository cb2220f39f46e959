# SPDX-License-Identifier: GPL-2.0-or-later
"""Return addresses that tracing has replaced, and where it keeps the real ones.

Mirrors ``kernel/trace/fgraph.c`` (the function graph tracer), ``rethook.c`` there and
``kernel/kprobes.c`` (return probes). Each remembers the place on the stack that it
wrote to, so the right record is the one that names that place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdbkdump.errors import KdumpError, SymbolNotFoundError
from gdbkdump.kernel.list import for_each_llist
from gdbkdump.unwind.frame import UnwindError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.kernel.base import Kernel
    from gdbkdump.kernel.sched import Task

_GRAPH = "return_to_handler"
# Since Linux kernel commit f3a112c0c40d ("x86,rethook,kprobes: Replace kretprobe with
# rethook on x86") (in v5.18), and adf8a61a940c ("kprobes: treewide: Make it harder to
# refer kretprobe_trampoline directly") (in v5.16).
_PROBES = (
    "arch_rethook_trampoline", "__kretprobe_trampoline", "kretprobe_trampoline",
)  # fmt: skip
_MAX_SHADOW_WORDS = 512  # SHADOW_STACK_SIZE; FTRACE_RETFUNC_DEPTH records before 6.11


def find_trampolines(kernel: Kernel) -> dict[int, str]:
    """Return the names of the functions that replaced return addresses lead to."""
    found = {}
    for name in (_GRAPH, *_PROBES):
        try:
            found[kernel.symbol(name)] = name
        except SymbolNotFoundError:
            continue
    return found


def real_return_address(kernel: Kernel, task: Task, trampoline: int, slot: int) -> int:
    """Return what stood at ``slot`` before the trampoline's address was written there.

    :raise UnwindError: no record of it is found
    """
    name = find_trampolines(kernel)[trampoline]
    read = _graph_records if name == _GRAPH else _probe_records
    try:
        for place, address in read(kernel, task):
            # Two tracers may have replaced it one after the other.
            if place == slot and address != trampoline:
                return address
    except KdumpError as error:
        raise UnwindError(
            f"the return address was replaced by {name}: {error}"
        ) from None
    raise UnwindError(
        f"the return address at {slot:#x} was replaced by {name}, which has no record"
    )


def _graph_records(kernel: Kernel, task: Task) -> Iterator[tuple[int, int]]:
    # task->ret_stack is an array of struct ftrace_ret_stack, since Linux kernel commit
    # 42675b723b48 ("function_graph: Convert ret_stack to a series of longs") (in v6.11)
    # mixed with other words; `retp` is the place either way.
    type_ = kernel.struct("ftrace_ret_stack")
    shift = (type_.offset("retp") - type_.offset("ret")) // 8
    start = kernel.object("task_struct", task.address)["ret_stack"]
    words = kernel.reader.array(start, "Q", _MAX_SHADOW_WORDS)
    for i in range(max(shift, 0), len(words)):
        yield words[i], words[i - shift]


def _probe_records(kernel: Kernel, task: Task) -> Iterator[tuple[int, int]]:
    if kernel.has_member("task_struct", "rethooks"):
        head, struct, place = "rethooks", "rethook_node", "frame"
    else:
        # Since Linux kernel commit d741bf41d7c7 ("kprobes: Remove kretprobe hash")
        # (in v5.11); the hash before it is not read.
        head, struct, place = "kretprobe_instances", "kretprobe_instance", "fp"
    fields = kernel.fields(struct, [place, "ret_addr"])
    node = kernel.struct(struct).offset("llist")
    address = kernel.object("task_struct", task.address).address_of(head)
    for entry in for_each_llist(kernel, address):
        where, real = fields.read(entry - node)
        yield where, real
