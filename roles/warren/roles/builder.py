"""Images for the machines of a role, built beside it.

    images = Beside(Images.at(state), state)   as `warren.boot.images.image`, but `build` is another process
    python -m warren.roles.builder STATE NAME        that process: a line for each step

To build an image is minutes of work for a processor, and a role that did it itself would answer nobody
meanwhile. The process ends when its standard input does: with the role that wanted it, and with whoever gives
up waiting. An image appears whole or not at all, so it may be ended at any time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Final

import trio
from warren.boot.images.image import Image, Images
from warren.boot.images.shelf import Verdict
from warren.tree import Refused, describe

LONGEST: Final = 4096  # bytes of a line
GRACE: Final = 5.0  # seconds to end what it has begun
_SAYS_NO: Final = "refused "


class Beside:
    """The images of one place."""

    def __init__(self, images: Images, state: Path) -> None:
        self.images, self.state = images, state

    def names(self) -> Sequence[str]:
        return self.images.names()

    def find(self, name: str) -> Image | None:
        return self.images.find(name)

    def latest(self, name: str) -> Image | None:
        return self.images.latest(name)

    def verify(self, image: Image) -> Verdict:
        return self.images.verify(image)

    async def build(self, name: str, progress: Callable[[str], None] = lambda said: None) -> Image:
        """That image, built by another process. Refused: what it said. Cancelled ends it."""
        line = [sys.executable, "-P", "-m", __name__, str(self.state), name]
        pipe = subprocess.PIPE
        process = await trio.lowlevel.open_process(line, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT)
        said = "it said nothing"
        try:
            assert process.stdout is not None
            async for said in _lines(process.stdout):
                if not said.startswith(_SAYS_NO):
                    progress(said)
            status = await process.wait()
        finally:
            await _end(process)
        if said.startswith(_SAYS_NO):
            code, _, detail = said.removeprefix(_SAYS_NO).partition(" ")
            raise Refused(int(code), detail)
        # Not `find`: what it is made of may have changed since, and this one is good.
        found = await trio.to_thread.run_sync(self.images.latest, name) if status == 0 else None
        if found is None:
            raise Refused(502, f"building {name} ended with {status}: {said}")
        return found


async def _end(process: trio.Process) -> None:
    """It has ended, and took along what it had begun."""
    with trio.CancelScope(shield=True):
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.aclose()
        with trio.move_on_after(GRACE):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()
        await process.stdout.aclose()


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncIterator[str]:
    rest = b""
    while data := await stream.receive_some(4096):
        *whole, rest = (rest + data).split(b"\n")
        rest = rest[:LONGEST]
        for line in whole:
            yield line[:LONGEST].decode("utf-8", "replace")


# The other process


async def _build(state: Path, name: str) -> int:
    code = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_until_nobody_wants_it, nursery.cancel_scope)
        try:
            await Images.at(state).build(name, _tell)
            code = 0
        except OSError as e:
            _, number, line = describe(e)
            _tell(f"{_SAYS_NO}{number} {line.partition(': ')[2] or line}")
        nursery.cancel_scope.cancel()
    return code


async def _until_nobody_wants_it(scope: trio.CancelScope) -> None:
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        while await stream.receive_some(64):
            pass
    scope.cancel()


def _tell(said: str) -> None:
    print(" ".join(said.split()), flush=True)


if __name__ == "__main__":
    sys.exit(trio.run(_build, Path(sys.argv[1]), sys.argv[2]))
