"""Power cuts, replayed: what a process did to its files is recorded, and any legal remainder is rebuilt.

What was written since the last sync of a file may be lost, each write by itself or torn at a sector; so may a
name that was made, moved or removed since the last sync of the directory. What was synced is there. The worst
moment is the one before a sync, for then most is outstanding and all was said that could be said before it.
"""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple

SECTOR = 512
SHIM = Path(__file__).with_name("power.c")


class Op(NamedTuple):
    """One record of the shim."""

    kind: str
    name: str
    at: int
    data: bytes


@dataclass(eq=False)
class File:
    """What is on the disk of it for certain, and what may be."""

    sure: bytearray = field(default_factory=bytearray)
    pending: list[Op] = field(default_factory=list)


class Moment(NamedTuple):
    """A moment at which the power may go: what was said by then, and what is and may be on the disk."""

    said: list[str]
    names: dict[str, File]
    moves: list[tuple[Op, File]]
    files: list[tuple[File, bytes, list[Op]]]

    @property
    def outstanding(self) -> int:
        return len(self.moves) + sum(len(pending) for _, _, pending in self.files)


def shim(folder: Path) -> Path:
    """The preloaded library, built."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "a C compiler is missing: apt-get install gcc libc6-dev"
    built = folder / "power.so"
    subprocess.run(
        [compiler, "-O2", "-Wall", "-shared", "-fPIC", "-o", built, SHIM, "-ldl", "-lpthread"], check=True
    )
    return built


def recorded(program: str, folder: Path) -> list[Op]:
    """What PROGRAM, in Python, did to the files in a directory that is its argument."""
    library, log, where = shim(folder), folder / "power.log", folder / "work"
    where.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program, str(where)],
        env={"LD_PRELOAD": str(library), "POWER_DIR": str(where), "POWER_LOG": str(log), "PATH": "/usr/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return list(_read(log.read_bytes()))


def _read(body: bytes) -> Iterator[Op]:
    at = 0
    while at < len(body):
        kind, named, length, place = struct.unpack_from("<cHIQ", body, at)
        at += 15
        name = body[at : at + named].decode()
        yield Op(kind.decode(), name, place, body[at + named : at + named + length])
        at += named + length


def moments(ops: list[Op]) -> Iterator[Moment]:
    """Each moment before a sync, and the end."""
    sure: dict[str, File] = {}
    now: dict[str, File] = {}
    moves: list[tuple[Op, File]] = []
    said = ""
    for op in [*ops, Op("D", "", 0, b"")]:
        if op.kind in "SD":
            files = {id(f): f for f in (*sure.values(), *now.values(), *(file for _, file in moves))}
            held = [(f, bytes(f.sure), list(f.pending)) for f in files.values()]
            yield Moment(said.splitlines() if said.endswith("\n") else [], dict(sure), list(moves), held)
        match op.kind:
            case "A":
                said += op.data.decode()
            case "C":
                now[op.name] = File()
                moves.append((op, now[op.name]))
            case "U":
                moves.append((op, now.pop(op.name)))
            case "R":
                file = now.pop(op.name)
                now[op.data.decode()] = file
                moves.append((op, file))
            case "W" | "T":
                now[op.name].pending.append(op)
            case "S":
                file = now[op.name]
                for written in file.pending:
                    _apply(file.sure, written)
                file.pending = []
            case "D":
                sure, moves = dict(now), []


def remainders(moment: Moment, all_to: int, samples: int, dice: random.Random) -> Iterator[dict[str, bytes]]:
    """What may be found after it: every subset of up to ALL_TO outstanding writes, else SAMPLES of them."""
    count = moment.outstanding
    if count <= all_to:
        for kept in product((False, True), repeat=count):
            yield _rebuilt(moment, iter(kept), None)
        return
    yield _rebuilt(moment, iter([True] * count), None)
    yield _rebuilt(moment, iter([False] * count), None)
    for _ in range(samples):
        share = dice.choice((0.1, 0.5, 0.9))
        yield _rebuilt(moment, iter([dice.random() < share for _ in range(count)]), dice)


def _rebuilt(moment: Moment, kept: Iterator[bool], dice: random.Random | None) -> dict[str, bytes]:
    names = dict(moment.names)
    for op, file in moment.moves:
        if next(kept):
            match op.kind:
                case "C":
                    names[op.name] = file
                case "U":
                    names.pop(op.name, None)
                case "R":
                    names.pop(op.name, None)
                    names[op.data.decode()] = file
    bodies: dict[int, bytes] = {}
    for file, sure, pending in moment.files:
        body = bytearray(sure)
        for op in pending:
            if next(kept):
                _apply(body, op)
            elif dice is not None and op.kind == "W" and dice.random() < 0.3:
                for at in range(0, len(op.data), SECTOR):
                    if dice.random() < 0.5:
                        _apply(body, op._replace(at=op.at + at, data=op.data[at : at + SECTOR]))
        bodies[id(file)] = bytes(body)
    return {name: bodies[id(file)] for name, file in names.items()}


def _apply(body: bytearray, op: Op) -> None:
    if op.kind == "T":
        del body[op.at :]
        body.extend(bytes(op.at - len(body)))
    else:
        body.extend(bytes(max(0, op.at - len(body))))
        body[op.at : op.at + len(op.data)] = op.data
