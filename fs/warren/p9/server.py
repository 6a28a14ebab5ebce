"""The server's half of a 9P conversation, sans-IO: bytes in, requests out; replies in, bytes out.

What lives here is what every driver would otherwise get wrong once: framing, the version
exchange, tags, and the order of flushes. No trio, no sockets, no files.

    for m in half.requests(view):      whole frames of view; what is left over is kept
        half.answer(frame)             a request that was done at once
        p = half.park(m)               one that was not: its tag is taken until settle(p, frame)
    half.out                           what to send, in order

**Flush.** A Tflush names an old tag. If nothing is outstanding there, Rflush goes at once.
Otherwise the flush waits *behind* that request: the driver cancels the work and settles it, with
its reply if the work finished first and with None if it did not, and only then are the flushes
answered, in the order they came. A flush of a waiting flush joins the same queue. A tag is free
again only when its last reply was queued, so a client that reuses one early is cut off: answering
it would put two replies of one tag on the wire.

**Version.** A second Tversion aborts everything: what was parked is settled in silence, because
the tags now belong to a new conversation. `generation` tells the two apart.

**Memory.** A frame that arrives in pieces is gathered in a buffer from the pool, which has a cap
for the whole process, so that a large msize is not a promise of memory. A driver can ask where the
rest of a large frame belongs (`space`) and receive straight into it. The `data` of a request is a
view of such a buffer and is valid only until the next request is taken from the iterator.
"""

from collections.abc import Generator
from typing import Final, Protocol, TypeAlias

from warren.p9.codec import HEADER, MINFRAME, BadFrame, Dialect, Parse, dialect, settle
from warren.p9.fields import NOTAG
from warren.p9.messages import PLAIN, WARREN, Message, Rerror, Rflush, Rlerror, Rversion, Tflush, Tversion

MAX_MSIZE: Final = 1 << 20
MIN_MSIZE: Final = 256
_FIRST_FRAME: Final = 4096  # before the version exchange nothing longer has a meaning
_TVERSION: Final = 100
# What a Twrite takes beside its data, rounded up to 8 as clients do; a traced one carries 8 bytes more.
_WRITE: Final = 24
_TRACED_WRITE: Final = 32
Buffer: TypeAlias = bytes | bytearray | memoryview


class Buffers(Protocol):
    """Where buffers for large frames come from."""

    def take(self, size: int) -> bytearray:
        """A buffer of at least SIZE bytes; raises BufferError when the cap is reached."""

    def give(self, buffer: bytearray) -> None:
        """It is not used any more."""


class _Unversioned(dict[int, Parse]):
    """Before the version exchange there is one message."""

    def __missing__(self, kind: int) -> Parse:
        if kind != _TVERSION:
            raise BadFrame("the first message must be Tversion")
        return dialect(PLAIN).parsers[kind]


class Pending:
    """A request whose answer is not known yet, and the flushes that wait behind it."""

    __slots__ = ("flushes", "generation", "message", "tag")

    def __init__(self, message: Message, generation: int) -> None:
        self.message = message
        self.tag = message.tag
        self.generation = generation
        self.flushes: list[int] = []


