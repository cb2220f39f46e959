# SPDX-License-Identifier: GPL-2.0-or-later
"""The crashed kernel: its memory with its types and symbols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from gdbkdump.errors import MemberNotFoundError, TypeNotFoundError
from gdbkdump.kernel.object import Fields, KObject
from gdbkdump.memory.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gdbkdump.arch.base import Arch, GuestCpu
    from gdbkdump.debuginfo.base import DebugInfo
    from gdbkdump.debuginfo.layout import StructType
    from gdbkdump.formats.vmcoreinfo import VmcoreInfo
    from gdbkdump.memory.virtual import MappedMemory

T = TypeVar("T")


class Kernel:
    """One kernel in a dump; the functions of this room take it as first argument.

    Functions keep what they found with ``once()``.

    :ivar guest_cpus: the CPUs as a hypervisor saw them, if it was one that dumped
    """

    def __init__(
        self,
        memory: MappedMemory,
        debuginfo: DebugInfo,
        arch: Arch,
        vmcoreinfo: VmcoreInfo | None,
        guest_cpus: Sequence[GuestCpu] = (),
    ) -> None:
        """Put the parts together; nothing is read."""
        self.memory = memory
        self.debuginfo = debuginfo
        self.arch = arch
        self.vmcoreinfo = vmcoreinfo
        self.guest_cpus = guest_cpus
        self.reader = Reader(memory)
        self._kept: dict[object, Any] = {}
        self.page_size = 1 << arch.page_shift

    def once(self, key: object, make: Callable[[], T]) -> T:
        """Return what ``make`` gave when it was first asked for under ``key``.

        What it raises is not kept: the next time it is tried again.
        """
        if key not in self._kept:
            self._kept[key] = make()
        kept: T = self._kept[key]
        return kept

    def symbol(self, name: str) -> int:
        """Return the run-time address of a symbol.

        :raise SymbolNotFoundError: there is none
        """
        return self.debuginfo.symbol(name)

    def has_symbol(self, name: str) -> bool:
        """Tell whether the core kernel has a symbol."""
        return self.debuginfo.has_symbol(name)

    def struct(self, name: str) -> StructType:
        """Return a struct or union.

        :raise TypeNotFoundError: there is none
        """
        return self.debuginfo.struct(name)

    def has_member(self, struct: str, path: str) -> bool:
        """Tell whether the core kernel has a struct with such a member."""
        for keyword in ("struct", "union"):
            if self.debuginfo.has_type(keyword, struct):
                return self.struct(struct).has(path)
        return False

    def first_member(self, struct: str, *paths: str) -> str:
        """Return the first of ``paths`` that the struct has; newest name first.

        :raise MemberNotFoundError: it has none of them
        """
        type_ = self.struct(struct)
        for path in paths:
            if type_.has(path):
                return path
        raise MemberNotFoundError(str(type_), paths[0])

    def object(self, struct: str, address: int) -> KObject:
        """Return the struct at an address; it is read as its members are asked for."""
        return KObject(self, self.struct(struct), address)

    def fields(self, struct: str, paths: Sequence[str]) -> Fields:
        """Return a bulk reader of some members of a struct.

        :raise MemberNotFoundError: it lacks one of them
        """
        return Fields(self.reader.read, self.struct(struct), paths)

    def constant(self, enum_name: str, enumerator: str) -> int | None:
        """Return the value of an enumerator, or None where the kernel has none."""
        try:
            return self.debuginfo.enum(enum_name).values.get(enumerator)
        except TypeNotFoundError:
            return None
