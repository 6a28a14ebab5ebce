"""Joining over real sockets and real TLS: tokens, whom they are shown to, what they get, and attacks."""

import errno
import os
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from warren.auth import certificates as x
from warren.auth import keyfiles, tls
from warren.auth.blocks import BadText
from warren.auth.ca import CA
from warren.auth.identity import Identity, joining_context
from warren.auth.join import Ticket, read_ticket, request
from warren.auth.refusal import Refusal
from warren.auth.rights import Policy
from warren.mount import Files, dial
from warren.mount.address import connect
from warren.mount.join import Unjoined, join, keep
from warren.mount.renew import keep_renewed, renew, renewal_at
from warren.mount.secure import SecureChannel
from warren.serve.export import Export
from warren.serve.listen import listening
from warren.serve.secure import Gate
from warren.serve.stream import serve_stream
from warren.servers.ca import JOINING, Ca, joining
from warren.store import MemoryStore
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Dir, File, Sink, Text

QUEEN, DRONE = "spiffe://hive/role/QueenPrimary/queen", "spiffe://hive/role/DroneWorker/d7"
ROWS = ("role/*/* read,write /mesh/ca/csr", "role/*/* read /mesh/**", "role/*/* read /secret")


@dataclass
class Queen:
    """A queen that listens, takes joiners, and has something to hide."""

    ca: Ca
    export: Export
    lobby: Export
    address: str
    folder: Path
    alarms: list[dict[str, object]] = field(default_factory=list)

    async def invited(self, name: str = "d7", seconds: float = 60) -> str:
        return await self.ca.invite(f"spiffe://hive/role/DroneWorker/{name}", seconds, "local")

    def heard(self) -> list[tuple[str, str]]:
        """What reached either of the trees: (op, path), denials among it."""
        assert isinstance(self.export.audit, AuditMemory)
        assert isinstance(self.lobby.audit, AuditMemory)
        lines = [*self.export.audit.lines, *self.lobby.audit.lines]
        return [(line.op, line.path) for line in lines if line.op != "handshake"]


@asynccontextmanager
async def queen_in(folder: Path, hive: str = "hive", who: str = "QueenPrimary/queen") -> AsyncIterator[Queen]:
    made = CA.create(folder / "ca", hive)
    made.issue(f"spiffe://{hive}/role/{who}", folder / "queen")
    alarms: list[dict[str, object]] = []
    ca = Ca(made.directory, MemoryStore(), alarm=lambda kind, **v: alarms.append({"kind": kind, **v}))
    root = Dir({"mesh": Dir({"ca": ca}), "secret": Text(lambda: "of members")})
    export = Export(root, Policy.parse(ROWS), AuditMemory(), TraceRing())
    lobby = Export(joining(ca), Policy.parse(JOINING), AuditMemory(), TraceRing())
    gate = Gate(Identity.load(folder / "queen"))
    gate.join = lobby
    async with listening(export, ["tls!127.0.0.1!0"], gate) as [address]:
        yield Queen(ca, export, lobby, address, folder, alarms)
    assert not [e for e in [*export.trace.errors, *lobby.trace.errors] if e.code == 500]


@pytest.fixture
async def queen(tmp_path: Path) -> AsyncIterator[Queen]:
    (tmp_path / "q").mkdir()
    async with queen_in(tmp_path / "q") as made:
        yield made


# Tokens


def ticket(folder: Path, expires: int = 1 << 40) -> Ticket:
    return Ticket.make(CA.create(folder / "ca", "hive").root, DRONE, "role/QueenPrimary/*", expires)


def test_a_token_reads_as_it_was_written_and_hides_its_secret(tmp_path: Path) -> None:
    made = ticket(tmp_path)
    assert read_ticket(made.write()) == made
    assert made.write().startswith("warren-join 1\n")
    assert (made.hive, made.name.parts) == ("hive", ("role", "DroneWorker", "d7"))
    assert len(made.secret) * 8 == 256
    shown = f"{made!r} {made!s}"
    assert made.secret.hex() not in shown
    assert repr(made.secret) not in shown
    assert made.secret.hex() not in made.id
    assert ticket(tmp_path / "other").id != made.id


