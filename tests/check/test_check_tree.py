"""The servers there are, and trees with a defect, each seen by the rule that forbids it."""

import itertools
import os
import shutil
import stat as S
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock
from warren.check.tree import Feed, RootMaker, check_tree
from warren.p9.fields import Qid
from warren.p9.messages import PLAIN, WARREN
from warren.servers.demo import Demo
from warren.servers.disk import Disk
from warren.servers.disk.handle import OpenFile
from warren.servers.disk.node import Entry
from warren.tree import (
    Attr,
    Bytes,
    Call,
    Caller,
    Changes,
    Clone,
    Ctl,
    Cursor,
    Dir,
    Ended,
    File,
    Handle,
    Life,
    Maybe,
    Node,
    Queue,
    Refused,
    Sink,
    Stream,
    Text,
    WouldBlock,
    absent,
    verb,
)
from warren.tree.locks import Locks


def made(root: Callable[[], Node]) -> RootMaker:
    @asynccontextmanager
    async def make() -> AsyncIterator[Node]:
        yield root()

    return make


FEEDS: dict[str, Feed] = {
    "/recv": lambda files: files.write("/send", b"x"),
    "/events": lambda files: files.write("/ctl", b"say hello\n"),
}


async def test_the_demonstration_tree(autojump_clock: MockClock) -> None:
    await check_tree(made(Demo), feeds=FEEDS)


def fill(path: Path) -> Path:
    """A directory with one of everything."""
    for name in ("a/b", "empty", "w"):
        (path / name).mkdir(parents=True)
    (path / "a/file").write_bytes(bytes(range(256)) * 40)
    (path / "a/b/file").write_bytes(b"x")
    for n in range(12):
        (path / f"a/b/{n}").write_bytes(b"%d" % n)
    (path / "nothing").touch()
    (path / "link").symlink_to("a/file")
    (path / "hard").hardlink_to(path / "a/file")
    os.mkfifo(path / "fifo")
    return path


async def test_a_disk(tmp_path: Path) -> None:
    fill(tmp_path)
    await check_tree(made(lambda: Disk(tmp_path)), writable="/w")
    assert not list((tmp_path / "w").iterdir()), "the suite removes what it made"


async def test_a_disk_that_is_read_only(tmp_path: Path) -> None:
    fill(tmp_path)
    await check_tree(made(lambda: Disk(tmp_path, read_only=True)), dialects=[PLAIN, WARREN])


async def test_a_disk_that_is_not_said_to_be_writable_must_not_be(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"What a file does not support .*: /: create was not refused"):
        await check_tree(made(lambda: Disk(tmp_path)), dialects=[PLAIN])


# Defects of synthetic trees. What is not defective is as small as can be.


def value() -> Text:
    return Text(lambda: "some value")


class NewNumbers(Text):
    def qid(self) -> Qid:
        return Qid(0, 0, next(_numbers))


_numbers = itertools.count(10**6)


class OneNumber(Text):
    def qid(self) -> Qid:
        return Qid(0, 0, 77)


class Versioned(Text):
    def qid(self) -> Qid:
        return super().qid()._replace(version=3)


class WrongMode(Text):
    def attr(self) -> Maybe[Attr]:
        return Attr(self.qid(), S.S_IFDIR | 0o555)


class Ghosts(Dir):
    def list(self) -> Maybe[Iterable[tuple[str, Node]]]:
        return [*self.entries.items(), ("ghost", value())]


class Hides(Dir):
    def list(self) -> Maybe[Iterable[tuple[str, Node]]]:
        return []


class Twice(Dir):
    def list(self) -> Maybe[Iterable[tuple[str, Node]]]:
        return [*self.entries.items()] * 2


class Guesses(Dir):
    def lookup(self, name: str) -> Maybe[Node | None]:
        return next((node for n, node in self.entries.items() if n.lower() == name.lower()), None)


class Denies(Dir):
    def lookup(self, name: str) -> Maybe[Node | None]:
        if name not in self.entries and name.startswith("no-such"):
            raise Refused(403, "there is nothing")
        return self.entries.get(name)


class Hollow(Text):
    def walk(self, name: str) -> Maybe[Node]:
        raise absent()


class Another(Dir):
    """Lists other nodes than it walks to."""

    def list(self) -> Maybe[Iterable[tuple[str, Node]]]:
        return [(name, value()) for name in self.entries]


class Crashes(Dir):
    def mkdir(self, name: str, mode: int, gid: int, caller: Caller) -> Maybe[Node]:
        raise ValueError("out of cheese")


