# SPDX-License-Identifier: GPL-2.0-or-later
"""Loaded modules: their sections, symbols and BTF (``kernel/module/``)."""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gdbkdump.debuginfo.base import ModuleInfo
from gdbkdump.debuginfo.btf import Btf
from gdbkdump.debuginfo.kallsyms import Symbol
from gdbkdump.debuginfo.layout import ArrayType
from gdbkdump.errors import (
    CorruptError,
    KdumpError,
    MemberNotFoundError,
    SymbolNotFoundError,
    TypeNotFoundError,
)
from gdbkdump.kernel.list import for_each

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.debuginfo.base import TypeSource
    from gdbkdump.kernel.base import Kernel
    from gdbkdump.kernel.object import KObject

_MAX_SYMBOLS = 1 << 20
_MAX_BTF = 64 << 20
_SYM = struct.Struct("<IBBHQQ")  # Elf64_Sym


@dataclass(frozen=True)
class Module:
    """A loaded module.

    :param address: of its ``struct module``
    :param ranges: (start, size) of its parts in memory, text first
    """

    name: str
    address: int
    ranges: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Bytes in memory, init parts left out as /proc/modules does."""
        return sum(size for _, size in self.ranges)


def for_each_module(kernel: Kernel) -> Iterator[Module]:
    """Yield the modules, most recently loaded first."""
    try:
        head = kernel.symbol("modules")
        type_ = kernel.struct("module")
    except (SymbolNotFoundError, TypeNotFoundError):
        return  # a kernel built without CONFIG_MODULES
    member = type_.offset("list")
    for node in for_each(kernel, head):
        module = kernel.object("module", node - member)
        name = module["name"].decode("utf-8", "backslashreplace")
        yield Module(name, module.address, _ranges(module))


def _ranges(module: KObject) -> tuple[tuple[int, int], ...]:
    parts = []
    try:
        # Since Linux kernel commit ac3b43283923 ("module: replace module_layout with
        # module_memory") (in v6.4). The init parts (MOD_INIT_*) are freed after load.
        memory = module.type.member("mem").type.strip()
        assert isinstance(memory, ArrayType)
        for i in range(memory.count):
            part = module[f"mem[{i}]"]
            parts.append((int(part["base"]), int(part["size"])))
    except MemberNotFoundError:
        for layout in ("core_layout", "init_layout"):
            part = module[layout]
            parts.append((int(part["base"]), int(part["size"])))
    return tuple((base, size) for base, size in parts if base and size)


class ModuleSymbols:
    """The symbols of a module, from ``mod->kallsyms``."""

    def __init__(self, kernel: Kernel, module: Module) -> None:
        """Take a module; its tables are read on the first look-up."""
        self._kernel = kernel
        self._module = module
        self._sorted: list[Symbol] | None = None

    def _symbols(self) -> list[Symbol]:
        if self._sorted is None:
            symbols = list(_read_symbols(self._kernel, self._module))
            self._sorted = sorted(symbols, key=lambda symbol: symbol.address)
        return self._sorted

    def find(self, name: str) -> list[Symbol]:
        """Return all symbols of a name."""
        return [symbol for symbol in self._symbols() if symbol.name == name]

    def at(self, address: int) -> tuple[Symbol, int | None] | None:
        """Return the symbol at or before an address, and where the next one begins."""
        symbols = self._symbols()
        i = bisect_right(symbols, address, key=lambda symbol: symbol.address) - 1
        base = next(
            (s for s, size in self._module.ranges if s <= address < s + size), 0
        )
        # A symbol of another section is not what the address belongs to.
        if i < 0 or symbols[i].address < base:
            return None
        following = symbols[i + 1].address if i + 1 < len(symbols) else None
        while i and symbols[i - 1].address == symbols[i].address:
            i -= 1
        return symbols[i], following

    def __iter__(self) -> Iterator[Symbol]:
        """Yield all symbols, by address."""
        return iter(self._symbols())


def _read_symbols(kernel: Kernel, module: Module) -> Iterator[Symbol]:
    table = kernel.object("module", module.address)["kallsyms"].deref()
    count = table["num_symtab"]
    if not 0 < count <= _MAX_SYMBOLS:
        raise CorruptError(f"module {module.name}: {count} symbols")
    entries = kernel.reader.read(table["symtab"], _SYM.size * count)
    types = _letters(kernel, table, entries, count)
    strings = table["strtab"]
    last = max(entry[0] for entry in _SYM.iter_unpack(entries))
    names = kernel.reader.read_partial(strings, last + 512)
    for entry, type_ in zip(_SYM.iter_unpack(entries), types, strict=True):
        name, _, _, section, value, _ = entry
        end = names.find(b"\0", name)
        # Section 0 is an import; $x mapping and empty names are no symbols.
        if section and name and end > name:
            text = names[name:end].decode("utf-8", "backslashreplace")
            yield Symbol(text, value, type_)


def _letters(kernel: Kernel, table: KObject, entries: bytes, count: int) -> str:
    try:
        # Since Linux kernel commit 1c7651f43777 ("kallsyms: store type information in
        # its own array") (in v5.2).
        return kernel.reader.read(table["typetab"], count).decode("latin-1")
    except MemberNotFoundError:
        # Before, the loader wrote the letter over st_size, later over st_info.
        return "".join(chr(info) for _, info, *_ in _SYM.iter_unpack(entries))


def module_infos(kernel: Kernel, problems: list[str]) -> list[ModuleInfo]:
    """Return what each module brings to symbol and type look-ups.

    :param problems: gets the line if the module list is damaged
    """
    infos = []
    try:
        for module in for_each_module(kernel):
            ranges = [(base, base + size) for base, size in module.ranges]
            infos.append(
                ModuleInfo(
                    module.name,
                    ranges,
                    ModuleSymbols(kernel, module),
                    _ModuleTypes(kernel, module.name),
                )
            )
    except KdumpError as error:
        problems.append(f"modules: {error}")
    return infos


class _ModuleTypes:
    # The split BTF of a module, read when it is first needed.
    def __init__(self, kernel: Kernel, name: str) -> None:
        self._kernel = kernel
        self._name = name
        self._types: TypeSource | None = None
        self._is_read = False

    def __call__(self) -> TypeSource | None:
        if not self._is_read:
            self._is_read = True
            self._types = _read_btf(self._kernel, self._name)
        return self._types


def _read_btf(kernel: Kernel, name: str) -> Btf | None:
    # ``mod->btf_data`` is NULL after load; the list ``btf_modules`` keeps the BTF.
    base = kernel.debuginfo.types
    if not isinstance(base, Btf) or not kernel.has_symbol("btf_modules"):
        return None
    member = kernel.struct("btf_module").offset("list")
    for node in for_each(kernel, kernel.symbol("btf_modules")):
        btf = kernel.object("btf_module", node - member)["btf"].deref()
        if btf["name"] == name.encode():
            size = btf["data_size"]
            if not 0 < size <= _MAX_BTF:
                raise CorruptError(f"module {name}: a BTF of {size} bytes")
            return Btf(kernel.reader.read(btf["data"], size), base)
    return None
