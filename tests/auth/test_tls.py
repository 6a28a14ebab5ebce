"""Handshakes of two ends in memory: who is let in, and by which word everybody else is refused."""

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from warren.auth import tls
from warren.auth.ca import CA
from warren.auth.certificates import key_pem, load_chain, make_crl, new_key, pem
from warren.auth.identity import Identity, joining_context

from tests.auth.hive import DAY, DRONE, HIVE, NOW, QUEEN, by_hand, client_of, identity, meet, talk


@pytest.fixture
def ca(tmp_path: Path) -> CA:
    return CA.create(tmp_path / "ca", HIVE, now=NOW - 40 * DAY)


@pytest.fixture
def queen(ca: CA, tmp_path: Path) -> Identity:
    return identity(ca, QUEEN, tmp_path / "queen")


@pytest.mark.parametrize("kind", ["ed25519", "p256"])
async def test_members_know_each_other(tmp_path: Path, kind: str) -> None:
    ca = CA.create(tmp_path / "ca", HIVE, kind)
    queen = identity(ca, QUEEN, tmp_path / "queen", kind=kind)
    drone = identity(ca, DRONE, tmp_path / "drone", kind=kind)
    ends = await meet(queen.server_context(), drone.client_context())
    server, client = ends
    assert server.peer == tls.Peer(DRONE, drone.serial, drone.issuer, drone.not_after, "warren/1", HIVE)
    assert client.peer is not None
    assert tls.expect(client.peer, "role/QueenPrimary/*").uri == QUEEN
    assert await talk(ends) == b"gnip"
    assert server.stream.version() == "TLSv1.3"
    assert server.stream.compression() is None


async def test_each_protocol_is_told_apart(ca: CA, queen: Identity, tmp_path: Path) -> None:
    drone = identity(ca, DRONE, tmp_path / "drone")
    server, _ = await meet(queen.server_context(), drone.export_context())
    assert server.peer is not None
    assert (server.peer.alpn, server.peer.uri) == ("warren-export/1", DRONE)
    server, client = await meet(queen.server_context(), joining_context(ca.bundle()))
    assert server.peer == tls.Peer(None, "", "", None, "warren-join/1", HIVE)
    assert client.peer is not None
    assert client.peer.uri == QUEEN


async def test_without_a_certificate_one_may_only_join(ca: CA, queen: Identity) -> None:
    for protocol in ("warren/1", "warren-export/1", "h2"):
        bare = joining_context(ca.bundle())
        bare.set_alpn_protocols([protocol])
        server, _ = await meet(queen.server_context(), bare)
        assert (server.peer, server.reason) == (None, "no_certificate")


async def test_another_protocol_is_refused(ca: CA, queen: Identity, tmp_path: Path) -> None:
    drone = identity(ca, DRONE, tmp_path / "drone").client_context()
    drone.set_alpn_protocols(["http/1.1"])
    assert (await meet(queen.server_context(), drone))[0].reason == "no_protocol"


@pytest.mark.parametrize(
    ("issued", "word"), [(NOW - 30 * DAY, "expired"), (NOW + DAY, "not_yet_valid")], ids=["expired", "early"]
)
async def test_dates(ca: CA, queen: Identity, tmp_path: Path, issued: object, word: str) -> None:
    drone = identity(ca, DRONE, tmp_path / "drone", now=issued)
    assert (await meet(queen.server_context(), drone.client_context()))[0].reason == word
    server, client = await meet(drone.server_context(), queen.client_context())
    assert client.reason == word
    assert server.peer is None or server.peer.uri == QUEEN


async def test_revoked_at_both_ends(ca: CA, queen: Identity, tmp_path: Path) -> None:
    drone = identity(ca, DRONE, tmp_path / "drone")
    assert (await meet(queen.server_context(), drone.client_context()))[0].peer
    ca.revoke(int(drone.serial, 16), "keyCompromise")
    assert queen.with_crl(ca.crl())
    assert (await meet(queen.server_context(), drone.client_context()))[0].reason == "revoked"
    assert (await meet(drone.server_context(), queen.client_context()))[1].reason == "revoked"
    assert queen.revoked(drone.issuer, drone.serial)
    assert not queen.revoked(queen.issuer, queen.serial)


async def test_a_revoked_issuer_takes_its_members_with_it(ca: CA, queen: Identity, tmp_path: Path) -> None:
    drone = identity(ca, DRONE, tmp_path / "drone")
    old = int(f"{load_chain((tmp_path / 'drone/cert.pem').read_bytes(), '')[1].serial_number:x}", 16)
    ca.rotate()
    ca.revoke(old, "cACompromise")
    other = identity(ca, QUEEN, tmp_path / "queen")
    other.with_crl(ca.crl())
    assert (await meet(other.server_context(), drone.client_context()))[0].reason == "revoked"


