# SPDX-License-Identifier: GPL-2.0-or-later
"""The note walk: bounded by its bytes, generous to what is cut."""

from __future__ import annotations

import struct

from support.mkdump import note

from gdbkdump.formats.notes import MAX_NOTES, parse_notes


def parse(data):
    problems = []
    return list(parse_notes(data, problems)), problems


def test_notes_with_their_padding():
    data = note(b"CORE", 1, b"12345") + note(b"VMCOREINFO", 0, b"A=1\n")
    notes, problems = parse(data)
    assert [(n.name, n.type, n.desc) for n in notes] == [
        (b"CORE", 1, b"12345"),
        (b"VMCOREINFO", 0, b"A=1\n"),
    ]
    assert problems == []


def test_the_room_of_a_silent_cpu_is_skipped():
    notes, problems = parse(note(b"CORE", 1, b"a") + bytes(36) + note(b"CORE", 1, b"b"))
    assert [n.desc for n in notes] == [b"a", b"b"]
    assert problems == []


def test_a_cut_description_is_kept_as_far_as_it_goes():
    data = note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\nPAGESIZE=4096\n")
    notes, problems = parse(data[:-14])
    assert notes[0].desc == b"OSRELEASE=6.1\n"
    assert "cut" in problems[0]


def test_every_cut_is_survived():
    data = note(b"CORE", 1, bytes(10)) + note(b"VMCOREINFO", 0, bytes(20))
    for size in range(len(data)):
        notes, _ = parse(data[:size])
        assert len(notes) <= 2


def test_sizes_beyond_the_data_end_the_walk():
    head = struct.pack("<III", 0xFFFFFFFF, 0xFFFFFFFF, 1)
    notes, problems = parse(head + bytes(64))
    assert notes == []
    assert len(problems) == 1


def test_the_number_of_notes_is_bounded():
    one = struct.pack("<III", 4, 0, 1) + b"GNU\0"
    notes, problems = parse(one * (MAX_NOTES + 10))
    assert len(notes) == MAX_NOTES
    assert "ignored" in problems[0]
