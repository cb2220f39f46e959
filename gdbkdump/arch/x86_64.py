# SPDX-License-Identifier: GPL-2.0-or-later
"""x86-64: 4- and 5-level paging, NT_PRSTATUS, the context-switch frame.

Mirrors ``arch/x86/include/asm/pgtable_64_types.h``, ``pgtable_types.h``,
``include/uapi/linux/elfcore.h`` and ``arch/x86/include/asm/switch_to.h``.
"""

from __future__ import annotations

import contextlib
import struct
from itertools import repeat
from typing import TYPE_CHECKING

from gdbkdump.arch.base import (
    GuestCpu,
    Mapping,
    Registers,
    TableEntry,
    UserPage,
)
from gdbkdump.arch.x86_64_remote import TARGET_DESCRIPTION, remote_registers
from gdbkdump.errors import FaultError, FaultReason, FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gdbkdump.arch.base import ReadPhys
    from gdbkdump.formats.base import Extent, Note
    from gdbkdump.formats.vmcoreinfo import VmcoreInfo

START_KERNEL_MAP = 0xFFFFFFFF80000000
_KERNEL_IMAGE_SIZE = 1 << 30
_PRESENT, _PSE = 1, 0x80
# In an entry that is not present: its page is there, for nobody to touch.
_PROTNONE = 0x100
_TOP_PADDR_BIT = 1 << 51
_USER32_CS = 0x23  # __USER32_CS (arch/x86/include/asm/segment.h)
_PADDR_MASK = 0x000FFFFFFFFFF000
_MAX_TABLES = 2048  # 8 MiB
_TABLE = struct.Struct("<512Q")
_U64 = struct.Struct("<Q")
# struct elf_prstatus: pr_pid and pr_reg.
_PRSTATUS = struct.Struct("<32xi76x27Q8x")
# QEMU's note (target/i386/arch_dump.c: QEMUCPUState): version, size, registers, ten
# segments of selector, limit, flags, pad and base, cr0 to cr4; then kernel_gs_base
# since QEMU 3.0.
_QEMU_CPU = struct.Struct("<II18Q" + "I12xQ" * 10 + "5Q")
_QEMU_REGISTERS = (
    "ax", "bx", "cx", "dx", "si", "di", "sp", "bp", "r8", "r9", "r10", "r11", "r12",
    "r13", "r14", "r15", "ip", "flags",
)  # fmt: skip
_QEMU_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss")
_CR4_LA57 = 1 << 12
# The kernel's top table and the user's are next to each other, at 8 KiB (pti.h).
_PTI_USER = 1 << 12
_LEVELS = ("PTE", "PMD", "PUD", "P4D", "PGD")
_FLAGS = (
    (0, "PRESENT"), (1, "RW"), (2, "USER"), (3, "PWT"), (4, "PCD"), (5, "ACCESSED"),
    (6, "DIRTY"), (7, "PSE"), (8, "GLOBAL"), (63, "NX"),
)  # fmt: skip


