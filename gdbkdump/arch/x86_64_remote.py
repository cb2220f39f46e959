# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers of x86-64 as gdb's remote protocol has them.

Names, order and types are those of gdb's own descriptions (``gdb/features/i386/``:
``64bit-core.xml``, ``64bit-sse.xml``, ``64bit-linux.xml``, ``64bit-segments.xml``), so
that gdb prints them as it prints those of a core.
"""

from __future__ import annotations

import struct
from itertools import repeat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gdbkdump.arch.base import Registers

_GENERAL = (
    "ax", "bx", "cx", "dx", "si", "di", "bp", "sp", "r8", "r9", "r10", "r11", "r12",
    "r13", "r14", "r15", "ip",
)  # fmt: skip
_SEGMENTS = ("cs", "ss", "ds", "es", "fs", "gs")
_OTHERS = ("orig_ax", "fs_base", "gs_base")
_FPU = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
_G_GENERAL = struct.Struct("<17Q7I")
_G_OTHERS = struct.Struct("<3Q")
# st0 to st7, the words of the FPU, xmm0 to xmm15, mxcsr: no dump has them.
_G_UNAVAILABLE = b"xx" * (8 * 10 + 8 * 4 + 16 * 16 + 4)

_POINTERS = {"rbp": "data_ptr", "rsp": "data_ptr", "rip": "code_ptr"}
_EFLAGS = {
    "CF": 0, "": 1, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "TF": 8, "IF": 9, "DF": 10,
    "OF": 11, "NT": 14, "RF": 16, "VM": 17, "AC": 18, "VIF": 19, "VIP": 20, "ID": 21,
}  # fmt: skip
_MXCSR = {
    "IE": 0, "DE": 1, "ZE": 2, "OE": 3, "UE": 4, "PE": 5, "DAZ": 6, "IM": 7, "DM": 8,
    "ZM": 9, "OM": 10, "UM": 11, "PM": 12, "FZ": 15,
}  # fmt: skip
_VECTORS = (
    ("v8_bfloat16", "v8bf16", "bfloat16", 8), ("v8_half", "v8h", "ieee_half", 8),
    ("v4_float", "v4f", "ieee_single", 4), ("v2_double", "v2d", "ieee_double", 2),
    ("v16_int8", "v16i8", "int8", 16), ("v8_int16", "v8i16", "int16", 8),
    ("v4_int32", "v4i32", "int32", 4), ("v2_int64", "v2i64", "int64", 2),
)  # fmt: skip


def _feature(name: str, *parts: str) -> str:
    return f'<feature name="org.gnu.gdb.i386.{name}">{"".join(parts)}</feature>'


def _registers(names: Iterable[str], bits: int, type_: str, group: str = "") -> str:
    more = f' group="{group}"' if group else ""
    return "".join(
        f'<reg name="{name}" bitsize="{bits}" type="{_POINTERS.get(name, type_)}"'
        f"{more}/>"
        for name in names
    )


def _flags(name: str, bits: dict[str, int]) -> str:
    fields = "".join(
        f'<field name="{flag}" start="{bit}" end="{bit}"/>'
        for flag, bit in bits.items()
    )
    return f'<flags id="{name}" size="4">{fields}</flags>'


def _vec128() -> str:
    vectors = "".join(
        f'<vector id="{id_}" type="{type_}" count="{count}"/>'
        for _, id_, type_, count in _VECTORS
    )
    fields = "".join(
        f'<field name="{name}" type="{id_}"/>' for name, id_, _, _ in _VECTORS
    )
    return (
        f'{vectors}<union id="vec128">{fields}'
        '<field name="uint128" type="uint128"/></union>'
    )


def _description() -> str:
    core = _feature(
        "core",
        _flags("i386_eflags", _EFLAGS),
        _registers((f"r{name.removeprefix('r')}" for name in _GENERAL), 64, "int64"),
        _registers(["eflags"], 32, "i386_eflags"),
        _registers(_SEGMENTS, 32, "int32"),
        _registers((f"st{i}" for i in range(8)), 80, "i387_ext"),
        _registers(_FPU, 32, "int", "float"),
    )
    sse = _feature(
        "sse",
        _vec128(),
        _flags("i386_mxcsr", _MXCSR),
        _registers((f"xmm{i}" for i in range(16)), 128, "vec128"),
        _registers(["mxcsr"], 32, "i386_mxcsr", "vector"),
    )
    linux = _feature("linux", _registers(["orig_rax"], 64, "int"))
    segments = _feature("segments", _registers(["fs_base", "gs_base"], 64, "int"))
    return (
        '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target>'
        "<architecture>i386:x86-64</architecture><osabi>GNU/Linux</osabi>"
        f"{core}{sse}{linux}{segments}</target>"
    )


TARGET_DESCRIPTION = _description()


def remote_registers(registers: Registers) -> bytes:
    """Return the reply to gdb's packet ``g``; registers not named are zero."""
    small = [registers.get(name, 0) & 0xFFFFFFFF for name in ("flags", *_SEGMENTS)]
    general = _G_GENERAL.pack(*map(registers.get, _GENERAL, repeat(0)), *small)
    others = _G_OTHERS.pack(*map(registers.get, _OTHERS, repeat(0)))
    return general.hex().encode() + _G_UNAVAILABLE + others.hex().encode()