async def test_a_region_names_its_own_and_nobody_else(ca: CA, queen: Identity, tmp_path: Path) -> None:
    west = ca.region("west")
    mine = identity(west, "spiffe://west.hive.test/role/QueenPrimary/q", tmp_path / "west")
    server, _ = await meet(queen.server_context(), mine.client_context())
    assert server.peer is not None
    assert server.peer.uri == mine.uri
    assert mine.hive == queen.hive == HIVE
    with pytest.raises(tls.Unwelcome, match="role/QueenPrimary"):
        tls.expect(server.peer, "role/QueenPrimary/*")  # a region has no queen of the hive
    assert tls.expect(server.peer, "spiffe://west.hive.test/role/QueenPrimary/*")
    signer = west.shelf.issuer()
    for name in (QUEEN, "spiffe://east.hive.test/role/A/b", "spiffe://deep.west.hive.test/role/A/b"):
        leaf, key = by_hand(signer, [name])
        shown = client_of(tmp_path, [leaf, signer.certificate], key, ca.bundle())
        assert (await meet(queen.server_context(), shown))[0].reason == "name_constraint"
    leaf, key = by_hand(ca.shelf.issuer(), ["spiffe://west.hive.test/role/A/b"])
    shown = client_of(tmp_path, [leaf, ca.shelf.issuer().certificate], key, ca.bundle())
    assert (await meet(queen.server_context(), shown))[0].reason == "name_constraint"


@pytest.mark.parametrize(
    "names",
    [
        [],
        [DRONE, QUEEN],
        [f"https://{HIVE}/role/A/b"],
        [f"spiffe://{HIVE}/pod/x"],
        [f"spiffe://{HIVE}/role/A/b/c"],
        [f"spiffe://{HIVE}/role/A/%2e%2e"],
        [f"spiffe://{HIVE}:1/role/A/b"],
    ],
)
async def test_a_certificate_has_one_name_of_ours(
    ca: CA, queen: Identity, tmp_path: Path, names: list[str]
) -> None:
    signer = ca.shelf.issuer()
    leaf, key = by_hand(signer, names)
    shown = client_of(tmp_path, [leaf, signer.certificate], key, ca.bundle())
    assert (await meet(queen.server_context(), shown))[0].reason == "bad_name"


async def test_a_certificate_for_servers_only_is_no_clients(ca: CA, queen: Identity, tmp_path: Path) -> None:
    signer = ca.shelf.issuer()
    leaf, key = by_hand(signer, [DRONE], uses=[ExtendedKeyUsageOID.SERVER_AUTH])
    shown = client_of(tmp_path, [leaf, signer.certificate], key, ca.bundle())
    assert (await meet(queen.server_context(), shown))[0].reason == "bad_certificate"


async def test_a_member_signs_nobody(ca: CA, queen: Identity, tmp_path: Path) -> None:
    drone = identity(ca, DRONE, tmp_path / "drone")
    chain = load_chain((tmp_path / "drone/cert.pem").read_bytes(), "")
    leaf, key = by_hand(type(ca.shelf.issuer())(chain[0], drone.key), [QUEEN])
    shown = client_of(tmp_path, [leaf, *chain], key, ca.bundle())
    assert (await meet(queen.server_context(), shown))[0].reason == "bad_certificate"


async def test_another_hive_is_refused_even_by_who_trusts_its_root(
    ca: CA, queen: Identity, tmp_path: Path
) -> None:
    other = CA.create(tmp_path / "other", "else.test")
    foreigner = identity(other, "spiffe://else.test/role/QueenPrimary/q", tmp_path / "foreign")
    server, client = await meet(queen.server_context(), foreigner.client_context())
    assert (server.peer, client.reason) == (None, "unknown_ca")
    both = ca.bundle() + other.bundle()
    for who in ("queen", "foreign"):
        (tmp_path / who / "ca.pem").write_bytes(both)
    queen.reload()
    foreigner.reload()
    assert (queen.hive, foreigner.hive) == (HIVE, "else.test")
    server, client = await meet(queen.server_context(), foreigner.client_context(), hive=queen.hive)
    assert server.reason == "foreign_hive"
    # And its root may not name a member of ours.
    signer = other.shelf.issuer()
    leaf, key = by_hand(signer, [QUEEN])
    shown = client_of(tmp_path, [leaf, signer.certificate], key, both)
    assert (await meet(queen.server_context(), shown))[0].reason == "name_constraint"