class X86PageTable:
    """A tree of 4 or 5 levels of 512 entries each.

    :param root: physical address of the top table
    :param sme_mask: encryption bit to strip from entries
    """

    def __init__(
        self, read_phys: ReadPhys, root: int, levels: int, sme_mask: int = 0
    ) -> None:
        """Take a tree; nothing is read yet."""
        self.root = root
        self.levels = levels
        self.sme_mask = sme_mask
        self._read_phys = read_phys
        self._tables: dict[int, memoryview] = {}
        self._mask = _PADDR_MASK & ~sme_mask
        self._names = (*_LEVELS[: levels - 1], "PGD")

    def with_root(self, root: int) -> X86PageTable:
        """Return another tree of the same make, a process's for example."""
        return X86PageTable(self._read_phys, root, self.levels, self.sme_mask)

    def _is_canonical(self, vaddr: int) -> bool:
        top = vaddr >> (11 + 9 * self.levels)
        return top in (0, (1 << (53 - 9 * self.levels)) - 1)

    def translate(self, vaddr: int) -> Mapping:
        """Return the leaf that maps ``vaddr``.

        :raise FaultError: none does, or a table cannot be read
        """
        if not self._is_canonical(vaddr):
            raise FaultError("virtual", vaddr, FaultReason.NONCANONICAL)
        table = self.root
        for level in range(self.levels, 0, -1):
            try:
                entry = self._table(table)[vaddr >> (3 + 9 * level) & 511]
            except FaultError:
                raise FaultError("virtual", vaddr, FaultReason.TABLE) from None
            if not entry & _PRESENT:
                raise FaultError("virtual", vaddr, FaultReason.UNMAPPED)
            if level == 1 or entry & _PSE:
                return self._leaf(vaddr, entry, level)
            table = entry & self._mask
        raise AssertionError("a walk ends at a PTE")

    def _table(self, paddr: int) -> memoryview:
        # Stacks and modules share few tables, so each is read once.
        table = self._tables.get(paddr)
        if table is None:
            if len(self._tables) >= _MAX_TABLES:
                self._tables.clear()
            table = memoryview(self._read_phys(paddr, 4096)).cast("Q")
            self._tables[paddr] = table
        return table

    def _leaf(self, vaddr: int, entry: int, level: int) -> Mapping:
        if level > 3:
            # The bit is reserved there: a damaged table.
            raise FaultError("virtual", vaddr, FaultReason.TABLE)
        # Below its size a huge entry has flags (PAT at bit 12), no address.
        size = 1 << (3 + 9 * level)
        return Mapping(vaddr & -size, entry & self._mask & -size, size)

    def walk(self, vaddr: int) -> list[TableEntry]:
        """Return the entries met on the way to ``vaddr``, down to the last present."""
        if not self._is_canonical(vaddr):
            raise FaultError("virtual", vaddr, FaultReason.NONCANONICAL)
        steps = []
        table = self.root
        for level in range(self.levels, 0, -1):
            paddr = table + ((vaddr >> (3 + 9 * level)) & 511) * 8
            (entry,) = _U64.unpack(self._read_phys(paddr, 8))
            steps.append(TableEntry(self._names[level - 1], paddr, entry))
            if not entry & _PRESENT or level == 1 or entry & _PSE:
                break
            table = entry & self._mask
        return steps

    def mappings(
        self, skip: Sequence[tuple[int, int]], unreadable: list[int]
    ) -> Iterator[Mapping]:
        """Yield all kernel leaves but for tables wholly within a ``skip`` range.

        :param unreadable: gets the address of each table that cannot be read
        """
        return self._descend(self.root, self.levels, 0, skip, unreadable)

    def _descend(
        self,
        table: int,
        level: int,
        base: int,
        skip: Sequence[tuple[int, int]],
        unreadable: list[int],
    ) -> Iterator[Mapping]:
        try:
            entries = _TABLE.unpack(self._read_phys(table, 4096))
        except FaultError:
            unreadable.append(table)
            return
        shift = 3 + 9 * level
        size = 1 << shift
        mask = self._mask & -size
        # Only the upper half of the top table is the kernel's.
        first = 256 if level == self.levels else 0
        high = -1 << (12 + 9 * self.levels) if first else 0
        for i in range(first, 512):
            entry = entries[i]
            if not entry & _PRESENT:
                continue
            vaddr = (high | base | i << shift) & 0xFFFFFFFFFFFFFFFF
            if skip and any(low <= vaddr and vaddr + size <= end for low, end in skip):
                continue
            if level == 1:
                yield Mapping(vaddr, entry & mask, size)
            elif not entry & _PSE:
                inner = [r for r in skip if r[0] < vaddr + size and vaddr < r[1]]
                yield from self._descend(
                    entry & self._mask, level - 1, vaddr, inner, unreadable
                )
            elif level <= 3:
                yield Mapping(vaddr, entry & mask, size)
            else:
                unreadable.append(entry & self._mask)

    def user_pages(
        self, start: int, end: int, unreadable: list[tuple[int, int]]
    ) -> Iterator[UserPage]:
        """Yield the leaves between two user addresses, in order, but for empty ones.

        They may begin before the first and end after the second.

        :param unreadable: gets start and end of what each table that cannot be read
            maps
        """
        return self._user_leaves(self.root, self.levels, 0, start, end, unreadable)

    def _user_leaves(
        self,
        table: int,
        level: int,
        base: int,
        start: int,
        end: int,
        unreadable: list[tuple[int, int]],
    ) -> Iterator[UserPage]:
        shift = 3 + 9 * level
        size = 1 << shift
        first = max(0, start - base) >> shift
        last = min(512, (end - base + size - 1) >> shift)
        try:
            entries = _TABLE.unpack(self._read_phys(table, 4096))
        except FaultError:
            unreadable.append((max(start, base), min(end, base + 512 * size)))
            return
        if level == 1:
            yield from self._small_leaves(entries, base, first, last)
            return
        for i in range(first, last):
            entry = entries[i]
            if not entry:
                continue
            vaddr = base + (i << shift)
            if entry & _PSE or not entry & _PRESENT:
                yield self._user_leaf(vaddr, entry, level)
            else:
                yield from self._user_leaves(
                    entry & self._mask, level - 1, vaddr, start, end, unreadable
                )

    def _small_leaves(
        self, entries: tuple[int, ...], base: int, first: int, last: int
    ) -> Iterator[UserPage]:
        # Neighbours in both address spaces as one: a process has millions of pages.
        mask = self._mask
        at = first
        while at < last:
            entry = entries[at]
            start = at
            at += 1
            if entry & _PRESENT:
                paddr = entry & mask
                after = paddr + 4096
                while at < last and entries[at] & (mask | _PRESENT) == after | _PRESENT:
                    after += 4096
                    at += 1
                yield UserPage(base + (start << 12), (at - start) << 12, paddr)
            elif entry:
                yield self._user_leaf(base + (start << 12), entry, 1)

    def _user_leaf(self, vaddr: int, entry: int, level: int) -> UserPage:
        size = 1 << (3 + 9 * level)
        if level <= 3:
            if entry & _PRESENT:
                return UserPage(vaddr, size, entry & self._mask & -size)
            # pmd_present() is true of PSE alone: a huge page that is being split.
            if entry & (_PROTNONE if level == 1 else _PROTNONE | _PSE):
                return UserPage(vaddr, size, self._hidden_paddr(entry) & -size)
        return UserPage(vaddr, size, None, _swap_entry(entry))

    def _hidden_paddr(self, entry: int) -> int:
        # Inverted since Linux kernel commit 6b28baca9b1f ("x86/speculation/l1tf:
        # Protect PROT_NONE PTEs against speculation") (in v4.19, and older ones by
        # backports): no RAM is where the top bit leads.
        return (~entry if entry & _TOP_PADDR_BIT else entry) & self._mask

    def flags(self, value: int) -> str:
        """Return the names of an entry's flags, ``PRESENT|RW|...``."""
        return "|".join(name for bit, name in _FLAGS if value >> bit & 1)


