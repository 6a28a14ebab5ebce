"""What a machine is asked to run, and what may run of it.

    found(text, signature, key)      the role that may run, and how it was proved

The manifest must hold under the key that the kernel's command line names, `warren.key=`: what is signed is
what `signature` says, for a file ROLE.role. Without a key, without a signature, or with one that does not
hold, the restricted role runs and says why. So it does where a role wants what no machine has: a store that
lasts, or to be dialled. An empty manifest is no wish: then the image's own role runs, which is as good as
the image.

Files that a manifest includes are those of the image. The host gives one file.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from warren.roles.library import PACKAGE, Shelf
from warren.roles.manifest import BadRole, Manifest, parse_role
from warren.roles.restricted import restricted
from warren.roles.serves import SERVERS
from warren.roles.signature import NO, YES, message

HERE: Final = ("dev", "proc", "role", "srv", "log", "ram", "mailbox", "task", "demo")
OWN: Final = """# What an image runs that was given no role: a place to work in, for its host.
role Guest
group queens role/QueenPrimary/* role/RegionalQueen/* role/BareMetalQueen/*
include base.role
include overseen.role
namespace base.ns
serve ram /scratch size=16M
allow queens read,write,create,remove /scratch/**
"""


class Found(NamedTuple):
    """The role that may run, and how it was proved: yes, no, or package for the image's own."""

    manifest: Manifest
    verified: str


def found(text: str, signature: str, key: str) -> Found:
    """What may run, of what the host wants run."""
    if not text.strip():
        return Found(parsed(OWN, "Guest.role"), PACKAGE)
    said = re.search(r"^role[ \t]+([A-Za-z0-9._-]{1,63})[ \t]*$", text, re.MULTILINE)
    role = said[1] if said else "Guest"
    why = fault(f"{role}.role", text, signature, key)
    if not why:
        try:
            manifest = parsed(text, f"{role}.role")
        except BadRole as e:
            why = str(e)
        else:
            if manifest.store == "memory" and not manifest.listens:
                return Found(manifest, YES)
            why = f"{role}.role: a machine keeps nothing and is dialled by nobody; leave out store and listen"
    return Found(restricted(role, why), NO)


def fault(name: str, text: str, signature: str, key: str) -> str:
    """"" if SIGNATURE of the file NAME holds under KEY, else why it does not count."""
    if not re.fullmatch(r"[0-9a-f]{64}", key):
        return f"{name}: this machine was given no key that roles are signed with; warren.key= names it"
    if not signature.strip():
        return f"{name} is not signed; sign it with the key that this machine was given"
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
        public.verify(base64.b64decode(signature.strip(), validate=True), message(name, text.encode()))
    except (InvalidSignature, binascii.Error, ValueError):
        return f"{name} is not what was signed with this machine's key; see who changed it, and sign it again"
    return ""


def parsed(text: str, name: str) -> Manifest:
    """The role, of this text and of files that came with the image."""
    shelf, here = Shelf(), {server: SERVERS[server] for server in HERE}
    made = parse_role(text, name, include=shelf.read, servers=here, include_roles=shelf.read)
    parts = tuple(part._replace(source=PACKAGE) for part in made.parts)
    return dataclasses.replace(made, source=PACKAGE, parts=parts)
