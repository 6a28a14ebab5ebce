"""A tree with every path that a row of the nine roles speaks of, and a way to try what a row is about."""

import errno
from pathlib import Path

from warren.p9.messages import Rlcreate, Rlopen, Runlinkat, Rwalk, Tlcreate, Tlopen, Tunlinkat, Twalk
from warren.servers.disk import Disk
from warren.tree import Ctl, Dir, Node, Text, verb

from tests.wire import O_RDONLY, O_RDWR, O_WRONLY, RefusedBy, Wire

# Where a role may leave files, in the role's own tree; everything else of the stand-in is made of words.
KEPT = (
    "srv", "sim/data", "telemetry", "input/mic", "input/cam", "mnt/face_match", "mnt/ui_in", "mnt/speak",
    "cuda", "testlog",
)  # fmt: skip


class Door(Ctl):
    def __init__(self, told: list[str]) -> None:
        self.told = told

    @verb
    def drain(self) -> None:
        """Take no new work."""
        self.told.append("drain")


class Place:
    """A tree with every path that a row of the nine speaks of, and what was done to it."""

    def __init__(self, directory: Path) -> None:
        self.told: list[str] = []
        self.directory = directory
        for name in KEPT:
            (directory / name).mkdir(parents=True)
        for name in (*KEPT, "sim", "input", "mnt"):
            (directory / name / "there").write_text("there")
        told = self.told
        ca = {
            "bundle": Text(lambda: "roots"), "crl": Text(lambda: "list", told.append),
            "csr": Text(lambda: "chain", told.append), "status": Text(lambda: "fine"), "ctl": Door(told),
        }  # fmt: skip
        one = {"proc": proc(told), "log": Dir({"events.log": Text(lambda: "seq=1")})}
        self.root = Trees(
            Disk(directory),
            {
                "dev": Dir({"time": Text(lambda: "now")}),
                "proc": proc(told),
                "role": Dir({"status": Text(lambda: "fine"), "ctl": Door(told)}),
                "log": Dir({"events.log": Text(lambda: "seq=1"), "ctl": Door(told)}),
                "cap": Dir({"crl": Text(lambda: "list", told.append), "ctl": Door(told)}),
                "mesh": Dir({"ca": Dir(ca)}),
                "n": Dir({"one": Dir(one)}),
            },
        )

    def state(self) -> tuple[list[str], list[tuple[str, str]]]:
        """All that could have changed."""
        files = sorted(p for p in self.directory.rglob("*") if p.is_file())
        return list(self.told), [(str(p), p.read_text()) for p in files]


class Trees(Dir):
    """Directories of words over those of a disk."""

    def __init__(self, disk: Node, entries: dict[str, Node]) -> None:
        super().__init__(entries)
        self.disk = disk

    def walk(self, name: str) -> Node:
        found = self.entries.get(name) or self.disk.walk(name)
        assert isinstance(found, Node)
        return found


def proc(told: list[str]) -> Dir:
    lifecycle = Dir({"state": Text(lambda: "ONLINE"), "ctl": Door(told)})
    return Dir({"lifecycle": lifecycle, "ns": Text(lambda: "mount")})


async def attempt(wire: Wire, op: str, path: str) -> None:
    """Do it, or raise RefusedBy."""
    names = [name for name in path.split("/") if name]
    walked = names[:-1] if op in ("create", "remove") else names
    reply = await wire.want(Rwalk, Twalk(0, 1, walked))
    if len(reply.qids) < len(walked):
        raise RefusedBy(errno.ENOENT, "it does not show itself")
    if op == "create":
        await wire.want(Rlcreate, Tlcreate(1, names[-1].replace("there", "new"), O_WRONLY, 0o644, 0))
    elif op == "remove":
        await wire.want(Runlinkat, Tunlinkat(1, names[-1], 0))
    else:
        await wire.want(Rlopen, Tlopen(1, {"write": O_WRONLY, "ctl": O_RDWR}.get(op, O_RDONLY)))
        if op in ("write", "ctl"):
            await wire.write(1, b"drain\n")
