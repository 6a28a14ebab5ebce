"""An identity that shows the token of another file than its folder's.

Beside `place`, so that who dials a socket of this machine need not load what certificates need.
"""

from __future__ import annotations

import errno
from pathlib import Path

from warren.auth import keyfiles
from warren.auth.blocks import BadText
from warren.auth.identity import Identity
from warren.auth.refusal import Refusal
from warren.auth.token import read_token


class Bearer(Identity):
    """As `Identity`; `cap` is where the token is, read again whenever it is asked for."""

    cap: Path

    @property
    def token(self) -> bytes | None:
        try:
            return read_cap(self.cap)
        except Refusal as e:
            # It was there when the node was first reached. To whom dials again this is as any other refusal.
            raise PermissionError(errno.EACCES, str(e)) from None


def bearer(folder: Path, cap: Path | None) -> Identity:
    """The identity in FOLDER, with the token in CAP if one is named. Refusal is a ValueError."""
    if cap is None:
        return Identity.load(folder)
    read_cap(cap)
    held = Bearer.load(folder)
    assert isinstance(held, Bearer)
    held.cap = cap
    return held


def read_cap(cap: Path) -> bytes:
    """What a token file holds, if it is one that can be shown."""
    text = keyfiles.read_secret(cap).strip()
    again = "name the file that warren token mint wrote"
    try:
        _, token = read_token(text.decode("ascii"))
    except (BadText, UnicodeDecodeError) as e:
        raise Refusal(f"{cap}: it holds no token: {e}", again) from None
    if token is None:
        raise Refusal(f"{cap}: the token has no key, so it can be looked at and not shown", again)
    return text