@given(at=st.integers(0, 900), to=st.integers(0, 255))
def test_damage_to_a_token_is_said_and_never_quoted(
    tmp_path_factory: pytest.TempPathFactory, at: int, to: int
) -> None:
    made = _one(tmp_path_factory)
    text = bytearray(made.write().encode())
    text[at % len(text)] = to
    try:
        found = read_ticket(text.decode("latin-1"))
    except BadText as e:
        assert not any(line in str(e) for line in made.write().splitlines()[1:])  # noqa: PT017
    else:
        assert isinstance(found, Ticket)


_made: list[Ticket] = []


def _one(factory: pytest.TempPathFactory) -> Ticket:
    if not _made:
        _made.append(ticket(factory.mktemp("ticket")))
    return _made[0]


@pytest.mark.parametrize(
    "text", ["", "warren-token 1\nAA\n", "warren-join 2\nAA\n", "warren-join 1\nAA\n", "x" * 9000]
)
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(BadText):
        read_ticket(text)


# The way it goes


async def test_from_a_token_to_a_session_under_the_new_name(queen: Queen, tmp_path: Path) -> None:
    steps: list[str] = []
    joined = await join(
        queen.address, await queen.invited(), "DroneWorker", tell=lambda step, said: steps.append(step)
    )
    assert steps == ["token", "queen", "certificate"]
    assert joined.uri == DRONE
    keep(joined, tmp_path / "me")
    found = {name: os.stat(tmp_path / "me" / name).st_mode & 0o777 for name in os.listdir(tmp_path / "me")}
    assert found == {"key.pem": 0o600, "ca.pem": 0o600, "cert.pem": 0o600}
    me = Identity.load(tmp_path / "me")
    async with dial(queen.address, identity=me, expect="role/QueenPrimary/*") as files:
        assert await files.read("/secret") == b"of members\n"
        assert [s.subject for s in queen.export.sessions] == [DRONE]


async def test_a_lost_answer_is_had_again_with_the_same_key_only(queen: Queen) -> None:
    token, key = await queen.invited(), x.new_key()
    first = await join(queen.address, token, "DroneWorker", key=key)
    again = await join(queen.address, token, "DroneWorker", key=key)
    assert again.chain == first.chain
    with pytest.raises(Unjoined, match="does not count here") as caught:
        await join(queen.address, token, "DroneWorker")
    assert caught.value.step == "ask"
    assert "warren token invite" in caught.value.way_out
    assert [alarm["kind"] for alarm in queen.alarms] == ["join_reused"]
    assert isinstance(queen.lobby.audit, AuditMemory)
    assert [line.op for line in queen.lobby.audit.lines if line.code == 403] == ["Twrite"]


async def test_of_many_who_come_at_once_with_one_token_one_joins(queen: Queen) -> None:
    token, won, lost = await queen.invited(), list[str](), list[str]()

    async def come() -> None:
        try:
            won.append((await join(queen.address, token, "DroneWorker")).uri)
        except Unjoined as e:
            lost.append(e.step)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(come)
    assert won == [DRONE]
    assert lost == ["ask"] * 7


# Whom the token is shown to


async def test_another_hive_gets_no_byte_of_it(queen: Queen, tmp_path: Path) -> None:
    (tmp_path / "evil").mkdir()
    async with queen_in(tmp_path / "evil") as other:  # the same names, another root
        with pytest.raises(Unjoined, match="another hive answers") as caught:
            await join(other.address, await queen.invited(), "DroneWorker")
        assert (caught.value.step, caught.value.errno) == ("queen", errno.EACCES)
        assert other.heard() == []
        assert not other.lobby.sessions


async def test_a_member_that_is_no_queen_gets_no_byte_of_it(queen: Queen) -> None:
    """A drone has a certificate of the hive; it may not stand in for the queen and pick tokens up."""
    queen.ca.ca.issue("spiffe://hive/role/DroneWorker/evil", queen.folder / "evil")
    lobby = Export(joining(queen.ca), Policy.parse(JOINING), AuditMemory(), TraceRing())
    gate = Gate(Identity.load(queen.folder / "evil"))
    gate.join = lobby
    async with listening(lobby, ["tls!127.0.0.1!0"], gate) as [address]:
        with pytest.raises(Unjoined, match="wrong_role: role/QueenPrimary/") as caught:
            await join(address, await queen.invited(), "DroneWorker")
    assert caught.value.step == "queen"
    assert isinstance(lobby.audit, AuditMemory)
    assert not lobby.audit.lines


async def test_a_root_in_a_token_is_the_only_one_that_is_believed(queen: Queen, tmp_path: Path) -> None:
    forged = read_ticket(await queen.invited())._replace(root=ticket(tmp_path).root).write()
    with pytest.raises(Unjoined, match="another hive answers"):
        await join(queen.address, forged, "DroneWorker")
    assert queen.heard() == []


