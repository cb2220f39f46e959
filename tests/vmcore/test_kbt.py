# SPDX-License-Identifier: GPL-2.0-or-later
"""kbt against three witnesses: the kernel's own unwinder (/proc/PID/stack as the guest
read it), drgn with the vmlinux's debug information, and what the workload has done.
"""

from __future__ import annotations

import re

import pytest

# Tasks that ran between the guest's last look at them and the crash.
BUSY = ("wl-spin-user", "wl-spin-kern", "wl-crash", "init")
# Names that differ on one address, ours first: drgn takes a function of the ELF file
# that has a size and holds the address; the kernel's own table has the nearest symbol,
# and of several at one place the first.
OTHER_NAMES = {
    ("entry_SYSCALL_64_after_hwframe", "entry_SYSCALL_64"),
    ("secondary_startup_64_no_verify", "secondary_startup_64"),
    ("common_startup_64", "secondary_startup_64"),
    ("__do_sys_pause", "__x64_sys_pause"),
    ("__do_sys_vfork", "__x64_sys_vfork"),
}
# Debian 12's 6.1 calls panic() from a part of the function that is moved away.
PANIC = ["__crash_kexec", "panic", "sysrq_handle_crash", "__handle_sysrq",
         "write_sysrq_trigger", "proc_reg_write", "vfs_write", "ksys_write",
         "do_syscall_64", "entry_SYSCALL_64_after_hwframe"]  # fmt: skip
# What /proc/PID/syscall shows.
SYSCALL_WORDS = ("orig_ax", "di", "si", "dx", "r10", "r8", "r9", "sp", "ip")
# The function that each task of the workload sleeps in, by the system call it made.
SLEEPS = {
    "wl-main": "pause",
    "wl-futex-wait": "futex_wait",
    "wl-pipe": "pipe_read",
    "wl-epoll": "ep_poll|do_epoll_wait",
    "wl-flock-wait": "flock_lock_inode_wait|locks_lock_inode_wait",
    "wl-timer": "do_nanosleep",
    "wl-vfork": "wait_for_vfork_done|wait_for_completion.*",
    "wl-tcp": "inet_csk_accept|inet_accept|tcp_recvmsg.*|sk_wait_data",
    "wl-unix": "unix_.*",
    "wl-msg": "do_msgrcv",
    "wl-sem": "__do_semtimedop|do_semtimedop",
}


@pytest.fixture(scope="module")
def stacks(session):
    from gdbkdump.kernel.sched import tasks
    from gdbkdump.unwind.unwinder import unwind_task

    return [unwind_task(session.kernel, task) for task in tasks(session.kernel)]


@pytest.fixture(scope="module")
def names(session):
    def names_of(stack):
        symbols = [session.kernel.debuginfo.symbol_at(f.pc) for f in stack.frames]
        return [symbol.name if symbol else "?" for symbol in symbols]

    return names_of


def asleep(truth):
    """The guest's own view of tasks that stayed where they were."""
    return {
        task["pid"]: task
        for task in truth["tasks"]
        if task["comm"].startswith("wl-")
        and task["comm"] not in BUSY
        and task["state"] in "SDT"
    }


def test_every_stack_ends_where_stacks_end(stacks):
    assert {stack.end.value for stack in stacks} <= {"user", "bottom", "freed"}
    for stack in stacks:
        thread = stack.task.is_kernel_thread
        if stack.end.value != "freed":
            assert stack.end.value == ("bottom" if thread else "user"), stack.task
        assert all(frame.is_reliable for frame in stack.frames)
    assert [s.task.comm for s in stacks if s.end.value == "freed"] in (
        [], [b"wl-zombie"],
    )  # fmt: skip


def test_sleeping_tasks_are_where_the_kernel_says(stacks, truth, names, session):
    known, compared = asleep(truth), 0
    symbol = session.kernel.symbol
    start, end = symbol("__sched_text_start"), symbol("__sched_text_end")
    for stack in stacks:
        task = known.get(stack.task.pid)
        if task and task.get("stack") and stack.cpu is None:
            # The kernel leaves out what is in __sched text (in_sched_functions()).
            ours = [
                name
                for name, frame in zip(names(stack), stack.frames, strict=True)
                if not start <= frame.ip < end
            ]
            assert ours == task["stack"], task["comm"]
            compared += 1
    assert compared > 20


