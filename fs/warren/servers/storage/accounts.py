"""Who is charged for what: the owners of the blobs, and their quotas. Kept in the store.

    NAME/who/<id>           {"subject": …, "limit": …}; the id is made from the subject
    NAME/blob/<hex>/<id>    that subject put this blob; nothing more

Everybody who put a blob is charged with all of it, though it lies on the disk once. So what an account says
depends on what its owner did and on nobody else, and cannot be used to find out what others have. Sums are
made at the start, from the records and the files; a record without a file is of a put that a crash cut
short, and goes.

A body is charged while it comes: many unfinished ones cannot pass a quota that a finished one could not.
"""

import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio
from warren.store import Conflict, NotFound, Store, StoreError
from warren.tree import Refused
from warren.tree.report import pairs

T = TypeVar("T")
SUBJECTS: Final = 4096
_PAGE: Final = 1000


async def kept(coming: Awaitable[T]) -> T:
    """What a store does, its refusals in our words."""
    try:
        return await coming
    except StoreError as e:
        raise Refused(e.code, f"the index: {e}") from None


async def each_key(store: Store, under: str, work: Callable[[str], Awaitable[None]]) -> None:
    """WORK for every key at or under a name, page by page. Cancelled: for some of them."""
    after = ""
    while page := await kept(store.keys(under, after=after, limit=_PAGE)):
        for key in page:
            await work(key)
        after = page[-1]


def id_of(subject: str) -> str:
    """A subject as a part of a key."""
    return hashlib.sha256(subject.encode()).hexdigest()[:32]


class Account:
    """One subject's."""

    def __init__(self, subject: str, limit: int | None = None) -> None:
        self.subject, self.limit = subject, limit
        self.used = self.blobs = 0
        self.coming = 0  # bytes of bodies that are not committed yet
        self.writing = 0  # how many of those there are
        self.recorded = False


class Accounts:
    """All of them. `load` comes before anything else."""

    def __init__(self, store: Store, under: str, quota: int, writers: int) -> None:
        self.quota, self.writers = quota, writers
        self.accounts: dict[str, Account] = {}
        self._store, self._who, self._blob = store, f"{under}/who", f"{under}/blob"
        self._ids: dict[str, Account] = {}

    async def load(self, size_of: Callable[[str], int | None]) -> None:
        """Read the records. SIZE_OF tells a blob's size, or None where there is none.

        Cancelled: it must be called again.
        """
        self.accounts.clear()
        self._ids.clear()

        async def read(key: str) -> None:
            said = json.loads((await kept(self._store.get(key))).value)
            account = self._open(said["subject"])
            account.limit, account.recorded = said["limit"], True

        async def sum_up(key: str) -> None:
            hex, id = key.rsplit("/", 2)[1:]
            size, owner = size_of(hex), self._ids.get(id)
            if size is None or owner is None:
                await self._delete(key)
            else:
                owner.used += size
                owner.blobs += 1

        await each_key(self._store, self._who, read)
        await each_key(self._store, self._blob, sum_up)

    def of(self, subject: str) -> Account:
        """The account of a subject, made if need be."""
        return self.accounts.get(subject) or self._open(subject)

    def _open(self, subject: str) -> Account:
        if len(self.accounts) >= SUBJECTS:
            raise Refused(507, f"{SUBJECTS} subjects have accounts here, and no further one fits")
        account = self.accounts[subject] = self._ids[id_of(subject)] = Account(subject)
        return account

    def limit(self, account: Account) -> int:
        return self.quota if account.limit is None else account.limit

    # A body that comes

    def begin(self, subject: str) -> Account:
        """A further body of that subject, or the refusal that too many are coming."""
        account = self.of(subject)
        share = max(1, self.writers // 4)
        if account.writing >= share:
            raise Refused(429, f"{share} puts of yours are under way; finish one", retry_after=1)
        if sum(a.writing for a in self.accounts.values()) >= self.writers:
            raise Refused(429, f"{self.writers} puts are under way; try again", retry_after=1)
        account.writing += 1
        return account

    def reserve(self, account: Account, size: int) -> None:
        """Room for further bytes, or the refusal that the quota is used up."""
        limit = self.limit(account)
        if account.used + account.coming + size > limit:
            raise Refused(
                507, f"your quota is {limit} bytes, {account.used} are used and {account.coming} are coming; "
                "let gc take what nothing names any more, or have the quota raised", reason="over_quota",
            )  # fmt: skip
        account.coming += size

    def end(self, account: Account, size: int) -> None:
        """The body is charged for or discarded: its SIZE reserved bytes are no longer coming."""
        account.coming -= size
        account.writing -= 1

    # Records

    async def charge(self, account: Account, hex: str, size: int) -> bool:
        """Record that the subject put this blob. False if that was known, and nothing is charged again.

        Cancelled: it may be recorded without being charged; call it where nothing cancels.
        """
        if not account.recorded:
            await self._record(account)
        try:
            await self._store.put(self._key(hex, account), b"", expect=0)
        except Conflict:
            return False
        except StoreError as e:
            raise Refused(e.code, f"the index: {e}") from None
        account.used += size
        account.blobs += 1
        return True

    async def refund(self, account: Account, hex: str, size: int) -> None:
        """Undo `charge`. Cancelled as there."""
        await self._delete(self._key(hex, account))
        account.used -= size
        account.blobs -= 1

    async def forget(self, hex: str, size: int) -> None:
        """The blob is gone: nobody is charged for it. Cancelled: the next start finishes it."""

        async def release(key: str) -> None:
            await self._delete(key)
            if owner := self._ids.get(key.rpartition("/")[2]):
                owner.used -= size
                owner.blobs -= 1

        await each_key(self._store, f"{self._blob}/{hex}", release)

    async def set_limit(self, subject: str, limit: int | None) -> None:
        """Give a subject a quota of its own, or with None the common one. Cancelled: done or not."""
        account = self.of(subject)
        old, account.limit = account.limit, limit
        try:
            await self._record(account)
        except BaseException:
            account.limit = old
            raise

    async def _record(self, account: Account) -> None:
        said = json.dumps({"subject": account.subject, "limit": account.limit})
        await kept(self._store.put(f"{self._who}/{id_of(account.subject)}", said.encode()))
        account.recorded = True

    async def _delete(self, key: str) -> None:
        try:
            await self._store.delete(key)
        except NotFound:
            await trio.lowlevel.checkpoint_if_cancelled()
        except StoreError as e:
            raise Refused(e.code, f"the index: {e}") from None

    def _key(self, hex: str, account: Account) -> str:
        return f"{self._blob}/{hex}/{id_of(account.subject)}"

    def lines(self) -> str:
        """As the file `quota` shows them."""
        return "".join(
            pairs({"subject": a.subject, "used": a.used, "blobs": a.blobs, "coming": a.coming,
                   "limit": self.limit(a)}) + "\n"
            for a in sorted(self.accounts.values(), key=lambda a: a.subject)
        )  # fmt: skip
