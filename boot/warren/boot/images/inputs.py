"""What images are made of that others made: pinned, fetched once, and looked at before use.

    lock = Lock.parse(text)                    images/linux.lock: every package, by version, sum and size
    folder = await fetched(lock, store)        each of them as FOLDER/SHA256; what is there is not fetched
    lock = await resolved(suite, packages, kernel, wheels, store)      what they are today

Debian packages come from the archive that this machine's apt is set up with, by mmdebstrap's extract variant:
it lends an apt of its own, signatures checked, and touches nothing of this machine's. Wheels come by pip, as
it is set up. No address is written down here, so a mirror or a cache serves as well: what comes is known by
its sum, whoever sent it.

An archive forgets. A version that is pinned and gone is told as `Gone`, and the way out is a new lock: then
it is another image, and everybody can see what changed in it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote

import trio
from warren.tree.errors import Refused

Progress = Callable[[str], None]

FIRST: Final = "warren lock 1"
MAX_TEXT: Final = 1 << 16
LARGEST: Final = 512 << 20  # of one package
PATIENCE: Final = 600.0
TAGS: Final = (
    "--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=abi3",
    "--abi=none", "--platform=manylinux_2_34_x86_64", "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux_2_17_x86_64", "--platform=manylinux2014_x86_64", "--platform=any",
)  # fmt: skip
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:~_!-]{0,200}")
_SUM: Final = re.compile(r"[0-9a-f]{64}")


class Gone(Refused):
    """What is pinned is not to be had any more."""


class Pin(NamedTuple):
    """One package. KIND is deb or wheel; FILE is how a wheel is called, `-` for a Debian package."""

    kind: str
    name: str
    version: str
    sha256: str
    size: int
    file: str = "-"

    def __str__(self) -> str:
        return " ".join(map(str, self))


@dataclass(frozen=True)
class Lock:
    """Every package of an image, and the suite of the Debian ones."""

    suite: str
    pins: tuple[Pin, ...]

    @property
    def text(self) -> str:
        rows = sorted(self.pins)
        return "".join(f"{line}\n" for line in (FIRST, f"suite {self.suite}", *rows))

    @classmethod
    def parse(cls, text: str) -> Lock:
        """The lock that TEXT is; Refused, naming the line, if it is none."""
        lines = text.split("\n")
        suite = lines[1].removeprefix("suite ") if lines[1:2] else ""
        # A suite is a word on the command line of a tool that does what it is told.
        if len(text) > MAX_TEXT or lines[0] != FIRST or not _WORD.fullmatch(suite) or lines[1] == suite:
            raise Refused(422, f"no lock begins so; its lines are {FIRST!r}, suite, and one a package")
        pins: list[Pin] = []
        for number, line in enumerate(lines[2:], 3):
            if not line:
                continue
            match line.split(" "):
                case [("deb" | "wheel") as kind, name, version, digest, size, file] if (
                    all(_WORD.fullmatch(word) for word in (name, version))
                    and (file == "-" or _WORD.fullmatch(file)) and _SUM.fullmatch(digest)
                    and size.isdecimal() and 0 < int(size[:12]) <= LARGEST and len(size) < 12
                ):  # fmt: skip
                    pins.append(Pin(kind, name, version, digest, int(size), file))
                case _:
                    raise Refused(422, f"line {number} of the lock pins no package: {line[:80]!r}")
        if len({pin[:2] for pin in pins}) != len(pins):
            raise Refused(422, "a package is in the lock twice; lock the image again")
        return cls(suite, tuple(pins))


async def fetched(lock: Lock, store: Path, progress: Progress = lambda said: None) -> Path:
    """The folder where every package of LOCK lies under its sum. Gone; or Refused for what is lacking here.

    Cancelled leaves what was fetched whole.
    """
    folder = store / "inputs"
    os.makedirs(folder, exist_ok=True)
    missing = [pin for pin in lock.pins if not _there(folder, pin)]
    debs, wheels = ([pin for pin in missing if pin.kind == kind] for kind in ("deb", "wheel"))
    with tempfile.TemporaryDirectory(dir=store, prefix="new-") as work:
        if debs:
            progress(f"fetching {len(debs)} Debian packages, {_mib(debs)} MiB")
            wanted = " ".join(shlex.quote(f"{pin.name}={pin.version}") for pin in debs)
            await _by_apt(lock.suite, f"apt-get -q download {wanted}", Path(work) / "debs")
        if wheels:
            progress(f"fetching {len(wheels)} wheels, {_mib(wheels)} MiB")
            listed = "".join(f"{p.name}=={p.version} --hash=sha256:{p.sha256}\n" for p in wheels)
            (Path(work) / "wanted").write_text(listed)
            asked = ["--no-deps", "--require-hashes", "-r", str(Path(work) / "wanted")]
            await _by_pip(asked, Path(work) / "wheels")
        await trio.to_thread.run_sync(_take, Path(work), folder, missing)
    return folder


async def resolved(
    suite: str, packages: Sequence[str], kernel: str, wheels: Sequence[str], store: Path
) -> Lock:
    """Everything as it is in the archives now: the packages named, what the wheels need, and the kernel that
    the package KERNEL stands for, if one is named. Cancelled leaves nothing."""
    os.makedirs(store, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix="new-") as work:
        names = " ".join(map(shlex.quote, packages))
        newest = (
            f"apt-cache show --no-all-versions {shlex.quote(kernel)} | "
            "sed -n 's/^Depends: \\(linux-image-[^ ,]*\\).*/\\1/p'"
        )
        debs, found = Path(work) / "debs", Path(work) / "wheels"
        asked = f"k=$({newest}); names=\"{names} ${{k:?no such kernel}}\""
        script = asked if kernel else f"names=\"{names}\""
        await _by_apt(suite, f"{script}; apt-get -q download $names", debs)
        if wheels:
            await _by_pip(list(wheels), found)
        return Lock(suite, tuple(await trio.to_thread.run_sync(_pins, debs, found)))


def _pins(debs: Path, wheels: Path) -> list[Pin]:
    pins = []
    for path in sorted(debs.iterdir()):
        if path.suffix == ".deb":
            name, version, _ = unquote(path.stem).split("_")
            pins.append(Pin("deb", name, version, *_sum(path)))
    for path in sorted(wheels.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        pins.append(Pin("wheel", name.replace("_", "-").lower(), version, *_sum(path), path.name))
    return pins


def _take(work: Path, folder: Path, wanted: Iterable[Pin]) -> None:
    """Keep what is what was wanted, each under its sum; Gone or Refused for the first that is not there."""
    came = {_sum(path): path for path in sorted(work.rglob("*")) if path.is_file()}
    named = {unquote(path.name).split("_")[0]: path for path in came.values() if path.suffix == ".deb"}
    for pin in wanted:
        path = came.get((pin.sha256, pin.size))
        if path is None:
            other = named.get(pin.name)
            what = f"came with another sum ({_sum(other)[0][:16]}…)" if other else "did not come"
            raise Gone(502, f"{pin.name} {pin.version} is pinned and {what}; {_AGAIN}")
        os.replace(path, folder / pin.sha256)


_AGAIN: Final = "pin what there is now: warren image lock NAME"


def _there(folder: Path, pin: Pin) -> bool:
    """Whether it was fetched, and is still what it was."""
    path = folder / pin.sha256
    try:
        return path.stat().st_size == pin.size and _sum(path)[0] == pin.sha256
    except FileNotFoundError:
        return False


def _sum(path: Path) -> tuple[str, int]:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _mib(pins: Iterable[Pin]) -> int:
    return (sum(pin.size for pin in pins) >> 20) + 1


# The tools


async def _by_apt(suite: str, script: str, into: Path) -> None:
    """Run SCRIPT in INTO, where `apt-get` and `apt-cache` know SUITE alone."""
    for tool in ("mmdebstrap", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Refused(503, f"there is no {tool} here, which fetches packages; apt-get install {tool}")
    os.mkdir(into)
    source = await _source()
    hook = f"cd {shlex.quote(str(into))} && export APT_CONFIG=\"$MMDEBSTRAP_APT_CONFIG\" && {script}"
    # A suite of backports is never chosen by itself, and is no whole one either.
    release, chosen = suite.removesuffix("-backports"), f'--aptopt=APT::Default-Release "{suite}"'
    command = ["mmdebstrap", "--quiet", "--variant=extract", "--format=null", f"--extract-hook={hook}"]
    await _ask([*command, chosen, release, "/dev/null", *(source % name for name in {release: 0, suite: 0})])


async def _source() -> str:
    """A line for apt, but for the suite: the Debian archive that this machine uses, and who signs it."""
    fields = "$(ORIGIN)|$(LABEL)|$(REPO_URI)|$(SIGNED_BY)"
    said = await _ask(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"])
    for line in said.splitlines():
        origin, label, uri, signed_by = (line.split("|") + [""] * 4)[:4]
        if (origin, label) == ("Debian", "Debian"):
            options = "[arch=amd64]"
            if re.fullmatch(r"/[\w./-]+", signed_by):
                options = f"[arch=amd64 signed-by={signed_by}]"
            return f"deb {options} {uri.replace('%', '%%')} %s main"
    said = "apt is not set up with a Debian archive here, or its lists were never fetched"
    raise Refused(503, f"{said}; set one up, then apt-get update")


async def _by_pip(asked: list[str], into: Path) -> None:
    os.mkdir(into)
    pip = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    await _ask([*pip, "download", "--prefer-binary", f"--dest={into}", *TAGS, *asked])


async def _ask(command: list[str]) -> str:
    """What a tool says; what it complains of is a refusal."""
    done = None
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        with trio.move_on_after(PATIENCE):
            done = await trio.run_process(
                command, check=False, capture_stdout=True, capture_stderr=True, stdin=subprocess.DEVNULL,
                env=environment,
            )  # fmt: skip
    except FileNotFoundError:
        raise Refused(503, f"there is no {command[0]} here; install it") from None
    if done is None:
        raise Refused(504, f"{command[0]} took more than {PATIENCE:g} s")
    if done.returncode:
        raise _refusal(command[0], done.stderr.decode(errors="replace"))
    return done.stdout.decode(errors="replace")


def _refusal(tool: str, said: str) -> Refused:
    """A tool's complaint, as a line of ours."""
    debs, wheels = r"Version '(\S+)' for '(\S+)' was not found", r"No matching distribution found for (\S+)"
    gone = re.search(f"{debs}|{wheels}", said)
    if gone:
        what = f"{gone[2]} {gone[1]}" if gone[2] else gone[3]
        return Gone(502, f"{what} is not to be had any more; {_AGAIN}")
    told = [line for line in said.splitlines() if line.startswith(("E:", "ERROR:"))] or said.splitlines()
    return Refused(502, f"{Path(tool).name}: {' '.join(told)[:400] or 'it failed without a word'}")
