# SPDX-License-Identifier: GPL-2.0-or-later
"""x86-64 page walks on tables made by hand."""

from __future__ import annotations

import struct

import pytest
from support.fakes import DictMemory
from support.mkdump import NX, PRESENT, PSE, RW, PageTables

from gdbkdump.arch.base import GuestCpu, Mapping, UserPage
from gdbkdump.arch.x86_64 import X86_64, X86PageTable
from gdbkdump.errors import FaultError, FaultReason, FormatError
from gdbkdump.formats.base import Note
from gdbkdump.formats.vmcoreinfo import VmcoreInfo

ROOT = 0x10000
KERNEL = 0xFFFFC90000001000
IMAGE = 0xFFFFFFFF80000000
G, M = 1 << 30, 1 << 20


def tables(levels=4, mask=0):
    memory = DictMemory()
    made = PageTables(memory, ROOT, levels, mask)
    return made, X86PageTable(memory.read, ROOT, levels, mask)


def reason(table, vaddr):
    with pytest.raises(FaultError) as caught:
        table.translate(vaddr)
    assert caught.value.address == vaddr
    return caught.value.reason


@pytest.mark.parametrize("levels", [4, 5])
def test_pages_of_each_size(levels):
    made, table = tables(levels)
    made.map(KERNEL, 0x1234000)
    made.map(0xFFFF888000000000, 0x40000000, level=3)
    made.map(0xFFFFFFFF81000000, 0x1000000, level=2, flags=RW | NX)
    assert table.translate(KERNEL + 0xABC) == Mapping(KERNEL, 0x1234000, 4096)
    assert table.translate(0xFFFF888000000000 + 777 * M) == Mapping(
        0xFFFF888000000000, 0x40000000, G
    )
    assert table.translate(0xFFFFFFFF811FFFFF) == Mapping(
        0xFFFFFFFF81000000, 0x1000000, 2 * M
    )
    assert reason(table, KERNEL - 1) is FaultReason.UNMAPPED
    assert reason(table, 0) is FaultReason.UNMAPPED


def test_the_fifth_level_tells_addresses_apart():
    made, table = tables(5)
    made.map(0xFF11000000001000, 0x5000)
    made.map(0xFF12000000001000, 0x6000)
    assert table.translate(0xFF11000000001000).paddr == 0x5000
    assert table.translate(0xFF12000000001000).paddr == 0x6000
    assert [step.level for step in table.walk(0xFF11000000001000)] == [
        "PGD", "P4D", "PUD", "PMD", "PTE",
    ]  # fmt: skip


def test_an_encryption_bit_is_no_address():
    made, table = tables(4, 1 << 47)
    made.map(KERNEL, 0x1234000)
    made.map(0xFFFFFFFF81000000, 0x1000000, level=2)
    assert table.translate(KERNEL).paddr == 0x1234000
    assert table.translate(0xFFFFFFFF81000000).paddr == 0x1000000
    assert {leaf.paddr for leaf in table.mappings((), [])} == {0x1234000, 0x1000000}


def test_the_pat_bit_of_a_huge_page_is_no_address():
    made, table = tables()
    made.map(0xFFFFFFFF81000000, 0x1000000, level=2, flags=RW | 1 << 12)
    made.map(0xFFFF888000000000, G, level=3, flags=RW | 1 << 12 | NX)
    assert table.translate(0xFFFFFFFF81000000).paddr == 0x1000000
    assert table.translate(0xFFFF888000000000).paddr == G


def test_a_huge_page_where_none_can_be_is_a_damaged_table():
    made, table = tables()
    entry = ROOT + (KERNEL >> 39 & 511) * 8
    made.memory.words(entry, 0x5000 | PRESENT | PSE)
    assert reason(table, KERNEL) is FaultReason.TABLE
    unreadable = []
    assert list(table.mappings((), unreadable)) == []
    assert unreadable == [0x5000]


@pytest.mark.parametrize(
    ("levels", "vaddr", "is_canonical"),
    [
        (4, 0x00007FFFFFFFFFFF, True),
        (4, 0x0000800000000000, False),
        (4, 0xFFFF7FFFFFFFFFFF, False),
        (4, 0xFFFF800000000000, True),
        (5, 0x00FFFFFFFFFFFFFF, True),
        (5, 0x0100000000000000, False),
        (5, 0xFEFFFFFFFFFFFFFF, False),
        (5, 0xFF00000000000000, True),
    ],
)
def test_canonical_addresses_by_levels(levels, vaddr, is_canonical):
    _, table = tables(levels)
    wanted = FaultReason.UNMAPPED if is_canonical else FaultReason.NONCANONICAL
    assert reason(table, vaddr) is wanted


