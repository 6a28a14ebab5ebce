"""QMP, over a socket pair with a script at the other end, and with the QEMU that is here."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock
from warren.boot.machines import qmp, recipe
from warren.boot.machines.qemu import Boots, Qemu
from warren.boot.machines.qmp import Qmp
from warren.tree import Refused

from tests.boot import tiny
from tests.boot.without import without

VERSION = {"major": 7, "minor": 2, "micro": 22}
GREETING = {"QMP": {"version": {"qemu": VERSION, "package": ""}, "capabilities": ["oob"]}}
RUBBISH = [b"rubbish\n", b"\n", b"[1]\n", b"\xff\n", b"[" * 100_000 + b"\n", b"x" * (qmp.LONGEST + 1)]
OF_RUBBISH = ["words", "nothing", "a list", "no text", "too deep", "no end"]


class Far:
    """The other end, told by a test what to say."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.rest = b""

    async def heard(self) -> dict[str, Any]:
        """What was said next; no newline ends it."""
        while True:
            try:
                said, end = json.JSONDecoder().raw_decode(self.rest.decode())
            except ValueError:
                more = await self.stream.receive_some()
                assert more, "it was to say more"
                self.rest += more
                continue
            self.rest = self.rest[end:]
            assert isinstance(said, dict)
            return said

    async def says(self, *messages: dict[str, Any]) -> None:
        await self.stream.send_all(b"".join(json.dumps(m).encode() + b"\r\n" for m in messages))

    async def silent(self, seconds: float = 1) -> None:
        """Nothing more is said to it."""
        with trio.move_on_after(seconds) as patience:
            raise AssertionError(await self.heard())
        assert patience.cancelled_caught


@asynccontextmanager
async def scripted(greet: bool = True) -> AsyncIterator[tuple[Qmp, Far]]:
    near, end = socket.socketpair()
    made = Qmp(near)
    async with trio.SocketStream(trio.socket.from_stdlib_socket(end)) as stream:
        far = Far(stream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            if greet:
                await greeted(made, far)
            yield made, far
            nursery.cancel_scope.cancel()
    assert near.fileno() < 0


async def greeted(made: Qmp, far: Far) -> None:
    await far.says(GREETING)
    heard = await far.heard()
    assert (heard["execute"], heard["arguments"]) == ("qmp_capabilities", {"enable": ["oob"]})
    await far.says({"return": {}})
    await made.ready()


@pytest.mark.parametrize("greets", [True, False])
async def test_it_ends_quietly_wherever_it_is_cancelled_and_whatever_has_come(greets: bool) -> None:
    for turns in range(80):
        near, end = socket.socketpair()
        made = Qmp(near)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run)
            if greets:
                end.sendall(json.dumps(GREETING).encode() + b'\r\n{"return": {}, "id": "__qmp#00001"}\r\n')
            end.close()
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert made.ended
        assert near.fileno() < 0



async def test_it_waits_to_be_greeted(autojump_clock: MockClock) -> None:
    async with scripted(greet=False) as (made, far), trio.open_nursery() as nursery:
        nursery.start_soon(made.execute, "cont")
        await far.silent()
        await greeted(made, far)
        assert made.version == "7.2.22"
        heard = await far.heard()
        assert heard["execute"] == "cont"
        await far.says({"return": {}, "id": heard["id"]})


@pytest.mark.parametrize(
    ("said", "why", "code"),
    [
        ([b""], "QEMU has ended", 502),
        *(([line], "QEMU said what is no QMP, and is not heard any more", 502) for line in RUBBISH),
        ([b'{"QMP": 1}\n'], "QEMU said what is no QMP", 502),
        ([b'{"return": {}}\n'], "QEMU said what is no QMP", 502),
        ([json.dumps(GREETING).encode() + b"\n", b""], "QEMU has ended", 502),
        ([json.dumps(GREETING).encode() + b"\n", b'{"error": {}}\n'], "QEMU said what is no QMP", 502),
        ([], "QEMU did not greet within 60 s", 504),
    ],
    ids=["an end", *OF_RUBBISH, "another word", "an answer", "an end after it", "a no after it", "silence"],
)
async def test_what_is_no_greeting(autojump_clock: MockClock, said: list[bytes], why: str, code: int) -> None:
    async with scripted(greet=False) as (made, far):
        for data in said:
            if data:
                await far.stream.send_all(data)
            else:
                await far.stream.send_eof()
        for ask in (made.ready, lambda: made.execute("x", patience=99), lambda: made.event("ANY")):
            with pytest.raises(Refused, match=why) as refused:
                await ask()
            assert refused.value.code == code
        assert made.ended


