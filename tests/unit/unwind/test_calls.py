# SPDX-License-Identifier: GPL-2.0-or-later
"""Call instructions, as text at run time has them."""

from __future__ import annotations

import pytest
from handmade import TEXT, TEXT_END, Machine

from gdbkdump.unwind.calls import Calls

AT = TEXT + 0x1000


def calls_behind(code):
    machine = Machine()
    machine.memory.parts[TEXT][:] = b"\x90" * (TEXT_END - TEXT)
    at = AT - TEXT
    machine.memory.parts[TEXT][at - len(code) : at] = code
    return Calls(machine.kernel())


@pytest.mark.parametrize(
    "code",
    [
        "e8 10 00 00 00", "ff d0", "41 ff d3", "ff 50 18", "ff 54 24 08",
        "ff 15 00 10 00 00", "ff 90 88 00 00 00", "ff 94 24 88 00 00 00",
        "0f 1f 44 00 00", "cc 10 00 00 00", "48 cb",
    ],
)  # fmt: skip
def test_what_a_call_looks_like(code):
    assert calls_behind(bytes.fromhex(code)).is_behind_call(AT)


@pytest.mark.parametrize("code", ["90", "ff e0", "e9 10 00 00 00", "55", "ff c0"])
def test_what_is_none(code):
    assert not calls_behind(bytes.fromhex(code)).is_behind_call(AT)


def test_text_that_is_not_there():
    calls = calls_behind(b"")
    assert calls.target(0x1000) is None
    assert not calls.is_behind_call(0x1000)


def test_targets():
    calls = calls_behind(bytes.fromhex("e8 f0 ff ff ff"))
    assert calls.target(AT) == AT - 16
    assert calls.is_of(AT, AT - 16)
    # To the padding of the function, and no further.
    assert calls.is_of(AT, AT)
    assert not calls.is_of(AT, AT + 1)
    assert not calls.is_of(AT, AT - 17)
    assert calls_behind(bytes.fromhex("ff d0")).target(AT) is None


def test_init_text_is_gone():
    machine = Machine()
    machine.memory.parts[TEXT][:] = b"\xcc" * (TEXT_END - TEXT)
    machine.symbols.by_name.update(_sinittext=AT, _einittext=AT + 0x100)
    calls = Calls(machine.kernel())
    assert calls.is_behind_call(AT + 0x80)