async def test_a_token_of_before_a_rotation_of_the_root_still_joins(queen: Queen, tmp_path: Path) -> None:
    token = await queen.invited()
    queen.ca.ca.rotate_root()
    queen.ca.ca.issue(QUEEN, queen.folder / "queen2")
    gate = Gate(Identity.load(queen.folder / "queen2"))
    gate.join = queen.lobby
    async with listening(queen.export, ["tls!127.0.0.1!0"], gate) as [address]:
        keep(await join(address, token, "DroneWorker"), tmp_path / "me")
        assert len(Identity.load(tmp_path / "me").roots) == 2


async def test_each_step_says_what_is_wrong_and_the_way_out(queen: Queen) -> None:
    good = await queen.invited()
    over = read_ticket(good)._replace(expires=int(time.time()) - 1).write()
    silent = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nobody = f"tls!127.0.0.1!{silent[0].socket.getsockname()[1]}"
    for one in silent:
        await one.aclose()
    taken = read_ticket(await queen.invited("d9"))
    queen.ca.ca.issue("spiffe://hive/role/DroneWorker/d9", queen.folder / "d9")
    cases = [
        (queen.address, "nonsense", "DroneWorker", None, "token", "give the file"),
        (queen.address, good, "QueenPrimary", None, "token", "say --role DroneWorker"),
        (queen.address, good, "DroneWorker", "d8", "token", "say --name d7"),
        (queen.address, over, "DroneWorker", None, "token", "have another"),
        ("tcp!127.0.0.1!1", good, "DroneWorker", None, "dial", "tls!HOST!PORT"),
        ("tls!127.0.0.1", good, "DroneWorker", None, "dial", "tls!HOST!PORT"),
        (nobody, good, "DroneWorker", None, "dial", "see that the queen runs"),
        (queen.address, taken.write(), "DroneWorker", None, "ask", "another --name"),
    ]
    for address, token, role, name, step, way_out in cases:
        with pytest.raises(Unjoined) as caught:
            await join(address, token, role, name=name)
        assert caught.value.step == step
        assert way_out in caught.value.way_out
        assert str(caught.value).count(read_ticket(good).write().splitlines()[1]) == 0
    no_joiners = Gate(Identity.load(queen.folder / "queen"))
    async with listening(queen.export, ["tls!127.0.0.1!0"], no_joiners) as [deaf]:
        with pytest.raises(Unjoined) as caught:
            await join(deaf, good, "DroneWorker")
    assert caught.value.step == "ask"
    assert "takes joiners" in caught.value.way_out
    await join(queen.address, good, "DroneWorker")  # nothing of that spent it


async def test_a_listener_that_says_nothing_is_given_up(queen: Queen) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, _hold, listeners)
        mute = f"tls!127.0.0.1!{listeners[0].socket.getsockname()[1]}"
        with pytest.raises(Unjoined, match=r"no answer within 0\.2 s"):
            await join(mute, await queen.invited(), "DroneWorker", deadline=0.2)
        nursery.cancel_scope.cancel()


