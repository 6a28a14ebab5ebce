"""The authority of a hive: it makes roots, issuers and members' certificates, and revokes them.

    DIR/                        0700, every file 0600
        hive                    the name: a hive's, or REGION.HIVE where this is a region's CA
        root.pem  root.key      the root; its key is needed to rotate, to make or revoke a region and to
                                revoke an issuer, and may be kept elsewhere for the rest of the time
        issuer.pem issuer.key   what signs members
        issuers/ID.{pem,key}    issuers before it: they sign their own lists while a member of theirs lives
        roots/ID.{pem,key}      roots before this one, likewise; ID.crossing.pem is the new root, signed by
                                the old one
        regions/NAME.ID.pem     issuers of regions
        crl.pem                 the newest list of each of these, one after another
        issued.jsonl            the register

Rotation of the issuer (`rotate`) needs nothing of those who verify: they know the root, and members bring
their issuer along. Where lists are in use, hand out the new crl.pem before the first certificate of the
new issuer: whoever checks lists refuses an issuer whose list it lacks. Rotation of the root (`rotate_root`)
makes a bundle of both roots and a crossing certificate that members bring along, so that those who know
only the old root find their way too. An old issuer or root drops out, key and all, when nothing that
it vouches for lives any more.

Lists are good for 30 days, a root's as long as the root, and any work of the CA in the second half of
that signs them again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from warren.auth import certificates as x
from warren.auth import keyfiles, spiffe
from warren.auth.certificates import PublicKey, Unfit, id_of
from warren.auth.refusal import Missing, Standing
from warren.auth.register import Issued, Register
from warren.auth.shelf import Authority, Shelf, fresh

TTL = timedelta(days=7)
SHORTEST, LONGEST = timedelta(seconds=1), timedelta(days=90)
CRL_LIFE = timedelta(days=30)
REASONS = ("unspecified", "keyCompromise", "cACompromise", "affiliationChanged", "superseded",
           "cessationOfOperation", "privilegeWithdrawn")  # fmt: skip

Place = str | os.PathLike[str]


class CA:
    """A CA in a directory. Each method is one change under the directory's lock, durable when it returns."""

    def __init__(self, directory: Place, root_key: Place | None = None) -> None:
        """Open the CA in DIRECTORY; ROOT_KEY is where the root's key is, if not there."""
        self.shelf = Shelf(directory, root_key)
        self.directory = self.shelf.directory
        self.domain = self.shelf.domain()
        self.root = self.shelf.root_certificate()
        self.hive = x.organisation(self.root)
        self.register = Register(self.directory / "issued.jsonl")
        self.register.refresh()

    @classmethod
    def create(cls, directory: Place, hive: str, kind: str = "ed25519", now: datetime | None = None) -> CA:
        """A new CA for HIVE, in a DIRECTORY that is empty or not there."""
        now = now or x.utc_now()
        spiffe.check_hive(hive)
        key = x.new_key(kind)
        where = fresh(Path(directory))
        with keyfiles.locked(where):
            _see_empty(where)
            keyfiles.write_whole(where / "root.key", x.key_pem(key))
            root = x.make_root(key, hive, now)
            keyfiles.write_whole(where / "root.pem", x.pem(root))
            Register(where / "issued.jsonl").issued("root", hive, root)
            keyfiles.write_whole(where / "hive", f"{hive}\n".encode())
        made = cls(where)
        made.rotate(now)
        return made

    # Members

    def issue(
        self, uri: str, out: Place, ttl: timedelta = TTL, kind: str = "ed25519", now: datetime | None = None
    ) -> x509.Certificate:
        """Make a key and a certificate for URI: OUT/{cert,key,ca}.pem, under one lock."""
        key = x.new_key(kind)
        chain = self.certify(key.public_key(), uri, ttl, now)
        into = fresh(Path(out))
        with keyfiles.locked(into):
            keyfiles.write_whole(into / "ca.pem", self.bundle())
            keyfiles.write_whole(into / "key.pem", x.key_pem(key))
            keyfiles.write_whole(into / "cert.pem", x.pem(*chain))
        return chain[0]

    def sign(
        self, request: bytes, uri: str, ttl: timedelta = TTL, now: datetime | None = None
    ) -> list[x509.Certificate]:
        """A certificate for URI and the key of a signing REQUEST, and its chain. The rest is ignored."""
        key, _ = x.read_request(request)
        return self.certify(key, uri, ttl, now)

    def certify(
        self, key: PublicKey, uri: str, ttl: timedelta = TTL, now: datetime | None = None
    ) -> list[x509.Certificate]:
        """A certificate for URI and KEY, and the chain it is shown with."""
        now = now or x.utc_now()
        name = spiffe.parse(uri)
        if name.domain != self.domain:
            ours = f"this CA names spiffe://{self.domain}/..., a region's CA names the region's"
            raise spiffe.BadName(f"{uri} is no name of {self.domain}", ours)
        if not SHORTEST <= ttl <= LONGEST:
            raise Unfit(
                "a certificate lasts from one second to 90 days", "choose fewer days, and issue again"
            )
        with self._changing(now):
            issuer = self.shelf.issuer()
            if issuer.certificate.not_valid_after_utc <= now:
                raise Unfit("the issuer has expired", f"warren ca rotate {self.directory}")
            leaf = x.make_leaf(x.check_strength(key), name, issuer.certificate, issuer.key, now, ttl)
            self.register.issued("leaf", uri, leaf)
            return [leaf, issuer.certificate, *self.shelf.crossings(issuer.certificate)]

    def revoke(self, serial: int, reason: str = "unspecified", now: datetime | None = None) -> bool:
        """Revoke a certificate and sign the list that says so; False if it was revoked before."""
        now = now or x.utc_now()
        if reason not in REASONS:
            raise Unfit(f"{reason!r} is no reason", f"the reasons are {', '.join(REASONS)}")
        with self._changing(now):
            known = self.register.certificates.get(serial)
            if known is None:
                raise Missing(f"{serial:x} is no serial of this CA", f"see warren ca list {self.directory}")
            if known.kind == "root":
                raise Unfit("no list can revoke a root", f"warren ca rotate {self.directory} --root")
            if known.not_after <= now:
                raise Unfit(f"{serial:x} has expired", "nobody takes it any more; there is nothing to do")
            if self.shelf.signer(known.issuer) is None:
                raise self.shelf.no_root_key()  # a revocation that no list says is none
            fresh = known.revoked is None
            if fresh:
                self.register.revoke(serial, reason, now)
                self._sign_lists(now, [known.issuer])
        return fresh

    def certificates(self) -> list[Issued]:
        """Everything that was signed, in order."""
        self.register.refresh()
        return list(self.register.certificates.values())

    # What others are given

    def bundle(self) -> bytes:
        """The roots to trust: ca.pem."""
        return x.pem(self.root, *self.shelf.old_roots())

    def crl(self) -> bytes:
        """The revocation lists, one after another."""
        return keyfiles.read_open(self.directory / "crl.pem")

    def sign_lists(self, now: datetime | None = None) -> bytes:
        """Sign all revocation lists again."""
        now = now or x.utc_now()
        with self._changing(now):
            self._sign_lists(now)
        return self.crl()

    def gather(self, lists: bytes, now: datetime | None = None) -> int:
        """Take in lists that CAs of the hive's regions signed; how many of them were news."""
        with self._changing(now or x.utc_now()):
            regions = {id_of(c): x.check_strength(c.public_key()) for c in self.shelf.regions()}
            kept = self.shelf.lists()
            news = 0
            for one in x.load_crls(lists, "the list"):
                signer = regions.get(x.crl_issuer(one))
                if signer is None or not one.is_signature_valid(signer):
                    raise Unfit(
                        "the list is not signed by a region of this hive", "fetch the region's crl.pem"
                    )
                old = kept.get(x.crl_issuer(one))
                if old is None or x.crl_number(one) > x.crl_number(old):
                    kept[x.crl_issuer(one)] = one
                    news += 1
            self.shelf.write_lists(kept)
        return news

    # Authorities

    def rotate(self, now: datetime | None = None) -> x509.Certificate:
        """A new issuer. Members of the old one stay what they are until they expire."""
        now = now or x.utc_now()
        with self._changing(now):
            self._see_hive()
            made = self._new_issuer(now)
            self._sign_lists(now, [id_of(made), id_of(self.root)])
        return made

    def rotate_root(self, kind: str = "ed25519", now: datetime | None = None) -> x509.Certificate:
        """A new root, vouched for by the old one, and a new issuer under it."""
        now = now or x.utc_now()
        with self._changing(now):
            self._see_hive()
            old = self.shelf.root()
            key = x.new_key(kind)
            root = x.make_root(key, self.hive, now)
            crossing = x.make_crossing(root, old.certificate, old.key, now)
            self.register.issued("root", self.hive, root)
            self.register.issued("crossing", self.hive, crossing)
            self.shelf.install_root(old, Authority(root, key), crossing)
            self.root = root
            self._new_issuer(now)
            self._sign_lists(now)
        return root

    def region(
        self, name: str, out: Place | None = None, kind: str = "ed25519", now: datetime | None = None
    ) -> CA:
        """A CA for a region, in OUT (else DIR/regions/NAME). One that is there gets a new issuer."""
        now = now or x.utc_now()
        domain = f"{spiffe.check_region(name)}.{self.hive}"
        self._see_hive()
        with self._changing(now):
            root = self.shelf.root()
            where = fresh(Path(out) if out else fresh(self.directory / "regions") / name)
            theirs = Shelf(where)
            with keyfiles.locked(where):
                if (where / "hive").exists():
                    if theirs.domain() != domain:
                        raise Standing(f"{where}: it is the CA of {theirs.domain()}", "say --out DIR")
                else:
                    _see_empty(where)
                key = x.new_key(kind)
                made = x.make_issuer(key.public_key(), self.hive, domain, root.certificate, root.key, now)
                self.register.issued("region", domain, made)
                self.shelf.keep_region(name, made)
                for path in (self.directory / "roots").glob("*.pem"):
                    keyfiles.write_whole(fresh(where / "roots") / path.name, keyfiles.read_open(path))
                keyfiles.write_whole(where / "root.pem", x.pem(root.certificate))
                Register(where / "issued.jsonl").issued("issuer", domain, made)
                theirs.install_issuer(Authority(made, key))
                keyfiles.write_whole(where / "hive", f"{domain}\n".encode())
        opened = CA(where)
        opened.sign_lists(now)
        self.gather(opened.shelf.lists()[id_of(made)].public_bytes(Encoding.PEM), now)
        return opened

    def _see_hive(self) -> None:
        if self.domain != self.hive:
            way_out = f"ask the CA of {self.hive}: warren ca region"
            raise Unfit(f"{self.domain} is a region: it can make no authority", way_out)

    def _new_issuer(self, now: datetime) -> x509.Certificate:
        root = self.shelf.root()
        key = x.new_key("ed25519" if isinstance(root.key, Ed25519PrivateKey) else "p256")
        made = x.make_issuer(key.public_key(), self.hive, self.domain, root.certificate, root.key, now)
        self.register.issued("issuer", self.domain, made)
        self.shelf.install_issuer(Authority(made, key))
        return made

    # What holds them together

    @contextmanager
    def _changing(self, now: datetime) -> Iterator[None]:
        """One change at a time; what other processes did before it is seen."""
        with keyfiles.locked(self.directory):
            self.root = self.shelf.root_certificate()
            self.register.refresh()
            self._drop_dead(now)
            yield
            if self._lists_due(now):
                self._sign_lists(now)

    def _drop_dead(self, now: datetime) -> None:
        """Forget authorities under which nothing lives: their keys could only do harm."""
        if not self.shelf.has_issuer():
            return
        kept = {self.shelf.issuer().id, id_of(self.root)}
        for path in [*self.shelf.paths("issuers"), *self.shelf.paths("roots")]:
            if path.stem not in kept and not self._lives_under(path.stem, now):
                path.with_suffix(".key").unlink(missing_ok=True)
                path.unlink()
                if path.parent.name == "roots":
                    (path.parent / f"{id_of(self.root)}.crossing.pem").unlink(missing_ok=True)
        for path, region in zip(self.shelf.paths("regions"), self.shelf.regions(), strict=True):
            if region.not_valid_after_utc <= now:
                path.unlink()

    def _lives_under(self, key: str, now: datetime) -> bool:
        """Whether anything that KEY vouches for may still be shown to somebody."""
        return any(
            c.kind in ("leaf", "region") or (c.kind == "issuer" and self._lives_under(c.key, now))
            for c in self.register.of_key(key)
            if c.not_after > now
        )

    def _lists_due(self, now: datetime) -> bool:
        """Whether the lists have lived half their life, or a crash came before they were written."""
        if self.register.unlisted or now - self.register.listed > CRL_LIFE / 2:
            return True
        lists = self.shelf.lists()
        numbers = [x.crl_number(lists[key]) for key in self.shelf.ids() if key in lists]
        return self.register.number not in numbers or self.shelf.issuer().id not in lists

    def _sign_lists(self, now: datetime, only: list[str] | None = None) -> None:
        """Sign the lists of all authorities whose keys are here (or of ONLY these), and keep the others'."""
        number = self.register.next_number(now)
        ids = self.shelf.ids()
        known = {*ids, *(id_of(c) for c in self.shelf.regions())}
        lists = {key: one for key, one in self.shelf.lists().items() if key in known}
        for authority in [self.shelf.signer(key) for key in (ids if only is None else only)]:
            if authority is None:
                continue
            signed = self.register.of_key(authority.id)
            gone = [c.revoked for c in signed if c.revoked and c.not_after > now - CRL_LIFE]
            is_root = authority.certificate.subject == authority.certificate.issuer
            # A root's key may be away for long, and only it can follow up its list.
            until = authority.certificate.not_valid_after_utc if is_root else now + CRL_LIFE
            made = x.make_crl(authority.certificate, authority.key, gone, number, now, until)
            lists[authority.id] = made
        self.shelf.write_lists(lists)


def _see_empty(where: Path) -> None:
    if any(where.iterdir()):
        raise Standing(f"{where}: it is not empty", "give a directory that is, or is not there yet")
