"""A server's tree as a client has it: served over memory streams, reached by the native client."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from trio.testing import memory_stream_pair
from warren.mount import Files, dial
from warren.serve.export import Export
from warren.serve.stream import serve_stream
from warren.tree import Node, split

from tests.wire import EVERYTHING, export_of


@asynccontextmanager
async def reached(export: Export, subject: str = "any", aname: str = "") -> AsyncIterator[Files]:
    """A client of EXPORT, attached at ANAME."""
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_stream, export, theirs, subject)
        async with dial(ours, aname) as files:
            yield files
        await trio.aclose_forcefully(ours)


@asynccontextmanager
async def files_of(
    root: Node, allow: Sequence[str] = EVERYTHING, subject: str = "any"
) -> AsyncIterator[Files]:
    """A client of ROOT."""
    async with reached(export_of(root, allow), subject) as files:
        yield files


def attributes_of(text: bytes) -> dict[str, str]:
    """`key=value` lines, or words, as a mapping."""
    return dict(word.split("=", 1) for line in text.decode().splitlines() for word in split(line))
