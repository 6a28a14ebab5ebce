"""An image's manifest: what went in and what came out, signed.

    warren image 1
    name=linux
    kind=linux
    inputs=SHA256                            of the lines below: same inputs, same image
    input SHA256 KIND NAME                   recipe, lock, deb, wheel, source, tool, key
    output SHA256 SIZE WORD FILE             a file of the image, and the word for it

    made = Manifest.parse(text)
    signer = Signer.at(folder)               an Ed25519 key of one's own, made when it is first wanted
    signature = signer.sign(made)

Beside the manifest lies `manifest.sig`, base64: Ed25519 over `warren image manifest 1`, a zero byte, and the
manifest's bytes. No time is in a manifest, so the same inputs give the same one. How long a build took is in
`built`, which nobody signs.

A manifest is read strictly. What is there twice, out of order or not known is refused, for two readers that
understand one text differently are a hole.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from warren.tree.errors import Refused

FIRST: Final = "warren image 1"
DOMAIN: Final = b"warren image manifest 1\0"
KEY, PUBLIC = "image.key", "image.pub"
MAX_TEXT, MAX_LINES = 1 << 20, 4096
NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")
_SUM: Final = re.compile(r"[0-9a-f]{64}")
_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")
_KINDS: Final = ("recipe", "lock", "deb", "wheel", "source", "tool", "key")


class Input(NamedTuple):
    """Something that an image is made of."""

    sha256: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"input {self.sha256} {self.kind} {self.name}"


class Output(NamedTuple):
    """A file of an image."""

    sha256: str
    size: int
    word: str
    file: str

    def __str__(self) -> str:
        return f"output {self.sha256} {self.size} {self.word} {self.file}"


def sum_of(inputs: Iterable[Input]) -> str:
    """One sum of all inputs, whatever their order."""
    lines = sorted(f"{one}\n" for one in inputs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Manifest:
    """What an image is. TEXT is what is signed."""

    name: str
    kind: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]

    @property
    def input_hash(self) -> str:
        return sum_of(self.inputs)

    @property
    def text(self) -> str:
        head = [FIRST, f"name={self.name}", f"kind={self.kind}", f"inputs={self.input_hash}"]
        rows = [str(row) for row in (*sorted(self.inputs), *sorted(self.outputs, key=lambda o: o.word))]
        return "".join(f"{line}\n" for line in (*head, *rows))

    @classmethod
    def parse(cls, text: str) -> Manifest:
        """The manifest that TEXT is, to the byte; else Refused."""
        if len(text) > MAX_TEXT or text.count("\n") > MAX_LINES:
            raise Refused(413, f"a manifest has {MAX_TEXT} bytes and {MAX_LINES} lines at most")
        lines = text.split("\n")
        if lines[0] != FIRST:
            raise Refused(422, f"no manifest begins so; its first line is {FIRST!r}")
        head = dict(line.partition("=")[::2] for line in lines[1:4])
        inputs, outputs = [], []
        for number, line in enumerate(lines[4:-1], 5):
            match line.split(" ", 4):
                case ["input", digest, kind, *called] if _SUM.fullmatch(digest) and kind in _KINDS and called:
                    inputs.append(Input(digest, kind, " ".join(called)))
                case ["output", digest, size, word, file] if (
                    _SUM.fullmatch(digest) and size.isdecimal() and len(size) < 16
                    and NAME.fullmatch(word) and _FILE.fullmatch(file)
                ):  # fmt: skip
                    outputs.append(Output(digest, int(size), word, file))
                case _:
                    raise Refused(422, f"line {number} of the manifest is neither an input nor an output")
        name, kind = head.get("name", ""), head.get("kind", "")
        if not (NAME.fullmatch(name) and NAME.fullmatch(kind)):
            raise Refused(422, "the manifest does not say whose it is; build the image again")
        made = cls(name, kind, tuple(inputs), tuple(outputs))
        if len({o.word for o in outputs}) != len(outputs) or len({o.file for o in outputs}) != len(outputs):
            raise Refused(422, "a file is in the manifest twice; build the image again")
        if made.text != text:
            raise Refused(422, "the manifest is not written as one is written; build the image again")
        return made


class Signer:
    """Who signs the images of one place, and is asked whether he did."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self.key = key
        self.public: Ed25519PublicKey = key.public_key()

    @property
    def raw(self) -> bytes:
        """The public key as 32 bytes, as a kernel's command line names it."""
        return self.public.public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def public_pem(self) -> bytes:
        return self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @classmethod
    def at(cls, folder: Path) -> Signer:
        """The key in FOLDER, made there if there is none. Nobody else may read it."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / KEY
        try:
            return cls(_load(path))
        except FileNotFoundError:
            pass
        made = cls(Ed25519PrivateKey.generate())
        pem = made.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        new = folder / f"{KEY}.{os.getpid()}.new"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(pem)
                os.fsync(fd)
            os.link(new, path)
        except FileExistsError:  # somebody was quicker, and his is the one that counts
            return cls(_load(path))
        finally:
            os.unlink(new)
        (folder / PUBLIC).write_bytes(made.public_pem)
        return made

    def sign(self, manifest: Manifest) -> bytes:
        """What goes into manifest.sig."""
        return base64.b64encode(self.key.sign(DOMAIN + manifest.text.encode())) + b"\n"

    def sign_role(self, role: str, text: str) -> bytes:
        """What goes into the `role.sig` of a machine whose command line names this key."""
        message = b"warren role 1\0" + f"{role}.role".encode() + b"\0" + text.encode()
        return base64.b64encode(self.key.sign(message)) + b"\n"

    def fault(self, text: str, signature: bytes) -> str:
        """"" if TEXT is what this key signed, else why not."""
        try:
            self.public.verify(base64.b64decode(signature.strip(), validate=True), DOMAIN + text.encode())
        except (InvalidSignature, binascii.Error):
            return "the manifest is not what was signed here; build the image again"
        return ""


def _load(path: Path) -> Ed25519PrivateKey:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with open(fd, "rb") as file:
        if stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
            raise Refused(403, f"{path} can be read by others; chmod 600 it, or remove it to have a new one")
        data = file.read(1 << 14)
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise Refused(422, f"{path} holds no Ed25519 key; remove it to have a new one")
    return key
