"""What can be set on a file of a disk: its mode, size and times, and its `user.*` attributes.

PATH is always `/proc/self/fd/N`, because these calls know no O_PATH descriptors. It leads to the
inode and not through names.
"""

import errno
import os
import stat as S
import time
from collections.abc import Sequence
from typing import Final

from warren.servers.disk.handle import told
from warren.tree import NOW, Changes, Refused

_SECOND: Final = 1_000_000_000
_GREATEST: Final = (1 << 63) - 1
_MODE: Final = 0o7777
_SET_ID: Final = S.S_ISUID | S.S_ISGID
_USER: Final = "user."
_WITH_XATTRS: Final = (S.S_IFREG, S.S_IFDIR)


def change(path: str, kind: int, st: os.stat_result, changes: Changes) -> None:
    """All of CHANGES or none: what can be known to fail is asked first, and the size, which may
    still fail for want of space, comes before what cannot."""
    _check(kind, st, changes)
    mode, _, _, size, atime, mtime = changes
    if size is not None:
        os.truncate(path, size)
    if mode is not None:
        os.chmod(path, mode & _MODE)
    if atime == mtime == NOW:
        os.utime(path)
    elif atime is not None or mtime is not None:
        now = time.time_ns()
        st = os.stat(path)
        os.utime(path, ns=(_time(atime, st.st_atime_ns, now), _time(mtime, st.st_mtime_ns, now)))


def _check(kind: int, st: os.stat_result, changes: Changes) -> None:
    mode, uid, gid, size, atime, mtime = changes
    if uid not in (None, st.st_uid) or gid not in (None, st.st_gid):
        raise Refused(403, "files keep their owner and group here", errno=errno.EPERM)
    if mode is not None:
        if kind == S.S_IFLNK:
            raise Refused(405, "a symbolic link has no mode of its own")
        must_give_no_id(mode & ~st.st_mode)
    if size is not None:
        if kind == S.S_IFDIR:
            raise Refused(400, "a directory has no size to set", errno=errno.EISDIR)
        if kind != S.S_IFREG:
            raise Refused(400, "only a regular file has a size to set")
        if not 0 <= size <= _GREATEST:
            raise Refused(413, "no file is that large")
        must_not_set_id(st.st_mode)
    for when in (atime, mtime):
        if when is not None and when != NOW and not 0 <= when // _SECOND <= _GREATEST:
            raise Refused(400, "the time is out of range")
    owners_alone = mode is not None or not {atime, mtime} <= {None, NOW}
    if owners_alone and os.geteuid() not in (0, st.st_uid):
        raise Refused(403, "only the owner of a file sets its mode and times", errno=errno.EPERM)


def _time(wanted: int | None, current: int, now: int) -> int:
    if wanted is None:
        return current
    return now if wanted == NOW else wanted


def must_give_no_id(mode: int) -> None:
    if mode & _SET_ID:
        raise Refused(403, "setuid and setgid are not given here", errno=errno.EPERM)


def must_not_set_id(mode: int) -> None:
    """Before a write: root's do not clear these bits, so new contents would inherit an old trust."""
    if mode & _SET_ID:
        raise Refused(403, "a setuid or setgid file is not written; chmod it first", errno=errno.EPERM)


def extended(path: str, kind: int) -> Sequence[str]:
    if kind not in _WITH_XATTRS:
        return ()
    try:
        return [name for name in os.listxattr(path) if name.startswith(_USER)]
    except OSError as e:
        if e.errno == errno.ENOTSUP:
            return ()
        raise told(e) from None


def extended_value(path: str, kind: int, name: str) -> bytes:
    """One that is hidden and one that is missing read the same: kernels ask for `security.*` often,
    and a refusal in its place would make `ls` complain."""
    if _ours(kind, name):
        try:
            return os.getxattr(path, name)
        except OSError as e:
            if e.errno != errno.ENOTSUP:
                raise told(e) from None
    raise Refused(404, "no such attribute", errno=errno.ENODATA)


def set_extended(path: str, kind: int, name: str, value: bytes, flags: int) -> None:
    if not _ours(kind, name):
        # Where there are no access lists, `cp -a` is content with being told so, and with nothing else.
        number = errno.EOPNOTSUPP if name.startswith("system.") else errno.EPERM
        raise Refused(403, "only user.* of files and directories can be set", errno=number)
    if flags == os.XATTR_REPLACE and not value:
        os.removexattr(path, name)
    else:
        os.setxattr(path, name, value, flags)


def _ours(kind: int, name: str) -> bool:
    return name.startswith(_USER) and "\0" not in name and kind in _WITH_XATTRS
