# SPDX-License-Identifier: GPL-2.0-or-later
"""Paths of open files (``fs/d_path.c``), up to the root of their mount tree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gdbkdump.errors import CorruptError

if TYPE_CHECKING:
    from gdbkdump.kernel.base import Kernel

# PATH_MAX; a path that goes on after so many names or mounts runs wild.
_MAX_DEPTH = 4096
_MAX_NAME = 255


def file_path(kernel: Kernel, file: int) -> bytes:
    """Return the path of a ``struct file *``, as ``d_path()`` makes it.

    :raise KdumpError: a dentry or mount on the way cannot be read, or they loop
    """
    mnt, dentry = kernel.fields("file", ["f_path.mnt", "f_path.dentry"]).read(file)
    return d_path(kernel, mnt, dentry)


def d_path(kernel: Kernel, mnt: int, dentry: int) -> bytes:
    """Return the path of a dentry on a mount.

    It begins at the root of the mount tree, so what a container sees below its own
    root has that root in front. " (deleted)" follows what is unlinked.

    :param mnt: ``struct vfsmount *``
    :param dentry: ``struct dentry *``
    """
    names = _Names(kernel)
    pseudo = names.pseudo_name(mnt, dentry)
    if pseudo is not None:
        return pseudo
    suffix = b" (deleted)" if names.is_unlinked(dentry) else b""
    return b"/" + b"/".join(reversed(names.walk(mnt, dentry))) + suffix


class _Names:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._dentry = kernel.fields(
            "dentry", ["d_hash.pprev", "d_parent", "d_name.len", "d_name.name", "d_op"]
        )
        mount = kernel.struct("mount")
        self._mnt = mount.offset("mnt")
        self._mount = kernel.fields(
            "mount", ["mnt_parent", "mnt_mountpoint", "mnt.mnt_root"]
        )

    def _name(self, dentry: int) -> bytes:
        _, _, size, name, _ = self._dentry.read(dentry)
        return self._kernel.reader.read(name, min(size, _MAX_NAME))

    def is_unlinked(self, dentry: int) -> bool:
        # d_unlinked(): unhashed, and no root.
        pprev, parent, *_ = self._dentry.read(dentry)
        return not pprev and parent != dentry

    def walk(self, mnt: int, dentry: int) -> list[bytes]:
        # prepend_path(): names up to the root of a mount, then on from where it is.
        names: list[bytes] = []
        mount = mnt - self._mnt
        for _ in range(_MAX_DEPTH):
            parent, mountpoint, root = self._mount.read(mount)
            above = self._dentry.read(dentry)[1]
            if dentry in (root, above):
                if parent == mount or dentry != root:
                    return names
                mount, dentry = parent, mountpoint
                continue
            names.append(self._name(dentry))
            dentry = above
        raise CorruptError(f"the path of dentry {dentry:#x} does not end")

    def pseudo_name(self, mnt: int, dentry: int) -> bytes | None:
        # What has no place in the tree names itself (dentry_operations.d_dname).
        *_, ops = self._dentry.read(dentry)
        if not ops:
            return None
        function = self._kernel.object("dentry_operations", ops)["d_dname"]
        _, _, root = self._mount.read(mnt - self._mnt)
        if not function or dentry == root:
            return None
        symbol = self._kernel.debuginfo.symbol_at(function)
        name = self._name(dentry)
        if symbol is None or symbol.name == "simple_dname":
            return b"/" + name + b" (deleted)"
        # "anon_inode:[eventfd]", "pipe:", "socket:": the rest is the inode's number.
        kind = symbol.name.removesuffix("_dname").removesuffix("fs").rstrip("_")
        return kind.encode() + b":" + name
