"""/db: the store of a role, for whoever keeps it.

    /status     Text    engine= generation= topics= keys= record_limit= upkeep= …
    /backup     read: a copy of the whole store, as it is when the file is opened
    /restore    Blob    write a copy back: the next start of the role takes it
    /ctl        Ctl     verbs: check, compact, restored
    /metrics  /stats    Text    what was written, what waits

    cat /db/backup >store.db;  cp store.db /db/restore

A copy is of one moment, and others write meanwhile. What is written to /restore is looked at whole, down to
the sum of each record, and refused or put aside; what is in force stays so until the role is started again.
Then the copy is the store, under a new generation: what was given out before, a fencing number or an
invitation, counts no more. What it replaces is kept beside it once.

A store in memory has nothing to copy. One in a cluster is copied with the cluster's own tools; whoever
brought it back writes `restored` to /ctl, which begins the new generation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol, TypeVar, runtime_checkable

import trio
from warren.store import Copy, Incoming, Store, StoreError, StoreFull, Upkeep
from warren.tree import Caller, Ctl, Dir, Handle, Maybe, Node, Refused, Text, verb
from warren.tree.node import BLOB, TEXT, Bytes, Changes
from warren.tree.report import Count, attributes, one
from warren.tree.report import counts as counted_in

T = TypeVar("T")

COPIES: Final = 2  # that may be open at once: each takes as much room as the store
NAMES: Final = 1000  # counted in /status; more are said to be more
NOTHING: Final = "this store keeps no files of its own; docs/stores.md says how it is copied"


@runtime_checkable
class Restorable(Protocol):
    """A store that others bring back, and that is then told so."""

    async def restored(self) -> int:
        """Begin the next generation, and answer it. Cancelled: begun or not."""


class StoreTree(Dir):
    """The tree."""

    def __init__(self, store: Store, tell: Callable[..., None] = lambda kind, **values: None) -> None:
        self.store, self.tell = store, tell
        self.upkeep = store if isinstance(store, Upkeep) else None
        self.copies = 0
        super().__init__(
            {
                "status": Text(self.status),
                "backup": Backup(self),
                "restore": Restore(self),
                "ctl": StoreCtl(self),
                **counted_in(self._counted),
            }
        )

    def kept(self) -> Upkeep:
        """The store, if it can be copied here."""
        if self.upkeep is None:
            raise Refused(405, NOTHING)
        return self.upkeep

    async def status(self) -> str:
        """Cancelled has no effect."""
        try:
            topics = await self.store.topics(limit=NAMES)
            keys = await self.store.keys(limit=NAMES)
        except StoreError as e:
            raise refusal(e) from None
        counted = self.store.statistics()
        return attributes(
            {
                "engine": type(self.store).__name__.removesuffix("Store").lower(),
                "generation": self.store.generation,
                "topics": f"{NAMES} or more" if len(topics) == NAMES else len(topics),
                "keys": f"{NAMES} or more" if len(keys) == NAMES else len(keys),
                "waiting": counted.waiting,
                "record_limit": self.store.limits.record,
                "upkeep": self.upkeep is not None,
            }
        )

    def _counted(self) -> Iterable[Count]:
        now = self.store.statistics()
        return (
            one("store_appended_total", "records appended", now.appended),
            one("store_trimmed_total", "records forgotten", now.trimmed),
            one("store_put_total", "values set", now.put),
            one("store_deleted_total", "keys removed", now.deleted),
            one("store_conflicts_total", "writes whose expectation did not hold", now.conflicts),
            one("store_waiting", "readers and watches that wait", now.waiting, "gauge"),
            one("store_watches", "watches that are open", now.watches, "gauge"),
            one("store_generation", "1, and one more for each restore", self.store.generation, "gauge"),
        )


class Backup(Node):
    """Each open takes a copy."""

    mode = 0o400
    word = TEXT

    def __init__(self, tree: StoreTree) -> None:
        self.tree = tree

    async def open(self, flags: int, caller: Caller) -> Handle:
        tree, upkeep = self.tree, self.tree.kept()
        if flags & 3:
            raise Refused(403, "a copy is read; write one back to restore")
        if tree.copies >= COPIES:
            raise Refused(429, f"{COPIES} copies are being read; wait for one to end", retry_after=5)
        tree.copies += 1
        try:
            copy = await upkeep.copy()
        except StoreError as e:
            tree.copies -= 1
            raise refusal(e) from None
        except BaseException:
            tree.copies -= 1
            raise
        tree.tell("store_copied", bytes=copy.size, by=caller.subject)
        return BackupHandle(tree, copy)


class BackupHandle(Handle):
    def __init__(self, tree: StoreTree, copy: Copy) -> None:
        self.tree, self._copy = tree, copy
        self._open = True

    def read(self, offset: int, count: int) -> Bytes:
        return self._copy.read_at(offset, count)

    def close(self) -> None:
        if self._open:
            self._open = False
            self.tree.copies -= 1
            self._copy.close()

    def abandon(self) -> None:
        self.close()


class Restore(Node):
    """A copy on its way back: in order, and committed whole by fsync or close."""

    mode = 0o600
    swallows_truncate = True
    word = BLOB

    def __init__(self, tree: StoreTree) -> None:
        self.tree = tree
        self.busy = False

    def open(self, flags: int, caller: Caller) -> Handle:
        self.tree.kept()
        if self.busy:
            raise Refused(429, "another copy is being written back; wait for it to end", retry_after=5)
        try:
            coming = self.tree.kept().incoming()
        except StoreError as e:
            raise refusal(e) from None
        self.busy = True
        return RestoreHandle(self, coming, caller.subject)

    def setattr(self, changes: Changes) -> Maybe[None]:
        """As for ctl: what a shell's redirection sends is harmless."""


