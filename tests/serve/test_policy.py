"""Rights in force: partial policies, policies replaced under open fids, and the audit of what was done."""

import errno
import os
from pathlib import Path

import pytest
from trio.testing import wait_all_tasks_blocked
from warren.auth.rights import Policy
from warren.p9.messages import (
    PLAIN,
    WARREN,
    Rclunk,
    Rlerror,
    Rlock,
    Rremove,
    Rwrite,
    Tclunk,
    Tlcreate,
    Tlock,
    Tlopen,
    Topen,
    Tread,
    Tremove,
    Tsetattr,
    Tunlinkat,
    Twrite,
    Txattrcreate,
)
from warren.servers.demo import Demo
from warren.servers.disk import Disk
from warren.traces.audit import AuditFile
from warren.tree import Blob, Dir

from tests.wire import EVERYTHING, O_RDONLY, O_RDWR, O_WRONLY, RefusedBy, Service, Wire, served

NOTHING_LEFT = Policy()


def now(service: Service, *rows: str) -> None:
    service.export.replace(Policy.parse(rows))


async def denied(wire: Wire, path: str, fid: int, flags: int) -> None:
    with pytest.raises(RefusedBy) as caught:
        await wire.open(path, fid, flags)
    assert caught.value.errno == errno.EACCES
    await wire.clunk(fid)


# Partial policies


async def test_reading_is_not_writing() -> None:
    async with served(Demo(), ["any read /hello", "any write /send", "any ctl /ctl"]) as service:
        wire = await service.dial()
        await wire.open("hello", 1)
        await denied(wire, "hello", 2, O_WRONLY)
        await denied(wire, "hello", 2, O_RDWR)
        await denied(wire, "hello", 2, 0o1000)
        await wire.open("send", 3, O_WRONLY)
        await denied(wire, "send", 4, O_RDWR)
        await wire.open("ctl", 5, O_RDWR)
        await denied(wire, "", 6, O_RDONLY)
        with pytest.raises(RefusedBy):
            await wire.want(Rwrite, Tsetattr(1, 8, 0, 0, 0, 0, 0, 0, 0, 0))


async def test_writing_a_ctl_takes_the_right_ctl() -> None:
    async with served(Demo(), ["any read,write,create,remove /**"]) as service:
        wire = await service.dial()
        for flags in (O_RDONLY, O_WRONLY, O_RDWR):
            await denied(wire, "ctl", 1, flags)
            await denied(wire, "clone", 1, flags)


async def test_a_directory_shows_what_may_be_walked_to() -> None:
    async with served(Demo(), ["any read /", "any read /hello", "any ctl /ctl#say"]) as service:
        wire = await service.dial(PLAIN)
        await wire.open("", 1)
        listing = await wire.read(1)
        assert b"hello" in listing
        assert b"ctl" in listing
        assert b"scratch" not in listing
        assert b"events" not in listing


