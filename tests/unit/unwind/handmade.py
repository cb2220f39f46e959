# SPDX-License-Identifier: GPL-2.0-or-later
"""A small kernel made by hand: text with ORC, stacks, and a task to unwind."""

from __future__ import annotations

import struct

from gdbkdump.arch.x86_64 import X86_64
from gdbkdump.debuginfo.base import DebugInfo
from gdbkdump.debuginfo.kallsyms import Symbol
from gdbkdump.debuginfo.layout import IntType, Member, StructType
from gdbkdump.errors import FaultError, FaultReason, TypeNotFoundError
from gdbkdump.kernel.base import Kernel
from gdbkdump.kernel.sched import Task
from gdbkdump.unwind.stacks import StackRange
from gdbkdump.unwind.unwinder import unwind_task

TEXT = 0xFFFFFFFF81000000
TEXT_END = TEXT + 0x10000
ORC_IP, ORC = TEXT + 0x20000, TEXT + 0x30000
IMAGE_END = TEXT + 0x100000
GENERATED = TEXT + 0x3F000000
TASK, STACK, STACK_SIZE = 0xFFFF888000010000, 0xFFFFC90000010000, 0x4000
NMI_STACK = StackRange(0xFFFFFE0000001000, 0xFFFFFE0000003000, "NMI exception stack")
IRQ_STACK = StackRange(0xFFFFC90000100000, 0xFFFFC90000104000, "IRQ stack")

U64 = IntType("unsigned long", 8, False)
U32 = IntType("unsigned int", 4, False)
S16 = IntType("short", 2, True)
CHAR = IntType("char", 1, True)

# Old numbers and new ones; see gdbkdump/unwind/orc.py.
OLD = {"undefined": 0, "prev_sp": 1, "dx": 2, "di": 3, "bp": 4, "sp": 5, "r10": 6,
       "r13": 7, "(bp)": 8, "(sp)": 9}  # fmt: skip
NEW = {"undefined": 0, "dx": 2, "sp": 3, "bp": 4, "r10": 6, "r13": 7, "prev_sp": 8,
       "(sp)": 9, "(bp)": 10}  # fmt: skip


def member(name, offset, type_, bits=0, shift=0):
    return Member(name, offset * 8 + shift, bits, lambda: type_)


def struct_type(name, size, *members):
    return StructType("struct", name, size, members)


def words(name, *names):
    return struct_type(
        name, 8 * len(names), *(member(n, 8 * i, U64) for i, n in enumerate(names))
    )


class OrcVersion:
    """How a kernel's objtool wrote its entries."""

    def __init__(self, name, type_bits, numbers, *flags, frame="bp"):
        self.name = name
        self.type_bits, self.numbers, self.flags = type_bits, numbers, flags
        kinds = ["call", "regs", "partial"]
        self.kinds = ["undefined", "end", *kinds] if type_bits == 3 else kinds
        self.frame = frame

    def layout(self):
        fields = [("sp_reg", 4), (f"{self.frame}_reg", 4), ("type", self.type_bits)]
        fields += [(flag, 1) for flag in self.flags]
        members, shift = [], 0
        for name, bits in fields:
            members.append(member(name, 4, U32, bits, shift))
            shift += bits
        return struct_type(
            "orc_entry",
            6,
            member("sp_offset", 0, S16),
            member(f"{self.frame}_offset", 2, S16),
            *members,
        )

    def encode(self, kind, sp="undefined", sp_off=0, bp="undefined", bp_off=0, **flags):
        if kind in ("undefined", "end") and self.type_bits == 2:
            flags["end"] = kind == "end"
            kind = "call"
        bits = self.numbers[sp] | self.numbers[bp] << 4 | self.kinds.index(kind) << 8
        for i, flag in enumerate(self.flags):
            bits |= bool(flags.get(flag)) << (8 + self.type_bits + i)
        return struct.pack("<hhH", sp_off, bp_off, bits)


VERSIONS = [
    OrcVersion("4.14", 2, OLD),
    OrcVersion("4.18", 2, OLD, "end"),
    OrcVersion("6.3", 2, OLD, "signal", "end"),
    OrcVersion("6.4", 3, OLD, "signal"),
    OrcVersion("7.1", 3, NEW, "signal"),
    OrcVersion("7.1 fp", 3, NEW, "signal", frame="fp"),
]