def test_user_registers_are_those_of_the_system_call(stacks, truth):
    known, compared = asleep(truth), 0
    for stack in stacks:
        task = known.get(stack.task.pid)
        words = (task or {}).get("syscall", "").split()
        if len(words) < 9 or stack.cpu is not None:
            continue
        registers = stack.user_registers
        got = [registers[name] for name in SYSCALL_WORDS]
        assert got == [int(words[0])] + [int(word, 16) for word in words[1:]]
        compared += 1
    assert compared > 20


def test_workload_tasks_sleep_in_their_system_calls(stacks, names):
    for stack in stacks:
        wanted = SLEEPS.get(stack.task.comm.decode("latin-1"))
        if wanted:
            pattern = re.compile(rf".*(?:{wanted}).*")
            assert any(pattern.fullmatch(name) for name in names(stack)), stack.task


def test_the_panic_stack(run, truth):
    (shown,) = run("kbt")
    assert (shown["comm"], shown["active"]) == ("wl-crash", True)
    assert shown["pid"] == truth["panic"]["pid"]
    frames = [frame["symbol"].removesuffix(".cold") for frame in shown["frames"]]
    if frames[1] == "vpanic":
        del frames[1]
    assert frames == PANIC
    assert shown["end"] == "user"
    assert shown["frames"][0]["kind"] == "cpu"
    # write(2) of the one letter.
    registers = shown["user_registers"]
    assert (registers["orig_ax"], registers["dx"]) == ("0x1", "0x1")
    assert int(registers["cs"], 16) & 3 == 3


def test_every_cpu(run):
    shown = run("kbt", "-a")
    assert [item["cpu"] for item in shown] == list(range(len(shown)))
    assert all(item["active"] for item in shown)
    spin = next(item for item in shown if item["comm"] == "wl-spin-kern")
    assert [f["symbol"] for f in spin["frames"]][-4:] == [
        "vfs_read", "ksys_read", "do_syscall_64", "entry_SYSCALL_64_after_hwframe",
    ]  # fmt: skip
    assert spin["frames"][0]["kind"] == "exception"
    assert spin["frames"][0]["registers"]["ip"] == spin["frames"][0]["ip"]
    assert run("kbt", "-c", "1-2") == shown[1:3]
    assert run("kbt", "-c", "2,0") == [shown[2], shown[0]]


def test_a_task_in_user_mode_is_not_given_kernel_frames(run):
    (spin,) = run("kbt", "wl-spin-user")
    # The NMI may find it on its way into or out of the kernel, too.
    if not spin["frames"]:
        assert "in user mode" in spin["reason"]
    registers = {k: int(v, 16) for k, v in spin["user_registers"].items()}
    assert registers["cs"] & 3 == 3
    assert registers["ip"] < 1 << 47
    assert registers["sp"] < 1 << 47


def test_the_layout_is_that_of_crash(run_text):
    lines = run_text("kbt", "-s", "wl-spin-kern", "1")
    assert re.fullmatch(
        r'PID: \d+ +TASK: [0-9a-f]{16}  CPU: \d+ +COMMAND: "wl-spin-kern"', lines[0]
    )
    assert re.fullmatch(r"    \[exception RIP: \w+\+\d+\]", lines[1])
    assert re.fullmatch(
        r"    RIP: [0-9a-f]{16}  RSP: [0-9a-f]{16}  RFLAGS: [0-9a-f]{8}", lines[2]
    )
    assert any(
        re.fullmatch(r" #1 \[[0-9a-f]{16}\] \w+\+\d+ at [0-9a-f]{16}", line)
        for line in lines
    )
    assert re.fullmatch(r"    ORIG_RAX: [0-9a-f]{16}  CS: 0033  SS: 002b", lines[-1])
    assert lines.count("") == 1


