"""The authority's tree: what is revoked is told to whoever watches."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from warren.auth import minters
from warren.auth.blocks import BadText, write_parts
from warren.auth.ca import CA
from warren.auth.rights import Policy, parse_grant
from warren.auth.token import Issuer
from warren.check.tree import check_tree
from warren.mount import Files, dial
from warren.serve.export import Export
from warren.serve.stream import serve_stream
from warren.servers.cap import Cap
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Node


@pytest.fixture
def ca(tmp_path: Path) -> CA:
    return CA.create(tmp_path / "ca", "hive")


@asynccontextmanager
async def files_of(cap: Cap) -> AsyncIterator[Files]:
    export = Export(cap, Policy.parse(["any read,write,ctl /**"]), AuditMemory(), TraceRing())
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_stream, export, theirs, "any")
        async with dial(ours) as files:
            yield files
        nursery.cancel_scope.cancel()


async def test_it_is_a_tree(ca: CA) -> None:
    @asynccontextmanager
    async def make() -> AsyncIterator[Node]:
        yield Cap(ca.directory)

    await check_tree(make)


async def test_a_watcher_hears_of_a_revoked_certificate(ca: CA, tmp_path: Path) -> None:
    leaf = ca.issue("spiffe://hive/user/ann", tmp_path / "ann")
    async with files_of(Cap(ca.directory)) as files:
        stream = await files.stream("/revseq")
        first = await stream.record()
        before = await files.read("/crl")
        await files.write("/ctl", f"revoke {leaf.serial_number:x} keyCompromise\n".encode())
        second = await stream.record()
        assert int(second.split(b"=")[1]) > int(first.split(b"=")[1])
        assert await files.read("/crl") != before
        assert b"revoked=1" in await files.read("/status")


async def test_a_watcher_hears_of_a_revoked_block_and_bad_ids_are_refused(ca: CA) -> None:
    async with files_of(Cap(ca.directory)) as files:
        stream = await files.stream("/revseq")
        await stream.record()
        await files.write("/ctl", b"block " + b"ab" * 32)
        await stream.record()
        assert (await files.read("/blocks")).strip() == b"ab" * 32
        refusals = {b"block xyz": "is no id", b"revoke zz": "is no serial", b"revoke 12": "12 is no"}
        for line, says in refusals.items():
            with pytest.raises(OSError, match=says):
                await files.write("/ctl", line)


async def test_what_others_change_in_the_directory_is_told(
    ca: CA, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    leaf = ca.issue("spiffe://hive/user/ann", tmp_path / "ann")
    cap = Cap(ca.directory)
    async with trio.open_nursery() as nursery, files_of(cap) as files:
        nursery.start_soon(cap.watch)
        stream = await files.stream("/revseq")
        await stream.record()
        CA(ca.directory).revoke(leaf.serial_number)
        with trio.fail_after(1):
            assert (await stream.record()).startswith(b"seq=")
        nursery.cancel_scope.cancel()


def test_minters_count_only_under_our_root_and_in_time(ca: CA, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    now = datetime.now(UTC)
    text = minters.certify(ca, key, [parse_grant("read /**")], timedelta(days=1), now)
    [issuer] = minters.read(text, [ca.root], now)
    assert issuer.key == key
    assert len(minters.read(text + "\n" + text, [ca.root], now)) == 2
    assert minters.read("", [ca.root], now) == []
    other = CA.create(tmp_path / "other", "hive")
    with pytest.raises(BadText, match="no root of ours"):
        minters.read(text, [other.root], now)
    assert minters.read(text, [ca.root], now + timedelta(days=4000)) == []
    assert minters.read(text, [ca.root], now, lambda issuer, serial: True) == []
    lines = text.splitlines()
    swapped = lines[-1][:-4] + ("AAAA" if lines[-1][-4:] != "AAAA" else "BBBB")
    with pytest.raises(BadText):
        minters.read("\n".join([*lines[:-1], swapped]), [ca.root], now)


def test_a_region_certifies_no_minter_and_neither_does_a_member(ca: CA, tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    now, rows = datetime.now(UTC), [parse_grant("read /**")]
    region = ca.region("eu", tmp_path / "eu")
    with pytest.raises(BadText, match="not the issuer of hive itself"):
        minters.read(minters.certify(region, key, rows, timedelta(days=1), now), [ca.root], now)
    ca.issue("spiffe://hive/user/ann", tmp_path / "a")
    member = load_pem_private_key((tmp_path / "a/key.pem").read_bytes(), None)
    assert isinstance(member, Ed25519PrivateKey)
    leaf = x509.load_pem_x509_certificate((tmp_path / "a/cert.pem").read_bytes())
    issuer = ca.shelf.issuer().certificate
    ders = [c.public_bytes(Encoding.DER) for c in (leaf, issuer)]
    made = Issuer(key, tuple(rows), 0, 2**40).certify(member.sign)
    text = write_parts([(minters.PART, msgspec.msgpack.encode((ders, made)))])
    with pytest.raises(BadText, match="is no authority"):
        minters.read(text, [ca.root], now)


def test_minters_outlive_a_rotation_of_the_issuer(ca: CA) -> None:
    key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    now = datetime.now(UTC)
    text = minters.certify(ca, key, [parse_grant("read /**")], timedelta(days=1), now)
    ca.rotate()
    assert minters.read(text, [ca.root], now)
