"""A hive for the benchmark: who serves, who asks, and the token that one of them shows.

    make(folder)          folder/server, folder/client: identities, as `warren ca issue` makes them
                          folder/token: chain, and holder.pem, its last key, as loadgen presents them

The token allows what the policy of `warren_arguments` does, and has been narrowed once: what a
session with it costs beside one without is then the token itself, and not another decision.
"""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from warren.auth import token
from warren.auth.ca import CA
from warren.auth.caveats import Caveats
from warren.auth.certificates import key_pem, utc_now
from warren.auth.minters import certify
from warren.auth.rights import parse_grant

HIVE: Final = "bench"
SERVER: Final = f"spiffe://{HIVE}/role/Disk/server"
CLIENT: Final = f"spiffe://{HIVE}/user/client"
ALLOWED: Final = "read,write,create,remove /**"


def make(folder: Path) -> None:
    ca = CA.create(folder / "ca", HIVE)
    ca.issue(SERVER, folder / "server")
    ca.issue(CLIENT, folder / "client")
    minter, holder, now = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate(), int(time.time())
    public = minter.public_key().public_bytes_raw()
    entry = certify(ca, public, [parse_grant(ALLOWED)], timedelta(days=1), utc_now())
    (folder / "server" / "minters").write_text(entry)
    minted = token.mint(minter, Caveats(allow=(ALLOWED,), aud=SERVER, nbf=now, exp=now + 43200))
    narrowed = token.narrow(minted, Caveats(to=CLIENT), key=holder)
    (folder / "token").mkdir()
    (folder / "token" / "chain").write_bytes(narrowed.chain)
    (folder / "token" / "holder.pem").write_bytes(key_pem(holder))
