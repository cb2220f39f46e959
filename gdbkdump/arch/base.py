# SPDX-License-Identifier: GPL-2.0-or-later
"""What a CPU architecture has to offer.

To port: give ``machine``, ``registers`` and the NT_PRSTATUS layout, where the kernel
image is, and a ``PageTable``; see x86_64.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gdbkdump.formats.base import Extent, Note
    from gdbkdump.formats.vmcoreinfo import VmcoreInfo

    ReadPhys = Callable[[int, int], bytes]

# General registers by name, as ``struct user_regs_struct`` names them.
Registers = dict[str, int]


@dataclass(frozen=True)
class TableEntry:
    """One step of a page-table walk.

    :param level: the kernel's name: PGD, P4D, PUD, PMD, PTE
    :param paddr: where the entry is
    :param value: the entry as it is in memory
    """

    level: str
    paddr: int
    value: int


class GuestCpu(NamedTuple):
    """A CPU as the hypervisor saw it when it dumped the machine.

    :param roots: physical addresses where its top page table may be, likeliest first
    :param levels: of those page tables
    :param percpu_bases: what may be the address of the kernel's data of this CPU
    :param vectors: virtual address of its table of exception handlers
    """

    registers: Registers
    roots: tuple[int, ...]
    levels: int
    percpu_bases: tuple[int, ...]
    vectors: int


class Mapping(NamedTuple):
    """A leaf of the page tables: ``size`` bytes at ``vaddr`` are those at ``paddr``."""

    vaddr: int
    paddr: int
    size: int


class UserPage(NamedTuple):
    """A leaf of a process's page tables, or small ones that follow each other.

    :param paddr: where the page is, also one that the process may not touch
        (PROT_NONE); None where there is none
    :param swap: type and offset of a swap entry, where there is no page
    """

    vaddr: int
    size: int
    paddr: int | None
    swap: tuple[int, int] = (0, 0)


class PageTable(Protocol):
    """One tree of page tables."""

    root: int

    def with_root(self, root: int) -> PageTable:
        """Return another tree of the same make, a process's for example."""

    def translate(self, vaddr: int) -> Mapping:
        """Return the leaf that maps ``vaddr``.

        :raise FaultError: none does, or a table cannot be read
        """

    def walk(self, vaddr: int) -> list[TableEntry]:
        """Return the entries met on the way to ``vaddr``, down to the last present."""

    def mappings(
        self, skip: Sequence[tuple[int, int]], unreadable: list[int]
    ) -> Iterator[Mapping]:
        """Yield all kernel leaves but for tables wholly within a ``skip`` range.

        :param unreadable: gets the address of each table that cannot be read
        """

    def user_pages(
        self, start: int, end: int, unreadable: list[tuple[int, int]]
    ) -> Iterator[UserPage]:
        """Yield the leaves between two user addresses, in order, but for empty ones.

        They may begin before the first and end after the second.

        :param unreadable: gets start and end of what each table that cannot be read
            maps
        """

    def flags(self, value: int) -> str:
        """Return the names of an entry's flags, ``PRESENT|RW|...``."""


class Arch(Protocol):
    """An architecture.

    :ivar switch_frame: struct that a task's switch leaves at its ``thread.sp``
    :ivar switch_registers: registers by the members of that struct
    :ivar kernel_segments: registers that are the same in all of the kernel
    :ivar target_description: XML that tells gdb its registers (``Target Descriptions``
        in gdb's manual)
    """

    name: str
    machine: int
    page_shift: int
    registers: tuple[str, ...]
    switch_frame: str
    switch_registers: dict[str, str]
    kernel_segments: Registers
    target_description: str

    def image_delta(
        self, info: VmcoreInfo | None, extents: Sequence[Extent]
    ) -> tuple[int, int, int]:
        """Return start, end and (virtual - physical) of the kernel image map."""

    def page_table(
        self, info: VmcoreInfo | None, read_phys: ReadPhys, root: int, sample: int
    ) -> PageTable:
        """Return the tree at physical ``root``, which must map ``sample``.

        :raise FaultError: it does not
        """

    def parse_prstatus(self, desc: bytes) -> tuple[int, Registers]:
        """Return pid and registers of an NT_PRSTATUS description."""

    def guest_cpus(self, notes: Sequence[Note]) -> list[GuestCpu]:
        """Return what a hypervisor noted of the CPUs, if it was one that dumped."""

    def guest_images(
        self, cpu: GuestCpu, read_phys: ReadPhys
    ) -> Iterator[tuple[int, int, int]]:
        """Yield start, end and (virtual - physical) of what may be the kernel image.

        As the page tables of the CPU map it, likeliest first; none may be it.
        """

    def make_prstatus(self, pid: int, registers: Registers) -> bytes:
        """Return an NT_PRSTATUS description."""

    def remote_registers(self, registers: Registers) -> bytes:
        """Return the reply to gdb's packet ``g``, in the order of the description."""

    def is_user(self, registers: Registers) -> bool:
        """Tell whether the registers are those of user mode."""

    def is_compat(self, registers: Registers) -> bool:
        """Tell whether they are those of user mode with addresses of 32 bits."""
