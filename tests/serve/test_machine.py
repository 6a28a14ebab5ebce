"""A served tree and a model of it side by side: random walks, opens, reads, writes, flushes and clunks.

Every step is one conversation inside trio.run, replayed from the beginning on a fresh tree when it shrinks:
Hypothesis draws the script, the model says what each reply must be, in every dialect.
"""

from dataclasses import dataclass, field

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked
from warren.p9 import messages as p9
from warren.p9.messages import ALL, PLAIN, Message, Rerror, Rlerror
from warren.tree import Dir, File, Queue, Sink, Stream

from tests.wire import Wire, served

LIMIT = 64
TREE = {(): "dir", ("a",): "dir", ("a", "file"): "file", ("file",): "file", ("in",): "sink",
        ("out",): "stream"}  # fmt: skip
NAMES = ("a", "file", "in", "out", "..", "no")


class Bytes(File):
    """A small file that grows."""

    def __init__(self) -> None:
        self.body = bytearray()
        super().__init__(self.get, self.put, lambda: len(self.body), self.cut)

    def get(self, offset: int, count: int) -> bytes:
        return bytes(self.body[offset : offset + count])

    def put(self, offset: int, data: bytes | bytearray | memoryview) -> int:
        self.body.extend(bytes(max(0, offset - len(self.body))))
        self.body[offset : offset + len(data)] = data
        return len(data)

    def cut(self, size: int) -> None:
        del self.body[size:]


def tree() -> Dir:
    queue = Queue(depth=4)
    return Dir({"a": Dir({"file": Bytes()}), "file": Bytes(), "in": Sink(queue.put), "out": Stream(queue)})


@dataclass
class Opened:
    path: tuple[str, ...]
    mode: int | None = None  # how it is open: 0 reads, 1 writes, 2 both
    follows: tuple[int, int] | None = None


@dataclass
class Model:
    """What must be true, in the plainest terms."""

    fids: dict[int, Opened] = field(default_factory=lambda: {0: Opened(())})
    bodies: dict[tuple[str, ...], bytes] = field(default_factory=dict)
    queue: list[bytes] = field(default_factory=list)
    parked: dict[int, int] = field(default_factory=dict)  # tag → fid, in the order they came

    def walk(self, fid: int, newfid: int, names: list[str]) -> int | None:
        """How many names are followed; None is a refusal."""
        f = self.fids.get(fid)
        if f is None or (newfid != fid and newfid in self.fids) or (newfid == fid and f.mode is not None):
            return None
        if names and f.mode is not None:
            return -1  # the server may say either; see the test
        at, count = f.path, 0
        for name in names:
            below = at[:-1] if name == ".." else (*at, name)
            if below not in TREE:
                break
            at, count = below, count + 1
        if names and not count:
            return None
        if count == len(names):
            self.fids[newfid] = Opened(at)
        return count

    def open(self, fid: int, mode: int) -> bool:
        f = self.fids.get(fid)
        if f is None or f.mode is not None:
            return False
        kind = TREE[f.path]
        if kind == "dir" and mode:
            return False
        f.mode = mode
        return True


names = st.lists(st.sampled_from(NAMES), max_size=4)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("walk"), st.integers(0, 4), st.integers(0, 4), names),
        st.tuples(st.just("open"), st.integers(0, 4), st.integers(0, 2)),
        st.tuples(st.just("read"), st.integers(0, 4), st.integers(0, LIMIT), st.integers(1, 16)),
        st.tuples(
            st.just("write"), st.integers(0, 4), st.integers(0, LIMIT), st.binary(min_size=1, max_size=8)
        ),
        st.tuples(st.just("flush"), st.integers(0, 200)),
        st.tuples(st.just("clunk"), st.integers(0, 4)),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck), database=None)
@given(st.sampled_from(ALL), steps)
def test_the_server_does_what_the_model_says(version: str, script: list[tuple[object, ...]]) -> None:
    trio.run(play, version, script, clock=MockClock(autojump_threshold=0))


async def play(version: str, script: list[tuple[object, ...]]) -> None:
    async with served(tree()) as service:
        wire = await service.dial(version)
        run = Run(wire, Model())
        for tag, (what, *words) in enumerate(script, 10):
            await getattr(run, what)(tag, *words)  # type: ignore[call-overload]
        assert service.export.statistics()["parked"] == len(run.model.parked)
        assert service.export.statistics()["fids"] == len(run.model.fids)
        await wire.stream.aclose()
        await wait_all_tasks_blocked()
        assert not service.export.sessions


def refused(m: Message) -> bool:
    return isinstance(m, Rerror | Rlerror)


