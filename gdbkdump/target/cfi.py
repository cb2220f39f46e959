# SPDX-License-Identifier: GPL-2.0-or-later
"""Call frame information of x86-64, written for gdb: DWARF 4 sections 6.4 and 7.23.

All of it is for one register numbering (System V ABI for x86-64, figure 3.36) and, as
in the kernel's own, code alignment 1, data alignment -8, return address in column 16.
"""

from __future__ import annotations

import enum
import struct
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import CorruptError
from gdbkdump.target.elffile import (
    ALLOC,
    EXECINSTR,
    NOBITS,
    PROGBITS,
    Section,
    elf_file,
)
from gdbkdump.unwind.orc import Base, RowKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gdbkdump.unwind.orc import Row

RBX, RBP, RSP, RIP = 3, 6, 7, 16
_CALLEE_SAVED = (RBX, 12, 13, 14, 15)
_COLUMNS = {Base.DX: 1, Base.DI: 5, Base.BP: RBP, Base.SP: RSP, Base.R10: 10,
            Base.R13: 13}  # fmt: skip
# Columns of what struct pt_regs holds, from its first word on; orig_ax has none.
_PT_REGS = (15, 14, 13, 12, RBP, RBX, 11, 10, 9, 8, 0, 2, 1, 4, 5, None, RIP, 51, 49,
            RSP, 52)  # fmt: skip
_IRET_FRAME = _PT_REGS[16:]
_WORD = 8
# From a struct pt_regs to its cs.
_CS = 17 * _WORD

OFFSET, _RESTORE, ADVANCE = 0x80, 0xC0, 0x40
ADVANCE_1, ADVANCE_2, ADVANCE_4 = 0x02, 0x03, 0x04
_UNDEFINED, _SAME_VALUE = 0x07, 0x08
_DEF_CFA, _DEF_CFA_EXPRESSION = 0x0C, 0x0F
_EXPRESSION, _OFFSET_EXTENDED_SF = 0x10, 0x11
_VAL_EXPRESSION = 0x16

_DEREF, _CONST4U, _DUP, _DROP = 0x06, 0x0C, 0x12, 0x13
_OVER, _PICK = 0x14, 0x15
_AND, _MINUS = 0x1A, 0x1C
_OR, _PLUS, _PLUS_UCONST, _EQ, _LIT, _BREG = 0x21, 0x22, 0x23, 0x29, 0x30, 0x70
_CONST8U, _CONSTS = 0x0E, 0x11
_MUL, _GE, _BRA, _SKIP = 0x1E, 0x2A, 0x28, 0x2F
# The lowest bits of an address that KASLR leaves as they are: it moves the kernel by
# multiples of CONFIG_PHYSICAL_ALIGN, which is at least 2 MiB on x86-64.
FIXED_BITS = (1 << 21) - 1

CIE_ID = 0xFFFFFFFF
HEADER = struct.Struct("<II")
FDE_HEADER = struct.Struct("<IIQQ")
_MASK = (1 << 64) - 1
_U32 = struct.Struct("<I")
# Alignments, return address column and the two initial rules of the kernel's CIE.
_USUAL_CFA = bytes([_DEF_CFA, RSP, _WORD])
USUAL_CIE = bytes([1, 0x78, RIP]) + _USUAL_CFA + bytes([OFFSET | RIP, 1])
# gdb runs through an FDE from its start for each frame that it unwinds.
_MAX_ROWS = 64


class Cie(enum.Enum):
    """What FDEs have in common: how they mark their frames and the rules to start with.

    gdb looks the caller of a frame marked "S" up by its exact address, and does not
    expect its stack to be above. It prints ``<signal handler called>`` for it.
    """

    CALL = "call"  # registers that C keeps are unknown
    CALL_AS_C = "call, initial rules as of the kernel's own CIE"
    SWITCH = "call, marked S, else as of the kernel's own CIE"
    REGS = "struct pt_regs below the CFA, marked S"
    IRET = "iret frame below the CFA, marked S"
    END = "no caller"


class Fde(NamedTuple):
    """Rules for a range of addresses.

    :param ops: instructions with the address from which on they are valid
    """

    start: int
    end: int
    cie: Cie
    ops: Sequence[tuple[int, bytes]]


class Rule(NamedTuple):
    """What a row of ORC says, as instructions that leave nothing of another row.

    :param saved: of the registers that C functions keep
    """

    cie: Cie
    cfa: bytes = b""
    bp: bytes = b""
    saved: bytes = b""


END = Rule(Cie.END)


