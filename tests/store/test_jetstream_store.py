"""What the JetStream store promises: the interface, to many processes at once, and nothing done twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from warren.check.store import check_store, check_store_model
from warren.store import Change, Conflict, Record, Store, StoreFailed, Trimmed
from warren.store.jetstream import JetStreamStore, open_jetstream
from warren.store.jetstream.spelling import name_of, read_address, tokens
from warren.store.jetstream.values import JetWatch

from tests.store.nats import Nats, alone, cluster


@pytest.fixture
def address(nats: Nats, request: pytest.FixtureRequest) -> str:
    """A store of the test's own in the one server."""
    return f"{nats.address}/t{abs(hash(request.node.name))}"


async def test_it_keeps_every_promise(address: str) -> None:
    await check_store(lambda: open_jetstream(address), durable=True)


def test_it_does_what_the_model_does(address: str) -> None:
    check_store_model(lambda: open_jetstream(address), durable=True, examples=25)


def test_few_remembered_deletions_are_only_forgetful(address: str) -> None:
    check_store_model(lambda: open_jetstream(address, tombstones=2, grace=0), durable=True, examples=25)


async def test_what_one_process_writes_wakes_those_who_wait_in_another(address: str) -> None:
    async with open_jetstream(address) as here, open_jetstream(address) as there:
        async with await there.watch("k") as watch, trio.open_nursery() as nursery:
            told: list[object] = []

            async def follow() -> None:
                told.append(await there.first_after("a", 0))

            async def look() -> None:
                told.append(await watch.next())

            nursery.start_soon(follow)
            nursery.start_soon(look)
            await trio.testing.wait_all_tasks_blocked()
            assert told == []
            assert await here.append("a", b"1") == 1
            revision = await here.put("k/1", b"v")
        assert sorted(told, key=repr) == [Change("k/1", revision, b"v"), Record(1, b"1")]
        assert await there.keys() == ["k/1"]
        await here.delete("k/1")
        assert await there.keys() == []


async def test_two_processes_that_append_leave_no_gap_and_lose_nothing(address: str) -> None:
    async with open_jetstream(address) as one, open_jetstream(address) as two:
        answered: dict[int, bytes] = {}

        async def write(store: Store, name: str) -> None:
            for turn in range(40):
                data = f"{name}.{turn}".encode()
                seq = await store.append("a", data)
                assert seq not in answered
                answered[seq] = data

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(write, one, f"one{number}")
                nursery.start_soon(write, two, f"two{number}")
        assert sorted(answered) == list(range(1, 241))
        for seq, data in answered.items():
            assert await two.read("a", seq) == Record(seq, data)


async def test_a_trim_of_one_process_is_seen_by_the_other_at_once(address: str) -> None:
    async with open_jetstream(address) as here, open_jetstream(address) as there:
        for turn in range(300):
            await here.append("a", b"%d" % turn)
        assert await there.read("a", 290) == Record(290, b"289")
        assert await here.trim("a", through=295) == 295
        with pytest.raises(Trimmed):
            await there.read("a", 290)
        assert await there.first_after("a", 0) == Record(296, b"295")
        assert await there.append("a", b"next", expect_last=300) == 301
        state = await here.engine.state(here.engine.logs)
        assert state.messages <= 10, "the room of what is forgotten is given back"


async def test_deletions_that_another_process_forgot_are_missed_by_nobody(address: str) -> None:
    async with open_jetstream(address, tombstones=2) as here, open_jetstream(address) as there:
        for number in range(12):
            await here.put(f"k/{number}", b"")
        late = await there.watch("k")
        gone = [await here.delete(f"k/{number}") for number in range(12)]
        # Here they are more than are remembered, so what comes after them says how far they are forgotten.
        assert isinstance(late, JetWatch)
        await late.values.follower.reach(gone[-1] + 1)
        with pytest.raises(Trimmed) as caught:
            await late.next()
        assert caught.value.through in gone
        with pytest.raises(Trimmed):
            await there.watch("k", after=gone[0] - 1)
        assert await there.keys() == await here.keys() == []


