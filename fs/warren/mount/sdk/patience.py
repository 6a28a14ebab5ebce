"""When something is tried again, and when no more.

    passing(e)      whether the same may succeed later
    unsure(e)       whether it may have been done although it failed
    told(e)         how many seconds the server asks for: `retry_after=`
    persist(...)    do it until it succeeds, is refused, or the deadline is there

Between tries there is a pause of full jitter: as likely nothing as all of a time that begins with `base`
and doubles up to `longest`. What a server asks for is waited for besides, all of it. A pause that would end
behind the deadline is not made: the error is raised at once, with a note of how often it was tried.

An error says what came of the last try. If an earlier try may have been done, a note says so: the outcome is
then unknown, whatever the last one was told.
"""

from __future__ import annotations

import errno
import random
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import inf
from typing import Final, TypeVar

import trio

T = TypeVar("T")

_LINE: Final = re.compile(r"(\d{3}) ")
_TOLD: Final = re.compile(r"\bretry_after=(\d{1,9}(?:\.\d{1,9})?)(?= trace=|$)")
_PASSING: Final = frozenset((408, 429, 502, 503, 504))
_UNSURE: Final = frozenset((408, 500, 502, 503, 504))
_AWAY: Final = frozenset(
    (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EAGAIN, errno.EBUSY)
)
_UNSAID: Final = frozenset((errno.EIO, *_AWAY)) - {errno.EAGAIN}
UNKNOWN: Final = "the outcome is unknown"
NEVER: Final = -inf


@dataclass(frozen=True)
class Patience:
    """How long, and in which steps. Seconds."""

    deadline: float = 60.0
    base: float = 0.2
    longest: float = 60.0
    chance: random.Random = field(default_factory=random.SystemRandom, repr=False)

    def pause(self, failures: int, asked: float = 0.0) -> float:
        """How long to wait after so many failures in a row."""
        return asked + self.chance.uniform(0.0, min(self.longest, self.base * 2.0 ** min(failures - 1, 30)))


class Tries:
    """What became of the tries so far. Work may look at it."""

    def __init__(self) -> None:
        self.failures = 0
        self.unsure = False  # an earlier one may have been done

    def again(
        self, e: OSError, patience: Patience, until: float, peer: str = "", repeats: bool = True
    ) -> float:
        """The pause before the next try, after E; or raises E, if there is to be none."""
        self.failures += 1
        unknown = unsure(e, peer)
        pause = patience.pause(self.failures, told(e) or 0.0)
        late = trio.current_time() + pause >= until
        if late or not passing(e, peer) or (unknown and not repeats):
            raise self.noted(e)
        self.unsure = self.unsure or unknown
        return pause

    def noted(self, e: OSError) -> OSError:
        """E, with what its own words do not say."""
        if self.failures > 1:
            e.add_note(f"tried {self.failures} times")
        if self.unsure:
            e.add_note(f"an earlier try may have been done; {UNKNOWN}")
        return e


def code(e: OSError) -> int:
    """The code that a server's line begins with; 0 if it was no server of ours that said it."""
    found = _LINE.match(e.strerror or "")
    return int(found[1]) if found else 0


def told(e: OSError) -> float | None:
    """The `retry_after=` that ends a server's line."""
    found = _TOLD.search(e.strerror or "") if code(e) else None
    return float(found[1]) if found else None


def unreached(e: OSError, peer: str) -> bool:
    """Whether it is our own dialling that failed, so that nothing was asked."""
    return bool(peer) and (e.strerror or "").startswith(f"{peer}: ")


def passing(e: OSError, peer: str = "") -> bool:
    """Whether the same may succeed later."""
    if told(e) is not None or code(e) in _PASSING:
        return True
    if isinstance(e, ConnectionError | TimeoutError):
        return True
    if code(e):
        return False
    # A socket that is not there is a server that is not up; any other file that is not there is missing.
    return e.errno in _AWAY or (e.errno == errno.ENOENT and unreached(e, peer))


def unsure(e: OSError, peer: str = "") -> bool:
    """Whether it may have been done although it failed."""
    if unreached(e, peer) or isinstance(e, ConnectionRefusedError):
        return False
    number = code(e)
    if number and number != 408:
        return number in _UNSURE
    return isinstance(e, ConnectionError | TimeoutError) or e.errno in _UNSAID


def done_before(e: OSError, tries: Tries, good: float) -> bool:
    """Whether E says that an earlier try was done, of what ends a lease that lives until GOOD.

    What extends one was not done where there is no such lease: it is good NEVER.
    """
    return code(e) == 409 and tries.unsure and trio.current_time() < good


async def persist(
    work: Callable[[Tries], Awaitable[T]],
    patience: Patience,
    *,
    what: str,
    peer: str = "",
    deadline: float | None = None,
    repeats: bool = True,
    waits: bool = False,
) -> T:
    """WORK, until it returns.

    Without REPEATS it has an effect that must not be had twice: it is tried again only after an error that
    says that nothing was done. With WAITS it may take as long as it likes, and the deadline begins with the
    first failure in a row.
    Raises OSError; past the deadline the last one, or TimeoutError. Cancelled leaves what WORK leaves.
    """
    limit = patience.deadline if deadline is None else deadline
    tries = Tries()
    until = trio.current_time() + limit
    while True:
        try:
            with trio.CancelScope(deadline=inf if waits else until) as scope:
                return await work(tries)
        except OSError as e:
            if waits and not tries.failures:
                until = trio.current_time() + limit
            pause = tries.again(e, patience, until, peer, repeats)
        if scope.cancelled_caught:
            raise tries.noted(TimeoutError(errno.ETIMEDOUT, f"not done within {limit:g} s; {UNKNOWN}", what))
        await trio.sleep(pause)
