"""/vm as its users have it, on machines that are a stand-in (see `standin` and the suite that it passes)."""

import io
import os
import tarfile
from pathlib import Path

import pytest
import trio
from warren.auth.rights import Policy
from warren.mount import dial
from warren.serve.export import Export
from warren.serve.stream import serve_stream
from warren.servers.demo import Demo
from warren.servers.vm.backend import Works
from warren.servers.vm.ctl import MachineCtl
from warren.servers.vm.lent import Lent
from warren.servers.vm.machine import ENDED, NEW, STATES
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing

from tests.servers.vm.place import LOCAL, STANDIN, Shelved, house
from tests.servers.vm.standin import Inside, StandIn, follow

BOB, EVE = "spiffe://hive/user/bob", "spiffe://hive/user/eve"


async def silent(inside: Inside) -> None:
    """A guest that boots for ever."""
    await inside.log("...\n")
    await trio.sleep_forever()


async def test_a_standin_boots_says_so_and_ends_by_itself(tmp_path: Path) -> None:
    async with house(tmp_path, StandIn()) as h, h.machine("image standin", "start") as (m, _):
        console = await h.all_of(f"{m}/console")
        assert console == b"stand-in: begins\nstand-in: ready\n"
        line = (await h.all_of(f"{m}/wait")).decode()
        assert line.startswith("id=1 ended=exit code=0 status=85 verdict=booted boot_ms="), line
        status = await h.status(m)
        assert (status["state"], status["ended"], status["verdict"]) == ("ended", "exit", "booted")
        assert (status["boots"], status["backend"]) == ("standin", "stand-in")
        assert status["guest_kernel"] == "stage"
        kinds = [line.split()[2] for line in (await h.all_of(f"{m}/events")).decode().splitlines()]
        wanted = ["made", "starting", "building", "running", "report", "ready", "ended"]
        assert [k.removeprefix("kind=") for k in kinds if k != "kind=hung-up"] == wanted
        assert not (h.folder / "1" / "run").exists()


async def test_the_console_begins_at_its_oldest_byte_for_everybody(tmp_path: Path) -> None:
    async with house(tmp_path, StandIn()) as h, h.machine("image standin", "stay", "start") as (m, ctl):
        await h.until(m, "ready")
        async with await h.files.open(f"{m}/console", os.O_RDWR | os.O_NONBLOCK) as console:
            first = await console.record()
            assert first.startswith(b"stand-in: begins\n")
            await console.write(b"ls\n")
            got = first
            while b"typed ls" not in got:
                got += await console.record()
            await ctl.write(b"tell say good bye\n")
            while b"good bye" not in got:
                got += await console.record()
        await ctl.write(b"stop\n")
        assert (await h.all_of(f"{m}/console")).startswith(got)
        assert (await h.status(m))["ended"] == "stop"
        with pytest.raises(OSError, match="ended"):
            await h.files.write(f"{m}/console", b"x")


async def test_a_machine_is_gone_with_its_last_holder(tmp_path: Path) -> None:
    backend = StandIn()
    async with house(tmp_path, backend) as h:
        async with h.machine("image standin", "stay", "start") as (m, _):
            await h.until(m, "ready")
            assert len(backend.up) == 1
        names = [e.name for e in await h.files.ls("/vm")]
        assert m.rpartition("/")[2] not in names
        await h.gone(m)
        assert not backend.up
        assert not (h.folder / "1").exists()
        assert h.vm.reasons["gone"] == 1


async def test_one_that_is_kept_stays_until_finish(tmp_path: Path) -> None:
    backend = StandIn()
    async with house(tmp_path, backend) as h:
        async with h.machine("image standin", "keep", "start") as (m, _):
            await h.until(m, "ready")
        assert (await h.status(m))["state"] == "ready"
        await h.files.write(f"{m}/ctl", b"kill\n")
        assert (await h.status(m))["ended"] == "kill"
        await h.files.write(f"{m}/ctl", b"finish\n")
        with pytest.raises(FileNotFoundError):
            await h.files.read(f"{m}/status")


