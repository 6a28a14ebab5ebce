"""A tree that shows each word once.

    /hello          Text     a greeting; write another
    /scratch        File     64 KiB of bytes at offsets
    /ctl            Ctl      verbs: read it for help
    /events         Stream   what the verbs did, one record a read, everyone sees all
    /send           Sink     one write is one record, for whoever reads recv first
    /recv           Stream   waits for a record; each goes to one reader
    /submit         Blob     a body of many writes; the reply is its length and SHA-256
    /clone          Clone    open it: a counter of your own appears beside it
    /<n>/ctl                 verbs: add, keep, finish
    /<n>/value      Text     its value
    /dev/errstr              your newest error (laid over every tree with ctl files)

The tutorial uses it, and so do tests that need one of everything.
"""

import hashlib
import time
from collections.abc import Iterable

from warren.tree import (
    Blob,
    Bytes,
    Clone,
    Ctl,
    Dir,
    File,
    Life,
    Maybe,
    Node,
    Queue,
    Refused,
    Ring,
    Secret,
    Sink,
    Stream,
    Text,
    verb,
)

SCRATCH = 64 << 10
COUNTERS = 64


class Demo(Dir):
    """The root."""

    def __init__(self) -> None:
        self.greeting = "hello, world"
        self.scratch = bytearray()
        self.events = Ring(depth=256)
        self.queue = Queue(depth=64)
        self.counters: dict[str, Life] = {}
        self.made = 0
        super().__init__(
            {
                "hello": Text(lambda: self.greeting, self.greet),
                "scratch": File(self.read_at, self.write_at, lambda: len(self.scratch), self.truncate),
                "ctl": DemoCtl(self),
                "events": Stream(self.events),
                "send": Sink(self.queue.put),
                "recv": Stream(self.queue),
                "submit": Blob(self.commit, limit=16 << 20),
                "clone": Clone(self.make),
            }
        )

    def lookup(self, name: str) -> Maybe[Node | None]:
        return self.counters.get(name) or self.entries.get(name)

    def list(self) -> Maybe[Iterable[tuple[str, Node]]]:
        return [*self.entries.items(), *self.counters.items()]

    def tell(self, kind: str, **values: object) -> None:
        """One line for everyone who reads /events."""
        pairs = "".join(f" {k}={v}" for k, v in values.items())
        self.events.append(f"seq={self.events.seq + 1} ts={time.time():.3f} kind={kind}{pairs}\n".encode())

    def greet(self, words: str) -> None:
        self.greeting = words
        self.tell("greeting")

    def read_at(self, offset: int, count: int) -> bytes:
        return bytes(self.scratch[offset : offset + count])

    def write_at(self, offset: int, data: Bytes) -> int:
        if offset + len(data) > SCRATCH:
            raise Refused(413, f"the scratch file holds {SCRATCH} bytes")
        if offset > len(self.scratch):
            self.scratch.extend(bytes(offset - len(self.scratch)))
        self.scratch[offset : offset + len(data)] = data
        return len(data)

    def truncate(self, size: int) -> None:
        if size > SCRATCH:
            raise Refused(413, f"the scratch file holds {SCRATCH} bytes")
        self.scratch = self.scratch[:size] + bytes(max(0, size - len(self.scratch)))

    def commit(self, body: bytes, declared: bool) -> str:
        digest = hashlib.sha256(body).hexdigest()
        self.tell("submitted", bytes=len(body), declared=int(declared))
        return f"bytes={len(body)} sha256={digest}"

    def make(self) -> Life:
        if len(self.counters) >= COUNTERS:
            raise Refused(429, f"{COUNTERS} counters exist; close one", retry_after=1)
        self.made += 1
        name = str(self.made)
        counter = Counter()
        life = Life(name, {"ctl": counter, "value": Text(lambda: str(counter.value))}, lambda: self.end(name))
        counter.life = life
        self.counters[name] = life
        self.tell("made", counter=name)
        return life

    def end(self, name: str) -> None:
        del self.counters[name]
        self.tell("ended", counter=name)


class DemoCtl(Ctl):
    """The root's verbs."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo

    @verb
    def say(self, words: str, *, times: int = 1) -> None:
        """Publish WORDS on /events, as often as asked."""
        if not 1 <= times <= 100:
            raise Refused(400, f"times is 1 to 100, not {times}")
        for _ in range(times):
            self.demo.tell("said", words=repr(words))

    @verb
    def reset(self) -> None:
        """Forget the greeting and the scratch file."""
        self.demo.greeting = "hello, world"
        self.demo.scratch = bytearray()
        self.demo.tell("reset")

    @verb
    def unlock_(self, door: str, pin: Secret) -> str:
        """Open DOOR; the pin never reaches the audit."""
        self.demo.tell("unlocked", door=door)
        return f"{door} is open"


class Counter(Ctl):
    """One counter's verbs."""

    life: Life

    def __init__(self) -> None:
        self.value = 0

    @verb
    def add(self, n: int = 1) -> str:
        """Add N and answer the new value."""
        self.value += n
        return str(self.value)

    @verb
    def keep(self) -> None:
        """Live on when nobody has this counter open."""
        self.life.keep()

    @verb
    def finish(self) -> None:
        """Go away once nobody has this counter open."""
        self.life.finish()
