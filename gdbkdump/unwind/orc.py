# SPDX-License-Identifier: GPL-2.0-or-later
"""ORC, the unwind tables that a kernel and its modules carry in themselves.

Mirrors ``arch/x86/include/asm/orc_types.h`` and ``kernel/unwind_orc.c`` of 4.14 to 7.x.
A table is two arrays: sorted addresses, each relative to its own place, and for each an
entry of six bytes. The entries changed three times, which is told by probing:

* the type field has two bits up to 6.3 and three since; with two, "undefined" and "end
  of stack" are said by ``sp_reg`` 0 and an ``end`` bit
* ``signal`` says whether the caller's address is exact; before 6.3 the type says it
* 7.1 numbered the registers anew, which the type does not show, only the entries do
"""

from __future__ import annotations

import enum
import hashlib
import struct
from bisect import bisect_right
from collections import Counter
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import CorruptError, KdumpError, SymbolNotFoundError
from gdbkdump.kernel.module import for_each_module

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator, Mapping, Sequence

    from gdbkdump.debuginfo.layout import Member, StructType
    from gdbkdump.kernel.base import Kernel
    from gdbkdump.kernel.module import Module
    from gdbkdump.memory.reader import Reader

ENTRY_SIZE = 6  # struct orc_entry, packed
_ENTRY = struct.Struct(f"{ENTRY_SIZE}s")
_MAX_ENTRIES = 1 << 22
_SAMPLES = 4096
_ORDER_STEP = 64


class RowKind(enum.Enum):
    """What is found at the address that a row computes."""

    UNDEFINED = "undefined"
    END = "end of stack"
    CALL = "call"  # below it the return address
    REGS = "regs"  # a whole struct pt_regs
    PARTIAL = "partial regs"  # its last five words, from ip on


class Base(enum.Enum):
    """A register that a row starts from."""

    UNDEFINED = "undefined"
    PREV_SP = "prev_sp"
    DX = "dx"
    DI = "di"
    BP = "bp"
    SP = "sp"
    R10 = "r10"
    R13 = "r13"
    BP_INDIRECT = "(bp)"
    SP_INDIRECT = "(sp)"


class Row(NamedTuple):
    """How to leave the function at an address.

    :param signal: whether the address found is exact rather than a return address
    """

    kind: RowKind
    sp_base: Base
    sp_offset: int
    bp_base: Base
    bp_offset: int
    signal: bool


# A whole struct pt_regs was pushed last.
PT_REGS_ROW = Row(RowKind.REGS, Base.SP, 0, Base.UNDEFINED, 0, True)
# What the kernel itself assumes of a jump to NULL (null_orc_entry) and of code that was
# generated at run time (orc_fp_entry: a frame pointer).
NULL_ROW = Row(RowKind.CALL, Base.SP, 8, Base.UNDEFINED, 0, False)
FRAME_POINTER_ROW = Row(RowKind.CALL, Base.BP, 16, Base.PREV_SP, -16, False)

_REGISTERS = {
    0: Base.UNDEFINED, 1: Base.PREV_SP, 2: Base.DX, 3: Base.DI, 4: Base.BP, 5: Base.SP,
    6: Base.R10, 7: Base.R13, 8: Base.BP_INDIRECT, 9: Base.SP_INDIRECT,
}  # fmt: skip
# Those that tables of 7.2 use.
_REGISTERS_7_1 = {
    0: Base.UNDEFINED, 2: Base.DX, 3: Base.SP, 4: Base.BP, 6: Base.R10, 7: Base.R13,
    8: Base.PREV_SP, 9: Base.SP_INDIRECT, 10: Base.BP_INDIRECT,
}  # fmt: skip
_OLD_KINDS = (RowKind.CALL, RowKind.REGS, RowKind.PARTIAL)
# Since Linux kernel commit fb799447ae29 ("x86,objtool: Split UNWIND_HINT_EMPTY in two")
# (in v6.4).
_KINDS = (RowKind.UNDEFINED, RowKind.END, *_OLD_KINDS)


