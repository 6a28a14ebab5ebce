"""What every transport must do, as a suite for any way to get a client attached to an Export.

    await check_transport(lambda export: attached(export))
    await check_transport(attach, channel=connect)

`attach(export)` serves EXPORT by that transport and gives a client of it while its block runs. It is
entered once for each rule, and twice where a rule wants two connections. The policy in force allows
`any` everything. `channel(export)` gives the client's end of a bare byte channel in the same manner;
with it the suite also looks at frames: one byte at a time, cut off, too large, never read.

A failure is an AssertionError with the rule, the path and what was found. Each rule has `patience`
seconds, in which a correct transport never waits for time to pass; only the rule on deadlines lets a
short one run out. A transport with real sockets wants the real clock.
"""

import trio
from warren.check.transport import asking, frames
from warren.check.transport.place import Attaching, Channel, Place
from warren.check.tree.place import told

__all__ = ["Attaching", "Channel", "check_transport"]


async def check_transport(attach: Attaching, *, channel: Channel | None = None, patience: float = 30) -> None:
    """Hold a transport against every rule of `warren.check.transport`."""
    for check in asking.CHECKS + (frames.CHECKS if channel else ()):
        rule = (check.__doc__ or check.__name__).rstrip(".")
        try:
            with trio.fail_after(patience):
                await check(Place(attach, channel))
        except Exception as error:
            raise AssertionError(f"{rule}: {told(error, patience)}") from error
