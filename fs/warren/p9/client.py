"""The client's half of a session, sans-IO: bytes in, settled replies out; requests in, bytes out.

    half = Client()
    half.begin()                          offers our dialects, the best first
    call = half.request(Twalk, 0, 1, ["usr"])
    half.take()                           what to send, in order
    n = sock.recv_into(half.space())      replies are received where they will be read
    for call in half.received(n): ...     every request that this settled
    half.flush(call)                      give up on one; it settles all the same, see below
    half.lost()                           the connection is gone: what was never settled

A request is settled once. Which way is its `state`:

    answered    `reply` holds the reply, or the peer's refusal (Rlerror, Rerror)
    flushed     Rflush came first: the request had no effect
    lost        the connection went away: nobody knows

**Flush.** A reply that comes before Rflush counts, and the request had its effect. The tag stays
taken until every flush that names it was answered, whichever came first.

**Fids.** `fids.take()` gives a number. It becomes free again by what the replies say, never by what
was asked: when a clunk or a remove was answered (even by a refusal, as the protocol has it), and
when the request that should have made the fid failed, fell short or was flushed. A request sent
behind that one in the belief that it succeeds (`after=`) holds the number back until it is settled
too, so that it can never meet a stranger's fid.

**Memory.** Payloads of 16 KiB and more are views of the buffer they were received in, which is then
given up to them and not reused; smaller ones are copied out. The buffer grows with what the reads
in flight have asked for and shrinks when they are done.

A peer that sends what no server may send (a stray tag, a reply of the wrong type or size, more
bytes than were asked for) ends the session: BadFrame.
"""

import enum
import struct
from collections.abc import Sequence
from typing import Any, Final

from warren.p9.codec import HEADER, MINFRAME, BadFrame, BadValue, Dialect, dialect, settle
from warren.p9.fields import NOFID, NONUNAME, NOTAG
from warren.p9.messages import (
    DOTL,
    PLAIN,
    WARREN,
    Message,
    Rerror,
    Rlerror,
    Rread,
    Rreaddir,
    Rversion,
    Rwalk,
    Rwrite,
    Tattach,
    Tclunk,
    Tflush,
    Tread,
    Treaddir,
    Tremove,
    Tversion,
    Twalk,
    Twrite,
    Txattrwalk,
)

MSIZE: Final = 1 << 20
VERSIONS: Final = (WARREN, DOTL, PLAIN)  # the best first
MIN_MSIZE: Final = 256
LENT: Final = 16 * 1024  # payloads from this size on are views
_SMALL: Final = 16 * 1024
_LARGE: Final = (1 << 20) + _SMALL
_COUNT = struct.Struct("<I")

# Which field of a request names the fid that its reply makes or takes away.
_MAKES: Final = {Twalk.type: 1, Tattach.type: 0, Txattrwalk.type: 1}
_DROPS: Final = {Tclunk.type: 0, Tremove.type: 0}
_READS: Final = (Tread.type, Treaddir.type)


class State(enum.Enum):
    """What became of a request."""

    WAITING = "waiting"
    ANSWERED = "answered"
    FLUSHED = "flushed"
    LOST = "lost"


class Call:
    """One request. `owner` and `deadline` belong to the driver."""

    __slots__ = ("after", "count", "deadline", "failed", "fid", "flushes", "followers", "owner", "reply",
                 "state", "tag", "trace", "type")  # fmt: skip

    def __init__(self, number: int, tag: int, trace: int) -> None:
        self.type = number
        self.tag = tag
        self.trace = trace
        self.state = State.WAITING
        self.reply: Message | None = None
        self.fid = NOFID  # the one that the reply makes or takes away
        self.count = 0  # what the reply may hold at most: names, or bytes
        self.failed = False  # the reply made no fid
        self.flushes = 0
        self.followers = 0
        self.after: Call | None = None  # for a flush: the request it names
        self.owner: Any = None
        self.deadline = 0.0

    @property
    def settled(self) -> bool:
        return self.state is not State.WAITING

    @property
    def makes(self) -> bool:
        """Whether the reply made a fid, which is `fid`."""
        return self.type in _MAKES and self.fid != NOFID and self.reply is not None and not self.failed

    @property
    def refused(self) -> bool:
        return type(self.reply) is Rlerror or type(self.reply) is Rerror


