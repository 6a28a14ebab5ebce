"""The CA in its directory: what it signs, refuses, keeps, forgets and survives."""

import json
import os
import re
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st
from warren.auth import keyfiles, spiffe
from warren.auth.backup import backup, restore
from warren.auth.ca import CA, REASONS
from warren.auth.certificates import crl_issuer, crl_number, id_of, issuer_of, load_chain, load_crls, uris
from warren.auth.refusal import Missing, Refusal, Standing

from tests.auth.hive import DAY, DRONE, HIVE, NOW, QUEEN

PASSPHRASE = b"the bees are out tonight"
RequestKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@pytest.fixture
def ca(tmp_path: Path) -> CA:
    return CA.create(tmp_path / "ca", HIVE)


def request(key: RequestKey, *extensions: x509.ExtensionType, subject: str = "root") -> bytes:
    builder = x509.CertificateSigningRequestBuilder()
    builder = builder.subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, digest).public_bytes(Encoding.PEM)


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


# What is signed


def test_a_members_certificate_says_one_name_and_nothing_else(ca: CA, tmp_path: Path) -> None:
    made = ca.issue(DRONE, tmp_path / "d", now=NOW)
    assert uris(made) == [DRONE]
    assert list(made.subject) == []
    assert made.not_valid_after_utc - NOW == timedelta(days=7)
    assert NOW - made.not_valid_before_utc == timedelta(minutes=5)
    assert made.serial_number.bit_length() > 64
    by = {e.oid: e for e in made.extensions}
    assert by[x509.SubjectAlternativeName.oid].critical
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert set(made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    }
    chain = load_chain((tmp_path / "d/cert.pem").read_bytes(), "")
    assert [issuer_of(c) for c in chain] == [id_of(chain[1]), id_of(ca.root)]
    limits = chain[1].extensions.get_extension_for_class(x509.NameConstraints)
    assert limits.critical
    assert chain[1].extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert load_chain((tmp_path / "d/ca.pem").read_bytes(), "") == [ca.root]


