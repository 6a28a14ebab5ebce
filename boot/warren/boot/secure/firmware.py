"""Secure Boot with keys of our own: enrolled, used, and left to real firmware to enforce.

    Keys.at(folder)                    ->  PK, KEK and db, made once and kept
    sign(efi, keys)                    ->  the image, signed by db
    variables(keys)                    ->  OVMF's variables with the three enrolled and Secure Boot on
    machine(variables, esp, folder)    ->  the QEMU arguments of a machine that enforces it
    watching(marker)                   ->  asked again and again while it runs: booted, refused, or None yet
    verdict(serial, marker)            ->  in the end: booted, refused or error

PK owns the machine, KEK may change its lists, db signs what it starts. The host writes the lists itself, so
neither PK nor KEK is needed afterwards; they are kept for whoever wants to enrol the same keys elsewhere.
Each key is a file for its owner alone.

The machine is q35 with SMM, and the flash memory answers only to code in it: the kernel inside cannot rewrite
the lists. The firmware starts /EFI/BOOT/BOOTX64.EFI from the disk it is given; a kernel that is given to QEMU
directly would go another way in, which proves nothing.

Of verdicts there are three. `refused` needs the firmware's own line about it, and that it started nothing
before; silence is an error, never a refusal.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from cryptography import x509
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID
from warren.boot.formats import authenticode, varstore
from warren.tree import Refused

CODE: Final = Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd")
VARIABLES: Final = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
Verdict = Literal["booted", "refused", "error"]

_NAMES: Final = ("PK", "KEK", "db")
# Keys do not age: whoever gives one up makes new ones and enrols those.
_FROM, _UNTIL = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)
_REFUSAL: Final = re.compile(rb"BdsDxe: failed to load Boot[0-9A-F]{4} [^\r\n]*: Access Denied")
_START: Final = b"BdsDxe: starting Boot"


@dataclass(frozen=True)
class Pair:
    key: RSAPrivateKey
    certificate: x509.Certificate


@dataclass(frozen=True)
class Keys:
    pk: Pair
    kek: Pair
    db: Pair

    @classmethod
    def at(cls, folder: Path) -> Keys:
        """Those in the folder; if there is none, they are made. Two who make them at once get the same."""
        if not folder.exists() or not any(folder.iterdir()):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix="new-keys-") as work:
                new = Path(work) / "keys"
                new.mkdir(0o700)
                for name in _NAMES:
                    _write(new, name, made(name))
                try:
                    new.rename(folder)
                except OSError:  # not empty: somebody was faster
                    if not folder.is_dir():
                        raise
        return cls(*(_read(folder, name) for name in _NAMES))


def made(name: str) -> Pair:
    """A new key, and a certificate that it signs for itself."""
    key = generate_private_key(public_exponent=65537, key_size=2048)
    called = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"warren secure boot {name}")])
    serial, public = x509.random_serial_number(), key.public_key()
    builder = x509.CertificateBuilder(called, called, public, serial, _FROM, _UNTIL)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return Pair(key, builder.sign(key, SHA256()))


def _write(folder: Path, name: str, pair: Pair) -> None:
    secret = pair.key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    for path, data, mode in (
        (folder / f"{name}.key", secret, 0o600),
        (folder / f"{name}.pem", pair.certificate.public_bytes(form.Encoding.PEM), 0o644),
    ):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)


def _read(folder: Path, name: str) -> Pair:
    path = folder / f"{name}.key"
    try:
        with path.open("rb") as file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                raise Refused(403, f"{path} can be read by others; chmod 600 it, or make new keys")
            key = form.load_pem_private_key(file.read(), None)
        certificate = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
    except FileNotFoundError as e:
        raise Refused(404, f"{e.filename} is missing; put it back, or move {folder} away") from None
    except (ValueError, TypeError):
        raise Refused(422, f"{folder}: the key {name} cannot be read; move the folder away") from None
    if not isinstance(key, RSAPrivateKey) or key.public_key() != certificate.public_key():
        raise Refused(422, f"{folder}: {name}.key and {name}.pem do not belong together")
    return Pair(key, certificate)


def sign(efi: bytes, keys: Keys) -> bytes:
    """The same image and keys give the same bytes."""
    return authenticode.sign(efi, keys.db.key, keys.db.certificate)


def unsound(efi: bytes, keys: Keys) -> str:
    """"" if db signed exactly this, else why not."""
    return authenticode.unsound(efi, keys.db.certificate)


def lacking() -> str:
    """"" if the firmware is here, else how to get it."""
    gone = next((path for path in (CODE, VARIABLES) if not path.exists()), None)
    return f"there is no {gone}; apt-get install ovmf" if gone else ""


def variables(keys: Keys) -> bytes:
    """The volume to give `machine`."""
    if lack := lacking():
        raise Refused(503, lack)
    auth = varstore.KEPT | varstore.BOOT | varstore.RUNTIME | varstore.TIMED
    inner = varstore.KEPT | varstore.BOOT
    enrolled = [
        varstore.Variable(name, vendor, varstore.certificates(pair.certificate), auth, varstore.time(_FROM))
        for name, vendor, pair in (
            ("PK", varstore.GLOBAL, keys.pk),
            ("KEK", varstore.GLOBAL, keys.kek),
            ("db", varstore.SECURITY, keys.db),
        )
    ]
    on = varstore.Variable("SecureBootEnable", varstore.SECURE_BOOT_ENABLE, b"\1", inner)
    standard = varstore.Variable("CustomMode", varstore.CUSTOM_MODE, b"\0", inner)
    return varstore.append(VARIABLES.read_bytes(), [on, standard, *enrolled])


def machine(variables: bytes, esp: Path, folder: Path) -> list[str]:
    """What makes QEMU this machine. Its copy of the variables is written to the folder, the caller's own."""
    if lack := lacking():
        raise Refused(503, lack)
    copy = folder / "vars.fd"
    copy.write_bytes(variables)
    return [
        "-machine", "q35,smm=on",
        "-global", "driver=cfi.pflash01,property=secure,value=on",
        "-global", "ICH9-LPC.disable_s3=1",
        "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={_quoted(CODE)}",
        "-drive", f"if=pflash,unit=1,format=raw,file={_quoted(copy)}",
        "-drive", f"if=none,id=esp,format=raw,readonly=on,file={_quoted(esp)}",
        "-device", "virtio-blk-pci,drive=esp,bootindex=1",
    ]  # fmt: skip


def seen(serial: bytes, marker: bytes) -> Literal["booted", "refused"] | None:
    """What the serial line shows so far. What was started may print what it likes, but not before it is."""
    if marker in serial:
        return "booted"
    return "refused" if _REFUSAL.search(serial.partition(_START)[0]) else None


def watching(marker: bytes) -> Callable[[bytes], Literal["booted", "refused"] | None]:
    """`seen`, for whoever keeps only the end of what was said: it remembers that something was started."""
    started = False

    def look(serial: bytes) -> Literal["booted", "refused"] | None:
        nonlocal started
        found = None if started and marker not in serial else seen(serial, marker)
        started = started or _START in serial
        return found

    return look


def verdict(serial: bytes, marker: bytes) -> Verdict:
    """When the machine has ended, or its time has."""
    return seen(serial, marker) or "error"


def _quoted(path: Path) -> str:
    return str(path).replace(",", ",,")
