# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers of CPUs: from crash notes, else from a hypervisor's notes."""

from __future__ import annotations

import struct

import pytest

from gdbkdump.arch.base import GuestCpu
from gdbkdump.arch.x86_64 import X86_64
from gdbkdump.formats.vmcoreinfo import VmcoreInfo
from gdbkdump.kernel.panic import cpu_registers, unsaved_registers
from tests.support.fakes import U64, DictMemory, array, fake_kernel, member, structure

CPUMASK = structure("cpumask", 8, member("bits", 0, array(U64, 1)))
OFFSETS, MASK, NOTES, AREA = 0x1000, 0x2000, 0x3000, 0x100000


def guest(ip, *bases):
    return GuestCpu({"ip": ip, "cs": 0x10}, (), 4, bases, 0)


def saved(ip):
    desc = X86_64().make_prstatus(1, {"ip": ip})
    return struct.pack("<III", 5, len(desc), 1) + b"CORE\0\0\0\0" + desc


@pytest.fixture
def kernel():
    """Three CPUs; crash_notes are at 0x40 of what each has, all still empty."""
    memory = DictMemory()
    memory.words(OFFSETS, AREA, AREA + 0x1000, AREA + 0x2000)
    memory.words(MASK, 7)
    memory.words(NOTES, 0x40)
    for cpu in range(3):
        memory.put(AREA + 0x1000 * cpu + 0x40, bytes(400))
    names = {
        "__per_cpu_offset": OFFSETS, "__cpu_possible_mask": MASK, "crash_notes": NOTES,
    }  # fmt: skip
    made = fake_kernel(memory, [CPUMASK], names)
    made.raw = memory
    return made


def test_a_cpu_is_known_by_its_data_not_by_its_place(kernel):
    kernel.guest_cpus = [
        guest(0xA, AREA + 0x2000),
        guest(0xB, 0x7FFF0000, AREA),
        guest(0xC, 0x1234),
    ]
    assert cpu_registers(kernel, 2)["ip"] == 0xA
    assert cpu_registers(kernel, 0)["ip"] == 0xB
    assert cpu_registers(kernel, 1) is None
    assert unsaved_registers(kernel, 1) == (
        "the registers of CPU 1 are not in the dump"
    )


def test_what_the_kernel_saved_itself_comes_first(kernel):
    kernel.raw.put(AREA + 0x1000 + 0x40, saved(0x51))
    kernel.guest_cpus = [guest(0xA, AREA), guest(0xB, AREA + 0x1000)]
    assert cpu_registers(kernel, 0)["ip"] == 0xA
    assert cpu_registers(kernel, 1)["ip"] == 0x51


def test_behind_kdump_the_hypervisor_saw_another_kernel(kernel):
    kernel.guest_cpus = [guest(0xA, AREA)]
    kernel.vmcoreinfo = VmcoreInfo(b"CRASHTIME=1700000000\n")
    assert cpu_registers(kernel, 0) is None
    assert "CPU 0 was offline or did not answer" in unsaved_registers(kernel, 0)
