# SPDX-License-Identifier: GPL-2.0-or-later
"""The symbol file: what gdb takes from a vmlinux, made from the dump alone.

* kallsyms is its symbol table; a symbol reaches to the next one, as in the kernel's own
  look-ups
* BTF is its DWARF: all types, per-CPU variables, and those of target/variables.py
* functions have the prototypes that BTF tells, if but one has that name

Its sections have no contents, so nothing can be read there but the dump.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from gdbkdump.debuginfo.btf import CONST, FUNC, VAR, VOLATILE, Btf
from gdbkdump.debuginfo.kallsyms import Kallsyms
from gdbkdump.errors import CorruptError, KdumpError
from gdbkdump.target.dwarftypes import TypeUnit
from gdbkdump.target.elffile import (
    ALLOC,
    EXECINSTR,
    NOBITS,
    STRTAB,
    SYMTAB,
    WRITE,
    Section,
    elf_file,
)
from gdbkdump.target.variables import VARIABLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gdbkdump.kernel.base import Kernel

# Of the files that are made here; another one is not looked at.
VERSION = 2
PERCPU = ".data..percpu"
# Where sections begin, by the linker's own symbols (arch/x86/kernel/vmlinux.lds.S).
_EDGES = (
    ("_text", ".text", EXECINSTR), ("_etext", ".rodata", 0),
    ("_sdata", ".data", WRITE), ("__init_begin", ".init.data", WRITE),
    ("_sinittext", ".init.text", EXECINSTR), ("_einittext", ".init.data", WRITE),
    ("__bss_start", ".bss", WRITE),
)  # fmt: skip
# More than any kernel image; what is beyond is no address in it.
_MAX_IMAGE = 1 << 30
_MAX_PERCPU = 1 << 24
_SYMBOL_SIZE = 24
FUNCTION_LETTERS = (b"t", b"T", b"w", b"W")
_OBJECT, _FUNCTION = 1, 2
_LOCAL, _GLOBAL, _WEAK = 0, 1, 2
# What names of symbols are made of; anything else may be meant for a terminal.
_NAME_BYTES = bytes(range(0x21, 0x7F))
# As nm(1) writes them; "?" is of a symbol in an empty section (__nosave_begin where
# CONFIG_HIBERNATION is off).
_LETTERS = tuple(bytes([letter]) for letter in b"ABDGRSTUVWabdgrstuvwn?")


def _symbol_info(letter: bytes) -> int:
    kind = _FUNCTION if letter in FUNCTION_LETTERS else _OBJECT
    binding = _GLOBAL if letter.isupper() else _LOCAL
    return (_WEAK if letter in b"WwVv" else binding) << 4 | kind


_INFOS = {letter[0]: _symbol_info(letter) for letter in _LETTERS}


class SymbolTable:
    """Symbols as an ELF file has them.

    :param names: with the type letter before each, in the order of ``addresses``
    :param addresses: at link time
    :param sections: without contents, by address; what is in none is left out
    """

    def __init__(
        self,
        names: Sequence[bytes],
        addresses: Sequence[int],
        sections: Sequence[Section],
    ) -> None:
        """Check the symbols.

        :raise CorruptError: they cannot be what a linker wrote
        """
        if b"".join(names).translate(None, _NAME_BYTES) or not all(
            len(name) > 1 and name[0] in _INFOS for name in names
        ):
            raise CorruptError("a name of a symbol that no compiler wrote")
        if any(a > b for a, b in pairwise(addresses)):
            raise CorruptError("the addresses of symbols are not in order")
        self._names = names
        self._addresses = addresses
        self._sections = sections
        self._numbers, self.sizes = self._place()

    def sections(self) -> list[Section]:
        """Return the sections, .symtab and .strtab behind those without contents."""
        numbers = self._numbers
        infos = [_INFOS[name[0]] for name in self._names]
        # Of aliases gdb takes the one whose name is last in the table, but the kernel
        # and we the first. The letter stays before each name, unused.
        strings = b"\0" + b"\0".join(reversed(self._names)) + b"\0"
        ends = accumulate(len(name) + 1 for name in self._names)
        total = len(strings) + 1
        heads = [
            total - end | info << 32 | number << 48
            for end, info, number in zip(ends, infos, numbers, strict=True)
        ]
        # Local symbols come first in a table.
        is_local = [info >> 4 == _LOCAL for info in infos]
        order = [i for i, number in enumerate(numbers) if number and is_local[i]]
        first_global = 1 + len(order)
        order += [i for i, number in enumerate(numbers) if number and not is_local[i]]
        table = array("Q", bytes(_SYMBOL_SIZE * (1 + len(order))))
        for i, column in enumerate((heads, self._addresses, self.sizes)):
            table[3 + i :: 3] = array("Q", [column[at] for at in order])
        link = len(self._sections) + 2
        symbols = Section(".symtab", SYMTAB, table.tobytes(), 0, 0, 0, link,
                          first_global, _SYMBOL_SIZE, 8)  # fmt: skip
        return [*self._sections, symbols, Section(".strtab", STRTAB, strings)]

    def _place(self) -> tuple[list[int], list[int]]:
        # Number of the section of each symbol, 0 for none, and its size.
        numbers, sizes = [0] * len(self._addresses), [0] * len(self._addresses)
        for number, section in enumerate(self._sections, 1):
            following = last = section.address + (section.size or _MAX_PERCPU)
            low = bisect_left(self._addresses, section.address)
            high = bisect_left(self._addresses, last)
            for i in range(high - 1, low - 1, -1):
                address = self._addresses[i]
                if address != last:
                    following, last = last, address
                sizes[i] = following - address
            numbers[low:high] = [number] * (high - low)
        return numbers, sizes


class _Names:
    # Symbols by name, as long as there is but one of it; twins at one address are one.
    def __init__(self, names: Sequence[bytes], addresses: Sequence[int]) -> None:
        self._addresses = addresses
        numbers = range(len(names))
        self._last = dict(zip(names, numbers, strict=True))
        self._first = dict(zip(reversed(names), reversed(numbers), strict=True))
        self.functions: dict[bytes, int | None] = {}
        for number, name in enumerate(names):
            if name[:1] in FUNCTION_LETTERS:
                known = self.functions.setdefault(name[1:], number)
                if known is not None and addresses[known] != addresses[number]:
                    self.functions[name[1:]] = None

    def find(self, name: bytes) -> int | None:
        """Return the index of the only symbol of a name."""
        found = None
        for letter in _LETTERS:
            index = self._last.get(letter + name)
            if index is None:
                continue
            first = self._first[letter + name]
            if found is not None or self._addresses[first] != self._addresses[index]:
                return None
            found = index
        return found


def symbol_file(kernel: Kernel, offset: int) -> bytes:
    """Return the symbol file of a kernel build, at link addresses.

    :param offset: run-time minus link addresses
    :raise KdumpError: kallsyms or BTF is damaged or cannot be read
    """
    maker = _Maker(kernel, offset)
    sections = maker.symbols()
    if isinstance(kernel.debuginfo.types, Btf):
        sections += maker.types(kernel.debuginfo.types)
    return elf_file(sections)


def partial_symbol_file(
    kernel: Kernel, offset: int, problems: list[str]
) -> bytes | None:
    """Return what can be had of the symbol file of a dump that is damaged.

    :param problems: gets a line for each part that is not there
    """
    maker = _Maker(kernel, offset)
    sections: list[Section] = []
    try:
        sections += maker.symbols()
    except KdumpError as error:
        problems.append(
            f"gdb has no symbols of the kernel: {error}; nor can names that the"
            " k-commands show be relied on"
        )
    types = kernel.debuginfo.types
    try:
        if isinstance(types, Btf):
            sections += maker.types(types)
    except KdumpError as error:
        problems.append(f"gdb has no types of the kernel: {error}")
    return elf_file(sections) if sections else None


class _Maker:
    def __init__(self, kernel: Kernel, offset: int) -> None:
        self._kernel = kernel
        self._offset = offset
        # What is known of symbols once there is a table of them.
        self._names: Sequence[bytes] = ()
        self._addresses: Sequence[int] = ()
        self._sizes: Sequence[int] = ()
        self._by_name = _Names((), ())
        # Variables that BTF has the type of.
        self._typed: set[int] = set()

    def symbols(self) -> list[Section]:
        source = self._kernel.debuginfo.symbol_source
        assert isinstance(source, Kallsyms)
        names, run_time = source.raw_names(), source.addresses()
        start = self._kernel.debuginfo.image[0]
        # Per-CPU symbols before 6.15 are offsets, which do not move.
        low = bisect_left(run_time, start)
        offset = self._offset
        addresses = [*run_time[:low], *(address - offset for address in run_time[low:])]
        by_name = _Names(names, addresses)
        sections = list(_kernel_sections(by_name, addresses, start - offset))
        table = SymbolTable(names, addresses, sections)
        self._names, self._addresses, self._sizes = names, addresses, table.sizes
        self._by_name = by_name
        return table.sections()

    def types(self, btf: Btf) -> list[Section]:
        unit = TypeUnit(btf.words, btf.positions(), btf.strings)
        try:
            self._add_functions(btf, unit)
        except (ValueError, IndexError):
            raise CorruptError("BTF: a function without name or type") from None
        self._add_variables(btf, unit)
        return unit.sections(b"vmlinux")

    def _add_functions(self, btf: Btf, unit: TypeUnit) -> None:
        # And per-CPU variables: what BTF has the names of.
        words, strings = btf.words, btf.strings
        find, functions = self._by_name.find, self._by_name.functions
        for at in btf.positions():
            kind = words[at + 1] >> 24 & 31
            if kind in (FUNC, VAR):
                start, type_ = words[at], words[at + 2]
                name = strings[start : strings.index(b"\0", start)]
                found = functions.get(name) if kind == FUNC else find(name)
                if found is None:
                    continue
                address, is_global = self._addresses[found], self._is_global(found)
                if kind == VAR:
                    self._typed.add(found)
                    unit.add_variable(
                        start, unit.type(type_), address, is_global=is_global
                    )
                elif self._sizes[found]:
                    unit.add_function(
                        start, type_, address, self._sizes[found], is_global=is_global
                    )

    def _is_global(self, index: int) -> bool:
        return self._names[index][:1].isupper()

    def _add_variables(self, btf: Btf, unit: TypeUnit) -> None:
        known: dict[str, int | None] = {}
        for name, declared in VARIABLES.items():
            found = self._by_name.find(name.encode())
            if found is None or found in self._typed:
                continue
            type_ = _declared(btf, unit, declared, known)
            if type_:
                unit.add_variable(
                    unit.string(name.encode()),
                    type_,
                    self._addresses[found],
                    is_global=self._is_global(found),
                )


def _kernel_sections(
    names: _Names, addresses: Sequence[int], start: int
) -> Iterator[Section]:
    def address_of(symbol: str) -> int | None:
        found = names.find(symbol.encode())
        return None if found is None else addresses[found]

    # Of no size, though it has symbols: else gdb finds those at the low addresses that
    # a jump to NULL leads to.
    yield nobits(PERCPU, 0, 0, WRITE)
    # What follows the image is for early boot alone.
    end = min(addresses[-1], start + _MAX_IMAGE) + 1
    edges = []
    for symbol, name, flags in _EDGES:
        address = address_of(symbol)
        if address is not None and start <= address < end:
            edges.append((address, name, flags))
    for (first, name, flags), (last, *_) in pairwise([*sorted(edges), (end, "", 0)]):
        if last > first:
            yield nobits(name, first, last - first, flags)


def _declared(btf: Btf, unit: TypeUnit, text: str, known: dict[str, int | None]) -> int:
    # The type of a line of target/variables.py, 0 if the kernel has none of this name.
    qualifier, _, rest = text.partition(" ")
    kind = {"const": CONST, "volatile": VOLATILE}.get(qualifier)
    bare, is_array = (rest if kind else text).removesuffix("[]"), text.endswith("[]")
    bare, is_pointer = bare.removesuffix(" *"), bare.endswith(" *")
    if bare not in known:
        keyword, _, name = bare.partition(" ")
        if keyword not in ("struct", "enum"):
            keyword, name = "", bare
        known[bare] = 0 if bare == "void" else btf.find_id(keyword, name)
    found = known[bare]
    if found is None:
        return 0
    type_ = unit.type(found) if found else 0
    if is_pointer:
        type_ = unit.pointer_to(type_)
    if kind and type_:
        type_ = unit.qualified(kind, type_)
    return unit.array_of(type_, None) if is_array and type_ else type_


def nobits(name: str, address: int, size: int, flags: int) -> Section:
    """Return a section without contents.

    :param flags: besides that it takes memory
    """
    return Section(name, NOBITS, b"", ALLOC | flags, address, size, align=1)


def digest(kernel: Kernel) -> str:
    """Return what tells the symbols and types of a dump from others of its build.

    There is but one, unless they are damaged.
    """
    return kernel.once("symbol file digest", lambda: _digest(kernel))


def _digest(kernel: Kernel) -> str:
    both = hashlib.blake2b(digest_size=8)
    for source in (kernel.debuginfo.symbol_source, kernel.debuginfo.types):
        if isinstance(source, Kallsyms):
            for table in source.tables():
                both.update(table)
        elif isinstance(source, Btf):
            both.update(source.data)
    return both.hexdigest()