async def test_what_leaves_is_listed_by_nobody(address: str) -> None:
    async with open_jetstream(address, tombstones=4) as here, open_jetstream(address, tombstones=4) as there:
        await there.put("stays", b"")

        async def churn(store: Store, name: str) -> None:
            for number in range(40):
                await store.put(f"{name}/{number}", b"")
                await store.delete(f"{name}/{number}")
                assert await store.keys(name) == []

        async with trio.open_nursery() as nursery:
            nursery.start_soon(churn, here, "here")
            nursery.start_soon(churn, there, "there")
        assert await here.keys() == await there.keys() == ["stays"]


async def test_deletions_do_not_pile_up(address: str) -> None:
    async with open_jetstream(address, tombstones=4, grace=0) as store:
        for number in range(100):
            await store.put(f"k/{number}", b"")
            await store.delete(f"k/{number}")
            assert await store.keys() == []
        state = await store.engine.state(store.engine.values)
        assert state.messages < 50


async def test_a_generation_is_the_clusters_and_every_process_learns_of_it(address: str) -> None:
    async with open_jetstream(address) as here, open_jetstream(address) as there:
        assert (here.generation, there.generation) == (1, 1)
        assert await here.restored() == 2
        await there.values.watch("", None)  # which waits until all that was said is known
        assert there.generation == 2
        assert await here.keys() == []
    async with open_jetstream(address) as again:
        assert again.generation == 2
        assert await again.restored() == 3


async def test_the_largest_message_of_a_server_bounds_a_record(tmp_path: Path) -> None:
    settings = tmp_path / "settings"
    settings.write_text("max_payload: 64KB")
    with alone(tmp_path / "small", "-c", str(settings)) as small:
        async with open_jetstream(small.address) as store:
            assert store.limits.record == 64 * 1024 - 8192
            assert await store.append("a", bytes(store.limits.record)) == 1
            await store.append_batch("a", [b"x" * 50] * 1024)
            await store.put("k" * 200, bytes(store.limits.record))
        await check_store(lambda: open_jetstream(small.address), durable=True)


async def test_a_store_that_is_away_for_a_while_is_waited_for(tmp_path: Path) -> None:
    with alone(tmp_path / "one") as one:
        async with open_jetstream(one.address) as store:
            last = await store.append("a", b"before")
            revision = await store.put("k", b"before")
            async with await store.watch() as watch, trio.open_nursery() as nursery:
                one.kill()
                nursery.start_soon(store.append, "a", b"meanwhile")
                nursery.start_soon(store.put, "k", b"meanwhile")
                await trio.testing.wait_all_tasks_blocked()
                one.start()
                assert await store.first_after("a", last) == Record(last + 1, b"meanwhile")
                assert (await watch.next()).revision > revision
            assert store.statistics().lost >= 1
            assert await store.last("a") == 2


async def test_a_store_that_stays_away_fails_what_is_asked_and_may_have_done_it(tmp_path: Path) -> None:
    with alone(tmp_path / "one") as one:
        async with open_jetstream(one.address, patience=1) as store:
            await store.put("k", b"v")
            await store.append("a", b"1")
            one.kill()
            with pytest.raises(StoreFailed, match="may have been done"):
                await store.append("a", b"?")
            with pytest.raises(StoreFailed, match="see that a majority of its servers runs"):
                await store.get("k")
            one.start()
        async with open_jetstream(one.address) as store:
            assert (await store.get("k")).value == b"v"
            assert await store.last("a") in (1, 2)


async def test_a_lost_answer_is_looked_for_and_the_write_not_done_twice(address: str) -> None:
    async with open_jetstream(address) as store:
        engine, line = store.engine, store.engine.line
        await store.append("a", b"1")
        asked = line.ask
        lost: list[str] = []

        async def forgetful(subject: str, data: bytes, headers: dict[str, str] | None, wait: float) -> object:
            answer = await asked(subject, data, headers, wait)
            if headers and len(lost) < 3:
                lost.append(subject)
                return answer._replace(data=b"?")
            return answer

        line.ask = forgetful  # type: ignore[method-assign,assignment]
        assert await store.append("a", b"2", expect_last=1) == 2
        revision = await store.put("k", b"v", expect=0)
        assert await store.delete("k", expect=revision) > revision
        assert len(lost) == 3
        assert [await store.read("a", seq) for seq in (1, 2)] == [Record(1, b"1"), Record(2, b"2")]
        assert (await engine.state(engine.logs)).last_seq == 2
        with pytest.raises(Conflict):
            await store.append("a", b"2", expect_last=1)


