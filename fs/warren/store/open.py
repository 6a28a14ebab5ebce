"""From the one line of a role file to a store.

    store memory                                    gone with the process
    store sqlite                                    STATE/store/NAME.db, on a disk of this machine
    store nats://HOST:PORT[/PREFIX][?replicas=3]    in a NATS cluster, by JetStream

Without a prefix of its own a role has its name for one, so two roles share what is in a cluster only where
both say the same prefix.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path

from warren.store.interface import Store, StoreFailed
from warren.store.memory import MemoryStore
from warren.store.sqlite import open_sqlite

LACKING = "store nats:// needs packages that are not here; add them: pip install 'warren-9p[jetstream]'"


@asynccontextmanager
async def open_store(address: str, directory: str | Path, name: str) -> AsyncIterator[Store]:
    """The store at ADDRESS for the role NAME, whose files lie in DIRECTORY, while the block runs.

    StoreFailed says why it is not to be had, and never with what is secret in an address.
    """
    if address == "memory":
        async with MemoryStore() as passing:
            yield passing
    elif address == "sqlite":
        async with open_sqlite(Path(directory) / f"{name}.db") as lasting:
            yield lasting
    elif address.startswith(("nats://", "tls://")):
        try:
            jetstream = import_module("warren.store.jetstream")
        except ModuleNotFoundError as e:
            if (e.name or "").partition(".")[0] == "warren":
                raise
            raise StoreFailed(LACKING) from None
        async with jetstream.open_jetstream(address, prefix=name) as shared:
            yield shared
    else:
        raise StoreFailed(f"{address.partition(':')[0]}: no such store; write memory, sqlite or nats://HOST:PORT")