def test_serials_are_never_the_same(ca: CA, tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    assert len({ca.certify(key, DRONE)[0].serial_number for _ in range(50)}) == 50


def test_a_certificate_ends_with_its_issuer(tmp_path: Path) -> None:
    ca = CA.create(tmp_path / "ca", HIVE, now=NOW - 364 * DAY)
    assert ca.issue(DRONE, tmp_path / "d", now=NOW).not_valid_after_utc == NOW + DAY
    with pytest.raises(Refusal, match=r"the issuer has expired; warren ca rotate"):
        ca.issue(DRONE, tmp_path / "d", now=NOW + 2 * DAY)
    ca.rotate(NOW + 2 * DAY)
    ca.issue(DRONE, tmp_path / "d", now=NOW + 2 * DAY)


@pytest.mark.parametrize("ttl", [timedelta(0), -DAY, 91 * DAY])
def test_days_not_years(ca: CA, tmp_path: Path, ttl: timedelta) -> None:
    with pytest.raises(Refusal, match="from one second to 90 days"):
        ca.issue(DRONE, tmp_path / "d", ttl)
    assert not (tmp_path / "d").exists()


def test_only_names_of_this_hive_are_signed(ca: CA, tmp_path: Path) -> None:
    for uri in (
        "spiffe://west.hive.test/role/A/b",
        "spiffe://other/role/A/b",
        "spiffe://hive.test.evil/user/x",
    ):
        with pytest.raises(spiffe.BadName, match="is no name of"):
            ca.issue(uri, tmp_path / "d")
    assert not [c for c in ca.certificates() if c.kind == "leaf"]


# Names


@pytest.mark.parametrize(
    "text",
    [
        "", "role/A/b", "spiffe://", "spiffe://h", "spiffe://h/", "spiffe://h/role/A", "spiffe://h/role//b",
        "spiffe://h/role/A/b/", "spiffe://h/role/A/..", "spiffe://h/role/*/b", "spiffe://h/role/A/*",
        "spiffe://h/user/a/b", "spiffe://H/user/a", "spiffe://h:1/user/a", "spiffe://u@h/user/a",
        "SPIFFE://h/user/a", "spiffe://h/user/a?b", "spiffe://h/user/a#b", "spiffe://h/user/a%20b",
        "spiffe://h/user/a b", "spiffe://h/user/a\n", "spiffe://h\n/user/a", "spiffe://-h/user/a",
        "spiffe://h..i/user/a", "spiffe://.h/user/a", "spiffe://h/user/ä",
        "spiffe://h/user/" + "a" * 65, f"spiffe://{'h' * 64}/user/a",
        "spiffe://h/role/9/b", "spiffe://h/host/a", "x" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(spiffe.BadName) as refused:
        spiffe.parse(text)
    assert refused.value.way_out
    assert len(str(refused.value)) < 700


_label = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
_name = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
_role = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,20}", fullmatch=True)


@given(st.lists(_label, min_size=1, max_size=4), _role, _name)
def test_a_name_is_its_text(labels: list[str], role: str, name: str) -> None:
    domain = ".".join(labels)
    for text in (f"spiffe://{domain}/role/{role}/{name}", f"spiffe://{domain}/user/{name}"):
        parsed = spiffe.parse(text)
        assert str(parsed) == text
        assert parsed.within(domain)
        assert parsed.within(domain.partition(".")[2]) == (len(labels) > 1)
        assert not parsed.within("x" + domain)
        assert not parsed.within(f"x.{domain}")
        assert parsed.fits(text, "other")
        assert not parsed.fits(text.replace(domain, "elsewhere.test"), domain)


@given(
    st.text(max_size=60) | st.text(alphabet="spiffe:/role.user*%-a1", max_size=40).map("spiffe://h/".__add__)
)
def test_a_text_is_a_name_or_refused(text: str) -> None:
    try:
        assert str(spiffe.parse(text)) == text
    except spiffe.BadName:
        return
    assert re.fullmatch(r"spiffe://[a-z0-9.-]+/(role/[A-Za-z0-9-]+|user)/[A-Za-z0-9._-]+", text)


# Requests


@pytest.mark.parametrize(
    "make",
    [
        ed25519.Ed25519PrivateKey.generate,
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: rsa.generate_private_key(65537, 2048),
    ],
)
def test_of_a_request_only_the_key_is_used(ca: CA, make: Callable[[], RequestKey]) -> None:
    key = make()
    evil = request(
        key,
        x509.BasicConstraints(True, None),
        x509.KeyUsage(*[True] * 9),
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(QUEEN), x509.DNSName("bank.test")]),
        x509.NameConstraints([x509.DNSName("bank.test")], None),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]),
    )
    signed, *rest = ca.sign(evil, DRONE)
    assert signed.public_key() == key.public_key()
    plain = ca.issue(DRONE, ca.directory.parent / "d")
    assert [(e.oid, e.critical) for e in signed.extensions] == [(e.oid, e.critical) for e in plain.extensions]
    for oid in (x509.BasicConstraints, x509.KeyUsage, x509.SubjectAlternativeName, x509.ExtendedKeyUsage):
        assert (
            signed.extensions.get_extension_for_class(oid).value
            == plain.extensions.get_extension_for_class(oid).value
        )
    assert list(signed.subject) == []
    signed.verify_directly_issued_by(rest[0])


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (rsa.generate_private_key(65537, 1024), "RSA key of 1024 bits"),
        (ec.generate_private_key(ec.SECP384R1()), "curve secp384r1"),
        (ec.generate_private_key(ec.SECP256K1()), "curve secp256k1"),
    ],
)
def test_weak_and_foreign_keys_are_refused(ca: CA, key: RequestKey, says: str) -> None:
    with pytest.raises(Refusal, match=says):
        ca.sign(request(key), DRONE)


def test_a_request_is_signed_by_the_key_in_it(ca: CA) -> None:
    der = x509.load_pem_x509_csr(request(ed25519.Ed25519PrivateKey.generate())).public_bytes(Encoding.DER)
    for at in range(len(der) - 64, len(der), 7):  # the signature is the end
        changed = bytearray(der)
        changed[at] ^= 1
        text = x509.load_der_x509_csr(bytes(changed)).public_bytes(Encoding.PEM)
        with pytest.raises(Refusal, match="not signed by the key in it"):
            ca.sign(text, DRONE)


_REQUEST = request(ed25519.Ed25519PrivateKey.from_private_bytes(b"k" * 32), x509.BasicConstraints(True, None))


@given(st.integers(0, len(_REQUEST) - 1), st.integers(0, 255))
def test_a_damaged_request_is_refused_or_unharmed(at: int, byte: int) -> None:
    from warren.auth.certificates import read_request

    changed = _REQUEST[:at] + bytes([byte]) + _REQUEST[at + 1 :]
    try:
        key, _ = read_request(changed)
    except Refusal:
        return
    assert key == ed25519.Ed25519PrivateKey.from_private_bytes(b"k" * 32).public_key()


# Revocation


