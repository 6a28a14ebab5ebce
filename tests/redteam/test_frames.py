"""Frames no honest client sends. Each ends in a named error or a closed connection; nobody else notices."""

import gc
import tracemalloc
from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from warren.p9.codec import HEADER, dialect
from warren.p9.fields import NONUNAME
from warren.p9.messages import (
    ALL,
    DOTL,
    MESSAGES,
    PLAIN,
    WARREN,
    Rerror,
    Rflush,
    Rlerror,
    Rversion,
    Rwrite,
    Tattach,
    Tauth,
    Tclunk,
    Tflush,
    Tgetattr,
    Topen,
    Tread,
    Treaddir,
    Tversion,
    Twalk,
    Twrite,
)
from warren.serve.export import Limits
from warren.servers.demo import Demo
from warren.tree import Dir, File

from tests.wire import O_WRONLY, Gone, RefusedBy, Service, Wire, listened, served


async def ended(wire: Wire) -> None:
    with pytest.raises(Gone):
        await replies_for_ever(wire)


async def replies_for_ever(wire: Wire) -> None:
    while True:
        await wire.reply()


async def trickle(wire: Wire, frame: bytes) -> None:
    """FRAME but for its last byte, in bytes far apart, until the server hangs up."""
    while True:
        for byte in frame[:-1]:
            await wire.send_raw(bytes([byte]))
            with trio.move_on_after(0.1):
                await wire.reply()


async def notices_nothing(other: Wire) -> None:
    """What the connection beside it can do, it still can."""
    await other.open("hello", 77)
    assert await other.read(77) == b"hello, world\n"
    await other.clunk(77)


def header(size: int, kind: int, tag: int = 1) -> bytes:
    return HEADER.pack(size, kind, tag)


UNSPEAKABLE: dict[str, Callable[[], bytes]] = {
    "a size of nothing": lambda: header(0, 120) + bytes(4),
    "a size of less than a header": lambda: header(6, 120) + bytes(4),
    "a size beyond msize": lambda: header(65537, 118) + bytes(100),
    "the greatest size": lambda: header(2**32 - 1, 118),
    "a message type that does not exist": lambda: header(11, 200) + bytes(4),
    "type zero": lambda: header(7, 0),
    "Terror, which no one may send": lambda: header(9, 106) + bytes(2),
    "Tlerror, which no one may send": lambda: header(11, 6) + bytes(4),
    "a message of another dialect": lambda: dialect(PLAIN).pack(Topen(0, 0), 1),
    "a truncated walk": lambda: header(17, 110) + bytes(8) + b"\x01\x00",
    "a walk of 17 names": lambda: header(17 + 3 * 17, 110) + bytes(8) + b"\x11\x00" + b"\x01\x00x" * 17,
    "a walk that claims 65535 names": lambda: header(17, 110) + bytes(8) + b"\xff\xff",
    "a write of more than it brings": lambda: header(25, 118) + bytes(12) + b"\xff\xff\xff\xff" + b"xx",
    "trailing bytes": lambda: header(15, 120) + bytes(8),
    "a string beyond its frame": lambda: header(21, 102) + bytes(4) + b"\xff\xff" + bytes(8),
    "noise": lambda: bytes(range(256)),
}


@pytest.mark.parametrize("what", UNSPEAKABLE)
async def test_what_is_no_message_ends_the_connection(what: str) -> None:
    async with served(Demo()) as service:
        other = await service.dial()
        wire = await service.dial()
        await wire.send_raw(UNSPEAKABLE[what]())
        await ended(wire)
        assert len(service.export.sessions) == 1
        assert service.export.trace.errors[-1].op == "connection"
        await notices_nothing(other)


@pytest.mark.parametrize("name", sorted(n for n in MESSAGES if n[0] == "R"))
async def test_a_reply_sent_to_the_server_ends_the_connection(name: str) -> None:
    async with served(Demo()) as service:
        for version in MESSAGES[name].dialects:
            wire = await service.dial(version)
            await wire.send(next(MESSAGES[name].examples()))
            await ended(wire)
        assert not service.export.sessions


@pytest.mark.parametrize("name", sorted(n for n in MESSAGES if n[0] == "T" and n != "Tversion"))
async def test_nothing_comes_before_the_version(name: str) -> None:
    async with served(Demo()) as service:
        wire = service.connect()
        wire.codec = dialect(MESSAGES[name].dialects[-1])
        await wire.send(next(MESSAGES[name].examples()))
        await ended(wire)


@pytest.mark.parametrize("msize", [0, 1, 11, 23, 255])
async def test_an_msize_too_small_for_anything_is_unknown(msize: int) -> None:
    async with served(Demo()) as service:
        wire = service.connect()
        assert (await wire.version(DOTL, msize)).version == "unknown"
        assert (await wire.version(DOTL, 8192)).version == DOTL


