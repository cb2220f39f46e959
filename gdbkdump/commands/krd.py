# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory as it is: words, text, symbols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from gdbkdump.commands import argument, command
from gdbkdump.commands.arguments import context_task, parse_address, parse_number
from gdbkdump.errors import CommandError, FaultError, FaultReason
from gdbkdump.kernel.mm import user_memory
from gdbkdump.kernel.typespec import parse_offset
from gdbkdump.memory.virtual import MASK64
from gdbkdump.render.hexdump import ascii_text, signed, words_of
from gdbkdump.render.model import Address, Listing

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator

    from gdbkdump.render.model import Result
    from gdbkdump.session import Session

    Read = Callable[[int, int], bytes]

_LINE = 16
_TEXT_LINE = 64
_PAGE = 4096
# Bounds what one command reads.
_MAX_BYTES = 1 << 30
_MAX_TEXT = 1 << 16
_WIDTHS = {8: 2, 16: 4, 32: 8, 64: 16}


class _Line(NamedTuple):
    # Bytes at an address, or why so many of them cannot be had.
    address: int
    data: bytes
    size: int
    reason: FaultReason | None = None


class _Look(NamedTuple):
    # How words are shown.
    bits: int
    radix: str
    is_text: bool
    with_symbols: bool
    with_text: bool
    space: str

    @property
    def line_size(self) -> int:
        return _TEXT_LINE if self.is_text else _LINE


@command(
    "krd",
    "Read memory: words in hex or decimal, text, symbols.",
    category="memory",
    arguments=[
        argument(
            "address",
            metavar="ADDRESS",
            completes="symbol",
            help="hex, symbol, symbol+offset or $expression",
        ),
        argument("count", nargs="?", metavar="COUNT", help="words to show (1)"),
        *(
            argument(
                f"-{bits}",
                dest="bits",
                action="store_const",
                const=bits,
                help=f"words of {bits} bits" + (", the default" if bits == 64 else ""),
            )
            for bits in _WIDTHS
        ),
        argument("-p", dest="physical", action="store_true", help="a physical address"),
        argument(
            "-u",
            dest="user",
            action="store_true",
            help="an address of the current task's user space",
        ),
        argument("-a", dest="is_text", action="store_true", help="show text only"),
        argument(
            "-s",
            dest="symbols",
            action="store_true",
            help="show words that are in a symbol as symbol+offset",
        ),
        argument("-x", dest="no_text", action="store_true", help="leave the text out"),
        argument(
            "-d", dest="radix", action="store_const", const="d", help="signed decimal"
        ),
        argument(
            "-D", dest="radix", action="store_const", const="u", help="unsigned decimal"
        ),
        argument("-e", dest="end", metavar="ADDRESS", help="stop before this address"),
        argument(
            "-o",
            dest="offset",
            metavar="OFFSET",
            help="begin OFFSET (or STRUCT.MEMBER) bytes after ADDRESS",
        ),
    ],
    examples=[
        "krd init_task 8",
        "krd -a linux_banner",
        "krd -s -e init_task+0x80 init_task",
        "krd -32 -d jiffies 2",
        "krd -p 100000 4",
    ],
    crash="rd",
)
def krd(session: Session, args: Namespace) -> Result:
    """Each line begins with its address; 16 bytes follow, as words and as text.

    Words are little-endian as the machine's. Bytes that cannot be read are told as
    such, with the reason, and reading goes on behind them: nothing shown is
    invented. COUNT counts words of the chosen size; with -a alone the text runs to
    its NUL.
    """
    if args.physical and args.user:
        raise CommandError("krd: -p and -u exclude each other")
    look = _look(args)
    read = _reader(session, args)
    start = parse_address(session, args.address)
    if args.offset:
        start = (start + parse_offset(session.kernel, args.offset)) & MASK64
    size = _size(session, args, look, start)
    if size is None:
        size = _text_size(read, start)
    lines = _lines(read, start, size, look)
    return Listing(
        lines,
        lambda line: [_text(session, look, line)],
        lambda line: _data(session, look, line),
    )


def _look(args: Namespace) -> _Look:
    bits = args.bits or (8 if args.is_text else 64)
    if args.symbols and bits != 64:
        raise CommandError("krd: -s takes words of 64 bits")
    with_text = not (args.no_text or args.symbols or args.radix)
    space = "physical" if args.physical else "virtual"
    radix = args.radix or "x"
    return _Look(bits, radix, args.is_text, args.symbols, with_text, space)


def _reader(session: Session, args: Namespace) -> Read:
    if args.physical:
        return session.dump.read_phys
    if args.user:
        task = context_task(session)
        if not task.mm:
            comm = task.comm.decode("utf-8", "backslashreplace")
            raise CommandError(f"krd: {comm} (pid {task.pid}) has no user memory")
        return user_memory(session.kernel, task.mm).read
    return session.kernel.reader.read


