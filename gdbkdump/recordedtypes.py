# SPDX-License-Identifier: GPL-2.0-or-later
"""Types of kernels without BTF: recorded once from gdb's DWARF, used without gdb.

They are kept by build-id in the user's cache, so opening such a dump once in gdb with
its vmlinux is enough for ``gdbkdump -c`` from then on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdbkdump.debuginfo.snapshot import read_snapshot, record, snapshot_text
from gdbkdump.errors import KdumpError
from gdbkdump.target.cache import cache_folder, make_private, write_private
from gdbkdump.vmlinux import dump_identity

if TYPE_CHECKING:
    from pathlib import Path

    from gdbkdump.debuginfo.base import TypeSource
    from gdbkdump.kernel.base import Kernel

# What the engine asks for by name, in any kernel; a test compares this with the code.
NEEDED = (
    "address_space", "anon_vma_name", "bin_attribute", "btf", "btf_module",
    "cea_exception_stacks", "cpumask", "cred", "dentry", "dentry_operations",
    "dev_printk_info", "entry_stack", "file", "folio", "fpstate", "fpu",
    "ftrace_ret_stack", "hlist_head", "hlist_node", "inactive_task_frame", "inode",
    "irq_stack", "kernel_param", "kretprobe_instance", "list_head", "llist_node",
    "maple_arange_64", "maple_node", "maple_range_64", "maple_tree", "mm_struct",
    "mod_kallsyms", "module", "module_sect_attr", "module_sect_attrs", "mount",
    "orc_entry", "page", "pcpu_hot", "pid", "pid_namespace", "prb_desc", "printk_info",
    "printk_log", "printk_ringbuffer", "pt_regs", "radix_tree_node", "radix_tree_root",
    "rb_node", "rb_root", "rq", "signal_struct", "taint_flag", "task_struct",
    "thread_struct", "thread_union", "timekeeper", "tk_data", "tss_struct",
    "uts_namespace", "vdso_image", "vm_area_struct", "vm_special_mapping", "xa_node",
    "xarray",
)  # fmt: skip
_NEEDED_OTHERS = (
    ("enum", "maple_type"),
    ("enum", "pageflags"),
    ("", "seqcount_raw_spinlock_t"),
    ("", "seqcount_t"),
    ("", "pid_t"),
)


def _path(kernel: Kernel) -> Path | None:
    build_id = dump_identity(kernel).build_id
    if build_id is None:
        return None
    return cache_folder("types") / f"{build_id}.json"


def recorded_types(kernel: Kernel) -> TypeSource | None:
    """Return the types that were recorded for this very kernel build, or None."""
    path = _path(kernel)
    try:
        return read_snapshot(path) if path and path.exists() else None
    except (KdumpError, OSError):
        return None  # a damaged cache is as good as none


def record_types(kernel: Kernel, source: TypeSource) -> Path | None:
    """Record what the engine needs, unless that was done; return where, or None.

    :raise OSError: the cache cannot be written to
    """
    path = _path(kernel)
    if path is None or path.exists():
        return None
    names = [*(("struct", name) for name in NEEDED), *_NEEDED_OTHERS]
    release = kernel.vmcoreinfo.osrelease if kernel.vmcoreinfo else None
    make_private(path.parent)
    data = record(source, names, release=release or "unknown")
    write_private(path, snapshot_text(data).encode())
    return path
