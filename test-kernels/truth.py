# SPDX-License-Identifier: GPL-2.0-or-later
"""Turn the records that guest/truth.c wrote into truth.json.

README.md documents the keys. Text stays as the guest gave it; bytes that are no UTF-8
become lone surrogates (Python's "surrogateescape"), so that they can be had back.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from io import BufferedIOBase
from typing import Any

from progress import BuildError

Files = Mapping[str, str]
Row = dict[str, Any]

# Fields 3 and up of /proc/PID/stat, see proc_pid_stat(5).
_STAT_FIELDS = """
    state ppid pgrp session tty_nr tpgid flags minflt cminflt majflt cmajflt utime
    stime cutime cstime priority nice num_threads itrealvalue starttime vsize
    rss_pages rsslim startcode endcode startstack kstkesp kstkeip signal blocked
    sigignore sigcatch wchan_address nswap cnswap exit_signal processor rt_priority
    policy delayacct_blkio_ticks guest_time cguest_time start_data end_data
    start_brk arg_start arg_end env_start env_end exit_code
""".split()  # noqa: SIM905 - fifty short words read better than fifty strings
_PF_WQ_WORKER = 0x20
# Kept word for word in "files": whatever is not one of many per task or module.
_NOT_IN_FILES = re.compile(r"@|/proc/\d+/|/proc/kallsyms|/sys/module/|/dev/kmsg")


def _read_records(stream: BufferedIOBase) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of what the guest could read."""
    while header := stream.readline():
        path, _, size = header.decode(errors="surrogateescape").rpartition(" ")
        content = stream.read(max(int(size), 0))
        stream.read(1)
        if path == "end":
            return
        if int(size) >= 0:
            yield path, content
    raise BuildError("the truth ends in the middle")


def _decode(content: bytes) -> str:
    return content.decode(errors="surrogateescape")


def _strings(text: str) -> list[str]:
    """Split what /proc separates by NUL."""
    return text.removesuffix("\0").split("\0") if text else []


def _task_comm(name: str, flags: int) -> str:
    """Return task->comm for a name of /proc.

    There the names of kernel threads are longer: a workqueue worker's tells what it
    last did, others what did not fit in 15 bytes.
    """
    if flags & _PF_WQ_WORKER:
        name = re.sub(r"^(kworker/(?:u?\d+:\d+\w*))[-+].*", r"\1", name, flags=re.S)
    return _decode(name.encode(errors="surrogateescape")[:15])


def _address(text: str) -> int | None:
    """Return a kernel address, or None for what the kernel shows in place of one."""
    try:
        address = int(text, 16)
    except ValueError:  # "(____ptrval____)"
        return None
    return address if address >> 47 else None


def _key_values(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines())
    return {key: value.strip() for key, colon, value in pairs if colon}


def _parse_stat(text: str) -> Row:
    """Parse a stat line; the name in it may hold blanks, brackets and newlines."""
    state, *numbers = text.rpartition(") ")[2].split()
    values = (state, *map(int, numbers))
    return dict(zip(_STAT_FIELDS, values, strict=False))


def _function_names(stack: str) -> list[str]:
    return re.findall(r"^\[<\w+>\] (\S+?)(?:\+0x.*)?$", stack, flags=re.M)


def _parse_task(files: Files, directory: str, tgid: int, pid: int) -> Row:
    """Build one entry of "tasks" from /proc/TGID/task/PID/."""
    task: Row = {"pid": pid, "tgid": tgid} | _parse_stat(files[f"{directory}/stat"])
    name = files[f"{directory}/comm"].removesuffix("\n")
    status = _key_values(files[f"{directory}/status"])
    task["comm"] = _task_comm(name, task["flags"])
    task["name"] = name
    task["uid"], task["euid"] = map(int, status["Uid"].split()[:2])
    task["gid"], task["egid"] = map(int, status["Gid"].split()[:2])
    task["status"] = status
    task["wchan"] = files.get(f"{directory}/wchan", "0")
    task["stack"] = _function_names(files.get(f"{directory}/stack", ""))
    task["syscall"] = files.get(f"{directory}/syscall", "").strip()
    return task


