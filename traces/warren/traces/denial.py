"""A denial: somebody was refused for want of authority. What an export tells whoever keeps a log of them."""

from typing import NamedTuple

_VIA = " via="


class Denial(NamedTuple):
    """Who was refused what, and why. A handshake has no path, and shows its address instead."""

    actor: str  # a SPIFFE id, `local`, `any`, or `-` before anybody is known
    via: str  # who asked on the actor's behalf, or nothing
    op: str
    path: str
    code: int
    reason: str
    trace: int


def denial(subject: str, op: str, path: str, code: int, reason: str, trace: int) -> Denial:
    """A denial of a session's SUBJECT, which names both where one acts for another."""
    actor, _, via = subject.partition(_VIA)
    return Denial(actor or "-", via, op, path, code, reason, trace)
