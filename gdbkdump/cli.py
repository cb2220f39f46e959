# SPDX-License-Identifier: GPL-2.0-or-later
"""The ``gdbkdump`` program: commands on the engine alone, or gdb started right.

Exit codes: 0, 1 a command failed, 2 the dump cannot be opened, 3 the vmlinux is of
another kernel build.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gdbkdump import __version__
from gdbkdump.commands import find_command
from gdbkdump.errors import CommandError, KdumpError, MismatchError
from gdbkdump.formats import is_remote, sort_files
from gdbkdump.formats.hints import parse_hints
from gdbkdump.render.pieces import pieces
from gdbkdump.render.progress import Progress
from gdbkdump.session import open_session

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gdbkdump.debuginfo.base import TypeSource
    from gdbkdump.kernel.base import Kernel
    from gdbkdump.session import Session

_EPILOG = """\
Without -c gdb is started on the dump, every task a thread; other options are gdb's.

  gdbkdump vmcore                     open gdb; vmlinux is found by its build-id
  gdbkdump vmcore vmlinux -ex bt      the same with a vmlinux, and bt as first command
  gdbkdump vmcore1 vmcore2 vmlinux    a split dump; the other parts are also found
  gdbkdump --base 0 memory            bare memory, as QEMU's pmemsave writes it
  gdbkdump vmcore -c ksys -c 'kps -m UN' -c klog --json
  gdbkdump vmcore -c khelp            list the commands
  gdbkdump serve vmcore --listen 4321 let others read it: gdbkdump remote:HOST:4321

exit codes: 0 ok, 1 a command failed, 2 the dump cannot be opened, 3 vmlinux mismatch
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "gdbkdump",
        description="Debug a Linux kernel crash dump with stock gdb, or without it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE",
        help="the dump, all files of it if it is split, or remote:HOST:PORT;"
        " vmlinux too, in any order",
    )  # fmt: skip
    parser.add_argument(
        "-c", dest="commands", action="append", metavar="CMD",
        help="run CMD on the dump alone, without gdb (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="print JSON lines (with -c)"
    )
    parser.add_argument(
        "--debug-dir", type=Path, action="append", default=[], metavar="DIR",
        help="look for vmlinux here too (repeatable)",
    )  # fmt: skip
    parser.add_argument(
        "--base", metavar="ADDR",
        help="the dump is bare memory, of which this is the first physical address",
    )  # fmt: skip
    parser.add_argument(
        "--vmcoreinfo", metavar="ADDR|FILE",
        help="where VMCOREINFO is: a physical address, or a file that holds it",
    )  # fmt: skip
    parser.add_argument(
        "--own-symbols", action="store_true",
        help="give gdb the dump's own symbols and types, though there is a vmlinux",
    )  # fmt: skip
    parser.add_argument(
        "--force", action="store_true",
        help="with a vmlinux of another kernel, use the dump's own symbols and types",
    )  # fmt: skip
    parser.add_argument(
        "--gdb", default="gdb", metavar="GDB", help="which gdb to start"
    )
    parser.add_argument("--version", action="version", version=__version__)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["serve"]:
            from gdbkdump.serve import main as serve

            return serve(words[1:])
        words, gdb_options = _split(words)
        if not words and "".join(gdb_options[:1]).startswith("-"):
            raise CommandError(
                f"{gdb_options[0]} is an option of gdb, which comes after the dump:"
                f" gdbkdump VMCORE {gdb_options[0]}"
            )
        args = _parser().parse_args(words)
        args.vmcores, args.vmlinux = sort_files(args.files)
        args.hints = parse_hints(args.base, args.vmcoreinfo)
        _ask_for_token(args.vmcores)
        if args.commands and gdb_options:
            raise CommandError(
                f"{gdb_options[0]} is an option of gdb, which -c does not start"
            )
        if args.commands:
            return _run_commands(args)
        return _start_gdb(args, gdb_options)
    except MismatchError as error:
        return _fail(error, 3)
    except KdumpError as error:
        return _fail(error, 2)
    except BrokenPipeError:
        # The reader has what it wanted; nothing may be flushed to it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _fail("interrupted", 130)


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    # From the first option that is none of ours, or "--", all is gdb's.
    options = {
        "-h": 0, "--help": 0, "--version": 0, "--json": 0, "--force": 0, "-c": 1,
        "--own-symbols": 0,
        "--gdb": 1, "--debug-dir": 1, "--base": 1, "--vmcoreinfo": 1,
    }  # fmt: skip
    at = 0
    while at < len(words) and words[at] != "--":
        name = words[at].partition("=")[0]
        if name.startswith("-") and name not in options:
            return words[:at], words[at:]
        at += 1 + (options.get(name, 0) if "=" not in words[at] else 0)
    return words[:at], words[at + 1 :]


