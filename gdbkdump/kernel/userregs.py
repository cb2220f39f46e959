# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers of user mode: what a thread had in them when it entered the kernel.

Mirrors ``arch/x86/include/asm/processor.h`` (``task_pt_regs()``) and
``arch/x86/kernel/fpu/xstate.c`` (``copy_xstate_to_uabi_buf()``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import FaultError
from gdbkdump.kernel.panic import cpu_registers
from gdbkdump.kernel.sched import running_tasks
from gdbkdump.kernel.taskstack import task_stack_size

if TYPE_CHECKING:
    from gdbkdump.arch.base import Registers
    from gdbkdump.kernel.base import Kernel
    from gdbkdump.kernel.sched import Task

_TIF_NEED_FPU_LOAD = 14
_FXSAVE_SIZE, _AVX_SIZE = 512, 832
_HEADER, _YMM = 512, 576
_FP, _SSE, _AVX = 1, 2, 4
# Initial state where it differs from zeros: the control words of x87 and SSE.
_INITIAL = b"\x7f\x03" + bytes(22) + b"\x80\x1f" + bytes(486)


class UserRegisters(NamedTuple):
    """Registers of one thread; ``reason`` says why there are none.

    :param fxsave: ``struct fxregs_state``, or nothing where it is not in the dump
    :param xsave: x87, SSE and AVX as XSAVE without compaction lays them out, or nothing
    """

    registers: Registers | None
    reason: str = ""
    fxsave: bytes = b""
    xsave: bytes = b""


def user_registers(kernel: Kernel, task: Task) -> UserRegisters:
    """Return the registers with which a thread entered the kernel last.

    Of one that was in user mode as its CPU stopped, those that the CPU saved.
    """
    cpu = running_tasks(kernel).get(task.address)
    try:
        registers = _on_cpu(kernel, cpu) if cpu is not None else None
        if registers is None:
            if not task.stack:
                return UserRegisters(None, "it has exited, its stack is freed")
            registers = _task_pt_regs(kernel, task)
            if registers is None:
                return UserRegisters(None, "it never was in user mode")
        # What a CPU noted of its own is newer.
        registers = _segments(kernel, task) | registers
        return UserRegisters(registers, "", *_fpu_state(kernel, task, cpu))
    except FaultError as fault:
        return UserRegisters(None, str(fault))


def _on_cpu(kernel: Kernel, cpu: int) -> Registers | None:
    registers = cpu_registers(kernel, cpu)
    if registers is None or not kernel.arch.is_user(registers):
        return None
    return dict(registers)


def _task_pt_regs(kernel: Kernel, task: Task) -> Registers | None:
    # At the top of the stack; below 16 bytes of padding with CONFIG_X86_FRED, since
    # Linux kernel commit 65c9cc9e2c14 ("x86/fred: Reserve space for the FRED stack
    # frame") (in v6.9).
    size = kernel.struct("pt_regs").size
    names = kernel.arch.registers[: size // 8]
    top = task.stack + task_stack_size(kernel)
    for padding in (0, 16):
        words = kernel.reader.array(top - padding - size, "Q", len(names))
        registers = dict(zip(names, words, strict=True))
        # Of selectors the kernel keeps 16 bits, above is what FRED adds.
        registers["cs"] &= 0xFFFF
        registers["ss"] &= 0xFFFF
        if kernel.arch.is_user(registers) and registers["ss"] & 3 == 3:
            return registers
    return None


def _segments(kernel: Kernel, task: Task) -> Registers:
    # Saved as the task is switched out, and set by arch_prctl(2) and clone(2).
    names = {"fsbase": "fs_base", "gsbase": "gs_base", "fsindex": "fs",
             "gsindex": "gs", "ds": "ds", "es": "es"}  # fmt: skip
    fields = kernel.fields("task_struct", [f"thread.{name}" for name in names])
    return dict(zip(names.values(), fields.read(task.address), strict=True))


def _fpu_state(kernel: Kernel, task: Task, cpu: int | None) -> tuple[bytes, bytes]:
    # What a CPU had in its registers as it stopped is not in a dump.
    if cpu is not None:
        (flags,) = kernel.fields("task_struct", ["thread_info.flags"]).read(
            task.address
        )
        # Since Linux kernel commit 5f409e20b794 ("x86/fpu: Defer FPU state load until
        # return to userspace") (in v5.2).
        if not flags >> _TIF_NEED_FPU_LOAD & 1:
            return b"", b""
    address, size = _xsave_area(kernel, task)
    if size < _YMM:
        return kernel.reader.read(address, _FXSAVE_SIZE), b""
    data = kernel.reader.read(address, min(size, _AVX_SIZE))
    return _uabi_state(data)


def _xsave_area(kernel: Kernel, task: Task) -> tuple[int, int]:
    thread = task.address + kernel.struct("task_struct").offset("thread")
    if kernel.has_member("thread_struct", "fpu"):
        fpu = thread + kernel.struct("thread_struct").offset("fpu")
    else:
        # Since Linux kernel commit cb7ca40a3882 ("x86/fpu: Make task_struct::thread
        # constant size") (in v6.16).
        fpu = task.address + kernel.struct("task_struct").size
    if kernel.has_member("fpu", "fpstate"):
        # Since Linux kernel commit 87d0e5be0fac ("x86/fpu: Provide struct fpstate") (in
        # v5.16).
        (fpstate,) = kernel.fields("fpu", ["fpstate"]).read(fpu)
        (size,) = kernel.fields("fpstate", ["size"]).read(fpstate)
        return fpstate + kernel.struct("fpstate").offset("regs"), size
    size = kernel.reader.u32(kernel.symbol("fpu_kernel_xstate_size"))
    return fpu + kernel.struct("fpu").offset("state"), size


def _uabi_state(data: bytes) -> tuple[bytes, bytes]:
    # A component that the header does not name has its initial state, whatever bytes
    # are there. The first three are in the same place with compaction and without.
    features = int.from_bytes(data[_HEADER : _HEADER + 8], "little")
    compaction = int.from_bytes(data[_HEADER + 8 : _HEADER + 16], "little")
    state = bytearray(_INITIAL)
    if features & _FP:
        state[:24], state[32:160] = data[:24], data[32:160]
    if features & (_SSE | _AVX):
        state[24:32] = data[24:32]
    if features & _SSE:
        state[160:416] = data[160:416]
    fxsave = bytes(state)
    if not (features | compaction) & _AVX or len(data) < _AVX_SIZE:
        return fxsave, b""
    # Where debuggers look for XCR0, among what software may use of FXSAVE's area.
    state[464:472] = (_FP | _SSE | _AVX).to_bytes(8, "little")
    header = (features & (_FP | _SSE | _AVX)).to_bytes(8, "little")
    ymm = data[_YMM:_AVX_SIZE] if features & _AVX else bytes(_AVX_SIZE - _YMM)
    return fxsave, bytes(state) + header.ljust(64, b"\0") + ymm
