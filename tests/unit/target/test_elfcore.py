# SPDX-License-Identifier: GPL-2.0-or-later
"""Headers of core files, read back by an ELF parser that is not ours."""

from __future__ import annotations

import io

import pytest
from elftools.elf.elffile import ELFFile

from gdbkdump.target.elfcore import NT_AUXV, Load, headers, headers_size, note


@pytest.mark.parametrize("nr_loads", [0, 3, 65533, 65534, 70000])
def test_program_headers_of_any_number(nr_loads):
    # From 65535 on (PN_XNUM) their number is in section header 0.
    notes = note(NT_AUXV, b"\1" * 5) + note(0x202, b"xsave", b"LINUX")
    start = headers_size(nr_loads) + len(notes)
    loads = [
        Load(0x400000 + 4096 * i, 4096, 5, start, 4096 if i % 2 else 0)
        for i in range(nr_loads)
    ]
    data = headers(62, len(notes), loads) + notes
    assert len(data) == start
    elf = ELFFile(io.BytesIO(data))
    assert elf["e_type"] == "ET_CORE"
    assert elf.num_segments() == nr_loads + 1
    first = elf.get_segment(0)
    found = [(n["n_name"], n["n_descdata"]) for n in first.iter_notes()]
    assert [name for name, _ in found] == ["CORE", "LINUX"]
    assert found[1][1] == b"xsave"
    for i in {1, nr_loads} - {0}:
        if nr_loads:
            header = elf.get_segment(i).header
            load = loads[i - 1]
            assert (header.p_vaddr, header.p_memsz, header.p_flags) == load[:3]
            assert (header.p_offset, header.p_filesz) == load[3:]
