# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel log, in both of its eras (``kernel/printk/``).

5.10 and later have a lock-less ring of descriptors (``prb``), before that a buffer of
variable-length records (``log_buf``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gdbkdump.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gdbkdump.kernel.base import Kernel

_MAX_BYTES = 1 << 31
# state_var: the two top bits are the descriptor's state, the rest its id.
_COMMITTED, _FINALIZED, _REUSABLE = 1, 2, 3
_CALLER_IS_CPU = 0x80000000


@dataclass(frozen=True)
class PrintkRecord:
    """A log record.

    :param timestamp_ns: nanoseconds of ``local_clock()``
    :param level: 0 (emergency) to 7 (debug)
    :param text: may hold newlines
    :param caller: ``T1`` (a task) or ``C0`` (a CPU); None without PRINTK_CALLER
    :param context: (key, value) of the dictionary: SUBSYSTEM, DEVICE
    """

    seq: int
    timestamp_ns: int
    facility: int
    level: int
    text: bytes
    caller: str | None
    context: tuple[tuple[str, bytes], ...]


def printk_records(kernel: Kernel, problems: list[str]) -> Iterator[PrintkRecord]:
    """Yield the log's records, oldest first.

    :param problems: gets what was overwritten or cannot be read
    """
    # Since Linux kernel commit 896fbe20b4e2 ("printk: use the lockless ringbuffer")
    # (in v5.10).
    if kernel.has_symbol("prb"):
        return _read_ringbuffer(kernel, problems)
    return _read_log_buf(kernel, problems)


class _Ring:
    # struct printk_ringbuffer, with its three rings read whole.
    def __init__(self, kernel: Kernel) -> None:
        address = kernel.reader.u64(kernel.symbol("prb"))
        ring = kernel.object("printk_ringbuffer", address)
        desc_bits = ring["desc_ring.count_bits"]
        text_bits = ring["text_data_ring.size_bits"]
        if not 0 < desc_bits < 31 or not 0 < text_bits < 31:
            raise CorruptError(f"printk ring: 2**{desc_bits} records, 2**{text_bits}")
        self.count, self.text_size = 1 << desc_bits, 1 << text_bits
        self.tail = ring["desc_ring.tail_id.counter"] & self.id_mask
        self.head = ring["desc_ring.head_id.counter"] & self.id_mask
        self.descs = _Column(
            kernel, "prb_desc", ring["desc_ring.descs"], self.count,
            ["state_var.counter", "text_blk_lpos.begin", "text_blk_lpos.next"],
        )  # fmt: skip
        info = kernel.struct("printk_info")
        self.infos = _Column(
            kernel, "printk_info", ring["desc_ring.infos"], self.count,
            ["seq", "ts_nsec", "text_len", "facility"]
            + [path for path in ("caller_id",) if info.has(path)],
        )  # fmt: skip
        self.level = info.member("level")
        self.dev_info = info.offset("dev_info") if info.has("dev_info") else None
        self.dev = kernel.fields("dev_printk_info", ["subsystem", "device"])
        self.text = kernel.reader.read(ring["text_data_ring.data"], self.text_size)

    id_mask = (1 << 62) - 1

    def block(self, begin: int, following: int) -> bytes | None:
        """Return the text of a data block, or None where it has none or is lost."""
        if begin & 1:
            return b"" if begin == following and begin == 3 else None
        start, end = begin % self.text_size, following % self.text_size
        # A block that does not fit before the end of the ring is at its start.
        if begin // self.text_size != following // self.text_size and end:
            start = 0
        end = end or self.text_size
        return self.text[start + 8 : end] if start + 8 <= end else None


class _Column:
    # An array of structs, read in one go.
    def __init__(
        self, kernel: Kernel, struct: str, address: int, count: int, paths: list[str]
    ) -> None:
        self.size = kernel.struct(struct).size
        if count * self.size > _MAX_BYTES:
            raise CorruptError(f"printk ring: {count} of struct {struct}")
        self.data = kernel.reader.read(address, count * self.size)
        self._fields = kernel.fields(struct, paths)

    def __getitem__(self, index: int) -> tuple[int, ...]:
        return self._fields.decode(self.data, index * self.size)


def _read_ringbuffer(kernel: Kernel, problems: list[str]) -> Iterator[PrintkRecord]:
    ring = _Ring(kernel)
    skipped = 0
    id_ = ring.tail
    for _ in range(ring.count + 1):
        index = id_ % ring.count
        state, begin, following = ring.descs[index]
        state &= 0xFFFFFFFFFFFFFFFF
        is_ours = state & ring.id_mask == id_
        record = None
        if is_ours and state >> 62 in (_COMMITTED, _FINALIZED):
            record = _ring_record(ring, index, begin, following)
        if record:
            yield record
        elif id_ != ring.tail or not is_ours or state >> 62 != _REUSABLE:
            # Reserved when the kernel died, or its text was overwritten by newer ones;
            # only the descriptor at the tail may rightly hold nothing.
            skipped += 1
        if id_ == ring.head:
            break
        id_ = (id_ + 1) & ring.id_mask
    else:
        problems.append("the log ring's head is not where its tail leads")
    if skipped:
        problems.append(
            f"{skipped} log records were unfinished or have lost their text"
        )


def _ring_record(
    ring: _Ring, index: int, begin: int, following: int
) -> PrintkRecord | None:
    text = ring.block(begin & 0xFFFFFFFFFFFFFFFF, following & 0xFFFFFFFFFFFFFFFF)
    if text is None:
        return None
    seq, timestamp, length, facility, *caller = ring.infos[index]
    at = index * ring.infos.size
    level = ring.infos.data[at + ring.level.offset] >> (ring.level.bit_offset & 7) & 7
    context: tuple[tuple[str, bytes], ...] = ()
    if ring.dev_info is not None:
        values = ring.dev.decode(ring.infos.data, at + ring.dev_info)
        pairs = zip(("SUBSYSTEM", "DEVICE"), values, strict=True)
        context = tuple((key, value) for key, value in pairs if value)
    return PrintkRecord(
        seq,
        timestamp,
        facility,
        level,
        text[:length],
        _caller(caller[0]) if caller else None,
        context,
    )


def _caller(caller_id: int) -> str:
    if caller_id & _CALLER_IS_CPU:
        return f"C{caller_id & ~_CALLER_IS_CPU}"
    return f"T{caller_id}"


def _read_log_buf(kernel: Kernel, problems: list[str]) -> Iterator[PrintkRecord]:
    # The BPF verifier has a static ``log_buf`` too; VMCOREINFO means ours.
    info = kernel.vmcoreinfo
    pointer = (info.symbol("log_buf") if info else None) or kernel.symbol("log_buf")
    length_at = (info.symbol("log_buf_len") if info else None) or kernel.symbol(
        "log_buf_len"
    )
    size = kernel.reader.u32(length_at)
    if not 0 < size <= _MAX_BYTES:
        raise CorruptError(f"a log buffer of {size} bytes")
    data = kernel.reader.read(kernel.reader.u64(pointer), size)
    index = kernel.reader.u32(kernel.symbol("log_first_idx"))
    end = kernel.reader.u32(kernel.symbol("log_next_idx"))
    seq = kernel.reader.u64(kernel.symbol("log_first_seq"))
    last = kernel.reader.u64(kernel.symbol("log_next_seq"))
    # Since Linux kernel commit 15ff2069cb7f ("printk: Add caller information to
    # printk() output.") (in v5.1).
    paths = ["ts_nsec", "len", "text_len", "dict_len", "facility"]
    type_ = kernel.struct("printk_log")
    paths += [path for path in ("caller_id",) if type_.has(path)]
    fields = kernel.fields("printk_log", paths)
    level = type_.member("level")
    while seq < last:
        if index + type_.size > size:
            problems.append(f"log record {seq} at {index:#x} runs past the buffer")
            return
        timestamp, length, text_len, dict_len, facility, *caller = fields.decode(
            data, index
        )
        if not length:
            # The rest of the buffer was too short for a record: it is at the start.
            if not index:
                problems.append(f"log record {seq} is empty")
                return
            index = 0
            continue
        if length < type_.size + text_len + dict_len or index + length > size:
            problems.append(f"log record {seq} at {index:#x} has absurd lengths")
            return
        text = index + type_.size
        yield PrintkRecord(
            seq,
            timestamp,
            facility,
            data[index + level.offset] >> (level.bit_offset & 7) & 7,
            data[text : text + text_len],
            _caller(caller[0]) if caller else None,
            _dictionary(data[text + text_len : text + text_len + dict_len]),
        )
        index += length
        seq += 1
    if index != end:
        problems.append("the log does not end where log_next_idx says")


def _dictionary(data: bytes) -> tuple[tuple[str, bytes], ...]:
    pairs = (item.partition(b"=") for item in data.split(b"\0") if item)
    return tuple((key.decode("latin-1"), value) for key, _, value in pairs)
