"""Parking until a lock is granted: the part of locking that knows trio."""

import trio
from warren.tree.errors import Refused
from warren.tree.locks import Key, Locks
from warren.tree.node import Lock


async def wait(locks: Locks, key: Key, lock: Lock) -> None:
    """Park until the lock is granted. Cancelled means it was not."""
    if locks.take(key, lock):
        return
    task = trio.lowlevel.current_task()
    parked = False
    told: list[Refused | None] = []

    def tell(refusal: Refused | None) -> None:
        told.append(refusal)
        if parked:
            trio.lowlevel.reschedule(task)

    def abort(_: object) -> trio.lowlevel.Abort:
        locks.cancel(waiter)
        return trio.lowlevel.Abort.SUCCEEDED

    waiter = locks.enqueue(key, lock, tell)
    if not told:
        parked = True
        await trio.lowlevel.wait_task_rescheduled(abort)
    if told[0] is not None:
        raise told[0]
