"""A clock for servers under test: trio's own, which MockClock moves, and dates that follow it."""

import trio

BEGAN = 1_800_000_000.0


class TrioClock:
    """The port `Clock`."""

    def now(self) -> float:
        return BEGAN + trio.current_time()

    def monotonic(self) -> float:
        return trio.current_time()

    async def sleep_until(self, deadline: float) -> None:
        await trio.sleep_until(deadline)


class StillClock:
    """A clock that only the test moves, for what runs outside trio."""

    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        return BEGAN + self.at

    def monotonic(self) -> float:
        return self.at

    async def sleep_until(self, deadline: float) -> None:
        self.at = max(self.at, deadline)
        await trio.lowlevel.checkpoint()
