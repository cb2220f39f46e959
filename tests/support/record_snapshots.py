# SPDX-License-Identifier: GPL-2.0-or-later
"""Write tests/snapshots/*.json anew: ``python -m support.record_snapshots DUMP...``.

Run it in tests/ with the directories of dumps; what is recorded is what unit tests need
of each kernel, so that they run its code without its dump.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gdbkdump.debuginfo.snapshot import record, write_snapshot
from gdbkdump.session import open_session

DIRECTORY = Path(__file__).parents[1] / "snapshots"
# Small on purpose: structs that hold half the kernel (task_struct) are left out.
NAMES = [
    ("struct", name)
    for name in (
        "list_head", "hlist_head", "llist_head", "rb_node", "rb_root", "rb_root_cached",
        "xarray", "xa_node", "idr", "maple_tree", "maple_node", "maple_range_64",
        "maple_arange_64", "maple_metadata", "module", "mod_kallsyms", "cpumask",
        "new_utsname", "uts_namespace", "pid", "upid", "pid_namespace", "kernel_symbol",
        "printk_ringbuffer", "prb_desc_ring", "prb_desc", "prb_data_ring",
        "printk_info", "vm_area_struct", "page", "resource",
    )
] + [("enum", "maple_type"), ("enum", "module_state"), ("", "pid_t")]  # fmt: skip


def main(directories: list[str]) -> None:
    """Record each dump's types under its name."""
    DIRECTORY.mkdir(exist_ok=True)
    for directory in map(Path, directories):
        session = open_session(directory / "vmcore")
        info, types = session.kernel.vmcoreinfo, session.kernel.debuginfo.types
        release = info.osrelease if info else None
        if types is not None:
            data = record(types, NAMES, release=release or "unknown")
            name = directory.name.removeprefix("small-")
            write_snapshot(DIRECTORY / f"{name}.json", data)
        session.close()


if __name__ == "__main__":
    main(sys.argv[1:])
