# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts about CPUs, as pure functions: paging, register and stack-frame layouts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdbkdump.arch.x86_64 import X86_64
from gdbkdump.errors import FormatError

if TYPE_CHECKING:
    from gdbkdump.arch.base import Arch

_ARCHES: dict[int, Arch] = {X86_64.machine: X86_64()}


def find_arch(machine: int) -> Arch:
    """Return the architecture of an ELF ``e_machine``.

    :raise FormatError: it is none that we know
    """
    arch = _ARCHES.get(machine)
    if arch is None:
        raise FormatError(
            f"dumps of ELF machine {machine} are not supported (x86-64 is)"
        )
    return arch