async def test_a_dialler_refuses_another_identity_and_names_both(
    ca: CA, queen: Identity, tmp_path: Path
) -> None:
    drone = identity(ca, DRONE, tmp_path / "drone")
    _, client = await meet(queen.server_context(), drone.client_context())
    assert client.peer is not None
    for pattern in (QUEEN, "role/QueenPrimary/q", "role/QueenPrimary/*", f"spiffe://{HIVE}/role/*/q"):
        assert tls.expect(client.peer, pattern) == client.peer
    for pattern in (
        DRONE,
        "role/DroneWorker/*",
        "role/QueenPrimary",
        "user/q",
        "*",
        "spiffe://*/role/*/*",
        "",
    ):
        with pytest.raises(tls.Unwelcome) as refused:
            tls.expect(client.peer, pattern)
        assert refused.value.reason == "wrong_role"
        assert pattern in str(refused.value)
        assert QUEEN in str(refused.value)


async def test_a_context_that_verifies_nobody_is_a_defect(queen: Identity, tmp_path: Path) -> None:
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    blind.set_alpn_protocols(["warren-join/1"])
    with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="believes every certificate")):
        await meet(queen.server_context(), blind)


async def test_older_tls_is_refused(ca: CA, queen: Identity, tmp_path: Path) -> None:
    drone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    drone.check_hostname, drone.verify_mode = False, ssl.CERT_NONE
    drone.maximum_version = ssl.TLSVersion.TLSv1_2
    assert (await meet(queen.server_context(), drone))[0].reason == "bad_handshake"


# Lists


async def test_whoever_checks_lists_needs_the_issuers_list(ca: CA, queen: Identity, tmp_path: Path) -> None:
    queen.with_crl(ca.crl())
    ca.rotate()
    drone = identity(ca, DRONE, tmp_path / "drone")
    assert (await meet(queen.server_context(), drone.client_context()))[0].reason == "no_list"
    queen.with_crl(ca.crl())
    assert (await meet(queen.server_context(), drone.client_context()))[0].peer


async def test_an_old_list_refuses_and_a_new_one_mends(ca: CA, queen: Identity, tmp_path: Path) -> None:
    drone = identity(ca, DRONE, tmp_path / "drone")
    queen.with_crl(ca.sign_lists(NOW - 35 * DAY))
    assert (await meet(queen.server_context(), drone.client_context()))[0].reason == "stale_list"
    queen.with_crl(ca.sign_lists())
    assert (await meet(queen.server_context(), drone.client_context()))[0].peer


async def test_an_older_list_cannot_bring_anybody_back(ca: CA, queen: Identity, tmp_path: Path) -> None:
    drone = identity(ca, DRONE, tmp_path / "drone")
    before = ca.sign_lists()
    ca.revoke(int(drone.serial, 16))
    assert queen.with_crl(ca.crl())
    context = queen.server_context()
    assert not queen.with_crl(before)
    assert queen.server_context() is context
    (tmp_path / "queen/crl.pem").write_bytes(before)
    queen.reload()
    assert (await meet(queen.server_context(), drone.client_context()))[0].reason == "revoked"


async def test_a_live_context_does_not_learn_so_a_new_one_takes_its_place(
    ca: CA, queen: Identity, tmp_path: Path
) -> None:
    drone = identity(ca, DRONE, tmp_path / "drone")
    old = queen.server_context()
    live = await meet(old, drone.client_context())
    ca.revoke(int(drone.serial, 16))
    queen.with_crl(ca.crl())
    assert queen.server_context() is not old
    assert (await meet(old, drone.client_context()))[0].peer  # this is why
    assert (await meet(queen.server_context(), drone.client_context()))[0].reason == "revoked"
    assert await talk(live) == b"gnip"  # ending it is up to who holds it


async def test_no_session_outlives_a_revocation(ca: CA, queen: Identity, tmp_path: Path) -> None:
    drone = identity(ca, DRONE, tmp_path / "drone")
    client = drone.client_context()
    ends = await meet(queen.server_context(), client)
    await talk(ends)
    assert not ends[1].stream.session.has_ticket

    # Even a listener that did hand out tickets would take none of them after the swap.
    generous = queen.server_context()
    generous.num_tickets = 2
    ends = await meet(generous, client)
    await talk(ends)
    session = ends[1].stream.session
    assert session.has_ticket
    again = await meet(generous, client, session)
    assert again[0].stream.session_reused
    ca.revoke(int(drone.serial, 16))
    queen.with_crl(ca.crl())
    refused, _ = await meet(queen.server_context(), client, session)
    assert refused.reason == "revoked"


# Rotation


