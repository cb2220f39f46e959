# SPDX-License-Identifier: GPL-2.0-or-later
"""What an address space is."""

from __future__ import annotations

from typing import Protocol


class AddressSpace(Protocol):
    """Bytes by address."""

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes.

        :raise FaultError: not all of them can be had
        """