@pytest.mark.parametrize("verb", sorted(set(STATES) - {"type", "qmp"}))
async def test_verbs_out_of_order_are_refused_and_say_so(verb: str, tmp_path: Path) -> None:
    arguments = {
        "image": "standin", "recipe": "linux-pc", "kernel": "k", "arg": "quiet", "mem": "64M", "cpus": "1",
        "disk": "1M", "share": "/demo", "limit": "wall=9s", "backend": "stand-in", "name": "one", "role": "r",
        "tell": "say x", "snapshot": "one", "restore": "one",
    }  # fmt: skip
    line = f"{verb} {arguments.get(verb, '')}\n".encode()
    async with house(tmp_path, StandIn()) as h, h.machine() as (m, ctl):
        for name in ("k", "r"):
            await (await h.files.create(f"{m}/in/{name}")).close()
        if NEW not in STATES[verb]:
            with pytest.raises(OSError, match=f"{verb} is for a machine that is .*; this one is new"):
                await ctl.write(line)
        await ctl.write(b"image standin\nkill\n")
        assert (await h.status(m))["state"] == ENDED
        with pytest.raises(OSError, match=f"{verb} is for a machine that is .*; this one is ended"):
            await ctl.write(line)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("start", "say what it boots first"), ("image nosuch", "there are linux, standin"),
        ("backend nosuch", "no back end nosuch"), ("recipe nosuch", "no recipe"),
        ("mem 1K", "mem is a number"),
        ("mem lots", "mem is a number"), ("cpus 0", "from 1 to 64"), ("cpus many", "count takes int"),
        ("name Üx", "a name is small"), ("share demo", "absolute and spelt plainly"),
        ("share /demo/../cap", "absolute and spelt plainly"), ("share /role", "the guest's own"),
        ("share /demo fly", "no right"), ("limit", "say what is limited"), ("limit mem=2", "mem is a number"),
        ("limit wall=soon", "wall takes duration"), ("limit cpu=-1", "cpu is a number"),
        ("disk 1", "disk is a number"), ("disk nosuch.img", "no nosuch.img in the machine's in/"),
        ("kernel nosuch", "no nosuch in the machine's in/"), ("kernel /nosuch/file", "is no file"),
        ("role nosuch", "there is no nosuch"), ("arg 'a b'", "no spaces"), ("fly", "no verb"),
        ("snapshot ../x", "is no name"), ("export /etc/x", "is no name"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused_when_it_is_written(line: str, says: str, tmp_path: Path) -> None:
    async with house(tmp_path, StandIn()) as h, h.machine() as (m, ctl):
        with pytest.raises(OSError, match=says):
            await ctl.write(line.encode() + b"\n")
        assert (await h.status(m))["state"] == NEW


async def test_a_share_in_another_is_refused(tmp_path: Path) -> None:
    async with house(tmp_path, StandIn()) as h, h.machine("share /demo read,write") as (m, ctl):
        for path in ("/demo", "/demo/hello", "/"):
            with pytest.raises(OSError, match="lie in one another"):
                await ctl.write(f"share {path}\n".encode())
        ns = (await h.files.read(f"{m}/ns")).decode()
        assert ns == "mount $guest /\nbind $role/demo /demo  # read,write as local\n"


async def test_a_guest_works_in_what_was_shared(tmp_path: Path) -> None:
    async def working(inside: Inside) -> None:
        async with dial(Lent(inside.stage.far_channel), uname="root", deadline=10) as files:
            greeting = await files.read("/demo/hello")
            try:
                await files.write("/demo/hello", b"mine")
            except PermissionError as e:
                greeting += str(e.strerror).encode() + b"\n"
            async with await files.create("/out/seen") as out:
                await out.write(greeting + await files.read("/in/job"))
            await files.write("/proc/boot", b"state=ready")
            await follow(inside, files)

    async with house(tmp_path, StandIn(working)) as h, h.machine("image standin", "share /demo") as (m, ctl):
        async with await h.files.create(f"{m}/in/job") as job:
            await job.write(b"do this\n")
        await ctl.write(b"start\n")
        await h.until(m, "ready")
        seen = (await h.files.read(f"{m}/out/seen")).decode()
        assert seen.startswith("hello, world\n403 denied")
        assert seen.endswith("do this\n")
        with pytest.raises(OSError):
            await h.files.write(f"{m}/status", b"x")
        said = await ctl.write(b"export report\n")
        assert said
        with tarfile.open(fileobj=io.BytesIO(await h.files.read(f"{m}/out/report.tar"))) as tar:
            assert sorted(tar.getnames()) == ["console", "events", "in/job", "ns", "out/seen", "status"]
            inside = tar.extractfile("in/job")
            assert inside is not None
            assert inside.read() == b"do this\n"
        with pytest.raises(FileExistsError):
            await ctl.write(b"export report\n")


async def test_bob_shares_what_bob_may_use_and_no_more(tmp_path: Path) -> None:
    async def trying(inside: Inside) -> None:
        async with dial(Lent(inside.stage.far_channel), uname="root", deadline=10) as files:
            found = []
            for path in ("/demo/hello", "/demo/scratch"):
                try:
                    await files.read(path)
                    found.append(path)
                except OSError:
                    pass
            await files.write("/proc/boot", f"state=ready\nfound={','.join(found)}\n".encode())
            await follow(inside, files)

    rows = (LOCAL, "user/bob read,write,ctl /vm/**", "user/bob read /demo/hello")
    async with house(tmp_path, StandIn(trying), rows=rows) as h:
        bob = await h.as_(BOB)
        async with h.machine("image standin", "share /demo read", "start", files=bob) as (m, _):
            await h.until(m, "ready")
            status = await h.status(m)
            assert (status["guest_found"], status["owner"]) == ("/demo/hello", BOB)


async def test_files_of_the_host_are_for_local_callers(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(b"kernel")
    rows = (LOCAL, "user/bob read,write,create,ctl /vm/**")
    async with house(tmp_path, backend := StandIn(), rows=rows) as h:
        bob = await h.as_(BOB)
        async with h.machine(files=bob) as (m, ctl):
            for verb in ("kernel", "disk"):
                with pytest.raises(PermissionError, match="for local callers only"):
                    await ctl.write(f"{verb} {tmp_path}/vmlinuz\n".encode())
            async with await bob.create(f"{m}/in/bzimage") as file:
                await file.write(b"bobs")
            await ctl.write(b"kernel in/bzimage\nstay\nstart\n")
            await h.until(m, "ready")
            assert backend.specs[-1].kernel == h.folder / "1/in/bzimage"
        async with h.machine(f"kernel {tmp_path}/vmlinuz", "stay", "start") as (m, _):
            await h.until(m, "ready")
            assert backend.specs[-1].kernel == tmp_path / "vmlinuz"


async def test_the_emulators_protocol_is_for_local_callers(tmp_path: Path) -> None:
    rows = (LOCAL, "user/bob read,write,ctl /vm/**", "user/eve read,write,ctl /vm/**")
    async with house(tmp_path, StandIn(), rows=rows) as h:
        bob, eve = await h.as_(BOB), await h.as_(EVE)
        async with h.machine("image standin", "stay", "start", files=bob) as (m, _):
            await h.until(m, "ready")
            with pytest.raises(PermissionError, match="whose machine this is"):
                await eve.write(f"{m}/qmp", b'{"execute": "query-status"}')
            twice = b'{"execute": "query-x", "execute": "quit"}'
            for hidden in (b'{"execute": "quit"}', b'{"execute": ["query-x"]}', twice, b"x"):
                with pytest.raises(PermissionError, match="only queries"):
                    await bob.write(f"{m}/qmp", hidden)
            for files in (bob, h.files):
                with pytest.raises(OSError, match="no protocol of its own"):
                    await files.write(f"{m}/qmp", b'{"execute": "query-status"}')


async def test_pause_resume_reset_and_snapshots(tmp_path: Path) -> None:
    async with house(tmp_path, backend := StandIn()) as h:
        async with h.machine("image standin", "stay", "start") as (m, ctl):
            await h.until(m, "ready")
            await ctl.write(b"pause\n")
            assert (await h.status(m))["state"] == "paused"
            with pytest.raises(OSError, match="this one is paused"):
                await ctl.write(b"pause\n")
            await ctl.write(b"resume\n")
            assert (await h.status(m))["state"] == "ready"
            await ctl.write(b"snapshot one\n")
            assert (await h.status(m))["guest_kernel"] == "stage"
            with pytest.raises(OSError, match="no snapshot 'two'"):
                await ctl.write(b"restore two\n")
            await ctl.write(b"restore one\n")
            [stage] = backend.up
            stage.memory["steps"] = 99
            await ctl.write(b"reset\n")
            async with await h.files.open(f"{m}/events", os.O_RDONLY | os.O_NONBLOCK) as events:
                readies = 0
                while readies < 2:
                    readies += b" kind=ready " in await events.record()
            assert stage.memory["steps"] < 99


@pytest.mark.parametrize(
    ("code", "status", "verdict"), [(0, "85", "booted"), (0x2B, "87", "refused"), (7, "15", "error")]
)
async def test_how_a_guest_leaves_is_told(code: int, status: str, verdict: str, tmp_path: Path) -> None:
    async with house(tmp_path, StandIn()) as h, h.machine("image standin", "stay", "start") as (m, ctl):
        await h.until(m, "ready")
        await ctl.write(f"tell exit {code}\n".encode())
        line = (await h.all_of(f"{m}/wait")).decode()
        assert f"ended=exit code={1 if code == 0x2B else code} " in line
        assert f" status={status} " in f"{line} "
        assert f"verdict={verdict}" in line


async def test_a_guest_that_says_it_has_ended_is_ended(tmp_path: Path) -> None:
    async def halting(inside: Inside) -> None:
        async with dial(Lent(inside.stage.far_channel), uname="root", deadline=10) as files:
            await files.write("/proc/boot", b"state=ready")
            await files.write("/proc/boot", b"state=ended\ncode=3\n")
            await trio.sleep_forever()

    async with house(tmp_path, StandIn(halting)) as h, h.machine("image standin", "start") as (m, _):
        line = (await h.all_of(f"{m}/wait")).decode()
        assert "ended=exit code=3 status=-9 verdict=error" in line


async def test_wall_time_is_a_limit_and_is_named(tmp_path: Path) -> None:
    async with house(tmp_path, StandIn(silent)) as h:
        async with h.machine("image standin", "limit wall=100ms", "start") as (m, _):
            line = (await h.all_of(f"{m}/wait")).decode()
            assert "ended=limit limit=wall" in line
            assert "verdict=error" in line
            status = await h.status(m)
            assert (status["limit"], status["limit_wall"]) == ("wall", "0.100")


async def test_what_a_guest_leaves_is_bounded(tmp_path: Path) -> None:
    async def filling(inside: Inside) -> None:
        async with dial(Lent(inside.stage.far_channel), uname="root", deadline=10) as files:
            async with await files.create("/out/big") as out:
                try:
                    for at in range(64):
                        await out.pwrite(bytes(8192), at * 8192)
                except OSError as e:
                    await files.write("/proc/boot", f"state=ready\nerrno={e.errno}\n".encode())
            await follow(inside, files)

    async with house(tmp_path, StandIn(filling)) as h:
        async with h.machine("image standin", "limit disk=100K", "start") as (m, _):
            await h.until(m, "ready")
            assert (await h.status(m))["guest_errno"] == "28"


async def test_a_disk_that_grows_beyond_the_limit_ends_the_machine(tmp_path: Path) -> None:
    async def growing(inside: Inside) -> None:
        place = next((tmp_path / "vm").glob("*/run"))
        (place / "disk0.qcow2").write_bytes(os.urandom(300_000))
        await trio.sleep_forever()

    async with house(tmp_path, StandIn(growing)) as h:
        async with h.machine("image standin", "limit disk=100K", "start") as (m, _):
            assert "ended=limit limit=disk" in (await h.all_of(f"{m}/wait")).decode()


async def test_stop_is_asked_and_then_done(tmp_path: Path) -> None:
    async def deaf(inside: Inside) -> None:
        async with dial(Lent(inside.stage.far_channel), uname="root", deadline=10) as files:
            await files.write("/proc/boot", b"state=ready")
            await trio.sleep_forever()

    async with house(tmp_path, StandIn(deaf), grace=0.1) as h:
        async with h.machine("image standin", "stay", "start") as (m, ctl):
            await h.until(m, "ready")
            await ctl.write(b"stop\n")
            line = (await h.all_of(f"{m}/wait")).decode()
            assert "ended=stop" in line
            assert "status=-9" in line


@pytest.mark.parametrize("how", ["kill", "stop", "let go"])
async def test_one_that_is_still_starting_can_be_ended(how: str, tmp_path: Path) -> None:
    begun = trio.Event()

    async def never() -> None:
        begun.set()
        await trio.sleep_forever()

    async with house(tmp_path, backend := StandIn(before=never)) as h:
        async with h.machine("image standin", "start") as (m, ctl):
            await begun.wait()
            assert (await h.status(m))["state"] == "starting"
            if how != "let go":
                await ctl.write(f"{how}\n".encode())
                assert f"ended={how}" in (await h.all_of(f"{m}/wait")).decode()
        await h.gone(m)
        assert not backend.up


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["image broken"], "run warren image build broken"), (["kernel empty"], "the kernel is empty"),
        (["image standin", "backend sick"], "sick: it is not well"),
    ],
)  # fmt: skip
async def test_what_cannot_start_ends_with_the_reason(lines: list[str], says: str, tmp_path: Path) -> None:
    sick = StandIn(works=Works(False, "it is not well"))
    sick.name = "sick"
    images = Shelved(STANDIN, missing="broken")
    async with house(tmp_path, StandIn(), sick, images=images) as h, h.machine() as (m, ctl):
        await (await h.files.create(f"{m}/in/empty")).close()
        await ctl.write("\n".join([*lines, "start", ""]).encode())
        line = (await h.all_of(f"{m}/wait")).decode()
        assert "ended=error" in line
        assert says in line
        assert says in (await h.status(m))["said"]


