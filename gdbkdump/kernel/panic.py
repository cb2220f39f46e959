# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened: the panic message, registers of each CPU at the crash, taint."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from gdbkdump.errors import FaultError, FormatError, SymbolNotFoundError
from gdbkdump.formats.notes import NT_PRSTATUS
from gdbkdump.kernel.percpu import cpus, per_cpu_offset, per_cpu_ptr
from gdbkdump.kernel.printk import printk_records
from gdbkdump.kernel.timekeeping import crash_time

if TYPE_CHECKING:
    from gdbkdump.arch.base import Registers
    from gdbkdump.kernel.base import Kernel

_MAX_TAINTS = 32  # TAINT_FLAGS_COUNT is 20 in 7.x
_NOTE_HEADER = struct.Struct("<III")
# Lines that say why, best first: what comes after them is the consequence.
_OOPS = (
    b"BUG: kernel NULL pointer dereference",
    b"BUG: unable to handle",
    b"Unable to handle kernel",
    b"stack guard page was hit",
    b"general protection fault",
    b"stack-protector",
    b"double fault",
    b"divide error",
    b"invalid opcode",
    b"kernel BUG at",
    b"Oops: ",
)


def cpu_registers(kernel: Kernel, cpu: int) -> Registers | None:
    """Return a CPU's registers at the crash, or None where it saved none.

    From the per-CPU ``crash_notes`` (``kernel/crash_core.c``: ``crash_save_cpu()``), as
    the order of the notes in the file is not that of the CPUs. Without kdump those stay
    empty, and a hypervisor's notes tell.

    :raise FaultError: the note cannot be read
    """
    saved = _saved_registers(kernel, cpu)
    return saved or _guest_registers(kernel).get(cpu)


def _saved_registers(kernel: Kernel, cpu: int) -> Registers | None:
    try:
        notes = kernel.reader.u64(kernel.symbol("crash_notes"))
    except SymbolNotFoundError:
        return None
    if not notes:
        return None
    address = per_cpu_ptr(kernel, notes, cpu)
    name_size, desc_size, type_ = _NOTE_HEADER.unpack(kernel.reader.read(address, 12))
    # A CPU that did not answer the NMI leaves its buffer zeroed.
    if not name_size or type_ != NT_PRSTATUS or desc_size > 4096:
        return None
    start = address + 12 + ((name_size + 3) & ~3)
    try:
        return kernel.arch.parse_prstatus(kernel.reader.read(start, desc_size))[1]
    except FormatError:
        return None


def _guest_registers(kernel: Kernel) -> dict[int, Registers]:
    return kernel.once("guest registers", lambda: _match_guest_cpus(kernel))


def _match_guest_cpus(kernel: Kernel) -> dict[int, Registers]:
    # The kernel's number of a CPU need not be the hypervisor's, but each CPU knows the
    # address of its own data. After kdump it is another kernel that runs on them.
    if crash_time(kernel) is not None:
        return {}
    by_base = {per_cpu_offset(kernel, cpu): cpu for cpu in cpus(kernel, "possible")}
    found = {}
    for guest in kernel.guest_cpus:
        base = next((base for base in guest.percpu_bases if base in by_base), None)
        if base is not None:
            found[by_base[base]] = guest.registers
    return found


def unsaved_registers(kernel: Kernel, cpu: int) -> str:
    """Return why there are no registers of a CPU."""
    if crash_time(kernel) is None:
        return f"the registers of CPU {cpu} are not in the dump"
    return f"CPU {cpu} was offline or did not answer: registers not saved"


def panic_message(kernel: Kernel) -> bytes | None:
    """Return the line of the log that says why the kernel died, or None.

    The last panic line; where an oops led to it, that oops, as crash does.
    """
    panic = oops = None
    for record in printk_records(kernel, []):
        first = record.text.partition(b"\n")[0]
        if first.startswith(b"Kernel panic - not syncing: "):
            panic = first
        elif oops is None and any(text in first for text in _OOPS):
            oops = first
    if oops and (panic is None or b"Fatal exception" in panic):
        return oops
    return panic


def taint_letters(kernel: Kernel, mask: int) -> str:
    """Return the letters of a mask of taint flags (``taint_flags[]``)."""
    table = kernel.symbol("taint_flags")
    type_ = kernel.struct("taint_flag")
    offset = type_.offset("c_true")
    return "".join(
        chr(kernel.reader.u8(table + bit * type_.size + offset))
        for bit in range(min(mask.bit_length(), _MAX_TAINTS))
        if mask >> bit & 1
    )


def taint_flags(kernel: Kernel) -> str | None:
    """Return the taint letters as in an oops (``kernel/panic.c``), ``""`` for none."""
    try:
        mask = kernel.reader.u64(kernel.symbol("tainted_mask"))
        return taint_letters(kernel, mask)
    except (SymbolNotFoundError, FaultError):
        return None
