"""What every store must do, as a suite any test can call.

    await check_store(MemoryStore)
    await check_store(lambda: open_sqlite(path), durable=True)
    check_store_model(MemoryStore)

`make` gives an async context manager with an open store. The suite writes only under
names of its own, new in each run, so `make` may open the same store every time, and must
where `durable` is true: what was written is then expected to be there after a reopening.

A check that fails raises `AssertionError` with the promise and how it was broken. Each
has `patience` seconds, in which a correct store never waits for time to pass. A store
that works in threads or over a network wants the real clock: an autojump clock cannot
tell their work from idleness and would jump to the end of the patience.
"""

import secrets

import trio
from warren.check.store import logs, values, whole
from warren.check.store.model import check_store_model
from warren.check.store.place import Place, StoreMaker, told

__all__ = ["StoreMaker", "check_store", "check_store_model"]


async def check_store(make: StoreMaker, *, durable: bool = False, patience: float = 30) -> None:
    """Hold a store against every promise of `warren.store.interface`."""
    run = f"check_store/{secrets.token_hex(4)}"
    for number, check in enumerate(logs.CHECKS + values.CHECKS + whole.CHECKS):
        promise = (check.__doc__ or check.__name__).rstrip(".")
        try:
            with trio.fail_after(patience):
                await check(Place(make, f"{run}/{number}", durable))
        except Exception as error:
            raise AssertionError(f"{promise}: {told(error, patience)}") from error
