"""A directory of this machine as a tree.

    root = Disk("/srv/images")
    root = Disk("/srv/images", read_only=True)

Files, directories, symbolic links, hard links, `user.*` attributes, byte-range locks, times to the
nanosecond. What the client sees is what is there.

**It stays inside.** A node is an O_PATH descriptor, opened relative to its parent's and never
through a path, and no symbolic link is ever followed here: a client reads a link's text and walks
by itself, from the root it was given. So neither `..`, nor a link, nor somebody who swaps a
directory for a link in the middle of a walk leads out. What is mounted below the directory belongs
to the tree, `/proc` too: serve a directory, not the machine.

**It opens only files and directories.** FIFOs, sockets and devices have names and attributes and
can be removed, but opening one is refused, because that alone may hang or act. Device nodes are not
made. Setuid and setgid bits are not given, and a file that has them is not opened for writing. Of
the extended attributes only `user.*` exist. Nobody's uid or gid is changed: those a client sends
are labels. New files belong to the server, and its umask applies.

**It works as the server's user**, without looking at the modes itself: who may do what was decided
before a call arrives, and the system adds its own refusals.

**A link's target, a FIFO's reader, a lock's holder** are matters among clients. Locks live here, in
memory, for as long as their owner's session; a process of this machine that locks the same file is
not seen.

**It works at once** wherever the page cache usually can. Only fsync, statfs and synchronous writes
go to a thread, and a lock that is not free parks.
"""

import errno
import os

from warren.servers.disk.node import Entry
from warren.servers.disk.volume import Volume
from warren.tree import Node, Refused

__all__ = ["Disk"]


def Disk(path: str | os.PathLike[str], *, read_only: bool = False) -> Node:
    """The root of the directory PATH. A symbolic link to a directory is resolved here, once."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError:
        raise NotADirectoryError(errno.ENOTDIR, "only a directory can be served", os.fspath(path)) from None
    root = Entry(Volume(read_only, os.fstat(fd).st_dev), fd)
    root.qid()  # the first one, which would be old when a client asks
    try:
        reached = os.path.samestat(os.fstat(fd), os.stat(f"/proc/self/fd/{fd}"))
    except OSError:
        reached = False
    if not reached:
        raise Refused(503, "files are opened through /proc/self/fd, and /proc is not mounted here")
    return root
