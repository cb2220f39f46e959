# SPDX-License-Identifier: GPL-2.0-or-later
"""Lists and trees made by hand: whole, looping, torn."""

from __future__ import annotations

from itertools import islice

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

from gdbkdump.errors import CorruptError
from gdbkdump.kernel.list import for_each, for_each_hlist, for_each_llist, for_each_next
from gdbkdump.kernel.mapletree import mt_for_each, mtree_load
from gdbkdump.kernel.radixtree import radix_tree_for_each
from gdbkdump.kernel.rbtree import rb_subtree, rbtree_inorder_for_each
from gdbkdump.kernel.xarray import xa_for_each, xa_load

BAD = 0xDEAD000000000100  # LIST_POISON1
MAX = (1 << 64) - 1


def broken(walk, message):
    """Return what a walk gives before it breaks."""
    found = []
    with pytest.raises(CorruptError, match=message):
        for each in islice(walk, 1000):
            found.append(each)
    return found


@pytest.fixture
def memory():
    return DictMemory()


# Lists


def ring(memory, *nodes):
    for here, after in zip(nodes, (*nodes[1:], nodes[0]), strict=True):
        memory.words(here, after)
        memory.words(after + 8, here)


def test_a_ring_ends_at_its_head(memory):
    ring(memory, 0x1000, 0x2000, 0x3000, 0x4000)
    kernel = fake_kernel(memory)
    assert list(for_each(kernel, 0x1000)) == [0x2000, 0x3000, 0x4000]
    assert list(for_each(kernel, 0x1000, 8)) == [0x4000, 0x3000, 0x2000]
    memory.words(0x8000, 0x8000)
    assert list(for_each(kernel, 0x8000)) == []


def test_a_ring_that_misses_its_head(memory):
    ring(memory, 0x1000, 0x2000, 0x3000, 0x4000)
    memory.words(0x4000, 0x2000)
    kernel = fake_kernel(memory)
    found = broken(for_each(kernel, 0x1000), "list at 0x1000 loops at 0x4000 after 3")
    assert found == [0x2000, 0x3000, 0x4000]
    memory.words(0x3000, 0)
    found = broken(for_each(kernel, 0x1000), "list at 0x1000 ends in NULL at 0x3000")
    assert found == [0x2000, 0x3000]
    memory.words(0x2000, BAD)
    found = broken(for_each(kernel, 0x1000), "breaks after 2 nodes: cannot read")
    assert found == [0x2000, BAD]


def test_chains_end_with_null_or_a_nulls_marker(memory):
    memory.words(0x1000, 0x2000)
    memory.words(0x2000, 0x3000)
    memory.words(0x3000, 0)
    kernel = fake_kernel(memory)
    assert list(for_each_hlist(kernel, 0x1000)) == [0x2000, 0x3000]
    assert list(for_each_llist(kernel, 0x1000)) == [0x2000, 0x3000]
    assert list(for_each_next(kernel, 0x1000, 0)) == [0x1000, 0x2000, 0x3000]
    memory.words(0x3000, 7)
    assert list(for_each_hlist(kernel, 0x1000)) == [0x2000, 0x3000]
    memory.words(0x3000, 0x2000)
    assert broken(for_each_hlist(kernel, 0x1000), "hlist at 0x1000 loops") == [
        0x2000,
        0x3000,
    ]


# Red-black trees

RB_NODE = structure(
    "rb_node",
    24,
    member("__rb_parent_color", 0, U64),
    member("rb_right", 8, pointer()),
    member("rb_left", 16, pointer()),
)
RB_TYPES = [RB_NODE, structure("rb_root", 8, member("rb_node", 0, pointer()))]


def rb(memory, node, left=0, right=0):
    return memory.words(node, 0, right, left)


def rb_example(memory):
    #        4
    #    2       6
    #  1   3   5
    memory.words(0x100, 0x4000)
    rb(memory, 0x4000, 0x2000, 0x6000)
    rb(memory, 0x2000, 0x1000, 0x3000)
    rb(memory, 0x6000, 0x5000)
    for leaf in (0x1000, 0x3000, 0x5000):
        rb(memory, leaf)
    return fake_kernel(memory, RB_TYPES)


