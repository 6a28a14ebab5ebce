"""A host that breaks 9P2000: the root task says what is wrong and leaves, whatever it was told."""

from __future__ import annotations

import struct
from functools import partial

import pytest
import trio

from tests.shim.host import TATTACH, TOPEN, TREAD, TVERSION, TWALK, TWRITE, Host, Lie, frame, text
from tests.shim.machine import PROTOCOL, REFUSED, WELL, boot, built


def instead(kind: int, reply: bytes) -> Lie:
    """This reply, with the right tag where it has room for one, to requests of that kind."""

    def lie(asked: int, right: bytes) -> bytes:
        if asked != kind:
            return right
        return reply[:5] + right[5:7] + reply[7:] if len(reply) >= 7 else reply

    return lie


def changed(kind: int, at: int, value: bytes) -> Lie:
    """The right reply with some bytes of it replaced."""

    def lie(asked: int, right: bytes) -> bytes:
        return right[:at] + value + right[at + len(value) :] if asked == kind else right

    return lie


def sized(kind: int, more: bytes) -> Lie:
    """The right reply with bytes behind it that its head counts."""

    def lie(asked: int, right: bytes) -> bytes:
        return struct.pack("<I", len(right) + len(more)) + right[4:] + more if asked == kind else right

    return lie


VERSION = partial(frame, TVERSION + 1, 0xFFFF)


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (instead(TVERSION, struct.pack("<I", 6) + b"xx"), "shorter than its own head"),
        (instead(TVERSION, struct.pack("<I", 0)), "shorter than its own head"),
        (instead(TVERSION, struct.pack("<I", 4097) + bytes(3)), "longer than was agreed"),
        (instead(TVERSION, b"\xff\xff\xff\xff\x65\xff\xff"), "longer than was agreed"),
        (instead(TVERSION, VERSION(b"\0\x10\0\0" + text(b"unknown"))), "does not speak 9P2000"),
        (instead(TVERSION, VERSION(b"\0\x10\0\0" + text(b"9P2000.L"))), "does not speak 9P2000"),
        (instead(TVERSION, VERSION(struct.pack("<I", 1047) + text(b"9P2000"))), "less than 1048 or more"),
        (instead(TVERSION, VERSION(struct.pack("<I", 65536) + text(b"9P2000"))), "less than 1048 or more"),
        (instead(TVERSION, VERSION(b"\0\x10\0\0\x07\x009P2000")), "wrong fields"),
        (instead(TVERSION, VERSION(b"\0\x10\0")), "wrong fields"),
        (changed(TVERSION, 5, b"\0\0"), "a tag that was not asked with"),
        (changed(TATTACH, 5, b"\x63\0"), "a tag that was not asked with"),
        (changed(TATTACH, 4, b"\x71"), "of another kind"),
        (changed(TATTACH, 4, bytes([TATTACH])), "of another kind"),
        (instead(TATTACH, frame(TATTACH + 1, 0, bytes(12))), "wrong fields"),
        (sized(TATTACH, b"x"), "wrong fields"),
        (sized(TWALK, b"x"), "wrong fields"),
        (changed(TWALK, 7, b"\xff\xff"), "wrong fields"),
        (instead(TWALK, frame(TWALK + 1, 0, struct.pack("<H", 3) + bytes(39))), "wrong fields"),
        (sized(TOPEN, b"x"), "wrong fields"),
        (changed(TREAD, 7, b"\xff\xff\xff\xff"), "wrong fields"),
        (sized(TREAD, b"x"), "wrong fields"),
        (changed(TWRITE, 7, b"\xff\xff\xff\x7f"), "wrong fields"),
        (instead(TATTACH, frame(107, 0, b"\x05\0no")), "an error without its text"),
        (instead(TATTACH, frame(107, 0, b"")), "an error without its text"),
    ],
)
async def test_a_malformed_reply(lie: Lie, words: str) -> None:
    host = Host(role=b"role\n", verbs=["exit"], lie=lie)
    end = await boot(built(), host)
    assert end.code == PROTOCOL, end.log
    assert "the host breaks 9P2000: " in end.log
    assert words in end.log


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (TATTACH, "the host refuses us: go away"),
        (TWRITE, "the report is refused: go away"),
        (TOPEN, "the host has no /proc/boot"),
    ],
)
async def test_a_refusal_in_good_form(kind: int, words: str) -> None:
    end = await boot(built(), Host(lie=instead(kind, frame(107, 0, text(b"go away")))))
    assert end.code == REFUSED, end.log
    assert words in end.log


async def test_a_refused_role_is_reported_and_no_reason_to_stop() -> None:
    host = Host(role=b"secret", verbs=["exit"])
    host.lie = lambda kind, right: (
        frame(107, struct.unpack_from("<H", right, 5)[0], text(b"permission denied"))
        if kind == TREAD and host.ready is None
        else right
    )
    assert (await boot(built(), host)).code == WELL
    assert host.reports["role"] == "refused"


async def test_a_short_write_is_a_refusal() -> None:
    def lie(kind: int, right: bytes) -> bytes:
        return right[:7] + b"\x01\0\0\0" if kind == TWRITE else right

    assert (await boot(built(), Host(lie=lie))).code == REFUSED


class Dribble(trio.abc.Stream):
    """Sends a byte at a time."""

    def __init__(self, whole: trio.abc.Stream) -> None:
        self.whole = whole

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        for i in range(len(data)):
            await self.whole.send_all(data[i : i + 1])

    async def wait_send_all_might_not_block(self) -> None:
        await self.whole.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.whole.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self.whole.aclose()


class Slow(Host):
    async def serve(self, stream: trio.abc.Stream) -> None:
        await super().serve(Dribble(stream))


async def test_a_reply_a_byte_at_a_time() -> None:
    """The line cuts where it likes."""
    assert (await boot(built(), Slow(verbs=["exit"]))).code == WELL
