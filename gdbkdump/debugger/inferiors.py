# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb's inferiors: the kernel is one, each process that is opened another."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import gdb

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def select(inferior: gdb.Inferior) -> None:
    """Select an inferior, silently."""
    threads = inferior.threads()
    if threads:
        threads[0].switch()
        return
    with _no_notifications():
        gdb.execute(f"inferior {inferior.num}", to_string=True)


def keep_alone(inferior: gdb.Inferior) -> None:
    """Select an inferior, and remove all others that have a core."""
    for other in gdb.inferiors():
        if other.num != inferior.num and other.pid:
            select(other)
            gdb.execute("core-file", to_string=True)
            select(inferior)
            gdb.execute(f"remove-inferiors {other.num}", to_string=True)
    select(inferior)


@contextlib.contextmanager
def _no_notifications() -> Iterator[None]:
    # "inferior" announces itself even into a string, unless it is told not to.
    try:
        was_on = gdb.parameter("suppress-cli-notifications")
    except RuntimeError:
        yield  # gdb 12
        return
    gdb.execute("set suppress-cli-notifications on")
    try:
        yield
    finally:
        if not was_on:
            gdb.execute("set suppress-cli-notifications off")


@contextlib.contextmanager
def within(inferior: gdb.Inferior | None) -> Iterator[None]:
    """Select an inferior meanwhile; thread and frame that were selected come back.

    :param inferior: None, or one that is gone, changes nothing
    """
    before = gdb.selected_inferior()
    if inferior is None or not inferior.is_valid() or inferior.num == before.num:
        yield
        return
    thread, frame = gdb.selected_thread(), _selected_frame()
    select(inferior)
    try:
        yield
    finally:
        if thread is not None and thread.is_valid():
            thread.switch()
            if frame is not None and frame.is_valid():
                frame.select()
        else:
            select(before)


def load_core(core: Path, sysroot: str | None = None) -> None:
    """Give the selected inferior a core of ours.

    gdb looks for files that NT_FILE names, the dump, below its sysroot; so it has none
    meanwhile.

    :param core: a plain path
    :param sysroot: what it is to be then; what it was if None
    """
    before = str(gdb.parameter("sysroot") or "")
    gdb.execute("set sysroot", to_string=True)
    try:
        gdb.execute(f"core-file {core}", to_string=True)
    finally:
        gdb.execute(f"set sysroot {before if sysroot is None else sysroot}")


def _selected_frame() -> gdb.Frame | None:
    try:
        return gdb.selected_frame()
    except gdb.error:
        return None
