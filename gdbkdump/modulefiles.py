# SPDX-License-Identifier: GPL-2.0-or-later
"""The debug files of modules: finding them, and telling whether they are the dump's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gdbkdump.errors import FormatError, KdumpError, MismatchError
from gdbkdump.kernel.module import module_build_id, module_sections
from gdbkdump.vmlinux import folder_name, module_trees, read_debug_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gdbkdump.kernel.module import Module
    from gdbkdump.session import Session

# A tree of modules has some thousand files; bounds a search that was sent to "/".
_MAX_FILES = 200_000


class ModuleFile(NamedTuple):
    """A debug file of a module.

    :param sections: run-time address of each section that the file has contents of
    """

    path: Path
    sections: Mapping[str, int]


def find_module_file(
    session: Session, module: Module, dirs: Sequence[Path], debug_dirs: Sequence[Path]
) -> ModuleFile:
    """Return the debug file of a module, with where its sections were.

    :param dirs: folders to search first, with all below them
    :param debug_dirs: roots to search as /usr/lib/debug is searched
    :raise MismatchError: files of that name are there, of other builds
    :raise FormatError: there is none
    """
    sections = module_sections(session.kernel, module)
    wanted = module_build_id(session.kernel, sections)
    if wanted is None:
        raise FormatError(f"module {module.name} has no build-id in the dump")
    others = []
    for path in _candidates(session, module.name, wanted, dirs, debug_dirs):
        try:
            build_id, names = read_debug_file(path)
        except KdumpError:
            continue  # a stripped or damaged file of that name is none
        if build_id == wanted:
            return ModuleFile(path, _kept(module, sections, names))
        others.append(path)
    if others:
        raise MismatchError(
            f"module {module.name}: {others[0]} is of another build than the dump's"
        )
    raise FormatError(
        f"module {module.name}: no debug file found (kmod -d DIR, set kdump debug-dir)"
    )


def _kept(
    module: Module, sections: Mapping[str, int], names: set[str]
) -> dict[str, int]:
    # Init sections were freed, and what is there now may be another module's.
    return {
        name: address
        for name, address in sections.items()
        if name in names and module.holds(address)
    }


def _candidates(
    session: Session,
    name: str,
    build_id: str,
    dirs: Sequence[Path],
    debug_dirs: Sequence[Path],
) -> Iterable[Path]:
    # Files are named with dashes or underscores, the module always with the latter.
    near = [*dirs, session.path.parent / "modules"]
    for folder in near:
        yield from _index(session, folder).get(name, ())
    info = session.kernel.vmcoreinfo
    release = folder_name(info.osrelease if info else None)
    for root in (*debug_dirs, Path("/usr/lib/debug")):
        yield root / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
        for tree in module_trees(root, release) if release else ():
            yield from _index(session, tree).get(name, ())
        if root in debug_dirs:
            yield from _index(session, root).get(name, ())
    if release:
        yield from _index(session, Path("/lib/modules", release)).get(name, ())


def _index(session: Session, folder: Path) -> dict[str, list[Path]]:
    # One walk of a folder serves all modules.
    return session.kernel.once(("module files", folder), lambda: _walk(folder))


def _walk(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    number = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            stem, is_module, rest = name.partition(".ko")
            if is_module and rest in ("", ".debug"):
                files.setdefault(stem.replace("-", "_"), []).append(Path(parent, name))
        number += len(names)
        if number > _MAX_FILES:
            break
    return files
