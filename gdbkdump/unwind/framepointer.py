# SPDX-License-Identifier: GPL-2.0-or-later
"""Frame pointers, for kernels without ORC (CONFIG_UNWINDER_FRAME_POINTER).

Mirrors ``arch/x86/kernel/unwind_frame.c`` and ``arch/x86/entry/calling.h``
(``ENCODE_FRAME_POINTER``). All C functions keep %rbp, so behind a call the caller is
known. Where a function was interrupted its own code tells whether it had a frame by
then. Entry code, which has none, calls with struct pt_regs on top of the stack. The
answers are rows, as those of ORC.
"""

from __future__ import annotations

import re
from hashlib import sha256
from operator import itemgetter
from typing import TYPE_CHECKING

from gdbkdump.errors import FaultError, KdumpError, SymbolNotFoundError
from gdbkdump.kernel.module import for_each_module
from gdbkdump.unwind.orc import (
    FRAME_POINTER_ROW,
    PT_REGS_ROW,
    Base,
    Row,
    RowKind,
    text_ranges,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from gdbkdump.debuginfo.base import SymbolAt
    from gdbkdump.kernel.base import Kernel

    Piece = tuple[int, int, Row]

_UNKNOWN = Row(RowKind.UNDEFINED, Base.UNDEFINED, 0, Base.UNDEFINED, 0, False)
_END = _UNKNOWN._replace(kind=RowKind.END)
# At the first instruction, and between "push %rbp" and "mov %rsp,%rbp".
_NO_FRAME = Row(RowKind.CALL, Base.SP, 8, Base.UNDEFINED, 0, False)
_PUSHED = Row(RowKind.CALL, Base.SP, 16, Base.PREV_SP, -16, False)
# What boots a CPU calls C functions and is called by none.
_BOOT = (
    "secondary_startup_64", "secondary_startup_64_no_verify", "common_startup_64",
)  # fmt: skip
# Not in the text of entry code in all versions.
_FORK = ("ret_from_fork", "ret_from_fork_asm")
_PROBES = ("schedule", "panic", "kthread")

_ENDBR = bytes.fromhex("f30f1efa")
_NOP_5 = bytes.fromhex("0f1f440000")
_PUSH_RBP, _MOVE_RBP = b"\x55", bytes.fromhex("4889e5")
_CALL, _BREAKPOINT, _RET, _JMP, _SHORT_JMP = 0xE8, 0xCC, 0xC3, 0xE9, 0xEB
_POP_RBP, _LEAVE = 0x5D, 0xC9
_LONGEST_PROLOGUE = 32
# "mov %rsp,(%reg)" and "mov %reg,%rsp"; then come calls and moves between registers.
_SWITCH = re.compile(rb"[\x48\x49]\x89[\x20-\x27][\x48\x4c]\x89[\xc4-\xfc]", re.DOTALL)
_MOVE = re.compile(rb"[\x48-\x4f]\x89[\xc0-\xff]", re.DOTALL)
_POP_RSP = b"\x5c"
_LONGEST_SWITCH = 64


class FramePointers:
    """What frame pointers tell of a kernel.

    :ivar problems: what is wrong with them, one line each
    """

    has_frame_pointers = True

    def __init__(self, kernel: Kernel) -> None:
        """Make sure that functions keep frame pointers.

        :raise SymbolNotFoundError: they do not, or it cannot be told
        """
        self._kernel = kernel
        self.problems: list[str] = []
        self._entry = (
            kernel.symbol("__entry_text_start"),
            kernel.symbol("__entry_text_end"),
        )
        if any(self._prologue(kernel.symbol(name)) is None for name in _PROBES):
            raise SymbolNotFoundError("frame pointers in this kernel's functions")
        self._kernel_text = text_ranges(kernel)
        self._modules: list[tuple[int, int]] = []
        try:
            for module in for_each_module(kernel):
                self._modules += ((base, base + size) for base, size in module.ranges)
        except KdumpError as error:
            self.problems.append(f"modules: {error}")

    def after_call(self, ip: int) -> Row | None:
        """Return the row for a return address, or None where there is no code."""
        if not self._is_text(ip - 1):
            return None
        place = self._kernel.debuginfo.symbol_at(ip - 1)
        name = place.name if place else ""
        if name in _BOOT:
            return _END
        if name in _FORK or self._is_entry(ip - 1):
            return PT_REGS_ROW
        return FRAME_POINTER_ROW

    def find(self, pc: int) -> Row | None:
        """Return the row for where something was interrupted, or None as above.

        In assembly it is one of RowKind.UNDEFINED.
        """
        if not self._is_text(pc):
            return None
        place = self._kernel.debuginfo.symbol_at(pc)
        if place is None or self._is_entry(pc):
            return _UNKNOWN
        if place.name in _FORK:
            return PT_REGS_ROW if not place.offset else _UNKNOWN
        # A part that is moved away begins where there is a frame.
        return FRAME_POINTER_ROW if ".cold" in place.name else self._row(pc, place)

    def digest(self) -> str:
        """Return what tells this kernel's text from that of others of the same build.

        It is of the calls that kernel_rows() and switches() are made of.
        """
        start, end = self._entry
        return sha256(self._kernel.reader.read(start, end - start)).hexdigest()[:16]

    def kernel_rows(self, *, has_dwarf: bool) -> Iterator[Piece]:
        """Yield start, end and meaning of the text, cut where entry code is.

        :param has_dwarf: of entry code alone, which has no DWARF
        :raise KdumpError: a symbol that is needed is missing
        """
        pieces = [
            *self._entry_pieces(),
            *self._named(_FORK, PT_REGS_ROW),
            *self._named(_BOOT, _END),
        ]
        pieces.sort(key=itemgetter(0))
        yield from pieces if has_dwarf else _filled(self._kernel_text, pieces)

    def _entry_pieces(self) -> Iterator[Piece]:
        # By function: of some of them more is known.
        start, end = self._entry
        while start < end:
            place = self._kernel.debuginfo.symbol_at(start)
            size = place.size if place else None
            after = min(end, place.address + size) if place and size else end
            yield start, after, PT_REGS_ROW
            start = after

    def _named(self, names: Iterable[str], row: Row) -> Iterator[Piece]:
        starts = {
            self._kernel.symbol(name) for name in names if self._kernel.has_symbol(name)
        }
        for start in starts:
            place = self._kernel.debuginfo.symbol_at(start)
            if place and place.size and not self._is_entry(start):
                yield start, start + place.size, row

    def module_rows(self) -> Iterator[Piece]:
        """Yield start, end and meaning of the modules."""
        for start, end in self._modules:
            yield start, end, FRAME_POINTER_ROW

    def switches(self, rows: Sequence[Piece]) -> list[Piece]:
        """Return where functions call others on another stack, in inline assembly.

        Mirrors ``call_on_stack()`` of ``arch/x86/include/asm/irq_stack.h``: the stack
        pointer is stored at the top of the new stack, and popped from there.
        """
        found = []
        for start, end in self._kernel_text:
            text = self._kernel.reader.read_partial(start, end - start)
            for match in _SWITCH.finditer(text):
                size = _on_other_stack(text, match.end())
                if size:
                    at = start + match.end()
                    found.append((at, at + size, FRAME_POINTER_ROW))
        return found

    def _row(self, pc: int, place: SymbolAt) -> Row:
        if self._has_left(pc, place):
            return _NO_FRAME
        prologue = self._prologue(place.address)
        if prologue is None:
            return _UNKNOWN
        push, end = prologue
        if pc <= push:
            return _NO_FRAME
        if pc < end:
            return _PUSHED
        return FRAME_POINTER_ROW

    def _prologue(self, function: int) -> tuple[int, int] | None:
        # Where it pushes %rbp, which only a call of the tracer comes before, and where
        # that is its frame pointer. The compiler may put other instructions between.
        code = self._code(function, _LONGEST_PROLOGUE)
        at = len(_ENDBR) if code.startswith(_ENDBR) else 0
        if code[at : at + 1] in (b"\xe8", b"\xcc") or code.startswith(_NOP_5, at):
            at += len(_NOP_5)
        moved = code.find(_MOVE_RBP, at + 1)
        if not code.startswith(_PUSH_RBP, at) or moved < 0:
            return None
        return function + at, function + moved + len(_MOVE_RBP)

    def _has_left(self, pc: int, place: SymbolAt) -> bool:
        # At "ret", or behind "pop %rbp" or "leave" at a jump to another function.
        before, *code = self._code(pc - 1, 6) or b"\0"
        if not code or code[0] == _RET:
            return bool(code)
        if code[0] != _JMP or before not in (_POP_RBP, _LEAVE):
            return False
        target = pc + 5 + int.from_bytes(bytes(code[1:5]), "little", signed=True)
        return not place.address <= target < place.address + (place.size or 1)

    def _code(self, address: int, size: int) -> bytes:
        try:
            return self._kernel.reader.read(address, size)
        except FaultError:
            return b""

    def _is_entry(self, pc: int) -> bool:
        return self._entry[0] <= pc < self._entry[1]

    def _is_text(self, pc: int) -> bool:
        text = (*self._kernel_text, *self._modules)
        return any(start <= pc < end for start, end in text)


def _on_other_stack(text: bytes, start: int) -> int:
    # The size of the calls and moves from there up to "pop %rsp", with that, or 0.
    at = start
    while at - start < _LONGEST_SWITCH:
        if text[at : at + 1] == _POP_RSP:
            return at + 1 - start
        size = 5 if text[at : at + 1] == b"\xe8" else 3
        if size == 3 and not _MOVE.match(text, at):
            return 0
        at += size
    return 0


def _filled(
    ranges: Sequence[tuple[int, int]], pieces: Sequence[Piece]
) -> Iterator[Piece]:
    # The pieces, and frame pointers between them.
    for start, end in sorted(ranges):
        for piece in pieces:
            if start <= piece[0] < end:
                if start < piece[0]:
                    yield start, piece[0], FRAME_POINTER_ROW
                yield piece
                start = piece[1]
        if start < end:
            yield start, end, FRAME_POINTER_ROW


def open_frame_pointers(kernel: Kernel) -> FramePointers:
    """Return what frame pointers tell of a kernel, found out once.

    :raise SymbolNotFoundError: its functions keep none
    """
    return kernel.once("frame pointers", lambda: FramePointers(kernel))
