"""A directory of ledgers: `mkdir` makes one, `rmdir` removes one, and somebody keeps their time.

    class Mailbox(Keeper[TopicDir]):
        noun, taken, gauges, counted = "topic", ...

Each is known to the store's table under its name; its log has the same name. One is read when it is first
asked for, and again when another process wrote to it.

`keep` lets happen what time brings. Without it that happens at the next use of each.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from errno import EISDIR
from math import inf
from typing import Any, ClassVar, Final, Generic, TypeVar

import trio
from warren.store.interface import Conflict, NotFound, Store, StoreError
from warren.store.ledger import Ledger, refusal
from warren.tree import Caller, Dir, Maybe, Node, Refused
from warren.tree.ports import Clock
from warren.tree.report import Count

NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,63}")
TAKEN: Final = frozenset(("ctl", "stats", "metrics", "dev"))
_AGAIN: Final = 1.0  # seconds until one whose store refused is looked at again


def named(name: str) -> str:
    """A name for something in such a directory, or the refusal."""
    if NAME.fullmatch(name) is None:
        raise Refused(400, f"{name[:80]!r} is no name: 1 to 64 letters, digits and _ . -, no dot in front")
    return name


class Kept(Dir):
    """The directory of one ledger."""

    ledger: Ledger[Any, Any, Any]


N = TypeVar("N", bound=Kept)


class Keeper(Dir, Generic[N]):
    """The directory. Its ledgers live in STORE under the name UNDER, at most MOST of them."""

    mode = 0o755
    noun: ClassVar[str] = "log"
    counting: ClassVar[tuple[str, str]] = ("log", "records")  # how measures are called, and what they count
    gauges: ClassVar[Mapping[str, str]] = {}
    counters: ClassVar[Sequence[str]] = ()

    def __init__(
        self, store: Store, clock: Clock, under: str, most: int, chance: random.Random | None
    ) -> None:  # fmt: skip
        super().__init__()
        self.store, self.clock, self.under = store, clock, under
        self.chance = chance or random.SystemRandom()
        self.kept: dict[str, N] = {}
        self._most = most
        self._until = -inf  # when `keep` looks again; never, while it does not run
        self._nap: trio.CancelScope | None = None

    # What a kind says

    def _made(self, name: str) -> N:
        """The directory of one that is in the store."""
        raise NotImplementedError

    def _begins(self, start: int) -> bytes:
        """What stands in the store's table of one whose log begins behind a record."""
        return b"%d" % start

    async def _end(self, node: N) -> None:
        """Remove one, or refuse. Cancelled: it is there, or not."""
        raise NotImplementedError

    # Which there are

    def known(self, name: str) -> N | None:
        """The one of that name, if it was read."""
        node = self.kept.get(name)
        return node if node is not None and not node.ledger.gone else None

    def lookup(self, name: str) -> Maybe[Node | None]:
        return self.known(name) or self.entries.get(name) or self._find(name)

    async def list(self) -> Iterable[tuple[str, Node]]:
        found: dict[str, Node] = dict(self.entries)
        for name in await self._names():
            if (node := await self._find(name)) is not None:
                found[name] = node
        return found.items()

    async def _names(self) -> Sequence[str]:
        try:
            keys = await self.store.keys(self.under, limit=self._most)
        except StoreError as e:
            raise refusal(e, self.noun) from e
        return [key.removeprefix(f"{self.under}/") for key in keys]

    async def _find(self, name: str) -> N | None:
        """The one of that name, its log read. Cancelled: no effect."""
        if (known := self.known(name)) is not None:
            return known
        self.kept = {other: node for other, node in self.kept.items() if not node.ledger.gone}
        try:
            named(name)
            await self.store.get(f"{self.under}/{name}")
        except (Refused, NotFound):
            return None
        except StoreError as e:
            raise refusal(e, self.noun) from e
        if name not in self.kept and len(self.kept) >= self._most:
            raise Refused(507, f"{self._most} {self.noun}s are in use, the limit")
        node = self.kept.setdefault(name, self._made(name))
        try:
            await node.ledger.fresh()
        except Refused as e:
            if e.code != 404:
                raise
            self.kept.pop(name, None)
            return None
        return node

    async def make(self, name: str) -> N:
        """Make one. Cancelled: it was made, or not."""
        if named(name) in TAKEN:
            raise Refused(400, f"{name} is a file of this server; choose another name")
        if len(await self._names()) >= self._most:
            raise Refused(507, f"{self._most} {self.noun}s exist, the limit; remove one")
        key = f"{self.under}/{name}"
        try:
            start = await self.store.last(key)
            await self.store.put(key, self._begins(start), expect=0)
        except Conflict:
            raise Refused(409, f"there is a {self.noun} {name}") from None
        except StoreError as e:
            raise refusal(e, self.noun) from e
        made = await self._find(name)
        if made is None:
            raise Refused(409, f"the {self.noun} {name} was removed at once by another process")
        return made

    async def remove(self, name: str) -> None:
        """Remove one, where it may be removed. Cancelled: it is there, or not."""
        found = await self._find(name)
        if found is None:
            raise Refused(404, "file does not exist")
        await self._end(found)
        self.kept.pop(name, None)

    async def mkdir(self, name: str, mode: int, gid: int, caller: Caller) -> Node:
        return await self.make(name)

    async def unlink(self, name: str, directory: bool | None, expect: Node | None = None) -> None:
        if name in self.entries:
            raise Refused(403, f"{name} belongs to this server")
        if directory is False:
            raise Refused(400, f"a {self.noun} is a directory", errno=EISDIR)
        await self.remove(name)

    # Time

    async def keep(self) -> None:
        """Let happen what time brings: leases that run out, delays, readers that waited long enough.

        Runs until cancelled, which leaves all that for the next use of each.
        """
        try:
            while True:
                soonest = self._until = inf
                for node in list(self.kept.values()):
                    soonest = min(soonest, await self._tick(node.ledger))
                # What became due meanwhile, where we had looked before, said so to soon.
                self._until = soonest = min(soonest, self._until)
                with trio.CancelScope() as self._nap:
                    if soonest == inf:
                        await trio.sleep_forever()
                    await self.clock.sleep_until(soonest)
                self._nap = None
        finally:
            self._until, self._nap = -inf, None

    async def _tick(self, ledger: Ledger[Any, Any, Any]) -> float:
        if ledger.gone:
            return inf
        due, now = ledger.due(), self.clock.monotonic()
        if (due is not None and due <= now) or not ledger.journal.idle or ledger.stale:
            try:
                await ledger.tick()
            except Refused:
                return self.clock.monotonic() + _AGAIN
            due = ledger.due()
        return inf if due is None else due

    def soon(self, due: float) -> None:
        """Look again at that time."""
        if due < self._until:
            self._until = due
            if self._nap is not None:
                self._nap.cancel()

    # Counts

    def counts(self) -> Iterable[Count]:
        """What there is of each, and what happened to it ever since it was made."""
        living = [(name, node) for name, node in sorted(self.kept.items()) if not node.ledger.gone]
        measured = {name: node.ledger.measures() for name, node in living}
        prefix, things = self.counting
        for measure in (*self.gauges, *self.counters):
            values: dict[tuple[str, ...], float] = {(name,): m[measure] for name, m in measured.items()}
            if measure in self.gauges:
                yield Count(f"{prefix}_{measure}", self.gauges[measure], values, (self.noun,), "gauge")
            else:
                yield Count(f"{prefix}_{measure}_total", f"{things} {measure}", values, (self.noun,))