def uleb(value: int) -> bytes:
    """Return a number as ULEB128."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def sleb(value: int) -> bytes:
    """Return a number as SLEB128."""
    data = bytearray()
    while not -0x40 <= value < 0x40:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value & 0x7F])


def _block(data: bytes) -> bytes:
    return uleb(len(data)) + data


def _breg(column: int, offset: int) -> bytes:
    return bytes([_BREG + column]) + sleb(offset)


def _at(column: int, offset: int) -> bytes:
    # The caller's value is in memory, this far from the CFA.
    if offset % _WORD:
        place = bytes([_CONSTS]) + sleb(offset) + bytes([_PLUS])
        return bytes([_EXPRESSION]) + uleb(column) + _block(place)
    if offset <= 0 and column < 0x40:
        return bytes([OFFSET | column]) + uleb(-offset // _WORD)
    return bytes([_OFFSET_EXTENDED_SF]) + uleb(column) + sleb(-offset // _WORD)


_SAME_SAVED = b"".join(bytes([_SAME_VALUE, column]) for column in _CALLEE_SAVED)
_UNKNOWN_SAVED = bytes(_RESTORE | column for column in _CALLEE_SAVED)
_SAME_BP = bytes([_SAME_VALUE, RBP])
_PT_REGS_BP = _at(RBP, _WORD * (_PT_REGS.index(RBP) - len(_PT_REGS)))
_FIRST = _USUAL_CFA, _SAME_BP, _UNKNOWN_SAVED
_NO_CALLER = bytes([_UNDEFINED, RIP])


def _words(columns: Sequence[int | None]) -> bytes:
    # The last of them ends at the CFA.
    return b"".join(
        _at(column, _WORD * (i - len(columns)))
        for i, column in enumerate(columns)
        if column is not None
    )


_INITIAL_RULES = {
    Cie.CALL: _SAME_BP + b"".join(bytes([_UNDEFINED, c]) for c in _CALLEE_SAVED),
    Cie.CALL_AS_C: b"",
    Cie.SWITCH: b"",
    Cie.REGS: _words(_PT_REGS),
    Cie.IRET: _words(_IRET_FRAME),
    Cie.END: _NO_CALLER,
}
_MARKED = (Cie.SWITCH, Cie.REGS, Cie.IRET)


def rule(row: Row, *, keeps_saved: bool = False) -> Rule | None:
    """Return the rules of a row, or None if it has none to tell.

    :param keeps_saved: whether the function leaves rbx and r12 to r15 alone; otherwise
        they are known only as long as it has not pushed anything
    """
    if row.kind is RowKind.UNDEFINED:
        return None
    if row.kind is RowKind.END:
        return END
    if row.kind is RowKind.CALL:
        is_first = row.sp_base is Base.SP and row.sp_offset == _WORD
        saved = _SAME_SAVED if keeps_saved or is_first else _UNKNOWN_SAVED
        return Rule(Cie.CALL, _cfa(row), _caller_bp(row), saved)
    # The CFA is above the registers. If it were below them it would be that of the
    # function called next, and without symbols gdb takes two such frames for one.
    if row.kind is RowKind.PARTIAL:
        size = _WORD * len(_IRET_FRAME)
        return Rule(Cie.IRET, _cfa(row, size), _caller_bp(row, size))
    size = _WORD * len(_PT_REGS)
    # rbp is in pt_regs, unless the row knows better.
    is_known = row.bp_base is not Base.UNDEFINED
    bp = _caller_bp(row, size) if is_known else _PT_REGS_BP
    return Rule(Cie.REGS, _cfa(row, size), bp)


def _cfa(row: Row, size: int = 0) -> bytes:
    # How far the CFA is above what the row computes is in `size`. The kernel passes the
    # offset over where the base is r10, r13, rdi or rdx; it is 0 in all rows but one
    # (asm_exc_nmi, from rdx), where it is needed.
    offset = row.sp_offset
    if row.sp_base is Base.SP_INDIRECT:
        return _cfa_expression(_breg(RSP, 0) + bytes([_DEREF]) + _plus(offset + size))
    if row.sp_base is Base.BP_INDIRECT:
        return _cfa_expression(_breg(RBP, offset) + bytes([_DEREF]) + _plus(size))
    if row.sp_base not in _COLUMNS:
        raise CorruptError(f"ORC: a row that starts from {row.sp_base.value}")
    column = _COLUMNS[row.sp_base]
    if offset + size >= 0:
        return bytes([_DEF_CFA, column]) + uleb(offset + size)
    return _cfa_expression(_breg(column, offset + size))


def _cfa_expression(code: bytes) -> bytes:
    return bytes([_DEF_CFA_EXPRESSION]) + _block(code)


def _plus(offset: int) -> bytes:
    if offset >= 0:
        return bytes([_PLUS_UCONST]) + uleb(offset) if offset else b""
    return bytes([_CONSTS]) + sleb(offset) + bytes([_PLUS])


def _caller_bp(row: Row, size: int = 0) -> bytes:
    if row.bp_base is Base.PREV_SP:
        return _at(RBP, row.bp_offset - size)
    if row.bp_base is Base.BP:
        return bytes([_EXPRESSION, RBP]) + _block(_breg(RBP, row.bp_offset))
    return _SAME_BP


def switch_cfa(row: Row) -> bytes:
    """Return the instruction for the CFA of a row, to replace a wrong one."""
    return _cfa(row)


def found_ops(size: int, bp: int | None) -> bytes:
    """Return the instructions for a frame whose caller was found some other way.

    :param size: from the stack pointer to the CFA
    :param bp: rbp of the caller, None if it is that of the frame
    """
    ops = bytes([_DEF_CFA, RSP]) + uleb(size)
    if bp is None:
        return ops + _SAME_BP
    return ops + bytes([_VAL_EXPRESSION, RBP]) + _block(_const8u(bp))


# Handlers of exceptions and interrupts, which entry code calls with struct pt_regs on
# top of the stack. CFI cannot say that there is a caller only sometimes; but a handler
# can return to where there is one or to where there is none.

# Where in a call instruction the rules for "no caller" are, from its return address:
# neither execution nor a return address is ever there.
NO_CALLER_BYTE = -2


def handler_ops(sites: Iterable[int]) -> bytes:
    """Return the rule for the return address of a handler.

    :param sites: where entry code calls it, return addresses; if it was called from
        there, and user mode was interrupted, its frame returns one byte before
    """
    return bytes([_VAL_EXPRESSION, RIP]) + _block(_return_address(sites))


def switched_handler_ops(row: Row, sites: Iterable[int]) -> bytes:
    """Return all rules for a handler that has called a function on an IRQ stack.

    Its CFA is made to be on the IRQ stack as well, where its stack pointer is. gdb
    expects the frames that call each other to go up one stack, but for the caller of
    entry code; so nothing else lets it follow both to a lower and to a higher stack.

    :param row: one from SP_INDIRECT, where the stack pointer that it had is at the new
        one, or from a frame pointer
    """
    if row.sp_base is Base.BP:
        real = _breg(RBP, row.sp_offset)
    else:
        # On the stack is the CFA; what the row is about is told by the word below it.
        real = bytes([_LIT + _WORD, _MINUS, _DEREF]) + _plus(row.sp_offset)
    ops = bytes([_DEF_CFA, RSP, _WORD])
    ops += bytes([_VAL_EXPRESSION, RSP]) + _block(real)
    ops += bytes([_VAL_EXPRESSION, RIP]) + _block(real + _return_address(sites))
    if row.bp_base is Base.PREV_SP:
        ops += bytes([_EXPRESSION, RBP]) + _block(real + _plus(row.bp_offset))
    return ops


def _return_address(sites: Iterable[int]) -> bytes:
    # From the address of pt_regs: the word below it, less 1 if both are true.
    code = bytes([_DUP, _LIT + _WORD, _MINUS, _DEREF])
    for number, site in enumerate(sites):
        code += bytes([_OVER if number else _DUP, _CONST4U])
        code += _U32.pack(FIXED_BITS) + bytes([_AND, _CONST4U])
        code += _U32.pack(site & FIXED_BITS) + bytes([_EQ])
        code += bytes([_OR]) if number else b""
    code += bytes([_PICK, 2]) + _plus(_CS) + bytes([_DEREF, _LIT + 3, _AND])
    return code + bytes([_LIT + 3, _EQ, _AND, _MINUS])


# Return addresses that tracing replaced, by the CFA of the function that has one.

# Of one search; a branch reaches 32 KiB, and one address takes 37 bytes.
_MAX_LEAVES = 512


def replaced_ops(found: Sequence[tuple[int, int]]) -> bytes:
    """Return the rule for the return address of a function some of whose are replaced.

    :param found: CFAs, in order, and the return address of each
    """
    code = bytes([_LIT])
    for first in range(0, len(found), _MAX_LEAVES):
        search = _search(found[first : first + _MAX_LEAVES])
        code += bytes([_OVER]) + search + bytes([_PLUS])
    # Any other CFA has the word below it.
    usual = bytes([_DROP, _LIT + _WORD, _MINUS, _DEREF])
    code += bytes([_DUP, _BRA]) + len(usual).to_bytes(2, "little") + usual
    return bytes([_VAL_EXPRESSION, RIP]) + _block(code)


def _search(found: Sequence[tuple[int, int]]) -> bytes:
    # In place of a key comes its value, or 0. Addresses compare as signed numbers.
    if len(found) == 1:
        ((key, value),) = found
        test = _const8u(key) + bytes([_EQ])
        return test + _const8u(value) + bytes([_MUL])
    middle = len(found) // 2
    low, high = _search(found[:middle]), _search(found[middle:])
    low += bytes([_SKIP]) + len(high).to_bytes(2, "little")
    test = bytes([_DUP]) + _const8u(found[middle][0]) + bytes([_GE])
    return test + bytes([_BRA]) + len(low).to_bytes(2, "little") + low + high


def _const8u(value: int) -> bytes:
    return bytes([_CONST8U]) + value.to_bytes(8, "little")


class Pieces:
    """Collects ranges and their rules, in any order, and makes few FDEs of them."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._pieces: list[tuple[int, int, Rule]] = []

    def add(self, start: int, end: int, rule: Rule) -> None:
        """Add a range that no other one overlaps."""
        if self._pieces:
            first, last, before = self._pieces[-1]
            if last == start and before is rule:
                self._pieces[-1] = first, end, rule
                return
        self._pieces.append((start, end, rule))

    def fdes(self) -> Iterator[Fde]:
        """Yield the FDEs by address."""
        group: list[tuple[int, int, Rule]] = []
        last, cie = 0, None
        for piece in sorted(self._pieces, key=itemgetter(0)):
            start, end, rule_ = piece
            if start != last or rule_.cie is not cie or len(group) == _MAX_ROWS:
                if group:
                    yield _fde(group)
                group = []
            group.append(piece)
            last, cie = end, rule_.cie
        if group:
            yield _fde(group)


