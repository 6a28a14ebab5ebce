"""What a CA has signed and revoked: one JSON line each, only ever appended.

    {"event": "issued", "serial", "kind": leaf|issuer|region|root|crossing, "name", "issuer", "key",
     "not_before", "not_after"}                                   before the certificate is handed out
    {"event": "revoked", "serial", "reason", "at"}                before the list is signed
    {"event": "crl", "number", "at"}                              before the lists of that number are signed

Serials and ids are hexadecimal, times seconds since 1970. A line is on the disk before its consequence
exists, so whatever is in anybody's hands is here. A last line without its newline is what a crash left
of an append that came to nothing; it is cut off by the next one.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from warren.auth import keyfiles
from warren.auth.certificates import Revoked, id_of, issuer_of
from warren.auth.refusal import Refusal


@dataclass
class Issued:
    """One certificate."""

    serial: int
    kind: str
    name: str
    issuer: str
    key: str
    not_before: datetime
    not_after: datetime
    revoked: Revoked | None = None

    def live(self, now: datetime) -> bool:
        return self.revoked is None and self.not_after > now


@dataclass
class Register:
    """The register in a file. What other processes append is seen after `refresh`."""

    path: Path
    certificates: dict[int, Issued] = field(default_factory=dict)
    number: int = 0
    listed: datetime = field(default=datetime.fromtimestamp(0, UTC))
    unlisted: bool = False  # something was revoked since the last lists
    _by_issuer: dict[str, list[Issued]] = field(default_factory=dict)
    _read: int = 0

    def refresh(self) -> None:
        """Read what was appended since the last time."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._read)
                new = file.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        for line in whole.splitlines():
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError):
                where = f"{self.path}: {line[:60]!r} is no line of a register"
                raise Refusal(where, "restore the CA from a backup") from None
        self._read += len(whole)

    def issued(self, kind: str, name: str, certificate: x509.Certificate) -> None:
        """Record a certificate; hand it out afterwards."""
        self._append({
            "event": "issued",
            "serial": f"{certificate.serial_number:x}",
            "kind": kind,
            "name": name,
            "issuer": issuer_of(certificate),
            "key": id_of(certificate),
            "not_before": int(certificate.not_valid_before_utc.timestamp()),
            "not_after": int(certificate.not_valid_after_utc.timestamp()),
        })  # fmt: skip

    def revoke(self, serial: int, reason: str, at: datetime) -> None:
        """Record a revocation; sign the list afterwards."""
        when = int(at.timestamp())
        self._append({"event": "revoked", "serial": f"{serial:x}", "reason": reason, "at": when})

    def next_number(self, at: datetime) -> int:
        """The number for the next revocation lists, never used before and never again."""
        self._append({"event": "crl", "number": self.number + 1, "at": int(at.timestamp())})
        return self.number

    def of_key(self, key: str) -> list[Issued]:
        """What the key of that id has signed."""
        return self._by_issuer.get(key, [])

    def _append(self, line: dict[str, Any]) -> None:
        self.refresh()
        if self.path.exists() and self.path.stat().st_size > self._read:
            os.truncate(self.path, self._read)
        keyfiles.append(self.path, json.dumps(line, separators=(",", ":")).encode() + b"\n")
        self.refresh()

    def _take(self, line: dict[str, Any]) -> None:
        match line["event"]:
            case "issued":
                serial = int(line["serial"], 16)
                begins, ends = (datetime.fromtimestamp(line[k], UTC) for k in ("not_before", "not_after"))
                made = Issued(serial, line["kind"], line["name"], line["issuer"], line["key"], begins, ends)
                self.certificates[serial] = made
                self._by_issuer.setdefault(made.issuer, []).append(made)
            case "revoked":
                serial = int(line["serial"], 16)
                at = datetime.fromtimestamp(line["at"], UTC)
                self.certificates[serial].revoked = Revoked(serial, at, line["reason"])
                self.unlisted = True
            case "crl":
                self.number = max(self.number, line["number"])
                self.listed = datetime.fromtimestamp(line["at"], UTC)
                self.unlisted = False
            case other:
                raise ValueError(other)