def _size(session: Session, args: Namespace, look: _Look, start: int) -> int | None:
    # None: as far as the text goes.
    step = look.bits // 8
    size: int | None = None if look.is_text else step
    if args.end:
        size = parse_address(session, args.end) - start
        if size <= 0:
            raise CommandError(f"krd: the end {args.end} is not after {start:#x}")
    if args.count:
        count = parse_number(args.count)
        if count <= 0:
            raise CommandError(f"krd: a COUNT of {count}")
        size = min(size, count * step) if args.end and size else count * step
    if size is not None:
        # Half a word is a word.
        size = (size + step - 1) // step * step
        if size > _MAX_BYTES:
            raise CommandError(f"krd: {size:#x} bytes; at most {_MAX_BYTES:#x} at once")
        size = min(size, MASK64 + 1 - start)
    return size


def _text_size(read: Read, start: int) -> int:
    # Up to the first byte that is no text, or what cannot be read.
    end = start
    while end - start < _MAX_TEXT:
        address = (end | (_PAGE - 1)) + 1
        data, _ = _read_some(read, end, address)
        for i, byte in enumerate(data):
            if not (32 <= byte < 127 or byte in b"\t\n"):
                return max(end + i - start, 1)
        end += len(data)
        if end < address:
            break
    return max(end - start, 1)


# Reading


def _lines(read: Read, start: int, size: int, look: _Look) -> Iterator[_Line]:
    step = look.bits // 8
    held: _Line | None = None  # neighbouring gaps are told as one
    is_empty = True
    for piece in _pieces(read, start, start + size, step):
        if piece.reason is None:
            if held:
                yield held
                held = None
            is_empty = False
            yield from _cut(piece, look.line_size)
        elif held and held.reason is piece.reason:
            held = held._replace(size=held.size + piece.size)
        else:
            if held:
                yield held
            held = piece
    if held and held.reason:
        if is_empty:
            raise FaultError(look.space, start, held.reason)
        yield held


def _cut(piece: _Line, size: int) -> Iterator[_Line]:
    for at in range(0, piece.size, size):
        data = piece.data[at : at + size]
        yield _Line(piece.address + at, data, len(data))


def _pieces(read: Read, start: int, end: int, step: int) -> Iterator[_Line]:
    # Page by page, so that lines keep their rhythm across pages: what a page's last
    # line lacks comes from the next one.
    address, kept = start, b""
    while address < end:
        stop = min(end, ((address + _PAGE) & -_PAGE))
        got, reason = _read_some(read, address, stop)
        kept += got
        address += len(got)
        whole = len(kept) if reason or address >= end else len(kept) // 64 * 64
        if reason:
            whole -= whole % step
        if whole:
            yield _Line(address - len(kept), kept[:whole], whole)
            kept = kept[whole:]
        if reason:
            # A word that is cut by the gap belongs to it.
            first = address - len(kept)
            last = min(end, first + -(-(stop - first) // step) * step)
            yield _Line(first, b"", last - first, reason)
            address, kept = last, b""


def _read_some(read: Read, address: int, stop: int) -> tuple[bytes, FaultReason | None]:
    try:
        return read(address, stop - address), None
    except FaultError as fault:
        if address < fault.address < stop:
            try:
                return read(address, fault.address - address), fault.reason
            except FaultError as other:
                return b"", other.reason
        return b"", fault.reason


# Showing


def _text(session: Session, look: _Look, line: _Line) -> str:
    head = f"{line.address:016x}:  "
    if line.reason:
        return f"{head}<{line.size} bytes unreadable: {line.reason.value}>"
    if look.is_text:
        return head + ascii_text(line.data)
    words = [_word(session, look, word) for word in words_of(line.data, look.bits)]
    text = head + " ".join(words)
    if not look.with_text:
        return text.rstrip()
    full = len(head) + (_width(look) + 1) * (_LINE * 8 // look.bits)
    return f"{text:<{full}}  {ascii_text(line.data)}"


def _width(look: _Look) -> int:
    return look.bits // 4 if look.radix == "x" else len(str(1 << look.bits))


def _word(session: Session, look: _Look, word: int) -> str:
    if look.with_symbols:
        symbol = session.kernel.debuginfo.symbol_at(word)
        return f"{symbol!s:<16}" if symbol else f"{word:016x}"
    if look.radix == "x":
        return f"{word:0{_width(look)}x}"
    value = signed(word, look.bits) if look.radix == "d" else word
    return f"{value:>{_width(look)}}"


def _data(session: Session, look: _Look, line: _Line) -> dict[str, Any]:
    data: dict[str, Any] = {"address": Address(line.address), "size": line.size}
    if line.reason:
        return {**data, "unreadable": line.reason.value}
    words = words_of(line.data, look.bits)
    if look.is_text:
        data["text"] = ascii_text(line.data)
    elif look.radix == "x":
        data["words"] = [Address(word) for word in words]
    else:
        data["words"] = [
            signed(word, look.bits) if look.radix == "d" else word for word in words
        ]
    if look.with_symbols:
        found = [session.kernel.debuginfo.symbol_at(word) for word in words]
        data["symbols"] = [str(symbol) if symbol else None for symbol in found]
    return data
