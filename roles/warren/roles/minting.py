"""Tokens that a queen makes for herself, to act for her callers at her workers.

    mint = minting(identity)        None where the identity's folder has no minter.key
    mint("spiffe://h/user/bob")     a token of ours, good at any role of the hive

The token is not for the caller and never leaves this process: it is bound to our name, and lives an hour.
It gives everything, which means nothing by itself: with `for=` a server grants of it only what its own rows
give the caller.
"""

from __future__ import annotations

import time
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from warren.auth import keyfiles
from warren.auth.caveats import Caveats
from warren.auth.certificates import Unfit
from warren.auth.identity import Identity
from warren.auth.token import Token, mint
from warren.roles.reach import Mint

KEY: Final = "minter.key"
LIFE: Final = 3600


def minting(identity: Identity) -> Mint | None:
    """How this role makes tokens, if it may."""
    path = identity.directory / KEY
    if not path.exists():
        return None
    key = serialization.load_pem_private_key(keyfiles.read_secret(path), None)
    if not isinstance(key, Ed25519PrivateKey):
        raise Unfit(f"{path}: it holds no Ed25519 key", "move it away; the next warren up makes one")

    def make(who: str) -> Token:
        now = int(time.time())
        return mint(
            key,
            Caveats(
                allow=("read,write,create,remove,ctl /**",), aud=f"spiffe://{identity.hive}/role/*/*",
                nbf=now, exp=now + LIFE, to=identity.uri,
            ),
        )  # fmt: skip

    return make