async def test_commands_go_one_by_one(autojump_clock: MockClock) -> None:
    async with scripted() as (made, far):
        got: dict[str, Any] = {}

        async def ask(name: str) -> None:
            got[name] = await made.execute(name, some_key=1)

        async with trio.open_nursery() as nursery:
            for name in ("one", "two"):
                nursery.start_soon(ask, name)
            for _ in range(2):
                heard = await far.heard()
                assert heard["arguments"] == {"some-key": 1}
                await far.silent()
                await far.says({"return": heard["execute"].upper(), "id": heard["id"]})
        assert got == {"one": "ONE", "two": "TWO"}


@pytest.mark.parametrize("how", ["late", "cancelled"])
async def test_an_answer_that_comes_too_late_is_nobodys(autojump_clock: MockClock, how: str) -> None:
    async with scripted() as (made, far):
        if how == "late":
            with pytest.raises(Refused, match="did not answer 'slow' within 2 s") as late:
                await made.execute("slow", patience=2)
            assert late.value.code == 504
        else:
            with trio.move_on_after(2) as scope:
                await made.execute("slow")
            assert scope.cancelled_caught
        slow = await far.heard()
        await far.says({"return": "late", "id": slow["id"]})
        async with trio.open_nursery() as nursery:

            async def next_one() -> None:
                assert await made.execute("next") == "right"

            nursery.start_soon(next_one)
            heard = await far.heard()
            await far.says({"return": "late", "id": slow["id"]}, {"return": "right", "id": heard["id"]})


async def test_one_that_takes_nothing_is_sent_no_more(autojump_clock: MockClock) -> None:
    long = json.dumps({"execute": "long", "arguments": {"a": "x" * (qmp.LONGEST - 99)}}).encode()
    async with scripted() as (made, far):
        for _ in range(9):
            with pytest.raises(Refused, match="did not answer 'long' within 10 s"):
                await made.raw(long)
        assert (await far.heard())["execute"] == "long"
        await far.silent()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.execute, "next")
            heard = await far.heard()
            assert heard["execute"] == "next"
            await far.says({"return": {}, "id": heard["id"]})


async def answering(made: Qmp, far: Far, answer: dict[str, Any], why: str) -> None:
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(Refused, match=why) as refused:
                await made.execute("x")
            assert refused.value.code == 502

        nursery.start_soon(ask)
        await far.says({**answer, "id": (await far.heard())["id"]})


async def test_an_error_is_refused_with_qemus_words(autojump_clock: MockClock) -> None:
    error = {"class": "GenericError", "desc": "no such thing"}
    async with scripted() as (made, far):
        await answering(made, far, {"error": error}, "QEMU says: no such thing")


@pytest.mark.parametrize("answer", [{}, {"error": {}}, {"error": "no"}, {"error": {"desc": 1, "class": "x"}}])
async def test_an_answer_that_is_none_ends_nothing(autojump_clock: MockClock, answer: dict[str, Any]) -> None:
    async with scripted() as (made, far):
        for _ in range(2):
            await answering(made, far, answer, "what QEMU answers to 'x' is no answer")


async def test_events_are_kept_and_waited_for(autojump_clock: MockClock) -> None:
    stamp = {"seconds": 100, "microseconds": 500000}
    async with scripted() as (made, far):
        await far.says({"event": "RESUME", "timestamp": stamp})
        assert await made.event("RESUME", since=0) == ("RESUME", {}, 100.5)
        with trio.move_on_after(1) as patience:
            await made.event("RESUME")
        assert patience.cancelled_caught, "that one was before"
        since = made.seen
        await far.says(*({"event": f"E{n}", "data": {"n": n}} for n in range(qmp.KEPT + 9)))
        assert (await made.event(f"E{qmp.KEPT + 8}", since=since)).data == {"n": qmp.KEPT + 8}
        assert len(made.events) == qmp.KEPT
        assert made.seen == qmp.KEPT + 10
        assert not made._client.events.history, "they are kept once"


