"""The authority's files: requests, join tokens, what is shown and what an operator does."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from warren.auth import certificates as x
from warren.auth.blocks import write_parts
from warren.auth.ca import CA
from warren.auth.join import PART, Ticket, fingerprint, read_ticket, request
from warren.auth.rights import Policy
from warren.check.tree import check_tree
from warren.mount import Files, dial
from warren.mount.join import sign
from warren.serve.export import Export
from warren.serve.stream import serve_stream
from warren.servers.ca import JOINING, Ca, joining
from warren.servers.ca.tokens import KEPT, OUTSTANDING, REFUSED
from warren.servers.ca.tree import LIVE
from warren.store import MemoryStore, Store, StoreFailed
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Node

ANN, DRONE = "spiffe://hive/user/ann", "spiffe://hive/role/DroneWorker/d7"
EVERYTHING = "any read,write,ctl /**"


@dataclass
class Scene:
    """An authority, and everything it said."""

    ca: Ca
    folder: Path
    nursery: trio.Nursery
    at: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    alarms: list[dict[str, object]] = field(default_factory=list)
    notes: list[dict[str, object]] = field(default_factory=list)

    def alarm(self, kind: str, **values: object) -> None:
        self.alarms.append({"kind": kind, **values})

    def tell(self, kind: str, **values: object) -> None:
        self.notes.append({"kind": kind, **values})

    def whys(self) -> list[object]:
        return [note["why"] for note in self.notes if note["kind"] == "join_refused"]

    @asynccontextmanager
    async def files(self, subject: str = "local", root: Node | None = None) -> AsyncIterator[Files]:
        rows = [EVERYTHING] if root is None else list(JOINING)
        export = Export(root or self.ca, Policy.parse(rows), AuditMemory(), TraceRing())
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(serve_stream, export, theirs, subject)
        async with dial(ours) as files:
            yield files
        assert not [e for e in export.trace.errors if e.code == 500]

    async def verb(self, line: str) -> str:
        async with self.files() as files, await files.open("/ctl", 2) as ctl:
            await ctl.write(line.encode())
            return (await ctl.pread(8192, 0)).decode()

    async def invited(self, name: str = "d7", more: str = "") -> str:
        return await self.verb(f"invite role=DroneWorker name={name}{more}")

    async def join(self, token: str, key: x.PrivateKey) -> list[x509.Certificate]:
        async with self.files("any", joining(self.ca)) as files:
            chain = await sign(files, "/csr", token.encode() + request(key))
            return x.load_chain(chain, "the answer")


def scene_in(folder: Path, nursery: trio.Nursery, store: Store | None = None) -> Scene:
    scenes: list[Scene] = []
    ca = Ca(
        folder / "ca", store or MemoryStore(),
        alarm=lambda kind, **values: scenes[0].alarm(kind, **values),
        tell=lambda kind, **values: scenes[0].tell(kind, **values),
        now=lambda: scenes[0].at,
    )  # fmt: skip
    scenes.append(Scene(ca, folder, nursery))
    return scenes[0]


@pytest.fixture
def scene(tmp_path: Path, nursery: trio.Nursery) -> Scene:
    CA.create(tmp_path / "ca", "hive")
    return scene_in(tmp_path, nursery)


async def test_they_are_trees(scene: Scene) -> None:
    leaf = scene.ca.ca.issue(ANN, scene.folder / "ann")

    @asynccontextmanager
    async def make() -> AsyncIterator[Node]:
        yield scene.ca

    @asynccontextmanager
    async def make_joining() -> AsyncIterator[Node]:
        yield joining(scene.ca)

    await check_tree(make)
    await check_tree(make_joining)
    async with scene.files() as files:
        assert f"{leaf.serial_number:x}" in [e.name for e in await files.ls("/issued")]
        assert await files.read("/bundle") == scene.ca.ca.bundle()
        assert await files.read("/crl") == scene.ca.ca.crl()


# Requests of members


async def test_a_member_gets_another_certificate_for_its_own_name(scene: Scene) -> None:
    old = scene.ca.ca.issue(ANN, scene.folder / "ann")
    key = x.new_key("p256")
    async with scene.files(ANN) as files:
        chain = x.load_chain(await sign(files, "/csr", request(key)), "it")
    assert x.uris(chain[0]) == [ANN]
    assert x.same_key(chain[0], key)
    assert chain[0].serial_number != old.serial_number
    assert chain[1] == scene.ca.ca.shelf.issuer().certificate


async def test_what_a_request_wishes_for_is_not_looked_at(scene: Scene) -> None:
    scene.ca.ca.issue(ANN, scene.folder / "ann")
    key = rsa.generate_private_key(65537, 2048)
    wishes = [
        x509.UniformResourceIdentifier("spiffe://hive/role/QueenPrimary/queen"),
        x509.UniformResourceIdentifier("spiffe://other/user/ann"),
        x509.DNSName("hive"),
    ]
    asked = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "root")]))
        .add_extension(x509.SubjectAlternativeName(wishes), critical=True)
        .add_extension(x509.BasicConstraints(True, 0), critical=True)
        .sign(key, SHA256())
    )
    async with scene.files(ANN) as files:
        chain = x.load_chain(await sign(files, "/csr", asked.public_bytes(Encoding.PEM)), "it")
    assert x.uris(chain[0]) == [ANN]
    assert list(chain[0].subject) == []
    assert not chain[0].extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize("subject", ["local", "any", f"{ANN} via=spiffe://hive/role/Proxy/p", "guest/7"])
async def test_who_shows_no_certificate_of_its_own_renews_none(scene: Scene, subject: str) -> None:
    scene.ca.ca.issue(ANN, scene.folder / "ann")
    async with scene.files(subject) as files:
        with pytest.raises(PermissionError, match="only who shows a certificate"):
            await sign(files, "/csr", request(x.new_key()))


async def test_a_name_without_a_certificate_in_force_is_renewed_no_more(scene: Scene) -> None:
    leaf = scene.ca.ca.issue(ANN, scene.folder / "ann", now=scene.at)
    async with scene.files(ANN) as files:
        await scene.verb(f"revoke {leaf.serial_number:x} keyCompromise")
        with pytest.raises(PermissionError, match="no certificate of spiffe://hive/user/ann is in force"):
            await sign(files, "/csr", request(x.new_key()))
    scene.ca.ca.issue(ANN, scene.folder / "ann2", now=scene.at)
    scene.at += timedelta(days=8)
    async with scene.files(ANN) as files:
        with pytest.raises(PermissionError, match="is in force"):
            await sign(files, "/csr", request(x.new_key()))


async def test_a_region_of_the_hive_names_its_own(scene: Scene) -> None:
    async with scene.files("spiffe://west.hive/user/ann") as files:
        with pytest.raises(PermissionError, match=r"names of west\.hive are given by its own authority"):
            await sign(files, "/csr", request(x.new_key()))


async def test_one_name_has_so_many_certificates_at_once_and_no_more(scene: Scene) -> None:
    scene.ca.ca.issue(ANN, scene.folder / "ann")
    async with scene.files(ANN) as files:
        for _ in range(LIVE - 1):
            await sign(files, "/csr", request(x.new_key()))
        with pytest.raises(OSError, match=rf"429 .*{LIVE} certificates .* retry_after=\d+"):
            await sign(files, "/csr", request(x.new_key()))


async def test_one_opening_is_one_request_of_a_bounded_size(scene: Scene) -> None:
    scene.ca.ca.issue(ANN, scene.folder / "ann")
    key = x.new_key()
    async with scene.files(ANN) as files:
        async with await files.open("/csr", 2) as csr:
            assert await csr.pread(100, 0) == b""
            await csr.write(request(key))
            with pytest.raises(OSError, match="one request an opening"):
                await csr.pwrite(request(key), 0)
        for asked, says in (
            (b"x" * 8193, "at most 8192 bytes"),
            (b"no request", "no signing request"),
        ):
            with pytest.raises(OSError, match=says):
                await sign(files, "/csr", asked)
    assert len(scene.ca.ca.certificates()) == 4  # root, issuer, the first and its renewal


# Join tokens


async def test_a_token_makes_a_member_and_only_its_hash_is_kept(scene: Scene) -> None:
    text = await scene.invited()
    ticket = read_ticket(text)
    assert (ticket.uri, ticket.hive, ticket.certificate) == (DRONE, "hive", scene.ca.ca.root)
    assert ticket.expires == scene.at.timestamp() + 600
    key = x.new_key()
    chain = await scene.join(text, key)
    assert x.uris(chain[0]) == [DRONE]
    assert x.same_key(chain[0], key)
    for at in await scene.ca.store.keys():
        value = (await scene.ca.store.get(at)).value
        assert ticket.secret not in value
        assert ticket.secret.hex().encode() not in value
        assert ticket.secret.hex() not in at
    said = f"{scene.notes} {scene.alarms}"
    assert ticket.secret.hex() not in said
    assert text.splitlines()[1] not in said
    assert [note["kind"] for note in scene.notes] == ["join_invited", "join_certified"]


async def test_the_same_key_has_the_same_answer_again(scene: Scene) -> None:
    text, key = await scene.invited(), x.new_key()
    first = await scene.join(text, key)
    assert await scene.join(text, key) == first
    assert len([c for c in scene.ca.ca.certificates() if c.kind == "leaf"]) == 1
    assert not scene.alarms


async def test_another_key_is_refused_and_raises_an_alarm(scene: Scene) -> None:
    text = await scene.invited()
    await scene.join(text, x.new_key())
    with pytest.raises(PermissionError, match=REFUSED):
        await scene.join(text, x.new_key())
    [alarm] = scene.alarms
    assert alarm["kind"] == "join_reused"
    assert alarm["uri"] == DRONE
    assert scene.whys() == ["used"]


async def test_of_keys_that_come_at_once_exactly_one_wins(scene: Scene) -> None:
    text = await scene.invited()
    won: list[list[x509.Certificate]] = []
    lost: list[str] = []

    async def come() -> None:
        try:
            won.append(await scene.join(text, x.new_key()))
        except OSError as e:
            lost.append(e.strerror or "")

    async with trio.open_nursery() as nursery:
        for _ in range(12):
            nursery.start_soon(come)
    assert len(won) == 1
    assert len(lost) == 11
    assert len([c for c in scene.ca.ca.certificates() if c.kind == "leaf"]) == 1
    assert len(scene.alarms) == 11


async def test_two_tokens_for_one_name_make_one_member(scene: Scene) -> None:
    texts = [await scene.invited(), await scene.invited()]
    lost: list[str] = []

    async def come(text: str) -> None:
        try:
            await scene.join(text, x.new_key())
        except OSError as e:
            lost.append(e.strerror or "")

    async with trio.open_nursery() as nursery:
        for text in texts:
            nursery.start_soon(come, text)
    assert len(lost) == 1
    assert "is taken" in lost[0]
    assert len([c for c in scene.ca.ca.certificates() if c.kind == "leaf"]) == 1


async def test_what_does_not_count_is_refused_in_one_sentence(scene: Scene) -> None:
    good = read_ticket(await scene.invited())
    brief = await scene.invited("d8", " ttl=5s")
    used = await scene.invited("d9")
    await scene.join(used, x.new_key())
    scene.at += timedelta(seconds=5)
    bad = {
        "unknown": Ticket.make(scene.ca.ca.root, DRONE, good.queen, good.expires).write(),
        "expired": brief,
        "altered": good._replace(uri="spiffe://hive/role/QueenPrimary/d7").write(),
        "used": used,
    }
    heard = set()
    for why, text in bad.items():
        with pytest.raises(PermissionError) as caught:
            await scene.join(text, x.new_key())
        heard.add((caught.value.strerror or "").partition(" trace=")[0])
        assert scene.whys()[-1] == why
    assert heard == {f"403 denied: {REFUSED}"}
    # A longer life that the token itself claims does not count either.
    with pytest.raises(PermissionError):
        await scene.join(read_ticket(brief)._replace(expires=good.expires + 9999).write(), x.new_key())
    await scene.join(good.write(), x.new_key())  # none of that spent it


async def test_a_bad_request_does_not_spend_the_token(scene: Scene) -> None:
    text = await scene.invited()
    async with scene.files("any", joining(scene.ca)) as files:
        weak = rsa.generate_private_key(65537, 1024)
        asked = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(weak, SHA256())
        der = x509.load_pem_x509_csr(request(x.new_key())).public_bytes(Encoding.DER)
        unheard_of = base64.encodebytes(der.replace(b"\2\1\0", b"\2\1\7", 1))
        mark = b"-----%s CERTIFICATE REQUEST-----\n"
        version_8 = mark % b"BEGIN" + unheard_of + mark % b"END"
        for rest in (b"", b"-----BEGIN nonsense", asked.public_bytes(Encoding.PEM), version_8):
            with pytest.raises(OSError, match="400"):
                await sign(files, "/csr", text.encode() + rest)
        for nothing in (request(x.new_key()), write_parts([(PART, b"x")]).encode(), b"\xff" * 100):
            with pytest.raises(OSError, match="write the join token, then a signing request"):
                await sign(files, "/csr", nothing)
        with pytest.raises(OSError, match="at most 8192 bytes"):
            await sign(files, "/csr", text.encode() + b"\n" * 9000 + request(x.new_key()))
    await scene.join(text, x.new_key())


class EndsAfter(MemoryStore):
    """A store that is heard of no more once a token was taken, as if this process were killed right then."""

    async def put(self, key: str, value: bytes, *, expect: int | None = None) -> int:
        revision = await super().put(key, value, expect=expect)
        if key.startswith("join/") and expect:
            raise StoreFailed("the process ended")
        return revision


async def test_after_an_end_between_taking_and_signing_the_same_key_may_come_again(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    CA.create(tmp_path / "ca", "hive")
    before = scene_in(tmp_path, nursery, EndsAfter())
    text, key = await before.invited(), x.new_key()
    with pytest.raises(OSError, match="503"):
        await before.join(text, key)
    assert not [c for c in before.ca.ca.certificates() if c.kind == "leaf"]

    kept = MemoryStore()
    for at in await before.ca.store.keys():
        await kept.put(at, (await before.ca.store.get(at)).value)
    after = scene_in(tmp_path, nursery, kept)
    with pytest.raises(PermissionError, match=REFUSED):
        await after.join(text, x.new_key())
    assert [alarm["kind"] for alarm in after.alarms] == ["join_reused"]
    chain = await after.join(text, key)
    assert x.same_key(chain[0], key)


async def test_a_store_that_forgot_its_generation_knows_no_token_of_before(scene: Scene) -> None:
    text = await scene.invited()
    await scene.ca.store.delete("ca/generation")
    with pytest.raises(PermissionError, match=REFUSED):
        await scene.join(text, x.new_key())
    assert scene.whys() == ["restored"]
    await scene.join(await scene.invited(), x.new_key())


async def test_tokens_that_wait_are_bounded_and_old_ones_forgotten(scene: Scene) -> None:
    for number in range(OUTSTANDING):
        await scene.invited(f"d{number}")
    with pytest.raises(OSError, match="64 join tokens wait"):
        await scene.invited("more")
    scene.at += timedelta(seconds=601)
    await scene.invited("more")
    assert len(await scene.ca.store.keys("join")) == OUTSTANDING + 1
    scene.at += timedelta(seconds=KEPT)
    await scene.invited("still")
    assert len(await scene.ca.store.keys("join")) == 2


async def test_an_invitation_that_cannot_be_is_refused(scene: Scene) -> None:
    scene.ca.ca.issue(DRONE, scene.folder / "d7")
    for line, says in {
        "invite role=DroneWorker name=d7": "the name spiffe://hive/role/DroneWorker/d7 is taken",
        "invite role=Drone/Worker name=d8": "is neither a role nor a user",
        "invite role=DroneWorker name=../x": "neither a role nor a user",
        "invite role=DroneWorker name=d8 ttl=0": "lives from 1s to 24h",
        "invite role=DroneWorker name=d8 ttl=2d": "lives from 1s to 24h",
        "invite role=DroneWorker": "name is missing",
    }.items():
        with pytest.raises(OSError, match=says):
            await scene.verb(line)
    assert await scene.ca.store.keys() == []


async def test_a_joiner_reaches_two_files_and_nothing_else(scene: Scene) -> None:
    async with scene.files("any", joining(scene.ca)) as files:
        assert await files.read("/bundle") == scene.ca.ca.bundle()
        with pytest.raises(PermissionError):
            await files.ls("/")
        for path in ("/ctl", "/status", "/issued", "/crl", "/../status"):
            with pytest.raises(OSError):
                await files.read(path)


# What an operator does and sees


async def test_status_counts(scene: Scene) -> None:
    ann = scene.ca.ca.issue(ANN, scene.folder / "ann", ttl=timedelta(days=2), now=scene.at)
    await scene.join(await scene.invited(), x.new_key())
    await scene.invited("d8")
    await scene.verb("ttl 36h")
    async with scene.files() as files:
        values = dict(line.split("=") for line in (await files.read("/status")).decode().splitlines())
        assert values == {
            "issued": "2", "active": "2", "revoked": "0", "invited": "1", "ttl": "129600s",
            "next_expiry": f"{scene.at + timedelta(days=2):%Y-%m-%dT%H:%M:%SZ}",
            "root_sha256": fingerprint(scene.ca.ca.root),
        }  # fmt: skip
        serial = f"{ann.serial_number:x}"
        assert await scene.verb(f"revoke {serial} superseded") == f"{serial} is revoked\n"
        assert await scene.verb(f"revoke {serial}") == f"{serial} was revoked before\n"
        assert b"active=1\nrevoked=1\n" in await files.read("/status")
        told = dict(line.split("=") for line in (await files.read(f"/issued/{serial}")).decode().splitlines())
        assert (told["name"], told["state"], told["reason"]) == (ANN, "revoked", "superseded")
        assert told["not_after"] == values["next_expiry"]
        for absent in (f"/issued/{serial.upper()}x", f"/issued/0{serial}", "/issued/zz"):
            with pytest.raises(FileNotFoundError):
                await files.read(absent)
        scene.at += timedelta(days=90)
        assert b"next_expiry=none" in await files.read("/status")


async def test_certificates_live_as_long_as_the_operator_says(scene: Scene) -> None:
    await scene.verb("ttl 90m")
    [leaf, *_] = await scene.join(await scene.invited(), x.new_key())
    assert leaf.not_valid_after_utc - scene.at == timedelta(minutes=90)
    for line in ("ttl 0", "ttl 91d", "ttl soon"):
        with pytest.raises(OSError):
            await scene.verb(line)


async def test_after_a_rotation_members_are_signed_by_the_new_issuer(scene: Scene) -> None:
    before = scene.ca.ca.shelf.issuer().certificate
    scene.ca.ca.issue(ANN, scene.folder / "ann")
    assert "the issuer is" in await scene.verb("rotate")
    async with scene.files(ANN) as files:
        chain = x.load_chain(await sign(files, "/csr", request(x.new_key())), "it")
    assert chain[1] != before
    assert len(x.load_crls(scene.ca.ca.crl(), "lists")) == 3


async def test_a_store_that_has_failed_is_said_without_its_place(scene: Scene) -> None:
    text = await scene.invited()
    await scene.ca.store.aclose()
    with pytest.raises(OSError, match="503 unavailable: the authority's store has failed"):
        await scene.join(text, x.new_key())
    for line in ("revoke zz", "revoke 12"):
        with pytest.raises(OSError, match="is no serial"):
            await scene.verb(line)
