# SPDX-License-Identifier: GPL-2.0-or-later
"""ktree and the walkers below it: what drgn's helpers find in the same trees."""

from __future__ import annotations

import pytest
from support.oracle import open_drgn

from gdbkdump.errors import CommandError, CorruptError
from gdbkdump.kernel.mapletree import mt_for_each, mtree_load
from gdbkdump.kernel.radixtree import radix_tree_for_each
from gdbkdump.kernel.rbtree import rbtree_inorder_for_each
from gdbkdump.kernel.sched import tasks
from gdbkdump.kernel.xarray import xa_for_each, xa_load

MAX_MMS = 300
MAX_INODES = 3000


@pytest.fixture(scope="module")
def mms(session):
    return sorted({task.mm for task in tasks(session.kernel) if task.mm})[:MAX_MMS]


def test_vmas_of_a_maple_tree(dump_dir, session, mms):
    kernel = session.kernel
    if not kernel.has_member("mm_struct", "mm_mt"):
        pytest.skip("before 6.1 the VMAs are in an rbtree")
    import drgn
    from drgn.helpers.linux import mapletree

    program = open_drgn(dump_dir)
    entries = 0
    for mm in mms:
        tree = mm + kernel.struct("mm_struct").offset("mm_mt")
        wanted = mapletree.mt_for_each(
            drgn.Object(program, "struct maple_tree *", tree)
        )
        found = list(mt_for_each(kernel, tree))
        # drgn goes level by level.
        assert found == sorted((a, b, entry.value_()) for a, b, entry in wanted)
        entries += len(found)
        for first, last, entry in found[::7]:
            assert mtree_load(kernel, tree, first) == entry
            assert mtree_load(kernel, tree, (first + last) // 2) == entry
            assert mtree_load(kernel, tree, last) == entry
        assert mtree_load(kernel, tree, found[-1][1] + 1) == 0
    assert entries > 5 * len(mms)


def test_vmas_of_an_rbtree(dump_dir, session, mms):
    kernel = session.kernel
    if not kernel.has_member("mm_struct", "mm_rb"):
        pytest.skip("since 6.1 the VMAs are in a maple tree")
    import drgn
    from drgn.helpers.linux import rbtree

    program = open_drgn(dump_dir)
    for mm in mms:
        root = mm + kernel.struct("mm_struct").offset("mm_rb")
        wanted = drgn.Object(program, "struct rb_root *", root)
        assert list(rbtree_inorder_for_each(kernel, root)) == [
            node.value_() for node in rbtree.rbtree_inorder_for_each(wanted)
        ]


def test_pids(dump_dir, session, run):
    from drgn.helpers.linux.idr import idr_for_each

    kernel = session.kernel
    idr = open_drgn(dump_dir)["init_pid_ns"].idr
    wanted = [(i, entry.value_()) for i, entry in idr_for_each(idr.address_of_())]
    tree = idr.idr_rt.address_of_().value_()
    assert list(xa_for_each(kernel, tree)) == wanted
    assert list(radix_tree_for_each(kernel, tree)) == wanted
    for index, entry in wanted:
        assert xa_load(kernel, tree, index) == entry
    unused = set(range(wanted[-1][0] + 5)) - {index for index, _ in wanted}
    assert {xa_load(kernel, tree, index) for index in unused} == {0}
    rows = run("ktree", "-r", "pid_namespace.idr", "init_pid_ns", "-s", "pid.level")
    assert [(row["index"], int(row["address"], 16)) for row in rows] == wanted
    # wl-main's child has a PID namespace of its own.
    assert {row["members"]["level"] for row in rows} == {0, 1}


def test_page_caches(dump_dir, session):
    from drgn.helpers.linux.fs import for_each_mount
    from drgn.helpers.linux.list import list_for_each_entry
    from drgn.helpers.linux.xarray import xa_for_each as drgn_xa_for_each

    program = open_drgn(dump_dir)
    pages = inodes = 0
    for mount in for_each_mount(program):
        head = mount.mnt.mnt_sb.s_inodes.address_of_()
        for inode in list_for_each_entry("struct inode", head, "i_sb_list"):
            xa = inode.i_mapping.i_pages.address_of_()
            wanted = [(i, entry.value_()) for i, entry in drgn_xa_for_each(xa)]
            assert list(xa_for_each(session.kernel, xa.value_())) == wanted
            pages += len(wanted)
            inodes += 1
            if inodes > MAX_INODES:
                break
    assert pages > 500


def test_irq_descriptors(dump_dir, session, run):
    from drgn.helpers.linux.irq import for_each_irq_desc

    program = open_drgn(dump_dir)
    wanted = [(i, desc.value_()) for i, desc in for_each_irq_desc(program)]
    # Since Linux kernel commit 721255b9826b ("genirq: Use a maple tree for interrupt
    # descriptor management") (in v6.5).
    if session.kernel.has_symbol("sparse_irqs"):
        rows = run("ktree", "-t", "maple", "sparse_irqs")
        found = [(int(r["first"], 16), int(r["address"], 16)) for r in rows]
    else:
        rows = run("ktree", "-t", "radix", "irq_desc_tree")
        found = [(row["index"], int(row["address"], 16)) for row in rows]
    assert found == wanted


def test_keys_in_order(dump_dir, run):
    from drgn.helpers.linux.rbtree import rbtree_inorder_for_each_entry

    root = open_drgn(dump_dir)["key_serial_tree"].address_of_()
    wanted = [
        (key.value_(), key.serial.value_())
        for key in rbtree_inorder_for_each_entry("struct key", root, "serial_node")
    ]
    rows = run(
        "ktree", "-t", "rb", "key_serial_tree",
        "-o", "key.serial_node", "-s", "key.serial",
    )  # fmt: skip
    assert [(int(r["address"], 16), r["members"]["serial"]) for r in rows] == wanted
    assert wanted == sorted(wanted, key=lambda pair: pair[1])
    assert len(wanted) > 3


def test_a_subtree_from_a_node(session, run):
    kernel = session.kernel
    top = kernel.reader.u64(kernel.symbol("key_serial_tree"))
    everything = run("ktree", "-t", "rbtree", "key_serial_tree")
    assert run("ktree", "-t", "rbtree", "-N", f"{top:x}") == everything
    left = kernel.object("rb_node", top)["rb_left"]
    below = run("ktree", "-t", "rbtree", "-N", f"{left:x}")
    assert below == everything[: len(below)]
    assert 0 < len(below) < len(everything)


def test_the_lines(session, run_text, run):
    (first, *_) = run("ktree", "-r", "pid_namespace.idr", "init_pid_ns")
    lines = run_text("ktree", "-r", "pid_namespace.idr", "init_pid_ns")
    assert lines[0] == f"{int(first['address'], 16):016x}  index 1"


def test_what_breaks_says_where(run):
    with pytest.raises(CorruptError, match=r"rbtree at 0x\w+ breaks at node 0x\w+"):
        run("ktree", "-t", "rbtree", "linux_banner")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["init_mm"], "say what tree it is"),
        (["-t", "r", "init_mm"], "none of rbtree"),
        (["-r", "mm_struct.pgd", "init_mm"], "none of these roots"),
        (["-r", "mm_struct.pgd", "-N", "init_mm"], "exclude"),
        (["-t", "x", "-o", "8", "init_mm"], "-o is for rbtrees"),
        (["-t", "rb", "nonsense"], "neither an address nor a symbol"),
    ],
)
def test_wrong_use_says_what_is_wrong(run, argv, message):
    with pytest.raises(CommandError, match=message):
        run("ktree", *argv)
