"""The server's half of a session: frames, versions, tags, and the order of flushes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warren.p9.codec import BadFrame, dialect
from warren.p9.fields import NOTAG
from warren.p9.messages import (
    ALL,
    DOTL,
    PLAIN,
    WARREN,
    Message,
    Rclunk,
    Rerror,
    Rflush,
    Rgetattr,
    Rlerror,
    Rversion,
    Tclunk,
    Tflush,
    Tgetattr,
    Tread,
    Tversion,
    Twrite,
)
from warren.p9.server import Pending, Server
from warren.serve.pool import Pool

from tests.strategies import REQUESTS, messages


class Half(Server):
    """A server half with a pool of its own that tests can look into."""

    def __init__(self, version: str = DOTL, msize: int = 8192, cap: int = 1 << 20) -> None:
        self.pool = Pool(cap)
        super().__init__(self.pool)
        if version:
            self.exchange(version, msize)

    def exchange(self, version: str, msize: int) -> Rversion:
        (m,) = list(self.requests(memoryview(dialect(PLAIN).pack(Tversion(msize, version), NOTAG))))
        assert isinstance(m, Tversion)
        self.aborted = self.version(m)
        (reply,) = self.sent()
        assert isinstance(reply, Rversion)
        return reply

    def sent(self) -> list[Message]:
        """What was queued, parsed and forgotten."""
        raw, found = b"".join(self.out), []
        self.out.clear()
        codec = self.dialect or dialect(PLAIN)
        while raw:
            size = int.from_bytes(raw[:4], "little")
            found.append(codec.parse(raw[:size]))
            raw = raw[size:]
        return found

    def frame(self, m: Message, tag: int) -> bytes:
        return (self.dialect or dialect(PLAIN)).pack(m, tag)

    def feed(self, *tagged: tuple[int, Message]) -> list[Message]:
        raw = b"".join(self.frame(m, tag) for tag, m in tagged)
        return list(self.requests(memoryview(raw)))

    def parked(self, tag: int) -> Pending:
        (m,) = self.feed((tag, Tread(1, 0, 10)))
        return self.park(m)

    def flushing(self, tag: int, old: int) -> Pending | None:
        (m,) = self.feed((tag, Tflush(old)))
        assert isinstance(m, Tflush)
        return self.flush(m)


def tags(found: list[Message]) -> list[tuple[str, int]]:
    return [(type(m).__name__, m.tag) for m in found]


# Flush


def test_a_flush_of_nothing_is_answered_at_once() -> None:
    half = Half()
    assert half.flushing(2, 1) is None
    assert half.flushing(3, 3) is None, "of itself"
    assert tags(half.sent()) == [("Rflush", 2), ("Rflush", 3)]
    assert not half.outstanding


def test_a_flush_waits_until_its_request_is_settled() -> None:
    half = Half()
    p = half.parked(1)
    assert half.flushing(2, 1) is p
    assert not half.out
    assert half.settle(p, None)
    assert tags(half.sent()) == [("Rflush", 2)]
    assert not half.outstanding


def test_a_reply_that_was_ready_first_goes_first() -> None:
    half = Half()
    p = half.parked(1)
    half.flushing(2, 1)
    half.settle(p, [half.frame(Rclunk(), 1)])
    assert tags(half.sent()) == [("Rclunk", 1), ("Rflush", 2)]


def test_several_flushes_are_answered_in_their_order() -> None:
    half = Half()
    p = half.parked(1)
    for tag in (9, 2, 5):
        assert half.flushing(tag, 1) is p
    half.settle(p, None)
    assert tags(half.sent()) == [("Rflush", 9), ("Rflush", 2), ("Rflush", 5)]


def test_a_flush_of_a_flush_joins_the_queue() -> None:
    half = Half()
    p = half.parked(1)
    half.flushing(2, 1)
    assert half.flushing(3, 2) is p
    half.settle(p, None)
    assert tags(half.sent()) == [("Rflush", 2), ("Rflush", 3)]
    assert not half.outstanding


def test_a_tag_is_free_only_when_its_last_reply_was_queued() -> None:
    half = Half()
    p = half.parked(1)
    half.flushing(2, 1)
    for tag in (1, 2):
        with pytest.raises(BadFrame, match=f"tag {tag} is still in use"):
            half.feed((tag, Tclunk(1)))
    half.settle(p, None)
    assert tags(half.feed((1, Tclunk(1)), (2, Tclunk(2)))) == [("Tclunk", 1), ("Tclunk", 2)]


@given(st.data())
def test_whatever_the_order_every_flush_is_answered_after_its_request(data: st.DataObject) -> None:
    """Random requests, flushes and settlements: no tag is answered twice, and Rflush never comes early."""
    half = Half()
    live: dict[int, Pending] = {}
    names: dict[int, int] = {}
    settled: list[tuple[str, int]] = []
    for step in range(data.draw(st.integers(1, 24))):
        doing = data.draw(st.sampled_from(["park", "flush", "settle"]))
        if doing == "park":
            live[step] = half.parked(step)
        elif doing == "flush":
            old = data.draw(st.integers(0, 24))
            names[step] = old
            half.flushing(step, old)
        elif live:
            tag = data.draw(st.sampled_from(sorted(live)))
            finished = data.draw(st.booleans())
            half.settle(live.pop(tag), [half.frame(Rclunk(), tag)] if finished else None)
        for name, tag in tags(half.sent()):
            assert (name, tag) not in settled
            settled.append((name, tag))
            if name == "Rflush":
                seen, old = {tag}, names[tag]
                while old in names and old not in seen and ("Rflush", old) not in settled[:-1]:
                    seen.add(old)
                    old = names[old]
                assert old not in live, "the request behind this flush is not settled yet"
    for tag in list(live):
        half.settle(live.pop(tag), None)
    settled += tags(half.sent())
    assert sorted(tag for name, tag in settled if name == "Rflush") == sorted(names)
    assert not half.outstanding


# Versions


def test_the_first_message_must_be_a_version() -> None:
    half = Half("")
    with pytest.raises(BadFrame, match="first message"):
        half.feed((1, Tclunk(1)))


@pytest.mark.parametrize("tag", [0, 1, 0xFFFE])
def test_a_version_that_expects_an_answer_by_tag_is_refused(tag: int) -> None:
    half = Half("")
    (m,) = half.feed((tag, Tversion(8192, DOTL)))
    assert isinstance(m, Tversion)
    with pytest.raises(BadFrame):
        half.version(m)


@pytest.mark.parametrize(
    ("asked", "given_"),
    [(256, 256), (8192, 8192), (1 << 20, 1 << 20), ((1 << 20) + 1, 1 << 20), (2**32 - 1, 1 << 20)],
)
def test_msize_is_clamped(asked: int, given_: int) -> None:
    half = Half("")
    reply = half.exchange(DOTL, asked)
    assert (reply.version, reply.msize) == (DOTL, given_)
    assert half.msize == given_


@pytest.mark.parametrize("asked", [0, 1, 23, 255])
def test_an_msize_that_nothing_fits_is_no_session(asked: int) -> None:
    half = Half("")
    assert half.exchange(DOTL, asked).version == "unknown"
    with pytest.raises(BadFrame, match="first message"):
        half.feed((1, Tclunk(1)))


def test_an_unknown_version_can_be_followed_by_a_better_offer() -> None:
    half = Half("")
    assert half.exchange("9P3000", 8192).version == "unknown"
    assert half.exchange(WARREN, 8192).version == WARREN


def test_a_second_version_aborts_everything_in_silence() -> None:
    half = Half()
    one, two = half.parked(1), half.parked(2)
    half.flushing(3, 2)
    half.exchange(PLAIN, 4096)
    assert half.aborted == [one, two]
    assert not half.settle(one, [b"late"])
    assert not half.settle(two, None)
    assert not half.out
    half.feed((1, Tclunk(1)), (2, Tclunk(1)), (3, Tclunk(1)))


def test_the_dialect_changes_within_one_segment() -> None:
    half = Half("")
    raw = dialect(PLAIN).pack(Tversion(8192, WARREN), NOTAG)
    raw += dialect(WARREN).pack(Tgetattr(1, 2), 3)
    found = []
    for m in half.requests(memoryview(raw)):
        found.append(type(m))
        if isinstance(m, Tversion):
            half.version(m)
    assert found == [Tversion, Tgetattr]


# Frames


def fed(half: Half, raw: bytes, step: int) -> list[Message]:
    """What comes of RAW in pieces of STEP bytes."""
    pieces = [memoryview(raw)[at : at + step] for at in range(0, len(raw), step)]
    return [m for piece in pieces for m in half.requests(piece)]


@pytest.mark.parametrize("size", [0, 1, 6, 8193, 1 << 20, 2**32 - 1])
def test_a_size_that_cannot_be_ends_the_connection(size: int) -> None:
    raw = size.to_bytes(4, "little") + b"\x78\x01\x00\x05\x00\x00\x00"
    for step in (len(raw), 1, 5):
        half = Half()
        with pytest.raises(BadFrame):
            fed(half, raw, step)
        half.close()
        assert half.pool.used == 0


@given(st.data())
def test_how_the_bytes_are_cut_makes_no_difference(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(ALL))
    kinds = [cls for cls in REQUESTS if name in cls.dialects and cls is not Tversion]
    sent = [data.draw(messages(data.draw(st.sampled_from(kinds)), name)) for _ in range(4)]
    half = Half(name)
    raw = b"".join(half.frame(m, n) for n, m in enumerate(sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    count = 0
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        for m in half.requests(memoryview(raw)[start:end]):
            assert (m, m.tag, m.trace) == (sent[count], count, sent[count].trace)
            count += 1
    assert count == len(sent)
    assert half.pool.used == 0
    assert not half.partial


def test_a_large_frame_is_received_where_it_belongs() -> None:
    half = Half(msize=1 << 20, cap=4 << 20)
    payload = bytes(range(256)) * 2000
    raw = half.frame(Twrite(1, 0, payload), 7)
    assert half.space() is None
    assert not list(half.requests(memoryview(raw)[:100]))
    at = 100
    while (space := half.space()) is not None:
        n = min(len(space), 70_000)
        space[:n] = raw[at : at + n]
        half.received(n)
        at += n
        for m in half.requests(memoryview(b"")):
            assert isinstance(m, Twrite)
            assert bytes(m.data) == payload
    for m in half.requests(memoryview(raw)[at:]):
        assert isinstance(m, Twrite)
        assert bytes(m.data) == payload
    assert half.pool.used == 0


def test_buffers_come_back_however_a_frame_ends() -> None:
    frame = Half().frame(Twrite(1, 0, b"x" * 6000), 7)

    half = Half()
    list(half.requests(memoryview(frame)[:500]))
    assert half.pool.used
    half.close()
    assert half.pool.used == 0, "the connection went away in the middle of it"

    half = Half()
    bad = bytearray(frame)
    bad[15 + 4] ^= 1  # its data is one byte shorter than the frame says
    list(half.requests(memoryview(bad)[:500]))
    with pytest.raises(BadFrame):
        list(half.requests(memoryview(bad)[500:]))
    half.close()
    assert half.pool.used == 0, "it was no message"

    half = Half()
    list(half.requests(memoryview(frame)[:500]))
    stopped = half.requests(memoryview(frame)[500:])
    next(stopped)
    stopped.close()
    half.close()
    assert half.pool.used == 0, "the driver lost interest"


def test_the_cap_on_buffers_ends_a_connection_and_not_the_process() -> None:
    half = Half(msize=1 << 20, cap=4096)
    frame = half.frame(Twrite(1, 0, bytes(8192)), 1)
    with pytest.raises(BufferError):
        list(half.requests(memoryview(frame)[:100]))
    half.close()
    assert half.pool.used == 0


def test_a_driver_can_tell_one_slow_frame_from_many() -> None:
    half = Half()
    frame = half.frame(Tclunk(1), 1)
    counts = []
    for _ in range(2):
        for byte in frame:
            list(half.requests(memoryview(bytes([byte]))))
            counts.append(half.begun)
    one, other = set(counts[: len(frame) - 1]), set(counts[len(frame) : -1])
    assert len(one) == len(other) == 1
    assert one != other


# Refusals


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("msize", [256, 8192])
def test_a_refusal_fits_the_session(name: str, msize: int) -> None:
    half = Half(name, msize)
    frame = half.refusal(4, 13, "403 " + "é" * 4000, "permission " + "é" * 4000)
    assert len(frame) <= msize
    m = half.dialect.parse(frame) if half.dialect else None
    if isinstance(m, Rerror):
        assert len(m.ename.encode()) <= 127
        assert set(m.ename) == set("permission é"), "no character is cut in two"
    else:
        assert isinstance(m, Rlerror)
        assert m.ecode == 13
        assert bool(m.ename) == (name == WARREN)


def test_replies_are_queued_in_the_order_given() -> None:
    half = Half()
    p = half.parked(1)
    half.answer(half.frame(Rclunk(), 2))
    half.settle(p, [half.frame(Rgetattr(*[0], *[(0, 0, 0)], *[0] * 18), 1)])  # type: ignore[arg-type]
    assert tags(half.sent()) == [("Rclunk", 2), ("Rgetattr", 1)]
    assert half.flushing(3, 1) is None
    assert isinstance(half.sent()[0], Rflush)
