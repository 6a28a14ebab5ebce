"""What a machine may use of the host, and how that is enforced.

    cage = Cage.made_at(groups(), "warren-1a2b-7", bounds)    control groups, where they can be made
    cage.prefix                                               the words to put before the emulator's
    cage.bitten(status)                                       the limit that ended it, as the kernel counted
    await cage.remove()

    cpu     processors, such as 0.5: by a control group; else the emulator is tied to that many, rounded up
    mem     bytes of the host, the emulator's own included: by a control group; else the watch ends it
    disk    bytes of all that the machine leaves in its folder: the watch ends it; no file gets much longer
    wall    seconds from its start: whoever runs the machine ends it

The watch looks every LOOK seconds. A limit that bites is named: a machine that was ended by one says which.
Control groups of version 1 are one for each controller, below the one that we are in if that is to be seen,
else at the top. In version 2 our own group must have been handed to us: where it has processes of its own,
the kernel gives its children no controllers, and the other ways are used.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
from warren.tree import Refused

LOOK: Final = 0.25
_OVER: Final = 4 << 20  # a file may be so much longer than the limit, or the watch would never see it pass
_TRIES, _AGAIN = 100, 0.005
_PERIOD: Final = 100_000  # microseconds in which a share of the processors is counted
_ENTER: Final = (
    'ulimit -c 0; [ "$0" = 0 ] || ulimit -f "$0"; '
    'while [ "$1" != -- ]; do echo $$ > "$1" || exit 1; shift; done; shift; exec "$@"'
)
_SIGXFSZ: Final = -int(signal.SIGXFSZ)
_KILLED: Final = -int(signal.SIGKILL)


@dataclass(frozen=True)
class Bounds:
    """Nothing is 0: that is not limited."""

    cpu: float = 0.0
    mem: int = 0
    disk: int = 0
    wall: float = 0.0


@dataclass(frozen=True)
class Groups:
    """Where control groups can be made: for each controller its directory, and the version."""

    version: int
    where: Mapping[str, Path]

    def of(self, name: str) -> dict[str, Path]:
        return {controller: top / name for controller, top in self.where.items()}


NO_GROUPS: Final = Groups(0, {})


def groups(mounts: str = "/proc/self/mounts", ours: str = "/proc/self/cgroup") -> Groups:
    """What there is here."""
    where: dict[str, Path] = {}
    unified: Path | None = None
    for line in Path(mounts).read_text().splitlines():
        _, point, kind, options = line.split()[:4]
        if kind == "cgroup":
            for controller in {"cpu", "memory"} & set(options.split(",")):
                where[controller] = Path(point)
        elif kind == "cgroup2":
            unified = Path(point)
    in_them = {}
    for line in Path(ours).read_text().splitlines():
        _, names, path = line.split(":", 2)
        for controller in names.split(","):
            in_them[controller] = path.lstrip("/")
    if where:
        found = {c: _below(top, in_them.get(c, "")) for c, top in where.items()}
        found = {c: top for c, top in found.items() if os.access(top, os.W_OK)}
        return Groups(1, found) if found else NO_GROUPS
    if unified is None:
        return NO_GROUPS
    top = _below(unified, in_them.get("", ""))
    try:
        handed = set((top / "cgroup.controllers").read_text().split()) & {"cpu", "memory"}
        (top / "cgroup.subtree_control").write_text(" ".join(f"+{c}" for c in sorted(handed)))
    except OSError:
        return NO_GROUPS  # not handed to us, or with processes in it
    return Groups(2, dict.fromkeys(handed, top))


def _below(top: Path, path: str) -> Path:
    return top / path if path and (top / path).is_dir() else top


class Cage:
    """The limits of one machine."""

    def __init__(self, bounds: Bounds, made: Mapping[str, Path], version: int) -> None:
        self.bounds, self.made, self.version = bounds, made, version

    @classmethod
    def made_at(cls, where: Groups, name: str, bounds: Bounds) -> Cage:
        """Make the groups that BOUNDS need, as far as they can be had."""
        wanted = {c for c, bound in (("cpu", bounds.cpu), ("memory", bounds.mem)) if bound}
        made = {}
        try:
            for controller, path in where.of(name).items():
                if controller not in wanted:
                    continue
                path.mkdir(exist_ok=True)
                made[controller] = path
                for file, value in _settings(where.version, controller, bounds):
                    (path / file).write_text(value)
        except OSError as e:
            for path in made.values():
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise Refused(503, f"the limit cannot be set: {e}") from None
        return cls(bounds, made, where.version)

    @property
    def how(self) -> str:
        """By what means, for people."""
        return f"cgroup{self.version}" if self.made else "watch"

    @property
    def prefix(self) -> tuple[str, ...]:
        procs = sorted({str(path / "cgroup.procs") for path in self.made.values()})
        blocks = -(-(self.bounds.disk + _OVER) // 512) if self.bounds.disk else 0
        words: tuple[str, ...] = ("sh", "-c", _ENTER, str(blocks), *procs, "--")
        if self.bounds.cpu and "cpu" not in self.made:
            last = min(os.cpu_count() or 1, max(1, -int(-self.bounds.cpu // 1))) - 1
            words += ("taskset", "-c", f"0-{last}")
        return words

    def adopt(self, pid: int) -> None:
        """Put a process that is there already under the limits that are groups."""
        for path in self.made.values():
            with contextlib.suppress(ProcessLookupError):
                (path / "cgroup.procs").write_text(str(pid))

    def watch_mem(self, rss: int) -> bool:
        """Whether the watch has to end it for its memory."""
        return bool(self.bounds.mem) and "memory" not in self.made and rss > self.bounds.mem

    @property
    def throttled(self) -> int:
        """How often it had to wait for a processor that it may not have."""
        return _number(self.made.get("cpu"), "cpu.stat", "nr_throttled")

    def bitten(self, status: int | None) -> str:
        """The limit that ended an emulator with that status, if one did."""
        if status == _SIGXFSZ:
            return "disk"
        file = "memory.events" if self.version == 2 else "memory.oom_control"
        if status in (_KILLED, None) and _number(self.made.get("memory"), file, "oom_kill"):
            return "mem"
        return ""

    async def remove(self) -> None:
        """The groups are gone; every process in them has ended. Cancelled or not, it goes through."""
        await _remove(self.made.values())


def _settings(version: int, controller: str, bounds: Bounds) -> Iterable[tuple[str, str]]:
    quota = max(1000, int(bounds.cpu * _PERIOD))
    if controller == "cpu":
        if version == 2:
            return [("cpu.max", f"{quota} {_PERIOD}")]
        return [("cpu.cfs_period_us", str(_PERIOD)), ("cpu.cfs_quota_us", str(quota))]
    if version == 2:
        return [("memory.max", str(bounds.mem)), ("memory.swap.max", "0")]
    return [("memory.limit_in_bytes", str(bounds.mem))]


def _number(group: Path | None, file: str, key: str) -> int:
    if group is None:
        return 0
    try:
        lines = (group / file).read_text().splitlines()
    except OSError:
        return 0
    return next((int(words[1]) for words in map(str.split, lines) if words[0] == key), 0)


async def _remove(paths: Iterable[Path]) -> None:
    """A group whose last process was reaped a moment ago may still count it."""
    with trio.CancelScope(shield=True):
        for path in set(paths):
            for _ in range(_TRIES):
                try:
                    path.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    await trio.sleep(_AGAIN)
                else:
                    break


def leftovers(where: Groups, prefix: str) -> list[Path]:
    """Groups with names that begin so: of machines whose role was killed."""
    return [path for top in set(where.where.values()) for path in top.glob(f"{prefix}*") if path.is_dir()]


async def sweep(where: Groups, prefix: str) -> int:
    """End what is left in such groups, and remove them. How many there were."""
    found = leftovers(where, prefix)
    for path in found:
        with contextlib.suppress(OSError):
            for pid in (path / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
    await _remove(found)
    return len(found)


def disk_usage(folder: Path) -> int:
    """Bytes on the disk of all files below; what vanishes meanwhile counts nothing."""
    total = 0
    stack = [folder]
    while stack:
        with contextlib.suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(Path(entry.path))
                else:
                    with contextlib.suppress(OSError):
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total


__all__ = ["LOOK", "NO_GROUPS", "Bounds", "Cage", "Groups", "disk_usage", "groups", "leftovers", "sweep"]
