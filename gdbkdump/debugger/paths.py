# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of files as gdb's commands take them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# What they take unquoted; quoting differs from version to version.
_PLAIN = re.compile(r"[\w./+:@%=,~-]+", re.ASCII)


def is_plain(path: Path | str) -> bool:
    """Tell whether gdb's commands take a path as it is."""
    return bool(_PLAIN.fullmatch(str(path)))


def plain_path(path: Path, link: Path) -> Path:
    """Return a path that gdb's commands take: the path, or a link to it.

    :param link: where the link is made if need be, a plain name in a private folder
    """
    if is_plain(path):
        return path
    link.unlink(missing_ok=True)
    link.symlink_to(path.absolute())
    return link
