"""Refusals of a server, as the exceptions Python has for them.

`OSError(errno, text, path)` becomes FileNotFoundError, PermissionError and so on by itself, so this
client has no error classes of its own. The text is the server's where its dialect carries one (the
trace id is part of it), else the system's words for the errno. The plain dialect carries words
only: those of Plan 9, of Unix, or a Warren line that begins with a code; the errno is found by them.
"""

import errno as E
import os
from functools import cache

from warren.p9.messages import Message, Rerror, Rlerror
from warren.tree.errors import CODES

# In the order they are looked for: the first that the text begins or ends with.
_PLAN9 = {
    "file does not exist": E.ENOENT,
    "no such file": E.ENOENT,
    "directory entry not found": E.ENOENT,
    "file not found": E.ENOENT,
    "not found": E.ENOENT,
    "permission denied": E.EACCES,
    "access denied": E.EACCES,
    "access permission denied": E.EACCES,
    "file already exists": E.EEXIST,
    "file exists": E.EEXIST,
    "file or directory already exists": E.EEXIST,
    "create/wstat -- file exists": E.EEXIST,
    "walk in non-directory": E.ENOTDIR,
    "not a directory": E.ENOTDIR,
    "file is a directory": E.EISDIR,
    "is a directory": E.EISDIR,
    "cannot open directory for writing": E.EISDIR,
    "directory not empty": E.ENOTEMPTY,
    "directory is not empty": E.ENOTEMPTY,
    "unknown fid": E.EBADF,
    "fid unknown or out of range": E.EBADF,
    "duplicate fid": E.EBADF,
    "fid already in use": E.EBADF,
    "bad use of fid": E.EBADF,
    "file not open": E.EBADF,
    "file already open": E.EBUSY,
    "file in use": E.EBUSY,
    "device or object already in use": E.EBUSY,
    "exclusive use file already open": E.EBUSY,
    "exclusive lock": E.EBUSY,
    "file is in use": E.EBUSY,
    "read-only file system": E.EROFS,
    "file system read only": E.EROFS,
    "file is read only": E.EROFS,
    "file system is full": E.ENOSPC,
    "file system full": E.ENOSPC,
    "no free blocks": E.ENOSPC,
    "no space left": E.ENOSPC,
    "wstat prohibited": E.EPERM,
    "create prohibited": E.EPERM,
    "remove prohibited": E.EPERM,
    "not owner": E.EPERM,
    "bad offset in directory read": E.EINVAL,
    "bad offset": E.EINVAL,
    "bad character in file name": E.EINVAL,
    "illegal name": E.EINVAL,
    "bad argument": E.EINVAL,
    "illegal mode": E.EINVAL,
    "illegal offset": E.EINVAL,
    "name too long": E.ENAMETOOLONG,
    "file name too long": E.ENAMETOOLONG,
    "interrupted": E.EINTR,
    "i/o error": E.EIO,
    "no authentication required": E.ENOENT,
    "authentication not required": E.ENOENT,
    "authentication failed": E.EACCES,
    "unknown group": E.EINVAL,
    "unknown user": E.EINVAL,
    "function not implemented": E.EOPNOTSUPP,
    "not supported": E.EOPNOTSUPP,
    "no such process": E.ESRCH,
}


@cache
def _unix_words() -> dict[str, int]:
    return {os.strerror(number).lower(): number for number in sorted(E.errorcode, reverse=True)}


@cache
def errno_of(words: str) -> int:
    """The errno that a text of the plain dialect means; EIO when it says nothing known."""
    text = words.strip().lower()
    head = text.split(" ", 1)[0]
    if head.isdigit() and int(head) in CODES:
        return CODES[int(head)].errno
    if (number := _unix_words().get(text)) is not None:
        return number
    for known, number in (*_PLAN9.items(), *_unix_words().items()):
        if text.startswith(known) or text.endswith(known):
            return number
    return E.EIO


def refusal(reply: Message, path: str) -> OSError:
    """The exception for an Rlerror or Rerror."""
    if isinstance(reply, Rlerror):
        return OSError(reply.ecode, reply.ename or os.strerror(reply.ecode), path)
    assert isinstance(reply, Rerror)
    return OSError(errno_of(reply.ename), reply.ename, path)