def test_an_rbtree_in_order(memory):
    kernel = rb_example(memory)
    wanted = [0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000]
    assert list(rbtree_inorder_for_each(kernel, 0x100)) == wanted
    assert list(rb_subtree(kernel, 0x2000)) == wanted[:3]
    memory.words(0x200, 0)
    assert list(rbtree_inorder_for_each(kernel, 0x200)) == []


def test_an_rbtree_that_loops(memory):
    kernel = rb_example(memory)
    rb(memory, 0x3000, right=0x4000)
    found = broken(
        rbtree_inorder_for_each(kernel, 0x100), "rbtree at 0x100 loops at node 0x4000"
    )
    assert found == [0x1000, 0x2000, 0x3000]


def test_an_rbtree_that_is_torn(memory):
    kernel = rb_example(memory)
    rb(memory, 0x6000, BAD)
    found = broken(
        rbtree_inorder_for_each(kernel, 0x100),
        "rbtree at 0x100 breaks at node 0xdead000000000100",
    )
    assert found == [0x1000, 0x2000, 0x3000, 0x4000]


def test_roots_that_cannot_be_read(memory):
    types = [*RB_TYPES, *XA_TYPES, *MAPLE_TYPES]
    kernel = fake_kernel(memory, types)
    for walk in (rbtree_inorder_for_each, xa_for_each, mt_for_each):
        with pytest.raises(CorruptError, match="at 0x900000: cannot read"):
            list(walk(kernel, 0x900000))


# XArrays

CHUNK = 16
XA_TYPES = [
    structure("xarray", 16, member("xa_head", 8, pointer())),
    structure(
        "xa_node",
        16 + 8 * CHUNK,
        member("shift", 0, U8),
        member("slots", 16, array(pointer(), CHUNK)),
    ),
]
XA = 0x100


def xa_node(memory, address, shift, slots):
    memory.put(address, bytes([shift]) + bytes(15))
    memory.words(address + 16, *(slots.get(i, 0) for i in range(CHUNK)))
    return address | 2


def value(number):
    return number << 1 | 1


def sibling(slot):
    return slot << 2 | 2


@pytest.fixture
def xarray(memory):
    low = xa_node(memory, 0x2000, 0, {0: 0x9000, 3: value(5), 15: 0x9100})
    wide = xa_node(
        memory,
        0x3000,
        0,
        {4: 0x9200, 5: sibling(4), 6: sibling(4), 7: 256 << 2 | 2, 8: 257 << 2 | 2},
    )
    # At this level one entry has 16 indexes, here four slots of them.
    top = {0: low, 1: wide, 4: 0x9300, 5: sibling(4), 6: sibling(4), 7: sibling(4)}
    memory.words(XA + 8, xa_node(memory, 0x1000, 4, top))
    return fake_kernel(memory, XA_TYPES)


def test_an_xarray_in_order(xarray):
    assert list(xa_for_each(xarray, XA)) == [
        (0, 0x9000),
        (3, value(5)),
        (15, 0x9100),
        (20, 0x9200),
        (64, 0x9300),
    ]


def test_loads_from_an_xarray(xarray):
    wanted = {0: 0x9000, 3: value(5), 15: 0x9100, 20: 0x9200, 21: 0x9200, 22: 0x9200}
    wanted |= dict.fromkeys(range(64, 128), 0x9300)
    for index in range(300):
        assert xa_load(xarray, XA, index) == wanted.get(index, 0), index
    assert xa_load(xarray, XA, MAX) == 0


def test_an_xarray_of_one_entry_or_none(memory):
    kernel = fake_kernel(memory, XA_TYPES)
    memory.words(XA + 8, 0x9000)
    assert list(xa_for_each(kernel, XA)) == [(0, 0x9000)]
    assert (xa_load(kernel, XA, 0), xa_load(kernel, XA, 1)) == (0x9000, 0)
    memory.words(XA + 8, 0)
    assert list(xa_for_each(kernel, XA)) == []
    memory.words(XA + 8, 257 << 2 | 2)
    assert list(xa_for_each(kernel, XA)) == []


def test_an_xarray_that_loops(memory, xarray):
    memory.words(0x2000 + 16 + 8, 0x1000 | 2)
    found = broken(xa_for_each(xarray, XA), "xarray at 0x100 loops at node 0x1000")
    assert found == [(0, 0x9000)]
    with pytest.raises(CorruptError, match="shift 4 below one of 0"):
        xa_load(xarray, XA, 1)


