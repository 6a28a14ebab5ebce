"""A hive goes up and down: what `warren up`, `down`, `status` and `join` do.

    up(state, roles, mount, detach=True, tell=say)      returns when everything is up
    down(state, tell)                                   returns when everything is gone
    status(state)                                       the hive, and a row a service

The hive itself is the keeper, in this process or, detached, in one of its own. Whoever finds the lock taken
talks to the keeper through its files, so all of this may be done again, by several at once, and after any
of them was killed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import trio
from warren.auth.identity import Identity
from warren.auth.refusal import Refusal, Standing
from warren.mount import Files, dial
from warren.roles.begin import NotUp, Tell, begin, founded
from warren.roles.keeper import (
    CONTROL,
    MOUNT,
    Command,
    Keeper,
    Mount,
    clear,
    holding,
    role_command,
    with_roles,
)
from warren.roles.processes import Born, finish, hold, tail, wait_for
from warren.roles.state import State, new_hive
from warren.roles.supervise import STOPPED, UP
from warren.tree import quote, split

PATIENCE = 60.0  # seconds for a hive to come up
_CRASHES = 3  # in a row: whoever waits for it to come up hears that it does not
_ENDING = 20.0


class Status(NamedTuple):
    """A hive as it is now."""

    about: dict[str, str]
    services: list[dict[str, str]]


def up(
    state: State, roles: Mapping[str, str], mount: Mount | None, *, detach: bool, tell: Tell,
    command: Command = role_command, done: Callable[[Status, bool], None] = lambda status, fresh: None,
) -> int:  # fmt: skip
    """Bring the hive up, with ROLES too. Returns its exit code: detached when all is up, else at its end.

    DONE is called when all is up, with whether it was not so before.
    """
    state.make()
    if state.holder() is None:
        if not detach:
            return _foreground(state, roles, mount, tell, command, done)
        if begin(state, roles, mount, command):
            try:
                trio.run(_follow, state, tell, done, True)
            except KeyboardInterrupt:
                down(state, [], tell)
                raise
            return 0
    _add(state, roles, mount, tell, done)
    return 0


def start_joined(
    state: State, name: str, role: str, queen: str, mount: Mount | None, *, detach: bool, tell: Tell,
    command: Command = role_command, done: Callable[[Status, bool], None] = lambda status, fresh: None,
) -> int:  # fmt: skip
    """A hive of one worker whose queen is at the address QUEEN; its identity is in pki/NAME already."""
    state.make()
    me = Identity.load(state.pki(name))
    if not me.uri.endswith(f"/role/{role}/{name}"):
        raise Standing(f"{state.pki(name)} is {me.uri}", f"join as that, not as {role} {name}")
    if state.file.exists():
        there = state.hive()
        if there.queen != queen or there.hive != me.hive:
            raise Standing(f"{state.directory} is of the hive {there.hive}", "choose another --state")
    else:
        state.write(with_roles(state, new_hive({}, me.hive, queen), {name: role}))
    return up(state, {name: role}, mount, detach=detach, tell=tell, command=command, done=done)


def down(state: State, names: list[str], tell: Tell) -> None:
    """End the services NAMES, or the hive. What is down already is so."""
    keeper = state.holder()
    if keeper is None:
        tell("down; its keeper was gone before" if _cleared(state) else "already down")
        return
    if names:
        trio.run(_stop, state, names, tell)
        return
    born = Born.parse(keeper)
    pidfd = hold(born) if born is not None else None
    if born is None or pidfd is None:  # it is beginning, or ended this very moment
        tell("down" if _cleared(state) else "already down")
        return
    try:
        try:
            trio.run(_write, state, "down")
        except OSError:
            finish([born], _ENDING)  # it does not listen; SIGTERM says the same
        if not wait_for([pidfd], _ENDING):
            tell(f"its keeper, process {born.pid}, did not end; it is killed")
            finish([born], 0)
    finally:
        os.close(pidfd)
    _cleared(state)
    tell("down")


def _cleared(state: State) -> bool:
    """Take away what is left of a hive that nobody keeps. Returns whether anything of it was alive."""
    if not state.directory.is_dir():
        return False
    with state.locked("") as mine:  # or it might be what somebody begins right now
        return mine and clear(state)


def status(state: State) -> Status:
    """The hive as it is now; NotUp if nobody keeps it."""
    hive = state.hive()
    if state.holder() is None:
        raise NotUp(f"{hive.hive} is down", f"warren up --state {state.directory}")
    return trio.run(_status, state)


def _foreground(
    state: State, roles: Mapping[str, str], mount: Mount | None, tell: Tell, command: Command,
    done: Callable[[Status, bool], None],
) -> int:  # fmt: skip
    with holding(state) as mine:
        if not mine:
            _add(state, roles, mount, tell, done)
            return 0
        keeper = Keeper(state, founded(state, roles, mount, tell), mount, command, tell)

        async def follow() -> None:
            try:
                await _follow(state, tell, done, True)
            except Refusal as e:
                tell(f"{e.text}; {e.way_out}")

        return trio.run(keeper.run, lambda: None, follow)


# Talking to the keeper there is


def _add(
    state: State, roles: Mapping[str, str], mount: Mount | None, tell: Tell,
    done: Callable[[Status, bool], None],
) -> None:  # fmt: skip
    async def start() -> None:
        now = await _status(state)
        point = now.about.get("mount", "-")
        if mount is not None and point not in ("-", str(mount.point)):
            way_out = f"warren mount {state.address('queen')} {mount.point} mounts it there too"
            raise Standing(f"the hive is up, and mounted at {point}", way_out)
        stopped = [row["name"] for row in now.services if row["state"] == STOPPED]
        fresh = [name for name in roles if name not in [row["name"] for row in now.services]]
        wanted = {**dict.fromkeys([] if roles else stopped, ""), **roles}
        async with _control(state) as files:
            for name, role in wanted.items():
                await files.write("/ctl", f"start {quote(name)} {quote(role)}\n".encode())
        waiting = any(row["state"] not in (UP, STOPPED) for row in now.services)
        await _follow(state, tell, done, bool(set(wanted) & {*stopped, *fresh}) or waiting)

    trio.run(start)


def _control(state: State) -> dial:
    return dial(state.address(CONTROL), deadline=_ENDING)


async def _status(state: State) -> Status:
    """Asked of the keeper. One that is only beginning is given time to answer."""
    with trio.move_on_after(_ENDING):
        while state.holder() is not None:
            try:
                async with _control(state) as files:
                    return await _read_status(files)
            except (FileNotFoundError, ConnectionRefusedError):
                await trio.sleep(0.05)
    raise NotUp(f"the keeper of {state.directory} does not answer", "end it with warren down")


async def _read_status(files: Files) -> Status:
    about = (await files.read("/hive")).decode().splitlines()
    rows = (await files.read("/status")).decode().splitlines()
    return Status(dict(map(_pair, about)), [pairs(row) for row in rows if row])


def pairs(line: str) -> dict[str, str]:
    """The keys and values of a line."""
    return dict(map(_pair, split(line)))


def _pair(word: str) -> tuple[str, str]:
    key, _, value = word.partition("=")
    return key, value


async def _write(state: State, line: str) -> None:
    async with _control(state) as files:
        await files.write("/ctl", f"{line}\n".encode())


async def _stop(state: State, names: list[str], tell: Tell) -> None:
    before = {row["name"]: row["state"] for row in (await _status(state)).services}
    for name in names:
        await _write(state, f"stop {quote(name)}")
        tell(f"{name} is down" if before.get(name) != STOPPED else f"{name} was down already")


async def _follow(state: State, tell: Tell, done: Callable[[Status, bool], None], fresh: bool) -> None:
    """Say what happens until everything that is wanted is up; NotUp if it does not come to that.

    A mount that cannot be had is said, and waited for no longer: the hive is of use without it.
    """
    unmounted = False
    with trio.move_on_after(PATIENCE):
        async with _control(state) as files, await files.stream("/events") as events:
            now = await _read_status(files)
            while late := _late(now, unmounted):
                tell(f"starting {', '.join(late)} …")
                while late:
                    event = pairs((await events.record()).decode().strip())
                    _say(state, event, tell)
                    name, given_up = event.get("service", ""), _given_up(state, event)
                    if given_up and name != MOUNT:
                        raise given_up
                    if given_up:
                        unmounted = True
                        tell(f"{given_up.text}; use the hive with --state {state.directory}")
                    if given_up or event.get("kind") in ("ready", "stopped"):
                        late = [one for one in late if one != name]
                now = await _read_status(files)
            done(Status({**now.about, "mount": "-"}, now.services) if unmounted else now, fresh)
            return
    late = _late(await _status(state), unmounted)
    text = f"not all of it is up after {PATIENCE:g} s; {', '.join(late)} is not"
    raise NotUp(text, f"see {state.directory}/log; warren status shows more, warren down ends it")


def _late(now: Status, unmounted: bool) -> list[str]:
    """What is wanted and not there yet."""
    out = (UP, STOPPED)
    rows = [row for row in now.services if row["state"] not in out]
    return [row["name"] for row in rows if not (unmounted and row["name"] == MOUNT)]


def _say(state: State, event: dict[str, str], tell: Tell) -> None:
    name = event.get("service", "")
    if event.get("kind") == "ready":
        shown = {"-": ""}.get(event["state"], f" {event['state']}")
        why = {"-": ""}.get(event["reason"], f": {event['reason']}")
        tell(f"{name:<12} ready after {event['seconds']} s{shown}{why}")
    elif event.get("kind") == "crashed" and int(event["in_a_row"]) < _CRASHES:
        tell(f"{name:<12} crashed: {event['reason'].replace('_', ' ')}; again in {event['again_in']} s")


def _given_up(state: State, event: dict[str, str]) -> NotUp | None:
    """Why nobody need wait for this service, if it crashes again and again."""
    if event.get("kind") != "crashed" or int(event["in_a_row"]) < _CRASHES:
        return None
    log = state.log(event["service"]) / "stderr.log"
    ended = event["reason"].replace("_", " ")
    words = " ".join(tail(log, 1))
    text = f"{event['service']} crashed {event['in_a_row']} times: {ended}: {words}"
    return NotUp(text, f"see {log}; warren status shows the rest, warren down ends it")


__all__ = ["PATIENCE", "Mount", "NotUp", "Status", "down", "pairs", "start_joined", "status", "up"]