class RestoreHandle(Handle):
    tells = True

    def __init__(self, node: Restore, coming: Incoming, subject: str) -> None:
        self.node, self._coming, self._subject = node, coming, subject
        self._written = 0
        self._open = True
        self._says = b""

    def write(self, offset: int, data: Bytes) -> int:
        if not self._open:
            raise Refused(409, "this copy was committed; open the file again for another")
        if offset != self._written:
            raise Refused(416, f"a copy is written in order; the next byte is {self._written}")
        try:
            self._coming.write(bytes(data))
        except StoreError as e:
            self.abandon()
            raise refusal(e) from None
        self._written += len(data)
        return len(data)

    def read(self, offset: int, count: int) -> Bytes:
        return self._says[offset : offset + count]

    def fsync(self) -> Maybe[None]:
        return self._commit() if self._open and self._written else None

    def close(self) -> Maybe[None]:
        if self._open and self._written:
            return self._commit()
        self.abandon()
        return None

    def abandon(self) -> None:
        if self._open:
            self._open = self.node.busy = False
            self._coming.abandon()

    async def _commit(self) -> None:
        """Judge it, and put it aside. Cancelled: it is put aside or not."""
        self._open = False
        try:
            said = await trio.to_thread.run_sync(self._coming.commit)
        except StoreError as e:
            raise refusal(e) from None
        finally:
            self.node.busy = False
            self._coming.abandon()
        self._says = f"{said}\n".encode()
        self.node.tree.tell("store_restore", bytes=self._written, by=self._subject)


class StoreCtl(Ctl):
    """How an operator keeps the store."""

    def __init__(self, tree: StoreTree) -> None:
        self.tree = tree

    @verb
    async def check(self) -> str:
        """Read all of it and compare each sum; answers what is wrong, a line each, or ok."""
        try:
            wrong = await self.tree.kept().integrity()
        except StoreError as e:
            raise refusal(e) from None
        for said in wrong:
            self.tree.tell("store_damaged", what=said)
        return "\n".join(wrong) or "ok"

    @verb
    async def compact(self) -> str:
        """Give back to the disk what is not used; writes wait meanwhile."""
        try:
            return await self.tree.kept().compact()
        except StoreError as e:
            raise refusal(e) from None

    @verb
    async def restored(self, caller: Caller) -> str:
        """Say that a cluster's store was brought back from a copy: a new generation begins."""
        store = self.tree.store
        if not isinstance(store, Restorable):
            raise Refused(405, "only a store in a cluster is told so; for a file, writing to restore does it")
        try:
            generation = await store.restored()
        except StoreError as e:
            raise refusal(e) from None
        self.tree.tell("store_restored", generation=generation, by=caller.subject)
        return f"generation {generation}"


def refusal(e: StoreError) -> Refused:
    """A store's refusal as one of the tree."""
    return Refused(507 if isinstance(e, StoreFull) else e.code, str(e))