def _ask_for_token(vmcores: Sequence[Path]) -> None:
    if not any(is_remote(path) for path in vmcores):
        return
    from gdbkdump.formats.remote import TOKEN_VARIABLE, needs_token, read_token

    if needs_token(vmcores[0]) and not read_token() and sys.stdin.isatty():
        import getpass

        os.environ[TOKEN_VARIABLE] = getpass.getpass("token of gdbkdump serve: ")


def _fail(error: object, code: int) -> int:
    sys.stderr.write(f"gdbkdump: {error}\n")
    return code


def _run_commands(args: argparse.Namespace) -> int:
    # Told before the dump is opened: a misspelt command should not cost the wait.
    parsed = []
    for text in args.commands:
        try:
            words = shlex.split(text)
            if not words:
                raise CommandError(f"no command in {text!r}")
            parsed.append((find_command(words[0]), words[1:]))
        except ValueError as error:
            return _fail(f"{text}: {error}", 1)
        except CommandError as error:
            return _fail(error, 1)
    session = _open(args)
    if args.vmlinux:
        known = len(session.problems)
        _check_vmlinux(session, args.vmlinux, force=args.force)
        for problem in session.problems[known:]:
            _fail(problem, 0)
    code = 0
    for item, words in parsed:
        try:
            options = item.parse(words)
            as_json = args.json or options.json
            sys.stdout.writelines(pieces(_lines(item.run(session, options), as_json)))
        except KdumpError as error:
            sys.stdout.flush()
            code = _fail(error, 1)
    sys.stdout.flush()
    session.close()
    return code


def _open(args: argparse.Namespace) -> Session:
    return open_session(
        *args.vmcores,
        hints=args.hints,
        report=Progress(_show),
        types_without_btf=_recorded_types,
    )


def _recorded_types(kernel: Kernel) -> TypeSource | None:
    # Late: few kernels have no BTF.
    from gdbkdump.recordedtypes import recorded_types

    return recorded_types(kernel)


def _check_vmlinux(session: Session, path: Path, *, force: bool) -> None:
    from gdbkdump.vmlinux import use_vmlinux

    use_vmlinux(session, path, force=force)


def _lines(result: object, as_json: bool) -> Iterator[str]:
    if as_json:
        from gdbkdump.render import json_text

        return json_text.lines(result)  # type: ignore[arg-type]
    from gdbkdump.render import text

    return text.lines(result, colour=_wants_colour())  # type: ignore[arg-type]


def _wants_colour() -> bool:
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return False
    if os.environ.get("TERM") == "dumb":
        return False
    return importlib.util.find_spec("pygments") is not None


def _show(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(text)
        sys.stderr.flush()


def _start_gdb(args: argparse.Namespace, gdb_options: list[str]) -> int:
    from gdbkdump.vmlinux import find_vmlinux

    session = _open(args)
    if args.vmlinux:
        _check_vmlinux(session, args.vmlinux, force=args.force)
    elif not args.own_symbols:
        session.vmlinux = find_vmlinux(session, args.debug_dir)
    init = Path(__file__).resolve().parent.parent / "gdb-init.py"
    # Line by line: the names of kdump's folders have colons in them.
    vmcores = "\n".join(
        str(path if is_remote(path) else path.resolve()) for path in args.vmcores
    )
    environment = dict(os.environ, GDBKDUMP_VMCORE=vmcores)
    if args.base:
        environment["GDBKDUMP_BASE"] = args.base
    if args.vmcoreinfo:
        environment["GDBKDUMP_VMCOREINFO"] = args.vmcoreinfo
    if args.debug_dir:
        folders = [str(folder.resolve()) for folder in args.debug_dir]
        environment["GDBKDUMP_DEBUG_DIR"] = os.pathsep.join(folders)
    vmlinux = args.vmlinux or session.vmlinux
    if vmlinux:
        environment["GDBKDUMP_VMLINUX"] = str(vmlinux.resolve())
    if args.force:
        environment["GDBKDUMP_FORCE"] = "1"
    if args.own_symbols:
        environment["GDBKDUMP_OWN_SYMBOLS"] = "1"
    session.close()
    command = [args.gdb, "-q", "-x", str(init), *gdb_options]
    try:
        os.execvpe(args.gdb, command, environment)
    except OSError as error:
        return _fail(f"cannot start {args.gdb}: {error.strerror}", 2)
