# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernel code on the layouts of real kernels, from both sides of each change."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.fakes import DictMemory, fake_kernel

from gdbkdump.debuginfo.snapshot import read_snapshot
from gdbkdump.kernel.mapletree import mt_for_each, mtree_load
from gdbkdump.kernel.module import for_each_module
from gdbkdump.kernel.radixtree import is_xarray, radix_tree_for_each
from gdbkdump.kernel.rbtree import rbtree_inorder_for_each
from gdbkdump.kernel.xarray import xa_for_each, xa_load

SNAPSHOTS = Path(__file__).parents[2] / "snapshots"
HEAD, MODULE = 0x100000, 0x200000
MAX = (1 << 64) - 1


@pytest.fixture(params=["5.10", "6.1", "6.12", "7"])
def kernel(request):
    types = read_snapshot(SNAPSHOTS / f"{request.param}.json")
    return fake_kernel(DictMemory(), types, {"modules": HEAD})


def put(kernel, struct, address, path, *words, size=8):
    """Write integers to a member of a struct, whatever the kernel's layout."""
    at = address + kernel.struct(struct).offset(path)
    data = b"".join(word.to_bytes(size, "little") for word in words)
    kernel.memory.put(at, data)


def test_the_eras_are_told_apart(kernel):
    # Since Linux kernel commit ac3b43283923 ("module: replace module_layout with
    # module_memory") (in v6.4), and 54a611b60590 ("Maple Tree: add new data
    # structure") (in v6.1).
    release = kernel.debuginfo.types.about["release"]
    version = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    assert kernel.has_member("module", "mem") == (version >= (6, 4))
    assert kernel.has_member("module", "core_layout") == (version < (6, 4))
    assert kernel.has_member("maple_tree", "ma_root") == (version >= (6, 1))
    assert is_xarray(kernel)


def test_modules_with_their_memory(kernel):
    link = kernel.struct("module").offset("list")
    kernel.memory.put(MODULE, bytes(kernel.struct("module").size))
    kernel.memory.words(HEAD, MODULE + link, MODULE + link)
    kernel.memory.words(MODULE + link, HEAD, HEAD)
    kernel.memory.put(
        MODULE + kernel.struct("module").offset("name"), b"virtio_blk\0garbage"
    )
    if kernel.has_member("module", "mem"):
        put(kernel, "module", MODULE, "mem[0].base", 0xFFFFFFFFC0000000)
        put(kernel, "module", MODULE, "mem[0].size", 0x3000, size=4)
        put(kernel, "module", MODULE, "mem[1].base", 0xFFFFFFFFC0010000)
        put(kernel, "module", MODULE, "mem[1].size", 0x1000, size=4)
        wanted = ((0xFFFFFFFFC0000000, 0x3000), (0xFFFFFFFFC0010000, 0x1000))
    else:
        put(kernel, "module", MODULE, "core_layout.base", 0xFFFFFFFFC0000000)
        put(kernel, "module", MODULE, "core_layout.size", 0x4000, size=4)
        wanted = ((0xFFFFFFFFC0000000, 0x4000),)
    (module,) = for_each_module(kernel)
    assert (module.name, module.address) == ("virtio_blk", MODULE)
    assert module.ranges == wanted
    assert module.size == 0x4000


def test_an_rbtree(kernel):
    kernel.memory.words(HEAD, 0x3000)
    for node, left, right in ((0x3000, 0x2000, 0x4000), (0x2000, 0, 0), (0x4000, 0, 0)):
        put(kernel, "rb_node", node, "rb_right", right)
        put(kernel, "rb_node", node, "rb_left", left)
    assert list(rbtree_inorder_for_each(kernel, HEAD)) == [0x2000, 0x3000, 0x4000]


def test_an_xarray_of_two_levels(kernel):
    put(kernel, "xarray", HEAD, "xa_head", 0x3000 | 2)
    for node, shift, slots in (
        (0x3000, 6, {0: 0x4000 | 2, 2: 0x9200}),
        (0x4000, 0, {5: 0x9000, 63: 0x9100}),
    ):
        kernel.memory.put(node, bytes(kernel.struct("xa_node").size))
        put(kernel, "xa_node", node, "shift", shift, size=1)
        for slot, entry in slots.items():
            put(kernel, "xa_node", node, f"slots[{slot}]", entry)
    wanted = [(5, 0x9000), (63, 0x9100), (128, 0x9200)]
    assert list(xa_for_each(kernel, HEAD)) == wanted
    assert list(radix_tree_for_each(kernel, HEAD)) == wanted
    assert [xa_load(kernel, HEAD, i) for i in (5, 6, 63, 128, 4096)] == [
        0x9000, 0, 0x9100, 0x9200, 0,
    ]  # fmt: skip


def test_a_maple_tree_of_two_levels(kernel):
    if not kernel.has_member("maple_tree", "ma_root"):
        pytest.skip("maple trees came with 6.1")
    leaf, arange = 1 << 3 | 4, 3 << 3 | 4
    put(kernel, "maple_tree", HEAD, "ma_root", 0x3000 | arange | 2)
    for node in (0x3000, 0x4000, 0x5000):
        kernel.memory.put(node, bytes(256))
    put(kernel, "maple_arange_64", 0x3000, "slot", 0x4000 | leaf, 0x5000 | leaf)
    put(kernel, "maple_arange_64", 0x3000, "pivot", 0xFFFF)
    put(kernel, "maple_arange_64", 0x3000, "meta.end", 1, size=1)
    put(kernel, "maple_range_64", 0x4000, "slot", 0, 0x9000)
    put(kernel, "maple_range_64", 0x4000, "pivot", 0xFFF)
    put(kernel, "maple_range_64", 0x4000, "meta.end", 1, size=1)
    put(kernel, "maple_range_64", 0x5000, "slot", 0x9100, 0)
    put(kernel, "maple_range_64", 0x5000, "pivot", 0x1FFFF)
    put(kernel, "maple_range_64", 0x5000, "meta.end", 1, size=1)
    assert list(mt_for_each(kernel, HEAD)) == [
        (0x1000, 0xFFFF, 0x9000),
        (0x10000, 0x1FFFF, 0x9100),
    ]
    assert [mtree_load(kernel, HEAD, i) for i in (0, 0x1000, 0x1FFFF, MAX)] == [
        0, 0x9000, 0x9100, 0,
    ]  # fmt: skip
