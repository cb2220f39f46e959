# SPDX-License-Identifier: GPL-2.0-or-later
"""How tasks and registers look, in every command that shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gdbkdump.render.escape import decode
from gdbkdump.render.model import Address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.arch.base import Registers
    from gdbkdump.kernel.sched import Task
    from gdbkdump.render.model import Line

# As crash lays them out. An exception within other entry code saved but the last five,
# a switch of tasks but those that a callee saves.
_ALL = (
    "    RIP: {ip:016x}  RSP: {sp:016x}  RFLAGS: {flags:08x}",
    "    RAX: {ax:016x}  RBX: {bx:016x}  RCX: {cx:016x}",
    "    RDX: {dx:016x}  RSI: {si:016x}  RDI: {di:016x}",
    "    RBP: {bp:016x}   R8: {r8:016x}   R9: {r9:016x}",
    "    R10: {r10:016x}  R11: {r11:016x}  R12: {r12:016x}",
    "    R13: {r13:016x}  R14: {r14:016x}  R15: {r15:016x}",
    "    ORIG_RAX: {orig_ax:016x}  CS: {cs:04x}  SS: {ss:04x}",
)
_SEGMENTS = "    CS: {cs:04x}  SS: {ss:04x}"
# What a hypervisor sees of a CPU; the kernel's note of a system call is none of it.
_CPU = (*_ALL[:-1], _SEGMENTS)
_IRET_FRAME = (_ALL[0], _SEGMENTS)
_SWITCH_FRAME = (
    "    RIP: {ip:016x}  RSP: {sp:016x}",
    "    RBX: {bx:016x}  RBP: {bp:016x}  R12: {r12:016x}",
    "    R13: {r13:016x}  R14: {r14:016x}  R15: {r15:016x}",
)


def register_lines(registers: Registers) -> Iterator[str]:
    """Yield the lines of a set of registers, as many as were saved."""
    if "orig_ax" in registers:
        templates: tuple[str, ...] = _ALL
    elif "ax" in registers:
        templates = _CPU
    elif "flags" in registers:
        templates = _IRET_FRAME
    else:
        templates = _SWITCH_FRAME
    return (template.format_map(registers) for template in templates)


def register_data(registers: Registers | None) -> dict[str, Address] | None:
    """Return a set of registers for JSON."""
    if registers is None:
        return None
    return {name: Address(value) for name, value in registers.items()}


def task_line(task: Task, cpu: int | None = None) -> Line:
    """Return the line that crash puts above what it shows of a task.

    :param cpu: the CPU it was on; the one it ran on last if None
    """
    return [
        ("", f"PID: {task.pid:<7}  TASK: "),
        ("address", f"{task.address:016x}"),
        ("", f'  CPU: {task.cpu if cpu is None else cpu:<3}  COMMAND: "'),
        ("comm", decode(task.comm)),
        ("", '"'),
    ]


def task_data(task: Task, cpu: int | None = None) -> dict[str, Any]:
    """Return the same for JSON."""
    return {
        "pid": task.pid,
        "task": Address(task.address),
        "cpu": task.cpu if cpu is None else cpu,
        "comm": task.comm,
    }