def _fde(group: Sequence[tuple[int, int, Rule]]) -> Fde:
    cie = group[0][2].cie
    cfa, bp, saved = _FIRST if cie is Cie.CALL else (b"", b"", b"")
    ops = []
    for start, _, rule_ in group:
        changes = rule_.cfa if rule_.cfa != cfa else b""
        if rule_.bp != bp:
            changes += rule_.bp
        if rule_.saved != saved:
            changes += rule_.saved
        if changes:
            ops.append((start, changes))
        _, cfa, bp, saved = rule_
    return Fde(group[0][0], group[-1][1], cie, ops)


# Writing


def section(fdes: Iterable[Fde], offset: int) -> bytes:
    """Return a ``.debug_frame`` section.

    :param offset: is taken off all addresses
    """
    parts = []
    offsets = {}
    size = 0
    for cie in Cie:
        offsets[cie] = size
        parts.append(_cie(cie))
        size += len(parts[-1])
    parts += [_encode(fde, offsets[fde.cie], offset) for fde in fdes]
    return b"".join(parts)


def _cie(cie: Cie) -> bytes:
    augmentation = b"S\0" if cie in _MARKED else b"\0"
    body = bytes([1]) + augmentation + USUAL_CIE + _INITIAL_RULES[cie]
    return _padded(HEADER.pack(0, CIE_ID) + body)