class Numbers:
    """Numbers that are given out and come back: tags, fids."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._next = 0
        self._free: list[int] = []

    def take(self) -> int:
        """A number that is not in use; raises BlockingIOError when all are."""
        if self._free:
            return self._free.pop()
        if self._next == self.limit:
            raise BlockingIOError(f"all {self.limit} numbers are in use")
        self._next += 1
        return self._next - 1

    def give(self, number: int) -> None:
        self._free.append(number)

    @property
    def in_use(self) -> int:
        return self._next - len(self._free)


class Client:
    """One session, from Tversion to the end of its connection."""

    def __init__(self, msize: int = MSIZE, offers: Sequence[str] = VERSIONS) -> None:
        self.msize = msize
        self.version = ""  # once it is settled
        self.codec: Dialect = dialect(PLAIN)
        self.fids = Numbers(NOFID)
        self.calls: dict[int, Call] = {}  # tag → call, until the tag is free
        self._tags = Numbers(NOTAG)
        self._offers = list(offers)
        self._offered = ""
        self._out: list[bytes | memoryview] = []
        self._owed = 0  # bytes that the reads in flight may bring
        self._buffer: bytearray | None = None
        self._view = memoryview(b"")
        self._start = self._end = 0
        self._lent = False
        self._broken: BadFrame | None = None

    # Requests

    def begin(self) -> Call:
        """Offer the dialects in turn. The call is answered by Rversion, or by the last refusal."""
        call = Call(Tversion.type, NOTAG, 0)
        self.calls[NOTAG] = call
        self._offer()
        return call

    def _offer(self) -> None:
        self._offered = self._offers.pop(0)
        self._out.append(dialect(PLAIN).packer(Tversion)(NOTAG, self.msize, self._offered))

    def request(self, cls: type[Message], *fields: Any, trace: int = 0, after: Call | None = None) -> Call:
        """Queue one request. Raises BadValue if it cannot be said, BlockingIOError if no tag is free.

        `after` is an unsettled request that makes the fid this one is about (and does not remove).
        """
        number = cls.type
        call = Call(number, self._tags.take(), trace)
        try:
            self._pack(cls, call.tag, fields, trace)
        except (struct.error, OverflowError) as e:
            self._tags.give(call.tag)
            raise BadValue(f"{cls.__name__}: {e}") from None
        except BadValue:
            self._tags.give(call.tag)
            raise
        self.calls[call.tag] = call
        if number in _MAKES:
            fid = fields[_MAKES[number]]
            if number == Twalk.type:
                call.count = len(fields[2])
                fid = NOFID if fid == fields[0] else fid
            call.fid = fid
        elif number in _DROPS:
            call.fid = fields[_DROPS[number]]
        elif number in _READS:
            call.count = fields[2]
            self._owed += call.count
        elif number == Twrite.type:
            call.count = len(fields[2])
        if after is not None:
            call.after = after
            after.followers += 1
        return call

    def _pack(self, cls: type[Message], tag: int, fields: tuple[Any, ...], trace: int) -> None:
        pack = self.codec.packer(cls)
        last = (trace,) if self.version == WARREN else ()
        if cls is Twrite and len(fields[2]) >= LENT:
            # The payload goes out from where it lies; only what stands around it is packed.
            data = memoryview(fields[2])
            empty = pack(tag, fields[0], fields[1], b"", *last)
            tail = empty[len(empty) - 8 * len(last) :]
            head = bytearray(empty[: len(empty) - len(tail)])
            size = len(empty) + data.nbytes
            _COUNT.pack_into(head, 0, size)
            _COUNT.pack_into(head, len(head) - 4, data.nbytes)
            frame: list[bytes | memoryview] = [bytes(head), data]
            frame += [tail] if tail else []
        else:
            whole = pack(tag, *fields, *last)
            size = len(whole)
            frame = [whole]
        if size > self.msize:
            raise BadValue(f"{cls.__name__} of {size} bytes does not fit msize {self.msize}")
        self._out += frame

    def attach(self, fid: int, afid: int, uname: str, aname: str, n_uname: int = NONUNAME) -> Call:
        """Queue Tattach as this dialect has it."""
        if self.version == PLAIN:
            return self.request(Tattach, fid, afid, uname, aname)
        return self.request(Tattach, fid, afid, uname, aname, n_uname)

    def flush(self, call: Call) -> None:
        """Give up on a request. Nothing happens if it is settled."""
        if call.settled:
            return
        asked = self.request(Tflush, call.tag, trace=call.trace)
        asked.after = call
        call.flushes += 1

    def take(self) -> list[bytes | memoryview]:
        """What waits to be sent; the caller owns it now."""
        out, self._out = self._out, []
        return out

    @property
    def pending(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(self._out)

    def lost(self) -> list[Call]:
        """The connection is gone. Returns every request that was not settled; now it is."""
        gone = [c for c in self.calls.values() if not c.settled]
        for call in gone:
            call.state = State.LOST
        self.calls.clear()
        self._out.clear()
        return gone

    # Replies

    def space(self) -> memoryview:
        """Where the next bytes belong; never empty. Valid until `received`. Raises BadFrame as that does."""
        if self._broken is not None:
            raise self._broken
        want = min(self._owed + _SMALL, _LARGE) if self._owed > _SMALL else _SMALL
        if self._buffer is None or (self._end == 0 and len(self._buffer) < want):
            self._allocate(want)
        return self._view[self._end :]

    def _allocate(self, size: int) -> None:
        rest = self._view[self._start : self._end]
        self._buffer = bytearray(size)
        self._view = memoryview(self._buffer)
        self._view[: len(rest)] = rest
        self._start, self._end = 0, len(rest)
        self._lent = False

    def received(self, n: int) -> list[Call]:
        """N bytes were put into space(). Raises BadFrame: close the connection.

        What was settled by the frames before a bad one is returned first; `space` raises then.
        """
        self._end += n
        settled: list[Call] = []
        try:
            self._settle_buffer(self._frames(settled))
        except BadFrame as e:
            if not settled:
                raise
            self._broken = e
        return settled

    def _frames(self, settled: list[Call]) -> int:
        """Handle every complete frame; returns how long the next one is, as far as that is known."""
        view, at, end = self._view, self._start, self._end
        unpack, calls = HEADER.unpack_from, self.calls
        while end - at >= MINFRAME:
            size, number, tag = unpack(view, at)
            if size > self.msize or size < MINFRAME:
                raise BadFrame(f"frame of {size} bytes, msize is {self.msize}")
            if size > end - at:
                self._start = at
                return int(size)
            call = calls.get(tag)
            if call is None or call.settled:
                raise BadFrame(f"a reply of type {number} to tag {tag}, which asked for nothing")
            self._answer(call, number, view, at, size, settled)
            at += size
        self._start = at
        return MINFRAME

    def _settle_buffer(self, need: int) -> None:
        """Make room for a frame of NEED bytes that begins at _start."""
        assert self._buffer is not None
        if self._start == self._end:
            if self._lent or len(self._buffer) > _SMALL > self._owed:
                self._buffer, self._view, self._lent = None, memoryview(b""), False
            self._start = self._end = 0
        elif self._start + need > len(self._buffer):
            if self._lent or need > len(self._buffer):
                self._allocate(max(need, min(self._owed + _SMALL, _LARGE)))
            else:
                have = self._end - self._start
                self._view[:have] = self._view[self._start : self._end]
                self._start, self._end = 0, have

    def _answer(
        self, call: Call, number: int, view: memoryview, at: int, size: int, settled: list[Call]
    ) -> None:
        if call.type == Tversion.type:
            if self._version(call, number, view[at : at + size]):
                settled.append(call)
            return
        refusal = Rerror.type if self.version == PLAIN else Rlerror.type
        if number != call.type + 1 and (number != refusal or call.type == Tflush.type):
            raise BadFrame(f"a reply of type {number} to a request of type {call.type}")
        reply = self.codec.parsers[number](call.tag, view, at + MINFRAME, at + size)
        if call.type == Tflush.type:
            self._flushed(call, settled)
            return
        ok = number != refusal
        if ok and call.type in (Tread.type, Treaddir.type):
            assert isinstance(reply, Rread | Rreaddir)
            if len(reply.data) > call.count:
                raise BadFrame(f"{len(reply.data)} bytes came and {call.count} were asked for")
            if len(reply.data) < LENT:
                reply.data = bytes(reply.data)
            else:
                self._lent = True
        elif ok and call.type == Twalk.type:
            assert isinstance(reply, Rwalk)
            if len(reply.qids) > call.count or (call.count and not reply.qids):
                raise BadFrame(f"Rwalk has {len(reply.qids)} qids for {call.count} names")
            ok = len(reply.qids) == call.count
        elif ok and call.type == Twrite.type:
            assert isinstance(reply, Rwrite)
            if reply.count > call.count:
                raise BadFrame(f"{reply.count} bytes were taken and {call.count} were given")
        call.reply = reply
        call.state = State.ANSWERED
        self._done(call, ok)
        settled.append(call)

    def _version(self, call: Call, number: int, frame: memoryview) -> bool:
        """One answer to Tversion; False if another dialect is to be offered."""
        if number not in (Rversion.type, Rlerror.type, Rerror.type):
            raise BadFrame(f"message type {number} answers Tversion")
        # diod answers a version it does not know by an errno, others by a text.
        reply = dialect(DOTL if number == Rlerror.type else PLAIN).parse(frame)
        if isinstance(reply, Rversion) and reply.version != "unknown":
            known = settle(self._offered)
            if reply.version != known and not known.startswith(reply.version + "."):
                raise BadFrame(f"version {reply.version!r} answers {self._offered!r}")
            if not MIN_MSIZE <= reply.msize <= self.msize:
                raise BadFrame(f"msize {reply.msize} answers {self.msize}")
            self.version, self.msize = reply.version, reply.msize
            self.codec = dialect(self.version)
        elif self._offers:
            self._offer()
            return False
        call.reply, call.state = reply, State.ANSWERED
        del self.calls[NOTAG]
        return True

    def _flushed(self, call: Call, settled: list[Call]) -> None:
        old = call.after
        assert old is not None
        del self.calls[call.tag]
        self._tags.give(call.tag)
        old.flushes -= 1
        if not old.settled:
            old.state = State.FLUSHED
            self._done(old, False)
            settled.append(old)
        elif old.flushes == 0:
            self._free_tag(old)

    def _done(self, call: Call, ok: bool) -> None:
        """A request was settled: what is free now?"""
        number = call.type
        if call.flushes == 0:
            self._free_tag(call)
        if number in _READS:
            self._owed -= call.count
        elif number in _DROPS:
            if call.state is State.ANSWERED:
                self.fids.give(call.fid)
        elif not ok and number in _MAKES and call.fid != NOFID:
            call.failed = True
            if call.followers == 0:
                self.fids.give(call.fid)
        if (leader := call.after) is not None:
            leader.followers -= 1
            if leader.failed and leader.followers == 0:
                self.fids.give(leader.fid)

    def _free_tag(self, call: Call) -> None:
        del self.calls[call.tag]
        self._tags.give(call.tag)


__all__ = ["LENT", "MSIZE", "VERSIONS", "Call", "Client", "Numbers", "State"]