async def test_creating_opens_and_so_needs_what_opening_needs(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("secret")
    async with served(Disk(tmp_path), ["any create /**"]) as service:
        wire = await service.dial()
        for n, flags in enumerate((O_RDONLY, O_WRONLY, O_RDWR, 0o1001)):
            await wire.walk("", 10 + n)
            for name in ("there", "new"):
                reply = await wire.ask(Tlcreate(10 + n, name, flags, 0o644, 0))
                assert isinstance(reply, Rlerror)
                assert reply.ecode == errno.EACCES
    assert (tmp_path / "there").read_text() == "secret"
    assert not (tmp_path / "new").exists()


# Policies replaced


async def test_a_parked_read_ends_when_it_is_no_longer_allowed_and_only_then() -> None:
    demo = Demo()
    async with served(demo) as service:
        wire = await service.dial(WARREN)
        await wire.open("recv", 1)
        await wire.open("events", 2)
        await wire.send(Tread(1, 0, 10), Tread(2, 0, 100), tag=5)
        await wait_all_tasks_blocked()
        now(service, "any read /events")
        reply = await wire.reply()
        assert isinstance(reply, Rlerror)
        assert (reply.tag, reply.ecode) == (5, errno.EACCES)
        assert "revoked" in reply.ename
        demo.tell("x")
        assert (await wire.reply()).tag == 6
        now(service)
        with pytest.raises(RefusedBy) as caught:
            await wire.read(2)
        assert caught.value.errno == errno.EACCES


async def test_open_fids_are_decided_anew() -> None:
    demo = Demo()
    async with served(demo) as service:
        wire = await service.dial()
        await wire.open("scratch", 1, O_RDWR)
        await wire.open("ctl", 2, O_RDWR)
        await wire.write(1, b"abc")
        now(service, "any read,create,remove /**", "any ctl /ctl#reset")
        for _ in range(2):
            with pytest.raises(RefusedBy):
                await wire.write(1, b"more")
        with pytest.raises(RefusedBy):
            await wire.write(2, b"say x")
        assert await wire.write(2, b"reset") == 5
        now(service, "any read /**")
        for _ in range(2):
            with pytest.raises(RefusedBy):
                await wire.read(2)
        now(service, *EVERYTHING)
        assert await wire.write(1, b"again") == 5
        now(service)
        await wire.clunk(2)
        with pytest.raises(RefusedBy):
            await wire.clunk(1)
        with pytest.raises(RefusedBy):
            await wire.clunk(1)
        assert service.export.statistics()["fids"] == 1


async def test_what_was_gathered_is_not_committed_after_the_right_is_gone() -> None:
    kept: list[bytes] = []
    async with served(Dir({"blob": Blob(lambda body, declared: kept.append(body))})) as service:
        wire = await service.dial()
        await wire.open("blob", 1, O_WRONLY)
        await wire.write(1, b"body")
        now(service, "any read /**")
        with pytest.raises(RefusedBy):
            await wire.clunk(1)
        assert not kept
        now(service, *EVERYTHING)
        with pytest.raises(RefusedBy):
            await wire.clunk(1)


async def test_remove_on_close_asks_for_the_right_at_the_close(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    async with served(Disk(tmp_path)) as service:
        wire = await service.dial(PLAIN)
        for fid, name in enumerate("ab", 1):
            await wire.walk(name, fid)
            await wire.want(type_of("Ropen"), Topen(fid, 0x40))
        await wire.want(Rclunk, Tclunk(1))
        assert not (tmp_path / "a").exists()
        now(service, "any read,write /**")
        with pytest.raises(RefusedBy):
            await wire.clunk(2)
        assert (tmp_path / "b").exists()


def type_of(name: str) -> "type[Rclunk]":
    from warren.p9.messages import MESSAGES

    return MESSAGES[name]  # type: ignore[return-value]


async def test_locks_fall_with_the_right_to_them(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    async with served(Disk(tmp_path)) as service:
        one, other = await service.dial(subject="local"), await service.dial()
        for wire in (one, other):
            await wire.open("f", 1, O_RDWR)
        assert (await one.want(Rlock, Tlock(1, 1, 0, 0, 0, 7, "one"))).status == 0
        assert (await other.want(Rlock, Tlock(1, 1, 0, 0, 0, 7, "other"))).status == 1
        policy = Policy.parse(EVERYTHING)
        assert policy.grants("local").at("/f").mask
        service.export.replace(Policy.parse(["user/nobody read /**"]))
        service.export.replace(policy)
        assert (await other.want(Rlock, Tlock(1, 1, 0, 0, 0, 7, "other"))).status == 0


# Audit


async def test_every_effect_is_written_before_it_happens_and_after() -> None:
    async with served(Demo()) as service:
        wire = await service.dial()
        await wire.open("hello", 1)
        assert not service.audited(), "reading leaves no audit"
        await wire.open("scratch", 2, O_WRONLY)
        await wire.write(2, b"12345")
        await wire.write(2, b"678", 5)
        await wire.clunk(2)
        await wire.open("ctl", 3, O_WRONLY)
        await wire.write(3, b"say x")
        with pytest.raises(RefusedBy):
            await wire.write(3, b"say x times=1000")
        with pytest.raises(RefusedBy):
            await wire.want(Rremove, Tremove(1))
        assert service.audited() == [
            "intent open /scratch", "outcome open /scratch 0", "note wrote /scratch 0",
            "intent open /ctl", "outcome open /ctl 0",
            "intent ctl /ctl#say", "outcome ctl /ctl#say 0",
            "intent ctl /ctl#say", "outcome ctl /ctl#say 400",
            "intent remove /hello", "outcome remove /hello 405",
        ]  # fmt: skip


async def test_a_denial_is_noted_and_a_flood_of_them_is_counted() -> None:
    async with served(Demo(), ["any read /hello"]) as service:
        wire = await service.dial()
        for _ in range(250):
            with pytest.raises(RefusedBy):
                await wire.want(Rwrite, Tunlinkat(0, "hello", 0))
        noted = [line for line in service.audited() if line.startswith("note Tunlinkat")]
        assert 0 < len(noted) < 250


class Full(AuditFile):
    """An audit whose disk is full from some moment on."""

    def fill(self) -> None:
        full = os.open("/dev/full", os.O_WRONLY | os.O_APPEND)
        os.dup2(full, self._fd)
        os.close(full)


async def test_no_effect_without_evidence(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "f").write_text("old")
    audit = Full(tmp_path / "audit")
    async with served(Disk(tmp_path / "tree"), audit=audit) as service:
        wire = await service.dial()
        await wire.open("f", 1, O_RDWR)
        await wire.walk("f", 2)
        await wire.walk("", 3)
        await wire.want(type_of("Rxattrcreate"), Txattrcreate(2, "user.x", 1, 0))
        await wire.write(2, b"v")
        audit.fill()
        for m in (Tlcreate(3, "new", 1, 0o644, 0), Tunlinkat(0, "f", 0), Tremove(3), Tclunk(2),
                  Tsetattr(1, 8, 0, 0, 0, 0, 0, 0, 0, 0)):  # fmt: skip
            reply = await wire.ask(m)
            assert isinstance(reply, Rlerror), m
            assert reply.ecode in (errno.ENOSPC, errno.EIO, errno.EACCES), m
        await wire.walk("f", 4)
        assert isinstance(await wire.ask(Tlopen(4, O_WRONLY)), Rlerror)
        assert await wire.read(1) == b"old", "reading goes on"
    audit.close()
    assert (tmp_path / "tree" / "f").read_text() == "old"
    assert not (tmp_path / "tree" / "new").exists()
    assert "user.x" not in os.listxattr(tmp_path / "tree" / "f")


async def test_two_opens_that_wait_for_the_audit_do_not_both_open(tmp_path: Path) -> None:
    demo, audit = Demo(), AuditFile(tmp_path)
    async with served(demo, audit=audit) as service:
        wire = await service.dial()
        await wire.walk("clone", 1)
        await wire.send(Tlopen(1, O_RDWR), Tlopen(1, O_RDWR), tag=5)
        found = {type(m).__name__ for m in await wire.replies(2)}
        assert found == {"Rlerror", "Rlopen"}
        assert len(demo.counters) == 1
        await wire.clunk(1)
        assert not demo.counters
        await wire.walk("clone", 2)
        await wire.send(Tlopen(2, O_RDWR), Tclunk(2), tag=5)
        assert {m.tag for m in await wire.replies(2)} == {5, 6}
        await wait_all_tasks_blocked(0.05)
        assert not demo.counters
        await wire.want(Rclunk, Tclunk(0))
        assert isinstance(await wire.ask(Twrite(2, 0, b"")), Rlerror)
    audit.close()
