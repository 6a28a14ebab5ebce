"""One line of a role file chooses the store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from warren.store import MemoryStore, StoreFailed
from warren.store.jetstream import JetStreamStore
from warren.store.open import open_store
from warren.store.sqlite import SqliteStore

from tests.store.nats import alone

WITHOUT = """
import sys, trio
sys.modules["nats"] = None
from warren.store import StoreFailed
from warren.store.open import open_store

async def main():
    try:
        async with open_store("nats://127.0.0.1:1", "/", "queen"):
            pass
    except StoreFailed as e:
        print(e)

trio.run(main)
"""


async def test_memory_and_sqlite_are_had_by_their_names(tmp_path: Path) -> None:
    async with open_store("memory", tmp_path, "queen") as store:
        assert isinstance(store, MemoryStore)
    async with open_store("sqlite", tmp_path, "queen") as store:
        assert isinstance(store, SqliteStore)
        await store.put("k", b"v")
    assert (tmp_path / "queen.db").exists()


async def test_an_address_is_a_store_of_the_roles_own_unless_it_names_another(tmp_path: Path) -> None:
    with alone(tmp_path) as server:
        async with (
            open_store(server.address, tmp_path, "queen") as hers,
            open_store(server.address, tmp_path, "worker") as his,
            open_store(f"{server.address}/queen", tmp_path, "worker") as shared,
        ):
            assert isinstance(hers, JetStreamStore)
            await hers.put("k", b"v")
            assert await his.keys() == []
            assert (await shared.get("k")).value == b"v"


@pytest.mark.parametrize("address", ["redis://me:secret@h", "SQLITE", "", "mysql"])
async def test_what_is_no_store_is_refused_with_those_there_are(address: str, tmp_path: Path) -> None:
    with pytest.raises(StoreFailed, match="write memory, sqlite or nats://HOST:PORT") as caught:
        async with open_store(address, tmp_path, "queen"):
            pass
    assert "secret" not in str(caught.value)


def test_without_its_packages_a_cluster_is_refused_with_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True, timeout=60
    )
    assert "pip install 'warren-9p[jetstream]'" in done.stdout