def test_lists_are_numbered_signed_and_say_why(ca: CA, tmp_path: Path) -> None:
    before = {crl_issuer(one): crl_number(one) for one in load_crls(ca.crl(), "")}
    made = [ca.issue(DRONE, tmp_path / "d") for _ in REASONS]
    for one, why in zip(made, REASONS, strict=True):
        assert ca.revoke(one.serial_number, why)
        assert not ca.revoke(one.serial_number, why)
    issuer = ca.shelf.issuer()
    lists = {crl_issuer(one): one for one in load_crls(ca.crl(), "")}
    assert lists.keys() == before.keys() == {issuer.id, id_of(ca.root)}
    assert crl_number(lists[issuer.id]) > before[issuer.id]
    members = lists[issuer.id]
    assert members.is_signature_valid(issuer.key.public_key())
    assert len(members) == len(REASONS)
    found = members.get_revoked_certificate_by_serial_number(made[1].serial_number)
    assert found is not None
    assert (
        found.extensions.get_extension_for_class(x509.CRLReason).value.reason
        == x509.ReasonFlags.key_compromise
    )


def test_what_cannot_be_revoked(ca: CA, tmp_path: Path) -> None:
    made = ca.issue(DRONE, tmp_path / "d", DAY, now=NOW)
    with pytest.raises(Missing, match="1234 is no serial of this CA"):
        ca.revoke(0x1234)
    with pytest.raises(Refusal, match="is no reason"):
        ca.revoke(made.serial_number, "boredom")
    with pytest.raises(Refusal, match="no list can revoke a root"):
        ca.revoke(ca.root.serial_number)
    with pytest.raises(Refusal, match="has expired"):
        ca.revoke(made.serial_number, now=NOW + 2 * DAY)


def test_lists_are_signed_again_in_the_second_half_of_their_life(ca: CA, tmp_path: Path) -> None:
    first = ca.crl()
    ca.issue(DRONE, tmp_path / "d", now=NOW + 14 * DAY)
    assert ca.crl() == first
    ca.issue(DRONE, tmp_path / "d", now=NOW + 16 * DAY)
    assert ca.crl() != first
    (mine,) = [one for one in load_crls(ca.crl(), "") if crl_issuer(one) == ca.shelf.issuer().id]
    assert mine.next_update_utc == NOW + 46 * DAY


def test_a_region_revokes_by_itself_and_the_hive_takes_its_list_in(ca: CA, tmp_path: Path) -> None:
    west = ca.region("west", tmp_path / "west")
    leaf = west.issue("spiffe://west.hive.test/role/A/b", tmp_path / "d")
    west.revoke(leaf.serial_number)
    (theirs,) = load_crls(west.crl(), "")
    text = theirs.public_bytes(Encoding.PEM)
    assert (ca.gather(text), ca.gather(text)) == (1, 0)
    merged = {crl_issuer(one): one for one in load_crls(ca.sign_lists(), "")}
    assert merged[crl_issuer(theirs)] == theirs
    east = CA.create(tmp_path / "other", HIVE).region("west")
    with pytest.raises(Refusal, match="not signed by a region of this hive"):
        ca.gather(east.crl())


# Regions, rotation


def test_a_region_makes_no_authorities(ca: CA, tmp_path: Path) -> None:
    west = ca.region("west")
    assert west.domain == "west.hive.test"
    for forbidden in (west.rotate, west.rotate_root, lambda: west.region("deep")):
        with pytest.raises(Refusal, match="it can make no authority"):
            forbidden()
    with pytest.raises(Refusal, match="is no name of west"):
        west.issue(DRONE, tmp_path / "d")
    first = west.shelf.issuer().id
    again = ca.region("west")
    assert again.shelf.issuer().id != first
    assert again.directory == west.directory
    with pytest.raises(Standing, match=r"it is the CA of west\.hive\.test"):
        ca.region("east", west.directory)
    with pytest.raises(spiffe.BadName):
        ca.region("we.st")


def test_an_old_issuer_is_forgotten_with_its_last_member(ca: CA, tmp_path: Path) -> None:
    old = ca.shelf.issuer().id
    ca.issue(DRONE, tmp_path / "d", 2 * DAY, now=NOW)
    ca.rotate(NOW)
    key = ca.directory / "issuers" / f"{old}.key"
    assert key.exists()
    ca.issue(DRONE, tmp_path / "d", now=NOW + DAY)
    assert key.exists()
    assert old in {crl_issuer(one) for one in load_crls(ca.crl(), "")}
    ca.issue(DRONE, tmp_path / "d", now=NOW + 3 * DAY)
    assert not key.exists()
    assert old not in {crl_issuer(one) for one in load_crls(ca.sign_lists(NOW + 3 * DAY), "")}


