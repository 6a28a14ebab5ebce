"""A role's life as one object: the states, who may move between them, and what each lets through.

    verb or event          from                        to
    ready     (runner)     BOOTING                     ONLINE, or DEGRADED while something is wrong
    degrade   (runner)     ONLINE                      DEGRADED
    recover   (runner)     DEGRADED, last reason       ONLINE
    cordon                 ONLINE DEGRADED             DRAINING
    drain                  ONLINE DEGRADED DRAINING    DRAINING, and QUIESCED once nothing is held
    quiesce                DRAINING                    QUIESCED; refused while something is held
    resume                 DRAINING QUIESCED           ONLINE, or DEGRADED
    reset                  any but BOOTING             BOOTING; the role is read again; then as ready
    offline   (runner)     any                         OFFLINE

Any other edge is refused with 409, which says the state and what leads out of it, and is told. What is
let through (reading and letting go always are):

    ONLINE DEGRADED        everything
    BOOTING DRAINING       nothing new: no clone, create, mkdir, link; what exists goes on
    QUIESCED OFFLINE       nothing but what is written below ALWAYS: the way back

A reason to be degraded has a name, so that several can stand at once and each is recovered alone. They
are kept in every state: a role that is resumed with one of them is DEGRADED.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio
from warren.tree import Refused
from warren.tree.ports import Clock
from warren.tree.report import Events, bad_lines, faults

BOOTING, DEGRADED, ONLINE, DRAINING, QUIESCED, OFFLINE = (
    "BOOTING", "DEGRADED", "ONLINE", "DRAINING", "QUIESCED", "OFFLINE",
)  # fmt: skip
STATES: Final = (BOOTING, DEGRADED, ONLINE, DRAINING, QUIESCED, OFFLINE)
FROM: Final[dict[str, tuple[str, ...]]] = {
    "cordon": (ONLINE, DEGRADED),
    "drain": (ONLINE, DEGRADED, DRAINING),
    "quiesce": (DRAINING,),
    "resume": (DRAINING, QUIESCED),
    "reset": (DEGRADED, ONLINE, DRAINING, QUIESCED, OFFLINE),
}
ALWAYS: Final = ("/proc/lifecycle", "/role")
MAKES: Final = frozenset(("create", "mkdir", "symlink", "mknod", "link"))
REASONS: Final = 32
LOOK: Final = 1.0  # seconds between two looks whether a drained role still holds something

Tell = Callable[..., None]


class Lifecycle:
    """The state, its reasons, and the events of both. See the table above."""

    def __init__(
        self,
        clock: Clock,
        *,
        held: Callable[[], int] = lambda: 0,
        reread: Callable[[], Awaitable[object]] | None = None,
        tell: Tell = lambda kind, **values: None,
        always: tuple[str, ...] = ALWAYS,
    ) -> None:
        self.clock = clock
        self.state = BOOTING
        self.since = clock.now()
        self.reasons: dict[str, str] = {}
        self.cause = "started"
        self.events = Events(clock.now, depth=256)
        self.refused = 0
        self._held, self._reread, self._tell, self._always = held, reread, tell, always
        self._leaving = False  # a drain was asked for: go on to QUIESCED by ourselves
        self._news = trio.Event()

    @property
    def reason(self) -> str:
        """Why the role is in its state: a line for each standing reason, else what brought it here."""
        if self.state == DEGRADED:
            return "\n".join(f"{name}: {why}" if why else name for name, why in self.reasons.items())
        return self.cause

    async def changed(self) -> str:
        """The next state, once there is one. Cancelled has no effect."""
        await self._news.wait()
        return self.state

    # What the runner says

    def ready(self) -> None:
        """The role is up."""
        if self.state == BOOTING:
            self._settle("ready")

    def degrade(self, reason: str, why: str = "") -> None:
        """Something is wrong; a further word about the same reason replaces the first."""
        if reason not in self.reasons and len(self.reasons) >= REASONS:
            reason, why = "others", "more is wrong than is listed"
        if self.reasons.get(reason) == why:
            return
        self.reasons[reason] = why
        self._told("degraded", reason=reason, why=why)
        if self.state == ONLINE:
            self._move(DEGRADED, reason)

    def recover(self, reason: str) -> None:
        """That is right again. What was not wrong is no error."""
        if self.reasons.pop(reason, None) is None:
            return
        self._told("recovered", reason=reason)
        if self.state == DEGRADED and not self.reasons:
            self._move(ONLINE, f"{reason} recovered")

    def offline(self, why: str = "stopped") -> None:
        """The role ends."""
        self._move(OFFLINE, why)

    def let_go(self) -> None:
        """Something that was held is not any more: a drained role may be quiet now."""
        if self.state == DRAINING and self._leaving and not self._held():
            self._move(QUIESCED, "drained")

    async def keep(self) -> None:
        """Look each second whether a drained role still holds something. Runs until cancelled, which
        leaves the state as it is."""
        while True:
            while not (self.state == DRAINING and self._leaving):
                await self.changed()
            self.let_go()
            await self.clock.sleep_until(self.clock.monotonic() + LOOK)

    # Verbs

    def cordon(self, by: str) -> None:
        """Take no new work."""
        self._may("cordon", by)
        self._move(DRAINING, f"cordon by {by}")

    def drain(self, by: str) -> None:
        """Take no new work, and be quiet once nothing is held."""
        self._may("drain", by)
        self._leaving = True
        if self.state == DRAINING:
            self._renewed()  # it was a cordon: `keep` must hear of it
        else:
            self._move(DRAINING, f"drain by {by}")
        self.let_go()

    def quiesce(self, by: str) -> None:
        """Be quiet now."""
        self._may("quiesce", by)
        if held := self._held():
            self._refuse("quiesce", by, f"{held} things are held; drain does it once they are let go")
        self._move(QUIESCED, f"quiesce by {by}")

    def resume(self, by: str) -> None:
        """Work again."""
        self._may("resume", by)
        self._settle(f"resume by {by}")

    async def reset(self, by: str) -> None:
        """Read the role again. Cancelled leaves it as it was last read, and DEGRADED."""
        self._may("reset", by)
        self._move(BOOTING, f"reset by {by}")
        failed = "interrupted"
        try:
            if self._reread is not None:
                await self._reread()
            failed = ""
        except ValueError as e:
            failed = "; ".join(bad_lines(e))
            raise faults(e) from None
        except OSError as e:
            failed = e.strerror or str(e)
            raise
        finally:
            if failed:
                self.reasons["reset"] = failed
            else:
                self.reasons.pop("reset", None)
            if self.state == BOOTING:  # unless the role was ended meanwhile
                self._settle(f"reset by {by}")

    def admit(self, op: str, path: str) -> None:
        """Refuse an effect that the state does not let through. Called before every one."""
        state = self.state
        if state in (ONLINE, DEGRADED):
            return
        if state in (BOOTING, DRAINING):
            if op not in MAKES and not (op == "open" and path.endswith("/clone")):
                return
            if state == BOOTING:
                raise Refused(503, "the role is BOOTING and takes no new work yet", retry_after=1)
            raise Refused(
                503, "the role is DRAINING and takes no new work; echo resume > /proc/lifecycle/ctl lets it"
            )
        for above in self._always:
            if path == above or path.startswith(f"{above}/"):
                return
        way = "reset" if state == OFFLINE else "resume"
        raise Refused(503, f"the role is {state} and does nothing; echo {way} > /proc/lifecycle/ctl wakes it")

    # Moving

    def _may(self, verb: str, by: str) -> None:
        if self.state not in FROM[verb]:
            self._refuse(verb, by, f"the role is {self.state}")

    def _refuse(self, verb: str, by: str, why: str) -> None:
        self.refused += 1
        self._told("transition_refused", verb=verb, state=self.state, by=by, why=why)
        ways = [v for v, states in FROM.items() if self.state in states]
        out = f"from {self.state} one may {', '.join(ways)}" if ways else "wait until it is up"
        raise Refused(409, f"{verb} is refused: {why}; {out}", reason="bad_transition")

    def _settle(self, cause: str) -> None:
        self._leaving = False
        self._move(DEGRADED if self.reasons else ONLINE, cause)

    def _move(self, state: str, cause: str) -> None:
        before, self.state, self.cause, self.since = self.state, state, cause, self.clock.now()
        self._told("state", state=state, before=before, cause=cause)
        self._renewed()

    def _renewed(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()

    def _told(self, kind: str, **values: object) -> None:
        self.events.tell(kind, **values)
        self._tell(f"lifecycle_{kind}", **values)