async def test_a_defect_of_ours_ends_the_machine_that_met_it_alone(tmp_path: Path) -> None:
    async def defect() -> None:
        raise ZeroDivisionError("of ours")

    broken = StandIn(before=defect)
    broken.name = "broken"
    async with house(tmp_path, StandIn(), broken) as h:
        async with h.machine("image standin", "stay", "start") as (well, _):
            await h.until(well, "ready")
            async with h.machine("image standin", "backend broken", "start") as (m, _):
                assert "ended=error" in (await h.all_of(f"{m}/wait")).decode()
            assert (await h.status(well))["state"] == "ready"
        assert "ZeroDivisionError" in h.told.pop()


async def test_back_ends_are_probed_once_and_shown_with_reasons(tmp_path: Path) -> None:
    sick = StandIn(works=Works(False, "there is no /dev/kvm"))
    sick.name = "qemu-kvm"
    async with house(tmp_path, well := StandIn(), sick) as h:
        for _ in range(3):
            text = (await h.files.read("/vm/backends")).decode()
            assert text == "stand-in=1\nqemu-kvm=0 why='there is no /dev/kvm'\n"
        assert (well.probes, sick.probes) == (1, 1)
        await h.files.write("/vm/ctl", b"probe\n")
        await h.files.read("/vm/backends")
        assert (well.probes, sick.probes) == (2, 2)


