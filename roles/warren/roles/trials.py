"""What a machine's worker tries when its host asks: attempts that should fail, and a few that should not.

    tried("rights", [])        what the kernel says that this process may do
    tried("root", [])          an open of a file of the root file system, for writing
    tried("mount", [])         a mount
    tried("orphan", [])        a process that is left behind: whether somebody reaps it
    tried("read", ["/in/job"]), tried("write", ["/mailbox/jobs/send", "text"])    what the host shares

What comes of it is a report. Paths are the host's, below /n/hive. Nothing is lost where an attempt succeeds:
the file is opened and not written, and there is no such file system.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from warren.roles.init import HIVE, mount, rights


def tried(name: str, words: list[str]) -> dict[str, object]:
    """What comes of an attempt, as a report."""
    match name, words:
        case "rights", []:
            return {f"rights.{key}": f"{value:x}" for key, value in rights().items()}
        case "root", []:
            return {"root.write": _attempt(lambda: os.close(os.open("/etc/hostname", os.O_WRONLY)))}
        case "mount", []:
            return {"mount.made": _attempt(lambda: mount("none", "/", "nothing-of-the-kind", 0))}
        case "orphan", []:
            return {"orphan": _orphaned()}
        case "read", [path]:
            data = (Path(HIVE) / path.lstrip("/")).read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            return {"read.sha256": digest, "read.text": data[:200].decode(errors="replace")}
        case "write", [path, text]:
            fd = os.open(Path(HIVE) / path.lstrip("/"), os.O_WRONLY)
            with open(fd, "wb", buffering=0) as file:
                return {"write.bytes": file.write(text.encode())}
    raise ValueError("there are the tests rights, root, mount, orphan, read PATH, and write PATH TEXT")


def _attempt(act: Callable[[], object]) -> str:
    try:
        act()
    except OSError as e:
        return errno.errorcode.get(e.errno or 0, "?")
    return "allowed"


def _orphaned() -> str:
    """Leave a process to the first one, which ends then; whether anybody reaps it."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        orphan = os.fork()
        if orphan:
            os.write(theirs, str(orphan).encode())
            os._exit(0)
        while os.getppid() != 1:
            time.sleep(0.001)
        os._exit(0)
    os.waitpid(child, 0)
    place = Path("/proc", os.read(ours, 16).decode())
    os.close(ours)
    os.close(theirs)
    until = time.monotonic() + 5
    while place.exists():
        if time.monotonic() > until:
            return "left"
        time.sleep(0.01)
    return "reaped"
