"""What a server lists is its own word: no name that leads elsewhere is taken, and no list without end."""

import errno
import struct
from collections.abc import Iterator
from itertools import count

import pytest
import trio
import trio.testing
from warren.mount import dial, words

QID = struct.pack("<BIQ", 0x80, 0, 1)


def entry(name: bytes, at: int = 1) -> bytes:
    return QID + struct.pack("<QBH", at, 0, len(name)) + name


class Liar:
    """A server of one directory in 9P2000.L, which lists LISTED, a piece a read."""

    def __init__(self, stream: trio.abc.Stream, listed: Iterator[bytes]) -> None:
        self.stream, self.listed = stream, listed

    async def run(self) -> None:
        held = b""
        while True:
            got = await self.stream.receive_some()
            if not got:
                return
            held += got
            while len(held) >= 4 and len(held) >= (size := int.from_bytes(held[:4], "little")):
                frame, held = held[:size], held[size:]
                body = self.answer(frame[4], frame[7:])
                reply = struct.pack("<IB", 7 + len(body[1]), body[0]) + frame[5:7] + body[1]
                await self.stream.send_all(reply)

    def answer(self, kind: int, said: bytes) -> tuple[int, bytes]:
        match kind:
            case 100:
                return 101, said[:4] + struct.pack("<H", 8) + b"9P2000.L"
            case 104:
                return 105, QID
            case 110:
                return 111, bytes(2)
            case 12:
                return 13, QID + bytes(4)
            case 40:
                data = next(self.listed, b"")
                return 41, struct.pack("<I", len(data)) + data
            case 120:
                return 121, b""
            case _:
                return 7, struct.pack("<I", errno.EOPNOTSUPP)


async def listing(listed: Iterator[bytes]) -> list[str] | OSError:
    """What a client makes of it."""
    ours, theirs = trio.testing.memory_stream_pair()
    made: list[str] | OSError
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Liar(theirs, listed).run)
        async with dial(ours) as files:
            try:
                made = [found.name for found in await files.readdir("/")]
            except OSError as e:
                made = e
        nursery.cancel_scope.cancel()
    return made


async def test_what_is_listed_well_is_taken() -> None:
    assert await listing(iter([entry(b".") + entry(b"one"), entry(b"two")])) == ["one", "two"]


@pytest.mark.parametrize(
    "data",
    [entry(b"../../etc/x"), entry(b"a\0b"), entry(b""), entry(b"one")[:-1], entry(b"one")[:10]],
    ids=["elsewhere", "NUL", "empty", "cut in its name", "cut in its head"],
)
async def test_nonsense_is_refused_by_name(data: bytes) -> None:
    told = await listing(iter([data]))
    assert isinstance(told, OSError)
    assert told.errno == errno.EPROTO
    assert "lists nonsense" in str(told)


@pytest.mark.parametrize("name", [b"again", b"."])
async def test_a_directory_without_end_is_left(name: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warren.mount.linux.MOST_NAMES", 50)
    assert words.MOST_NAMES > 50
    told = await listing(entry(name, n) for n in count(1))
    assert isinstance(told, OSError)
    assert told.errno == errno.EFBIG
    assert "more than 50 names" in str(told)
