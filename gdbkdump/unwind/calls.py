# SPDX-License-Identifier: GPL-2.0-or-later
"""Call instructions of x86-64, as the kernel's text in the dump has them.

The text of a running kernel is patched (alternatives, static calls, ftrace, kprobes),
so it is read from the dump and not from a file.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from gdbkdump.errors import KdumpError, SymbolNotFoundError

if TYPE_CHECKING:
    from gdbkdump.kernel.base import Kernel

_I32 = struct.Struct("<i").unpack_from
_CALL, _BREAKPOINT, _GROUP_5 = 0xE8, 0xCC, 0xFF
_NOP_5 = bytes.fromhex("0f1f440000")
_LRETQ = bytes.fromhex("48cb")
_LONGEST = 7
# Since Linux kernel commit e81dc127ef69 ("x86/callthunks: Add call patching for call
# depth tracking") (in v6.2) a call may go to the padding before its function.
_MAX_PADDING = 16


class Calls:
    """What stands before return addresses."""

    def __init__(self, kernel: Kernel) -> None:
        """Locate the text that is gone after boot."""
        self._kernel = kernel
        try:
            self._init = kernel.symbol("_sinittext"), kernel.symbol("_einittext")
        except SymbolNotFoundError:
            self._init = 0, 0

    def _code_before(self, address: int) -> bytes:
        try:
            return self._kernel.reader.read(address - _LONGEST, _LONGEST)
        except KdumpError:
            return b""

    def target(self, return_address: int) -> int | None:
        """Return what the direct call before a return address calls, or None."""
        code = self._code_before(return_address)
        if not code or code[-5] != _CALL:
            return None
        offset: int = _I32(code, _LONGEST - 4)[0]
        return return_address + offset

    def is_of(self, return_address: int, function: int) -> bool:
        """Tell whether what stands before the address is a call of the function."""
        target = self.target(return_address)
        return target is not None and function - _MAX_PADDING <= target <= function

    def is_behind_call(self, address: int) -> bool:
        """Tell whether an instruction that calls stands before an address.

        Text of ``__init`` was freed, so there any address does.
        """
        if self._init[0] <= address < self._init[1]:
            return True
        code = self._code_before(address)
        if not code or code[-5] in (_CALL, _BREAKPOINT) or code.endswith(_NOP_5):
            return bool(code)
        # The boot code of a CPU goes on with lretq and the address on the stack.
        return code.endswith(_LRETQ) or any(
            code[-size] == _GROUP_5 and code[1 - size] >> 3 & 7 == 2
            for size in (2, 3, 4, 6, 7)
        )
