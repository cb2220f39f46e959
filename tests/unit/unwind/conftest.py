# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel made by hand, and its one task on a CPU or off it."""

from __future__ import annotations

import pytest
from handmade import IRQ_STACK, NMI_STACK, TASK, Machine

from gdbkdump.arch.x86_64 import X86_64
from gdbkdump.unwind import unwinder


@pytest.fixture
def machine(monkeypatch):
    made = Machine()
    monkeypatch.setattr(unwinder, "running_tasks", lambda kernel: {})
    return made


@pytest.fixture
def on_cpu(monkeypatch, machine):
    """Make the task one that was on CPU 0, with some registers."""

    def put(registers, stacks=(NMI_STACK, IRQ_STACK)):
        full = dict.fromkeys(X86_64.registers, 0)
        full.update(cs=0x10, flags=2)
        full.update(registers or {})
        monkeypatch.setattr(unwinder, "running_tasks", lambda kernel: {TASK: 0})
        monkeypatch.setattr(
            unwinder,
            "cpu_registers",
            lambda kernel, cpu: full if registers is not None else None,
        )
        monkeypatch.setattr(unwinder, "cpu_stacks", lambda kernel, cpu: list(stacks))

    return put
