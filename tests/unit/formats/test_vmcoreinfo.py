# SPDX-License-Identifier: GPL-2.0-or-later
"""VMCOREINFO's traps: three number formats, a cut end, garbage."""

from __future__ import annotations

import pytest
from support.mkdump import vmcoreinfo

from gdbkdump.errors import KdumpError
from gdbkdump.formats.vmcoreinfo import MAX_SIZE, VmcoreInfo


def test_each_key_has_its_own_number_format():
    info = VmcoreInfo(
        b"OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(a)=ffffffff81000000\nKERNELOFFSET=10\n"
        b"NUMBER(phys_base)=-16777216\nNUMBER(sme_mask)=0x800000000000\n"
        b"SIZE(page)=64\nOFFSET(page.flags)=8\nLENGTH(zone.free_area)=11\n"
    )
    assert info.osrelease == "6.1.0"
    assert info.symbol("a") == 0xFFFFFFFF81000000
    assert info.hex("KERNELOFFSET") == 0x10
    assert info.number("phys_base") == -16777216
    assert info.number("sme_mask") == 1 << 47
    assert info.size("page") == 64
    assert info.offset("page.flags") == 8
    assert info.length("zone.free_area") == 11
    assert len(info) == 9


def test_what_is_not_there_is_none():
    info = VmcoreInfo(b"")
    assert info.symbol("x") is info.number("x") is info.osrelease is None
    assert not info.is_kdump
    assert len(info) == 0


def test_a_cut_last_line_is_dropped():
    whole = vmcoreinfo(OSRELEASE="6.1", SYMBOL_swapper_pg_dir=0xFFFFFFFF82610000)
    for size in range(len(whole)):
        assert VmcoreInfo(whole[:size]).symbol("swapper_pg_dir") is None
    assert VmcoreInfo(whole).symbol("swapper_pg_dir") == 0xFFFFFFFF82610000
    assert VmcoreInfo(whole + bytes(100)).symbol("swapper_pg_dir") is not None


def test_a_number_that_is_none_says_which_key():
    info = VmcoreInfo(b"SYMBOL(x)=zz\n")
    with pytest.raises(KdumpError, match=r"SYMBOL\(x\) is not a number"):
        info.symbol("x")


def test_only_a_crashing_kernel_has_the_time_of_its_crash():
    assert VmcoreInfo(b"CRASHTIME=1700000000\n").is_kdump


def test_bytes_that_are_no_text_and_lines_without_a_value():
    info = VmcoreInfo(b"\xff\xfe\n=\nnonsense\nA=b=c\n" + bytes(10))
    assert info.get("A") == "b=c"
    assert info.get("nonsense") is None


def test_its_size_is_bounded():
    info = VmcoreInfo(b"A=1\n" + b"B" * (2 * MAX_SIZE))
    assert len(info.raw) == MAX_SIZE
    assert info.get("A") == "1"
