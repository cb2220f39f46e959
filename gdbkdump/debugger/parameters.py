# SPDX-License-Identifier: GPL-2.0-or-later
"""``set kdump ...`` and ``show kdump ...``."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gdb

from gdbkdump.debugger import console
from gdbkdump.formats.hints import parse_hints

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gdbkdump.formats.hints import Hints

TRANSPORTS = ("auto", "core", "remote")


def _environment(name: str, choices: Sequence[str]) -> str:
    # What counts as the dump is opened can be chosen only before.
    chosen = os.environ.get(name, "")
    return chosen if chosen in choices else choices[0]


def _environment_number(name: str, default: int) -> int:
    chosen = os.environ.get(name, "")
    is_number = chosen.isascii() and chosen.isdecimal() and len(chosen) < 8
    return int(chosen) if is_number else default


class _Prefix(gdb.Command):
    def __init__(self, name: str, doc: str) -> None:
        self.__doc__ = doc
        super().__init__(name, gdb.COMMAND_SUPPORT, prefix=True)


class _Parameter(gdb.Parameter):
    # A setting that is silent when set and shown in one line.
    def __init__(
        self, name: str, doc: str, kind: int, default: Any, choices: Sequence[str] = ()
    ) -> None:
        self.set_doc = f"Set {doc}"
        self.show_doc = f"Show {doc}"
        self.__doc__ = self.set_doc
        arguments = (choices,) if choices else ()
        super().__init__(f"kdump {name}", gdb.COMMAND_SUPPORT, kind, *arguments)
        self.value = default

    def get_set_string(self) -> str:
        return ""

    def get_show_string(self, value: str) -> str:
        return value or "not set"


class Settings:
    """What the user set."""

    def __init__(self, is_batch: bool) -> None:
        """Declare the parameters.

        :param is_batch: whether gdb runs with ``-batch``
        """
        self._is_batch = is_batch
        _Prefix("set kdump", "Set how gdbkdump behaves.")
        _Prefix("show kdump", "Show how gdbkdump behaves.")
        self._strict = _Parameter(
            "strict", "whether a failed k-command ends gdb (auto: in batch mode).",
            gdb.PARAM_ENUM, "auto", ["auto", "on", "off"],
        )  # fmt: skip
        self._format = _Parameter(
            "format", "how k-commands print: text, or json (one object a line).",
            gdb.PARAM_ENUM, "text", ["text", "json"],
        )  # fmt: skip
        self._colour = _Parameter(
            "colour", "whether k-commands use colour (auto: as gdb's own style).",
            gdb.PARAM_ENUM, "auto", ["auto", "on", "off"],
        )  # fmt: skip
        self._traceback = _Parameter(
            "traceback", "whether a failed k-command shows a Python traceback.",
            gdb.PARAM_BOOLEAN, False,
        )  # fmt: skip
        self._transport = _Parameter(
            "transport",
            "how gdb gets the dump (auto: a core where it can read the file).",
            gdb.PARAM_ENUM, _environment("GDBKDUMP_TRANSPORT", TRANSPORTS), TRANSPORTS,
        )  # fmt: skip
        self._cache_size = _Parameter(
            "cache-size", "MiB to keep of a dump that has to be unpacked or fetched.",
            gdb.PARAM_ZUINTEGER, _environment_number("GDBKDUMP_CACHE_SIZE", 64),
        )  # fmt: skip
        self._own_symbols = _Parameter(
            "own-symbols",
            "whether gdb gets symbols and types of the dump itself, and no vmlinux.",
            gdb.PARAM_BOOLEAN, bool(os.environ.get("GDBKDUMP_OWN_SYMBOLS")),
        )  # fmt: skip
        self._force = _Parameter(
            "force",
            "whether a dump is opened, with symbols and types of its own, though the"
            " vmlinux is of another kernel.",
            gdb.PARAM_BOOLEAN, bool(os.environ.get("GDBKDUMP_FORCE")),
        )  # fmt: skip
        self._debug_dir = _Parameter(
            "debug-dir",
            "folders to search for vmlinux and modules first, with colons between.",
            gdb.PARAM_OPTIONAL_FILENAME,
            os.environ.get("GDBKDUMP_DEBUG_DIR", ""),
        )
        self._base = _Parameter(
            "base", "the first physical address (hex) of a dump that is bare memory.",
            gdb.PARAM_STRING, os.environ.get("GDBKDUMP_BASE", ""),
        )  # fmt: skip
        self._vmcoreinfo = _Parameter(
            "vmcoreinfo", "where VMCOREINFO is: a physical address (hex), or a file.",
            gdb.PARAM_STRING, os.environ.get("GDBKDUMP_VMCOREINFO", ""),
        )  # fmt: skip

    @property
    def is_strict(self) -> bool:
        """Whether a failure ends gdb."""
        chosen = self._strict.value
        return self._is_batch if chosen == "auto" else chosen == "on"

    @property
    def is_json(self) -> bool:
        """Whether commands print JSON unasked."""
        return bool(self._format.value == "json")

    @property
    def is_coloured(self) -> bool:
        """Whether output is coloured."""
        chosen = self._colour.value
        return console.wants_colour() if chosen == "auto" else chosen == "on"

    @property
    def shows_traceback(self) -> bool:
        """Whether failures show where in our code they arose."""
        return bool(self._traceback.value)

    @property
    def transport(self) -> str:
        """How gdb gets threads and memory: ``auto``, ``core`` or ``remote``."""
        return str(self._transport.value)

    @property
    def cache_bytes(self) -> int:
        """What may be kept of the next dump to be opened, in bytes."""
        return int(str(self._cache_size.value)) << 20

    @property
    def hints(self) -> Hints:
        """What was said of the next dump to be opened.

        :raise CommandError: it makes no sense
        """
        base, vmcoreinfo = str(self._base.value), str(self._vmcoreinfo.value)
        return parse_hints(base or None, vmcoreinfo or None)

    @property
    def wants_own_symbols(self) -> bool:
        """Whether no vmlinux is to be loaded."""
        return bool(self._own_symbols.value)

    @property
    def is_forced(self) -> bool:
        """Whether a wrong vmlinux is passed over."""
        return bool(self._force.value)

    @contextmanager
    def replaced(self, **values: object) -> Iterator[None]:
        """Have other settings meanwhile; one that is given as None or False stays.

        :param values: by name, with ``_`` for ``-``
        """
        chosen = {getattr(self, f"_{name}"): value for name, value in values.items()}
        kept = {parameter: parameter.value for parameter in chosen}
        try:
            for parameter, value in chosen.items():
                parameter.value = value or parameter.value
            yield
        finally:
            for parameter, value in kept.items():
                parameter.value = value

    @property
    def debug_dirs(self) -> list[Path]:
        """Where to look for debug files first: ours, then gdb's own folders."""
        texts = [self._debug_dir.value, gdb.parameter("debug-file-directory")]
        names = os.pathsep.join([str(text) for text in texts if text])
        return [Path(name) for name in names.split(os.pathsep) if name]