async def _hold(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def test_an_answer_that_does_not_fit_is_no_identity(queen: Queen, tmp_path: Path) -> None:
    token, key, ca = await queen.invited(), x.new_key(), queen.ca.ca
    public, stranger = (x.check_strength(k.public_key()) for k in (key, x.new_key()))
    answers = [
        (x.pem(*ca.certify(stranger, DRONE)), ca.bundle()),
        (x.pem(*ca.certify(public, "spiffe://hive/role/DroneWorker/d8")), ca.bundle()),
        (x.pem(*ca.certify(public, DRONE)), CA.create(tmp_path / "other", "hive").bundle()),
        (b"nothing", ca.bundle()),
    ]
    for chain, bundle in answers:
        gate = Gate(Identity.load(queen.folder / "queen"))
        gate.join = Export(answering(chain, bundle), Policy.parse(JOINING), AuditMemory(), TraceRing())
        async with listening(queen.export, ["tls!127.0.0.1!0"], gate) as [address]:
            with pytest.raises(Unjoined, match="no certificate for this key and name") as caught:
                await join(address, token, "DroneWorker", key=key)
        assert caught.value.step == "certificate"


# What a stranger reaches


def joiner(queen: Queen, alpn: str = tls.JOIN) -> ssl.SSLContext:
    context = joining_context(queen.ca.ca.bundle())
    context.set_alpn_protocols([alpn])
    return context


async def as_joiner(queen: Queen, alpn: str = tls.JOIN) -> SecureChannel:
    return await shaken(queen, joiner(queen, alpn))


async def shaken(queen: Queen, context: ssl.SSLContext) -> SecureChannel:
    plain = (await connect(queen.address)).socket
    plain.setblocking(True)
    return SecureChannel(await trio.to_thread.run_sync(context.wrap_socket, plain))


async def test_without_a_certificate_one_reaches_the_lobby_alone(queen: Queen) -> None:
    for path in ("/secret", "/mesh/ca/ctl", "/mesh/ca/csr", "/ctl", "/issued", "/status", "/crl"):
        async with dial(await as_joiner(queen)) as files:
            with pytest.raises(OSError):
                await files.read(path)
            with pytest.raises(OSError):
                await files.write(path, b"invite role=DroneWorker name=x")
    async with dial(await as_joiner(queen)) as files:
        assert await files.read("/bundle") == queen.ca.ca.bundle()
        for path in ("/", "/x"):
            with pytest.raises(OSError):
                await files.mkdir(path)
    assert not queen.export.sessions
    for alpn in (tls.SERVE, tls.EXPORT, "http/1.1"):
        with pytest.raises(OSError):
            async with dial(await as_joiner(queen, alpn)):
                pass


async def test_a_member_may_show_its_certificate_in_the_lobby_and_is_nobody_there(queen: Queen) -> None:
    """Joining is for who brings a token; a certificate is no substitute."""
    queen.ca.ca.issue(DRONE, queen.folder / "d7")
    context = joiner(queen)
    context.load_cert_chain(queen.folder / "d7/cert.pem", queen.folder / "d7/key.pem")
    async with dial(await shaken(queen, context)) as files:
        async with await files.open("/csr", os.O_RDWR) as csr:
            with pytest.raises(OSError):
                await csr.write(request(x.new_key()))


async def test_guesses_are_refused_alike_and_cost_the_queen_no_signature(queen: Queen) -> None:
    good = read_ticket(await queen.invited())
    before = len(queen.ca.ca.certificates())
    async with dial(await as_joiner(queen)) as files:
        said = set()
        for _ in range(50):
            guess = good._replace(secret=os.urandom(32)).write().encode()
            async with await files.open("/csr", os.O_RDWR) as csr:
                with pytest.raises(PermissionError) as caught:
                    await csr.write(guess + request(x.new_key()))
            said.add((caught.value.strerror or "").partition(" trace=")[0])
    assert len(said) == 1
    assert len(queen.ca.ca.certificates()) == before
    await join(queen.address, good.write(), "DroneWorker")


# Renewal


async def test_a_member_renews_in_the_last_third_and_the_files_stay_one_identity(
    queen: Queen, tmp_path: Path
) -> None:
    await queen.ca.set_ttl(3600)
    keep(await join(queen.address, await queen.invited(), "DroneWorker"), tmp_path / "me")
    me = Identity.load(tmp_path / "me")
    due = renewal_at(tmp_path / "me")
    assert me.not_after - due == timedelta(minutes=20)
    async with dial(queen.address, identity=me, expect="role/QueenPrimary/*") as files:
        assert not await renew(files, tmp_path / "me", now=due - timedelta(seconds=1))
        await queen.ca.set_ttl(7200)
        queen.ca.ca.rotate_root()  # and the new root arrives with the new certificate
        assert await renew(files, tmp_path / "me", now=due)
        assert not await renew(files, tmp_path / "me", now=due)
    new = Identity.load(tmp_path / "me")
    assert (new.uri, new.serial != me.serial, len(new.roots)) == (me.uri, True, 2)
    assert new.not_after > me.not_after
    assert new.key.public_key() == me.key.public_key()
    assert sorted(os.listdir(tmp_path / "me")) == ["ca.pem", "cert.pem", "key.pem"]


async def test_a_renewal_that_does_not_fit_leaves_the_files_as_they_were(
    queen: Queen, tmp_path: Path, nursery: trio.Nursery
) -> None:
    keep(await join(queen.address, await queen.invited(), "DroneWorker"), tmp_path / "me")
    me, due = Identity.load(tmp_path / "me"), renewal_at(tmp_path / "me")
    before = {name: (tmp_path / "me" / name).read_bytes() for name in ("ca.pem", "cert.pem", "key.pem")}
    other = CA.create(tmp_path / "other", "hive")
    stranger, _ = x.read_request(request(x.new_key()))
    answers = {
        "is not the key of cert.pem": (x.pem(*queen.ca.ca.certify(stranger, DRONE)), queen.ca.ca.bundle()),
        "no longer life of the same name": (
            x.pem(*queen.ca.ca.certify(_public(me), "spiffe://hive/role/QueenPrimary/d7")),
            queen.ca.ca.bundle(),
        ),
        "none of the roots that are offered is known": (
            x.pem(*other.certify(_public(me), DRONE)),
            other.bundle(),
        ),
        "does not lead to a root": (x.pem(*other.certify(_public(me), DRONE)), queen.ca.ca.bundle()),
        "holds no certificate": (b"", queen.ca.ca.bundle()),
    }
    for says, (chain, bundle) in answers.items():
        async with lying(nursery, chain, bundle) as files:
            with pytest.raises(Refusal, match=says):
                await renew(files, tmp_path / "me", now=due)
        after = {name: (tmp_path / "me" / name).read_bytes() for name in before}
        assert after == before
        assert sorted(os.listdir(tmp_path / "me")) == sorted(before)


def _public(me: Identity) -> x.PublicKey:
    return x.check_strength(me.key.public_key())


@asynccontextmanager
async def lying(nursery: trio.Nursery, chain: bytes, bundle: bytes) -> AsyncIterator[Files]:
    """An authority that answers whatever a test says."""
    root = Dir({"mesh": Dir({"ca": answering(chain, bundle)})})
    export = Export(root, Policy.parse(["any rw /**"]), AuditMemory(), TraceRing())
    ours, theirs = trio.testing.memory_stream_pair()
    nursery.start_soon(serve_stream, export, theirs, "any")
    async with dial(ours) as files:
        yield files


def answering(chain: bytes, bundle: bytes) -> Dir:
    """An authority that says the same to everybody."""
    return Dir({"csr": Answers(lambda asked: chain), "bundle": File(lambda at, n: bundle[at : at + n])})


class Answers(Sink):
    mode = 0o600


async def test_it_is_kept_renewed_and_a_failure_is_told_and_tried_again(
    tmp_path: Path, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    ca = CA.create(tmp_path / "ca", "hive")
    begun = datetime.now(UTC).replace(microsecond=0)
    first = ca.issue(DRONE, tmp_path / "me", ttl=timedelta(days=3), now=begun)
    me = Identity.load(tmp_path / "me")
    second = ca.certify(_public(me), DRONE, timedelta(days=6), begun + timedelta(days=2))
    said: list[str] = []
    tries: list[float] = []
    done = trio.Event()

    def tell(text: str) -> None:
        said.append(text)
        if "was renewed" in text:
            done.set()

    @asynccontextmanager
    async def reach() -> AsyncIterator[Files]:
        tries.append(trio.current_time() - start)
        if len(tries) < 4:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the queen is away")
        async with lying(nursery, x.pem(*second), ca.bundle()) as files:
            yield files

    def now() -> datetime:
        return begun + timedelta(seconds=trio.current_time() - start)

    start = trio.current_time()
    nursery.start_soon(partial(keep_renewed, tmp_path / "me", reach, now=now, tell=tell))
    await done.wait()
    day = 86400
    assert tries == pytest.approx([2 * day, 2 * day + 1, 2 * day + 3, 2 * day + 7], abs=0.1)
    assert [text.count("the queen is away; the next try is in") for text in said] == [1, 1, 1, 0]
    assert second[0].serial_number != first.serial_number
    assert Identity.load(tmp_path / "me", now()).serial == f"{second[0].serial_number:x}"
    nursery.cancel_scope.cancel()


async def test_what_was_issued_anew_meanwhile_is_not_written_over(queen: Queen, tmp_path: Path) -> None:
    keep(await join(queen.address, await queen.invited(), "DroneWorker"), tmp_path / "me")
    me, due = Identity.load(tmp_path / "me"), renewal_at(tmp_path / "me")
    async with dial(queen.address, identity=me, expect="role/QueenPrimary/*") as files:
        keyfiles.write_whole(tmp_path / "me/key.pem", x.key_pem(x.new_key()))
        with pytest.raises(Refusal, match="not the key"):
            await renew(files, tmp_path / "me", now=due)