async def test_one_of_three_that_is_killed_while_others_write_loses_nothing(tmp_path: Path) -> None:
    with cluster(tmp_path) as servers:
        address = ",".join(server.address.removeprefix("nats://") for server in servers)
        whole = f"nats://{address}/three?replicas=3"
        async with open_jetstream(whole, patience=30) as store, open_jetstream(whole, patience=30) as other:
            appended: dict[int, bytes] = {}
            put: dict[str, bytes] = {}
            some, more = trio.Event(), trio.Event()

            async def write(name: int) -> None:
                turn = 0
                while not more.is_set():
                    data = b"%d.%d" % (name, turn)
                    through = (store, other)[name % 2]
                    seq = await through.append("log", data)
                    assert seq not in appended, "two writers were given one number"
                    appended[seq] = data
                    await through.put(f"k/{name}", data)
                    put[f"k/{name}"] = data
                    turn += 1
                    if len(appended) > 100:
                        some.set()
                    if killed and len(appended) > killed[0] + 100:
                        more.set()

            killed: list[int] = []
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    for name in range(8):
                        nursery.start_soon(write, name)
                    await some.wait()
                    leader = await leading(store)
                    servers[leader].kill()
                    killed.append(len(appended))
            assert sorted(appended) == list(range(1, len(appended) + 1)), "no gap, no number twice"
            async with open_jetstream(whole) as another:
                for seq, data in appended.items():
                    assert await another.read("log", seq) == Record(seq, data)
                for key, data in put.items():
                    assert (await another.get(key)).value == data
            servers[leader].start()
            assert await store.append("log", b"and on") == len(appended) + 1


async def leading(store: JetStreamStore) -> int:
    """Which of the three leads the stream of logs."""
    found = await store.engine.ask(f"STREAM.INFO.{store.engine.logs}")
    assert found.cluster is not None
    return int(str(found.cluster["leader"]).removeprefix("n"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("nats://", "not an address"),
        ("nats://h:1/a b", "no prefix"),
        ("nats://h:1/a/b", "no prefix"),
        ("nats://h:1?replicas=2", "2 replicas"),
        ("nats://h:1?replicas=x", "not an address"),
        ("nats://h:1?color=red", "not an address"),
        ("redis://h:1", "not an address"),
    ],
)
def test_a_bad_address_is_refused_with_the_way_out(text: str, why: str) -> None:
    with pytest.raises(StoreFailed, match=rf"{why}.*write nats://HOST:PORT"):
        read_address(text, "role")


def test_an_address_says_where_and_which_and_hides_who() -> None:
    found = read_address("nats://me:secret@a:1,b:2/hive?replicas=3", "role")
    assert found.servers == ["nats://me:secret@a:1", "nats://me:secret@b:2"]
    assert (found.prefix, found.replicas, found.shown) == ("hive", 3, "nats://a:1,b:2/hive")
    assert read_address("nats://a:1", "role").prefix == "role"
    with pytest.raises(StoreFailed) as caught:
        read_address("nats://me:secret@a:1?x=1", "role")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["a", "a/b.c", "a..b/c", "x_-.y", "0/1/2"])
def test_a_name_and_its_subject_are_each_others(name: str) -> None:
    assert name_of(tokens(name)) == name


async def test_nobody_there_is_said_and_so_is_a_server_without_jetstream(tmp_path: Path) -> None:
    said = r"^nats://127.0.0.1:1/x: nobody answers there: .*Connect call failed"
    with pytest.raises(StoreFailed, match=said):
        async with open_jetstream("nats://me:secret@127.0.0.1:1/x", patience=0.5):
            pass
    with alone(tmp_path, jetstream=False) as plain:
        with pytest.raises(StoreFailed, match="nobody is there for JetStream"):
            async with open_jetstream(plain.address, patience=1):
                pass


async def test_what_goes_wrong_inside_comes_out_as_it_was(address: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_jetstream(address):
            1 / 0  # noqa: B018
    with trio.CancelScope() as scope:
        async with open_jetstream(address) as store:
            scope.cancel()
            await store.first_after("a", 0)
    assert scope.cancelled_caught


async def test_more_replicas_than_a_stream_has_are_refused(address: str) -> None:
    async with open_jetstream(address):
        pass
    with pytest.raises(StoreFailed, match="has 1 replicas, and 3 are asked for"):
        async with open_jetstream(f"{address}?replicas=3"):
            pass
