# SPDX-License-Identifier: GPL-2.0-or-later
"""What a crash in crashme/ is to look like: the "crash" of truth.json.

Frames, arguments and variables are those of crashme/crashme.c, registers those of
crashme/crashtasks.c; what only the guest knew is in its facts. README.md documents
the keys.
"""

import mmap
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from progress import ChanceError

Row = dict[str, Any]

_FIRST, _SECOND = 1000, 2000
_DEPTH, _SEED = 60, 5
_MAGIC = 0x6B64756D70000000
_KNOWN = ("rbx", "rbp", "r8", "r9", "r10", "r12", "r13", "r14", "r15")
_KNOWN_SPINNING = (*_KNOWN, "rax", "rcx", "rdx", "rsi", "rdi", "r11")
_USER_CS, _USER_SS = 0x33, 0x2B

_SYSCALL = ("ksys_write", "do_syscall_64")
_WRITE = ("crashme_middle", "crashme_write", "vfs_write", *_SYSCALL)
_APIC_TIMER = ("sysvec_apic_timer_interrupt", "asm_sysvec_apic_timer_interrupt")
_HRTIMER = ("__hrtimer_run_queues", "hrtimer_interrupt", *_APIC_TIMER)
_DEBUG = ("perf_bp_event", "asm_exc_debug")
_NMI = ("panic", "nmi_panic", "unknown_nmi_error", "exc_nmi")


def _frame(function: str, variables: Row | None = None, **arguments: int) -> Row:
    return {
        "function": function,
        "arguments": arguments,
        "variables": variables or {},
    }


def _written(function: str, word: str, mark: int | None) -> list[Row]:
    """Return the frames of a task that wrote a word to /dev/crashme."""
    variables = {} if mark is None else {"mark": mark}
    product = {"product": _FIRST * _SECOND}
    return [
        _frame(function, variables, first=_FIRST + 1, second=_SECOND + 1),
        _frame("crashme_middle", product, first=_FIRST, second=_SECOND),
        _frame("crashme_write", size=len(word)),
    ]


def _follow(factor: int) -> Row:
    return _frame("crashme_follow", {"local": 2 * factor}, factor=factor)


def _sleep(reason: int) -> Row:
    return _frame("crashme_sleep", {"local": reason + 1}, reason=reason)


def _descent() -> list[Row]:
    """Return the frames of crashme_descend(), the deepest first."""
    frames = []
    for depth in range(1, _DEPTH + 1):
        seed = _SEED + 3 * (_DEPTH - depth)
        local = {"local": depth * 1000 + seed}
        frames.append(_frame("crashme_descend", local, depth=depth, seed=seed))
    return frames


@dataclass(frozen=True)
class _Kind:
    """A way to crash.

    :ivar functions: on the panicking stack in this order, others between them. After
        an oops the CPU's registers are those it happened with: what handled it is not
        on that stack
    :ivar frames: those of our module there
    :ivar message: what the kernel says about it, a regular expression
    :ivar interrupted: what the interrupt or NMI came in: kernel, user or idle
    :ivar comm: of the task that panics, None if it may be any
    :ivar came_in: the function that was interrupted, where the kernel says that and not
        who panicked
    """

    context: str
    functions: Sequence[str]
    frames: Sequence[Row]
    message: str
    interrupted: str | None = None
    comm: str | None = "cm-crash"
    came_in: str | None = None


