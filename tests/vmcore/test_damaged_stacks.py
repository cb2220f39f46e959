# SPDX-License-Identifier: GPL-2.0-or-later
"""Stacks of damaged copies of a real dump: one line for what is lost, no more lost."""

from __future__ import annotations

import json
import random
import struct

import pytest

from gdbkdump.commands import find_command
from gdbkdump.kernel.module import for_each_module
from gdbkdump.kernel.sched import stack_states, tasks
from gdbkdump.render import json_text
from gdbkdump.session import open_session
from gdbkdump.unwind.stacks import task_stack
from gdbkdump.unwind.unwinder import unwind_task
from tests.support.damage import changed, without_page

PAGE = 4096


@pytest.fixture(scope="module")
def copy(sparse_copy):
    """A sparse copy of a small dump; each test undoes what it changed."""
    return sparse_copy


def unwound(session):
    """Frames, end and reason of each task, by its address."""
    return {
        task.address: (
            [frame.ip for frame in stack.frames],
            stack.end.value,
            stack.reason,
        )
        for task in tasks(session.kernel)
        for stack in [unwind_task(session.kernel, task)]
    }


class Whole:
    """What the dump says before it is damaged, and where to damage it."""

    def __init__(self, path):
        self.session = open_session(path)
        self.kernel = self.session.kernel
        self.stacks = unwound(self.session)
        # A task with a deep stack, on pages of its own in vmalloc space.
        self.victim = next(
            task for task in tasks(self.kernel) if task.comm == b"wl-epoll"
        )
        offset = self.kernel.struct("task_struct").offset("thread.sp")
        self.sp_at = self.place(self.victim.address + offset)
        self.sp = self.sp_of(self.victim)
        self.stack = task_stack(self.kernel, self.victim.stack)

    def sp_of(self, task):
        return stack_states(self.kernel)[task.address].sp

    def place(self, address):
        """Where in the file an address is."""
        offset, _ = self.session.dump.file_range(self.kernel.memory.translate(address))
        return offset

    def on_stack(self, data):
        """The patches that write to the victim's stack, from thread.sp up."""
        at, patches = self.sp, []
        while data:
            size = PAGE - at % PAGE
            patches.append((self.place(at), data[:size]))
            at, data = at + size, data[size:]
        return patches


@pytest.fixture(scope="module")
def whole(copy):
    found = Whole(copy)
    yield found
    found.session.close()


def after(path):
    session = open_session(path)
    try:
        return unwound(session)
    finally:
        session.close()


def check_others(whole, found):
    """Check that no other task lost anything; return what became of the victim."""
    mine = found.pop(whole.victim.address)
    others = dict(whole.stacks)
    del others[whole.victim.address]
    assert found == others
    assert mine[1] == "broken"
    assert "\n" not in mine[2]
    return mine


@pytest.mark.parametrize("sp", [0, 0xDEAD4EAD00000008, 7, "odd", "below", "other"])
def test_a_corrupt_thread_sp(copy, whole, sp):
    other = next(task for task in tasks(whole.kernel) if task.comm == b"wl-pipe")
    named = {
        "odd": whole.sp + 1,
        "below": whole.stack.start - 8,
        "other": whole.sp_of(other),
    }
    with changed(copy, [(whole.sp_at, struct.pack("<Q", named.get(sp, sp)))]):
        frames, _, reason = check_others(whole, after(copy))
    assert frames == []
    assert reason == (
        f"thread.sp {named.get(sp, sp):#x} is not on its stack"
        f" {whole.stack.start:#x}-{whole.stack.end:#x}"
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_stack_full_of_garbage(copy, whole, seed):
    size = whole.stack.end - whole.sp
    with changed(copy, whole.on_stack(random.Random(seed).randbytes(size))):
        frames, _, reason = check_others(whole, after(copy))
    assert frames == []
    assert "is not in kernel code" in reason


def test_a_loop_of_return_addresses(copy, whole):
    # Every word is where the task would return to from its switch.
    ip = whole.stacks[whole.victim.address][0][0]
    words = (whole.stack.end - whole.sp) // 8
    with changed(copy, whole.on_stack(struct.pack("<Q", ip) * words)):
        frames, _, reason = check_others(whole, after(copy))
    assert set(frames) == {ip}
    assert len(frames) < words
    assert reason


def test_a_stack_whose_page_is_not_in_the_dump(copy, whole):
    with without_page(copy, whole.kernel.memory.translate(whole.sp)):
        frames, _, reason = check_others(whole, after(copy))
    assert frames == []
    assert reason.startswith("cannot read virtual address ")
    assert "excluded" in reason


@pytest.mark.parametrize("with_what", ["zeros", "garbage"])
def test_orc_that_is_damaged(copy, whole, with_what):
    kernel = whole.kernel
    start = kernel.symbol("__start_orc_unwind_ip")
    at = (start + 100 * PAGE) & -PAGE
    data = bytes(PAGE) if with_what == "zeros" else random.Random(1).randbytes(PAGE)
    with changed(copy, [(whole.place(at), data)]):
        found = after(copy)
    assert all(frames == [] for frames, _, _ in found.values())
    reasons = {reason for _, end, reason in found.values() if end == "broken"}
    (reason,) = reasons
    assert reason.startswith("its ORC cannot be used: ORC: the table at ")
    assert "is not sorted at entry" in reason


@pytest.mark.parametrize("where", ["loop", "wild", "null"])
def test_a_list_of_modules_that_runs_wild(copy, whole, where):
    kernel = whole.kernel
    modules = list(for_each_module(kernel))
    assert len(modules) > 2
    middle = len(modules) // 2
    link = kernel.struct("module").offset("list")
    node = modules[middle].address + link
    target = {
        "loop": modules[middle - 1].address + link,
        "wild": 0xDEAD4EAD00000008,
        "null": 0,
    }
    patch = whole.place(node), struct.pack("<Q", target[where])
    with changed(copy, [patch]):
        session = open_session(copy)
        try:
            item = find_command("kmod")
            lines = json_text.lines(item.run(session, item.parse([])))
            rows = [json.loads(line) for line in lines]
            found = unwound(session)
        finally:
            session.close()
    names = [row["name"] for row in rows if "note" not in row]
    assert names == [module.name for module in modules[: middle + 1]]
    (note,) = [row["note"] for row in rows if "note" in row]
    reasons = {"loop": "loops at", "wild": "not a canonical address", "null": "NULL"}
    assert note.startswith("the list of modules: ")
    assert reasons[where] in note
    # No task of the workload is in a module.
    assert found == whole.stacks


def test_nothing_of_it_stays(copy, dump_dir):
    # The other tests take back what they wrote.
    assert copy.stat().st_size == (dump_dir / "vmcore").stat().st_size
