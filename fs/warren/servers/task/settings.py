"""What a queue can be set to."""

from __future__ import annotations

import msgspec
from warren.servers.task.records import Settings
from warren.servers.task.words import ATTEMPTS, LEASE_LEAST, LEASE_MOST, within
from warren.tree import Refused
from warren.tree.headers import LONGEST

BOUNDS = {
    "lease": (LEASE_LEAST, LEASE_MOST),
    "attempts": (1, ATTEMPTS),
    "backoff": (0, 3600),
    "high": (1, 20_000),
    "low": (0, 19_999),
    "count": (1, 20_000),
    "bytes": (1 << 10, 32 << 20),
    "keep": (1, LONGEST),
}


def checked(settings: Settings) -> Settings:
    """The same, or the refusal."""
    for name, value in msgspec.structs.asdict(settings).items():
        within(name, value, *BOUNDS[name])
    if not settings.low < settings.high:
        raise Refused(400, f"low is below high, and {settings.low} is not below {settings.high}")
    return settings


def changed(settings: Settings, wanted: dict[str, float]) -> Settings:
    """Settings with those changed, or the refusal."""
    return checked(msgspec.structs.replace(settings, **wanted))
