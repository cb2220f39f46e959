# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages that were unpacked last, within a bound."""

from __future__ import annotations

DEFAULT_BYTES = 64 << 20


class PageCache:
    """Pages by number; those not used for long are dropped.

    Two generations instead of an exact order: when the young one has half of the bound
    it becomes the old one, and what is not asked for again until the next time is gone.
    A hit costs one look into a dictionary.
    """

    def __init__(self, page_size: int, limit: int = DEFAULT_BYTES) -> None:
        """Keep pages of ``page_size`` bytes, at most ``limit`` bytes of them."""
        self._half = max(1, limit // page_size // 2)
        self._young: dict[int, bytes] = {}
        self._old: dict[int, bytes] = {}

    def get(self, number: int) -> bytes | None:
        """Return a page, or None if it is not there."""
        page = self._young.get(number)
        if page is None:
            page = self._old.get(number)
            if page is not None:
                self.put(number, page)
        return page

    def put(self, number: int, page: bytes) -> None:
        """Keep a page."""
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[number] = page

    def __len__(self) -> int:
        """Return how many pages are kept."""
        return len(self._young.keys() | self._old.keys())
