"""A queue of tasks on JetStream: the model in part."""

from __future__ import annotations

from itertools import count

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from warren.store.jetstream import open_jetstream

from tests.servers.test_task_model import Step, play, steps
from tests.store.nats import Nats

numbers = count()


@settings(max_examples=5, deadline=None)
@given(script=st.lists(steps, min_size=5, max_size=20))
def test_nothing_is_lost_done_twice_or_held_twice(nats: Nats, script: list[Step]) -> None:
    async def main() -> None:
        async with open_jetstream(f"{nats.address}/m{next(numbers)}") as store:
            await play(store, script)

    trio.run(main)
