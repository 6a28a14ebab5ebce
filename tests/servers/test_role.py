"""/role: the role file in force, and the way to another."""

import os
from contextlib import nullcontext

import pytest
from trio.testing import MockClock
from warren.check.tree import check_tree
from warren.servers.role import MOST, RoleFiles
from warren.tree import Refused

from tests.servers.ports import BAD, TheRole
from tests.servers.reach import attributes_of, files_of
from tests.wire import RefusedBy, served


async def test_it_is_a_tree(autojump_clock: MockClock) -> None:
    await check_tree(lambda: nullcontext(RoleFiles(TheRole())))


async def test_it_shows_what_is_in_force() -> None:
    role = TheRole()
    async with files_of(RoleFiles(role)) as files:
        assert await files.read("/manifest") == b"role R\n"
        assert await files.read("/ns") == b"mount $self /\n"
        assert await files.read("/policy") == b"allow local read /**\n"
        assert attributes_of(await files.read("/status")) == {
            "role": "R", "name": "r-1", "state": "ONLINE", "policy_rows": "1", "problems": "0",
        }  # fmt: skip


async def test_reload_puts_another_file_in_force_and_says_what_changed() -> None:
    async with files_of(RoleFiles(TheRole())) as files, await files.open("/ctl", os.O_RDWR) as ctl:
        await ctl.write(b"reload\n")
        assert await ctl.pread(100, 0) == b"policy: 1 row added\n"
        assert (await files.read("/policy")).count(b"\n") == 2


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (BAD, r"422 bad_text: a.role:3: no server 'x'; a.role:7: no right 'fly' trace="),
        (Refused(422, "one\ntwo", reason="bad_role"), r"422 bad_role: one; two trace="),
        (Refused(404, "no role of that name"), r"404 not_found: no role of that name trace="),
    ],
)
async def test_a_bad_file_is_refused_with_every_line_and_changes_nothing(wrong: Exception, says: str) -> None:
    role = TheRole()
    async with files_of(RoleFiles(role)) as files:
        before = await files.read("/policy")
        role.wrong = wrong
        for line in (b"reload\n", b"load Other\n"):
            with pytest.raises(OSError, match=says):
                await files.write("/ctl", line)
        assert await files.read("/policy") == before
        problems = (await files.read("/problems")).decode().splitlines()
        assert problems == says.replace(" trace=", "").split(": ", 1)[1].split("; ")
        assert attributes_of(await files.read("/status"))["problems"] == str(len(problems))
        role.wrong = None
        await files.write("/ctl", b"reload\n")
        assert await files.read("/problems") == b""


async def test_load_takes_a_name_and_no_path() -> None:
    role = TheRole()
    async with files_of(RoleFiles(role)) as files:
        await files.write("/ctl", b"load DroneWorker\n")
        assert role.named == "DroneWorker"
        for name in ("../etc/passwd", "a/b", ".hidden", "''", "'a b'", "-x", "a" * 65):
            with pytest.raises(OSError, match="is no name of a role"):
                await files.write("/ctl", f"load {name}\n".encode())
        assert role.named == "DroneWorker"


async def test_a_verdict_is_read_from_the_descriptor_that_was_written() -> None:
    role = TheRole()
    async with files_of(RoleFiles(role)) as files:
        for body, verdict in (
            (b"role R\n", b"ok\npolicy: as it is\n"),
            (b"allow any fly /\n", b"2 bad lines\na.role:3: no server 'x'\na.role:7: no right 'fly'\n"),
            (b"\xff", b"1 bad line\nbyte 0 is not UTF-8\n"),
        ):
            async with await files.open("/validate", os.O_RDWR) as file:
                await file.write(body)
                assert await file.pread(1000, 0) == verdict
        assert (role.count, await files.read("/problems")) == (1, b"")
        with pytest.raises(OSError, match="413"):
            await files.write("/validate", b"#" * (MOST + 1))


async def test_whoever_may_only_validate_may_not_load() -> None:
    role = TheRole()
    async with served(RoleFiles(role), ["any read,write /validate", "any ctl /ctl#reload"]) as service:
        wire = await service.dial()
        await wire.open("ctl", 1, 2)
        with pytest.raises(RefusedBy):
            await wire.write(1, b"load Other\n")
        assert (role.count, role.named) == (1, "")
