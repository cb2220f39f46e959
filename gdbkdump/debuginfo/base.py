# SPDX-License-Identifier: GPL-2.0-or-later
"""The port through which the house asks for types and symbols.

Behind it are sources: BTF or a snapshot or gdb's DWARF for types, kallsyms for symbols,
and the same of each module, loaded when a look-up in the core kernel fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from gdbkdump.debuginfo.layout import EnumType, StructType, Type
from gdbkdump.errors import SymbolNotFoundError, TypeNotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from gdbkdump.debuginfo.kallsyms import Symbol


class TypeSource(Protocol):
    """Types by name."""

    def find(self, keyword: str, name: str) -> Type:
        """Return a type.

        :param keyword: ``struct``, ``union``, ``enum``, ``function`` or ``""``
        :raise TypeNotFoundError: there is none
        """

    def names(self, keyword: str) -> Iterator[str]:
        """Yield the names of all types of a keyword."""


class SymbolSource(Protocol):
    """Symbols both ways."""

    def find(self, name: str) -> list[Symbol]:
        """Return all symbols of a name."""

    def at(self, address: int) -> tuple[Symbol, int | None] | None:
        """Return the symbol at or before an address, and where the next one begins."""

    def __iter__(self) -> Iterator[Symbol]:
        """Yield all symbols."""


@dataclass(frozen=True)
class SymbolAt:
    """What an address belongs to.

    :param offset: bytes from the symbol's address
    :param size: bytes to the next symbol, or None
    :param module: name of the module, ``""`` for the core kernel
    """

    name: str
    address: int
    offset: int
    size: int | None
    type: str
    module: str

    def __str__(self) -> str:
        """Return ``name+0x10 [module]``."""
        text = f"{self.name}+{self.offset:#x}" if self.offset else self.name
        return f"{text} [{self.module}]" if self.module else text


@dataclass(frozen=True)
class ModuleInfo:
    """What a loaded module brings along.

    :param ranges: (start, end) of its sections in memory
    """

    name: str
    ranges: Sequence[tuple[int, int]]
    symbols: SymbolSource
    types: Callable[[], TypeSource | None]


class DebugInfo:
    """Types and symbols of one kernel and its modules.

    :param image: run-time start and end of the kernel image
    :param load_modules: gives what the modules bring, asked once and late
    """

    def __init__(
        self,
        types: TypeSource | None,
        symbols: SymbolSource,
        image: tuple[int, int],
        load_modules: Callable[[], Sequence[ModuleInfo]],
    ) -> None:
        """Take the sources; nothing is read yet."""
        self.types = types
        self.symbol_source = symbols
        self.image = image
        self._load_modules = load_modules
        self._modules: Sequence[ModuleInfo] | None = None
        self._types_by_name: dict[tuple[str, str], Type | None] = {}
        self._symbols_by_name: dict[str, list[Symbol]] = {}
        self._symbols_at: dict[int, SymbolAt | None] = {}

    def modules(self) -> Sequence[ModuleInfo]:
        """Return what each loaded module brings."""
        if self._modules is None:
            self._modules = ()  # a look-up while they load must not come back here
            self._modules = self._load_modules()
        return self._modules

    # Types

    def type(self, keyword: str, name: str) -> Type:
        """Return a type.

        :param keyword: ``struct``, ``union``, ``enum``, ``function`` or ``""``
        :raise TypeNotFoundError: there is none
        """
        key = (keyword, name)
        if key not in self._types_by_name:
            self._types_by_name[key] = self._find_type(keyword, name)
        found = self._types_by_name[key]
        if found is None:
            raise TypeNotFoundError(f"{keyword} {name}".lstrip())
        return found

    def _find_type(self, keyword: str, name: str) -> Type | None:
        for types in self._type_sources():
            try:
                return types.find(keyword, name)
            except TypeNotFoundError:
                continue
        return None

    def _type_sources(self) -> Iterator[TypeSource]:
        if self.types is not None:
            yield self.types
        for module in self.modules():
            types = module.types()
            if types is not None:
                yield types

    def has_type(self, keyword: str, name: str) -> bool:
        """Tell whether the core kernel has a type (modules are not asked)."""
        try:
            return self.types is not None and bool(self.types.find(keyword, name))
        except TypeNotFoundError:
            return False

    def struct(self, name: str) -> StructType:
        """Return a struct, union or typedef of one, by its bare name.

        :raise TypeNotFoundError: there is none
        """
        for keyword in ("struct", "union", ""):
            try:
                found = self.type(keyword, name).strip()
            except TypeNotFoundError:
                continue
            if isinstance(found, StructType):
                return found
        raise TypeNotFoundError(f"struct {name}")

    def enum(self, name: str) -> EnumType:
        """Return an enum.

        :raise TypeNotFoundError: there is none
        """
        found = self.type("enum", name)
        assert isinstance(found, EnumType)
        return found

    # Symbols

    def symbols(self, name: str) -> list[Symbol]:
        """Return all symbols of a name, those of the core kernel first."""
        found = self._symbols_by_name.get(name)
        if found is None:
            found = self.symbol_source.find(name)
            if not found:
                found = [s for m in self.modules() for s in m.symbols.find(name)]
            self._symbols_by_name[name] = found
        return found

    def symbol(self, name: str) -> int:
        """Return the address of a symbol; of several the first global one.

        :raise SymbolNotFoundError: there is none
        """
        found = self.symbols(name)
        if not found:
            raise SymbolNotFoundError(name)
        return next((s.address for s in found if s.type.isupper()), found[0].address)

    def has_symbol(self, name: str) -> bool:
        """Tell whether the core kernel has a symbol (modules are not asked)."""
        return bool(self.symbol_source.find(name))

    def symbol_at(self, address: int) -> SymbolAt | None:
        """Return the symbol that an address belongs to, or None."""
        if address not in self._symbols_at:
            self._symbols_at[address] = self._find_symbol_at(address)
        return self._symbols_at[address]

    def _find_symbol_at(self, address: int) -> SymbolAt | None:
        start, end = self.image
        if start <= address < end:
            return _symbol_at(self.symbol_source, address, "")
        for module in self.modules():
            if any(low <= address < high for low, high in module.ranges):
                return _symbol_at(module.symbols, address, module.name)
        return None


def _symbol_at(symbols: SymbolSource, address: int, module: str) -> SymbolAt | None:
    found = symbols.at(address)
    if found is None:
        return None
    symbol, following = found
    return SymbolAt(
        symbol.name,
        symbol.address,
        address - symbol.address,
        None if following is None else following - symbol.address,
        symbol.type,
        module,
    )
