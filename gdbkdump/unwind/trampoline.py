# SPDX-License-Identifier: GPL-2.0-or-later
"""Return addresses that tracing has replaced, and where it keeps the real ones.

Mirrors ``kernel/trace/fgraph.c`` (the function graph tracer), ``rethook.c`` there and
``kernel/kprobes.c`` (return probes). Each remembers the place on the stack that it
wrote to, so the right record is the one that names that place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdbkdump.errors import KdumpError, SymbolNotFoundError
from gdbkdump.kernel.list import for_each_hlist, for_each_llist
from gdbkdump.kernel.sched import stack_states
from gdbkdump.memory.virtual import MASK64
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
# KPROBE_HASH_BITS and the multiplier of hash_ptr() (include/linux/hash.h).
_HASH_BITS = 6
_GOLDEN_RATIO_64 = 0x61C8864680B583EB
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
    names = find_trampolines(kernel)
    address = trampoline
    # Several tracers may have replaced it one after the other, each of them once.
    for _ in names:
        address = _replaced(kernel, task, address, names[address], slot)
        if address not in names:
            return address
    raise UnwindError(
        f"the return address at {slot:#x} was replaced by {names[trampoline]}, whose"
        f" record of it leads to {names[address]}"
    )


def has_replaced(kernel: Kernel, task: Task) -> bool:
    """Tell whether return addresses on the stack of a task may be replaced.

    :raise FaultError: what would tell cannot be read
    """
    return stack_states(kernel)[task.address].is_traced or kernel.once(
        "kretprobes", lambda: _has_hash(kernel)
    )


def _replaced(kernel: Kernel, task: Task, trampoline: int, name: str, slot: int) -> int:
    read = _graph_records if name == _GRAPH else _probe_records
    try:
        for place, address in read(kernel, task):
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
        nodes = _nodes_of_task(kernel, task, "rethooks", "rethook_node")
        place = "frame"
    elif kernel.has_member("task_struct", "kretprobe_instances"):
        nodes = _nodes_of_task(
            kernel, task, "kretprobe_instances", "kretprobe_instance"
        )
        place = "fp"
    else:
        nodes = _nodes_of_hash(kernel, task)
        place = "fp"
    struct = "rethook_node" if place == "frame" else "kretprobe_instance"
    fields = kernel.fields(struct, [place, "ret_addr"])
    for node in nodes:
        where, real = fields.read(node)
        yield where, real


def _nodes_of_task(kernel: Kernel, task: Task, head: str, struct: str) -> Iterator[int]:
    offset = kernel.struct(struct).offset("llist")
    address = kernel.object("task_struct", task.address).address_of(head)
    return (node - offset for node in for_each_llist(kernel, address))


def _has_hash(kernel: Kernel) -> bool:
    try:
        table = kernel.symbol("kretprobe_inst_table")
        return any(kernel.reader.array(table, "Q", 1 << _HASH_BITS))
    except KdumpError:
        return False


def _nodes_of_hash(kernel: Kernel, task: Task) -> Iterator[int]:
    # Until Linux kernel commit d741bf41d7c7 ("kprobes: Remove kretprobe hash") (in
    # v5.11) all tasks shared a hash, by the address of the task.
    table = kernel.symbol("kretprobe_inst_table")
    bucket = task.address * _GOLDEN_RATIO_64 & MASK64
    head = table + 8 * (bucket >> (64 - _HASH_BITS))
    offset = kernel.struct("kretprobe_instance").offset("hlist")
    fields = kernel.fields("kretprobe_instance", ["task"])
    for node in for_each_hlist(kernel, head):
        if fields.read(node - offset) == (task.address,):
            yield node - offset
