"""The client's half of a session, by bytes alone: the test plays the server."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warren.p9.client import LENT, Call, Client, State
from warren.p9.codec import BadFrame, BadValue, dialect
from warren.p9.fields import NOFID, NOTAG, Qid
from warren.p9.messages import (
    DOTL,
    PLAIN,
    WARREN,
    Message,
    Rattach,
    Rclunk,
    Rerror,
    Rflush,
    Rgetattr,
    Rlerror,
    Rread,
    Rremove,
    Rversion,
    Rwalk,
    Rwrite,
    Rxattrwalk,
    Tattach,
    Tclunk,
    Tflush,
    Tgetattr,
    Tread,
    Tremove,
    Tversion,
    Twalk,
    Twrite,
    Txattrwalk,
)

QID = Qid(0, 1, 2)
ROOT = 99  # a fid that the numbers given out here do not reach

Feed = Callable[[Client, bytes], list[Call]]


def at_once(half: Client, data: bytes) -> list[Call]:
    settled = []
    while data:
        space = half.space()
        n = min(len(space), len(data))
        space[:n] = data[:n]
        settled += half.received(n)
        data = data[n:]
    return settled


def byte_by_byte(half: Client, data: bytes) -> list[Call]:
    settled = []
    for i in range(len(data)):
        half.space()[:1] = data[i : i + 1]
        settled += half.received(1)
    return settled


@pytest.fixture(params=[at_once, byte_by_byte], ids=lambda f: f.__name__)
def feed(request: pytest.FixtureRequest) -> Feed:
    made: Feed = request.param
    return made


def begun(version: str = WARREN, msize: int = 1 << 20) -> Client:
    half = Client()
    half.begin()
    half.take()
    at_once(half, dialect(PLAIN).pack(Rversion(msize, version), NOTAG))
    assert half.version == version
    return half


def sent(half: Client) -> list[Message]:
    """What the client sent, as the server would read it."""
    data = b"".join(half.take())
    found = []
    while data:
        size = int.from_bytes(data[:4], "little")
        found.append((half.codec if half.version else dialect(PLAIN)).parse(data[:size]))
        data = data[size:]
    return found


def reply(half: Client, call: Call | int, m: Message) -> bytes:
    return half.codec.pack(m, call if isinstance(call, int) else call.tag)


# Version


@pytest.mark.parametrize(
    ("answers", "version"),
    [
        ([Rversion(8192, WARREN)], WARREN),
        ([Rversion(8192, DOTL)], DOTL),
        ([Rversion(8192, PLAIN)], PLAIN),
        ([Rversion(8192, "unknown"), Rversion(8192, DOTL)], DOTL),
        ([Rlerror(5, ""), Rversion(8192, DOTL)], DOTL),
        ([Rerror("unknown version"), Rerror("unknown version"), Rversion(8192, PLAIN)], PLAIN),
    ],
    ids=repr,
)
def test_dialects_are_offered_until_one_is_known(feed: Feed, answers: list[Message], version: str) -> None:
    half = Client()
    call = half.begin()
    settled = []
    for i, answer in enumerate(answers):
        assert sent(half) == [Tversion(1 << 20, (WARREN, DOTL, PLAIN)[i])]
        codec = dialect(DOTL if isinstance(answer, Rlerror) else PLAIN)
        settled += feed(half, codec.pack(answer, NOTAG))
    assert settled == [call]
    assert half.version == version
    assert half.msize == 8192
    assert not half.pending


def test_a_server_that_knows_none_is_no_session() -> None:
    half = Client()
    call = half.begin()
    settled = at_once(half, dialect(PLAIN).pack(Rversion(8192, "unknown"), NOTAG) * 3)
    assert settled == [call]
    assert call.reply == Rversion(8192, "unknown")
    assert half.version == ""


@pytest.mark.parametrize(
    "answer",
    [
        Rversion(8192, "9P2000.u"),
        Rversion(8192, ""),
        Rversion(8192, "9P"),
        Rversion((1 << 20) + 1, WARREN),
        Rversion(255, WARREN),
        Rflush(),
    ],
    ids=repr,
)
def test_a_version_that_was_not_offered_ends_it(answer: Message) -> None:
    half = Client()
    half.begin()
    with pytest.raises(BadFrame):
        at_once(half, dialect(PLAIN).pack(answer, NOTAG))


# Requests and replies


@pytest.mark.parametrize("version", [WARREN, DOTL])
def test_replies_find_their_requests_in_any_order(feed: Feed, version: str) -> None:
    half = begun(version)
    calls = [half.request(Twalk, 0, 10 + i, [str(i)], trace=i + 1) for i in range(5)]
    assert [m.names for m in sent(half) if isinstance(m, Twalk)] == [[str(i)] for i in range(5)]
    assert len({c.tag for c in calls}) == 5
    data = b"".join(reply(half, c, Rwalk([Qid(0, 0, c.fid)])) for c in reversed(calls))
    assert feed(half, data) == calls[::-1]
    assert [c.reply for c in calls] == [Rwalk([Qid(0, 0, 10 + i)]) for i in range(5)]
    assert not half.calls


def test_the_trace_travels_between_warren_peers_only() -> None:
    for version, trace in ((WARREN, 77), (DOTL, 0)):
        half = begun(version)
        half.request(Tclunk, 1, trace=77)
        assert [m.trace for m in sent(half)] == [trace]


def test_attach_has_a_number_for_the_user_in_linux_dialects_only() -> None:
    for version in (PLAIN, DOTL, WARREN):
        half = begun(version)
        call = half.attach(3, NOFID, "glenda", "/usr", 7)
        (m,) = sent(half)
        assert m == Tattach(3, NOFID, "glenda", "/usr", 7 if version != PLAIN else 0xFFFFFFFF)
        assert at_once(half, reply(half, call, Rattach(QID))) == [call]


@pytest.mark.parametrize(("version", "refusal"), [(PLAIN, Rerror("no")), (DOTL, Rlerror(2, ""))])
def test_a_refusal_is_an_answer(feed: Feed, version: str, refusal: Message) -> None:
    half = begun(version)
    call = half.request(Tread, 1, 0, 10)
    assert feed(half, reply(half, call, refusal)) == [call]
    assert call.refused
    assert call.reply == refusal


def test_what_cannot_be_said_takes_no_tag() -> None:
    half = begun(msize=4096)
    for cls, fields in ((Tread, (1, -1, 5)), (Twalk, (0, 1, ["x" * 70000])), (Twrite, (1, 0, bytes(4090)))):
        with pytest.raises(BadValue):
            half.request(cls, *fields)
    with pytest.raises(BadValue):
        begun(PLAIN).request(Tgetattr, 1, 1)
    assert not half.calls
    assert not half.pending
    assert half.request(Tclunk, 1).tag == 0


@pytest.mark.parametrize("version", [PLAIN, DOTL, WARREN])
@pytest.mark.parametrize("size", [0, 1, LENT - 1, LENT, 100_000])
def test_a_write_is_the_same_bytes_copied_or_not(version: str, size: int) -> None:
    half = begun(version)
    data = bytes(i & 0xFF for i in range(size))
    half.request(Twrite, 7, 1 << 33, memoryview(data), trace=99)
    parts = half.take()
    expected = Twrite(7, 1 << 33, data)
    expected.trace = 99
    assert b"".join(parts) == half.codec.pack(expected, 0)
    assert any(isinstance(p, memoryview) and p.obj is data for p in parts) is (size >= LENT)


@pytest.mark.parametrize("size", [0, 1, LENT - 1, LENT, 1 << 19])
def test_large_payloads_are_views_and_stay_what_they_were(size: int) -> None:
    half = begun()
    first, second = half.request(Tread, 1, 0, 1 << 19), half.request(Tread, 1, 0, 1 << 19)
    at_once(half, reply(half, first, Rread(b"a" * size)) + reply(half, second, Rread(b"b" * size)))
    third = half.request(Tread, 1, 0, 1 << 19)
    at_once(half, reply(half, third, Rread(b"c" * size)))
    for call, letter in ((first, b"a"), (second, b"b"), (third, b"c")):
        assert isinstance(call.reply, Rread)
        assert isinstance(call.reply.data, memoryview) is (size >= LENT)
        assert call.reply.data == letter * size


def test_a_large_payload_is_received_where_it_is_read() -> None:
    half = begun()
    call = half.request(Tread, 1, 0, 1 << 19)
    space = half.space()
    assert len(space) > 1 << 19
    frame = reply(half, call, Rread(bytes(1 << 19)))
    space[: len(frame)] = frame
    half.received(len(frame))
    assert isinstance(call.reply, Rread)
    assert isinstance(call.reply.data, memoryview)
    assert call.reply.data.obj is space.obj


def test_an_idle_session_keeps_a_small_buffer() -> None:
    half = begun()
    for _ in range(3):
        call = half.request(Tread, 1, 0, 1 << 19)
        at_once(half, reply(half, call, Rread(bytes(1 << 19))))
    assert len(half.space()) <= LENT


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 2 * LENT), min_size=1, max_size=6), st.data())
def test_replies_cut_anywhere_are_the_same(sizes: list[int], data: st.DataObject) -> None:
    half = begun()
    calls = [half.request(Tread, 1, 0, size) for size in sizes]
    letters = [bytes([i + 1]) * size for i, size in enumerate(sizes)]
    stream = b"".join(reply(half, c, Rread(x)) for c, x in zip(calls, letters, strict=True))
    settled = []
    while stream:
        space = half.space()
        n = min(data.draw(st.integers(1, 50_000)), len(space), len(stream))
        space[:n] = stream[:n]
        settled += half.received(n)
        stream = stream[n:]
    assert settled == calls
    assert [bytes(c.reply.data) for c in calls if isinstance(c.reply, Rread)] == letters


# Flush


def test_a_reply_before_rflush_counts(feed: Feed) -> None:
    half = begun()
    call = half.request(Tread, 1, 0, 10)
    half.flush(call)
    _, flush = sent(half)
    assert flush == Tflush(call.tag)
    assert feed(half, reply(half, call, Rread(b"first"))) == [call]
    assert call.state is State.ANSWERED
    assert half.request(Tclunk, 9).tag not in (call.tag, flush.tag), "the tag is free only after Rflush"
    assert feed(half, reply(half, flush.tag, Rflush())) == []
    assert half.request(Tclunk, 9).tag in (call.tag, flush.tag)


def test_rflush_means_no_effect(feed: Feed) -> None:
    half = begun()
    call = half.request(Tread, 1, 0, 10)
    half.flush(call)
    flush = sent(half)[1]
    assert feed(half, reply(half, flush.tag, Rflush())) == [call]
    assert call.state is State.FLUSHED
    assert call.reply is None
    assert not half.calls
    with pytest.raises(BadFrame):
        feed(half, reply(half, call, Rread(b"late")))


def test_every_flush_of_a_tag_is_answered_before_it_is_free() -> None:
    half = begun()
    call = half.request(Tread, 1, 0, 10)
    for _ in range(3):
        half.flush(call)
    flushes = [m.tag for m in sent(half)[1:]]
    assert at_once(half, reply(half, flushes[0], Rflush())) == [call]
    assert call.state is State.FLUSHED
    for tag in flushes[1:]:
        assert call.tag in half.calls
        assert at_once(half, reply(half, tag, Rflush())) == []
    assert not half.calls


def test_a_settled_request_is_not_flushed() -> None:
    half = begun()
    call = half.request(Tread, 1, 0, 10)
    at_once(half, reply(half, call, Rread(b"")))
    half.take()
    half.flush(call)
    assert not half.pending


# Fids


def test_a_fid_is_free_once_its_clunk_was_answered() -> None:
    for answer in (Rclunk(), Rlerror(5, "bad")):
        half = begun()
        fid = half.fids.take()
        call = half.request(Tclunk, fid)
        assert half.fids.take() != fid
        at_once(half, reply(half, call, answer))
        assert half.fids.take() == fid


def test_a_remove_frees_the_fid_even_when_refused() -> None:
    for answer in (Rremove(), Rlerror(1, "bad")):
        half = begun()
        fid = half.fids.take()
        call = half.request(Tremove, fid)
        at_once(half, reply(half, call, answer))
        assert half.fids.take() == fid


@pytest.mark.parametrize("answer", [Rlerror(2, "no"), Rwalk([QID])], ids=repr)
def test_a_walk_that_failed_or_fell_short_frees_its_fid(answer: Message) -> None:
    half = begun()
    fid = half.fids.take()
    call = half.request(Twalk, ROOT, fid, ["a", "b"])
    assert half.fids.take() != fid
    at_once(half, reply(half, call, answer))
    assert not call.makes
    assert half.fids.take() == fid


def test_a_walk_that_succeeded_keeps_it() -> None:
    half = begun()
    fid = half.fids.take()
    call = half.request(Twalk, ROOT, fid, ["a", "b"])
    at_once(half, reply(half, call, Rwalk([QID, QID])))
    assert call.makes
    assert half.fids.take() != fid


def test_a_walk_in_place_frees_nothing() -> None:
    half = begun()
    fid = half.fids.take()
    call = half.request(Twalk, fid, fid, ["a"])
    at_once(half, reply(half, call, Rlerror(2, "no")))
    assert half.fids.in_use == 1


def test_a_flushed_walk_or_attribute_frees_its_fid() -> None:
    for cls, last in ((Twalk, ["a"]), (Txattrwalk, "user.a")):
        half = begun()
        fid = half.fids.take()
        call = half.request(cls, ROOT, fid, last)
        half.flush(call)
        at_once(half, reply(half, sent(half)[1].tag, Rflush()))
        assert half.fids.take() == fid
    call = half.request(Txattrwalk, ROOT, fid, "user.b")
    at_once(half, reply(half, call, Rxattrwalk(4)))
    assert half.fids.take() != fid


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_a_fid_waits_for_all_that_was_sent_in_the_belief_of_it(order: tuple[int, ...]) -> None:
    half = begun()
    fid = half.fids.take()
    walk = half.request(Twalk, ROOT, fid, ["a"])
    calls = [
        walk,
        half.request(Tgetattr, fid, 1, after=walk),
        half.request(Tread, fid, 0, 10, after=walk),
    ]
    for left, i in zip((2, 1, 0), order, strict=True):
        at_once(half, reply(half, calls[i], Rlerror(2, "no")))
        assert half.fids.in_use == (1 if left else 0)


# Peers that may not go on


def _too_many_names(half: Client) -> tuple[Call, Message]:
    return half.request(Twalk, 0, 1, ["a"]), Rwalk([QID, QID])


def _no_names(half: Client) -> tuple[Call, Message]:
    return half.request(Twalk, 0, 1, ["a"]), Rwalk([])


def _too_much_data(half: Client) -> tuple[Call, Message]:
    return half.request(Tread, 0, 0, 3), Rread(b"four")


def _more_than_given(half: Client) -> tuple[Call, Message]:
    return half.request(Twrite, 0, 0, b"abc"), Rwrite(4)


def _wrong_type(half: Client) -> tuple[Call, Message]:
    return half.request(Tclunk, 1), Rremove()


def _a_request(half: Client) -> tuple[Call, Message]:
    return half.request(Tclunk, 1), Tclunk(1)


def _refused_flush(half: Client) -> tuple[Call, Message]:
    half.flush(half.request(Tread, 0, 0, 3))
    return half.calls[1], Rlerror(5, "")


@pytest.mark.parametrize(
    "case",
    [_too_many_names, _no_names, _too_much_data, _more_than_given, _wrong_type, _a_request, _refused_flush],
)
def test_what_no_server_may_say_ends_the_session(
    feed: Feed, case: Callable[[Client], tuple[Call, Message]]
) -> None:
    half = begun()
    call, answer = case(half)
    with pytest.raises(BadFrame):
        feed(half, reply(half, call, answer))
    assert call in half.lost(), "whoever asked must hear of it"


def test_an_error_of_the_other_dialect_ends_the_session() -> None:
    half = begun(PLAIN)
    call = half.request(Tclunk, 1)
    with pytest.raises(BadFrame):
        at_once(half, dialect(DOTL).pack(Rlerror(5, ""), call.tag))


def _frames() -> Iterator[Any]:
    yield pytest.param((6).to_bytes(4, "little") + bytes(3), id="undersized")
    yield pytest.param((1 << 20 | 1).to_bytes(4, "little") + bytes(3), id="oversized")
    yield pytest.param(dialect(WARREN).pack(Rclunk(), 5), id="a tag that asked nothing")
    yield pytest.param(dialect(WARREN).pack(Rversion(8192, WARREN), NOTAG), id="a version again")
    yield pytest.param(b"\x08\0\0\0" + bytes([Rclunk.type]) + b"\0\0x", id="trailing")
    yield pytest.param(b"\x09\0\0\0" + bytes([Rread.type]) + b"\0\0\0\0", id="truncated")


@pytest.mark.parametrize("frame", list(_frames()))
def test_what_is_no_reply_ends_the_session(feed: Feed, frame: bytes) -> None:
    half = begun()
    half.request(Tclunk, 1)
    with pytest.raises(BadFrame):
        feed(half, frame)


def test_a_second_reply_ends_the_session_even_while_a_flush_is_out() -> None:
    half = begun()
    call = half.request(Tread, 1, 0, 10)
    half.flush(call)
    at_once(half, reply(half, call, Rread(b"one")))
    with pytest.raises(BadFrame):
        at_once(half, reply(half, call, Rread(b"two")))


def test_replies_before_a_bad_frame_are_not_lost() -> None:
    half = begun()
    call = half.request(Tclunk, 1)
    data = reply(half, call, Rclunk()) + reply(half, 77, Rclunk())
    half.space()[: len(data)] = data
    assert half.received(len(data)) == [call]
    with pytest.raises(BadFrame):
        half.space()


def test_the_end_settles_everything() -> None:
    half = begun()
    calls = [half.request(Tread, 1, 0, 10) for _ in range(3)]
    half.flush(calls[1])
    at_once(half, reply(half, calls[0], Rread(b"")))
    lost = half.lost()
    assert calls[1] in lost
    assert calls[2] in lost
    assert calls[0] not in lost
    assert all(c.state is State.LOST for c in calls[1:])
    assert not half.pending


def test_numbers_run_out_aloud() -> None:
    half = begun()
    for _ in range(NOTAG):
        half.request(Tclunk, 1)
    assert NOTAG not in half.calls
    with pytest.raises(BlockingIOError):
        half.request(Tclunk, 1)


def test_attributes_arrive_whole(feed: Feed) -> None:
    half = begun(DOTL)
    call = half.request(Tgetattr, 1, 0x7FF)
    answer = Rgetattr(0x7FF, QID, *range(18))
    assert feed(half, reply(half, call, answer)) == [call]
    assert call.reply == answer
