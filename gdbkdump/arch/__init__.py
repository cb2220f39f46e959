# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts about CPUs, as pure functions: paging, register and stack-frame layouts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdbkdump.arch.x86_64 import X86_64
from gdbkdump.errors import FormatError

if TYPE_CHECKING:
    from gdbkdump.arch.base import Arch

_ARCHES: dict[int, Arch] = {X86_64.machine: X86_64()}
# Of include/uapi/linux/elf-em.h, for messages.
_NAMES = {
    2: "SPARC", 3: "i386", 8: "MIPS", 18: "SPARC", 20: "32-bit PowerPC", 21: "ppc64",
    22: "s390", 40: "32-bit ARM", 43: "sparc64", 50: "IA-64", 183: "arm64",
    243: "RISC-V", 258: "LoongArch",
}  # fmt: skip


def find_arch(machine: int) -> Arch:
    """Return the architecture of an ELF ``e_machine``.

    :raise FormatError: it is none that we know
    """
    arch = _ARCHES.get(machine)
    if arch is None:
        name = _NAMES.get(machine, f"unknown (ELF machine {machine})")
        raise FormatError(
            f"a dump of a machine that is not supported: it is {name}, and only x86-64"
            " is (crash, built for that machine, reads it)"
        )
    return arch
