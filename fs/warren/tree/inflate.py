"""The guard wherever something is decompressed: a ratio, a cap, and one piece in memory at a time.

    guard = Guard(most=1 << 30)              ten for one, unless `ratio` says otherwise
    stream = guard.begin("gzip")
    for piece in stream.feed(data): ...      at most PIECE bytes each
    stream.end()                             refuses what stops in the middle

A few bytes can be made to swell into more than a machine has. So output is counted while it comes, and the
stream is refused with 413 at the first byte too many: beyond `most` bytes in all, or beyond `ratio` for each
byte of input that went in so far. What a header or a trailer says about the size is never believed. The
first `free` bytes are not held against the ratio: little harm comes of little, and a stream of nothing but
a short text would often be refused for its brevity. A stream whose beginning is denser than its whole is
refused too; nobody can see ahead.

One layer is taken off. What comes out is bytes, compressed or not, and is not looked into.

`gzip` may have several members in a row, as `cat a.gz b.gz` makes them; `zlib` is one stream. Damaged input,
input that ends in the middle, and bytes behind the end are 422. Input is worked on in slices, so that many
small members cost no more than their bytes.

A further encoding is a row of `decoders`: something that makes an object with zlib's four words.
`Guard.counts` are the measures of all streams together; the ratio is observed of the refused ones, too.
"""

import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal, Protocol

from warren.tree.errors import Refused
from warren.tree.node import Bytes
from warren.tree.report import Count, one

PIECE: Final = 64 << 10
RATIO: Final = 10.0
_SLICE: Final = 4 << 10
_BUCKETS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 100.0, 1000.0)


class Decoder(Protocol):
    """What takes one stream apart: the shape of zlib's decompression object."""

    @property
    def eof(self) -> bool:
        """Whether the end of the stream was seen."""

    @property
    def unused_data(self) -> bytes:
        """What came behind the end."""

    @property
    def unconsumed_tail(self) -> bytes:
        """What was not looked at yet, since the output was full."""

    def decompress(self, data: Bytes, max_length: int, /) -> bytes:
        """At most that many bytes of output. ValueError or zlib.error for damage."""


DECODERS: Final[Mapping[str, Callable[[], Decoder]]] = {
    "gzip": lambda: zlib.decompressobj(31),
    "zlib": lambda: zlib.decompressobj(15),
}
_REPEATS: Final = frozenset(("gzip",))  # encodings in which one stream may follow another


class Guard:
    """What a stream may do, and what all of them did."""

    def __init__(
        self,
        *,
        most: int,
        ratio: float = RATIO,
        free: int = PIECE,
        decoders: Mapping[str, Callable[[], Decoder]] = DECODERS,
    ) -> None:
        if ratio < 1 or most < 0 or free < 0:
            raise ValueError("a guard needs a ratio of 1 or more, and sizes that are not below 0")
        self.most, self.ratio, self.free, self.decoders = most, ratio, free, decoders
        self.taken = self.given = 0
        self.streams = 0
        self.refused = dict.fromkeys(("ratio", "size", "damage"), 0)
        self._observed = [0] * (len(_BUCKETS) + 1)

    def begin(self, encoding: str, most: int | None = None) -> "Inflating":
        """A stream of that encoding; with MOST, a cap of its own below the guard's."""
        make = self.decoders.get(encoding)
        if make is None:
            known = ", ".join(self.decoders)
            raise Refused(405, f"there is no encoding {encoding!r} here; send {known}, or the bytes plain")
        return Inflating(self, encoding, make, self.most if most is None else min(most, self.most))

    def observe(self, ratio: float, why: Literal["ratio", "size", "damage"] | None) -> None:
        """A stream came to its end, or was refused."""
        self.streams += 1
        self._observed[bisect_left(_BUCKETS, ratio)] += 1
        if why is not None:
            self.refused[why] += 1

    def counts(self, prefix: str) -> list[Count]:
        """The measures; their names begin with PREFIX."""
        buckets: dict[tuple[str, ...], float] = {}
        total = 0
        for bound, n in zip((*(f"{b:g}" for b in _BUCKETS), "+Inf"), self._observed, strict=True):
            buckets[(bound,)] = float(total := total + n)
        refused: dict[tuple[str, ...], float] = {(why,): n for why, n in self.refused.items()}
        name = f"{prefix}_inflate"
        return [
            one(f"{name}_streams_total", "Compressed streams that ended or were refused.", self.streams),
            one(f"{name}_in_bytes_total", "Compressed bytes taken in.", self.taken),
            one(f"{name}_out_bytes_total", "Bytes that came out of them.", self.given),
            Count(f"{name}_refused_total", "Streams refused, by what was wrong.", refused, ("why",)),
            Count(f"{name}_ratio_bucket", "Streams by the ratio observed.", buckets, ("le",)),
        ]


class Inflating:
    """One stream. It serves one caller at a time, in any thread."""

    def __init__(self, guard: Guard, encoding: str, make: Callable[[], Decoder], most: int) -> None:
        self.encoding = encoding
        self.taken = self.given = 0
        self._guard, self._make, self._most = guard, make, most
        self._decoder: Decoder | None = None
        self._members = 0
        self._ended = False

    @property
    def ratio(self) -> float:
        """Bytes out for each byte in, so far."""
        return self.given / self.taken if self.taken else 0.0

    def feed(self, data: Bytes) -> Iterator[bytes]:
        """What DATA becomes, piece by piece. The iteration must be finished before the next call."""
        view = memoryview(data)
        for at in range(0, len(view), _SLICE):
            yield from self._slice(view[at : at + _SLICE])

    def _slice(self, rest: Bytes) -> Iterator[bytes]:
        while len(rest) or self._decoder is not None:
            decoder = self._decoder or self._member()
            try:
                piece = decoder.decompress(rest, PIECE)
            except (ValueError, zlib.error):
                raise self._damage(f"this is no {self.encoding}, or it is damaged") from None
            left = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
            self._count(len(rest) - len(left), len(piece))
            if piece:
                yield piece
            rest = left
            if decoder.eof:
                self._decoder = None
            elif not rest and len(piece) < PIECE:
                return

    def _member(self) -> Decoder:
        if self._ended or (self._members and self.encoding not in _REPEATS):
            raise self._damage("there are bytes behind the end")
        self._members += 1
        self._decoder = self._make()
        return self._decoder

    def _count(self, taken: int, given: int) -> None:
        guard = self._guard
        self.taken += taken
        self.given += given
        guard.taken += taken
        guard.given += given
        if self.given > self._most:
            self._end("size")
            raise Refused(413, f"it inflates to more than {self._most} bytes; send less at once")
        if self.given > guard.free and self.given > guard.ratio * self.taken:
            self._end("ratio")
            says = f"it inflates to more than {guard.ratio:g} times its size; send the bytes plain"
            raise Refused(413, says, reason="bomb")

    def end(self) -> None:
        """All input was fed: refused unless it is whole."""
        if not self._members or self._decoder is not None:
            raise self._damage("it stops in the middle")
        self._end(None)

    def _damage(self, says: str) -> Refused:
        self._end("damage")
        return Refused(422, f"{says}, at byte {self.taken} of what was sent", reason="bad_encoding")

    def _end(self, why: Literal["ratio", "size", "damage"] | None) -> None:
        if not self._ended:
            self._ended = True
            self._guard.observe(self.ratio, why)
