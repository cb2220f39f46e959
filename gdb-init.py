# SPDX-License-Identifier: GPL-2.0-or-later
"""Start gdbkdump inside gdb: ``gdb vmlinux vmcore -x gdb-init.py``.

Only finds the package and what it depends on; all else is in gdbkdump/debugger.
"""

import importlib.util
import os
import site
import sys

import gdb

_NEEDED = {"pygments": "pygments", "tabulate": "tabulate", "elftools": "pyelftools"}


def _problem():
    """Return why gdbkdump cannot run in this gdb, or None."""
    gdb_version = gdb.VERSION.rpartition(" ")[2].split(".")[0]
    if gdb_version.isdecimal() and int(gdb_version) < 12:
        return f"gdb {gdb.VERSION} is too old: 12 or later is needed"
    version = ".".join(map(str, sys.version_info[:2]))
    if sys.version_info < (3, 10):  # noqa: UP036
        return f"the Python {version} in this gdb is too old: 3.10 or later is needed"
    missing = [
        package
        for name, package in _NEEDED.items()
        if not importlib.util.find_spec(name)
    ]
    if missing:
        debian = " ".join(f"python3-{package}" for package in missing)
        return (
            f"gdb's own Python {version} lacks {', '.join(missing)}: install them"
            f" (Debian, Ubuntu: apt install {debian}), or activate a virtual"
            f" environment of Python {version} that has them before starting gdb"
        )
    return None


def _add_paths(root):
    """Put the checkout, and a virtual environment if it fits, on sys.path."""
    sys.path.insert(0, root)
    name = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    for folder in (os.environ.get("VIRTUAL_ENV"), os.path.join(root, ".venv")):
        if all(map(importlib.util.find_spec, _NEEDED)):
            break
        packages = os.path.join(folder or "", "lib", name, "site-packages")
        if folder and os.path.isdir(packages):  # noqa: PTH112
            site.addsitedir(packages)


_add_paths(os.path.dirname(os.path.abspath(__file__)))
_found = _problem()
if _found:
    gdb.write(f"gdbkdump: {_found}\n", gdb.STDERR)
    with open("/proc/self/cmdline") as _file:
        if any(word.lstrip("-") == "batch" for word in _file.read().split("\0")):
            gdb.execute("quit 2")
else:
    try:
        from gdbkdump.debugger.boot import boot

        boot()
    except KeyboardInterrupt:
        gdb.write(
            "gdbkdump: interrupted while it was loaded: source gdb-init.py again\n",
            gdb.STDERR,
        )