_NULL = (
    "process",
    ("crashme_follow", "crashme_null", *_WRITE),
    [_follow(5), *_written("crashme_null", "null", 101)],
    r"BUG: kernel NULL pointer dereference, address: 0000000000000008",
)
_KINDS = {
    "null": _Kind(*_NULL),
    # The same stack, with return addresses that tracing replaced.
    "traced": _Kind(*_NULL),
    # The same, among more than a hundred modules.
    "modules": _Kind(*_NULL),
    "gpf": _Kind(
        "process",
        ("crashme_gpf", *_WRITE),
        _written("crashme_gpf", "gpf", 102),
        r"general protection fault.*: 0000 \[#1\]",
    ),
    "bug": _Kind(
        "process",
        ("crashme_bug", *_WRITE),
        _written("crashme_bug", "bug", 103),
        r"kernel BUG at .*crashme\.c",
    ),
    # How many frames of crashme_swallow() there are only the stack knows.
    "overflow": _Kind(
        "process",
        ("crashme_swallow", "crashme_overflow", *_WRITE),
        [
            _frame("crashme_swallow", level=1) | {"repeated": True},
            *_written("crashme_overflow", "overflow", 104),
        ],
        r"BUG: .*stack guard page was hit",
    ),
    "lockup": _Kind(
        "hardirq",
        (
            *("panic", "watchdog_timer_fn", *_HRTIMER),
            *("crashme_spin", "crashme_lockup", *_WRITE),
        ),
        [_frame("crashme_spin", start=7), *_written("crashme_lockup", "lockup", 105)],
        r"watchdog: BUG: soft lockup - CPU#1 stuck",
        "kernel",
    ),
    "hardirq": _Kind(
        "hardirq",
        (
            *("panic", "crashme_hard_expired", *_HRTIMER),
            *("crashme_spin", "crashme_hardirq", *_WRITE),
        ),
        [
            _frame("crashme_hard_expired", {"mark": 201}),
            _frame("crashme_spin", start=9),
            *_written("crashme_hardirq", "hardirq", 106),
        ],
        r"Kernel panic - not syncing: crashme: hard interrupt, mark 201",
        "kernel",
    ),
    "softirq": _Kind(
        "softirq",
        ("crashme_follow", "crashme_soft_expired", *_APIC_TIMER),
        [_follow(6), _frame("crashme_soft_expired", {"mark": 202})],
        r"BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "user",
    ),
    "debug": _Kind(
        "debug",
        ("panic", "crashme_hit", *_DEBUG, "crashme_debug", *_WRITE),
        [
            _frame("crashme_hit", {"mark": 203}),
            *_written("crashme_debug", "debug", 107),
        ],
        r"Kernel panic - not syncing: crashme: debug exception, mark 203",
        "kernel",
    ),
    # An interrupt from user mode, which ends there, that was itself interrupted.
    "trampoline": _Kind(
        "debug",
        ("panic", "crashme_hit", *_DEBUG, "sync_regs"),
        [_frame("crashme_hit", {"mark": 203})],
        r"Kernel panic - not syncing: crashme: debug exception, mark 203",
        "entry",
    ),
    "mce": _Kind(
        "mce",
        (
            *("panic", "mce_panic", "do_machine_check", "exc_machine_check"),
            *("asm_exc_machine_check", "crashme_spin", "crashme_mce", *_WRITE),
        ),
        [_frame("crashme_spin", start=11), *_written("crashme_mce", "mce", 109)],
        r"Kernel panic - not syncing: Fatal (local )?machine check",
        "kernel",
        came_in="crashme_spin",
    ),
    "doublefault": _Kind(
        "doublefault",
        (
            *("panic", "oops_end", "exc_double_fault", "asm_exc_double_fault"),
            *("crashme_doublefault", *_WRITE),
        ),
        _written("crashme_doublefault", "doublefault", 108),
        r"PANIC: double fault",
        "kernel",
    ),
    "nmi-idle": _Kind(
        "nmi",
        _NMI,
        [],
        r"Kernel panic - not syncing: NMI: Not continuing",
        "idle",
        None,
    ),
    "nmi-user": _Kind(
        "nmi",
        _NMI,
        [],
        r"Kernel panic - not syncing: NMI: Not continuing",
        "user",
        None,
    ),
    "hung": _Kind(
        "process",
        ("panic", "watchdog", "kthread", "ret_from_fork"),
        [],
        r"Kernel panic - not syncing: hung_task: blocked tasks",
        comm="khungtaskd",
    ),
    "offline": _Kind(
        "process",
        (
            *("panic", "sysrq_handle_crash", "__handle_sysrq", "write_sysrq_trigger"),
            *("vfs_write", *_SYSCALL),
        ),
        [],
        r"Kernel panic - not syncing: sysrq triggered crash",
    ),
}

# comm -> the word it wrote, its functions innermost first, its frames in our module.
_SLEEP_FUNCTIONS = ("__schedule", "schedule", "crashme_sleep")
_SLEEPERS: Mapping[str, tuple[str, Sequence[str], Sequence[Row]]] = {
    "cm-recurse": (
        "recurse",
        (*_SLEEP_FUNCTIONS, *("crashme_descend",) * _DEPTH, "crashme_recurse", *_WRITE),
        [_sleep(17), *_descent(), *_written("crashme_recurse", "recurse", 301)],
    ),
    "cm-owner": (
        "hold",
        (*_SLEEP_FUNCTIONS, "crashme_hold", *_WRITE),
        [_sleep(18), *_written("crashme_hold", "hold", 302)],
    ),
    "wl-crash": (
        "c",
        (*_SLEEP_FUNCTIONS, "crashme_go", *_WRITE),
        [_sleep(19), *_written("crashme_go", "c", 304)],
    ),
} | {
    f"cm-waiter-{number}": (
        "wait",
        ("__schedule", "schedule", "crashme_wait", *_WRITE),
        _written("crashme_wait", "wait", 303),
    )
    for number in (0, 1)
}


def _user_registers(names: Sequence[str], rip: str) -> Row:
    known = {name: _MAGIC + number for number, name in enumerate(names, 1)}
    return known | {"rip": int(rip, 16), "cs": _USER_CS, "ss": _USER_SS}


def _write_registers(rip: str, size: int) -> Row:
    """Return the user registers in a write(2) by write_known()."""
    registers = _user_registers(_KNOWN, rip)
    return registers | {"rcx": registers["rip"], "rdx": size, "orig_rax": 1}


def _sleeper(comm: str, fact: Row) -> Row:
    word, functions, frames = _SLEEPERS[comm]
    registers = {}
    if "rip" in fact:
        registers = _write_registers(fact["rip"], len(word))
        registers["rsi"] = int(fact["word"], 16)
    return {
        "pid": fact["tid"],
        "state": fact["state"],
        "functions": functions,
        "frames": frames,
        "registers": registers,
    }


