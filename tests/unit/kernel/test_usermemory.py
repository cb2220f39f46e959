# SPDX-License-Identifier: GPL-2.0-or-later
"""User memory on structures made by hand: what no dump of ours has."""

from __future__ import annotations

import pytest
from support.fakes import (
    U8,
    U32,
    U64,
    DictMemory,
    array,
    enum,
    fake_kernel,
    member,
    pointer,
    structure,
)

from gdbkdump.arch.base import UserPage
from gdbkdump.errors import CorruptError, FaultError, FaultReason
from gdbkdump.kernel.page import file_pages, page_to_pfn
from gdbkdump.kernel.pagecache import CachedFile, cached_file
from gdbkdump.kernel.path import d_path
from gdbkdump.kernel.usermemory import Piece, UserPages, Where
from gdbkdump.kernel.vma import VM_HUGETLB, VM_PFNMAP, VM_UFFD_MISSING, Vma, vmas

PAGE = 4096
VMEMMAP = 0xFFFFEA0000000000
FILE, MAPPING, INODE, SHMEM_OPS = 0x1000, 0x1100, 0x1200, 0x9000
MM, MM_PGD = 0x2000, 0x2800


def within(name, offset, inner, type_):
    """Return a member that is a struct of one member."""
    return member(name, offset, structure(f"{name}_type", 8, member(inner, 0, type_)))


def types():
    qstr = structure("qstr", 16, member("len", 0, U32), member("name", 8, U64))
    rb_node = structure(
        "rb_node", 24, member("rb_right", 8, U64), member("rb_left", 16, U64)
    )
    return [
        rb_node,
        structure("rb_root", 8, member("rb_node", 0, U64)),
        structure("mm_struct", 32, member("mm_rb", 0, U64), member("pgd", 8, U64)),
        structure(
            "vm_area_struct", 96,
            *(member(name, 8 * at, U64) for at, name in enumerate(
                ("vm_start", "vm_end", "vm_flags", "vm_pgoff", "vm_file", "vm_ops",
                 "anon_vma", "vm_private_data"))),
            member("vm_rb", 64, rb_node),
        ),
        structure(
            "file", 64, member("f_mapping", 0, U64),
        ),
        structure("xarray", 8, member("xa_head", 0, U64)),
        structure("radix_tree_root", 8, member("xa_head", 0, U64)),
        structure(
            "xa_node", 8 + 8 * 64, member("shift", 0, U8),
            member("slots", 8, array(U64, 64)),
        ),
        structure(
            "address_space", 32, member("host", 0, U64), member("i_pages", 8, U64),
            member("a_ops", 16, U64),
        ),
        structure("inode", 8, member("i_size", 0, U64)),
        structure(
            "page", 64, member("flags", 0, U64), member("index", 32, U64),
            member("compound_nr", 28, U32),
        ),
        enum("pageflags", PG_head=6),
        structure(
            "dentry", 64, within("d_hash", 0, "pprev", U64), member("d_parent", 8, U64),
            member("d_name", 16, qstr),
            member("d_op", 32, U64),
        ),
        structure("dentry_operations", 8, member("d_dname", 0, pointer())),
        structure(
            "mount", 64, member("mnt_parent", 0, U64), member("mnt_mountpoint", 8, U64),
            within("mnt", 16, "mnt_root", U64),
        ),
    ]  # fmt: skip


class Tables:
    """Page tables of a process, as a list of leaves."""

    def __init__(self):
        self.leaves = []
        self.broken = []

    def with_root(self, root):
        return self

    def user_pages(self, start, end, unreadable):
        for leaf in self.leaves:
            unreadable += self.broken
            self.broken = []
            if leaf.vaddr < end and start < leaf.vaddr + leaf.size:
                yield leaf


@pytest.fixture
def memory():
    made = DictMemory()
    made.page_table = Tables()
    made.translate = lambda address: address
    made.words(0x500, VMEMMAP)
    made.put(0x508, b"\2\0\0\0")
    made.words(MM + 8, MM_PGD)
    return made


@pytest.fixture
def kernel(memory):
    symbols = {"vmemmap_base": 0x500, "nr_swapfiles": 0x508, "shmem_aops": SHMEM_OPS}
    return fake_kernel(memory, types(), symbols)


def put_page(memory, pfn, index, nr_pages=1):
    at = VMEMMAP + 64 * pfn
    memory.words(at, 1 << 6 if nr_pages > 1 else 0)
    memory.words(at + 32, index)
    memory.put(at + 64 + 28, nr_pages.to_bytes(4, "little"))
    return at