def _parse_tasks(files: Files) -> list[Row]:
    """Build "tasks", ordered by pid."""
    found = []
    for path in files:
        match = re.fullmatch(r"(/proc/(\d+)/task/(\d+))/stat", path)
        # A task that ended while it was read lacks some of its files.
        if match and f"{match[1]}/status" in files and f"{match[1]}/comm" in files:
            found.append(_parse_task(files, match[1], int(match[2]), int(match[3])))
    return sorted(found, key=lambda task: int(task["pid"]))


def _parse_maps(text: str) -> list[Row]:
    rows = []
    for line in text.splitlines():
        start_end, flags, offset, device, inode, *path = line.split(maxsplit=5)
        start, _, end = start_end.partition("-")
        row: Row = {"start": int(start, 16), "end": int(end, 16), "flags": flags}
        row |= {"offset": int(offset, 16), "device": device, "inode": int(inode)}
        rows.append(row | {"path": path[0] if path else ""})
    return rows


def _parse_processes(files: Files) -> dict[str, Row]:
    """Build "processes": what threads share, by pid (a string, as JSON has it)."""
    processes: dict[str, Row] = defaultdict(lambda: {"fds": {}, "fdinfo": {}, "ns": {}})
    for path, text in files.items():
        match = re.fullmatch(r"@?/proc/(\d+)/([a-z]+)(?:/(\w+))?", path)
        if not match:
            continue
        process, kind, item = processes[match[1]], match[2], match[3]
        if kind in ("cmdline", "environ"):
            process[kind] = _strings(text)
        elif kind == "maps":
            process["maps"] = _parse_maps(text)
        elif item and kind in ("fd", "fdinfo", "ns"):
            process["fds" if kind == "fd" else kind][item] = text
        elif not item:
            process[kind] = text.strip()
    return processes


def _unescape(text: str) -> str:
    r"""Undo the \xNN of /dev/kmsg, which stands for single bytes."""
    raw = re.sub(
        rb"\\x([0-9a-f]{2})",
        lambda match: bytes([int(match[1], 16)]),
        text.encode(errors="surrogateescape"),
    )
    return _decode(raw)


def _parse_kmsg(text: str) -> list[Row]:
    """Build "kmsg" from the records of /dev/kmsg (Documentation/ABI/testing)."""
    records: list[Row] = []
    for line in text.splitlines():
        if line.startswith(" "):
            key, _, value = line[1:].partition("=")
            records[-1]["dict"][key] = _unescape(value)
            continue
        prefix, _, message = line.partition(";")
        priority, seq, ts_us, flags = prefix.split(",")[:4]
        facility, level = divmod(int(priority), 8)
        record: Row = {"level": level, "facility": facility, "seq": int(seq)}
        record |= {"ts_us": int(ts_us), "flags": flags, "text": _unescape(message)}
        records.append(record | {"dict": {}})
    return records


def _build_id(note: bytes) -> str:
    """Find NT_GNU_BUILD_ID among the notes of a file."""
    at = note.find(b"GNU\0")
    while at >= 12 and note[at - 4] != 3:
        at = note.find(b"GNU\0", at + 1)
    return note[at + 4 : at + 24].hex() if at >= 12 else ""


def _parse_modules(files: Files, raw: Mapping[str, bytes]) -> list[Row]:
    modules = []
    for line in files["/proc/modules"].splitlines():
        name, size, refcnt, users, state, address, *taints = line.split()
        sections = f"/sys/module/{name}/sections/"
        module: Row = {"name": name, "size": int(size), "refcnt": int(refcnt)}
        module["used_by"] = [user for user in users.split(",") if user not in ("-", "")]
        module |= {"state": state, "address": int(address, 16)}
        module["taints"] = "".join(taints).strip("()")
        module["build_id"] = _build_id(
            raw.get(f"/sys/module/{name}/notes/.note.gnu.build-id", b"")
        )
        module["sections"] = {
            path.removeprefix(sections): int(text, 16)
            for path, text in files.items()
            if path.startswith(sections)
        }
        modules.append(module)
    return modules