class Decoder:
    """Entries of one kernel's ORC version.

    :param type_: ``struct orc_entry``
    :param entries: of the kernel's own table, which show the register numbering
    """

    def __init__(self, type_: StructType, entries: bytes) -> None:
        """Find out the version.

        :raise CorruptError: the entries are of none that we know
        """
        self._sp_offset = type_.member("sp_offset")
        # struct orc_entry is shared with LoongArch since 6.9: the names may follow.
        self._bp_offset = _either(type_, "bp_offset", "fp_offset")
        self._sp_reg = type_.member("sp_reg")
        self._bp_reg = _either(type_, "bp_reg", "fp_reg")
        self._type = type_.member("type")
        self._end = type_.member("end") if type_.has("end") else None
        self._signal = type_.member("signal") if type_.has("signal") else None
        self._kinds = _KINDS if self._type.bit_size > 2 else _OLD_KINDS
        self._registers = self._find_registers(entries)
        self.rows: dict[bytes, Row] = {}

    def _find_registers(self, entries: bytes) -> Mapping[int, Base]:
        # Most functions find their caller from the stack pointer.
        count = len(entries) // ENTRY_SIZE
        step = max(1, count // _SAMPLES)
        numbers = Counter(
            _bits(int.from_bytes(entries[at : at + ENTRY_SIZE], "little"), self._sp_reg)
            for at in range(0, count * ENTRY_SIZE, step * ENTRY_SIZE)
        )
        numbers.pop(0, None)
        most = numbers.most_common(1)[0][0] if numbers else None
        for registers in (_REGISTERS, _REGISTERS_7_1):
            if most is not None and registers.get(most) is Base.SP:
                return registers
        raise CorruptError(f"ORC: most entries start from register {most}")

    def decode(self, entry: bytes) -> Row:
        """Return the meaning of the six bytes of an entry.

        :raise CorruptError: they have none
        """
        row = self.rows.get(entry)
        if row is None:
            row = self.rows[entry] = self._decode(int.from_bytes(entry, "little"))
        return row

    def _decode(self, raw: int) -> Row:
        kind = self._kind(raw)
        sp_base = self._registers.get(_bits(raw, self._sp_reg))
        bp_base = self._registers.get(_bits(raw, self._bp_reg))
        if kind is None or sp_base is None or bp_base is None:
            raise CorruptError(f"ORC: an entry {raw:012x} of no known meaning")
        if self._signal:
            # Since Linux kernel commit ffb1b4a41016 ("x86/unwind/orc: Add 'signal'
            # field to ORC metadata") (in v6.3).
            signal = bool(_bits(raw, self._signal))
        else:
            signal = kind in (RowKind.REGS, RowKind.PARTIAL)
        sp_offset = _signed(_bits(raw, self._sp_offset))
        bp_offset = _signed(_bits(raw, self._bp_offset))
        return Row(kind, sp_base, sp_offset, bp_base, bp_offset, signal)

    def _kind(self, raw: int) -> RowKind | None:
        number = _bits(raw, self._type)
        if self._kinds is _OLD_KINDS and not _bits(raw, self._sp_reg):
            # Since Linux kernel commit "x86/unwind/orc: Detect the end of the stack"
            # (in v4.18) there is a bit; before, this was how stacks ended.
            is_end = self._end is None or _bits(raw, self._end)
            return RowKind.END if is_end else RowKind.UNDEFINED
        return self._kinds[number] if number < len(self._kinds) else None


def _either(type_: StructType, *names: str) -> Member:
    return type_.member(next((name for name in names if type_.has(name)), names[0]))


def _bits(raw: int, member: Member) -> int:
    size = member.bit_size or 8 * member.type.size
    return raw >> member.bit_offset & ((1 << size) - 1)


def _signed(value: int) -> int:
    return value - (1 << 16) if value & 0x8000 else value


class Table:
    """One pair of arrays; both are read whole when an address is first looked up."""

    def __init__(self, reader: Reader, addresses: int, entries: int, count: int):
        """Take a table.

        :param addresses: of ``int orc_unwind_ip[]``
        :param entries: of ``struct orc_entry orc_unwind[]``
        :raise CorruptError: the count is absurd
        """
        if not 0 < count <= _MAX_ENTRIES:
            raise CorruptError(f"ORC: a table of {count} entries")
        self._reader = reader
        self._addresses = addresses
        self._entries = entries
        self.count = count
        self._offsets: array[int] | None = None
        self._data = b""

    def _load(self) -> array[int]:
        if self._offsets is None:
            self._data = self._reader.read(self._entries, ENTRY_SIZE * self.count)
            offsets = self._reader.array(self._addresses, "i", self.count)
            self._check_order(offsets)
            self._offsets = offsets
        return self._offsets

    def _check_order(self, offsets: array[int]) -> None:
        # A sample of each 256 bytes finds every damaged page, in 2 ms of a kernel's
        # 370,000 addresses; a search that met a single bad one would be none the wiser.
        step = _ORDER_STEP if self.count > _SAMPLES else 1
        last = None
        for i in range(0, self.count, step):
            address = 4 * i + offsets[i]
            # One section may end where another starts: both have an entry for it.
            if last is not None and address < last:
                raise CorruptError(
                    f"ORC: the table at {self._addresses:#x} is not sorted at entry {i}"
                )
            last = address

    @property
    def data(self) -> bytes:
        """All entries.

        :raise FaultError: they cannot be read
        """
        self._load()
        return self._data

    def find(self, pc: int) -> bytes | None:
        """Return the entry of an address, or None if it is below the first one.

        :raise KdumpError: the table is damaged or cannot be read
        """
        offsets, base = self._load(), self._addresses

        def address(i: int) -> int:
            return base + 4 * i + offsets[i]

        i = bisect_right(range(self.count), pc, key=address) - 1
        if i < 0:
            return None
        return self._data[i * ENTRY_SIZE : (i + 1) * ENTRY_SIZE]

    def digest(self) -> str:
        """Return what tells this table from others; KASLR does not change it.

        :raise KdumpError: the table is damaged or cannot be read
        """
        both = hashlib.blake2b(self._load().tobytes(), digest_size=8)
        both.update(self._data)
        return both.hexdigest()

    def entries(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield start, end and bytes of each entry, by address.

        The last one reaches to the end of the address space.

        :raise KdumpError: the table is damaged or cannot be read
        """
        offsets = self._load()
        at = range(self._addresses, self._addresses + 4 * self.count, 4)
        starts = [place + offset for place, offset in zip(at, offsets, strict=True)]
        ends = chain(islice(starts, 1, None), [1 << 64])
        entries = (entry for (entry,) in _ENTRY.iter_unpack(self._data))
        return zip(starts, ends, entries, strict=True)


class Orc:
    """The tables of a kernel and its modules.

    :ivar problems: what is wrong with them, one line each
    """

    has_frame_pointers = False

    def __init__(self, kernel: Kernel) -> None:
        """Locate the kernel's table.

        :raise KdumpError: it has none, or it is damaged
        """
        self._kernel = kernel
        self.problems: list[str] = []
        self._text = text_ranges(kernel)
        self._table = _kernel_table(kernel)
        self._decoder = Decoder(kernel.struct("orc_entry"), self._table.data)
        self._modules: list[tuple[Module, Table | None]] | None = None

    def find(self, pc: int) -> Row | None:
        """Return the row of a text address, or None where there is no ORC.

        :raise KdumpError: the table is damaged
        """
        table = self._find_table(pc)
        entry = table.find(pc) if table else None
        return None if entry is None else self._decoder.decode(entry)

    def after_call(self, ip: int) -> Row | None:
        """Return the row for a return address, as above.

        After a call that never returns comes the next function.
        """
        return self.find(ip - 1)

    def digest(self) -> str:
        """Return what tells the kernel's own table from others of the same build.

        There is but one, unless it is damaged.
        """
        return self._table.digest()

    def kernel_rows(self, *, has_dwarf: bool = False) -> Iterator[tuple[int, int, Row]]:
        """Yield start, end and meaning of each row of the kernel's own text.

        :param has_dwarf: makes no difference
        :raise KdumpError: the table is damaged
        """
        return self._rows(self._table, self._text)

    def module_rows(self) -> Iterator[tuple[int, int, Row]]:
        """Yield start, end and meaning of each row of the modules.

        What is wrong with a table is added to ``problems``.
        """
        for module, table in self._module_tables():
            ranges = [(start, start + size) for start, size in module.ranges]
            try:
                if table:
                    yield from self._rows(table, ranges)
            except KdumpError as error:
                self.problems.append(f"module {module.name}: {error}")

    def switches(
        self, rows: Sequence[tuple[int, int, Row]]
    ) -> list[tuple[int, int, Row]]:
        """Return the rows of functions that changed the stack in inline assembly.

        Since Linux kernel commit 87ccc826bf1c ("x86/unwind/orc: Change
        REG_SP_INDIRECT") (in v5.12) they can be told.
        """
        return [row for row in rows if row[2].sp_base is Base.SP_INDIRECT]

    def _rows(
        self, table: Table, ranges: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, int, Row]]:
        decode, known = self._decoder.decode, self._decoder.rows
        low, high = 0, 0
        for start, end, entry in table.entries():
            if not low <= start < high:
                # A module's rows are also of text that was freed after its start.
                found = (r for r in ranges if r[0] <= start < r[1])
                low, high = next(found, (0, 0))
                if not high:
                    continue
            row = known.get(entry) or decode(entry)
            yield start, end if end < high else high, row

    def _module_tables(self) -> list[tuple[Module, Table | None]]:
        if self._modules is None:
            self._modules = self._read_modules()
        return self._modules

    def _find_table(self, pc: int) -> Table | None:
        if any(start <= pc < end for start, end in self._text):
            return self._table
        for module, table in self._module_tables():
            if any(start <= pc < start + size for start, size in module.ranges):
                return table
        return None

    def _read_modules(self) -> list[tuple[Module, Table | None]]:
        found: list[tuple[Module, Table | None]] = []
        try:
            for module in for_each_module(self._kernel):
                found.append((module, self._module_table(module)))
        except KdumpError as error:
            self.problems.append(f"modules: {error}")
        return found

    def _module_table(self, module: Module) -> Table | None:
        try:
            arch = self._kernel.object("module", module.address)["arch"]
            return Table(
                self._kernel.reader,
                arch["orc_unwind_ip"],
                arch["orc_unwind"],
                arch["num_orcs"],
            )
        except KdumpError as error:
            self.problems.append(f"module {module.name}: {error}")
            return None


def _kernel_table(kernel: Kernel) -> Table:
    addresses = kernel.symbol("__start_orc_unwind_ip")
    entries = kernel.symbol("__start_orc_unwind")
    end = kernel.symbol("__stop_orc_unwind")
    return Table(kernel.reader, addresses, entries, (end - entries) // ENTRY_SIZE)


def text_ranges(kernel: Kernel) -> list[tuple[int, int]]:
    """Return where the code of a kernel is, without that of its modules."""
    ranges = []
    for start, end in (("_stext", "_etext"), ("_sinittext", "_einittext")):
        try:
            ranges.append((kernel.symbol(start), kernel.symbol(end)))
        except SymbolNotFoundError:
            continue
    return ranges or [kernel.debuginfo.image]


def open_orc(kernel: Kernel) -> Orc:
    """Return the tables of a kernel, opened once.

    :raise KdumpError: it has none, or its own is damaged
    """
    return kernel.once("orc", lambda: Orc(kernel))