def put_file(memory, size, entries, ops=0):
    memory.words(FILE, MAPPING)
    memory.words(MAPPING, INODE, 0x3000 + 2 if entries else 0, ops)
    memory.words(INODE, size)
    memory.put(0x3000, bytes(8))
    memory.words(0x3008, *(entries.get(i, 0) for i in range(64)))


def vma(**fields):
    given = dict.fromkeys(Vma._fields, 0)
    given |= {"start": 0x10000, "end": 0x10000 + 8 * PAGE, "flags": 3}
    return Vma(**(given | fields))


def test_a_page_and_its_frame(memory, kernel):
    assert page_to_pfn(kernel, VMEMMAP + 64 * 77) == 77
    for wrong in (VMEMMAP + 8, VMEMMAP - 64):
        with pytest.raises(CorruptError, match="is no struct page"):
            page_to_pfn(kernel, wrong)
    assert file_pages(kernel, put_page(memory, 5, 3)) == (3, 1, 5 * PAGE)
    assert file_pages(kernel, put_page(memory, 64, 16, 16)) == (16, 16, 64 * PAGE)
    with pytest.raises(CorruptError, match="is damaged: 4000000000 pages"):
        file_pages(kernel, put_page(memory, 128, 0, 4000000000))


def test_files_of_small_and_large_folios(memory, kernel):
    large = put_page(memory, 64, 4, 4)
    entries = {0: put_page(memory, 9, 0), 1: put_page(memory, 10, 1), 4: large}
    # Siblings name the first slot; kernels before 5.17 have the head in each.
    entries |= {5: 4 << 2 | 2, 6: large, 7: 4 << 2 | 2, 9: 0x123 << 1 | 1}
    put_file(memory, 20 * PAGE, entries)
    file = cached_file(kernel, FILE)
    assert list(file.pages(0, 64)) == [(0, 2, 9 * PAGE), (4, 8, 64 * PAGE)]
    assert list(file.pages(1, 6)) == [(1, 2, 10 * PAGE), (4, 6, 64 * PAGE)]
    assert list(file.pages(2, 4)) == []
    # In a file on disk a value is where a page was.
    assert (file.size, file.is_shmem, file.swapped) == (20 * PAGE, False, set())


def test_a_page_of_another_file_is_damage(memory, kernel):
    put_file(memory, 20 * PAGE, {3: put_page(memory, 9, 17)})
    with pytest.raises(CorruptError, match=r"page 0x3 .* is 0x11 by its own account"):
        cached_file(kernel, FILE)


