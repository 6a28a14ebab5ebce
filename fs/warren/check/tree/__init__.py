"""What every tree must do, as a suite any server's author can call.

    await check_tree(lambda: nullcontext(Demo()))
    await check_tree(lambda: nullcontext(Disk(path)), writable="/tmp")
    await check_tree(lambda: nullcontext(Demo()), feeds={"/recv": lambda files: files.write("/send", b"x")})

`make_root` gives an async context manager with the root. It is entered once for each rule and may
give the same tree each time. The tree is served through an Export on memory streams and looked at in
each dialect.

`writable` names a directory in which files can be made. The suite makes one of its own there and
removes it again. Without it, nothing in the tree may accept a new name: that is tried in every
directory. Elsewhere the suite changes nothing: it reads files and streams, opens clone files, and
writes comments and verbs that do not exist.

`feeds` makes one record come on the stream of that path, each time it is called. Without a feed
nobody can see whether a flushed read loses records.

A failure is an AssertionError with the rule, the dialect, the path and what was found. Each rule has
`patience` seconds, in which a correct tree never waits for time to pass. Nothing else may change the
tree meanwhile, and nothing else may run in this trio loop. A tree that works in threads wants the
real clock: an autojump clock cannot tell their work from idleness.
"""

from collections.abc import Mapping, Sequence

import trio
from warren.check.tree import control, directories, guard, locks, names, reading, streams, writing
from warren.check.tree.place import Check, Feed, Place, RootMaker, told
from warren.p9.messages import ALL, PLAIN

__all__ = ["Feed", "RootMaker", "check_tree"]

_EVERY: tuple[Check, ...] = names.CHECKS + reading.CHECKS + control.CHECKS + streams.CHECKS + guard.CHECKS
_WRITABLE: tuple[Check, ...] = writing.CHECKS + directories.CHECKS
_WRITABLE_LINUX: tuple[Check, ...] = writing.LINUX + directories.LINUX + locks.CHECKS


async def check_tree(
    make_root: RootMaker,
    *,
    writable: str | None = None,
    feeds: Mapping[str, Feed] | None = None,
    dialects: Sequence[str] = ALL,
    patience: float = 30,
) -> None:
    """Hold a tree against every rule of `warren.check.tree`."""
    for dialect in dialects:
        checks = _EVERY
        if writable is not None:
            checks += _WRITABLE if dialect == PLAIN else _WRITABLE + _WRITABLE_LINUX
        for check in checks:
            rule = (check.__doc__ or check.__name__).rstrip(".")
            try:
                with trio.fail_after(patience):
                    await check(Place(make_root, dialect, writable, feeds or {}))
            except Exception as error:
                raise AssertionError(f"{rule} ({dialect}): {told(error, patience)}") from error
