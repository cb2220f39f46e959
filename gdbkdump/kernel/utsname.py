# SPDX-License-Identifier: GPL-2.0-or-later
"""What the machine is called and what runs on it (``include/linux/utsname.h``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import FaultError, SymbolNotFoundError

if TYPE_CHECKING:
    from gdbkdump.kernel.base import Kernel


class Utsname(NamedTuple):
    """As ``uname -a`` has it."""

    sysname: bytes
    nodename: bytes
    release: bytes
    version: bytes
    machine: bytes


def utsname(kernel: Kernel) -> Utsname:
    """Return the names of the initial UTS namespace."""
    name = kernel.object("uts_namespace", kernel.symbol("init_uts_ns"))["name"]
    return Utsname(*(name[field] for field in Utsname._fields))


def linux_banner(kernel: Kernel) -> bytes:
    """Return ``linux_banner``, what /proc/version shows."""
    return kernel.reader.c_string(kernel.symbol("linux_banner"), 512).rstrip(b"\n")


def cpu_khz(kernel: Kernel) -> int | None:
    """Return the TSC's frequency in kHz, or None where there is none."""
    try:
        return kernel.reader.u32(kernel.symbol("cpu_khz")) or None
    except (SymbolNotFoundError, FaultError):
        return None
