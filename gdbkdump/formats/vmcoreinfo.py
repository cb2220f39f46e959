# SPDX-License-Identifier: GPL-2.0-or-later
"""VMCOREINFO, what the kernel says of itself (``kernel/vmcore_info.c``).

Traps: ``SYMBOL()`` and ``KERNELOFFSET`` are hex without 0x, ``NUMBER()`` is signed
decimal but for a few keys printed with 0x, the last line may be cut, and ``BUILD-ID``
is garbage in some stable kernels.
"""

from __future__ import annotations

from gdbkdump.errors import KdumpError

# As QEMU bounds it (dump/dump.c); the kernel's own buffer is a page or two.
MAX_SIZE = 1 << 20


class VmcoreInfo:
    """The ``key=value`` lines of the note."""

    def __init__(self, data: bytes) -> None:
        """Parse the note's description; a cut last line is dropped."""
        self.raw = data[:MAX_SIZE]
        lines = self.raw.rstrip(b"\0").split(b"\n")
        # Each line ends with a newline, so what follows the last one is cut or empty.
        self._values: dict[str, str] = {}
        for line in lines[:-1]:
            key, equals, value = line.partition(b"=")
            if equals:
                self._values[key.decode("latin-1")] = value.decode("latin-1")

    def __contains__(self, key: str) -> bool:
        """Tell whether the note has that key."""
        return key in self._values

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._values)

    def get(self, key: str) -> str | None:
        """Return the text of a key, or None."""
        return self._values.get(key)

    def hex(self, key: str) -> int | None:
        """Return a value printed as hex without 0x, or None."""
        return self._number(key, 16)

    def symbol(self, name: str) -> int | None:
        """Return the run-time address of a symbol, or None."""
        return self._number(f"SYMBOL({name})", 16)

    def number(self, name: str) -> int | None:
        """Return a signed NUMBER(), or None."""
        return self._number(f"NUMBER({name})", 0)

    def offset(self, name: str) -> int | None:
        """Return the byte offset of ``struct.member``, or None."""
        return self._number(f"OFFSET({name})", 10)

    def size(self, name: str) -> int | None:
        """Return the byte size of a struct, or None."""
        return self._number(f"SIZE({name})", 10)

    def length(self, name: str) -> int | None:
        """Return the number of elements of an array, or None."""
        return self._number(f"LENGTH({name})", 10)

    @property
    def osrelease(self) -> str | None:
        """The kernel release, as ``uname -r``."""
        return self.get("OSRELEASE")

    @property
    def is_kdump(self) -> bool:
        """Whether a crashing kernel wrote it: the key is added as it goes down."""
        return "CRASHTIME" in self

    def _number(self, key: str, base: int) -> int | None:
        text = self._values.get(key)
        if text is None:
            return None
        try:
            return int(text, base)
        except ValueError:
            raise KdumpError(f"VMCOREINFO: {key} is not a number") from None
