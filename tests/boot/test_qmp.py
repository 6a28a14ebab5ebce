"""QMP, over memory streams with a script at the other end, and with the QEMU that is here."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair
from warren.boot.machines import qmp, recipe
from warren.boot.machines.qemu import Boots, Qemu
from warren.boot.machines.qmp import Qmp
from warren.tree import Refused

from tests.boot import tiny

VERSION = {"major": 7, "minor": 2, "micro": 22}
GREETING = {"QMP": {"version": {"qemu": VERSION, "package": ""}, "capabilities": []}}


class Far:
    """The other end, told by a test what to say."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.rest = b""

    async def heard(self) -> dict[str, Any]:
        while b"\n" not in self.rest:
            self.rest += await self.stream.receive_some()
        line, _, self.rest = self.rest.partition(b"\n")
        said = json.loads(line)
        assert isinstance(said, dict)
        return said

    async def says(self, *messages: dict[str, Any]) -> None:
        await self.stream.send_all(b"".join(json.dumps(m).encode() + b"\r\n" for m in messages))


@asynccontextmanager
async def scripted() -> AsyncIterator[tuple[Qmp, Far]]:
    near, far = memory_stream_pair()
    made = Qmp(near)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        yield made, Far(far)
        nursery.cancel_scope.cancel()


async def test_capabilities_and_the_first_commands_go_out_together(autojump_clock: MockClock) -> None:
    async with scripted() as (made, far):
        await made.begin("cont")
        first, second = await far.heard(), await far.heard()
        assert (first["execute"], second["execute"]) == ("qmp_capabilities", "cont")
        await far.says(GREETING, {"return": {}, "id": first["id"]}, {"return": {}, "id": second["id"]})
        await made.ready()
        assert made.version == "7.2.22"


async def test_answers_find_who_asked(autojump_clock: MockClock) -> None:
    async with scripted() as (made, far):
        got: dict[str, Any] = {}

        async def ask(name: str) -> None:
            got[name] = await made.execute(name, some_key=1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "one")
            nursery.start_soon(ask, "two")
            heard = [await far.heard(), await far.heard()]
            assert all(h["arguments"] == {"some-key": 1} for h in heard)
            await far.says(*({"return": h["execute"].upper(), "id": h["id"]} for h in reversed(heard)))
        assert got == {"one": "ONE", "two": "TWO"}


async def test_an_answer_that_comes_too_late_is_nobodys(autojump_clock: MockClock) -> None:
    async with scripted() as (made, far):
        with pytest.raises(Refused, match="did not answer 'slow' within 2 s") as late:
            await made.execute("slow", patience=2)
        assert late.value.code == 504
        slow = await far.heard()
        await far.says({"return": "late", "id": slow["id"]})
        async with trio.open_nursery() as nursery:

            async def next_one() -> None:
                assert await made.execute("next") == "right"

            nursery.start_soon(next_one)
            heard = await far.heard()
            await far.says({"return": "right", "id": heard["id"]})


async def test_an_error_is_refused_with_qemus_words(autojump_clock: MockClock) -> None:
    async with scripted() as (made, far), trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(Refused, match="QEMU says: no such thing") as refused:
                await made.execute("x")
            assert refused.value.code == 502

        nursery.start_soon(ask)
        heard = await far.heard()
        await far.says({"error": {"class": "GenericError", "desc": "no such thing"}, "id": heard["id"]})


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


@pytest.mark.parametrize(
    "line", [b"rubbish\n", b"[1]\n", b'{"id": 99, "return": {}}\n', b'{"event": 1}\n', b"\xff\n"]
)
async def test_what_makes_no_sense_is_passed_over(autojump_clock: MockClock, line: bytes) -> None:
    async with scripted() as (made, far):
        await far.stream.send_all(line)
        await far.says({"event": "STOP"})
        assert (await made.event("STOP", since=0)).name == "STOP"


async def test_a_line_without_end_ends_the_conversation(autojump_clock: MockClock) -> None:
    async with scripted() as (made, far):
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(Refused, match="QEMU has ended"):
                    await made.execute("x")

            nursery.start_soon(ask)
            await far.heard()
            await far.stream.send_all(b"x" * (qmp.LONGEST + 1))
        with pytest.raises(Refused, match="QEMU has ended"):
            await made.event("ANY")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (b"", 400), (b"nonsense", 400), (b"[]", 400), (b'{"execute": 1}', 400), (b"[" * 100_000, 400),
        (b" " * (qmp.LONGEST + 1), 413),
    ],
    ids=["nothing", "words", "a list", "a number", "too deep", "too long"],
)  # fmt: skip
async def test_what_is_no_command_is_not_sent(autojump_clock: MockClock, command: bytes, code: int) -> None:
    async with scripted() as (made, far):
        with pytest.raises(Refused) as refused:
            await made.raw(command)
        assert refused.value.code == code
        with trio.move_on_after(1) as patience:
            await far.heard()
        assert patience.cancelled_caught


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
        await q.kill()
        with pytest.raises(Refused, match="QEMU has ended"):
            await q.qmp.execute("stop")