@pytest.mark.parametrize(
    "line",
    [
        b"{}", b'{"id": 99, "return": {}}', b'{"id": [], "return": {}}', b'{"id": "nobody", "return": {}}',
        b'{"event": 1}', b'{"event": "X", "data": [], "timestamp": 1}', b'{"error": {"desc": "parse error"}}',
    ],
)  # fmt: skip
async def test_what_concerns_nobody_is_passed_over(autojump_clock: MockClock, line: bytes) -> None:
    async with scripted() as (made, far):
        await far.stream.send_all(line + b"\n")
        await far.says({"event": "STOP"})
        assert (await made.event("STOP", since=0)).name == "STOP"


@pytest.mark.parametrize("line", RUBBISH, ids=OF_RUBBISH)
async def test_rubbish_ends_the_conversation(autojump_clock: MockClock, line: bytes) -> None:
    why = "QEMU said what is no QMP, and is not heard any more"
    async with scripted() as (made, far):
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(Refused, match=why):
                    await made.execute("x")

            nursery.start_soon(ask)
            nursery.start_soon(ask)
            await far.heard()
            await far.stream.send_all(line)
        with pytest.raises(Refused, match=why):
            await made.event("ANY")
        with pytest.raises(Refused, match=why):
            await made.execute("x")


async def test_an_end_ends_every_call(autojump_clock: MockClock) -> None:
    async with scripted() as (made, far), trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(Refused, match="QEMU has ended"):
                await made.execute("x")

        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await far.heard()
        await far.stream.aclose()


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (b"", 400), (b"nonsense", 400), (b"[]", 400), (b'{"execute": 1}', 400), (b"[" * 100_000, 400),
        (b'{"execute": "x", "arguments": {"a": NaN}}', 400), (b'{"execute": "x", "arguments": [1e999]}', 400),
        (b'{"execute": "\\ud800"}', 400), (b" " * (qmp.LONGEST + 1), 413),
    ],
    ids=["nothing", "words", "list", "number", "too deep", "no number", "too much", "no text", "too long"],
)  # fmt: skip
async def test_what_is_no_command_is_not_sent(autojump_clock: MockClock, command: bytes, code: int) -> None:
    async with scripted() as (made, far):
        with pytest.raises(Refused) as refused:
            await made.raw(command)
        assert refused.value.code == code
        await far.silent()


async def test_with_the_real_one(tmp_path: Path) -> None:
    kernel = tiny.write(tmp_path, tiny.HANG)
    async with Qemu.started(recipe.load("standin-microvm"), Boots(kernel)) as q:
        assert q.qmp.version.count(".") == 2
        since = q.qmp.seen
        await q.qmp.execute("stop")
        assert (await q.qmp.event("STOP", since=since)).time > 0
        answer = json.loads(await q.qmp.raw(b'{"execute": "query-status", "id": "mine"}'))
        assert (answer["id"], answer["return"]["status"]) == ("mine", "paused")
        with pytest.raises(Refused, match="QEMU says: The command no-such-command has not been found"):
            await q.qmp.execute("no-such-command")
        async with Qemu.started(recipe.load("standin-microvm"), Boots(kernel)) as other:
            for each, status in ((q, "paused"), (other, "running")):
                assert (await each.qmp.execute("query-status"))["status"] == status
        await q.kill()
        with pytest.raises(Refused, match="QEMU has ended"):
            await q.qmp.execute("stop")


async def test_what_qemus_parser_refuses_does_not_end_the_conversation(tmp_path: Path) -> None:
    async with Qemu.started(recipe.load("standin-microvm"), Boots(tiny.write(tmp_path, tiny.HANG))) as q:
        # Past `parsed`, which has refused what can be found out beforehand.
        for word in (float("nan"), "\ud800"):
            with pytest.raises(Refused, match="did not answer 'query-status'"):
                await q.qmp.execute("query-status", patience=0.2, a=word)
            assert (await q.qmp.execute("query-status"))["status"] == "running"


@pytest.mark.parametrize("package", ["qemu", "trio_asyncio"])
async def test_without_its_packages_it_says_what_to_install(tmp_path: Path, package: str) -> None:
    kernel = tiny.write(tmp_path, tiny.HANG)
    with without(package):
        assert qmp.lacking() == "qemu.qmp is not installed: pip install 'warren-9p[vm]'"
        with pytest.raises(Refused, match="warren-9p\\[vm]") as refused:
            async with Qemu.started(recipe.load("standin-microvm"), Boots(kernel)):
                pass
    assert refused.value.code == 503
    assert qmp.lacking() == "", "that they were missing is not remembered"
