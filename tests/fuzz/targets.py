"""What is fuzzed. Each target takes any bytes and raises only if an invariant broke.

`decoder`: the first byte picks the dialect, the rest is a frame. Whatever is taken for a message must be
said again by the same bytes, and arrive the same one byte at a time.

`session`: a script for a client of the demonstration tree. The first byte picks dialect and msize, then
steps follow, each `what length bytes`: a request type with its payload, framed properly so that the fuzzer
spends its time behind the framing, or one of the steps below. Whatever the client does, replies are whole,
fit msize and answer tags that were asked; nothing is an internal error; and at the end nothing is left of
the client: no task, no buffer, no object.
"""

import sys
import warnings
from collections import Counter

import trio
from trio.testing import wait_all_tasks_blocked
from warren.auth.rights import Policy
from warren.p9.codec import HEADER, MINFRAME, BadFrame, dialect
from warren.p9.fields import NOFID, NONUNAME, NOTAG
from warren.p9.messages import ALL, MESSAGES, PLAIN, Tattach, Tversion
from warren.p9.server import Server
from warren.serve.connection import Connection
from warren.serve.export import Export, Limits
from warren.serve.pool import Pool
from warren.servers.demo import Demo
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing

KINDS = sorted(cls.type for name, cls in MESSAGES.items() if name[0] == "T")
RAW, PAUSE, POLICY = 255, 254, 253
POLICIES = (
    "any read,write,create,remove,ctl /**",
    "any ctl /ctl#say",
    "any read /**",
    "any write,ctl /*",
)
MSIZES = (8192, 256, 1 << 20, 512)
STEPS = 64
LIMITS = Limits(fids=16, running=3, waiting=3, parked=3, unread=1 << 16, buffers=1 << 22)


def decoder(data: bytes) -> None:
    if not data:
        return
    codec, frame = dialect(ALL[data[0] % 3]), data[1:]
    try:
        m = codec.parse(frame)
    except BadFrame:
        return
    assert codec.pack(m, m.tag) == frame
    if m.type == Tversion.type:
        return
    pool = Pool(1 << 22)
    half = Server(pool)
    for version in half.requests(memoryview(dialect(PLAIN).pack(Tversion(1 << 20, codec.name), NOTAG))):
        assert isinstance(version, Tversion)
        half.version(version)
    found = []
    for byte in frame:
        found += [(codec.pack(got, got.tag), got) for got in half.requests(memoryview(bytes([byte])))]
    assert [raw for raw, _ in found] == [frame]
    assert pool.used == 0


def session(data: bytes) -> None:
    left: list[str] = []

    def unraisable(what: "sys.UnraisableHookArgs") -> None:
        left.append(f"{what.exc_value!r} in {what.object!r}")

    before, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            trio.run(_session, data)
    finally:
        sys.unraisablehook = before
    assert not left, left


class Client:
    """What was asked and what was answered."""

    def __init__(self, conn: Connection, name: str, msize: int) -> None:
        self.conn = conn
        self.name, self.msize = name, msize
        self.asked: Counter[int] = Counter()
        self.tag = 0

    def send(self, kind: int, payload: bytes, reuse: bool = False) -> None:
        if not reuse:
            self.tag = (self.tag + 1) % 200
        tag = NOTAG if kind == Tversion.type else self.tag
        self.asked[tag] += 1
        self.raw(HEADER.pack(MINFRAME + len(payload), kind, tag) + payload)

    def raw(self, data: bytes) -> None:
        self.conn.consume(memoryview(data))

    def check(self) -> None:
        """Everything that was answered so far."""
        out = b"".join(self.conn.half.out)
        self.conn.half.out.clear()
        while out:
            size, kind, tag = HEADER.unpack_from(out)
            assert MINFRAME <= size <= max(self.msize, 1 << 20), f"a reply of {size} bytes"
            frame, out = out[:size], out[size:]
            codec = dialect(self.name)
            if kind == Tversion.type + 1:
                version = dialect(PLAIN).parse(frame)
                self.name = version.version if version.version in ALL else PLAIN  # type: ignore[attr-defined]
                self.msize = version.msize  # type: ignore[attr-defined]
                self.asked = Counter({NOTAG: self.asked[NOTAG] - 1})
                continue
            assert size <= self.msize, f"a reply of {size} bytes, msize is {self.msize}"
            codec.parse(frame)
            assert self.asked[tag] > 0, f"tag {tag} was answered and asked nothing"
            self.asked[tag] -= 1


async def _session(data: bytes) -> None:
    if not data:
        return
    demo, pool = Demo(), Pool(LIMITS.buffers)
    export = Export(demo, Policy.parse(POLICIES[:1]), AuditMemory(256), TraceRing(256, 256), LIMITS)
    async with trio.open_nursery() as nursery:
        conn = Connection(export, "any", pool, nursery.start_soon, lambda: None)
        name, msize = ALL[data[0] % 3], MSIZES[data[0] // 3 % 4]
        client = Client(conn, name, msize)
        try:
            client.send(Tversion.type, dialect(PLAIN).pack(Tversion(msize, name), NOTAG)[MINFRAME:])
            client.check()
            client.send(Tattach.type, dialect(name).pack(Tattach(0, NOFID, "", "", NONUNAME), 1)[MINFRAME:])
            await _play(data[1:], export, client)
        except BadFrame:
            pass
        client.check()
        conn.close()
        await wait_all_tasks_blocked()
        assert not nursery.child_tasks, "a task outlives its connection"
    assert not conn.half.out, "something was said to a peer that is gone"
    assert pool.used == 0, f"{pool.used} bytes of buffers are lost"
    assert (export.statistics()["parked"], conn.session.parked, conn._running) == (0, 0, 0)
    assert not export.sessions
    assert not conn.session.fids
    forgotten = [n for n, life in demo.counters.items() if not life.kept]
    assert not forgotten, f"counters {forgotten} live on and nobody has them"
    assert all(life.holders == 0 for life in demo.counters.values())
    internal = [e.text for e in export.trace.errors if e.code == 500]
    assert not internal, internal[0]
    intents = [line.seq for line in export.audit.lines if line.kind == "intent"]  # type: ignore[attr-defined]
    outcomes = [line.of for line in export.audit.lines if line.kind == "outcome"]  # type: ignore[attr-defined]
    assert len(outcomes) == len(set(outcomes))
    assert set(intents) <= set(outcomes), "an effect has no outcome in the audit"


async def _play(script: bytes, export: Export, client: Client) -> None:
    at = 0
    for _ in range(STEPS):
        if at + 2 > len(script):
            break
        what, length = script[at], script[at + 1]
        payload = script[at + 2 : at + 2 + length]
        at += 2 + length
        if what == RAW:
            if b"\x64\xff\xff" in payload:
                continue  # a version exchange in the raw would make our own bookkeeping guess
            client.asked.update(range(65536) if not client.asked[65535] else ())
            client.raw(payload)
        elif what == PAUSE:
            await wait_all_tasks_blocked()
        elif what == POLICY:
            export.replace(Policy.parse([POLICIES[length % len(POLICIES)]]))
        else:
            kinds = [k for k in KINDS if k in dialect(client.name).types]
            client.send(kinds[what % len(kinds)], payload, reuse=what >= 200)
        client.check()


TARGETS = {"decoder": decoder, "session": session}
__all__ = ["TARGETS", "decoder", "session"]
