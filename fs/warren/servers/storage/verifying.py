"""A look at all of a blob: is it what was stored?

A read finds only the damage that it runs into. This finds all of it, and writes the list of a blob's chunks
anew where only that is wrong.
"""

import hashlib
import os
from typing import Final

import trio
from warren.servers.storage.reading import Reads
from warren.servers.storage.shelf import CHUNK, Damaged
from warren.servers.storage.turns import Turns
from warren.tree import Refused

_AT_ONCE: Final = 64 * CHUNK  # between two looks whether it was cancelled
_SHOWN: Final = 16


async def verify(reads: Reads, turns: Turns, hex: str) -> str:
    """Hash a whole blob; a refusal names the chunks that are corrupt. Cancelled has no effect."""
    shelf = reads.shelf
    fd = shelf.open_plain(hex)
    if fd is None:
        raise Refused(404, f"sha256:{hex} is not here")
    whole, size, digests = hashlib.sha256(), 0, bytearray()
    try:
        while data := await trio.to_thread.run_sync(os.read, fd, _AT_ONCE):
            await trio.to_thread.run_sync(whole.update, data)
            view, size = memoryview(data), size + len(data)
            for at in range(0, len(view), CHUNK):
                digests += hashlib.sha256(view[at : at + CHUNK]).digest()
    finally:
        os.close(fd)
    if whole.hexdigest() != hex:
        raise reads.complain(hex, _corrupt(reads, hex, bytes(digests)))
    says = f"sha256:{hex} is whole, bytes={size}"
    try:
        os.close(shelf.open(hex).fd)
    except Damaged as e:
        async with turns(hex):  # or gc may take the blob and leave the list
            if shelf.find(hex) is not None:
                await trio.to_thread.run_sync(shelf.relist, hex, size, bytes(digests))
        return f"{says}; {e}, and was written anew"
    return says


def _corrupt(reads: Reads, hex: str, found: bytes) -> str:
    """What is wrong, as closely as the list of the chunks can tell."""
    try:
        fd, _, wanted = reads.shelf.open(hex)
    except Damaged as e:
        return f"it is corrupt, and {e}"
    except FileNotFoundError:
        return "it was corrupt, and is gone by now"
    os.close(fd)
    chunks = range(0, len(wanted), 32)
    bad = [str(at // 32) for at in chunks if found[at : at + 32] != wanted[at : at + 32]]
    more = " and more" if len(bad) > _SHOWN else ""
    return f"{len(bad)} of {len(chunks)} chunks are corrupt: {' '.join(bad[:_SHOWN])}{more}"
