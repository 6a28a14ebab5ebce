"""A notice board: topics, and the notes that people pin to them.

    /ctl              Ctl      verbs: open, close
    /clone            Clone    open it: a numbered topic of your own
    /events           Stream   topics that come and go
    /<topic>/ctl      Ctl      verbs: trim, keep, finish
    /<topic>/title    Text     what it is about; write another
    /<topic>/post     Sink     one write is one note; the answer is its number
    /<topic>/notes    File     the notes that are kept, oldest first
    /<topic>/news     Stream   the next note, as soon as it is there

A topic out of /clone lives while somebody has it open, or after `keep`; one that was opened by name
is kept until it is closed.
"""

from collections.abc import Iterable, Mapping

from warren.tree import Clone, Ctl, Dir, File, Life, Maybe, Node, Refused, Ring, Sink, Stream, Text, verb
from warren.tree.ports import Clock

TOPICS, NOTES, LONGEST = 256, 500, 4096


class Topic:
    """One topic; `life` is its directory."""

    def __init__(self, board: "Board", name: str, title: str) -> None:
        self.board, self.name, self.title = board, name, title
        self.news = Ring(NOTES)
        entries: Mapping[str, Node] = {
            "ctl": TopicCtl(self),
            "title": Text(lambda: self.title, self.rename),
            "post": Sink(self.post),
            "notes": File(self.read_at, size=lambda: len(self.text())),
            "news": Stream(self.news),
        }
        self.life = Life(name, entries, lambda: board.end(name))

    def rename(self, title: str) -> None:
        self.title = title

    def post(self, note: bytes) -> str:
        words = note.decode("utf-8", "replace").strip()
        if not words or "\n" in words:
            raise Refused(400, "a note is one line of text")
        if len(note) > LONGEST:
            raise Refused(413, f"a note has at most {LONGEST} bytes")
        return str(self.news.append(self.board.record(self.news, words)))

    def text(self) -> bytes:
        return b"".join(self.news.kept)

    def read_at(self, offset: int, count: int) -> bytes:
        return self.text()[offset : offset + count]


class TopicCtl(Ctl):
    """The verbs of one topic."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic

    @verb
    def trim(self, keep: int = 0) -> str:
        """Forget all but the newest KEEP notes; the answer is how many went."""
        if keep < 0:
            raise Refused(400, f"keep is a number of notes, not {keep}")
        kept = self.topic.news.kept
        gone = max(0, len(kept) - keep)
        for _ in range(gone):
            kept.popleft()
        return str(gone)

    @verb
    def keep(self) -> None:
        """Stay when nobody has this topic open."""
        self.topic.life.keep()

    @verb
    def finish(self) -> None:
        """Go once nobody has this topic open."""
        self.topic.life.finish()


class Board(Dir):
    """The root."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.topics: dict[str, Topic] = {}
        self.events = Ring(256)
        self.made = 0
        super().__init__({"ctl": BoardCtl(self), "clone": Clone(self.make), "events": Stream(self.events)})

    def lookup(self, name: str) -> Maybe[Node | None]:
        return self.topics[name].life if name in self.topics else self.entries.get(name)

    def list(self) -> Maybe[Iterable[tuple[str, Node]]]:
        return [*self.entries.items(), *((name, topic.life) for name, topic in self.topics.items())]

    def record(self, ring: Ring, words: str) -> bytes:
        return f"seq={ring.seq + 1} ts={self.clock.now():.3f} {words}\n".encode()

    def make(self) -> Life:
        while str(self.made) in self.topics or not self.made:
            self.made += 1
        return self.add(str(self.made), "untitled").life

    def add(self, name: str, title: str) -> Topic:
        if len(self.topics) >= TOPICS:
            raise Refused(429, f"{TOPICS} topics are open; close one", retry_after=5)
        self.topics[name] = topic = Topic(self, name, title)
        self.events.append(self.record(self.events, f"kind=opened topic={name}"))
        return topic

    def end(self, name: str) -> None:
        del self.topics[name]
        self.events.append(self.record(self.events, f"kind=closed topic={name}"))


class BoardCtl(Ctl):
    """The verbs of the board."""

    def __init__(self, board: Board) -> None:
        self.board = board

    @verb
    def open_(self, topic: str, title: str = "untitled") -> None:
        """Open TOPIC, to stay until it is closed."""
        if not topic.isidentifier():
            raise Refused(400, f"a topic's name has letters, digits and _, unlike {topic!r}")
        if self.board.lookup(topic) is not None:
            raise Refused(409, f"the board has a {topic} already")
        self.board.add(topic, title).life.keep()

    @verb
    def close(self, topic: str) -> None:
        """Close TOPIC once nobody has it open."""
        if topic not in self.board.topics:
            raise Refused(404, f"no topic {topic}")
        self.board.topics[topic].life.finish()
