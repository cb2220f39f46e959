# SPDX-License-Identifier: GPL-2.0-or-later
"""Well-known variables of the kernel, whose types BTF does not tell.

Only what the sources declare alike for all of its versions that have it under this name
(5.4 to 7.x) is here; tests compare it with DWARF. ``[]`` is an array whose length the
configuration decides. Types are named as BTF does.
"""

from __future__ import annotations

_ULONG = "long unsigned int"

VARIABLES = {
    # init/, kernel/
    "init_task": "struct task_struct",
    "init_mm": "struct mm_struct",
    "init_cred": "struct cred",
    "init_files": "struct files_struct",
    "init_fs": "struct fs_struct",
    "init_nsproxy": "struct nsproxy",
    "init_pid_ns": "struct pid_namespace",
    "init_struct_pid": "struct pid",
    "init_user_ns": "struct user_namespace",
    "init_uts_ns": "struct uts_namespace",
    "init_ipc_ns": "struct ipc_namespace",
    "init_cgroup_ns": "struct cgroup_namespace",
    "init_css_set": "struct css_set",
    "init_net": "struct net",
    "init_signals": "struct signal_struct",
    "init_sighand": "struct sighand_struct",
    "root_user": "struct user_struct",
    "root_task_group": "struct task_group",
    "cgrp_dfl_root": "struct cgroup_root",
    "system_state": "enum system_states",
    "jiffies": "volatile " + _ULONG,
    "jiffies_64": "u64",
    "linux_banner": "const char[]",
    "linux_proc_banner": "const char[]",
    "saved_command_line": "char *",
    "boot_command_line": "char[]",
    "modules": "struct list_head",
    "workqueues": "struct list_head",
    "tainted_mask": _ULONG,
    "panic_timeout": "int",
    "panic_on_oops": "int",
    "oops_in_progress": "int",
    "panic_cpu": "atomic_t",
    "crashing_cpu": "int",
    "nr_threads": "int",
    "total_forks": _ULONG,
    "nr_cpu_ids": "unsigned int",
    "__cpu_possible_mask": "struct cpumask",
    "__cpu_present_mask": "struct cpumask",
    "__cpu_online_mask": "struct cpumask",
    "__cpu_active_mask": "struct cpumask",
    "__per_cpu_offset": _ULONG + "[]",
    "prb": "struct printk_ringbuffer *",
    "rcu_state": "struct rcu_state",
    "iomem_resource": "struct resource",
    "ioport_resource": "struct resource",
    "loops_per_jiffy": _ULONG,
    # mm/
    "slab_caches": "struct list_head",
    "swap_info": "struct swap_info_struct *[]",
    "nr_swapfiles": "unsigned int",
    "_totalram_pages": "atomic_long_t",
    "vm_zone_stat": "atomic_long_t[]",
    "vm_node_stat": "atomic_long_t[]",
    "node_data": "struct pglist_data *[]",
    "high_memory": "void *",
    "max_pfn": _ULONG,
    "max_low_pfn": _ULONG,
    "min_low_pfn": _ULONG,
    "vmap_area_list": "struct list_head",
    # fs/, net/, drivers/
    "super_blocks": "struct list_head",
    "dentry_hashtable": "struct hlist_bl_head *",
    "inode_hashtable": "struct hlist_head *",
    "net_namespace_list": "struct list_head",
    "devices_kset": "struct kset *",
    "bus_kset": "struct kset *",
    "class_kset": "struct kset *",
    "module_kset": "struct kset *",
    # arch/x86/
    "boot_cpu_data": "struct cpuinfo_x86",
    "init_top_pgt": "pgd_t[]",
    "phys_base": _ULONG,
    "page_offset_base": _ULONG,
    "vmalloc_base": _ULONG,
    "vmemmap_base": _ULONG,
}