@pytest.mark.parametrize("version", ALL)
async def test_the_least_msize_carries_a_session_and_nothing_exceeds_it(version: str) -> None:
    long = "n" * 255
    tree = Demo()
    async with served(Dir({"deep": tree, long: Dir({long: Dir()})})) as service:
        wire = await service.dial(version, 256)  # the wire checks every reply against msize
        await wire.open("deep/scratch", 1, 2)
        assert await wire.write(1, b"x" * 200) == 200
        assert await wire.read(1, 0, 2**32 - 1) == b"x" * 200
        with pytest.raises(RefusedBy):
            await wire.want(Rversion, Twalk(0, 5, ["no" * 60]))
        await wire.ask(Twalk(0, 6, [".."] * 16))
        if version == PLAIN:
            await wire.walk("deep", 8)
        else:
            await wire.open("", 9)
            assert isinstance(await wire.ask(Treaddir(9, 0, 4096)), MESSAGES["Rreaddir"] | Rlerror)


async def test_a_huge_msize_is_clamped_and_costs_nothing_until_it_is_used() -> None:
    async with served(Demo(), limits=Limits(buffers=4 << 20)) as service:
        wires = []
        for _ in range(50):
            wire = service.connect()
            assert (await wire.version(DOTL, 2**32 - 1)).msize == 1 << 20
            wires.append(wire)
        await wires[0].attach()
        await notices_nothing(wires[0])


async def test_the_cap_on_buffers_ends_those_who_hold_them() -> None:
    async with listened(Demo(), limits=Limits(buffers=4 << 20)) as sockets:
        other = await sockets.dial()
        wires = [await sockets.dial(msize=1 << 20) for _ in range(12)]
        for wire in wires:
            await wire.send_raw(header(1 << 20, 118) + bytes(5000))
        alive = 0
        for wire in wires:
            await wire.send_raw(bytes(100))
        with trio.move_on_after(0.3):
            for wire in wires:
                await ended(wire)
        alive = sum(s.half.partial for s in sockets.export.sessions)
        assert alive <= 4
        await notices_nothing(other)


@pytest.mark.parametrize("version", ALL)
async def test_tauth_says_that_none_is_needed(version: str) -> None:
    async with served(Demo()) as service:
        wire = await service.dial(version)
        reply = await wire.ask(Tauth(9, "glenda", "", NONUNAME))
        if version == PLAIN:
            assert reply == Rerror("authentication not required")
        else:
            assert isinstance(reply, Rlerror)
            assert reply.ecode == 2


async def test_stray_and_duplicate_tags() -> None:
    async with served(Demo()) as service:
        wire = await service.dial()
        assert isinstance(await wire.ask(Tflush(4711), tag=1), Rflush)
        await wire.open("recv", 1)
        await wire.send(Tread(1, 0, 9), tag=3)
        await wire.send(Tread(1, 0, 9), tag=3)
        await ended(wire)
        assert not service.export.sessions


async def test_the_limit_of_fids_is_an_answer() -> None:
    async with served(Demo(), limits=Limits(fids=100)) as service:
        wire = await service.dial(WARREN)
        refused = 0
        for start in range(0, 1000, 50):
            await wire.send(*[Twalk(0, 1000 + start + n, []) for n in range(50)])
            refused += sum(isinstance(m, Rlerror) for m in await wire.replies(50))
        assert refused == 1000 - 99
        with pytest.raises(RefusedBy, match="429 busy: 100 fids are in use"):
            await wire.walk("", 5)
        await wire.clunk(1000)
        await wire.walk("", 5)


async def test_65536_fids() -> None:
    """More than the default gives: the rest is refused, and all of it comes back."""
    async with served(Demo()) as service:
        wire = await service.dial()
        made = 0
        for start in range(0, 65536, 4096):
            await wire.send_raw(b"".join(wire.pack(Twalk(0, 1 + start + n, []), n) for n in range(4096)))
            made += sum(not isinstance(m, Rlerror) for m in await wire.replies(4096))
        assert made == service.export.limits.fids - 1
        await wire.stream.aclose()
        await wait_all_tasks_blocked()
        assert service.export.statistics()["fids"] == 0


async def test_a_frame_that_trickles_in_is_given_up_in_virtual_time(autojump_clock: MockClock) -> None:
    async with served(Demo(), limits=Limits(patience=10)) as service:
        wire = await service.dial()
        frame = wire.pack(Twalk(0, 1, ["hello"]))
        start = trio.current_time()
        for byte in frame:
            try:
                await wire.send_raw(bytes([byte]))
            except trio.BrokenResourceError:
                break
            await trio.sleep(3)
        await ended(wire)
        assert trio.current_time() - start < 31
        assert "took too long" in service.errors()[-1]