async def test_machines_are_so_many_and_so_large_together(tmp_path: Path) -> None:
    async with house(tmp_path, StandIn(), machines=2, memory=200 << 20) as h:
        lines = ("image standin", "mem 128M", "stay")
        async with h.machine(*lines, "start") as (m, _), h.machine(*lines) as (_, second):
            await h.until(m, "ready")
            with pytest.raises(OSError, match="200M together; this makes 256M"):
                await second.write(b"start\n")
            with pytest.raises(OSError, match="2 machines, the limit"):
                await h.files.open("/vm/clone", os.O_RDWR)


async def test_all_can_be_ended_at_the_root(tmp_path: Path) -> None:
    async with house(tmp_path, StandIn()) as h:
        async with h.machine("image standin", "stay", "start") as (m, _):
            await h.until(m, "ready")
            await h.files.write("/vm/ctl", b"kill 1\n")
            assert (await h.status(m))["ended"] == "kill"
            with pytest.raises(OSError, match="no machine 7"):
                await h.files.write("/vm/ctl", b"kill 7\n")
            metrics = (await h.files.read("/vm/metrics")).decode()
            assert 'vm_ended_total{reason="kill"} 1' in metrics
            assert "vm_boot_ms" in (await h.files.read(f"{m}/metrics")).decode()


