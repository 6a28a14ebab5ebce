"""Renewal: another certificate for the same name and key, before the one there is runs out.

    renewal_at(identity_dir)                    when a third of its life is left
    await renew(files, identity_dir)            True if there is a new one in the directory
    await keep_renewed(identity_dir, reach)     for as long as it runs, whenever it is time

FILES is a tree in which the hive's authority is, over a connection that this identity was shown on: the
authority asks for no other proof. The key stays, so that a crash leaves an identity that is whole, the old
or the new. A key that others may have is not renewed but revoked.

The roots are brought up to date too, if those that are offered have one in common with those there are:
trust passes from root to root, and is never exchanged.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import Final

import trio
from warren.auth import keyfiles
from warren.auth.certificates import EARLY, Unfit, load_chain, load_key, utc_now
from warren.auth.identity import Identity
from warren.auth.join import request
from warren.auth.refusal import Refusal
from warren.mount.files import Files
from warren.mount.join import sign

AUTHORITY: Final = "/mesh/ca"
LOOK: Final = 3600.0  # between two looks at the clock, which somebody may set
PAUSE: Final = (1.0, 600.0)  # between tries, from and up to


def renewal_at(identity_dir: str | Path) -> datetime:
    """When the certificate in the directory has a third of its life left."""
    where = Path(identity_dir) / "cert.pem"
    leaf = load_chain(keyfiles.read_open(where), where)[0]
    begins, ends = leaf.not_valid_before_utc + EARLY, leaf.not_valid_after_utc
    return ends - (ends - begins) / 3


async def renew(
    files: Files, identity_dir: str | Path, *, authority: str = AUTHORITY, now: datetime | None = None
) -> bool:
    """Renew the identity in a directory if it is time; False if it is not.

    Raises OSError for what the authority or the connection refused, Refusal for what does not fit: the
    files are then as they were. Cancelled: likewise, though a certificate may have been signed.
    """
    where, now = Path(identity_dir), now or utc_now()
    if now < renewal_at(where):
        return False
    me = Identity.load(where, now)
    secret = keyfiles.read_secret(where / "key.pem")
    chain = await sign(files, f"{authority}/csr", request(load_key(secret, where / "key.pem")))
    bundle = await files.read(f"{authority}/bundle")
    await trio.to_thread.run_sync(_put, where, me, secret, chain, bundle, now)
    return True


async def keep_renewed(
    identity_dir: str | Path, reach: Callable[[], AbstractAsyncContextManager[Files]], *,
    authority: str = AUTHORITY, now: Callable[[], datetime] = utc_now,
    tell: Callable[[str], None] = lambda said: None,
) -> None:  # fmt: skip
    """Renew whenever it is time, over what REACH dials; what fails is told and tried again.

    Runs until cancelled, which leaves what `renew` does.
    """
    pause, longest = PAUSE
    while True:
        try:
            wait = (renewal_at(identity_dir) - now()).total_seconds()
            if wait > 0:
                await trio.sleep(min(wait, LOOK))
                continue
            async with reach() as files:
                if await renew(files, identity_dir, authority=authority, now=now()):
                    tell(f"{identity_dir}: its certificate was renewed")
            pause = PAUSE[0]
        except (OSError, Refusal) as e:
            tell(f"{identity_dir}: it could not be renewed: {e}; the next try is in {pause:g} s")
            await trio.sleep(pause)
            pause = min(2 * pause, longest)


def _put(where: Path, me: Identity, secret: bytes, chain: bytes, bundle: bytes, now: datetime) -> None:
    if not set(me.roots) & set(load_chain(bundle, "the bundle")):
        raise Unfit("none of the roots that are offered is known here", "join again, with a new token")
    with tempfile.TemporaryDirectory(prefix=".renew.", dir=where) as aside:
        held = Path(aside)
        for name, data in (("key.pem", secret), ("ca.pem", bundle), ("cert.pem", chain)):
            keyfiles.write_whole(held / name, data)
        made = Identity.load(held, now)
    if made.uri != me.uri or made.not_after <= me.not_after:
        raise Unfit("what was signed is no longer life of the same name", "see what the authority's log says")
    with keyfiles.locked(where):
        if keyfiles.read_secret(where / "key.pem") != secret:
            raise Unfit(f"{where}: it was issued anew meanwhile", "there is nothing to do")
        keyfiles.write_whole(where / "ca.pem", bundle)
        keyfiles.write_whole(where / "cert.pem", chain)
