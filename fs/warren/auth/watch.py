"""What a server knows of revocations, and how sure it is.

A server that watches `/cap` of its authority takes every change from there into its gate and its verifier.
If it has not heard from the authority for STALE seconds it says so, `revocation=stale`; under a strict
policy it then refuses effects, for it can no longer tell who was revoked.
"""

from __future__ import annotations

import time
from collections.abc import Callable

STALE = 5.0


class Freshness:
    """When the authority was last heard from."""

    def __init__(self, strict: bool = False, now: Callable[[], float] = time.monotonic) -> None:
        self.strict = strict
        self._now = now
        self._heard = now()
        self.live = False
        self.seq = 0

    def alive(self) -> None:
        """The authority answered, whatever it said."""
        self._heard = self._now()

    def heard(self, seq: int) -> None:
        """The watch stands, and this is the newest number."""
        self.live, self.seq, self._heard = True, seq, self._now()

    def lost(self) -> None:
        """The watch broke. The seconds count from the last answer on, not from when we noticed."""
        self.live = False

    @property
    def stale(self) -> bool:
        return self._now() - self._heard > STALE

    def __str__(self) -> str:
        return f"revocation={'stale' if self.stale else 'fresh'} seq={self.seq}"
