"""/storage: blobs, named by what they hold.

    /put             Blob     a body of many writes; read back its address, sha256:…
    /declared        Blob     the same, whose first line says len=BYTES [encoding=gzip] [address=sha256:…]
    /sha256:<hex>             a blob: ranges by offset, verified as they are read
    /have/sha256:<hex>  Text  1; a blob that is not here is not in this directory
    /refs/<name>     Text     an address: what it names stays; create, write, remove
    /ctl             Ctl      verbs: gc, verify, quota
    /quota           Text     what each subject uses and may use, a line each
    /status          Text     how much there is
    /metrics         Text     counts, for Prometheus
    /stats           Text     the same for people

`cp picture.webp put` stores it, and `sha256sum picture.webp` tells what to ask for. The same content has the
same address and lies on the disk once, whoever puts it, though each who puts it is charged with all of it.
A blob never changes. It goes when `gc` is asked for, no name in `refs` means it, and GRACE seconds have
passed since it was last put; until then, and while it is being written, nothing takes it.

What is read is compared with its hash in chunks of 64 KiB: a chunk that is not what was stored is 422 and
names itself, the others are still there. To put the content again mends it.

`put` tells a failure to who calls fsync; `declared` tells it to the last write, for who cannot, as a shell.
With `encoding=gzip` the body is inflated as it comes, through the guard of `warren.tree.inflate`, and the
address is that of what came out.

The blobs are files in one directory, see `shelf`; names, owners and quotas are in the store.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Iterable, Sequence
from typing import Final

import trio
from warren.servers.storage.accounts import Account, Accounts
from warren.servers.storage.reading import Reads, Stored, version_of
from warren.servers.storage.refs import Refs, hex_of
from warren.servers.storage.shelf import Coming, Lying, Shelf, is_hex
from warren.servers.storage.turns import Turns
from warren.servers.storage.verifying import verify
from warren.servers.storage.writing import ADDRESS, Declared, Put
from warren.store import Store
from warren.tree import Ctl, Dir, Duration, Maybe, Node, Refused, Text, verb
from warren.tree.inflate import Guard
from warren.tree.node import QTFILE, Qid
from warren.tree.ports import Clock
from warren.tree.report import Count, attributes, counts, one

__all__ = ["GRACE", "Storage"]

GRACE: Final = Duration(3600.0)
_SIZE: Final = re.compile(r"(\d{1,15})([KMGT]?)", re.ASCII)
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Storage(Dir):
    """The tree over one directory. Names in the store begin with UNDER."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        store: Store,
        clock: Clock,
        *,
        under: str = "storage",
        quota: int = 16 << 30,
        largest: int = 4 << 30,
        blobs: int = 1_000_000,
        refs: int = 65_536,
        writers: int = 64,
        cache: int = 32 << 20,
        ratio: float = 10.0,
    ) -> None:
        self.shelf = Shelf(directory)
        self.clock, self.largest, self.most = clock, largest, blobs
        self.guard = Guard(most=largest, ratio=ratio)
        self.accounts = Accounts(store, under, quota, writers)
        self.turns = Turns()
        self.reads = Reads(self.shelf, cache, clock.monotonic)
        self.refs = Refs(store, under, self.turns, self.is_here, refs, self.waits)
        self.loaded = False
        self.blobs = self.bytes = 0
        self.puts = self.known = self.put_bytes = self.taken = self.taken_bytes = 0
        self._loading, self._collecting = trio.Lock(), False
        super().__init__(
            {
                "put": Put(self),
                "declared": Declared(self),
                "have": Have(self),
                "refs": self.refs,
                "ctl": StorageCtl(self),
                "quota": Text(self.quotas),
                "status": Text(self.status),
                **counts(self.measures),
            }
        )

    def close(self) -> None:
        """Let go of the directory."""
        self.shelf.close()

    def waits(self) -> Awaitable[None] | None:
        """None once the records are read; else what waits for that."""
        return None if self.loaded else self.ready()

    async def ready(self) -> None:
        """Read the records, if nobody did. Cancelled: the next who asks does it."""
        async with self._loading:
            if self.loaded:
                return
            there = await trio.to_thread.run_sync(self.shelf.tidied)
            await self.accounts.load(there.get)
            await self.refs.load()
            self.blobs, self.bytes = len(there), sum(there.values())
            self.loaded = True

    # Names

    def lookup(self, name: str) -> Maybe[Node | None]:
        return self.entries.get(name) or self.blob(name)

    def list(self) -> Maybe[Iterable[tuple[str, Node]]]:
        return self._list()

    async def _list(self) -> Iterable[tuple[str, Node]]:
        found = await self.all()
        return [*self.entries.items(), *((f"{ADDRESS}{hex}", Stored(self.reads, hex)) for hex in found)]

    async def all(self) -> Sequence[str]:
        """The digits of every blob, in order. Cancelled has no effect."""
        return await trio.to_thread.run_sync(lambda: sorted(b.hex for b in self.shelf.scan()))

    def blob(self, name: str) -> Stored | None:
        """The blob of that address. What is no address is not there."""
        hex = name.removeprefix(ADDRESS)
        if not name.startswith(ADDRESS) or not is_hex(hex):
            return None
        st = self.shelf.find(hex)
        return None if st is None else Stored(self.reads, hex, version_of(st))

    def is_here(self, hex: str) -> bool:
        return self.shelf.find(hex) is not None

    # Storing

    def now(self) -> float:
        return self.clock.now()

    def begin(self) -> Coming:
        if self.blobs >= self.most:
            raise Refused(507, f"{self.most} blobs are here, and no further one fits; let gc take some")
        return self.shelf.begin()

    async def store(self, coming: Coming, account: Account) -> None:
        """Charge for a finished body and give it its name. Cancelled: it was not done, or it was."""
        hex, size = coming.hex, coming.size
        async with self.turns(hex):
            # A record and no blob, or the other way round, is for a crash to leave and a start to mend.
            with trio.CancelScope(shield=True):
                charged = await self.accounts.charge(account, hex, size)
                old = self.shelf.find(hex)
                try:
                    await trio.to_thread.run_sync(self.shelf.place, coming)
                except OSError:
                    if charged:
                        await self.accounts.refund(account, hex, size)
                    raise
            self.puts += 1
            self.put_bytes += size
            if old is None:
                self.blobs += 1
                self.bytes += size
            else:
                self.known += 1
                self.bytes += size - old.st_size

    # Collecting

    async def collect(self, grace: float, dry: bool) -> str:
        """Take the blobs that nothing names and nobody put lately; tells how many went.

        Cancelled: those taken so far are gone, the others are not.
        """
        if self._collecting:
            raise Refused(409, "gc is at it; wait for it")
        self._collecting = True
        try:
            return await self._collect(grace, dry)
        finally:
            self._collecting = False

    async def _collect(self, grace: float, dry: bool) -> str:
        await self.ready()
        taken = size = kept = 0
        found = await trio.to_thread.run_sync(lambda: tuple(self.shelf.scan()))
        for n, lying in enumerate(found):
            if self._wanted(lying, grace) or not (dry or await self._take(lying.hex, grace)):
                kept += 1
            else:
                taken += 1
                size += lying.size
            if n % 256 == 255:
                await trio.lowlevel.checkpoint()
        await trio.to_thread.run_sync(self.shelf.sweep, "gone-")
        return f"{'would take' if dry else 'took'} blobs={taken} bytes={size}, kept blobs={kept}"

    def _wanted(self, lying: Lying, grace: float) -> bool:
        """Whether somebody may still want it: it is named, new, or in somebody's hands this moment."""
        new = self.now() - lying.mtime < grace
        return new or lying.hex in self.refs.named or self.turns.busy(lying.hex)

    async def _take(self, hex: str, grace: float) -> bool:
        async with self.turns(hex):
            # Much may have happened since the directory was looked at; nothing can while it is our turn.
            st = self.shelf.find(hex)
            if st is None or self.now() - st.st_mtime < grace or hex in self.refs.named:
                return False
            self.shelf.take_away(hex)
            self.blobs -= 1
            self.bytes -= st.st_size
            self.taken += 1
            self.taken_bytes += st.st_size
            with trio.CancelScope(shield=True):
                await self.accounts.forget(hex, st.st_size)
        return True

    # Told

    async def quotas(self) -> str:
        await self.ready()
        return self.accounts.lines()

    async def status(self) -> str:
        await self.ready()
        coming = sum(a.writing for a in self.accounts.accounts.values())
        return attributes(
            {"blobs": self.blobs, "bytes": self.bytes, "refs": len(self.refs.refs), "coming": coming,
             "collecting": self._collecting, "damaged": self.reads.damaged}
        )  # fmt: skip

    def measures(self) -> Iterable[Count]:
        reads = self.reads
        return [
            one("storage_blobs", "Blobs that are here.", self.blobs, "gauge"),
            one("storage_bytes", "Their bytes.", self.bytes, "gauge"),
            one("storage_refs", "Names that are set.", len(self.refs.refs), "gauge"),
            one("storage_puts_total", "Bodies stored.", self.puts),
            one("storage_put_bytes_total", "Their bytes.", self.put_bytes),
            one("storage_known_total", "Bodies that were here already.", self.known),
            one("storage_read_bytes_total", "Bytes asked for.", reads.given),
            one("storage_hashed_bytes_total", "Bytes compared with their hash.", reads.hashed),
            one("storage_cached_total", "Chunks given out of the cache.", reads.hits),
            one("storage_damaged_total", "Reads refused because of damage.", reads.damaged),
            one("storage_collected_total", "Blobs that gc took.", self.taken),
            one("storage_collected_bytes_total", "Their bytes.", self.taken_bytes),
            *self.guard.counts("storage"),
        ]


