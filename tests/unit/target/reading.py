# SPDX-License-Identifier: GPL-2.0-or-later
"""What is in a frame file, as pyelftools decodes it and DWARF defines it."""

from __future__ import annotations

import io
from itertools import pairwise

from elftools.dwarf.callframe import FDE, CallFrameInfo
from elftools.dwarf.descriptions import describe_CFI_CFA_rule
from elftools.dwarf.dwarf_expr import DWARFExprParser
from elftools.dwarf.structs import DWARFStructs
from elftools.elf.elffile import ELFFile

STRUCTS = DWARFStructs(little_endian=True, dwarf_format=32, address_size=8)


class _Frames(CallFrameInfo):
    def _parse_cie_augmentation(self, header, entry_structs):
        # "S" without a "z" before it is for .debug_frame; it brings no data along.
        assert header["augmentation"] in (b"", b"S")
        return b"", {"S": header["augmentation"] == b"S"}


def read_section(data):
    """Return the FDEs of a section."""
    frames = _Frames(io.BytesIO(data), len(data), 0, STRUCTS)
    return [entry for entry in frames.get_entries() if isinstance(entry, FDE)]


def read_file(data):
    """Return the FDEs of a frame file, by address; the file is checked."""
    elf = ELFFile(io.BytesIO(data))
    assert elf["e_machine"] == "EM_X86_64"
    assert elf.get_section_by_name(".text")["sh_size"] == 0
    fdes = read_section(elf.get_section_by_name(".debug_frame").data())
    fdes.sort(key=lambda fde: fde["initial_location"])
    ends = [(fde["initial_location"], fde["address_range"]) for fde in fdes]
    for (start, size), (following, _) in pairwise(ends):
        assert start + size <= following
    return fdes


def is_marked(fde):
    return fde.cie.augmentation_dict["S"]


def rows(fde):
    """Return (pc, rules by column, CFA) for each row; initial rules are in them."""
    decoded = []
    for line in fde.get_decoded().table:
        columns = {key: line[key] for key in line if isinstance(key, int)}
        decoded.append((line["pc"], columns, line["cfa"]))
    return decoded


def row_at(fdes, address):
    """Return (FDE, rules, CFA) for an address, None where there are none."""
    for fde in fdes:
        start = fde["initial_location"]
        if start <= address < start + fde["address_range"]:
            found = [row for row in rows(fde) if row[0] <= address]
            if not found:
                found = rows(fde.cie)
            return fde, found[-1][1], found[-1][2]
    return None


def cfa_text(cfa):
    return describe_CFI_CFA_rule(cfa)


def parse(code):
    return DWARFExprParser(STRUCTS).parse_expr(list(code))


def evaluate(code, memory, registers, *stack):
    """Return what a DWARF expression gives.

    :param memory: words by address
    :param registers: by column
    """
    stack = list(stack)
    binary = {
        "and": lambda a, b: a & b, "or": lambda a, b: a | b, "eq": lambda a, b: a == b,
        "minus": lambda a, b: a - b, "plus": lambda a, b: a + b,
        "mul": lambda a, b: a * b, "ge": lambda a, b: _signed(a) >= _signed(b),
    }  # fmt: skip
    ops = parse(code)
    by_offset = {op.offset: i for i, op in enumerate(ops)} | {len(code): len(ops)}
    at = 0
    while at < len(ops):
        op = ops[at]
        at += 1
        name = op.op_name.removeprefix("DW_OP_")
        if name in binary:
            second, first = stack.pop(), stack.pop()
            stack.append(int(binary[name](first, second)))
        elif name.startswith("breg"):
            stack.append(registers[int(name[4:])] + op.args[0])
        elif name.startswith("lit"):
            stack.append(int(name[3:]))
        elif name.startswith("const"):
            stack.append(op.args[0])
        elif name == "plus_uconst":
            stack.append(stack.pop() + op.args[0])
        elif name == "deref":
            stack.append(memory[stack.pop()])
        elif name in ("dup", "over", "pick"):
            depth = {"dup": 0, "over": 1}.get(name)
            stack.append(stack[-1 - (op.args[0] if depth is None else depth)])
        elif name == "drop":
            stack.pop()
        elif name in ("skip", "bra"):
            if name == "skip" or stack.pop():
                # From behind its two bytes of an operand.
                at = by_offset[op.offset + 3 + op.args[0]]
        else:
            raise AssertionError(name)
    return stack[-1]


def _signed(value):
    return value - (1 << 64) if value >> 63 else value