def test_the_words_of_frames(run_text, session):
    lines = run_text("kbt", "-f", "1")
    words = {}
    for line in lines:
        match = re.fullmatch(r"    ([0-9a-f]{16}): ((?: ?[0-9a-f]{16}){1,2})", line)
        for i, word in enumerate(match[2].split() if match else ()):
            words[int(match[1], 16) + 8 * i] = int(word, 16)
    # Each return address but the innermost is among the words of the frame below it.
    slots = [re.match(r"[# ]\d?#?\d+ \[(\w+)\] \S+ at (\w+)", line) for line in lines]
    found = [(int(m[1], 16), int(m[2], 16)) for m in slots if m]
    assert len(found) > 3
    for slot, ip in found[1:]:
        assert words[slot] == ip
    u64 = session.kernel.reader.u64
    assert all(u64(address) == word for address, word in words.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-task"], "no task 'no-such-task'"),
        (["-c", "999"], "no CPU 999"),
        (["-a", "1"], "one of them"),
    ],
)
def test_wrong_use_says_what_is_wrong(run, arguments, message):
    from gdbkdump.errors import CommandError

    with pytest.raises(CommandError, match=message):
        run("kbt", *arguments)


def test_source_lines_need_gdb(run):
    assert "source lines need gdb" in run("kbt", "-l")[0]["note"]


def test_frames_are_those_of_drgn(stacks, session, dump_dir, names):
    drgn = pytest.importorskip("drgn")
    program = drgn.Program()
    program.set_core_dump(str(dump_dir / "vmcore"))
    program.load_debug_info([str(dump_dir / "vmlinux")])
    # All of a small dump, a sample of a big one; drgn takes 4 ms for a stack.
    step = max(1, len(stacks) // 300)
    chosen = stacks[::step] + [stack for stack in stacks if stack.cpu is not None]
    for stack in chosen:
        if stack.end.value == "freed":
            continue  # drgn reads what the memory holds now
        task = drgn.Object(program, "struct task_struct *", stack.task.address)
        # The frame of user mode at the end is not ours to unwind.
        theirs = [
            frame
            for frame in program.stack_trace(task)
            if not frame.is_inline and frame.pc >> 63
        ]
        assert [f.ip for f in stack.frames] == [f.pc for f in theirs], stack.task
        for ours, frame in zip(names(stack), theirs, strict=True):
            name = program.symbol(frame.pc - (not frame.interrupted)).name
            assert ours == name or (ours, name) in OTHER_NAMES


def test_source_lines_where_there_is_a_debugger(run, run_text, session, monkeypatch):
    monkeypatch.setattr(session, "source_line", lambda pc: f"file.c:{pc & 0xFF}")
    (shown,) = run("kbt", "-l")
    for frame in shown["frames"]:
        pc = int(frame["ip"], 16) - (frame["kind"] == "call")
        assert frame["line"] == f"file.c:{pc & 0xFF}"
    lines = run_text("kbt", "-l")
    assert lines[2] == f"    {shown['frames'][0]['line']}"


def test_from_the_nmi_handler_to_what_it_interrupted(session, stacks, monkeypatch):
    # The notes have the registers that the NMI interrupted, but the handler's frames
    # are still on the NMI stack: from there the unwinder must find the same registers.
    from gdbkdump.kernel.panic import cpu_registers
    from gdbkdump.unwind import unwinder
    from gdbkdump.unwind.stacks import cpu_stacks

    crossed = 0
    kernel = session.kernel
    for stack in stacks:
        if stack.cpu is None or not stack.frames or stack.frames[0].kind.value == "cpu":
            continue
        nmi = next(s for s in cpu_stacks(kernel, stack.cpu) if s.name.startswith("NMI"))
        words = kernel.reader.array(nmi.start, "Q", (nmi.end - nmi.start) // 8)
        function = kernel.symbol("default_do_nmi")
        target = unwinder.unwinder(kernel)
        at = next(i for i, w in enumerate(words) if target.calls.is_of(w, function))
        inside = {"ip": words[at], "sp": nmi.start + 8 * at + 8, "bp": 0, "cs": 0x10}
        noted = cpu_registers(kernel, stack.cpu)
        monkeypatch.setattr(unwinder, "cpu_registers", lambda kernel, cpu, r=inside: r)
        longer = target.unwind(stack.task)
        assert longer.frames[0].stack == nmi
        # The next exception after it: an interrupt may have come before the NMI.
        middle = next(f for f in longer.frames[1:] if f.kind.value == "exception")
        assert {k: noted[k] for k in middle.registers} == middle.registers
        behind = longer.frames[longer.frames.index(middle) :]
        assert [f.ip for f in behind] == [f.ip for f in stack.frames]
        assert longer.user_registers == stack.user_registers
        crossed += 1
    assert crossed