class Have(Dir):
    """What is here, by address."""

    def __init__(self, storage: Storage) -> None:
        super().__init__()
        self.storage = storage

    def lookup(self, name: str) -> Maybe[Node | None]:
        found = self.storage.blob(name)
        return None if found is None else Here(self.storage, found.hex)

    def list(self) -> Maybe[Iterable[tuple[str, Node]]]:
        return self._list()

    async def _list(self) -> Iterable[tuple[str, Node]]:
        return [(f"{ADDRESS}{hex}", Here(self.storage, hex)) for hex in await self.storage.all()]


class Here(Text):
    """Whether one blob is here. The number is the blob's with another bit in front."""

    def __init__(self, storage: Storage, hex: str) -> None:
        super().__init__(lambda: "1" if storage.is_here(hex) else "0")
        self._shelf, self._hex = storage.shelf, hex

    def qid(self) -> Qid:
        if not self._number:
            self._number = self._shelf.number(self._hex) ^ 3 << 62
        return Qid(QTFILE, 0, self._number)


class StorageCtl(Ctl):
    """What an operator does here."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    @verb
    async def gc(self, *, grace: Duration = GRACE, dry: bool = False) -> str:
        """Take the blobs that no name means and that were last put longer ago than grace."""
        if not 0 <= grace < float("inf"):
            raise Refused(400, "grace is a time from 0 on, such as 10m")
        return await self.storage.collect(grace, dry)

    @verb
    async def verify_(self, address: str) -> str:
        """Hash all of a blob, and say whether it is what was stored."""
        return await verify(self.storage.reads, self.storage.turns, hex_of(address))

    @verb
    async def quota(self, subject: str, size: str) -> str:
        """Let SUBJECT use SIZE bytes, such as 500M or 2T; `default` takes its own quota away."""
        await self.storage.ready()
        found = _SIZE.fullmatch(size)
        if size != "default" and found is None:
            raise Refused(400, f"{size[:40]!r} is no size; write a number, K M G or T behind it, or default")
        if not subject.isprintable() or not 0 < len(subject) <= 512:
            raise Refused(400, "a subject is a name as quota shows it, of 512 characters at most")
        limit = None if found is None else int(found[1]) * _UNITS[found[2]]
        await self.storage.accounts.set_limit(subject, limit)
        account = self.storage.accounts.of(subject)
        return f"{subject} may use {self.storage.accounts.limit(account)} bytes, and uses {account.used}"