class Nameless(Dir):
    def mkdir(self, name: str, mode: int, gid: int, caller: Caller) -> Maybe[Node]:
        raise OSError(98765, "a number of our own")


class Accepts(Dir):
    def mkdir(self, name: str, mode: int, gid: int, caller: Caller) -> Maybe[Node]:
        return Dir()


class Leaks(Text):
    """Opens a descriptor for every client, and forgets it."""

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        _leaked.append(os.open("/dev/null", os.O_RDONLY))
        return super().open(flags, caller)


_leaked: list[int] = []


class TakesWrites(Text):
    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return Handle()


class Keeps(Text):
    kept: list[Handle]

    def __init__(self) -> None:
        super().__init__(lambda: "some value")
        self.kept = []

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        handle = super().open(flags, caller)
        assert isinstance(handle, Handle)
        self.kept.append(handle)
        return handle


DATA = bytes(range(256)) * 20
NAMES = "What is listed can be walked to"
KINDS = "Listing, walking and attributes agree"
READS = "Reading in odd sizes gives the same bytes as reading whole"
ABSENT = "What a file does not support"


def stub(offset: int, count: int) -> bytes:
    if offset >= len(DATA):
        raise Refused(416, "that is past the end")
    return DATA[offset : offset + count]


@pytest.mark.parametrize(
    ("root", "rule"),
    [
        (lambda: Dir({"x": NewNumbers(str)}), r"A qid names one node.*: /x: its qid is not stable"),
        (
            lambda: Dir({"x": OneNumber(str), "y": OneNumber(str)}),
            r"A qid names one node.*: /y: .* also that of /x",
        ),
        (lambda: Dir({"x": Versioned(str)}), rf"{KINDS}.*: /x: the qid.version"),
        (lambda: Dir({"x": WrongMode(str)}), rf"{KINDS}.*: /x: that mode 40555 is a directory"),
        (lambda: Dir({"d": Another({"x": value()})}), rf"{KINDS}.*: /d/x: the qid.path from listing"),
        (lambda: Ghosts({"x": value()}), rf"{NAMES}.*: /ghost: it is listed and cannot be walked to"),
        (
            lambda: Dir({"d": Hides({"x": value()})}),
            rf"{NAMES}.*: /d/x: it can be walked to and is not listed",
        ),
        (lambda: Dir({"d": Twice({"x": value()})}), rf"{NAMES}.*: /d: 'x' is listed more than once"),
        (lambda: Dir({"d": Guesses({"x": value()})}), rf"{NAMES}.*: /d/X: a walk to what is nearly a name"),
        (lambda: Denies({"x": value()}), r"A name that is not there is ENOENT.*refused with EACCES"),
        (
            lambda: Dir({"x": Hollow(str)}),
            r"a walk through a file ENOTDIR .*: /x/no-such.*refused with ENOENT",
        ),
        (lambda: Dir({"x": File(lambda offset, count: DATA[:count])}), rf"{READS}.*: /x: "),
        (lambda: Dir({"x": File(stub)}), rf"{READS}.*: unexpected OSError: .*416 bad_offset.*'/x'"),
        (
            lambda: Dir({"x": File(lambda o, n: DATA[o : o + n], size=lambda: 9)}),
            rf"{READS}.*: /x: the number of",
        ),
        (
            lambda: Dir({"x": TakesWrites(str)}),
            r"What cannot be written is refused.*: /x: an open with flags 1 ",
        ),
        (lambda: Dir({"x": File(lambda o, n: DATA[o : o + n + 1])}), r"/x: Tread ended in 500"),
        (lambda: Dir({"d": Crashes()}), rf"{ABSENT}.*: /d/?.*Tmkdir ended in 500: .*out of cheese"),
        (lambda: Dir({"d": Nameless()}), rf"{ABSENT}.*: /d: Tmkdir ended in 500: .*unknown error"),
        (lambda: Dir({"d": Accepts()}), rf"{ABSENT}.*: /d: mkdir was not refused"),
        (
            lambda: Dir({"x": Leaks(str)}),
            r"A client that leaves without a word.*one more client left 1 ",
        ),
        (lambda: Dir({"x": Keeps()}), r"A client that leaves without a word.*: /x: its handle is kept"),
    ],
)
async def test_a_defect_of_a_tree_is_seen(
    root: Callable[[], Node], rule: str, autojump_clock: MockClock
) -> None:
    with pytest.raises(AssertionError, match=rule):
        await check_tree(made(root), dialects=[WARREN])
    while _leaked:
        os.close(_leaked.pop())


class Lamp(Ctl):
    """A ctl file that is as it should be."""

    @verb
    def light(self, colour: str = "white") -> None:
        """Burn in that COLOUR."""

    @verb
    def douse(self) -> None:
        """Burn no more."""


