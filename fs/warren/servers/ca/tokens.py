"""Join tokens as the authority keeps them: by a hash, bounded, and each for one key.

    join/HASH       the name it is for, its end, who asked for it, and the key that took it with its answer
    ca/generation   what the tokens of this store belong to, for whoever would void them by hand

A store that comes from a backup would know a spent token as a fresh one. So a token counts only in the
generation of the store that it was made in, and a restore begins another. Whoever forgets ca/generation voids
every token before, too.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final, NoReturn, Protocol, TypeVar

import msgspec
from warren.auth.join import Ticket
from warren.store import Conflict, NotFound, Store, StoreError
from warren.tree import Refused

T = TypeVar("T")

REFUSED: Final = "this join token does not count here; ask whoever gave it to you for another"
OUTSTANDING: Final = 64  # tokens that nobody has taken yet
KEPT: Final = 86400  # seconds that a token is remembered after its end


class Say(Protocol):
    """Where news go: a kind, and what belongs to it."""

    def __call__(self, kind: str, **values: object) -> None: ...


class Invited(msgspec.Struct):
    """What is kept of a token."""

    uri: str
    expires: int
    by: str
    generation: str
    key: str = ""  # the digest of the key that took it
    chain: str = ""  # what that key was answered, in PEM


class Tokens:
    """The join tokens in a store. What counts, and why not, is decided here."""

    def __init__(self, store: Store, alarm: Say, tell: Say, now: Callable[[], datetime]) -> None:
        self.store, self.alarm, self.tell, self.now = store, alarm, tell, now

    async def add(self, ticket: Ticket, by: str) -> None:
        """Let TICKET count from now on. Cancelled: it counts or not, and nobody has it."""
        if await self.outstanding(sweep=True) >= OUTSTANDING:
            raise Refused(429, f"{OUTSTANDING} join tokens wait to be used; let some be used, or run out")
        known = Invited(ticket.uri, ticket.expires, by, await self._generation())
        await self.kept(self.store.put(_at(ticket), msgspec.json.encode(known), expect=0))
        self.tell("join_invited", uri=ticket.uri, id=ticket.id[:16], by=by, expires=ticket.expires)

    async def find(self, ticket: Ticket, key: str = "") -> tuple[Invited, int]:
        """What is kept of a token that counts, for KEY if it is given, and the revision of that.

        Cancelled has no effect.
        """
        try:
            entry = await self.kept(self.store.get(_at(ticket)))
        except NotFound:
            self._refuse(ticket, "unknown")
        known = msgspec.json.decode(entry.value, type=Invited)
        if known.generation != await self._generation():
            self._refuse(ticket, "restored")
        if known.expires <= self.now().timestamp():
            self._refuse(ticket, "expired")
        if known.uri != ticket.uri:
            self._refuse(ticket, "altered")
        if key and known.key not in ("", key):
            self.alarm("join_reused", uri=known.uri, id=ticket.id[:16], key=key[:16], by=known.by)
            self._refuse(ticket, "used")
        return known, entry.revision

    async def take(self, ticket: Ticket, key: str) -> tuple[Invited, int]:
        """The token is this key's from now on, or was before; nobody else's.

        Cancelled: it is, or not; the key that came may come again.
        """
        while True:
            known, revision = await self.find(ticket, key)
            if known.key:
                return known, revision
            known.key = key
            try:
                put = self.store.put(_at(ticket), msgspec.json.encode(known), expect=revision)
                return known, await self.kept(put)
            except Conflict:
                continue

    async def answered(self, ticket: Ticket, known: Invited, revision: int, chain: str) -> None:
        """Keep the answer, for the key to have again. Cancelled: it is kept or not."""
        known.chain = chain
        try:
            await self.kept(self.store.put(_at(ticket), msgspec.json.encode(known), expect=revision))
        except Conflict:
            pass  # the same key came twice at once: either answer is good

    async def outstanding(self, *, sweep: bool = False) -> int:
        """How many tokens could still be taken. SWEEP forgets those long over."""
        count, after, now = 0, "", self.now().timestamp()
        while keys := await self.kept(self.store.keys("join", after=after)):
            after = keys[-1]
            for key in keys:
                try:
                    entry = await self.kept(self.store.get(key))
                    known = msgspec.json.decode(entry.value, type=Invited)
                    count += known.expires > now and not known.key
                    if sweep and known.expires + KEPT < now:
                        await self.kept(self.store.delete(key, expect=entry.revision))
                except (Conflict, NotFound):
                    continue
        return count

    async def kept(self, call: Awaitable[T]) -> T:
        """What the store answers. Its failures are the tree's, without the place of its files."""
        try:
            return await call
        except (Conflict, NotFound):
            raise
        except StoreError as e:
            self.tell("store_failed", why=str(e))
            raise Refused(503, "the authority's store has failed; its log says how") from None

    def _refuse(self, ticket: Ticket, why: str) -> NoReturn:
        self.tell("join_refused", why=why, id=ticket.id[:16], uri=ticket.uri)
        raise Refused(403, REFUSED)

    async def _generation(self) -> str:
        while True:
            try:
                made = (await self.kept(self.store.get("ca/generation"))).value.decode()
                return f"{made}.{self.store.generation}"
            except NotFound:
                pass
            try:
                made = secrets.token_hex(8)
                await self.kept(self.store.put("ca/generation", made.encode(), expect=0))
            except Conflict:
                continue


def _at(ticket: Ticket) -> str:
    return f"join/{ticket.id}"
