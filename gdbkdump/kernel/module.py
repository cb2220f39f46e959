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
from gdbkdump.formats.notes import parse_notes
from gdbkdump.kernel.list import for_each
from gdbkdump.kernel.panic import taint_letters

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gdbkdump.debuginfo.base import TypeSource
    from gdbkdump.kernel.base import Kernel
    from gdbkdump.kernel.object import KObject

_MAX_SYMBOLS = 1 << 20
_MAX_BTF = 64 << 20
_MAX_SECTIONS = 4096
_MAX_PARAMETERS = 4096
NT_GNU_BUILD_ID = 3
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

    def holds(self, address: int) -> bool:
        """Tell whether an address is in it."""
        return any(base <= address < base + size for base, size in self.ranges)

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


def module_sections(kernel: Kernel, module: Module) -> dict[str, int]:
    """Return where each section of a module is, as /sys/module/NAME/sections has it.

    Sections of its init part are named too, though their memory was freed.
    """
    pointer = kernel.object("module", module.address)["sect_attrs"]
    if not pointer:
        return {}
    table = pointer.deref()
    if table.has("nsections"):
        return dict(_counted_sections(kernel, table))
    # Since Linux kernel commit 4b2c11e4aaf7 ("module: sysfs: Drop member
    # 'module_sect_attrs::nsections'") (in v6.14), and with the address in ->private.
    return dict(_terminated_sections(kernel, table))


def _counted_sections(kernel: Kernel, table: KObject) -> Iterator[tuple[str, int]]:
    attribute = kernel.struct("module_sect_attr")
    # Since Linux kernel commit ed66f991bb19 ("module: Refactor section attr into bin
    # attribute") (in v5.8).
    name = kernel.first_member("module_sect_attr", "battr.attr.name", "name")
    fields = kernel.fields("module_sect_attr", [name, "address"])
    start = table.address_of("attrs")
    for i in range(min(table["nsections"], _MAX_SECTIONS)):
        text, address = fields.read(start + i * attribute.size)
        yield _text(kernel, text), address


def _terminated_sections(kernel: Kernel, table: KObject) -> Iterator[tuple[str, int]]:
    fields = kernel.fields("bin_attribute", ["attr.name", "private"])
    pointers = table["grp.bin_attrs"]
    for i in range(_MAX_SECTIONS):
        attribute = kernel.reader.u64(pointers + 8 * i)
        if not attribute:
            return
        text, address = fields.read(attribute)
        yield _text(kernel, text), address


def _text(kernel: Kernel, address: int) -> str:
    return kernel.reader.c_string(address, 128).decode("utf-8", "backslashreplace")


def module_build_id(kernel: Kernel, sections: Mapping[str, int]) -> str | None:
    """Return the build-id of a module in hex, from its note in memory."""
    address = sections.get(".note.gnu.build-id")
    if not address:
        return None
    data = kernel.reader.read_partial(address, 64)
    for note in parse_notes(data, []):
        if note.name == b"GNU" and note.type == NT_GNU_BUILD_ID:
            return note.desc.hex()
    return None


def module_taints(kernel: Kernel, module: Module) -> str:
    """Return the letters of a module's taints (``module_flags_taint()``)."""
    mask = kernel.object("module", module.address)["taints"]
    return taint_letters(kernel, mask)


@dataclass(frozen=True)
class Parameter:
    """A parameter of a module.

    :param value: None where its type is not one of the kernel's own
    """

    name: str
    type: str
    value: str | None


# What the kernel's own param_ops print (kernel/params.c): size and signedness.
_INTEGERS = {
    "byte": (1, False), "short": (2, True), "ushort": (2, False), "int": (4, True),
    "uint": (4, False), "long": (8, True), "ulong": (8, False), "ullong": (8, False),
    "hexint": (4, False),
}  # fmt: skip


def module_parameters(kernel: Kernel, module: Module) -> list[Parameter]:
    """Return the parameters of a module with their values at the crash."""
    object_ = kernel.object("module", module.address)
    fields = kernel.fields("kernel_param", ["name", "ops", "arg"])
    size = kernel.struct("kernel_param").size
    found = []
    for i in range(min(object_["num_kp"], _MAX_PARAMETERS)):
        name, operations, argument = fields.read(object_["kp"] + i * size)
        symbol = kernel.debuginfo.symbol_at(operations)
        known = symbol is not None and symbol.name.startswith("param_ops_")
        type_ = symbol.name.removeprefix("param_ops_") if symbol and known else "?"
        value = _parameter_value(kernel, type_, argument)
        found.append(Parameter(_text(kernel, name), type_, value))
    return found


def _parameter_value(kernel: Kernel, type_: str, address: int) -> str | None:
    if type_ in _INTEGERS:
        size, signed = _INTEGERS[type_]
        number = int.from_bytes(
            kernel.reader.read(address, size), "little", signed=signed
        )
        return f"{number:#x}" if type_ == "hexint" else str(number)
    if type_ in ("bool", "invbool"):
        return "N" if bool(kernel.reader.u8(address)) is (type_ == "invbool") else "Y"
    if type_ == "charp":
        pointer = kernel.reader.u64(address)
        return _text(kernel, pointer) if pointer else "(null)"
    return None


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
