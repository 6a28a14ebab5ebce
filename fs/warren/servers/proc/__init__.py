"""/proc: what this role is doing.

    /ns                      Text    its namespace, as lines that rebuild it
    /boot                    Text    how it started: role, name, manifest, verified, pid, times
    /lifecycle/ctl           Ctl     verbs: cordon drain quiesce resume reset
    /lifecycle/state         Text    BOOTING DEGRADED ONLINE DRAINING QUIESCED OFFLINE
    /lifecycle/reason        Text    why it is in that state
    /lifecycle/since         Text    since when
    /lifecycle/events        Stream  every transition, and every one that was refused
    /9p/sessions             Text    who is connected, a record a session
    /9p/outstanding          Text    requests without a reply
    /9p/flushed              Text    requests whose answer was no longer wanted
    /9p/session/<n>/state    Text    attached, greeted, new or ended
    /9p/session/<n>/owner    Text    the identity the transport proved
    /9p/session/<n>/ops      Text    operations answered
    /9p/session/<n>/bytes    Text    sent= bytes of replies, written= bytes of file data
    /pressure/busy           Text    how often: too much at once
    /pressure/quota          Text    no room, or a token used up
    /pressure/cut            Text    connections that this role ended
    /pressure/policy         Text    not allowed
    /metrics  /stats         Text    the same as counts

`lifecycle` has the table of states. Numbers come from the export by the port `Sessions`; until the role
is served there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from warren.servers.proc.lifecycle import STATES, Lifecycle
from warren.tree import Caller, Ctl, Dir, Maybe, Node, Stream, Text, verb
from warren.tree.ports import Conversation, Pressure, Sessions
from warren.tree.report import Count, attributes, counts, one, pairs

__all__ = ["Lifecycle", "Proc"]


class Unserved:
    """The sessions of a role that is not served yet."""

    def conversations(self) -> Iterable[Conversation]:
        return ()

    def conversation(self, number: int) -> Conversation | None:
        return None

    def pressure(self) -> Pressure:
        return Pressure()

    def statistics(self) -> Mapping[str, int]:
        return {}


class Proc(Dir):
    """The tree. `sessions` is set to the export once there is one: it serves this very tree."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        *,
        ns: Callable[[], str],
        boot: Callable[[], Mapping[str, object]],
        sessions: Sessions | None = None,
    ) -> None:
        self.lifecycle = lifecycle
        self.sessions: Sessions = sessions or Unserved()
        life = lifecycle
        super().__init__(
            {
                "ns": Text(ns),
                "boot": Text(lambda: attributes(boot())),
                "lifecycle": Dir(
                    {
                        "ctl": LifecycleCtl(life),
                        "state": Text(lambda: life.state),
                        "reason": Text(lambda: life.reason),
                        "since": Text(lambda: f"{life.since:.3f}"),
                        "events": Stream(life.events),
                    }
                ),
                "9p": Dir(
                    {
                        "sessions": Text(self._told),
                        "outstanding": Text(lambda: str(self._figure("outstanding"))),
                        "flushed": Text(lambda: str(self._figure("flushed"))),
                        "session": SessionDir(self),
                    }
                ),
                "pressure": Dir({field: self._pressure(field) for field in Pressure._fields}),
                **counts(self._counted),
            }
        )

    def _figure(self, name: str) -> int:
        return self.sessions.statistics().get(name, 0)

    def _told(self) -> str:
        return "".join(f"{pairs(c._asdict())}\n" for c in self.sessions.conversations())

    def _pressure(self, field: str) -> Text:
        return Text(lambda: str(getattr(self.sessions.pressure(), field)))

    def _counted(self) -> Iterable[Count]:
        found, life = self.sessions.statistics(), self.lifecycle
        for name in ("sessions", "fids", "parked", "outstanding"):
            yield one(f"warren_{name}", f"{name} now", found.get(name, 0), "gauge")
        for name in ("operations", "errors", "flushed"):
            yield one(f"warren_{name}_total", f"{name} since the start", found.get(name, 0))
        pressure = self.sessions.pressure()._asdict()
        turned: dict[tuple[str, ...], float] = {(name,): n for name, n in pressure.items()}
        yield Count("warren_pressure_total", "work that was turned away", turned, ("kind",))
        states: dict[tuple[str, ...], float] = {(state,): state == life.state for state in STATES}
        yield Count("warren_lifecycle_state", "the state the role is in", states, ("state",), "gauge")
        yield one("warren_transitions_refused_total", "transitions that were refused", life.refused)


class LifecycleCtl(Ctl):
    """What an operator does with the role's state."""

    def __init__(self, life: Lifecycle) -> None:
        self.life = life

    @verb
    def cordon(self, caller: Caller) -> None:
        """Take no new work; what exists goes on."""
        self.life.cordon(caller.subject)

    @verb
    def drain(self, caller: Caller) -> None:
        """Take no new work, and be quiet once nothing is held."""
        self.life.drain(caller.subject)

    @verb
    def quiesce(self, caller: Caller) -> None:
        """Do nothing any more; refused while something is held."""
        self.life.quiesce(caller.subject)

    @verb
    def resume(self, caller: Caller) -> None:
        """Work again."""
        self.life.resume(caller.subject)

    @verb
    async def reset(self, caller: Caller) -> None:
        """Read the role again, and be up anew."""
        await self.life.reset(caller.subject)


class SessionDir(Dir):
    """A directory for each session there is. One that was walked to is the same at the next walk."""

    def __init__(self, proc: Proc) -> None:
        super().__init__()
        self.proc = proc
        self.known: dict[int, Dir] = {}

    def lookup(self, name: str) -> Maybe[Node | None]:
        number = int(name) if name.isascii() and name.isdigit() and name == str(int(name)) else 0
        return self._node(number) if self.proc.sessions.conversation(number) else None

    def list(self) -> Maybe[Iterable[tuple[str, Node]]]:
        there = [c.number for c in self.proc.sessions.conversations()]
        self.known = {number: node for number, node in self.known.items() if number in set(there)}
        return [(str(number), self._node(number)) for number in there]

    def _node(self, number: int) -> Dir:
        if (node := self.known.get(number)) is None:
            if len(self.known) > 2 * self.proc.sessions.statistics().get("sessions", 0) + 64:
                self.list()  # forgets those that are gone
            node = self.known[number] = self._made(number)
        return node

    def _made(self, number: int) -> Dir:
        def shown(say: Callable[[Conversation], str]) -> Text:
            def get() -> str:
                found = self.proc.sessions.conversation(number)
                return say(found) if found else "gone"

            return Text(get)

        return Dir(
            {
                "state": shown(lambda c: c.state),
                "owner": shown(lambda c: c.subject),
                "ops": shown(lambda c: str(c.operations)),
                "bytes": shown(lambda c: pairs({"sent": c.sent, "written": c.written})),
            }
        )
