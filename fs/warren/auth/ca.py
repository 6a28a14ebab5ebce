"""The authority of a hive: it makes roots, issuers and members' certificates, and revokes them.

    DIR/                        0700, every file 0600
        hive                    the name: a hive's, or REGION.HIVE where this is a region's CA
        root.pem  root.key      the root; the key is needed for rotate and region only, and may be kept
                                elsewhere (a directory's other work never looks for it)
        issuer.pem issuer.key   what signs members
        issuers/ID.{pem,key}    issuers before it: they sign their own lists while a member of theirs lives
        roots/ID.{pem,key}      roots before this one, likewise; crossing.pem is the new root, signed by the old
        regions/NAME.pem        issuers of regions
        crl.pem                 the newest list of each of these, one after another
        issued.jsonl            the register

Rotation of the issuer (`rotate`) needs nothing of those who verify: they know the root, and members bring
their issuer. Where lists are in use, hand out the new crl.pem before the first certificate of the new
issuer, because whoever checks lists refuses an issuer whose list it lacks. Rotation of the root makes a
bundle of both and a crossing certificate that members bring along, so that those who know only the old
root still find their way; once all have been issued anew, the old root drops out by itself.

Lists are good for 30 days and signed again by any work of the CA in the second half of that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from warren.auth import keyfiles, spiffe
from warren.auth.certificates import (
    PrivateKey,
    PublicKey,
    Unfit,
    check_strength,
    crl_issuer,
    crl_number,
    id_of,
    issuer_of,
    key_pem,
    load_chain,
    load_crls,
    load_key,
    make_crl,
    make_crossing,
    make_issuer,
    make_leaf,
    make_root,
    new_key,
    organisation,
    pem,
    read_request,
    same_key,
    utc_now,
)
from warren.auth.refusal import Missing, Refusal, Standing
from warren.auth.register import Issued, Register

TTL = timedelta(days=7)
SHORTEST, LONGEST = timedelta(seconds=1), timedelta(days=90)
CRL_LIFE = timedelta(days=30)
REASONS = ("unspecified", "keyCompromise", "cACompromise", "affiliationChanged", "superseded",
           "cessationOfOperation", "privilegeWithdrawn")  # fmt: skip


class Authority(NamedTuple):
    """A certificate that signs, and its key."""

    certificate: x509.Certificate
    key: PrivateKey

    @property
    def id(self) -> str:
        return id_of(self.certificate)


class CA:
    """A CA in a directory. Each method is one change under the directory's lock, durable when it returns."""

    def __init__(self, directory: str | os.PathLike[str], root_key: str | os.PathLike[str] | None = None) -> None:
        """Open the CA in DIRECTORY; ROOT_KEY is where the root's key is, if not there."""
        self.directory = Path(directory)
        self._root_key = Path(root_key) if root_key else self.directory / "root.key"
        self.domain = spiffe.check_domain(keyfiles.read_open(self.directory / "hive").decode("ascii", "replace").strip())
        self.root = self._certificate("root.pem")
        self.hive = organisation(self.root)
        self.register = Register(self.directory / "issued.jsonl")
        self.register.refresh()

    @classmethod
    def create(
        cls, directory: str | os.PathLike[str], hive: str, kind: str = "ed25519", now: datetime | None = None
    ) -> CA:
        """A new CA for HIVE, in a DIRECTORY that is empty or not there."""
        now = now or utc_now()
        spiffe.check_hive(hive)
        key = new_key(kind)
        where = _fresh(Path(directory))
        with keyfiles.locked(where):
            if any(where.iterdir()):
                raise Standing(f"{where}: it is not empty", "give a directory that is, or is not there yet")
            keyfiles.write_whole(where / "root.key", key_pem(key))
            root = make_root(key, hive, now)
            keyfiles.write_whole(where / "root.pem", pem(root))
            Register(where / "issued.jsonl").issued("root", hive, root)
            keyfiles.write_whole(where / "hive", f"{hive}\n".encode())  # last but one: from here it can be opened
        made = cls(where)
        with made._changing(now):
            made._new_issuer(now)
            made._sign_lists(now)
        return made

    # Members

    def issue(
        self, uri: str, out: str | os.PathLike[str], ttl: timedelta = TTL, kind: str = "ed25519", now: datetime | None = None
    ) -> x509.Certificate:
        """Make a key and a certificate for URI: OUT/{cert,key,ca}.pem, replaced together."""
        key = new_key(kind)
        chain = self.certify(key.public_key(), uri, ttl, now)
        into = _fresh(Path(out))
        with keyfiles.locked(into):
            keyfiles.write_whole(into / "ca.pem", self.bundle())
            keyfiles.write_whole(into / "key.pem", key_pem(key))
            keyfiles.write_whole(into / "cert.pem", pem(*chain))
        return chain[0]

    def sign(self, request: bytes, uri: str, ttl: timedelta = TTL, now: datetime | None = None) -> list[x509.Certificate]:
        """A certificate for URI and the key of a signing request, and its chain. The request says nothing else."""
        key, _ = read_request(request)
        return self.certify(key, uri, ttl, now)

    def certify(self, key: PublicKey, uri: str, ttl: timedelta = TTL, now: datetime | None = None) -> list[x509.Certificate]:
        """A certificate for URI and KEY, and the chain it is shown with."""
        now = now or utc_now()
        name = spiffe.parse(uri)
        if name.domain != self.domain:
            raise spiffe.BadName(
                f"{uri} is no name of {self.domain}", f"this CA names spiffe://{self.domain}/..., its regions have their own"
            )
        if not SHORTEST <= ttl <= LONGEST:
            raise Unfit("a certificate lasts from one second to 90 days", "choose fewer days and issue more often")
        with self._changing(now):
            issuer = self._issuer()
            leaf = make_leaf(check_strength(key), name, issuer.certificate, issuer.key, now, ttl)
            if leaf.not_valid_after_utc <= now:
                raise Unfit("the issuer has expired", f"warren ca rotate {self.directory}")
            self.register.issued("leaf", uri, leaf)
        return [leaf, issuer.certificate, *self._crossings(issuer.certificate)]

    def revoke(self, serial: int, reason: str = "unspecified", now: datetime | None = None) -> bool:
        """Revoke a certificate and sign the list that says so; False if it was revoked before."""
        now = now or utc_now()
        if reason not in REASONS:
            raise Unfit(f"{reason!r} is no reason", f"the reasons are {', '.join(REASONS)}")
        with self._changing(now):
            known = self.register.certificates.get(serial)
            if known is None:
                raise Missing(f"{serial:x} is no serial of this CA", f"see warren ca list {self.directory}")
            if known.kind == "root":
                raise Unfit("a root cannot be revoked by a list", f"warren ca rotate {self.directory} --root")
            if known.issuer not in {a.id for a in self._signers()}:
                raise _no_root_key(self._root_key)  # else nobody would ever be told
            fresh = known.revoked is None
            if fresh:
                self.register.revoke(serial, reason, now)
            self._sign_lists(now)
        return fresh

    def certificates(self) -> list[Issued]:
        """Everything that was signed, in order."""
        self.register.refresh()
        return list(self.register.certificates.values())

    # What others are given

    def bundle(self) -> bytes:
        """The roots to trust: ca.pem."""
        return pem(self.root, *self._old_roots())

    def crl(self) -> bytes:
        """The revocation lists, one after another."""
        return keyfiles.read_open(self.directory / "crl.pem")

    def sign_lists(self, now: datetime | None = None) -> bytes:
        """Sign all revocation lists again."""
        now = now or utc_now()
        with self._changing(now):
            self._sign_lists(now)
        return self.crl()

    def gather(self, lists: bytes, now: datetime | None = None) -> int:
        """Take in lists of the hive's regions; how many of them were news."""
        now = now or utc_now()
        with self._changing(now):
            regions = {id_of(c): c for c in self._region_certificates()}
            kept = {crl_issuer(one): one for one in self._lists()}
            news = 0
            for one in load_crls(lists, "the list"):
                signer = regions.get(crl_issuer(one))
                if signer is None or not one.is_signature_valid(check_strength(signer.public_key())):
                    raise Unfit("a list is not signed by a region of this hive", "fetch it from the region's CA")
                old = kept.get(crl_issuer(one))
                if old is None or crl_number(one) > crl_number(old):
                    kept[crl_issuer(one)] = one
                    news += 1
            self._write_lists(list(kept.values()))
        return news

    # Authorities

    def rotate(self, now: datetime | None = None) -> x509.Certificate:
        """A new issuer. The old one's members stay what they are until they expire."""
        now = now or utc_now()
        with self._changing(now):
            if self.domain != self.hive:
                raise Unfit(f"{self.domain} is a region, and cannot make its own issuer", "warren ca region, where the hive's root is")
            self._retire(now)
            made = self._new_issuer(now)
            self._sign_lists(now)
        return made

    def rotate_root(self, kind: str = "ed25519", now: datetime | None = None) -> x509.Certificate:
        """A new root, vouched for by the old one, and a new issuer under it."""
        now = now or utc_now()
        with self._changing(now):
            old = self._root()
            key = new_key(kind)
            root = make_root(key, self.hive, now)
            crossing = make_crossing(root, old.certificate, old.key, now)
            self.register.issued("root", self.hive, root)
            self.register.issued("crossing", self.hive, crossing)
            shelf = _fresh(self.directory / "roots")
            keyfiles.write_whole(shelf / f"{old.id}.key", key_pem(old.key))
            keyfiles.write_whole(shelf / f"{old.id}.pem", pem(old.certificate))
            keyfiles.write_whole(shelf / f"{id_of(root)}.crossing.pem", pem(crossing))
            self._retire(now)
            # The key first: it is what decides which root this is, should a crash come between the two.
            keyfiles.write_whole(shelf / f"{id_of(root)}.pem", pem(root))
            keyfiles.write_whole(self._root_key, key_pem(key))
            keyfiles.write_whole(self.directory / "root.pem", pem(root))
            self.root = root
            self._new_issuer(now)
            self._sign_lists(now)
        return root

    def region(self, name: str, out: str | os.PathLike[str] | None = None, kind: str = "ed25519", now: datetime | None = None) -> CA:
        """A CA for a region, in OUT (DIR/regions/NAME); if it is there, it gets a new issuer."""
        now = now or utc_now()
        domain = f"{spiffe.check_region(name)}.{self.hive}"
        if self.domain != self.hive:
            raise Unfit("a region has no regions", f"ask the CA of {self.hive}")
        with self._changing(now):
            root = self._root()
            where = _fresh(Path(out) if out else _fresh(self.directory / "regions") / name)
            with keyfiles.locked(where):
                if any(where.iterdir()) and _domain_of(where) != domain:
                    raise Standing(f"{where}: it is not the CA of {domain}", "give another directory with --out")
                key = new_key(kind)
                made = make_issuer(key.public_key(), self.hive, domain, root.certificate, root.key, now)
                self.register.issued("region", domain, made)
                keyfiles.write_whole(_fresh(self.directory / "regions") / f"{name}.{id_of(made)}.pem", pem(made))
                if (where / "hive").exists():
                    CA(where)._retire(now)
                keyfiles.write_whole(where / "root.pem", pem(self.root))
                self._install(where, Authority(made, key))
                Register(where / "issued.jsonl").issued("issuer", domain, made)
                keyfiles.write_whole(where / "hive", f"{domain}\n".encode())
        opened = CA(where)
        lists = opened.sign_lists(now)
        own = [one for one in load_crls(lists, where) if crl_issuer(one) in {id_of(c) for c in self._region_certificates()}]
        self.gather(b"".join(_crl_pem(one) for one in own), now)
        return opened

    # How it is kept

    @contextmanager
    def _changing(self, now: datetime) -> Iterator[None]:
        """One change at a time; what other processes did before it is seen."""
        with keyfiles.locked(self.directory):
            self.root = self._certificate("root.pem")
            self._mend_root()
            self.register.refresh()
            self._drop_dead(now)
            yield
            if self._lists_age(now):
                self._sign_lists(now)

    def _certificate(self, name: str) -> x509.Certificate:
        path = self.directory / name
        return load_chain(keyfiles.read_open(path), path)[0]

    def _pair(self, pem_path: Path, key_path: Path) -> Authority | None:
        """A certificate and its key, if the key is here."""
        certificate = load_chain(keyfiles.read_open(pem_path), pem_path)[0]
        if not key_path.exists():
            return None
        key = load_key(keyfiles.read_secret(key_path), key_path)
        if not same_key(certificate, key):
            raise Unfit(f"{key_path}: it is not the key of {pem_path.name}", "restore both from a backup")
        return Authority(certificate, key)

    def _mend_root(self) -> None:
        """Finish what a crash left of `rotate_root`: the new key is here and its certificate is on the shelf."""
        if self._root_key.exists():
            key = load_key(keyfiles.read_secret(self._root_key), self._root_key)
            waiting = self.directory / "roots" / f"{_id(key)}.pem"
            if not same_key(self.root, key) and waiting.exists():
                keyfiles.write_whole(self.directory / "root.pem", keyfiles.read_open(waiting))
                self.root = self._certificate("root.pem")

    def _root(self) -> Authority:
        found = self._pair(self.directory / "root.pem", self._root_key)
        if found is None:
            raise _no_root_key(self._root_key)
        return found

    def _issuer(self) -> Authority:
        """What signs members. issuer.key decides which that is, should a crash have come between it and the rest."""
        path = self.directory / "issuer.key"
        key = load_key(keyfiles.read_secret(path), path)
        for candidate in (self.directory / "issuer.pem", self.directory / "issuers" / f"{_id(key)}.pem"):
            if candidate.exists():
                certificate = load_chain(keyfiles.read_open(candidate), candidate)[0]
                if same_key(certificate, key):
                    return Authority(certificate, key)
        raise Unfit(f"{path}: it is not the key of issuer.pem", "restore both from a backup")

    def _new_issuer(self, now: datetime) -> x509.Certificate:
        root = self._root()
        kind = "ed25519" if type(root.key).__name__.lower().startswith("ed25519") else "p256"
        key = new_key(kind)
        made = make_issuer(key.public_key(), self.hive, self.domain, root.certificate, root.key, now)
        self.register.issued("issuer", self.domain, made)
        self._install(self.directory, Authority(made, key))
        return made

    @staticmethod
    def _install(where: Path, issuer: Authority) -> None:
        keyfiles.write_whole(_fresh(where / "issuers") / f"{issuer.id}.pem", pem(issuer.certificate))
        keyfiles.write_whole(where / "issuer.key", key_pem(issuer.key))
        keyfiles.write_whole(where / "issuer.pem", pem(issuer.certificate))

    def _retire(self, now: datetime) -> None:
        """Keep a copy of the issuer, which signs its own lists while one of its members lives."""
        old = self._issuer()
        shelf = _fresh(self.directory / "issuers")
        keyfiles.write_whole(shelf / f"{old.id}.key", key_pem(old.key))
        keyfiles.write_whole(shelf / f"{old.id}.pem", pem(old.certificate))

    def _shelf(self, name: str) -> list[Path]:
        return sorted(p for p in (self.directory / name).glob("*.pem") if "crossing" not in p.name)

    def _old_roots(self) -> list[x509.Certificate]:
        found = [load_chain(keyfiles.read_open(p), p)[0] for p in self._shelf("roots")]
        return [root for root in found if root != self.root]

    def _region_certificates(self) -> list[x509.Certificate]:
        return [load_chain(keyfiles.read_open(p), p)[0] for p in self._shelf("regions")]

    def _crossings(self, issuer: x509.Certificate) -> list[x509.Certificate]:
        path = self.directory / "roots" / f"{issuer_of(issuer)}.crossing.pem"
        return load_chain(keyfiles.read_open(path), path) if path.exists() else []

    def _signers(self) -> list[Authority]:
        """Every authority whose key is here: it can sign a list."""
        found = [self._pair(self.directory / "root.pem", self._root_key), self._issuer()]
        for name in ("roots", "issuers"):
            found += [self._pair(path, path.with_suffix(".key")) for path in self._shelf(name)]
        return list({a.id: a for a in found if a is not None}.values())

    def _drop_dead(self, now: datetime) -> None:
        """Forget old issuers and roots under which nothing lives: their keys can only do harm."""
        for name in ("issuers", "roots"):
            for path in self._shelf(name):
                key = path.stem
                current = (self.directory / "issuer.key").exists() and key in (self._issuer().id, id_of(self.root))
                if current or self._lives_under(key, now):
                    continue
                path.with_suffix(".key").unlink(missing_ok=True)
                path.unlink()
                if name == "roots":
                    (path.parent / f"{id_of(self.root)}.crossing.pem").unlink(missing_ok=True)

    def _lives_under(self, key: str, now: datetime) -> bool:
        """Whether anything that KEY vouches for may still be shown to somebody."""
        return any(
            c.kind in ("leaf", "region") or (c.kind == "issuer" and self._lives_under(c.key, now))
            for c in self.register.of_key(key)
            if c.not_after > now
        )

    # Revocation lists

    def _lists(self) -> list[x509.CertificateRevocationList]:
        path = self.directory / "crl.pem"
        return load_crls(keyfiles.read_open(path), path) if path.exists() else []

    def _lists_age(self, now: datetime) -> bool:
        """Whether a list that can be signed here is in the second half of its life."""
        mine = {a.id for a in self._signers()} if (self.directory / "issuer.key").exists() else set()
        ends = [one.next_update_utc for one in self._lists() if crl_issuer(one) in mine]
        return any(end is None or end - now < CRL_LIFE / 2 for end in ends)

    def _sign_lists(self, now: datetime) -> None:
        """Sign the list of every authority whose key is here, and keep the others' lists as they are."""
        number = self.register.next_number()
        signers = self._signers()
        known = {a.id for a in signers} | {id_of(c) for c in [self.root, *self._old_roots(), *self._region_certificates()]}
        lists = {crl_issuer(one): one for one in self._lists() if crl_issuer(one) in known}
        for authority in signers:
            gone = [c.revoked for c in self.register.of_key(authority.id) if c.revoked and c.not_after > now - CRL_LIFE]
            # A root's key may be away for long, and nothing but its own list can replace its list.
            long = authority.certificate.subject == authority.certificate.issuer
            until = authority.certificate.not_valid_after_utc if long else now + CRL_LIFE
            lists[authority.id] = make_crl(authority.certificate, authority.key, gone, number, now, until)
        self._write_lists(list(lists.values()))

    def _write_lists(self, lists: list[x509.CertificateRevocationList]) -> None:
        keyfiles.write_whole(self.directory / "crl.pem", b"".join(_crl_pem(one) for one in lists))


def _fresh(directory: Path) -> Path:
    keyfiles.make_directory(directory)
    return directory


def _id(key: PrivateKey) -> str:
    from warren.auth.certificates import key_id

    return key_id(key.public_key())


def _domain_of(directory: Path) -> str:
    try:
        return keyfiles.read_open(directory / "hive").decode("ascii", "replace").strip()
    except Missing:
        return ""


def _no_root_key(path: Path) -> Refusal:
    return Missing(f"{path}: the root's key is not here", "bring it, or say with --root-key where it is")


def _crl_pem(crl: x509.CertificateRevocationList) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return crl.public_bytes(Encoding.PEM)