def _spinner(fact: Row) -> Row:
    return {
        "pid": fact["tid"],
        "state": fact["state"],
        "cpu": int(fact["cpu"]),
        "functions": [],
        "frames": [],
        "registers": _user_registers(_KNOWN_SPINNING, fact["rip"]),
    }


def _crasher_registers(kind: str, fact: Row) -> Row:
    """Return the user registers of cm-crash when the kernel panics."""
    if kind in ("hung", "nmi-idle"):
        return {}
    if kind in ("softirq", "nmi-user", "trampoline"):
        return _user_registers(_KNOWN_SPINNING, fact["spin_rip"])
    word = {"offline": "c", "traced": "null", "modules": "null"}.get(kind, kind)
    return _write_registers(fact["write_rip"], len(word))


def _tasks(facts: Mapping[str, Row], truth: Row, kind: str) -> dict[str, Row]:
    """Return what is known of our tasks, by comm."""
    tasks = {}
    for comm, fact in facts.items():
        if comm.startswith("cm-spin"):
            tasks[comm] = _spinner(fact)
        elif comm in _SLEEPERS:
            tasks[comm] = _sleeper(comm, fact)
    (writer,) = (task for task in truth["tasks"] if task["comm"] == "wl-crash")
    tasks["wl-crash"] = _sleeper("wl-crash", {"tid": writer["pid"], "state": "S"})
    crasher = facts["cm-crash"]
    asleep = kind in ("hung", "nmi-idle")
    tasks["cm-crash"] = {
        "pid": crasher["tid"],
        "state": "S" if asleep else "R",
        "registers": _crasher_registers(kind, crasher),
    }
    return tasks


_PANICKED = re.compile(
    r"\bCPU: (?P<cpu>\d+) (?:UID: \d+ )?PID: (?P<pid>\d+)"
    r" Comm: (?P<comm>.+?) +(?:Kdump: \w+ )?(?:Not tainted|Tainted:)"
)
_LOG_WINDOW = 8192


def _logs(message: str, vmcore: Path) -> Iterator[str]:
    """Yield what may be the log from the message on.

    It is looked for in memory: what is printed in an NMI or a double fault has not
    reached the console when the capture kernel starts. There, bytes of other kinds are
    between the lines.
    """
    with (
        vmcore.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory,
    ):
        for found in re.finditer(message.encode(), memory):
            window = memory[found.start() : found.start() + _LOG_WINDOW]
            yield re.sub(rb"[^ -~]", b"\n", window).decode()


def _check_nmi(comm: str, log: str, interrupted: str | None) -> None:
    """Check what the NMI came in, by the first registers in the log."""
    registers = re.search(r"\bRIP: ([0-9a-f]{4}):(\S+)", log)
    if not registers:
        raise ChanceError(f"no registers of {comm} in the log")
    user = int(registers[1], 16) == _USER_CS
    came_in = "user" if user else "idle" if comm.startswith("swapper/") else "kernel"
    if came_in != interrupted:
        raise ChanceError(f"the NMI came to {comm} at {registers[2]} ({came_in})")


def _check_machine_check(function: str, vmcore: Path) -> None:
    """Check what the machine check came in; a timer's interrupt may have come first."""
    if not any(_logs(rf"RIP [^\n]{{,40}}\{{{function}\+", vmcore)):
        raise ChanceError(f"the machine check did not come in {function}()")


def read_panic(kind: str, dump: Path) -> Row | None:
    """Find who panicked, as the kernel said it; None if it never says that.

    :raise ChanceError: it is not the crash that was meant
    """
    expected = _KINDS[kind]
    for log in _logs(expected.message, dump / "vmcore"):
        if expected.came_in:
            _check_machine_check(expected.came_in, dump / "vmcore")
            return None
        found = _PANICKED.search(log)
        if not found:
            continue
        comm = found["comm"]
        if expected.comm and comm != expected.comm:
            raise ChanceError(f"{comm} panicked, not {expected.comm}")
        if expected.context == "nmi":
            _check_nmi(comm, log[found.end() :], expected.interrupted)
        return {"pid": int(found["pid"]), "comm": comm, "cpu": int(found["cpu"])}
    raise ChanceError(f"this is not a crash of kind {kind}")


def _crasher(fact: Row) -> Row:
    return {"pid": fact["tid"], "comm": "cm-crash", "cpu": int(fact["cpu"])}


def crash_truth(kind: str, truth: Row, dump: Path) -> Row:
    """Return the "crash" of truth.json.

    :param truth: the rest of it
    """
    expected = _KINDS[kind]
    facts = {fact["role"]: fact for fact in truth["workload"]}
    (module,) = (row for row in truth["modules"] if row["name"] == "crashme")
    return {
        "kind": kind,
        "panic": read_panic(kind, dump) or _crasher(facts["cm-crash"]),
        "context": expected.context,
        "interrupted": expected.interrupted,
        "message": expected.message,
        "functions": expected.functions,
        "frames": expected.frames,
        "tasks": _tasks(facts, truth, kind),
        "module": module,
    }