async def test_the_tree_of_a_guest_is_at_n_by_its_name(tmp_path: Path) -> None:
    async def serving(inside: Inside) -> None:
        export = Export(Demo(), Policy.parse(["any read,write /**"]), AuditMemory(), TraceRing())
        far = inside.stage.far_export
        assert far is not None
        async with dial(Lent(inside.stage.far_channel), uname="root", deadline=10) as files:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_stream, export, Lent(far), "host")
                await files.write("/proc/boot", b"state=ready")
                await follow(inside, files)

    async with house(tmp_path, backend := StandIn(serving)) as h:
        async with h.machine("image linux", "name worker", "start") as (m, ctl):
            await h.until(m, "serving")
            assert await h.files.read("/n/worker/hello") == b"hello, world\n"
            assert backend.specs[-1].cmdline == "quiet warren.name=worker"
            await ctl.write(b"reset\n")
            async with await h.files.open(f"{m}/events", os.O_RDONLY | os.O_NONBLOCK) as events:
                times = 0
                while times < 2:
                    record = await events.record()
                    assert b"not-serving" not in record, record
                    times += b" kind=serving " in record
            assert await h.files.read("/n/worker/hello") == b"hello, world\n"
            async with h.machine() as (_, other):
                with pytest.raises(OSError, match="called worker already"):
                    await other.write(b"name worker\n")
            await ctl.write(b"kill\n")
        assert not await h.files.walk_exists("/n/worker")


