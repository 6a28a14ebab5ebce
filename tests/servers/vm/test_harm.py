"""/vm when its callers race one another, and when its guests and callers mean harm.

The machines are a stand-in (see `standin`).
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from warren.mount import dial
from warren.roles.shares import now
from warren.servers.vm.archive import leave
from warren.servers.vm.asked import file_of
from warren.servers.vm.lent import Lent
from warren.servers.vm.machine import ENDED
from warren.servers.vm.tree import Qmp
from warren.tree import Handle, Refused

from tests.servers.ports import Nobody
from tests.servers.vm.place import house
from tests.servers.vm.standin import Inside, StandIn, follow


async def test_names_that_others_will_have_are_refused(tmp_path: Path) -> None:
    """Machine 2 is called vm-2, and its tree stands there: nobody may be there before it."""
    async with house(tmp_path, StandIn()) as h, h.machine() as (_, ctl):
        with pytest.raises(OSError, match="vm-2 is what machine 2 is called"):
            await ctl.write(b"name vm-2\n")
        await ctl.write(b"name vm-1\n")


async def test_a_report_may_have_any_key(tmp_path: Path) -> None:
    async def odd(inside: Inside) -> None:
        async with dial(Lent(inside.stage.far_channel), uname="root", deadline=10) as files:
            await files.write("/proc/boot", b"self=1\nkind=2\nseq=3\nts=4\nstate=ready\n")
            await follow(inside, files)

    async with house(tmp_path, StandIn(odd)) as h, h.machine("image standin", "start") as (m, _):
        await h.until(m, "ready")
        assert (await h.status(m))["guest_self"] == "1"


async def test_archives_that_are_being_written_have_their_room(tmp_path: Path) -> None:
    """Two that fit alone do not fit together, also while neither is there yet."""
    async with house(tmp_path, StandIn()) as h, h.machine() as (m, _):
        machine = h.vm.machines[m.rpartition("/")[2]]
        async with await h.files.create(f"{m}/in/big") as file:
            await file.pwrite(bytes(100_000), 0)
        machine.output.size = 150_000
        refused: list[str] = []

        async def leaving(name: str) -> None:
            try:
                await leave(machine, name)
            except Refused as e:
                refused.append(e.detail)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leaving, "a")
            nursery.start_soon(leaving, "b")
        assert len(refused) == 1
        assert "150000 bytes together" in refused[0]
        assert machine.output.used == sum(path.stat().st_size for path in machine.output.folder.iterdir())


@pytest.mark.parametrize("verb", ["pause", "resume", "reset"])
async def test_what_has_ended_meanwhile_stays_ended(verb: str, tmp_path: Path) -> None:
    """The emulator may answer, or say no, when its machine is over already."""
    async with house(tmp_path, backend := StandIn()) as h:
        async with h.machine("image standin", "stay", "start") as (m, ctl):
            await h.until(m, "ready")
            machine = h.vm.machines[m.rpartition("/")[2]]
            if verb == "resume":
                await ctl.write(b"pause\n")
            [stage] = backend.up

            async def late(*begins: Callable[[], None]) -> None:
                await stage.kill()
                await machine.finished.wait()
                for begin in begins:
                    begin()
                    raise Refused(502, "QEMU has ended")

            setattr(stage, verb, late)
            with suppress(OSError):
                await ctl.write(f"{verb}\n".encode())
            assert (await h.status(m))["state"] == ENDED
            assert (await h.files.read("/vm/stats")).decode().count("state=ended n=1") == 1


async def test_two_who_pause_at_once_pause_once(tmp_path: Path) -> None:
    async with house(tmp_path, backend := StandIn()) as h:
        async with h.machine("image standin", "stay", "start") as (m, ctl):
            await h.until(m, "ready")
            machine = h.vm.machines[m.rpartition("/")[2]]
            [stage] = backend.up
            plain, both = stage.pause, trio.Event()
            came = 0

            async def slowly() -> None:
                nonlocal came
                came += 1
                if came == 2:
                    both.set()
                with trio.move_on_after(0.1):
                    await both.wait()
                await plain()

            stage.pause = slowly  # type: ignore[method-assign]

            async def pausing() -> None:
                with suppress(Refused):
                    await machine.pause()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(pausing)
                nursery.start_soon(pausing)
            await ctl.write(b"resume\n")
            assert (await h.status(m))["state"] == "ready"


async def test_stop_when_it_has_just_ended_is_no_defect(tmp_path: Path) -> None:
    async with house(tmp_path, StandIn()) as h:
        async with h.machine("image standin", "stay", "start") as (m, ctl):
            await h.until(m, "ready")
            run = h.vm.machines[m.rpartition("/")[2]].run
            nursery, run._nursery = run._nursery, None  # as between its end and what follows
            with pytest.raises(OSError, match="has ended"):
                await ctl.write(b"stop\n")
            run._nursery = nursery


class Narrowed(Nobody):
    """A local caller who shows a token: that alone counts, and speaks of paths here and not of the host's."""

    subject, token = "local", object()


async def test_a_token_is_no_right_to_files_of_the_host(tmp_path: Path) -> None:
    (file := tmp_path / "file").write_bytes(b"s3cret")
    async with house(tmp_path, StandIn()) as h, h.machine() as (m, _):
        machine = h.vm.machines[m.rpartition("/")[2]]
        with pytest.raises(Refused, match="for local callers only"):
            file_of(str(file), machine.inputs, Narrowed())
        handle = Qmp(machine).open(0, Narrowed())
        assert isinstance(handle, Handle)
        with pytest.raises(Refused, match="only queries are taken"):
            await now(handle.write(0, b'{"execute": "quit"}'))


async def test_a_hole_in_a_file_for_the_guest_is_no_room_for_what_it_leaves(tmp_path: Path) -> None:
    async def growing(inside: Inside) -> None:
        (tmp_path / "vm" / "1" / "run" / "overlay").write_bytes(bytes(300_000))
        await trio.sleep_forever()

    async with house(tmp_path, StandIn(growing)) as h:
        async with h.machine("image standin", "limit disk=200K") as (m, ctl):
            async with await h.files.create(f"{m}/in/hole") as file:
                await file.pwrite(b"x", 1 << 30)
            await ctl.write(b"start\n")
            assert "ended=limit limit=disk" in (await h.all_of(f"{m}/wait")).decode()