def pieces(kernel, **fields):
    return [
        (piece.start // PAGE - 16, piece.size // PAGE, piece.where)
        for piece in UserPages(kernel, MM).pieces(vma(**fields))
    ]


def test_anonymous_memory(memory, kernel):
    memory.page_table.leaves = [
        UserPage(0x12000, PAGE, 0x5000),
        UserPage(0x13000, PAGE, 0x6000),
        UserPage(0x14000, PAGE, None, (1, 7)),
        UserPage(0x15000, PAGE, None, (30, 7)),
    ]
    assert pieces(kernel) == [
        (0, 2, Where.UNTOUCHED),
        (2, 2, Where.MAPPED),
        (4, 1, Where.SWAPPED),
        (5, 1, Where.SPECIAL),
        (6, 2, Where.UNTOUCHED),
    ]


@pytest.mark.parametrize("flag", [VM_HUGETLB, VM_UFFD_MISSING, VM_PFNMAP])
def test_memory_whose_pages_would_not_come_as_zeros(kernel, flag):
    assert pieces(kernel, flags=3 | flag) == [(0, 8, Where.NOT_PRESENT)]


def test_a_file_that_is_cached_in_part(memory, kernel):
    put_file(memory, 5 * PAGE + 1, {1: put_page(memory, 9, 1), 4: 0x33})
    memory.page_table.leaves = [UserPage(0x10000, PAGE, 0x7000)]
    wanted = [
        (0, 1, Where.MAPPED),
        (1, 1, Where.PAGE_CACHE),
        (2, 4, Where.NOT_CACHED),
        (6, 2, Where.BEYOND_FILE),
    ]
    assert pieces(kernel, file=FILE) == wanted


def test_shared_memory_swaps_and_has_holes_of_zeros(memory, kernel):
    put_file(memory, 8 * PAGE, {3: put_page(memory, 9, 3), 4: 0x33}, SHMEM_OPS)
    assert pieces(kernel, file=FILE, ops=0x77, pgoff=2) == [
        (0, 1, Where.UNTOUCHED),
        (1, 1, Where.PAGE_CACHE),
        (2, 1, Where.SWAPPED),
        (3, 3, Where.UNTOUCHED),
        (6, 2, Where.BEYOND_FILE),
    ]


def test_a_damaged_file_is_said(memory, kernel):
    put_file(memory, 8 * PAGE, {3: put_page(memory, 9, 17)})
    pages = UserPages(kernel, MM)
    assert [p.where for p in pages.pieces(vma(file=FILE))] == [Where.UNKNOWN]
    assert "the file mapped at 0x10000: page 0x3 of a file" in pages.problems[0]


def test_tables_that_cannot_be_read(memory, kernel):
    memory.page_table.broken = [(0x10000, 0x12000)]
    memory.page_table.leaves = [UserPage(0x12000, PAGE, 0x5000)]
    found = list(UserPages(kernel, MM).pieces(vma(end=0x13000)))
    assert found == [
        Piece(0x10000, 0x12000, Where.NO_TABLE),
        Piece(0x12000, 0x13000, Where.MAPPED, 0x5000),
    ]


def test_a_huge_page_ends_with_its_mapping(memory, kernel):
    memory.page_table.leaves = [UserPage(0x0, 2 << 20, 0x40000000)]
    found = list(UserPages(kernel, MM).pieces(vma()))
    assert found == [Piece(0x10000, 0x18000, Where.MAPPED, 0x40010000)]


def put_vma(memory, at, start, end, left=0, right=0):
    memory.words(at, start, end, 3, 0, 0, 0, 0, 0)
    memory.words(at + 64, 0, right, left)


def test_mappings_of_an_rbtree(memory, kernel):
    memory.words(MM, 0x4200 + 64)
    put_vma(memory, 0x4000, 0x1000, 0x2000)
    put_vma(memory, 0x4200, 0x3000, 0x4000, 0x4000 + 64, 0x4400 + 64)
    put_vma(memory, 0x4400, 0x4000, 0x9000)
    found = [(each.start, each.end) for each in vmas(kernel, MM)]
    assert found == [(0x1000, 0x2000), (0x3000, 0x4000), (0x4000, 0x9000)]
    put_vma(memory, 0x4400, 0x3800, 0x9000)
    with pytest.raises(CorruptError, match="damaged at 0x4400: 0x3800-0x9000"):
        vmas(kernel, MM)
    put_vma(memory, 0x4400, 0x5000, 0x5000)
    with pytest.raises(CorruptError, match="are damaged"):
        vmas(kernel, MM)


# Paths: a file system at /, one mounted on /tmp.


def put_dentry(memory, at, name, parent, pprev=1):
    memory.words(at, pprev, parent, len(name), at + 0x100, 0)
    memory.put(at + 0x100, name)


@pytest.fixture
def tree(memory):
    put_dentry(memory, 0x5000, b"/", 0x5000)
    put_dentry(memory, 0x5200, b"tmp", 0x5000)
    put_dentry(memory, 0x5400, b"/", 0x5400)
    put_dentry(memory, 0x5600, b"a", 0x5400)
    put_dentry(memory, 0x5800, b"b c", 0x5600)
    memory.words(0x6000, 0x6000, 0x5000, 0x5000)
    memory.words(0x6100, 0x6000, 0x5200, 0x5400)
    return memory


def test_a_path_goes_up_through_mounts(tree, kernel):
    assert d_path(kernel, 0x6110, 0x5800) == b"/tmp/a/b c"
    assert d_path(kernel, 0x6010, 0x5200) == b"/tmp"
    assert d_path(kernel, 0x6010, 0x5000) == b"/"
    put_dentry(tree, 0x5800, b"b c", 0x5600, pprev=0)
    assert d_path(kernel, 0x6110, 0x5800) == b"/tmp/a/b c (deleted)"


def test_a_path_that_loops_or_breaks(tree, kernel):
    put_dentry(tree, 0x5600, b"a", 0x5800)
    with pytest.raises(CorruptError, match="does not end"):
        d_path(kernel, 0x6110, 0x5800)
    put_dentry(tree, 0x5600, b"a", 0xDEAD000)
    with pytest.raises(FaultError) as caught:
        d_path(kernel, 0x6110, 0x5800)
    assert caught.value.reason is FaultReason.UNMAPPED


def test_a_cached_file_without_pages():
    assert list(CachedFile(0, [], set()).pages(0, 100)) == []
