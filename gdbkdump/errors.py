# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong, as types: each is one clear line for the person at the prompt."""

from __future__ import annotations

import enum


class KdumpError(Exception):
    """Any failure that is the dump's or the user's, never a bug of ours."""


class FormatError(KdumpError):
    """The file is no dump that we read, or its headers contradict themselves."""


class MismatchError(KdumpError):
    """The vmlinux and the dump are not of the same kernel build."""


class CommandError(KdumpError):
    """A command was called the wrong way, or cannot be carried out as asked."""


class CorruptError(KdumpError):
    """A kernel structure in the dump is damaged (a list that loops, a bad magic)."""


class MissingPackageError(KdumpError):
    """A Python package that is needed for this is not installed."""

    def __init__(self, package: str, debian: str | None = None) -> None:
        debian = debian or f"python3-{package.lower()}"
        super().__init__(
            f"the Python package {package} is missing: on Debian install {debian},"
            f" elsewhere pip install {package}"
        )


class FaultReason(enum.Enum):
    """Why bytes at an address cannot be had."""

    HOLE = "not RAM, or not in the dump"
    EXCLUDED = "page excluded by makedumpfile"
    MISSING = "lost: the dump is truncated"
    SPLIT = "in another file of the split dump, which was not given"
    CORRUPT = "its page in the dump is damaged"
    IO = "the dump file cannot be read there"
    UNMAPPED = "not mapped by the kernel's page tables"
    TABLE = "its page table cannot be read"
    NONCANONICAL = "not a canonical address"


class FaultError(KdumpError):
    """An address of the dump cannot be read.

    :param space: ``"physical"`` or ``"virtual"``
    """

    def __init__(self, space: str, address: int, reason: FaultReason) -> None:
        super().__init__(f"cannot read {space} address {address:#x}: {reason.value}")
        self.space = space
        self.address = address
        self.reason = reason


class SymbolNotFoundError(KdumpError):
    """The kernel has no symbol of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no symbol {name!r} in this kernel")
        self.name = name


class TypeNotFoundError(KdumpError):
    """The kernel has no type of that name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no type {name!r} in this kernel")
        self.name = name


class MemberNotFoundError(KdumpError):
    """A structure has no such member."""

    def __init__(self, type_name: str, member: str) -> None:
        super().__init__(f"{type_name} has no member {member!r}")
        self.type_name = type_name
        self.member = member