class Hums(Lamp):
    def help(self) -> str:
        return "light it, or leave it dark\n"


class Secretive(Lamp):
    def help(self) -> str:
        return "douse  # Burn no more.\n"


class Lenient(Lamp):
    def _call(self, words: list[str], number: int) -> Call:
        return super()._call(["douse"] if words[0] not in self.verbs else words, number)


class Terse(Lamp):
    def parse(self, data: bytes) -> list[Call]:
        try:
            return super().parse(data)
        except Refused:
            raise Refused(400, "no") from None


class Literal(Lamp):
    """Takes no comments."""

    def parse(self, data: bytes) -> list[Call]:
        return super().parse(data.replace(b"#", b""))


class Strict(Lamp):
    swallows_truncate = False

    def setattr(self, changes: Changes) -> Maybe[None]:
        raise Refused(405, "this file has no attributes")


class Unguarded(Lamp):
    is_ctl = False


class OpenToAll(Clone):
    is_ctl = False


def unguarded() -> Node:
    root = Dir({})
    clone = OpenToAll(lambda: Life("1", {"ctl": Lamp()}, lambda: None))
    root.entries = {"clone": clone, "1": clone.make()}  # type: ignore[dict-item]
    return root


def immortal() -> Node:
    root = Dir({})
    entries: dict[str, Node] = {}

    def make() -> Life:
        name = str(len(entries))
        entries[name] = life = Life(name, {"ctl": Lamp()}, lambda: None)
        return life

    entries["clone"] = Clone(make)
    root.entries = entries
    return root


@pytest.mark.parametrize(
    ("ctl", "rule"),
    [
        (Hums, r"Reading a ctl file lists every verb.*: /ctl: the line 'light it, or leave it dark'"),
        (Secretive, r"Reading a ctl file lists every verb.*: /ctl: the verbs that its help lists"),
        (Lenient, r"An unknown verb is refused with 400.*: /ctl: the write of .* was not refused"),
        (Terse, r"An unknown verb is refused with 400.*: /ctl: .* does not name the verb light"),
        (Literal, r"Help that is written back as comments.*: unexpected OSError: .* '/ctl'"),
        (Strict, r"What `echo` sends to a ctl file is accepted.*'/ctl'"),
        (Unguarded, r"What `echo` sends to a ctl file is accepted.*you may not open /ctl"),
    ],
)
async def test_a_defect_of_a_ctl_file_is_seen(
    ctl: Callable[[], Ctl], rule: str, autojump_clock: MockClock
) -> None:
    with pytest.raises(AssertionError, match=rule):
        await check_tree(made(lambda: Dir({"ctl": ctl()})), dialects=[WARREN])


async def test_a_life_without_end_is_seen(autojump_clock: MockClock) -> None:
    with pytest.raises(
        AssertionError, match=r"Opening a clone file makes a directory that lives.*not refused"
    ):
        await check_tree(made(immortal), dialects=[WARREN])


async def test_a_clone_file_that_anybody_may_open_is_seen(autojump_clock: MockClock) -> None:
    with pytest.raises(AssertionError, match=r"Without the right to a verb.*: /clone: an open with flags 0"):
        await check_tree(made(unguarded), dialects=[WARREN])


async def test_a_ctl_file_without_errstr_is_seen(autojump_clock: MockClock) -> None:
    class Own(Dir):
        """A root that walks in a way of its own: nothing is laid over it."""

        def walk(self, name: str) -> Maybe[Node]:
            return super().walk(name)

    with pytest.raises(
        AssertionError, match=r"/dev/errstr is there if and only if.*: its being there is False"
    ):
        await check_tree(made(lambda: Own({"ctl": Lamp()})), dialects=[WARREN])


class Once(Cursor):
    """A generator in all but name: cancelled once, it is finished for good."""

    def __init__(self, queue: Queue) -> None:
        self.inner = queue()
        self.over = False

    def next_nowait(self) -> bytes:
        if self.over:
            raise Ended
        return self.inner.next_nowait()

    async def next(self) -> bytes:
        try:
            return await self.inner.next()
        except trio.Cancelled:
            self.over = True
            raise


class Hasty(Once):
    """Takes the record, then lets others run."""

    async def next(self) -> bytes:
        record = await self.inner.next()
        await trio.lowlevel.checkpoint()
        return record


