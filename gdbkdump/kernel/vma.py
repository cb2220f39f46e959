# SPDX-License-Identifier: GPL-2.0-or-later
"""Mappings of a user address space, as ``/proc/PID/maps`` shows them.

Mirrors ``include/linux/mm_types.h`` and ``fs/proc/task_mmu.c`` (``show_map_vma()``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import CorruptError, FaultError
from gdbkdump.kernel.mapletree import mt_for_each
from gdbkdump.kernel.path import file_path
from gdbkdump.kernel.rbtree import rbtree_inorder_for_each

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.kernel.base import Kernel

# vm_flags, include/linux/mm.h; these never moved.
VM_READ, VM_WRITE, VM_EXEC, VM_SHARED = 1, 2, 4, 8
VM_UFFD_MISSING, VM_PFNMAP, VM_IO = 0x200, 0x400, 0x4000
VM_HUGETLB, VM_MIXEDMAP = 0x400000, 0x10000000
# sysctl_max_map_count may be raised to INT_MAX; nobody has a million mappings.
_MAX_VMAS = 1 << 20
_MAX_NAME = 256


class Vma(NamedTuple):
    """A ``struct vm_area_struct``.

    :param pgoff: of its first page in the file, in pages
    :param file: ``struct file *``, 0 where it maps none
    :param ops: ``struct vm_operations_struct *``, 0 for anonymous memory
    :param anon_vma: 0 where it has no anonymous page, and never had one
    """

    address: int
    start: int
    end: int
    flags: int
    pgoff: int
    file: int
    ops: int
    anon_vma: int
    private_data: int

    @property
    def size(self) -> int:
        """Bytes of address space."""
        return self.end - self.start

    @property
    def permissions(self) -> str:
        """``rwxp`` or ``rwxs``, as /proc shows them."""
        letters = zip("rwx", (VM_READ, VM_WRITE, VM_EXEC), strict=True)
        text = "".join(c if self.flags & bit else "-" for c, bit in letters)
        return text + ("s" if self.flags & VM_SHARED else "p")

    @property
    def is_anonymous(self) -> bool:
        """Whether a page that is not there would come as zeros (do_anonymous_page)."""
        return not (self.file or self.ops or self.flags & (VM_PFNMAP | VM_IO))


def vmas(kernel: Kernel, mm: int) -> list[Vma]:
    """Return the mappings of a ``struct mm_struct *``, by address.

    :raise CorruptError: their tree is damaged
    """
    fields = kernel.fields(
        "vm_area_struct",
        ["vm_start", "vm_end", _flags_member(kernel), "vm_pgoff", "vm_file", "vm_ops",
         "anon_vma", "vm_private_data"],
    )  # fmt: skip
    found: list[Vma] = []
    end = 0
    for address in _for_each_vma(kernel, mm):
        try:
            vma = Vma(address, *fields.read(address))
        except FaultError as fault:
            raise CorruptError(f"vm_area_struct at {address:#x}: {fault}") from None
        if not end <= vma.start < vma.end <= 1 << 63 or len(found) == _MAX_VMAS:
            raise CorruptError(
                f"the mappings of mm {mm:#x} are damaged at {address:#x}:"
                f" {vma.start:#x}-{vma.end:#x} after {end:#x}"
            )
        found.append(vma)
        end = vma.end
    return found


def _flags_member(kernel: Kernel) -> str:
    # A union with __vm_flags since Linux kernel commit bc292ab00f6c ("mm: introduce vma
    # flags modifiers") (in v6.3); the name stays.
    return kernel.first_member("vm_area_struct", "vm_flags", "__vm_flags")


def _for_each_vma(kernel: Kernel, mm: int) -> Iterator[int]:
    type_ = kernel.struct("mm_struct")
    # Since Linux kernel commit 763ecb035029 ("mm: remove the vma linked list") (in
    # v6.1), which came with a maple tree instead of mm_rb.
    if type_.has("mm_mt"):
        for _, _, vma in mt_for_each(kernel, mm + type_.offset("mm_mt")):
            yield vma
        return
    node = kernel.struct("vm_area_struct").offset("vm_rb")
    for each in rbtree_inorder_for_each(kernel, mm + type_.offset("mm_rb")):
        yield each - node


class VmaNames:
    """What /proc shows as the path of mappings, each file's looked up once."""

    def __init__(self, kernel: Kernel, mm: int) -> None:
        """Read where heap, stack and vDSO are.

        :raise FaultError: the ``mm_struct`` cannot be read
        """
        self._kernel = kernel
        paths = ["start_brk", "brk", "start_stack", "context.vdso"]
        fields = kernel.fields("mm_struct", paths).read(mm)
        self._start_brk, self._brk, self._start_stack, self._vdso = fields
        self._special = (
            kernel.symbol("special_mapping_vmops")
            if kernel.has_symbol("special_mapping_vmops")
            else 0
        )
        self._has_anon_name = kernel.has_member("vm_area_struct", "anon_name")
        self._paths: dict[int, bytes] = {}

    def name(self, vma: Vma) -> bytes:
        """Return a path, ``[heap]``, ``[stack]``, ``[vdso]``, ... or nothing.

        :raise KdumpError: what has the name cannot be read
        """
        if vma.file:
            if vma.file not in self._paths:
                self._paths[vma.file] = file_path(self._kernel, vma.file)
            return self._paths[vma.file]
        if vma.ops and vma.ops == self._special:
            special = self._kernel.object("vm_special_mapping", vma.private_data)
            return self._kernel.reader.c_string(special["name"], _MAX_NAME)
        if self._vdso and vma.start == self._vdso:
            return b"[vdso]"
        # vma_is_initial_heap(), vma_is_initial_stack() (fs/proc/task_mmu.c).
        if vma.start < self._brk and vma.end > self._start_brk:
            return b"[heap]"
        if vma.start <= self._start_stack <= vma.end:
            return b"[stack]"
        return self._anon_name(vma) if self._has_anon_name else b""

    def _anon_name(self, vma: Vma) -> bytes:
        # Since Linux kernel commit 9a10064f5625 ("mm: add a field to store names for
        # private anonymous memory") (in v5.17).
        name = self._kernel.object("vm_area_struct", vma.address)["anon_name"]
        if not name:
            return b""
        offset = self._kernel.struct("anon_vma_name").offset("name")
        text = self._kernel.reader.c_string(name + offset, _MAX_NAME)
        kind = b"anon_shmem" if vma.flags & VM_SHARED else b"anon"
        return b"[%s:%s]" % (kind, text)