def test_an_xarray_whose_shifts_do_not_fall(memory, xarray):
    xa_node(memory, 0x3000, 4, {})
    found = broken(xa_for_each(xarray, XA), "damaged at node 0x3000: shift 4 below")
    assert found == [(0, 0x9000), (3, value(5)), (15, 0x9100)]


def test_an_xarray_that_is_torn(memory, xarray):
    memory.words(0x1000 + 16 + 8, 0x700000 | 2)
    found = broken(xa_for_each(xarray, XA), "breaks at node 0x700000")
    assert len(found) == 3
    with pytest.raises(CorruptError, match="breaks at node 0x700000"):
        xa_load(xarray, XA, 17)


# Radix trees of before 4.20


def radix_types(level):
    node = structure(
        "radix_tree_node",
        16 + 8 * CHUNK,
        member(level, 0, U8 if level == "shift" else U32),
        member("slots", 16, array(pointer(), CHUNK)),
    )
    return [node, structure("radix_tree_root", 16, member("rnode", 8, pointer()))]


def radix_node(memory, address, level, slots):
    memory.put(address, level.to_bytes(4, "little"))
    memory.words(address + 16, *(slots.get(i, 0) for i in range(CHUNK)))
    return address


def test_a_radix_tree_with_shifts(memory):
    # 4.7 to 4.19: nodes have bit 0 set, siblings point into their node's slots.
    low = radix_node(memory, 0x2000, 0, {1: 0x9000, 2: 5 << 2 | 2})
    top = radix_node(
        memory, 0x1000, 4, {0: low | 1, 2: 0x9100, 3: 0x1000 + 16 + 16 | 1}
    )
    memory.words(XA + 8, top | 1)
    kernel = fake_kernel(memory, radix_types("shift"))
    assert list(radix_tree_for_each(kernel, XA)) == [
        (1, 0x9000),
        (2, 5 << 2 | 2),
        (32, 0x9100),
    ]
    radix_node(memory, 0x2000, 8, {})
    assert broken(radix_tree_for_each(kernel, XA), "damaged at node 0x2000") == []


@pytest.mark.parametrize("level", ["height", "path"])
def test_a_radix_tree_with_heights(memory, level):
    # Before 4.7 only the root's pointer to a node is marked; path has the height in
    # its low bits.
    low = radix_node(memory, 0x2000, 1, {1: 0x9000, 2: 5 << 2 | 2})
    top = radix_node(memory, 0x1000, 0x70 + 2 if level == "path" else 2, {3: low})
    memory.words(XA + 8, top | 1)
    kernel = fake_kernel(memory, radix_types(level))
    assert list(radix_tree_for_each(kernel, XA)) == [(49, 0x9000), (50, 5 << 2 | 2)]
    memory.words(0x1000 + 16 + 8 * 4, 0x800000)
    found = broken(radix_tree_for_each(kernel, XA), "breaks at node 0x800000")
    assert len(found) == 2


def test_a_radix_tree_that_loops(memory):
    memory.words(XA + 8, radix_node(memory, 0x1000, 4, {0: 0x1001}) | 1)
    kernel = fake_kernel(memory, radix_types("shift"))
    assert broken(radix_tree_for_each(kernel, XA), "loops at node 0x1000") == []


def test_a_radix_tree_of_today_is_an_xarray(xarray):
    assert list(radix_tree_for_each(xarray, XA)) == list(xa_for_each(xarray, XA))


# Maple trees

META = structure("maple_metadata", 2, member("end", 0, U8), member("gap", 1, U8))
MAPLE_TYPES = [
    structure("maple_tree", 16, member("ma_root", 8, pointer())),
    structure(
        "maple_node", 256, member("slot", 8, array(pointer(), 31)), keyword="union"
    ),
    structure(
        "maple_range_64",
        256,
        member("pivot", 8, array(U64, 15)),
        member("slot", 128, array(pointer(), 16)),
        member("meta", 248, META),
    ),
    structure(
        "maple_arange_64",
        256,
        member("pivot", 8, array(U64, 9)),
        member("slot", 80, array(pointer(), 10)),
        member("gap", 160, array(U64, 10)),
        member("meta", 240, META),
    ),
    enum(
        "maple_type",
        maple_dense=0,
        maple_leaf_64=1,
        maple_range_64=2,
        maple_arange_64=3,
    ),
]
DENSE, LEAF, RANGE, ARANGE = range(4)