def test_a_table_that_is_not_in_the_dump():
    made, table = tables()
    made.memory.words(ROOT + (KERNEL >> 39 & 511) * 8, 0x70000000 | PRESENT)
    assert reason(table, KERNEL) is FaultReason.TABLE
    unreadable = []
    assert list(table.mappings((), unreadable)) == []
    assert unreadable == [0x70000000]


def test_a_walk_tells_each_entry_down_to_the_last():
    made, table = tables()
    entry = made.map(KERNEL, 0x1234000, flags=NX)
    steps = table.walk(KERNEL)
    assert [step.level for step in steps] == ["PGD", "PUD", "PMD", "PTE"]
    assert steps[-1].paddr == entry
    assert steps[-1].value == 0x1234000 | PRESENT | NX
    assert table.flags(steps[-1].value) == "PRESENT|NX"
    # Unmapped: the last step is the entry that is not present.
    steps = table.walk(KERNEL + 4096)
    assert (len(steps), steps[-1].value) == (4, 0)
    assert [step.level for step in table.walk(0x1000)] == ["PGD"]


def test_mappings_are_all_of_the_kernels_and_none_of_users():
    made, table = tables()
    made.map(0x400000, 0x9000)
    wanted = {KERNEL: 0x1000, KERNEL + 8192: 0x2000, 0xFFFFFFFFFFFFF000: 0x3000}
    for vaddr, paddr in wanted.items():
        made.map(vaddr, paddr)
    made.map(0xFFFF888000000000, 0, level=3)
    found = {leaf.vaddr: leaf.paddr for leaf in table.mappings((), [])}
    assert found == wanted | {0xFFFF888000000000: 0}
    skip = [(0xFFFF888000000000, 0xFFFF888040000000)]
    found = {leaf.vaddr: leaf.paddr for leaf in table.mappings(skip, [])}
    assert found == wanted


def test_tables_that_point_to_themselves_end():
    made, table = tables()
    for index in range(256, 512):
        made.memory.words(ROOT + index * 8, ROOT | PRESENT)
    # A self-map is legal paging: a walk ends by the number of levels.
    assert table.translate(0xFFFFFFFFFFFFF000).paddr == ROOT


def test_the_number_of_levels_is_told_or_tried():
    arch = X86_64()
    made, _ = tables(5)
    made.map(KERNEL, 0x5000)
    told = VmcoreInfo(b"NUMBER(pgtable_l5_enabled)=1\n")
    for info in (told, None):
        table = arch.page_table(info, made.memory.read, ROOT, KERNEL)
        assert (table.levels, table.translate(KERNEL).paddr) == (5, 0x5000)
    wrong = VmcoreInfo(b"NUMBER(pgtable_l5_enabled)=0\n")
    with pytest.raises(FaultError):
        arch.page_table(wrong, made.memory.read, ROOT, KERNEL)


def test_prstatus_there_and_back():
    arch = X86_64()
    registers = {name: i * 0x1111 for i, name in enumerate(arch.registers)}
    desc = arch.make_prstatus(4242, registers)
    assert len(desc) == 336
    assert arch.parse_prstatus(desc) == (4242, registers)
    # struct elf_prstatus of x86-64: pr_pid at 32, pr_reg at 112, rip the 17th word.
    assert int.from_bytes(desc[32:36], "little") == 4242
    rip = int.from_bytes(desc[112 + 16 * 8 : 112 + 17 * 8], "little")
    assert rip == registers["ip"]
    for size in range(112 + 27 * 8):
        with pytest.raises(FormatError, match="cut"):
            arch.parse_prstatus(desc[:size])


def test_the_ring_tells_user_mode():
    assert X86_64().is_user({"cs": 0x33})
    assert not X86_64().is_user({"cs": 0x10})