class Grabs(Once):
    """A cancelled read takes whatever comes next."""

    owed = 0

    def next_nowait(self) -> bytes:
        record = self.inner.next_nowait()
        if Grabs.owed:
            Grabs.owed -= 1
            return self.next_nowait()
        return record

    async def next(self) -> bytes:
        try:
            while True:
                await self.inner.queue._readers.park()  # type: ignore[attr-defined]
                try:
                    return self.next_nowait()
                except WouldBlock:
                    continue
        except trio.Cancelled:
            Grabs.owed += 1
            raise


class Stubborn(Once):
    """Not to be woken."""

    async def next(self) -> bytes:
        with trio.move_on_after(5, shield=True):
            return await self.inner.next()
        await trio.lowlevel.checkpoint()
        raise Ended


@pytest.mark.parametrize(
    ("cursor", "rule"),
    [
        (Once, r"A flush ends a parked read at once.*: /recv: after a flushed read the stream has ended"),
        (Stubborn, r"A flush ends a parked read at once.*: /recv: a flushed read was not settled at once"),
        (Hasty, r"A flushed read takes no record.*: /recv: the number of records"),
        (Grabs, r"A flushed read takes no record.*: /recv: the number of records"),
    ],
)
async def test_a_defect_of_a_stream_is_seen(
    cursor: Callable[[Queue], Cursor], rule: str, autojump_clock: MockClock
) -> None:
    def root() -> Node:
        queue = Queue(64)
        Grabs.owed = 0
        return Dir({"send": Sink(queue.put), "recv": Stream(lambda: cursor(queue))})

    feeds: dict[str, Feed] = {"/recv": FEEDS["/recv"]}
    with pytest.raises(AssertionError, match=rule):
        await check_tree(made(root), dialects=[WARREN], feeds=feeds, patience=10)


# Defects of stored trees, seeded into the disk.


def never(*_: Any, **__: Any) -> None:
    """Does nothing and says that it was done."""


def always(*_: Any, **__: Any) -> bool:
    return True


_write, _create = OpenFile.write, Entry.create


def write_at_the_beginning(self: OpenFile, offset: int, data: Bytes) -> Maybe[int]:
    return _write(self, 0, data)


def grant(self: Locks, key: object, lock: object, tell: Callable[[None], None]) -> None:
    tell(None)


def one_version(self: Entry) -> Qid:
    return Qid(self.qtype, 1, self._number)


def cut(self: Entry, name: str, *rest: Any) -> Any:
    return _create(self, name.strip(), *rest)


def remove_all(self: Entry, name: str, directory: bool | None, expect: Node | None = None) -> None:
    path = f"/proc/self/fd/{self.fd}/{name}"
    if os.path.isdir(path) and directory is not False:
        shutil.rmtree(path)
    else:
        os.unlink(path)


def exclusive(self: Entry, name: str, flags: int, *rest: Any) -> Any:
    return _create(self, name, flags & ~0o200, *rest)


def no_append(self: OpenFile, offset: int, data: Bytes) -> Maybe[int]:
    if offset > 1 << 40:
        return _write(self, offset, data)
    fd = os.open(f"/proc/self/fd/{self.fd}", os.O_WRONLY)
    try:
        return os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("kind", "name", "defect", "rule"),
    [
        (OpenFile, "write", write_at_the_beginning, r"A file is made once.*: /w/check.*/file: what"),
        (Entry, "qid", one_version, r"A file is made once.*its qid by open, against getattr"),
        (Entry, "setattr", never, r"Truncation cuts.*: /w/check.*/file: what a truncation to 4 leaves"),
        (
            Entry,
            "rename",
            never,
            r"A rename moves a file within its directory.*/old: the walk to the old name",
        ),
        (Entry, "unlink", remove_all, r"A directory is made once, and removed only when it is empty"),
        (Entry, "create", cut, r"Names are bytes"),
        (Entry, "create", exclusive, r"A file is made once.*: O_CREAT\|O_EXCL on a name that is taken"),
        (OpenFile, "write", no_append, r"With O_APPEND a write goes to the end"),
        (Entry, "setxattr", never, r"Extended attributes.*: the list of its attributes"),
        (Entry, "lock", always, r"A lock keeps other sessions out"),
        (Entry, "unlock", never, r"A lock keeps other sessions out.*could not be locked"),
        (
            Locks,
            "enqueue",
            grant,
            r"Who waits for a lock gets it.*: what came of waiting for a lock",
        ),
    ],
)
async def test_a_defect_of_a_stored_tree_is_seen(
    kind: type, name: str, defect: object, rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "w").mkdir()
    monkeypatch.setattr(kind, name, defect)
    with pytest.raises(AssertionError, match=rule):
        await check_tree(made(lambda: Disk(tmp_path)), writable="/w", dialects=[WARREN])