def _parse_mounts(text: str) -> list[Row]:
    r"""Parse mountinfo; blanks in paths stay \040, as the kernel writes them."""
    mounts = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        number, parent, device, root, target, options = left.split()[:6]
        fstype, source, super_options = right.split(maxsplit=2)
        mount: Row = {"id": int(number), "parent": int(parent), "device": device}
        mount |= {"root": root, "target": target, "options": options}
        mount |= {"fstype": fstype, "source": source}
        mounts.append(mount | {"super_options": super_options})
    return mounts


def _parse_meminfo(text: str) -> dict[str, int]:
    return {key: int(value.split()[0]) for key, value in _key_values(text).items()}


def _parse_slabinfo(text: str) -> list[Row]:
    fields = ("active_objects", "objects", "object_size", "objects_per_slab")
    rows = []
    for line in text.splitlines()[2:]:
        words = line.split()
        row: Row = {"name": words[0]}
        row |= zip(fields, map(int, words[1:5]), strict=True)
        row["pages_per_slab"] = int(words[5])
        row |= {"active_slabs": int(words[13]), "slabs": int(words[14])}
        rows.append(row)
    return rows


def _parse_interrupts(text: str) -> list[Row]:
    header, *lines = text.splitlines()
    nr_cpus = len(header.split())
    rows = []
    for line in lines:
        name, *words = line.split()
        counts = [int(word) for word in words[:nr_cpus] if word.isdigit()]
        row: Row = {"irq": name.rstrip(":"), "counts": counts}
        rows.append(row | {"description": " ".join(words[len(counts) :])})
    return rows


def _parse_vmallocinfo(text: str) -> list[Row]:
    rows = []
    for line in text.splitlines():
        start_end, size, rest = line.split(maxsplit=2)
        start, _, end = start_end.partition("-")
        row: Row = {"start": _address(start), "end": _address(end), "size": int(size)}
        rows.append(row | {"description": rest})
    return rows