async def test_a_hundred_rotations_break_nothing(ca: CA, tmp_path: Path) -> None:
    queen, drone = identity(ca, QUEEN, tmp_path / "queen"), identity(ca, DRONE, tmp_path / "drone")
    first = drone.client_context()
    live = []
    issuers = set()
    queen.with_crl(ca.crl())
    for turn in range(100):
        ca.rotate()
        queen.with_crl(ca.crl())
        for who in (queen, drone):
            ca.issue(who.uri, who.directory)
            who.reload()
        ends = await meet(queen.server_context(), drone.client_context())
        assert (ends[0].reason, ends[1].reason) == ("", "")
        assert ends[0].peer is not None
        issuers.add(ends[0].peer.issuer)
        if turn % 10 == 0:
            live.append(ends)
            assert (await meet(queen.server_context(), first))[0].peer  # of the first issuer still
        for connection in live:
            assert await talk(connection) == b"gnip"
    assert len(issuers) == 100


async def test_a_new_root_is_found_by_who_knows_the_old_one(ca: CA, queen: Identity, tmp_path: Path) -> None:
    queen.with_crl(ca.crl())
    west = identity(ca.region("west"), "spiffe://west.hive.test/role/A/b", tmp_path / "west")
    before = identity(ca, DRONE, tmp_path / "before")
    ca.rotate_root()
    after = identity(ca, DRONE, tmp_path / "after")
    queen.with_crl(ca.crl())
    for one, other in (
        (queen, after),
        (after, queen),
        (after, before),
        (before, after),
        (after, west),
        (west, after),
    ):
        ends = await meet(one.server_context(), other.client_context())
        assert (ends[0].reason, ends[1].reason) == ("", "")
    assert len(load_chain((tmp_path / "after/ca.pem").read_bytes(), "")) == 2


def test_a_reload_that_fails_changes_nothing(ca: CA, queen: Identity, tmp_path: Path) -> None:
    context, serial = queen.server_context(), queen.serial
    ca.issue(QUEEN, tmp_path / "again")
    (tmp_path / "queen/cert.pem").write_bytes((tmp_path / "again/cert.pem").read_bytes())
    with pytest.raises(ValueError, match=r"key\.pem: it is not the key of cert\.pem"):
        queen.reload()
    assert (queen.server_context(), queen.serial) == (context, serial)
    ca.issue(QUEEN, tmp_path / "queen")
    queen.reload()
    assert queen.serial != serial
    assert queen.server_context() is not context


# What Identity refuses to load


def test_an_identity_that_will_not_do_says_why(ca: CA, queen: Identity, tmp_path: Path) -> None:
    home = tmp_path / "queen"
    good = {name: (home / name).read_bytes() for name in ("cert.pem", "key.pem", "ca.pem")}
    other = CA.create(tmp_path / "other", HIVE)
    signer = ca.shelf.issuer()
    two, two_key = by_hand(signer, [DRONE, QUEEN])
    cases = [
        ({"ca.pem": other.bundle()}, "does not lead to a root"),
        ({"cert.pem": good["cert.pem"].split(b"-----END CERTIFICATE-----")[0]}, "holds no certificate"),
        ({"cert.pem": pem(two, signer.certificate), "key.pem": key_pem(two_key)}, "2 URI names"),
        ({"key.pem": key_pem(new_key())}, "not the key of"),
        ({"key.pem": b"none"}, "no private key"),
        ({"crl.pem": b"none"}, "no revocation list"),
        ({"token": b"x" * 9000}, "too long for a token"),
    ]
    for files, says in cases:
        for name, data in {**good, **files}.items():
            (home / name).write_bytes(data)
            (home / name).chmod(0o600)
        with pytest.raises(ValueError, match=says):
            Identity.load(home)
        for name in files.keys() - good.keys():
            (home / name).unlink()
    for name, data in good.items():
        (home / name).write_bytes(data)
    Identity.load(home)
    for when, says in ((NOW - DAY, "valid from"), (NOW + 8 * DAY, "has expired")):
        with pytest.raises(ValueError, match=says):
            Identity.load(home, when)
    (home / "key.pem").chmod(0o640)
    with pytest.raises(ValueError, match="others can read this secret; chmod 600"):
        Identity.load(home)
    with pytest.raises(ValueError, match="warren ca issue"):
        Identity.load(tmp_path / "ca/issuers")
    with pytest.raises(ValueError, match="no such directory"):
        Identity.load(tmp_path / "none")


def test_a_list_that_its_issuer_did_not_sign_is_refused(ca: CA, queen: Identity) -> None:
    forged = make_crl(ca.shelf.issuer().certificate, new_key(), [], 99, NOW, NOW + DAY).public_bytes(
        Encoding.PEM
    )
    with pytest.raises(ValueError, match="not signed by its issuer"):
        queen.with_crl(forged)
    assert queen.lists == {}


def test_a_token_comes_along(ca: CA, queen: Identity, tmp_path: Path) -> None:
    assert queen.token is None
    (tmp_path / "queen/token").write_bytes(b"abc\n")
    (tmp_path / "queen/token").chmod(0o600)
    queen.reload()
    assert queen.token == b"abc"
