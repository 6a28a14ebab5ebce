"""Beginning a hive: what hive.toml comes to say, and a keeper that needs no terminal.

    hive = founded(state, roles, mount, tell)     under the lock: names, folders, identities
    begin(state, roles, mount, command)           fork a keeper; returns once it can be talked to

The fork says one word through a pipe: that its files can be read, that another keeper has the lock, or what
was refused. After that all is said through its files.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import NoReturn

import trio
from warren.auth.refusal import Missing, Refusal, Standing
from warren.roles import found
from warren.roles.keeper import CONTROL, Command, Keeper, Mount, holding, with_roles
from warren.roles.mounts import at
from warren.roles.processes import rotate, tail
from warren.roles.state import DEFAULT, Hive, State, new_hive

Tell = Callable[[str], None]
_KINDS = {"Refusal": Refusal, "Missing": Missing, "Standing": Standing}


class NotUp(Refusal):
    """What was to be up is not."""


def founded(state: State, given: Mapping[str, str], mount: Mount | None, tell: Tell) -> Hive:
    """What is to run: hive.toml, made or added to, and identities for all of it."""
    if state.file.exists():
        before = state.hive()
        hive = with_roles(state, before, given)
    else:
        if any((state.directory / "pki/.joining").glob("*")):
            text = f"{state.directory}: a warren join was begun here and has not come to an end"
            raise Standing(text, "join again with the same token, or choose another --state")
        before = None
        hive = with_roles(state, new_hive({}), given or DEFAULT)
    if mount is not None and (there := at(mount.point)):
        text = f"{mount.point}: {there[-1].source} is mounted there"
        raise Standing(text, f"warren umount {mount.point}, or choose another --mount")
    for name in (CONTROL, *hive.roles):
        state.make_for(name)
        addr = state.run(name) / "addr"
        if addr.exists():  # of last time: nobody is to be looked for there before it is said anew
            addr.replace(addr.with_name("addr.last"))
    if hive != before:
        state.write(hive)
    found.keep(state, hive, tell)
    return hive


def begin(state: State, roles: Mapping[str, str], mount: Mount | None, command: Command) -> bool:
    """Fork a keeper and return once it can be talked to; False if another one has the lock."""
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(ours)
        _detached(state, roles, mount, command, theirs)
    os.close(theirs)
    os.waitpid(child, 0)
    with open(ours, "rb") as pipe:
        said = pipe.read()
    if not said:
        log = state.log(CONTROL) / "stderr.log"
        raise NotUp(f"the hive's keeper ended at once: {' '.join(tail(log, 1))}", f"see {log}")
    word = json.loads(said)
    if "text" in word:
        raise _KINDS.get(word["kind"], Refusal)(word["text"], word["way_out"])
    return bool(word["mine"])


def _detached(
    state: State, roles: Mapping[str, str], mount: Mount | None, command: Command, pipe: int
) -> NoReturn:
    """In the fork: become a process without a terminal, and keep the hive. Never returns."""
    code, told = 1, False

    def answer(**word: object) -> None:
        nonlocal told
        if not told:
            told = True
            os.write(pipe, json.dumps(word).encode())
            os.close(pipe)

    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.chdir("/")
        os.umask(0o077)
        state.make_for(CONTROL)
        log = state.log(CONTROL) / "stderr.log"
        rotate(log)
        nothing = os.open(os.devnull, os.O_RDWR)
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for fd, to in ((nothing, 0), (said, 1), (said, 2)):
            os.dup2(fd, to)
        os.close(nothing)
        os.close(said)
        code = _kept(state, roles, mount, command, answer)
    except Refusal as e:
        answer(kind=type(e).__name__, text=e.text, way_out=e.way_out)
        print(f"{e.text}; {e.way_out}", file=sys.stderr, flush=True)
    except OSError as e:
        where = e.filename if isinstance(e.filename, str) else state.directory
        way_out = "make room there" if e.errno in (errno.ENOSPC, errno.EDQUOT) else "choose another --state"
        answer(kind="Refusal", text=f"{where}: {e.strerror}", way_out=way_out)
        print(f"{where}: {e.strerror}", file=sys.stderr, flush=True)
    except BaseException as e:
        answer(kind="Refusal", text=f"this is a defect of warren: {type(e).__name__}: {e}", way_out="tell us")
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _kept(
    state: State, roles: Mapping[str, str], mount: Mount | None, command: Command, answer: Callable[..., None]
) -> int:
    def tell(said: str) -> None:
        os.write(2, f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {said}\n".encode())

    with holding(state) as mine:
        if not mine:
            answer(mine=False)
            return 0
        keeper = Keeper(state, founded(state, roles, mount, tell), mount, command, tell)
        return trio.run(keeper.run, lambda: answer(mine=True))