def test_an_old_root_is_forgotten_with_its_last_member(ca: CA, tmp_path: Path) -> None:
    old = ca.root
    ca.issue(DRONE, tmp_path / "d", now=NOW)
    ca.rotate_root(now=NOW)
    assert load_chain(ca.bundle(), "") == [ca.root, old]
    ca.issue(DRONE, tmp_path / "d", now=NOW + 6 * DAY)
    assert len(load_chain((tmp_path / "d/cert.pem").read_bytes(), "")) == 3
    ca.issue(DRONE, tmp_path / "d", now=NOW + 8 * DAY)
    assert load_chain(ca.bundle(), "") == [ca.root]
    assert old != ca.root
    ca.issue(DRONE, tmp_path / "d", now=NOW + 8 * DAY)
    assert len(load_chain((tmp_path / "d/cert.pem").read_bytes(), "")) == 2


def test_everything_daily_works_without_the_roots_key(ca: CA, tmp_path: Path) -> None:
    west = ca.region("west", tmp_path / "west")
    safe = tmp_path / "safe.key"
    os.rename(ca.directory / "root.key", safe)
    day = CA(ca.directory)
    made = day.issue(DRONE, tmp_path / "d")
    day.revoke(made.serial_number)
    before = {crl_issuer(one) for one in load_crls(ca.crl(), "")}
    day.sign_lists()
    assert id_of(ca.root) in before == {crl_issuer(one) for one in load_crls(day.crl(), "")}
    region = next(c for c in day.certificates() if c.kind == "region")
    for needs in (day.rotate, day.rotate_root, lambda: day.region("east"), lambda: day.revoke(region.serial)):
        with pytest.raises(Missing, match="the root's key is not here; bring it, or say with --root-key"):
            needs()
    assert west.shelf.issuer().id in before
    brought = CA(ca.directory, safe)
    brought.rotate()
    brought.revoke(region.serial)
    brought.rotate_root()
    assert not (ca.directory / "root.key").exists()
    CA(ca.directory).issue(DRONE, tmp_path / "d")


# Files


def test_only_the_owner_reads_any_of_it(ca: CA, tmp_path: Path) -> None:
    ca.issue(DRONE, tmp_path / "d")
    ca.rotate_root()
    ca.region("west")
    for top in (ca.directory, tmp_path / "d"):
        for path in (top, *top.rglob("*")):
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("name", ["issuer.key", "root.key"])
def test_a_key_that_others_can_read_is_not_used(ca: CA, tmp_path: Path, name: str) -> None:
    (ca.directory / name).chmod(0o644)
    with pytest.raises(Refusal, match=r"others can read this secret; chmod 600 .*key"):
        CA(ca.directory).issue(DRONE, tmp_path / "d")
    (ca.directory / name).chmod(0o600)
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(Refusal, match="others may write there"):
        ca.issue(DRONE, open_to_all)


def test_a_directory_in_use_is_not_taken(ca: CA, tmp_path: Path) -> None:
    before = files(ca.directory)
    with pytest.raises(Standing, match="it is not empty"):
        CA.create(ca.directory, "other")
    assert files(ca.directory) == before
    with pytest.raises(Missing, match="there is no CA; make one: warren ca init"):
        CA(tmp_path / "none")


def test_two_of_one_directory_see_each_others_work(ca: CA, tmp_path: Path) -> None:
    other = CA(ca.directory)
    made = ca.issue(DRONE, tmp_path / "d")
    assert other.revoke(made.serial_number)
    other.rotate_root()
    later = ca.issue(DRONE, tmp_path / "d")
    assert issuer_of(later) == other.shelf.issuer().id
    assert not ca.revoke(made.serial_number)
    assert load_chain((tmp_path / "d/ca.pem").read_bytes(), "")[0] == other.root


def test_a_torn_last_line_is_cut_off(ca: CA, tmp_path: Path) -> None:
    made = ca.issue(DRONE, tmp_path / "d")
    path = ca.directory / "issued.jsonl"
    with path.open("ab") as file:
        file.write(b'{"event":"revoked","serial":"')
    assert CA(ca.directory).revoke(made.serial_number)
    assert [json.loads(line)["event"] for line in path.read_bytes().splitlines()][-2:] == ["revoked", "crl"]
    with path.open("ab") as file:
        file.write(b"nonsense\n")
    with pytest.raises(Refusal, match="is no line of a register; restore"):
        CA(ca.directory)


