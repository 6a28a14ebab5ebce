"""Names for blobs: `refs/<name>` holds an address, and garbage collection leaves what has a name.

    NAME/ref/<name>     the SHA-256, in the store

A name that was created and not written yet is only in memory, and goes with whoever made it.
"""

from __future__ import annotations

import errno
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio
from warren.servers.storage.accounts import each_key, kept
from warren.servers.storage.shelf import is_hex
from warren.servers.storage.turns import Turns
from warren.servers.storage.writing import ADDRESS
from warren.store import NotFound, Store, StoreError
from warren.tree import Caller, Dir, Handle, Maybe, Node, Refused, Text, absent
from warren.tree.words import TextHandle

NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}")
_EXCL: Final = 0o200


def hex_of(address: str) -> str:
    """The digits of `sha256:…`, or a refusal."""
    hex = address.removeprefix(ADDRESS)
    if not address.startswith(ADDRESS) or not is_hex(hex):
        raise Refused(400, f"{address[:80]!r} is no address; one is sha256: and 64 digits, lower case")
    return hex


class Refs(Dir):
    """The directory of the names."""

    mode = 0o755

    def __init__(
        self, store: Store, under: str, turns: Turns, there: Callable[[str], bool], most: int,
        ready: Callable[[], Awaitable[None] | None],
    ) -> None:  # fmt: skip
        super().__init__()
        self.refs: dict[str, Ref] = {}
        self.named: Counter[str] = Counter()
        self.store, self.under, self.turns, self.there = store, f"{under}/ref", turns, there
        self._most, self._ready = most, ready

    async def load(self) -> None:
        """Read the records. Cancelled: it must be called again."""
        self.refs.clear()
        self.named.clear()

        async def read(key: str) -> None:
            ref = Ref(self, key.rpartition("/")[2])
            self.mean(ref, (await kept(self.store.get(key))).value.decode())

        await each_key(self.store, self.under, read)

    def lookup(self, name: str) -> Maybe[Node | None]:
        waits = self._ready()
        return self.refs.get(name) if waits is None else self._lookup(waits, name)

    async def _lookup(self, waits: Awaitable[None], name: str) -> Node | None:
        await waits
        return self.refs.get(name)

    def list(self) -> Maybe[Iterable[tuple[str, Node]]]:
        waits = self._ready()
        return list(self.refs.items()) if waits is None else self._list(waits)

    async def _list(self, waits: Awaitable[None]) -> Iterable[tuple[str, Node]]:
        await waits
        return list(self.refs.items())

    def create(
        self, name: str, flags: int, mode: int, gid: int, caller: Caller
    ) -> Maybe[tuple[Node, Handle]]:
        waits = self._ready()
        if waits is None:
            return self._create(name, flags)
        return self._create_later(waits, name, flags)

    async def _create_later(self, waits: Awaitable[None], name: str, flags: int) -> tuple[Node, Handle]:
        await waits
        return self._create(name, flags)

    def _create(self, name: str, flags: int) -> tuple[Node, Handle]:
        ref = self.refs.get(name)
        if ref is not None and flags & _EXCL:
            raise Refused(409, f"{name} is there already")
        if ref is None:
            if NAME.fullmatch(name) is None:
                raise Refused(400, "a name is a letter or digit, then letters, digits and _ . -, at most 100")
            if len(self.refs) >= self._most:
                raise Refused(507, f"{self._most} names are taken, and no further one fits; remove one")
            ref = self.refs[name] = Ref(self, name)
        return ref, RefHandle(ref)

    async def _unlink(self, name: str, expect: Node | None) -> None:
        """Cancelled: removed or not."""
        async with self.turns(f"ref {name}"):
            if self.refs.get(name) is None:
                raise absent()
            if expect is not None and expect is not self.refs[name]:
                raise Refused(404, "this name is another file's by now", errno=errno.ESTALE)
            with trio.CancelScope(shield=True):  # what the store says and what gc looks at are one
                await self._delete(name)
            self.forget(self.refs[name])

    async def _delete(self, name: str) -> None:
        try:
            await self.store.delete(f"{self.under}/{name}")
        except NotFound:
            pass  # it was never written
        except StoreError as e:
            raise Refused(e.code, f"the index: {e}") from None

    def unlink(self, name: str, directory: bool | None, expect: Node | None = None) -> Maybe[None]:
        if directory:
            raise Refused(400, "this is a name of a blob, and no directory", errno=errno.ENOTDIR)
        return self._unlink(name, expect)

    def forget(self, ref: Ref) -> None:
        """The name is free."""
        if self.refs.get(ref.name) is ref:
            del self.refs[ref.name]
            self._unname(ref.hex)
            ref.hex = ""

    def mean(self, ref: Ref, hex: str) -> None:
        """The name means this blob from now on."""
        self._unname(ref.hex)
        ref.hex = hex
        self.refs[ref.name] = ref
        self.named[hex] += 1

    def _unname(self, hex: str) -> None:
        if hex:
            self.named[hex] -= 1
            if not self.named[hex]:
                del self.named[hex]


class Ref(Text):
    """One name. Reading gives the address; writing one makes the name mean that."""

    def __init__(self, refs: Refs, name: str) -> None:
        self.refs, self.name, self.hex = refs, name, ""
        super().__init__(lambda: f"{ADDRESS}{self.hex}" if self.hex else "", self.point)

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return RefHandle(self)

    async def point(self, address: str) -> None:
        """Cancelled: the name means the new blob or the old one."""
        hex, refs = hex_of(address.strip()), self.refs
        # The blob's turn is asked for before anything is looked at: gc leaves what has a turn.
        async with refs.turns(hex), refs.turns(f"ref {self.name}"):
            if not refs.there(hex):
                raise Refused(404, f"{address.strip()} is not here; put it first")
            if refs.refs.get(self.name, self) is not self:
                raise Refused(404, "this name was removed, and made again by another", errno=errno.ESTALE)
            with trio.CancelScope(shield=True):
                await kept(refs.store.put(f"{refs.under}/{self.name}", hex.encode()))
            refs.mean(self, hex)


class RefHandle(TextHandle):
    """An open name. One that never got a value goes when it is closed."""

    def __init__(self, ref: Ref) -> None:
        super().__init__(ref)
        self.ref = ref

    def close(self) -> Maybe[None]:
        self.abandon()
        return None

    def abandon(self) -> None:
        if not self.ref.hex and not self.ref.refs.turns.busy(f"ref {self.ref.name}"):
            self.ref.refs.forget(self.ref)