def qemu_note(cs=0x10, cr3=0x1234000, cr4=0, gs=0x5000, kernel_gs=0x6000):
    """A note of QEMU: 16 registers, rip, rflags, ten segments, cr0 to cr4."""
    registers = [0x100 + i for i in range(16)] + [0xFFFFFFFF81000000, 0x246]
    segments = [(cs, 0), (0x2B, 0), (0x2B, 0), (0, 0x7000), (0, gs), (0x18, 0)]
    segments += [(0, 0)] * 4
    desc = struct.pack("<II18Q", 1, 440, *registers)
    desc += b"".join(struct.pack("<I12xQ", *segment) for segment in segments)
    desc += struct.pack("<5Q", 0x80050033, 0, 0, cr3, cr4)
    return Note(b"QEMU", 0, desc + struct.pack("<Q", kernel_gs))


def test_what_qemu_notes_of_a_cpu():
    other = Note(b"CORE", 1, bytes(336))
    (cpu,) = X86_64().guest_cpus([other, qemu_note()])
    # struct QEMUCPUState begins rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8.
    names = ("ax", "bx", "cx", "dx", "si", "di", "sp", "bp", "r8")
    assert [cpu.registers[name] for name in names] == list(range(0x100, 0x109))
    assert cpu.registers["ip"] == 0xFFFFFFFF81000000
    assert (cpu.registers["cs"], cpu.registers["ss"]) == (0x10, 0x18)
    assert (cpu.registers["fs_base"], cpu.registers["gs_base"]) == (0x7000, 0x5000)
    assert (cpu.roots, cpu.levels) == ((0x1234000,), 4)


def test_the_tables_of_a_cpu():
    def tables_of(**wanted):
        (cpu,) = X86_64().guest_cpus([qemu_note(**wanted)])
        return cpu.roots, cpu.levels

    assert tables_of(cr4=1 << 12) == ((0x1234000,), 5)
    # The lowest bits are a PCID; with page table isolation the user's table is odd.
    assert tables_of(cr3=0x1235007) == ((0x1234000, 0x1235000), 4)


def test_the_per_cpu_base_is_the_kernels_gs():
    def bases_of(**wanted):
        (cpu,) = X86_64().guest_cpus([qemu_note(**wanted)])
        return cpu.percpu_bases

    assert bases_of(cs=0x10) == (0x5000, 0x6000)
    # In user mode anything may be in GS: a program can set it.
    assert bases_of(cs=0x33) == (0x6000,)


def guest(roots=(ROOT,), levels=4, idt=0):
    return GuestCpu({}, roots, levels, (), idt)


def put_gate(memory, paddr, handler):
    """A gate of the interrupt descriptor table: the handler in three pieces."""
    low, middle, high = handler & 0xFFFF, handler >> 16 & 0xFFFF, handler >> 32
    memory.put(paddr, struct.pack("<HHHHII", low, 0x10, 0x8E00, middle, high, 0))


@pytest.mark.parametrize("levels", [4, 5])
def test_the_image_is_the_first_that_is_mapped_there(levels):
    made, _ = tables(levels)
    made.map(IMAGE + 0x1000000, 0x2000000, level=2)
    made.map(IMAGE + 0x1200000, 0x2200000, level=2)
    made.map(IMAGE + 0x1600000, 0x2600000, level=2)  # init memory before it is gone
    made.map(IMAGE + 0x30000000, 0x7000)
    made.map(0xFFFFFFFFC0000000, 0x8000)  # a module's
    made.map(0xFFFF888000000000, 0, level=3)
    delta = IMAGE + 0x1000000 - 0x2000000
    assert list(X86_64().guest_images(guest(levels=levels), made.memory.read)) == [
        (IMAGE + 0x1000000, IMAGE + 0x1800000, delta)
    ]


def test_the_image_is_where_exceptions_are_handled():
    made, _ = tables()
    idt = 0xFFFFFE0000000000
    made.map(IMAGE, 0x1000)  # nothing of the image
    made.map(IMAGE + 0x1000000, 0x2000000, level=2)
    made.map(idt, 0x9000)
    put_gate(made.memory, 0x9000, IMAGE + 0x1100000)
    found = list(X86_64().guest_images(guest(idt=idt), made.memory.read))
    assert found[1] == (
        IMAGE + 0x1000000,
        IMAGE + 0x1200000,
        IMAGE + 0x1000000 - 0x2000000,
    )


def test_no_image_where_there_are_no_tables():
    made, _ = tables()
    read = made.memory.read
    assert list(X86_64().guest_images(guest(roots=(0x7FFFF000,)), read)) == []
    assert list(X86_64().guest_images(guest(), read)) == []