@pytest.mark.parametrize("change", ["rotate", "rotate_root"])
def test_a_crash_at_any_write_leaves_a_ca_that_works(
    ca: CA, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power goes just before the nth file is put in its place, for every n there is."""
    made = ca.issue(DRONE, tmp_path / "d")
    real = os.replace
    for n in range(40):
        copy = tmp_path / f"copy{n}"
        shutil.copytree(ca.directory, copy)
        left = n

        def replace(source: Path, target: Path) -> None:
            nonlocal left
            if left == 0:
                raise InterruptedError
            left -= 1
            real(source, target)

        monkeypatch.setattr(os, "replace", replace)
        try:
            getattr(CA(copy), change)()
            break
        except InterruptedError:
            pass
        finally:
            monkeypatch.undo()
        mended = CA(copy)
        leaf = mended.issue(QUEEN, tmp_path / f"q{n}")
        chain = load_chain((tmp_path / f"q{n}/cert.pem").read_bytes(), "")
        leaf.verify_directly_issued_by(chain[1])
        assert issuer_of(chain[1]) in {id_of(root) for root in load_chain(mended.bundle(), "")}
        assert mended.revoke(made.serial_number)
        getattr(mended, change)()
        mended.issue(QUEEN, tmp_path / f"q{n}")
    else:
        raise AssertionError("it never ended")
    assert n >= 4


def test_a_crash_amid_a_revocation_only_delays_the_list(
    ca: CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ca.issue(DRONE, tmp_path / "d")
    for n, broken in enumerate(("append", "write_whole")):
        copy = tmp_path / f"copy{n}"
        shutil.copytree(ca.directory, copy)
        real, calls = getattr(keyfiles, broken), 0

        def fails(path: Path, data: bytes, real: Callable[..., None] = real) -> None:
            nonlocal calls
            calls += 1
            if path.name == "crl.pem" or (path.name == "issued.jsonl" and calls == 2):
                raise InterruptedError
            real(path, data)

        monkeypatch.setattr(keyfiles, broken, fails)
        with pytest.raises(InterruptedError):
            CA(copy).revoke(made.serial_number)
        monkeypatch.undo()
        later = CA(copy)
        later.issue(QUEEN, tmp_path / "q")
        lists = {crl_issuer(one): one for one in load_crls(later.crl(), "")}
        found = lists[later.shelf.issuer().id].get_revoked_certificate_by_serial_number(made.serial_number)
        assert found is not None
        assert not later.revoke(made.serial_number)


# Backup


def test_what_comes_back_is_what_went_in(ca: CA, tmp_path: Path) -> None:
    made = ca.issue(DRONE, tmp_path / "d")
    ca.rotate_root()
    ca.region("west")
    saved = backup(ca.directory, tmp_path / "safe", PASSPHRASE)
    assert saved.root_key
    data = (tmp_path / "safe").read_bytes()
    assert b"PRIVATE" not in data
    assert (tmp_path / "safe").stat().st_mode & 0o777 == 0o600
    restore(tmp_path / "safe", tmp_path / "again", PASSPHRASE)
    assert files(tmp_path / "again") == files(ca.directory)
    for path in (tmp_path / "again").rglob("*"):
        assert not path.stat().st_mode & 0o077
    back = CA(tmp_path / "again")
    back.revoke(made.serial_number)
    back.rotate()


def test_a_backup_opens_for_nobody_else_and_whole_or_not_at_all(ca: CA, tmp_path: Path) -> None:
    safe = tmp_path / "safe"
    os.rename(ca.directory / "root.key", tmp_path / "root.key")
    assert not backup(ca.directory, safe, PASSPHRASE).root_key
    data = safe.read_bytes()
    with pytest.raises(Standing, match="an old backup is not written over"):
        backup(ca.directory, safe, PASSPHRASE)
    with pytest.raises(Refusal, match="the passphrase is wrong, or the file was changed"):
        restore(safe, tmp_path / "again", PASSPHRASE + b"!")
    for at in (10, data.index(b"salt") + 9, data.index(b"\n") + 5, len(data) - 1):
        changed = bytearray(data)
        changed[at] ^= 1
        safe.write_bytes(changed)
        with pytest.raises(Refusal):
            restore(safe, tmp_path / "again", PASSPHRASE)
    safe.write_bytes(data[:-1])
    with pytest.raises(Refusal, match="was changed"):
        restore(safe, tmp_path / "again", PASSPHRASE)
    assert not (tmp_path / "again").exists()
    safe.write_bytes(data)
    with pytest.raises(Standing, match="it is not empty"):
        restore(safe, ca.directory, PASSPHRASE)
    with pytest.raises(Refusal, match="too short"):
        backup(ca.directory, tmp_path / "other", b"short")
