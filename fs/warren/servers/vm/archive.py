"""What a machine did, as one file: `export`."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from warren.tree import Refused
from warren.tree.report import attributes

if TYPE_CHECKING:
    from warren.servers.vm.machine import Machine


async def leave(machine: Machine, name: str) -> str:
    """Write NAME.tar into the machine's out/; what was written. Cancelled: it is not there."""
    target = f"{name}.tar"
    texts = {
        "status": attributes(machine.status()).encode(), "console": bytes(machine.console.data),
        "events": b"".join(machine.events.kept), "ns": machine.asked.namespace().encode(),
    }  # fmt: skip
    shelves = {"in": machine.inputs, "out": machine.output}
    needs = sum(map(len, texts.values())) + sum(shelf.used for shelf in shelves.values())
    needs += 1024 * (len(texts) + sum(len(shelf.files) for shelf in shelves.values())) + 10240
    machine.output.room(needs)
    kept = machine.output.add(target)
    kept.size_now = needs  # its room is taken from now on, whoever else writes meanwhile
    files = [
        (f"{top}/{file}", shelf.folder / file)
        for top, shelf in shelves.items()
        for file in sorted(shelf.files)
        if file != target
    ]
    path, now = machine.output.folder / target, int(machine.vm.clock.now())
    try:
        await trio.to_thread.run_sync(_write, path, texts, files, now)
        size = path.stat().st_size
    except BaseException as e:
        if machine.output.files.get(target) is kept:
            machine.output.unlink(target, None)
        if isinstance(e, OSError) and not isinstance(e, Refused):
            raise Refused(502, f"the archive was not written: {e}") from None
        raise
    kept.size_now = size
    return f"out/{target} size={kept.size_now}"


def _write(path: Path, texts: dict[str, bytes], files: list[tuple[str, Path]], now: int) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in texts.items():
            tar.addfile(_entry(name, len(data), now), io.BytesIO(data))
        for name, source in files:
            with open(source, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                tar.addfile(_entry(name, size, now), file)


def _entry(name: str, size: int, now: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = size, now, 0o600
    return entry