class Run:
    """One script: sends each step, and holds the reply against the model."""

    def __init__(self, wire: Wire, model: Model) -> None:
        self.wire, self.model = wire, model
        self.wants: dict[int, tuple[int, int]] = {}  # what a parked read asked for

    async def walk(self, tag: int, fid: int, newfid: int, names: list[str]) -> None:
        model = self.model
        expected = model.walk(fid, newfid, names)
        reply = await self.wire.ask(p9.Twalk(fid, newfid, names), tag)
        if expected == -1:
            if isinstance(reply, p9.Rwalk) and len(reply.qids) == len(names):
                f = model.fids[fid]
                closed = Opened(f.path)
                model.fids[fid] = closed
                model.walk(fid, newfid, names)
                model.fids[fid] = f
        elif expected is None:
            assert refused(reply), reply
        else:
            assert isinstance(reply, p9.Rwalk), reply
            assert len(reply.qids) == expected

    async def open(self, tag: int, fid: int, mode: int) -> None:
        plain = self.wire.codec.name == PLAIN
        reply = await self.wire.ask(p9.Topen(fid, mode) if plain else p9.Tlopen(fid, mode), tag)
        assert refused(reply) != self.model.open(fid, mode), reply

    async def read(self, tag: int, fid: int, offset: int, count: int) -> None:
        model, f = self.model, self.model.fids.get(fid)
        await self.wire.send(p9.Tread(fid, offset, count), tag=tag)
        if f is None or f.mode in (None, 1):
            assert refused(await self.wire.reply())
            return
        kind = TREE[f.path]
        if kind == "stream":
            if f.follows == (offset, count):
                f.follows = None
                expected = b""
            elif model.queue:
                expected = self.take(f, offset, count)
            else:
                await wait_all_tasks_blocked()
                model.parked[tag] = fid
                self.wants[tag] = (offset, count)
                return
            reply = await self.wire.reply()
            assert isinstance(reply, p9.Rread), reply
            assert bytes(reply.data) == expected
            return
        reply = await self.wire.reply()
        if kind == "dir":
            assert refused(reply) or (self.wire.codec.name == PLAIN and isinstance(reply, p9.Rread))
        else:
            body = model.bodies.get(f.path, b"") if kind == "file" else b""
            assert isinstance(reply, p9.Rread), reply
            assert bytes(reply.data) == body[offset : offset + count]

    def take(self, f: Opened, offset: int, count: int) -> bytes:
        record = self.model.queue.pop(0)
        piece = record[:count]
        f.follows = (offset + len(piece), count - len(piece))
        return piece

    async def write(self, tag: int, fid: int, offset: int, data: bytes) -> None:
        model, f = self.model, self.model.fids.get(fid)
        await self.wire.send(p9.Twrite(fid, offset, data), tag=tag)
        reply = await self.wire.reply()
        if f is None or f.mode in (None, 0) or TREE[f.path] == "stream":
            assert refused(reply), reply
            return
        if TREE[f.path] == "file":
            body = model.bodies.get(f.path, b"").ljust(offset, b"\0")
            model.bodies[f.path] = body[:offset] + data + body[offset + len(data) :]
        elif len(model.queue) >= 4:
            assert refused(reply)
            return
        else:
            model.queue.append(data)
        assert isinstance(reply, p9.Rwrite), reply
        assert reply.count == len(data)
        if TREE[f.path] == "sink" and model.parked:
            waiting = next(iter(model.parked))
            reader = model.fids[model.parked.pop(waiting)]
            got = await self.wire.reply()
            assert isinstance(got, p9.Rread)
            assert got.tag == waiting, "the first that waited is served first"
            assert bytes(got.data) == self.take(reader, *self.wants.pop(waiting))

    async def flush(self, tag: int, old: int) -> None:
        parked = list(self.model.parked)
        old = parked[old % len(parked)] if parked and old % 2 else old
        reply = await self.wire.ask(p9.Tflush(old if old != tag else 1), tag)
        assert isinstance(reply, p9.Rflush)
        self.model.parked.pop(old, None)

    async def clunk(self, tag: int, fid: int) -> None:
        if fid == 0:
            return  # everything starts there
        model = self.model
        cut = [t for t, f in model.parked.items() if f == fid]
        await self.wire.send(p9.Tclunk(fid), tag=tag)
        found = {m.tag: m for m in await self.wire.replies(1 + len(cut))}
        assert refused(found.pop(tag)) == (fid not in model.fids)
        model.fids.pop(fid, None)
        assert sorted(found) == sorted(cut)
        for t in cut:
            assert refused(found[t])
            del model.parked[t]