def _swap_entry(entry: int) -> tuple[int, int]:
    # __swp_type() and __swp_offset() since Linux kernel commit bcd11afa7ade
    # ("x86/speculation/l1tf: Change order of offset/type in swap entry") (in v4.19).
    return entry >> 59, (~entry << 5 & 0xFFFFFFFFFFFFFFFF) >> 14


class X86_64:
    """x86-64."""

    name = "x86_64"
    machine = 62
    page_shift = 12
    # struct user_regs_struct, in its order.
    registers: tuple[str, ...] = (
        "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx",
        "dx", "si", "di", "orig_ax", "ip", "cs", "flags", "sp", "ss", "fs_base",
        "gs_base", "ds", "es", "fs", "gs",
    )  # fmt: skip
    switch_frame = "inactive_task_frame"
    switch_registers: dict[str, str] = {  # noqa: RUF012
        **{name: name for name in ("r15", "r14", "r13", "r12", "bx", "bp")},
        "ret_addr": "ip",
    }
    # __KERNEL_CS and __KERNEL_DS (arch/x86/include/asm/segment.h).
    kernel_segments: Registers = {"cs": 0x10, "ss": 0x18}  # noqa: RUF012
    target_description = TARGET_DESCRIPTION

    def image_delta(
        self, info: VmcoreInfo | None, extents: Sequence[Extent]
    ) -> tuple[int, int, int]:
        """Return start, end and (virtual - physical) of the kernel image map.

        From VMCOREINFO's phys_base, else from the PT_LOAD that kexec makes of it.

        :raise FormatError: neither is there
        """
        end = START_KERNEL_MAP + _KERNEL_IMAGE_SIZE
        phys_base = info.number("phys_base") if info else None
        if phys_base is not None:
            return START_KERNEL_MAP, end, START_KERNEL_MAP - phys_base
        for extent in extents:
            if extent.vaddr is not None and START_KERNEL_MAP <= extent.vaddr < end:
                return START_KERNEL_MAP, end, extent.vaddr - extent.paddr
        raise FormatError("neither VMCOREINFO nor a PT_LOAD says where the kernel is")

    def page_table(
        self, info: VmcoreInfo | None, read_phys: ReadPhys, root: int, sample: int
    ) -> X86PageTable:
        """Return the tree at physical ``root``, which must map ``sample``."""
        sme_mask = (info.number("sme_mask") if info else None) or 0
        told = info.number("pgtable_l5_enabled") if info else None
        for levels in (4, 5) if told is None else (5 if told else 4,):
            table = X86PageTable(read_phys, root, levels, sme_mask)
            try:
                table.translate(sample)
            except FaultError:
                if told is None and levels == 4:
                    continue
                raise
            return table
        raise AssertionError("the loop returns or raises")

    def parse_prstatus(self, desc: bytes) -> tuple[int, Registers]:
        """Return pid and registers of an NT_PRSTATUS description.

        :raise FormatError: it is too short
        """
        # Its last word, pr_fpvalid, tells nothing and may be missing.
        if len(desc) < _PRSTATUS.size - 8:
            raise FormatError("an NT_PRSTATUS note is cut")
        pid, *values = _PRSTATUS.unpack(desc[: _PRSTATUS.size].ljust(_PRSTATUS.size))
        return pid, dict(zip(self.registers, values, strict=True))

    def guest_cpus(self, notes: Sequence[Note]) -> list[GuestCpu]:
        """Return what QEMU noted of the CPUs (``dump-guest-memory``)."""
        return [
            _parse_qemu_cpu(note.desc)
            for note in notes
            if note.name == b"QEMU" and len(note.desc) >= _QEMU_CPU.size
        ]

    def guest_images(
        self, cpu: GuestCpu, read_phys: ReadPhys
    ) -> Iterator[tuple[int, int, int]]:
        """Yield start, end and (virtual - physical) of what may be the kernel image.

        It is the first that is mapped in its part of the address space (as crash has
        it, ``calc_kaslr_offset()``), and the first exception's handler is in it.
        """
        end = START_KERNEL_MAP + _KERNEL_IMAGE_SIZE
        elsewhere = [(0, START_KERNEL_MAP), (end, 1 << 64)]
        for root in cpu.roots:
            table = X86PageTable(read_phys, root, cpu.levels)
            leaves = list(table.mappings(elsewhere, []))
            deltas = [leaf.vaddr - leaf.paddr for leaf in leaves[:1]]
            with contextlib.suppress(FaultError):
                leaf = table.translate(_first_handler(table, cpu.vectors, read_phys))
                deltas.append(leaf.vaddr - leaf.paddr)
            for delta in dict.fromkeys(deltas):
                same = [leaf for leaf in leaves if leaf.vaddr - leaf.paddr == delta]
                if same:
                    yield same[0].vaddr, same[-1].vaddr + same[-1].size, delta

    def make_prstatus(self, pid: int, registers: Registers) -> bytes:
        """Return an NT_PRSTATUS description; registers not named are zero."""
        return _PRSTATUS.pack(pid, *map(registers.get, self.registers, repeat(0)))

    def remote_registers(self, registers: Registers) -> bytes:
        """Return the reply to gdb's packet ``g``; registers not named are zero."""
        return remote_registers(registers)

    def is_user(self, registers: Registers) -> bool:
        """Tell whether the registers are those of user mode (cs has ring 3)."""
        return registers["cs"] & 3 == 3

    def is_compat(self, registers: Registers) -> bool:
        """Tell whether they are those of user mode with addresses of 32 bits."""
        return registers["cs"] == _USER32_CS