def _parse_iomem(text: str) -> list[Row]:
    rows = []
    for line in text.splitlines():
        match = re.fullmatch(r"( *)(\w+)-(\w+) : (.*)", line)
        if match:
            row = {"start": int(match[2], 16), "end": int(match[3], 16)}
            rows.append(row | {"depth": len(match[1]) // 2, "name": match[4]})
    return rows


def _parse_symbol(line: str) -> Row:
    address, kind, name, *module = line.split()
    row: Row = {"address": int(address, 16), "type": kind, "name": name}
    return row | {"module": module[0].strip("[]") if module else None}


def _sample_kallsyms(text: str, each: int = 40) -> Row:
    """Keep some of every type, built in and of each module, evenly spread."""
    groups: dict[tuple[str, str | None], list[Row]] = defaultdict(list)
    lines = text.splitlines()
    for line in lines:
        symbol = _parse_symbol(line)
        groups[symbol["type"], symbol["module"]].append(symbol)
    sample = [
        group[len(group) * i // min(each, len(group))]
        for group in groups.values()
        for i in range(min(each, len(group)))
    ]
    return {"total": len(lines), "sample": sample}


def _parse_table(text: str) -> list[Row]:
    """Parse a table with one line of headings, all words."""
    header, *lines = text.splitlines()
    names = header.split()
    return [dict(zip(names, line.split(), strict=False)) for line in lines]


def _parse_inet(text: str) -> list[Row]:
    """Parse /proc/net/tcp and its like; addresses stay hexadecimal, HOST:PORT."""
    rows = []
    for line in text.splitlines()[1:]:
        words = line.split()
        tx_queue, _, rx_queue = words[4].partition(":")
        row: Row = {"local": words[1], "remote": words[2], "state": int(words[3], 16)}
        row |= {"tx_queue": int(tx_queue, 16), "rx_queue": int(rx_queue, 16)}
        row |= {"uid": int(words[7]), "inode": int(words[9]), "refcnt": int(words[10])}
        rows.append(row | {"address": _address(words[11])})
    return rows


def _parse_unix(text: str) -> list[Row]:
    rows = []
    for line in text.splitlines()[1:]:
        words = line.split(maxsplit=7)
        row: Row = {"address": _address(words[0].rstrip(":"))}
        row |= {"refcnt": int(words[1], 16)}
        row |= {"flags": int(words[3], 16), "type": int(words[4], 16)}
        row |= {"state": int(words[5], 16), "inode": int(words[6])}
        rows.append(row | {"path": words[7] if len(words) > 7 else ""})
    return rows


def _parse_workload(text: str) -> list[Row]:
    """Parse the facts of guest/workload.c."""
    facts = []
    for line in text.splitlines():
        role, *pairs = line.split()
        fact: Row = {"role": role} | dict(pair.split("=", 1) for pair in pairs)
        facts.append(fact | {"pid": int(fact["pid"]), "tid": int(fact["tid"])})
    return facts


def _parse_clock(text: str) -> dict[str, str]:
    names = ("realtime", "monotonic", "boottime")
    return dict(zip(names, text.split(), strict=True))


# Key of truth.json -> the file it comes from, and how it is parsed.
_PARSED: dict[str, tuple[str, Callable[[str], Any]]] = {
    "workload": ("/run/workload", _parse_workload),
    "kmsg": ("/dev/kmsg", _parse_kmsg),
    "mounts": ("/proc/self/mountinfo", _parse_mounts),
    "meminfo": ("/proc/meminfo", _parse_meminfo),
    "slabinfo": ("/proc/slabinfo", _parse_slabinfo),
    "interrupts": ("/proc/interrupts", _parse_interrupts),
    "vmallocinfo": ("/proc/vmallocinfo", _parse_vmallocinfo),
    "iomem": ("/proc/iomem", _parse_iomem),
    "kallsyms": ("/proc/kallsyms", _sample_kallsyms),
    "version": ("/proc/version", str.strip),
    "cmdline": ("/proc/cmdline", str.strip),
    "release": ("/proc/sys/kernel/osrelease", str.strip),
    "hostname": ("/proc/sys/kernel/hostname", str.strip),
    "tainted": ("/proc/sys/kernel/tainted", int),
    "pid_max": ("/proc/sys/kernel/pid_max", int),
    "uptime": ("/proc/uptime", str.split),
    "loadavg": ("/proc/loadavg", str.split),
}
_INET = ("tcp", "tcp6", "udp", "udp6")
_IPC = ("shm", "sem", "msg")


def read_truth(stream: BufferedIOBase) -> dict[str, Any]:
    """Build the content of truth.json from the guest's records."""
    raw = dict(_read_records(stream))
    files = {path: _decode(content) for path, content in raw.items()}
    truth: dict[str, Any] = {
        key: parse(files[path]) for key, (path, parse) in _PARSED.items()
    }
    truth["clock"] = {
        when: _parse_clock(files[f"clock-{when}"]) for when in ("start", "end")
    }
    truth["wall_time"] = int(truth["clock"]["end"]["realtime"].partition(".")[0])
    truth["build_id"] = _build_id(raw["/sys/kernel/notes"])
    truth["tasks"] = _parse_tasks(files)
    truth["processes"] = _parse_processes(files)
    truth["modules"] = _parse_modules(files, raw)
    truth["sockets"] = {k: _parse_inet(files.get(f"/proc/net/{k}", "")) for k in _INET}
    truth["sockets"]["unix"] = _parse_unix(files["/proc/net/unix"])
    truth["sysvipc"] = {k: _parse_table(files[f"/proc/sysvipc/{k}"]) for k in _IPC}
    (crasher,) = (task for task in truth["tasks"] if task["comm"] == "wl-crash")
    truth["panic"] = {"pid": crasher["pid"], "comm": "wl-crash", "cpu": 1}
    truth["files"] = {
        path: text for path, text in files.items() if not _NOT_IN_FILES.match(path)
    }
    return truth
