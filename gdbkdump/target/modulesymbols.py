# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbol file of the modules in one dump, at the addresses they had.

As target/symbolfile.py makes that of the kernel, from ``mod->kallsyms`` and split BTF.
Types of the kernel itself are in it as declarations: the kernel's file, be it ours or a
vmlinux, has them.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.debuginfo.btf import FUNC, Btf
from gdbkdump.errors import CorruptError, KdumpError
from gdbkdump.target.dwarftypes import TypeUnit
from gdbkdump.target.elffile import EXECINSTR, WRITE, Section, elf_file
from gdbkdump.target.moduletypes import MergedTypes
from gdbkdump.target.symbolfile import FUNCTION_LETTERS, SymbolTable, nobits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gdbkdump.debuginfo.base import ModuleInfo
    from gdbkdump.kernel.base import Kernel

# Of the files that are made here; another one is not looked at.
VERSION = 2
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


class _Module(NamedTuple):
    # Symbols by address; ``functions`` has those whose name no other function has.
    name: str
    sections: Sequence[Section]
    names: Sequence[bytes]
    addresses: Sequence[int]
    functions: dict[bytes, tuple[int, int, bool]]
    types: Btf | None


class ModuleSymbols:
    """What gdb can be told of the modules of a dump.

    :param problems: gets a line for each module that is damaged
    """

    def __init__(self, kernel: Kernel, problems: list[str]) -> None:
        """Read the symbols."""
        self._kernel = kernel
        self._problems = problems
        self._modules: list[_Module] = []
        for info in kernel.debuginfo.modules():
            try:
                self._modules.append(self._read(info))
            except KdumpError as error:
                problems.append(f"gdb has no symbols of module {info.name!a}: {error}")

    def __bool__(self) -> bool:
        """Tell whether there is any module."""
        return bool(self._modules)

    def digest(self, kernel_digest: str) -> str:
        """Return what tells this file from that of another dump of the same build."""
        both = hashlib.blake2b(kernel_digest.encode(), digest_size=8)
        for module in self._modules:
            ranges = [(section.address, section.size) for section in module.sections]
            both.update(repr((module.name, ranges)).encode())
            both.update(b"\0".join(module.names))
            both.update(array("Q", module.addresses).tobytes())
            both.update(module.types.data if module.types else b"")
        return both.hexdigest()

    def _read(self, info: ModuleInfo) -> _Module:
        if not _NAME.fullmatch(info.name):
            raise CorruptError("that is no name of a module")
        # Per-CPU ones and those of freed memory are in no part.
        symbols = [
            (symbol.address, f"{symbol.type}{symbol.name}".encode())
            for symbol in info.symbols
            if any(start <= symbol.address < end for start, end in info.ranges)
        ]
        names = [name for _, name in symbols]
        addresses = [address for address, _ in symbols]
        sections = _sections(info, names, addresses)
        text = sections[0]
        sections.sort(key=lambda section: section.address)
        self._check_overlap(sections)
        table = SymbolTable(names, addresses, sections)
        functions = _functions(names, addresses, table.sizes, text)
        return _Module(
            info.name, sections, names, addresses, functions, self._types(info)
        )

    def _check_overlap(self, sections: Sequence[Section]) -> None:
        known = [*sections, *(s for m in self._modules for s in m.sections)]
        known.sort(key=lambda section: section.address)
        for first, second in pairwise(known):
            if first.address + first.size > second.address:
                raise CorruptError("another module is where it is")

    def _types(self, info: ModuleInfo) -> Btf | None:
        try:
            types = info.types()
            return types if isinstance(types, Btf) and types.base else None
        except KdumpError as error:
            self._problems.append(f"gdb has no types of module {info.name}: {error}")
            return None

    def file(self) -> bytes:
        """Return the symbol file."""
        sections = sorted(
            (section for module in self._modules for section in module.sections),
            key=lambda section: section.address,
        )
        symbols = sorted(
            pair
            for module in self._modules
            for pair in zip(module.addresses, module.names, strict=True)
        )
        names = [name for _, name in symbols]
        table = SymbolTable(names, [address for address, _ in symbols], sections)
        return elf_file([*table.sections(), *self._debug_sections()])

    def _debug_sections(self) -> list[Section]:
        base = self._kernel.debuginfo.types
        if not isinstance(base, Btf):
            return []
        try:
            unit = _unit(base, self._modules)
        except CorruptError:
            # One of them spoils it for all.
            unit = _unit(base, [m for m in self._modules if self._is_sound(base, m)])
        return unit.sections(b"modules")

    def _is_sound(self, base: Btf, module: _Module) -> bool:
        try:
            _unit(base, [module])
        except CorruptError as error:
            self._problems.append(f"gdb has no types of module {module.name}: {error}")
            return False
        return True


def _unit(base: Btf, modules: Sequence[_Module]) -> TypeUnit:
    merged = MergedTypes(base)
    ids = [(m, merged.add(m.types)) for m in modules if m.types]
    unit = TypeUnit(merged.words, merged.positions, merged.strings)
    words, positions, strings = merged.words, merged.positions, merged.strings
    for module, known in ids:
        for id_ in known.values():
            at = positions[id_ - 1] if id_ else 0
            if not id_ or words[at + 1] >> 24 & 31 != FUNC:
                continue
            start, prototype = words[at], words[at + 2]
            name = strings[start : strings.index(b"\0", start)]
            if name in module.functions:
                address, size, is_global = module.functions[name]
                unit.add_function(start, prototype, address, size, is_global=is_global)
    return unit


def _sections(
    info: ModuleInfo, names: Sequence[bytes], addresses: Sequence[int]
) -> list[Section]:
    # Text is the first of its parts. Before 6.4 all is one part, text first.
    if not info.ranges:
        raise CorruptError("it has no memory")
    (start, end), *others = info.ranges
    last = max((i for i, n in enumerate(names) if n[:1] in b"tT"), default=-1)
    split = next((a for a in addresses[last + 1 :] if start <= a < end), end)
    if split < end:
        others.append((split, end))
    return [
        nobits(info.name, start, split - start, EXECINSTR),
        *(nobits(info.name, start, end - start, WRITE) for start, end in others),
    ]


def _functions(
    names: Sequence[bytes],
    addresses: Sequence[int],
    sizes: Sequence[int],
    text: Section,
) -> dict[bytes, tuple[int, int, bool]]:
    # Address, size and whether it is global.
    found: dict[bytes, tuple[int, int, bool]] = {}
    twins = set()
    for name, address, size in zip(names, addresses, sizes, strict=True):
        if name[:1] not in FUNCTION_LETTERS or not size:
            continue
        if not text.address <= address < text.address + text.size:
            continue
        if name[1:] in found:
            twins.add(name[1:])
        found[name[1:]] = address, size, name[:1].isupper()
    return {name: each for name, each in found.items() if name not in twins}
