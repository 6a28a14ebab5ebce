"""Making audits to look at: small ones, of several segments, with signed heads."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from warren.traces.audit import AuditFile, Event
from warren.traces.audit.findings import Findings
from warren.traces.audit.heads import HeadFiles, Keys
from warren.traces.audit.keys import FileChecker, FileSigner
from warren.traces.audit.verify import verify


class Kept(NamedTuple):
    """An audit, its second place, and the key of its heads."""

    folder: Path

    @property
    def audit(self) -> Path:
        return self.folder / "audit"

    @property
    def heads(self) -> Path:
        return self.folder / "heads"

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"

    @property
    def public(self) -> Path:
        return self.folder / "public.pem"

    @property
    def segments(self) -> list[Path]:
        return sorted(self.audit.glob("*.log"))

    @property
    def keys(self) -> Keys:
        checker = FileChecker(self.public)
        return {checker.key_id: checker}

    def open(
        self, *, segment_bytes: int = 1 << 20, tell: Callable[[str], None] = lambda said: None
    ) -> AuditFile:
        return AuditFile(self.audit, signer=FileSigner(self.key), heads=HeadFiles(self.heads),
                         segment_bytes=segment_bytes, tell=tell)  # fmt: skip

    def verify(self, *, heads: bool = True) -> Findings:
        return verify(self.audit, self.heads, self.keys) if heads else verify(self.audit)

    def copy(self, to: Path) -> "Kept":
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.folder, to)
        return Kept(to)


def new_key(folder: Path, name: str = "key", public: str = "public") -> None:
    key = Ed25519PrivateKey.generate()
    (folder / f"{name}.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / f"{public}.pem").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )


def new(folder: Path) -> Kept:
    folder.mkdir(parents=True, exist_ok=True)
    new_key(folder)
    return Kept(folder)


def event(n: int, *, op: str = "create", trace: int = 0) -> Event:
    return Event(1, "role/Drone/d1", op, f"/jobs/{n}", f"n={n}", trace)


def work(audit: AuditFile, effects: int, first: int = 1) -> None:
    for n in range(first, first + effects):
        number, _ = audit.intent(event(n))
        audit.outcome(number, event(n), 0)


def three_segments(folder: Path) -> Kept:
    """20 effects over three segments, closed."""
    kept = new(folder)
    audit = kept.open(segment_bytes=4000)
    work(audit, 20)
    audit.close()
    assert len(kept.segments) == 3
    return kept
