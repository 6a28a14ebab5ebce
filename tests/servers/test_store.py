"""The store's tree: a copy is a read, a restore is a write, and what cannot be had is refused in words."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio.testing
from warren.auth.join import Ticket
from warren.auth.rights import Policy
from warren.check.tree import check_tree
from warren.mount import Files, dial
from warren.serve.export import Export
from warren.serve.stream import serve_stream
from warren.servers.ca.tokens import Tokens
from warren.servers.store import StoreTree
from warren.store import MemoryStore, Store
from warren.store.sqlite import open_sqlite
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Node, Refused


@asynccontextmanager
async def files_of(store: Store, told: list[str] | None = None) -> AsyncIterator[Files]:
    tree = StoreTree(store, lambda kind, **values: told.append(kind) if told is not None else None)
    export = Export(tree, Policy.parse(["any read,write,ctl /**"]), AuditMemory(), TraceRing())
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_stream, export, theirs, "any")
        async with dial(ours) as files:
            yield files
        nursery.cancel_scope.cancel()


async def asked(files: Files, verb: str) -> bytes:
    """What the ctl file answers to a verb."""
    async with await files.open("/ctl", os.O_RDWR) as file:
        await file.write(f"{verb}\n".encode())
        return await file.pread(4096, 0)


async def test_it_is_a_tree(tmp_path: Path) -> None:
    @asynccontextmanager
    async def make() -> AsyncIterator[Node]:
        async with open_sqlite(tmp_path / "s.db") as store:
            await store.append("a", b"1")
            yield StoreTree(store)

    await check_tree(make)


async def test_what_is_read_from_backup_and_written_to_restore_is_the_store_again(tmp_path: Path) -> None:
    told: list[str] = []
    async with open_sqlite(tmp_path / "s.db") as store, files_of(store, told) as files:
        await store.append("a", b"early")
        await store.put("k", bytes(300_000))
        copy = await files.read("/backup")
        await store.append("a", b"late")
        async with await files.open("/restore", os.O_RDWR) as file:
            await file.write(copy)
            await file.fsync()
            assert b"the next start" in await file.pread(4096, 0)
        assert (await store.last("a"), store.generation) == (2, 1)
        assert b"generation=1\n" in await files.read("/status")
        assert told == ["store_copied", "store_restore"]
    async with open_sqlite(tmp_path / "s.db") as store, files_of(store) as files:
        assert (await store.last("a"), store.generation) == (1, 2)
        assert b"generation=2\n" in await files.read("/status")
        assert await asked(files, "check") == b"ok\n"


async def test_a_copy_that_is_none_is_refused_to_whoever_syncs_it(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "s.db") as store, files_of(store) as files:
        async with await files.open("/restore", os.O_WRONLY) as file:
            await file.write(b"nothing of the kind" * 10_000)
            with pytest.raises(OSError, match="not a database"):
                await file.fsync()
        assert not [name for name in os.listdir(tmp_path) if "restore" in name]


async def test_copies_and_restores_at_once_are_bounded(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "s.db") as store, files_of(store) as files:
        async with await files.open("/backup"), await files.open("/backup"):
            with pytest.raises(OSError, match="2 copies are being read"):
                await files.open("/backup")
        await files.read("/backup")
        async with await files.open("/restore", os.O_WRONLY):
            with pytest.raises(OSError, match="another copy is being written back"):
                await files.open("/restore", os.O_WRONLY)
        async with await files.open("/restore", os.O_WRONLY):
            pass
        assert not [name for name in os.listdir(tmp_path) if "restore" in name]


async def test_a_damaged_record_is_told_by_check(tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "s.db") as store:
        await store.append("a", b"1")
    db = sqlite3.connect(tmp_path / "s.db")
    with db:
        db.execute("UPDATE record SET data = x'00'")
    db.close()
    told: list[str] = []
    async with open_sqlite(tmp_path / "s.db") as store, files_of(store, told) as files:
        assert await asked(files, "check") == b"a: record 1 is not as it was written\n"
        assert told == ["store_damaged"]


async def test_a_store_without_files_of_its_own_says_so() -> None:
    async with MemoryStore() as store, files_of(store) as files:
        for path, flags in (("/backup", os.O_RDONLY), ("/restore", os.O_WRONLY)):
            with pytest.raises(OSError, match="keeps no files of its own"):
                await files.open(path, flags)
        for verb in ("check", "compact"):
            with pytest.raises(OSError, match="keeps no files of its own"):
                await asked(files, verb)
        with pytest.raises(OSError, match="only a store in a cluster"):
            await asked(files, "restored")
        assert b"engine=memory\n" in await files.read("/status")
        assert b"store_appended_total 0\n" in await files.read("/metrics")


async def test_an_invitation_counts_no_more_in_a_store_that_was_restored(tmp_path: Path) -> None:
    said: list[str] = []

    def tokens(store: Store) -> Tokens:
        def tell(kind: str, **values: object) -> None:
            said.append(f"{kind} {values.get('why', '')}".strip())

        return Tokens(store, tell, tell, lambda: datetime.fromtimestamp(1_000, UTC))

    ticket = Ticket(b"s" * 32, b"", "spiffe://hive/role/DroneWorker/d7", "role/*/*", 2_000)
    async with open_sqlite(tmp_path / "s.db") as store, files_of(store) as files:
        await tokens(store).add(ticket, "ann")
        copy = await files.read("/backup")
        await tokens(store).take(ticket, "one key")
        async with await files.open("/restore", os.O_WRONLY) as file:
            await file.write(copy)
            await file.fsync()
        await tokens(store).take(ticket, "one key")
    async with open_sqlite(tmp_path / "s.db") as store:
        with pytest.raises(Refused):
            await tokens(store).take(ticket, "another key")
        assert said == ["join_invited", "join_refused restored"]
        again = ticket._replace(secret=b"t" * 32)
        await tokens(store).add(again, "ann")
        await tokens(store).take(again, "another key")
