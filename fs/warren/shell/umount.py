"""umount: take a mounted tree away

    warren umount DIR...

Directories that `warren mount` made. What is not mounted is no error: it is as it should be. A mount that is
in use goes all the same: its name at once, and what still waits for an answer through it fails then. This
does not need the process that serves it, and never waits for it.
"""

from __future__ import annotations

import errno
import os
from argparse import Namespace

from warren.shell import exits, output
from warren.shell.arguments import Parser
from warren.shell.exits import Stopped, Usage


def declare(parser: Parser) -> None:
    """No options but --help."""


def run(args: Namespace) -> int:
    if not args.words:
        raise Usage("warren umount: a DIR is missing; see warren umount --help")
    code = exits.OK
    for where in args.words:
        try:
            _unmount(where)
        except OSError as e:
            failed = output.complain(e)
            code = code or failed
    return code


def _unmount(where: str) -> None:
    from warren.mount.fuse.device import FSTYPE, detach, mounted_at

    # Its parent is resolved and not itself: looking at a mount asks a server that may not answer.
    absolute = os.path.abspath(where)
    directory = os.path.join(os.path.realpath(os.path.dirname(absolute)), os.path.basename(absolute))
    found = mounted_at(directory)
    if found is None and os.path.islink(directory):
        directory = os.path.realpath(directory)
        found = mounted_at(directory)
    if found is None:
        output.say(f"{where}: not mounted")
        return
    if not found.fstype.startswith(FSTYPE):
        way_out = f"if you mean it: umount {where}"
        raise Stopped(errno.EINVAL, f"this is a mount of {found.fstype}", where, way_out, exits.CONFLICT)
    try:
        detach(directory, found.number)
    except OSError as e:
        raise Stopped(e.errno or errno.EIO, e.strerror or str(e), where, "ask root", exits.DENIED) from None