async def test_a_role_that_was_killed_has_its_machines_swept(tmp_path: Path) -> None:
    left = tmp_path / "vm" / "7" / "run"
    left.mkdir(parents=True)
    (left / "disk0.qcow2").write_bytes(b"x")
    async with house(tmp_path, StandIn()) as h:
        assert list(h.folder.iterdir()) == []


@pytest.mark.parametrize("state", ["new", "starting", "ready"])
async def test_all_of_them_end_with_their_role(state: str, tmp_path: Path) -> None:
    async def wait() -> None:
        if state == "starting":
            await trio.sleep_forever()

    backend = StandIn(before=wait)
    async with house(tmp_path, backend) as h:
        ctl = await h.files.open("/vm/clone", os.O_RDWR)
        await ctl.write(b"image standin\nkeep\n")
        if state != "new":
            await ctl.write(b"start\n")
            await h.until("/vm/1", state)
        machine = h.vm.machines["1"]
    assert not backend.up
    assert machine.ended["ended"] == "down"


async def test_a_role_manifest_and_its_signature_are_given_to_the_guest(tmp_path: Path) -> None:
    async def reading(inside: Inside) -> None:
        async with dial(Lent(inside.stage.far_channel), uname="root", deadline=10) as files:
            role, signature = await files.read("/role"), await files.read("/role.sig")
            said = b"state=ready\nrole=" + role.strip() + b"\nsig=" + signature.strip()
            await files.write("/proc/boot", said)
            await follow(inside, files)

    async with house(tmp_path, StandIn(reading)) as h, h.machine("image standin") as (m, ctl):
        for name, text in (("a.role", b"role Guest\n"), ("a.role.sig", b"abc\n")):
            async with await h.files.create(f"{m}/in/{name}") as file:
                await file.write(text)
        await ctl.write(b"role in/a.role\nstart\n")
        await h.until(m, "ready")
        status = await h.status(m)
        assert (status["guest_role"], status["guest_sig"]) == ("'role Guest'", "abc")


def test_every_verb_that_a_state_can_refuse_is_one() -> None:
    assert set(STATES) - {"type", "qmp"} <= set(MachineCtl.verbs)