class Memory:
    """Ranges of bytes; what is not in one faults."""

    def __init__(self):
        self.parts = {}

    def add(self, address, data):
        self.parts[address] = bytearray(data)

    def write(self, address, *values):
        for i, value in enumerate(values):
            start, data = self.part(address + 8 * i)
            struct.pack_into("<Q", data, address + 8 * i - start, value)

    def part(self, address):
        for start, data in self.parts.items():
            if start <= address < start + len(data):
                return start, data
        raise FaultError("virtual", address, FaultReason.UNMAPPED)

    def read(self, address, size):
        start, data = self.part(address)
        if address + size > start + len(data):
            raise FaultError("virtual", start + len(data), FaultReason.EXCLUDED)
        return bytes(data[address - start : address - start + size])


class Types:
    def __init__(self, types):
        self.types = types

    def find(self, keyword, name):
        if keyword == "struct" and name in self.types:
            return self.types[name]
        raise TypeNotFoundError(f"{keyword} {name}")

    def names(self, keyword):
        return iter(self.types)


class Symbols:
    def __init__(self):
        self.by_name = {}

    def find(self, name):
        return [Symbol(name, self.by_name[name], "T")] if name in self.by_name else []

    def at(self, address):
        before = [(a, n) for n, a in self.by_name.items() if a <= address]
        return (Symbol(max(before)[1], max(before)[0], "T"), None) if before else None

    def __iter__(self):
        return (Symbol(name, address, "T") for name, address in self.by_name.items())


class Machine:
    """A kernel under construction: functions with rows, then ``unwind()``."""

    def __init__(self, version=VERSIONS[3]):
        self.version = version
        self.memory = Memory()
        # Every place is one that a call may return to.
        self.memory.add(TEXT, b"\xe8" * (TEXT_END - TEXT))
        self.memory.add(STACK, bytes(STACK_SIZE))
        self.memory.add(TASK, bytes(4096))
        for stack in (NMI_STACK, IRQ_STACK):
            self.memory.add(stack.start, bytes(stack.end - stack.start))
        thread = words("thread_struct", "sp")
        self.types = {
            "orc_entry": version.layout(),
            "thread_union": struct_type("thread_union", STACK_SIZE),
            "task_struct": struct_type(
                "task_struct",
                4096,
                member("thread", 0x100, thread),
                member("ret_stack", 0x200, U64),
                member("rethooks", 0x208, words("llist_head", "first")),
            ),
            "inactive_task_frame": words(
                "inactive_task_frame",
                "r15",
                "r14",
                "r13",
                "r12",
                "bx",
                "bp",
                "ret_addr",
            ),
        }
        self.symbols = Symbols()
        self.symbols.by_name = {
            "_stext": TEXT, "_etext": TEXT_END, "__start_orc_unwind_ip": ORC_IP,
            "__start_orc_unwind": ORC,
        }  # fmt: skip
        self.entries = []
        self.text = TEXT
        # Numbering is told by what is most frequent.
        self.function("filler", "call", "sp", 8)

    def function(self, name, *row, **flags):
        """Add a function of 256 bytes that one row describes; return its address."""
        self.text += 0x100
        self.symbols.by_name[name] = self.text
        self.entries.append((self.text, self.version.encode(*row, **flags)))
        return self.text

    def call(self, place, target):
        """Write a call that returns to ``place``."""
        start, data = self.memory.part(place - 5)
        at = place - 5 - start
        data[at : at + 5] = b"\xe8" + struct.pack("<i", target - place)

    def sleep(self, *stack, bp=0):
        """Lay out a switched-out task: its return address and what is above it."""
        sp = STACK + STACK_SIZE - 8 * (6 + len(stack))
        self.memory.write(sp, 0, 0, 0, 0, 0, bp, *stack)
        self.memory.write(TASK + 0x100, sp)
        return sp + 48

    def kernel(self):
        ips, entries = [], b""
        for i, (address, entry) in enumerate(self.entries):
            ips.append(address - (ORC_IP + 4 * i))
            entries += entry
        self.memory.add(ORC_IP, struct.pack(f"<{len(ips)}i", *ips))
        self.memory.add(ORC, entries)
        self.symbols.by_name["__stop_orc_unwind"] = ORC + len(entries)
        info = DebugInfo(Types(self.types), self.symbols, (TEXT, IMAGE_END), list)
        return Kernel(self.memory, info, X86_64(), None)

    def task(self):
        known = {"address": TASK, "comm": b"test", "stack": STACK}
        return Task(**{**dict.fromkeys(Task._fields, 0), **known})

    def unwind(self, **changes):
        self.result = unwind_task(self.kernel(), self.task()._replace(**changes))
        return self.result

    def names(self):
        return [self.symbols.at(frame.pc)[0].name for frame in self.result.frames]
