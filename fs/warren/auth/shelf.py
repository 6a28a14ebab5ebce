"""The files of a CA's directory, read and written; `ca` says what they are for.

    root.pem root.key  issuer.pem issuer.key  issuers/ID.{pem,key}  roots/ID.{pem,key}
    roots/ID.crossing.pem  regions/NAME.ID.pem  crl.pem  hive

Two files are never replaced at one moment, so of each pair the key decides: its certificate is put on
the shelf (issuers/, roots/) before the key is replaced, and found there should a crash come between.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from warren.auth import keyfiles, spiffe
from warren.auth.certificates import (
    PrivateKey,
    Unfit,
    crl_issuer,
    id_of,
    issuer_of,
    key_id,
    key_pem,
    load_chain,
    load_crls,
    load_key,
    pem,
    same_key,
)
from warren.auth.refusal import Missing, Refusal


class Authority(NamedTuple):
    """A certificate that signs, and its key."""

    certificate: x509.Certificate
    key: PrivateKey

    @property
    def id(self) -> str:
        return id_of(self.certificate)


class Shelf:
    """The files of one CA."""

    def __init__(
        self, directory: str | os.PathLike[str], root_key: str | os.PathLike[str] | None = None
    ) -> None:
        self.directory = Path(directory)
        self.root_key = Path(root_key) if root_key else self.directory / "root.key"

    def domain(self) -> str:
        """The hive or region that this is the CA of."""
        try:
            text = keyfiles.read_open(self.directory / "hive")
        except Missing:
            raise Missing(
                f"{self.directory}: there is no CA", "make one: warren ca init DIR --hive NAME"
            ) from None
        return spiffe.check_domain(text.decode("ascii", "replace").strip())

    # Roots

    def root_certificate(self) -> x509.Certificate:
        """The root, after what a crash left of its rotation has been finished."""
        path = self.directory / "root.pem"
        root = _certificate(path)
        if self.root_key.exists():
            key = load_key(keyfiles.read_secret(self.root_key), self.root_key)
            waiting = self.directory / "roots" / f"{key_id(key.public_key())}.pem"
            if not same_key(root, key) and waiting.exists():
                keyfiles.write_whole(path, keyfiles.read_open(waiting))
                root = _certificate(path)
        return root

    def root(self) -> Authority:
        """The root and its key, which may be kept elsewhere."""
        found = _pair(self.directory / "root.pem", self.root_key)
        if found is None:
            raise self.no_root_key()
        return found

    def no_root_key(self) -> Refusal:
        return Missing(
            f"{self.root_key}: the root's key is not here", "bring it, or say with --root-key where it is"
        )

    def install_root(self, old: Authority, new: Authority, crossing: x509.Certificate) -> None:
        """Put NEW in the place of OLD."""
        shelf = fresh(self.directory / "roots")
        keyfiles.write_whole(shelf / f"{old.id}.key", key_pem(old.key))
        keyfiles.write_whole(shelf / f"{old.id}.pem", pem(old.certificate))
        keyfiles.write_whole(shelf / f"{new.id}.crossing.pem", pem(crossing))
        keyfiles.write_whole(shelf / f"{new.id}.pem", pem(new.certificate))
        keyfiles.write_whole(self.root_key, key_pem(new.key))
        keyfiles.write_whole(self.directory / "root.pem", pem(new.certificate))

    def old_roots(self) -> list[x509.Certificate]:
        """Roots before this one that are still trusted."""
        now = _certificate(self.directory / "root.pem")
        return [root for path in self.paths("roots") if (root := _certificate(path)) != now]

    def crossings(self, issuer: x509.Certificate) -> list[x509.Certificate]:
        """What leads from the root of ISSUER to the root before it."""
        path = self.directory / "roots" / f"{issuer_of(issuer)}.crossing.pem"
        return [_certificate(path)] if path.exists() else []

    # Issuers

    def issuer(self) -> Authority:
        """What signs members."""
        path = self.directory / "issuer.key"
        key = load_key(keyfiles.read_secret(path), path)
        name = f"{key_id(key.public_key())}.pem"
        for candidate in (self.directory / "issuer.pem", self.directory / "issuers" / name):
            if candidate.exists() and same_key(found := _certificate(candidate), key):
                return Authority(found, key)
        raise Unfit(f"{path}: it is not the key of issuer.pem", "restore both from a backup")

    def has_issuer(self) -> bool:
        return (self.directory / "issuer.key").exists()

    def install_issuer(self, new: Authority) -> None:
        """Sign with NEW from now on. The one before stays on the shelf, for its own revocation list."""
        shelf = fresh(self.directory / "issuers")
        if self.has_issuer():
            old = self.issuer()
            keyfiles.write_whole(shelf / f"{old.id}.key", key_pem(old.key))
            keyfiles.write_whole(shelf / f"{old.id}.pem", pem(old.certificate))
        keyfiles.write_whole(shelf / f"{new.id}.pem", pem(new.certificate))
        keyfiles.write_whole(self.directory / "issuer.key", key_pem(new.key))
        keyfiles.write_whole(self.directory / "issuer.pem", pem(new.certificate))

    def regions(self) -> list[x509.Certificate]:
        """Issuers of the hive's regions."""
        return [_certificate(path) for path in self.paths("regions")]

    def keep_region(self, name: str, issuer: x509.Certificate) -> None:
        keyfiles.write_whole(fresh(self.directory / "regions") / f"{name}.{id_of(issuer)}.pem", pem(issuer))

    # Everything that signs

    def signers(self) -> list[Authority]:
        """Every authority whose key is here: it can sign its list."""
        found = [self.signer(key) for key in self.ids()]
        return [authority for authority in found if authority is not None]

    def signer(self, key: str) -> Authority | None:
        """The authority with the key of that id, if the key is here."""
        if key == id_of(_certificate(self.directory / "root.pem")):
            return _pair(self.directory / "root.pem", self.root_key)
        if self.has_issuer() and key == (now := self.issuer()).id:
            return now
        for name in ("roots", "issuers"):
            path = self.directory / name / f"{key}.pem"
            if path.exists():
                return _pair(path, path.with_suffix(".key"))
        return None

    def ids(self) -> list[str]:
        """The ids of all roots and issuers of this CA, regions' aside."""
        now = [id_of(_certificate(self.directory / "root.pem"))]
        if self.has_issuer():
            now.append(self.issuer().id)
        return list(dict.fromkeys([*now, *(p.stem for n in ("roots", "issuers") for p in self.paths(n))]))

    def paths(self, name: str) -> list[Path]:
        """The certificates in a directory of the shelf."""
        found = (self.directory / name).glob("*.pem")
        return sorted(p for p in found if not p.name.endswith(".crossing.pem") and not p.name.startswith("."))

    # Revocation lists

    def lists(self) -> dict[str, x509.CertificateRevocationList]:
        """The newest list of each authority, by its id."""
        path = self.directory / "crl.pem"
        return (
            {crl_issuer(one): one for one in load_crls(keyfiles.read_open(path), path)}
            if path.exists()
            else {}
        )

    def write_lists(self, lists: dict[str, x509.CertificateRevocationList]) -> None:
        text = b"".join(one.public_bytes(Encoding.PEM) for one in lists.values())
        keyfiles.write_whole(self.directory / "crl.pem", text)


def fresh(directory: Path) -> Path:
    """DIRECTORY, made if it is not there."""
    keyfiles.make_directory(directory)
    return directory


def _certificate(path: Path) -> x509.Certificate:
    return load_chain(keyfiles.read_open(path), path)[0]


def _pair(pem_path: Path, key_path: Path) -> Authority | None:
    """A certificate and its key, if the key is here."""
    certificate = _certificate(pem_path)
    if not key_path.exists():
        return None
    key = load_key(keyfiles.read_secret(key_path), key_path)
    if not same_key(certificate, key):
        raise Unfit(f"{key_path}: it is not the key of {pem_path.name}", "restore both from a backup")
    return Authority(certificate, key)
