"""What is mounted on this machine, as /proc/self/mountinfo says.

    mounted()             every mount, in the order in which they were made
    above(path)           the mount that PATH lies on; nothing is touched to find out
    let_go(point, of)     take a mount away at once, whoever uses it; its server may be dead

A path below a mount of ours is never looked at: a mount whose server is away answers late or not at all.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

WARREN = "fuse.warren"  # the type of a mount that `warren mount` made; its source is the tree's address
TABLE = "/proc/self/mountinfo"
# What other machines change too: locks and renames there mean less than a hive's state needs.
NETWORKED = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "coda", "gfs2", "lustre", "ncpfs", "ocfs2",
    "fuse.ceph", "fuse.cifs", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", WARREN,
}  # fmt: skip
_DETACH = 2
_PATIENCE = 10.0


class Mounted(NamedTuple):
    """One line of the table."""

    point: str
    kind: str
    source: str


def mounted(table: str = TABLE) -> list[Mounted]:
    """Every mount. Where the table cannot be read there is none to speak of."""
    try:
        text = Path(table).read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if len(left) > 4 and len(right) > 1:
            found.append(Mounted(_plain(left[4]), right[0], _plain(right[1])))
    return found


def above(path: str | os.PathLike[str], table: str = TABLE) -> Mounted | None:
    """The mount that an absolute PATH lies on, by its name alone: links on the way are not followed."""
    where = os.path.normpath(path)
    best: Mounted | None = None
    for one in mounted(table):
        if (where == one.point or where.startswith(one.point.rstrip("/") + "/")) and (
            best is None or len(one.point) >= len(best.point)  # of two at one place the later one is seen
        ):
            best = one
    return best


def at(point: str | os.PathLike[str]) -> list[Mounted]:
    """What is mounted at POINT itself; the last one is what is seen there."""
    return [one for one in mounted() if one.point == os.fspath(point)]


def let_go(point: str | os.PathLike[str], of: str) -> None:
    """Take away the Warren mounts of the tree OF at POINT, but nobody else's. OSError says why one stays."""
    here = os.fspath(point)
    for _ in at(point):
        if at(point)[-1:] != [Mounted(here, WARREN, of)]:
            return
        if os.geteuid() == 0:
            _detach(here)
            continue
        tool = shutil.which("fusermount3") or "/usr/bin/fusermount3"
        done = subprocess.run([tool, "-u", "-z", here], capture_output=True, text=True, timeout=_PATIENCE)
        if done.returncode:
            raise OSError(done.returncode, done.stderr.strip() or "fusermount3 failed", here)


def _detach(point: str) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(point), _DETACH):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), point)


def _plain(word: str) -> str:
    """A word of the table without its octal escapes, each of which is a byte."""
    if "\\" not in word:
        return word
    raw = word.encode("utf-8", "surrogateescape")
    plain = re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), raw)
    return plain.decode("utf-8", "surrogateescape")