def test_old_and_cut_notes_of_qemu():
    whole = qemu_note().desc
    assert len(whole) == 440
    (old,) = X86_64().guest_cpus([Note(b"QEMU", 0, whole[:432])])
    assert old.percpu_bases == (0x5000,)
    assert X86_64().guest_cpus([Note(b"QEMU", 0, whole[:431])]) == []


# A process: what is there, what was, what may not be touched.

LIMIT = 1 << 47


def user(table, start=0, end=LIMIT):
    unreadable = []
    return list(table.user_pages(start, end, unreadable)), unreadable


def entry_at(made, vaddr, level=1):
    """Return where the entry of an address is in memory."""
    table = made.root
    for depth in range(made.levels, level, -1):
        at = table + (vaddr >> (3 + 9 * depth) & 511) * 8
        table = int.from_bytes(made.memory.read(at, 8), "little") & 0xFFFFFFFFFF000
    return table + (vaddr >> (3 + 9 * level) & 511) * 8


def set_entry(made, vaddr, value, level=1):
    made.memory.words(entry_at(made, vaddr, level), value & (1 << 64) - 1)


@pytest.mark.parametrize("levels", [4, 5])
def test_user_pages_in_order_and_within_bounds(levels):
    made, table = tables(levels)
    made.map(0x400000, 0x1234000)
    made.map(0x401000, 0x1235000)
    made.map(0x402000, 0x1237000)
    made.map(0x7F0000200000, 0x40000000, level=2)
    made.map(0x7FFFFFFFF000, 0x5000)
    made.map(KERNEL, 0x9000)
    wanted = [
        # Neighbours in both address spaces come as one.
        UserPage(0x400000, 8192, 0x1234000),
        UserPage(0x402000, 4096, 0x1237000),
        UserPage(0x7F0000200000, 2 * M, 0x40000000),
        UserPage(0x7FFFFFFFF000, 4096, 0x5000),
    ]
    assert user(table) == (wanted, [])
    assert user(table, 0x402000, 0x403000) == (wanted[1:2], [])
    assert user(table, 0x401000, 0x402000) == (
        [UserPage(0x401000, 4096, 0x1235000)],
        [],
    )
    # A huge page counts as a whole where only a part is asked for.
    assert user(table, 0x7F0000300000, 0x7F0000301000) == (wanted[2:3], [])
    assert user(table, 0x403000, 0x500000) == ([], [])


def test_pages_that_nobody_may_touch_are_there():
    made, table = tables()
    made.map(0x400000, 0x1000)
    made.map(0x401000, 0x1000)
    made.map(0x7F0000200000, 0x40000000, level=2)
    protnone = 0x100
    # Inverted against L1TF, and as kernels before that had it.
    set_entry(made, 0x400000, ~0x1234000 & 0x000FFFFFFFFFF000 | protnone)
    set_entry(made, 0x401000, 0x1235000 | protnone)
    huge = ~0x40000000 & 0x000FFFFFFFE00000 | protnone | PSE
    set_entry(made, 0x7F0000200000, huge, level=2)
    assert [(leaf.vaddr, leaf.paddr) for leaf in user(table)[0]] == [
        (0x400000, 0x1234000),
        (0x401000, 0x1235000),
        (0x7F0000200000, 0x40000000),
    ]


def test_swap_entries():
    made, table = tables()
    made.map(0x400000, 0x1000)
    type_, offset = 3, 0x12345
    # __swp_entry(): (~offset << 14 >> 5) | type << 59.
    value = (~offset << 14 & (1 << 64) - 1) >> 5 | type_ << 59
    set_entry(made, 0x400000, value)
    assert user(table)[0] == [UserPage(0x400000, 4096, None, (type_, offset))]


def test_user_tables_that_cannot_be_read_say_what_they_map():
    made, table = tables()
    made.map(0x400000, 0x1000)
    made.map(0x800000, 0x2000)
    set_entry(made, 0x600000, 0x77777000 | PRESENT, level=2)
    leaves, unreadable = user(table)
    assert [leaf.vaddr for leaf in leaves] == [0x400000, 0x800000]
    assert unreadable == [(0x600000, 0x800000)]
    assert user(table, 0x601000, 0x602000) == ([], [(0x601000, 0x602000)])
