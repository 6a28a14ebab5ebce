"""The tree of a hive's supervisor, at STATE/run/hive/sock, for its owner alone.

    /hive      Text     hive= mount= pid= joined=
    /status    Text     a line a service: name= role= pid= state= lifecycle= restarts= since= reason=
    /events    Stream   started, ready, crashed, stopped: seq= ts= kind= service= …
    /ctl       Ctl      verbs: start, stop and restart a service; end the hive
    /metrics   Text     crashes by service and reason

`warren up`, `down` and `status` read and write these files, and nothing else. `state` is the supervisor's
word: starting, joining, up, waiting, stopping or stopped; `lifecycle` is the role's own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from warren.auth.refusal import Refusal, Standing
from warren.roles.supervise import Supervisor
from warren.tree import Ctl, Dir, Refused, Stream, Text, verb

Admit = Callable[[str, str], Awaitable[None]]


class Control(Dir):
    """The root. ADMIT makes a service known by (name, role), or refuses; LOOK asks them all how they are."""

    def __init__(
        self, supervisor: Supervisor, about: Callable[[], str], admit: Admit,
        look: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        self.supervisor, self.look = supervisor, look
        super().__init__(
            {
                "hive": Text(about),
                "status": Text(self.status),
                "events": Stream(supervisor.events),
                "ctl": HiveCtl(supervisor, admit),
                "metrics": Text(supervisor.metrics),
            }
        )

    async def status(self) -> str:
        """Every service as it is now. Cancelled has no effect."""
        await self.look()
        return "\n".join(one.line() for one in self.supervisor.services.values())


class HiveCtl(Ctl):
    """What an operator does."""

    def __init__(self, supervisor: Supervisor, admit: Admit) -> None:
        self.supervisor, self.admit = supervisor, admit

    @verb
    async def start(self, name: str, role: str = "") -> None:
        """Start NAME; with ROLE it may be a new one, which is remembered."""
        try:
            await self.admit(name, role)
        except Standing as e:
            raise Refused(409, str(e)) from None
        except Refusal as e:
            raise Refused(400, str(e)) from None
        self.supervisor.start(self._known(name))

    @verb
    async def stop(self, name: str) -> None:
        """End NAME, and leave it so until it is started."""
        await self.supervisor.stop(self._known(name))

    @verb
    def restart(self, name: str) -> None:
        """End NAME and start it again at once."""
        self.supervisor.restart(self._known(name))

    @verb
    def down(self) -> None:
        """End the hive, and this supervisor last."""
        self.supervisor.ending.set()

    def _known(self, name: str) -> str:
        if name not in self.supervisor.services:
            there = ", ".join(self.supervisor.services)
            raise Refused(404, f"there is no service {name!r}; there are {there}")
        return name
