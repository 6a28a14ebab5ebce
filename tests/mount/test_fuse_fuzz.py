"""Requests as no kernel sends them: each is answered once, and what is asked properly then works."""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from warren.mount.fuse import messages as m
from warren.servers.demo import Demo
from warren.servers.disk import Disk
from warren.tree import Dir, Node

from tests.mount.kernel import SILENT, Kernel, session_at
from tests.wire import EVERYTHING, listened

ROUNDS = 120
OPCODES = [*sorted(m.REQUESTS), 0, 7, 19, 47, 52, 999, 2**32 - 1]
EDGES = [0, 1, 2, 3, 4095, 4096, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


class Mutator:
    """Requests near to real ones: known nodes and files, edges in numbers, cut and lengthened bodies."""

    def __init__(self, seed: int, kernel: Kernel) -> None:
        self.r = random.Random(seed)
        self.kernel = kernel
        self.unique = 1 << 40

    def request(self) -> bytes:
        r, session = self.r, self.kernel.session
        opcode = r.choice(OPCODES)
        if opcode in (m.INIT, m.DESTROY):
            opcode = m.LOOKUP
        body = bytearray(self.body(opcode))
        for _ in range(r.choice((0, 0, 1, 3))):
            if body:
                body[r.randrange(len(body))] = r.randrange(256)
        shape = r.random()
        if shape < 0.1:
            del body[r.randrange(len(body) + 1) :]
        elif shape < 0.15:
            body += r.randbytes(r.randrange(64))
        node = r.choice([*session.nodes.by_id, 0, 2**64 - 1])
        self.unique += 2
        length = m.HEAD.size + len(body)
        extensions = r.choice((0,) * 9 + (r.randrange(1 << 16),))
        return m.HEAD.pack(length, opcode, self.unique, node, 0, 0, os.getpid(), extensions, 0) + body

    def body(self, opcode: int) -> bytes:
        r, session = self.r, self.kernel.session
        shape = m.REQUESTS.get(opcode)
        if shape is None:
            return r.randbytes(r.randrange(80))
        values: list[object] = []
        names = ["hello", "ctl", "events", "recv", "clone", "dev", "errstr", "disk", "f", "new", "..", "a/b"]
        for field, kind in zip(shape.cls._fields, shape.kinds, strict=True):
            if kind == "name":
                values.append(r.choice([*names, "\udcff", "x" * 300]))
            elif kind == "data":
                values.append(r.randbytes(r.choice((0, 1, 16, 100_000))))
            elif field == "fh":
                values.append(r.choice([*range(1, len(session.opens) + 3), 2**64 - 1]))
            elif field in ("newdir", "oldnode"):
                values.append(r.choice(list(session.nodes.by_id)))
            else:
                top = {"H": 16, "I": 32, "i": 31, "Q": 64, "q": 63}[kind]
                values.append(r.choice([e for e in EDGES if e < 2**top]))
        return shape.pack(shape.cls._make(values))


def tree(folder: Path) -> Node:
    demo = Demo()
    (folder / "d").mkdir()
    (folder / "d/f").write_text("stored")
    return Dir({**demo.entries, "disk": Disk(str(folder / "d"))})


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_any_request_is_answered_once_and_the_mount_goes_on(seed: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        trio.run(_fuzz, seed, Path(name))


async def _fuzz(seed: int, folder: Path) -> None:
    said: list[str] = []
    async with listened(tree(folder), f"unix!{folder / 'sock'}", EVERYTHING) as service:
        async with session_at(service.address, tell=said.append) as kernel:
            await kernel.begin()
            await kernel.lookup("disk/f")
            mutator = Mutator(seed, kernel)
            for _ in range(ROUNDS):
                raw = mutator.request()
                await kernel.send_raw(raw)
                while len(kernel.waiting) > 40:
                    await _settle(kernel)
            while kernel.waiting:
                await _settle(kernel)
            assert not kernel.session.jobs
            assert kernel.session.nodes.root.id in kernel.session.nodes.by_id
            node = await kernel.lookup("hello")
            fh = (await kernel.open(node.nodeid)).fh
            assert await kernel.read(fh, node.nodeid)
    assert not [text for text in said if "defect" in text]


async def _settle(kernel: Kernel) -> None:
    """Interrupt all that waits, and hear one answer."""
    for unique in list(kernel.waiting):
        await kernel.interrupt(unique)
    await kernel.listen()


def test_what_is_not_even_a_header_is_passed_over() -> None:
    async def run(folder: Path) -> None:
        said: list[str] = []
        async with listened(Demo(), f"unix!{folder / 'sock'}", EVERYTHING) as service:
            async with session_at(service.address, tell=said.append) as kernel:
                await kernel.begin()
                for raw in (b"x", b"x" * 39, b"\0" * 40, b"\xff" * 100):
                    await kernel.sock.send(raw)
                await kernel.lookup("hello")
        assert len(said) == 4

    with tempfile.TemporaryDirectory() as name:
        trio.run(run, Path(name))


def test_requests_without_an_answer_are_those_that_the_kernel_expects_none_to() -> None:
    assert set(SILENT) == {m.FORGET, m.BATCH_FORGET, m.INTERRUPT}