def _parse_qemu_cpu(desc: bytes) -> GuestCpu:
    _, _, *words = _QEMU_CPU.unpack_from(desc)
    registers = dict(zip(_QEMU_REGISTERS, words, strict=False))
    selectors, bases = words[18:38:2], words[19:38:2]
    registers |= dict(zip(_QEMU_SEGMENTS, selectors, strict=False))
    idt = bases[9]
    registers |= {"fs_base": bases[3], "gs_base": bases[4]}
    _, _, _, cr3, cr4 = words[38:]
    top = cr3 & _PADDR_MASK
    # With page table isolation user mode has a table that lacks most of the kernel.
    roots = (top & ~_PTI_USER, top) if top & _PTI_USER else (top,)
    swapped = desc[_QEMU_CPU.size : _QEMU_CPU.size + 8]
    percpu = [int.from_bytes(swapped, "little")] if len(swapped) == 8 else []
    if registers["cs"] & 3 == 0:
        # Between entry and swapgs it still is in the other register.
        percpu.insert(0, bases[4])
    return GuestCpu(registers, roots, 5 if cr4 & _CR4_LA57 else 4, tuple(percpu), idt)


def _first_handler(table: X86PageTable, idt: int, read_phys: ReadPhys) -> int:
    # struct gate_struct (arch/x86/include/asm/desc_defs.h).
    leaf = table.translate(idt)
    gate = read_phys(leaf.paddr + idt - leaf.vaddr, 12)
    low, middle, high = struct.unpack("<H4xHI", gate)
    return int(low | middle << 16 | high << 32)