def maple_node(memory, address, kind, slots, pivots, end=None):
    memory.put(address, bytes(256))
    memory.words(address + 8, *pivots)
    first = {DENSE: 8, LEAF: 128, RANGE: 128, ARANGE: 80}[kind]
    memory.words(address + first, *slots)
    if kind != DENSE and (kind == ARANGE or len(slots) < 16):
        at = 240 if kind == ARANGE else 248
        memory.put(address + at, bytes([len(slots) - 1 if end is None else end]))
    return address | kind << 3 | 4


@pytest.fixture
def maple(memory):
    # A root with gaps, a leaf that is full, one that is not, and a reserved range.
    first = maple_node(
        memory, 0x2000, LEAF, [0x9000 + 16 * i for i in range(16)], range(9, 159, 10)
    )
    second = maple_node(
        memory, 0x3000, LEAF, [0, 0xA000, 257 << 2 | 2, 0xB000], [299, 399, 499]
    )
    memory.words(XA + 8, maple_node(memory, 0x1000, ARANGE, [first, second], [199]) | 2)
    return fake_kernel(memory, MAPLE_TYPES)


def test_a_maple_tree_in_order(maple):
    wanted = [(10 * i, 10 * i + 9, 0x9000 + 16 * i) for i in range(15)]
    wanted += [(150, 199, 0x90F0), (300, 399, 0xA000), (500, MAX, 0xB000)]
    assert list(mt_for_each(maple, XA)) == wanted
    assert list(mt_for_each(maple, XA, root=0x2000 | LEAF << 3 | 4))[:15] == wanted[:15]


def test_loads_from_a_maple_tree(maple):
    for index, entry in {
        0: 0x9000, 9: 0x9000, 10: 0x9010, 149: 0x90E0, 150: 0x90F0, 199: 0x90F0,
        200: 0, 299: 0, 300: 0xA000, 399: 0xA000, 400: 0, 499: 0, 500: 0xB000,
        MAX: 0xB000,
    }.items():  # fmt: skip
        assert mtree_load(maple, XA, index) == entry, index


def test_a_pivot_behind_the_last_entry_says_nothing(memory, maple):
    memory.words(0x1000 + 16, 77, 88)
    assert len(list(mt_for_each(maple, XA))) == 18


def test_a_maple_tree_of_one_entry_or_none(memory):
    kernel = fake_kernel(memory, MAPLE_TYPES)
    memory.words(XA + 8, 0x9000)
    assert list(mt_for_each(kernel, XA)) == [(0, 0, 0x9000)]
    assert (mtree_load(kernel, XA, 0), mtree_load(kernel, XA, 1)) == (0x9000, 0)
    memory.words(XA + 8, 0)
    assert list(mt_for_each(kernel, XA)) == []


def test_a_dense_node(memory):
    memory.words(XA + 8, maple_node(memory, 0x1000, DENSE, [0x9000, 0, 0x9200], []) | 2)
    kernel = fake_kernel(memory, MAPLE_TYPES)
    assert list(mt_for_each(kernel, XA)) == [(0, 0, 0x9000), (2, 2, 0x9200)]
    assert [mtree_load(kernel, XA, i) for i in (0, 1, 2, 40)] == [0x9000, 0, 0x9200, 0]


def test_a_maple_tree_that_loops(memory, maple):
    second = maple_node(memory, 0x3000, RANGE, [0x1000 | ARANGE << 3 | 4], [])
    memory.words(0x1000 + 88, second)
    found = broken(
        mt_for_each(maple, XA), "damaged at node 0x1000: (it was met before|pivot)"
    )
    assert len(found) == 16
    with pytest.raises(CorruptError, match="damaged at node 0x1000"):
        mtree_load(maple, XA, 300)


@pytest.mark.parametrize(
    ("where", "words", "message"),
    [
        (0x1000 + 88, [0x3000 | 9 << 3 | 4], "node 0x3000: a node of type 9"),
        (0x1000 + 88, [0x700000 | LEAF << 3 | 4], "breaks at node 0x700000"),
        (0x3000 + 16, [100], "damaged at node 0x3000: pivot 0x64"),
        (0x3000 + 248, [99], "damaged at node 0x3000: its last slot is 99"),
    ],
)
def test_a_maple_tree_that_is_damaged(memory, maple, where, words, message):
    memory.words(where, *words)
    found = broken(mt_for_each(maple, XA), message)
    assert len(found) == 16