def _encode(fde: Fde, cie: int, offset: int) -> bytes:
    code = []
    address = fde.start
    for at, op in fde.ops:
        if at != address:
            code.append(_encode_advance(at - address))
            address = at
        code.append(op)
    size = fde.end - fde.start
    header = FDE_HEADER.pack(0, cie, (fde.start - offset) & _MASK, size)
    return _padded(header + b"".join(code))


def _encode_advance(delta: int) -> bytes:
    if delta < 0x40:
        return bytes([ADVANCE | delta])
    if delta < 0x100:
        return bytes([ADVANCE_1, delta])
    if delta < 0x10000:
        return bytes([ADVANCE_2]) + delta.to_bytes(2, "little")
    return bytes([ADVANCE_4]) + delta.to_bytes(4, "little")


def _padded(entry: bytes) -> bytes:
    # DW_CFA_nop is 0. The length leaves itself out.
    entry += bytes(-len(entry) % _WORD)
    return (len(entry) - 4).to_bytes(4, "little") + entry[4:]


def frame_file(debug_frame: bytes) -> bytes:
    """Return an ELF file that has nothing but a ``.debug_frame`` section.

    Its .text is empty: it is there for gdb to move, and to have no symbols of.
    """
    return elf_file(
        [
            Section(".debug_frame", PROGBITS, debug_frame, align=_WORD),
            Section(".text", NOBITS, flags=ALLOC | EXECINSTR, align=16),
        ]
    )
