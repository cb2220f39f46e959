# SPDX-License-Identifier: GPL-2.0-or-later
"""Clocks of the crashed kernel (``kernel/time/timekeeping.c``), uptime and load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdbkdump.errors import FaultError, SymbolNotFoundError, TypeNotFoundError

if TYPE_CHECKING:
    from gdbkdump.kernel.base import Kernel
    from gdbkdump.kernel.object import KObject

_NSEC_PER_SEC = 1_000_000_000
# The clock was last updated at a tick before the crash; further from CRASHTIME it is
# not the time of the crash at all.
_MAX_DRIFT_S = 60
_LOAD_SHIFT = 11  # FSHIFT of include/linux/sched/loadavg.h


def _timekeeper(kernel: Kernel) -> KObject:
    # Since Linux kernel commit 22c62b9a84b8 ("timekeeping: Introduce timekeeper data
    # array") (in v6.17) there is one for each clock, that of the core first.
    if kernel.has_symbol("timekeeper_data"):
        data = kernel.object("tk_data", kernel.symbol("timekeeper_data"))
        found: KObject = data["timekeeper"]
        return found
    # static struct { seqcount_raw_spinlock_t seq; struct timekeeper timekeeper; }
    # tk_core: BTF has no type of it, so the second member is where C must put it.
    try:
        seq = kernel.debuginfo.type("", "seqcount_raw_spinlock_t").size
    except TypeNotFoundError:
        # Before 5.10 it was a seqcount_t.
        seq = kernel.debuginfo.type("", "seqcount_t").size
    return kernel.object("timekeeper", kernel.symbol("tk_core") + (seq + 7 & ~7))


def crash_time(kernel: Kernel) -> int | None:
    """Return the time of the crash that the kernel noted, in seconds since 1970."""
    info = kernel.vmcoreinfo
    text = info.get("CRASHTIME") if info else None
    return int(text) if text and text.isdecimal() else None


def real_time_ns(kernel: Kernel) -> int | None:
    """Return the wall clock at the last tick, in ns since 1970, or None if in doubt."""
    keeper = _timekeeper(kernel)
    seconds = keeper["xtime_sec"]
    noted = crash_time(kernel)
    if noted is not None and abs(seconds - noted) > _MAX_DRIFT_S:
        return None
    nsec = keeper["tkr_mono.xtime_nsec"] >> (keeper["tkr_mono.shift"] & 63)
    return int(seconds * _NSEC_PER_SEC + nsec)


def uptime_ns(kernel: Kernel) -> int | None:
    """Return the time since boot with suspends, in ns, as /proc/uptime shows it."""
    try:
        real = real_time_ns(kernel)
        if real is None:
            return None
        keeper = _timekeeper(kernel)
        to_mono = keeper["wall_to_monotonic"]
        mono = to_mono["tv_sec"] * _NSEC_PER_SEC + to_mono["tv_nsec"]
        return int(real + mono + keeper["offs_boot"])
    except (FaultError, SymbolNotFoundError):
        return None


def boot_clock_offset_ns(kernel: Kernel) -> int | None:
    """Return what to add to a log time stamp to get wall-clock ns since 1970.

    The log is stamped with ``local_clock()``, which runs from boot and stands still in
    suspend, like the monotonic clock.
    """
    real = real_time_ns(kernel)
    if real is None:
        return None
    to_mono = _timekeeper(kernel)["wall_to_monotonic"]
    return -int(to_mono["tv_sec"] * _NSEC_PER_SEC + to_mono["tv_nsec"])


def load_average(kernel: Kernel) -> list[str]:
    """Return the three load averages as /proc/loadavg prints them."""
    loads = []
    for raw in kernel.reader.array(kernel.symbol("avenrun"), "Q", 3):
        # LOAD_INT() and LOAD_FRAC() of the value that avenrun_t rounds.
        value = raw + (1 << _LOAD_SHIFT) // 200
        fraction = (value & ((1 << _LOAD_SHIFT) - 1)) * 100 >> _LOAD_SHIFT
        loads.append(f"{value >> _LOAD_SHIFT}.{fraction:02}")
    return loads


def clock_ns(nanoseconds: int) -> str:
    """Return a duration as ``HH:MM:SS``, with days before it where it has any."""
    seconds = nanoseconds // _NSEC_PER_SEC
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    text = f"{hours:02}:{minutes:02}:{seconds:02}"
    return f"{days} days, {text}" if days else text