async def test_idle_is_not_slow(autojump_clock: MockClock) -> None:
    async with served(Demo(), limits=Limits(patience=10)) as service:
        wire = await service.dial()
        for _ in range(3):
            await trio.sleep(3600)
            await notices_nothing(wire)
            frame = wire.pack(Twalk(0, 1, []))
            await wire.send_raw(frame[:9])
            await trio.sleep(9)
            await wire.send_raw(frame[9:])
            await wire.reply()
            await wire.clunk(1)


@pytest.mark.parametrize("scheme", ["tcp", "unix"])
async def test_a_frame_that_trickles_in_is_given_up_on_a_socket(scheme: str, tmp_path: object) -> None:
    address = "tcp!127.0.0.1!0" if scheme == "tcp" else f"unix!{tmp_path}/s"
    async with listened(Demo(), address, limits=Limits(patience=0.4)) as sockets:
        wire, silent = await sockets.dial(), await sockets.connect()
        frame = wire.pack(Tgetattr(0, 1))
        with trio.fail_after(10):
            with pytest.raises((trio.BrokenResourceError, Gone)):
                await trickle(wire, frame)
            await ended(silent)
        texts = {e.text for e in sockets.export.trace.errors}
        assert "a frame took too long to arrive" in texts
        assert "no version exchange came in time" in texts


@pytest.mark.parametrize("cut", [1, 6, 7, 12, 5000])
async def test_a_disconnect_in_the_middle_of_a_frame(cut: int) -> None:
    demo = Demo()
    async with listened(demo) as sockets:
        other = await sockets.dial()
        wire = await sockets.dial()
        await wire.open("send", 1, O_WRONLY)
        await wire.send_raw(wire.pack(Twrite(1, 0, bytes(9000)))[:cut])
        await wire.stream.aclose()
        await notices_nothing(other)
        with trio.fail_after(5):
            while len(sockets.export.sessions) > 1:
                await notices_nothing(other)
        assert not demo.queue.kept


async def test_memory_stays_flat_through_it_all() -> None:
    """Hostile conversations, again and again: after the first rounds nothing grows."""
    attacks = [
        header(2**32 - 1, 118),
        header(60000, 118) + bytes(300),
        header(11, 200) + bytes(4),
        dialect(DOTL).pack(Tread(1, 0, 10), 1) * 2,
        b"".join(dialect(DOTL).pack(Twalk(0, 10 + n, []), n) for n in range(300)),
        dialect(DOTL).pack(Twalk(0, 1, ["x" * 255] * 16), 1) * 20,
    ]

    async def round_of_attacks(service: Service) -> None:
        for attack in attacks:
            wire = await service.dial()
            await wire.open("recv", 1)
            await wire.send(*[Tread(1, 0, 99)] * 32, tag=5)
            await wire.send_raw(attack)
            await wait_all_tasks_blocked()
            await wire.stream.aclose()
        await wait_all_tasks_blocked()
        assert not service.export.sessions

    async with served(Demo()) as service:
        service.export.trace.errors = type(service.export.trace.errors)(maxlen=10)
        service.export.trace.recent = type(service.export.trace.recent)(maxlen=10)
        for _ in range(3):
            await round_of_attacks(service)
        gc.collect()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(6):
            await round_of_attacks(service)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    assert grown < 64 << 10, f"{grown} bytes more after 36 hostile conversations"


async def test_one_segment_cannot_ask_for_more_than_memory_holds() -> None:
    """60 reads of a mebibyte fit one segment; their replies wait until the earlier ones were taken."""
    body = bytes(1 << 20)
    most = 0
    async with served(
        Dir({"big": File(lambda offset, count: body[:count])}), limits=Limits(unread=2 << 20)
    ) as service:
        wire = await service.dial(msize=1 << 20)
        await wire.open("big", 1)
        (session,) = service.export.sessions
        await wire.send_raw(b"".join(wire.pack(Tread(1, 0, 1 << 20), n) for n in range(60)))
        for n in range(60):
            m = await wire.reply()
            assert (m.tag, len(m.data)) == (n, (1 << 20) - 11)  # type: ignore[attr-defined]
            most = max(most, sum(map(len, session.half.out)))
    assert most < 5 << 20


@pytest.mark.parametrize("version", ALL)
async def test_garbage_after_a_good_request_does_not_take_its_answer_away(version: str) -> None:
    async with listened(Demo()) as sockets:
        wire = await sockets.dial(version)
        await wire.send_raw(wire.pack(Tclunk(0), 3) + header(0, 0))
        assert (await wire.reply()).tag == 3
        await ended(wire)


async def test_a_version_with_a_tag_and_an_attach_with_a_token() -> None:
    async with served(Demo()) as service:
        wire = service.connect()
        await wire.send_raw(dialect(PLAIN).pack(Tversion(8192, DOTL), 1))
        await ended(wire)
        wire = await service.dial()
        with pytest.raises(RefusedBy):
            await wire.want(Rwrite, Tattach(5, 3, "", "", NONUNAME))