class Server:
    """One conversation's framing, tags, version and flush order."""

    def __init__(self, buffers: Buffers, max_msize: int = MAX_MSIZE) -> None:
        self.max_msize = max_msize
        self.msize = _FIRST_FRAME
        self.iounit = 0  # the most a client puts into one Twrite, set by the version exchange
        self.dialect: Dialect | None = None
        self.generation = 0
        self.outstanding: dict[int, Pending] = {}
        self.out: list[Buffer] = []
        self.begun = 0  # frames that came in pieces; tells a driver whether it is still the same one
        self._buffers = buffers
        self._parsers: dict[int, Parse] = _Unversioned()
        self._rest = b""
        self._part: bytearray | None = None
        self._have = 0
        self._want = 0

    def requests(self, view: memoryview) -> Generator[Message, None, None]:
        """Every request that VIEW completes. Raises BadFrame: close the connection.

        A driver that has enough for now closes the generator. What is left of VIEW waits (`stalled`)
        and comes first in the next call.
        """
        unpack, outstanding = HEADER.unpack_from, self.outstanding
        if self._rest:
            view, self._rest = memoryview(self._rest + view), b""
        pos, end = 0, len(view)
        if self._part is not None:
            pos = self._gather(view)
            if self._have < self._want:
                return
            part, self._part = self._part, None
            size, kind, tag = unpack(part)
            whole = memoryview(part)
            try:
                if tag in outstanding:
                    self._taken(kind, tag)
                yield self._parsers[kind](tag, whole, MINFRAME, size)
            except GeneratorExit:
                self._rest = bytes(view[pos:])
                raise
            finally:  # also when it is no message
                whole.release()
                self._buffers.give(part)
        while end - pos >= MINFRAME:
            size, kind, tag = unpack(view, pos)
            if size > self.msize or size < MINFRAME:
                raise BadFrame(f"frame of {size} bytes, msize is {self.msize}")
            if size > end - pos:
                break
            if outstanding and tag in outstanding:
                self._taken(kind, tag)
            m = self._parsers[kind](tag, view, pos + MINFRAME, pos + size)
            pos += size
            try:
                yield m
            except GeneratorExit:
                self._rest = bytes(view[pos:])
                raise
        if pos < end:
            self._keep(view[pos:])

    def _taken(self, kind: int, tag: int) -> None:
        if kind != _TVERSION:
            raise BadFrame(f"tag {tag} is still in use")

    def _keep(self, rest: memoryview) -> None:
        """Hold back the beginning of a frame until the rest arrives."""
        self._want = MINFRAME
        if len(rest) >= MINFRAME:
            self._want = HEADER.unpack_from(rest)[0]
        self._part = self._buffers.take(self._want)
        self._part[: len(rest)] = rest
        self._have = len(rest)
        self.begun += 1

    def _gather(self, view: memoryview) -> int:
        """Complete the held-back frame from VIEW as far as it goes; returns how much was used."""
        used = 0
        while self._have < self._want and used < len(view):
            n = min(self._want - self._have, len(view) - used)
            assert self._part is not None
            self._part[self._have : self._have + n] = view[used : used + n]
            self._have += n
            used += n
            if self._have == MINFRAME == self._want:
                self._size_known()
        return used

    def _size_known(self) -> None:
        assert self._part is not None
        size = HEADER.unpack_from(self._part)[0]
        if size > self.msize or size < MINFRAME:
            raise BadFrame(f"frame of {size} bytes, msize is {self.msize}")
        if size > self._want:
            head, self._part = self._part, self._buffers.take(size)
            self._part[:MINFRAME] = head[:MINFRAME]
            self._buffers.give(head)
            self._want = size

    @property
    def stalled(self) -> bool:
        """Whether the driver left requests for later; nothing more may be received until they are done."""
        return bool(self._rest)

    @property
    def partial(self) -> bool:
        """Whether the peer is in the middle of a frame (a driver may run a clock on that)."""
        return self._part is not None

    def space(self) -> memoryview | None:
        """Where the rest of a large frame should be received, if one has begun."""
        if self._part is None or self._want - self._have < _FIRST_FRAME:
            return None
        return memoryview(self._part)[self._have : self._want]

    def received(self, n: int) -> None:
        """N bytes were put into space(); pass an empty view to requests next."""
        self._have += n

    def close(self) -> None:
        """The connection is gone: give the buffer back and settle nothing any more."""
        if self._part is not None:
            self._buffers.give(self._part)
            self._part = None
        self._rest = b""
        self.generation += 1
        self.outstanding.clear()

    # Replies

    def answer(self, frame: Buffer) -> None:
        """Queue the reply of a request that was never parked."""
        self.out.append(frame)

    def park(self, m: Message) -> Pending:
        """Take the request's tag until it is settled."""
        p = self.outstanding[m.tag] = Pending(m, self.generation)
        return p

    def settle(self, p: Pending, reply: list[Buffer] | None) -> bool:
        """The parked request is over: with its reply, or None for none. False if nobody asks any more."""
        if p.generation != self.generation:
            return False
        if reply is not None:
            self.out += reply
        del self.outstanding[p.tag]
        for tag in p.flushes:
            del self.outstanding[tag]
            self._rflush(tag)
        return True

    def flush(self, m: Tflush) -> Pending | None:
        """A Tflush came: the request to cancel, or None when Rflush is already queued."""
        p = self.outstanding.get(m.oldtag)
        if p is None or m.oldtag == m.tag:
            self._rflush(m.tag)
            return None
        p.flushes.append(m.tag)
        self.outstanding[m.tag] = p
        return p

    def _rflush(self, tag: int) -> None:
        assert self.dialect is not None
        self.out.append(self.dialect.packer(Rflush)(tag))

    def version(self, m: Tversion) -> list[Pending]:
        """A Tversion came: answer it and return the requests that it aborts."""
        if m.tag != NOTAG:
            raise BadFrame(f"Tversion has tag {m.tag}; it is answered without one")
        aborted = list(dict.fromkeys(self.outstanding.values()))
        self.generation += 1
        self.outstanding.clear()
        name = settle(m.version) if m.msize >= MIN_MSIZE else "unknown"
        self.dialect = None if name == "unknown" else dialect(name)
        self.msize = min(m.msize, self.max_msize) if self.dialect else _FIRST_FRAME
        self.iounit = self.msize - (_TRACED_WRITE if name == WARREN else _WRITE)
        self._parsers = self.dialect.parsers if self.dialect else _Unversioned()
        self.out.append(dialect(PLAIN).packer(Rversion)(NOTAG, max(self.msize, MIN_MSIZE), name))
        return aborted

    def refusal(self, tag: int, errno: int, text: str, plain: str) -> bytes:
        """An error reply in this conversation's dialect; PLAIN is its wording for 9P2000."""
        assert self.dialect is not None
        if self.dialect.name == PLAIN:
            return self.dialect.packer(Rerror)(tag, _fit(plain, 127))
        if self.dialect.name == WARREN:
            return self.dialect.packer(Rlerror)(tag, errno, _fit(text, min(1024, self.msize - 13)))
        return self.dialect.packer(Rlerror)(tag, errno)


def _fit(words: str, limit: int) -> str:
    """Cut to LIMIT bytes of UTF-8 without splitting a character."""
    raw = words.encode("utf-8", "surrogateescape")
    return words if len(raw) <= limit else raw[:limit].decode("utf-8", "ignore")
