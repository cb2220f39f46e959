# SPDX-License-Identifier: GPL-2.0-or-later
"""CPU masks and per-CPU data (``include/linux/cpumask.h``, ``percpu-defs.h``).

After a panic the other CPUs are no longer online, so data is looked for on every
possible CPU and "online" is a state, never a way to choose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdbkdump.errors import CommandError, CorruptError
from gdbkdump.memory.virtual import MASK64

if TYPE_CHECKING:
    from gdbkdump.kernel.base import Kernel

_MAX_CPUS = 8192


def cpus(kernel: Kernel, mask: str) -> list[int]:
    """Return the CPUs of the mask ``possible``, ``present``, ``online``, ..."""
    return kernel.once(("cpus", mask), lambda: _read_mask(kernel, mask))


def _read_mask(kernel: Kernel, mask: str) -> list[int]:
    address = kernel.symbol(f"__cpu_{mask}_mask")
    size = kernel.struct("cpumask").size
    if not 0 < size <= _MAX_CPUS // 8:
        raise CorruptError(f"a struct cpumask of {size} bytes")
    bits = int.from_bytes(kernel.reader.read(address, size), "little")
    return [cpu for cpu in range(size * 8) if bits >> cpu & 1]


def per_cpu_offset(kernel: Kernel, cpu: int) -> int:
    """Return ``__per_cpu_offset[cpu]``.

    :raise CommandError: the kernel has no such CPU
    """
    offsets = kernel.once("per_cpu_offset", lambda: _read_offsets(kernel))
    if cpu not in offsets:
        raise CommandError(
            f"this kernel has no CPU {cpu} (possible: {_ranges(offsets)})"
        )
    return offsets[cpu]


def _read_offsets(kernel: Kernel) -> dict[int, int]:
    possible = cpus(kernel, "possible")
    address = kernel.symbol("__per_cpu_offset")
    words = kernel.reader.array(address, "Q", max(possible, default=0) + 1)
    return {cpu: words[cpu] for cpu in possible}


def per_cpu_ptr(kernel: Kernel, pointer: int, cpu: int) -> int:
    """Return a CPU's copy of what a per-CPU pointer points to."""
    return (pointer + per_cpu_offset(kernel, cpu)) & MASK64


def per_cpu(kernel: Kernel, symbol: str, cpu: int) -> int:
    """Return the address of a CPU's copy of a per-CPU variable."""
    return per_cpu_ptr(kernel, kernel.symbol(symbol), cpu)


def is_per_cpu(kernel: Kernel, name: str, address: int) -> bool:
    """Tell whether a symbol of this name and address is a per-CPU variable.

    No CPU's data is there: on x86-64 the addresses count from 0 until commit
    9d7de2aa8b41 ("x86/percpu/64: Use relative percpu offsets") in v6.15; since then
    they are where the first values lay at boot, in memory that was given back. What
    the linker threw away is at 0 too, but is no symbol of the kernel.
    """
    start, end = kernel.symbol("__per_cpu_start"), kernel.symbol("__per_cpu_end")
    return start <= address < end and any(
        symbol.address == address for symbol in kernel.debuginfo.symbols(name)
    )


def _ranges(numbers: dict[int, int]) -> str:
    return f"{min(numbers)}-{max(numbers)}" if numbers else "none"
