"""The stand-in as a job, and a host for it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import trio
from warren.auth.rights import Policy
from warren.boot.harness.harness import Job
from warren.boot.machines import recipe
from warren.boot.machines.qemu import Boots
from warren.serve.export import Export
from warren.serve.stream import serve_stream
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing
from warren.tree import Node

from tests.sources import ROOT


def built(folder: Path) -> Path:
    """standin.elf and root.elf, made in FOLDER."""
    subprocess.run(["make", "-s", "-C", str(ROOT / "kernel-shim"), f"OUT={folder}"], check=True)
    return folder


def standin(folder: Path, name: str = "standin-microvm") -> Job:
    """The stand-in kernel with our root task."""
    return Job("standin", recipe.load(name), Boots(folder / "standin.elf", folder / "root.elf"))


async def serve(channel: trio.abc.Stream, own: Node) -> None:
    """Everything of OWN, to whoever is at the channel."""
    policy = Policy.parse(["any read,write,create,remove,ctl /**"])
    await serve_stream(Export(own, policy, AuditMemory(), TraceRing()), channel, "vm/1")
