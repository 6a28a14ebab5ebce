"""Debian's generic kernels and busybox, fetched without installing anything.

`kernel("6.1")` comes from the release Debian 12 and `kernel("6.12")` from its
backports.  The archive's address is read from this machine's own apt
configuration and only the suite is exchanged; apt checks the signatures as it
does for every package.  What is fetched stays below the cache directory, so
the network is used once per series.  To get a newer kernel, delete the cache.

`Unreachable` means that the archive could not be asked or no longer carries
the package.  It is not a failure of what is tested: tests report "not run".
"""

import fcntl
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SUITES = {"6.1": "bookworm", "6.12": "bookworm-backports"}
WANTED = ("virtio_mmio", "virtio_pci", "virtio_console", "virtio_net", "9pnet_fd", "9pnet_virtio", "9p")

_XZ, _ZSTD = b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"


class Unreachable(Exception):
    """The package could not be fetched; the text says why."""


@dataclass(frozen=True)
class Kernel:
    release: str
    image: Path
    modules: tuple[Path, ...]
    """Uncompressed modules, each after all that it needs."""


def kernel(series: str) -> Kernel:
    """The newest kernel of `series` in its suite, and the modules a 9P guest needs."""
    key = hashlib.sha256(repr((series, SUITES[series], WANTED, 2)).encode()).hexdigest()[:12]

    def build(into: Path) -> None:
        pattern = rf"linux-image-{re.escape(series)}\.[0-9.]+[-+][0-9a-z.]+-amd64"
        root = _package(SUITES[series], pattern, into / "package")
        (source,) = (root / "boot").glob("vmlinuz-*")
        release = source.name.removeprefix("vmlinuz-")
        (into / "release").write_text(release)
        (into / "image").write_bytes(_uncompressed_image(source.read_bytes()))
        (tree,) = (root / "lib/modules").iterdir()
        (into / "modules").mkdir()
        for number, (name, body) in enumerate(_closure(tree, WANTED)):
            (into / "modules" / f"{number:02}-{name}.ko").write_bytes(body)
        shutil.rmtree(root)

    place = cached(f"linux-{series}-{key}", build)
    modules = tuple(sorted((place / "modules").iterdir()))
    return Kernel((place / "release").read_text(), place / "image", modules)


def busybox() -> Path:
    """A static busybox."""

    def build(into: Path) -> None:
        root = _package(SUITES["6.1"], "busybox-static", into / "package")
        shutil.copy(root / "bin/busybox", into / "busybox")
        shutil.rmtree(root)

    return cached("busybox-static", build) / "busybox"


def cached(name: str, build: Callable[[Path], None]) -> Path:
    """The cache's directory `name`, built whole or not at all, by one process at a time."""
    with _cache_locked() as cache:
        place = cache / name
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=cache, prefix="new-") as work:
                new = Path(work) / name
                new.mkdir()
                build(new)
                new.rename(place)
        return place


@contextmanager
def _cache_locked() -> Iterator[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "warren" / "vm"
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield cache


def _package(suite: str, pattern: str, into: Path) -> Path:
    """Unpack the newest package of `suite` whose whole name matches `pattern`."""
    into.mkdir()
    apt = _private_apt(suite, into)
    # Backports come and go, and apt by itself takes a missing suite for a warning.
    _ask(["apt-get", *apt, "update"])
    found = _ask(["apt-cache", *apt, "search", "--names-only", f"^{pattern}$"])
    names = [line.split(" ")[0] for line in found.splitlines()]
    names = [name for name in names if re.fullmatch(pattern, name)]
    if not names:
        raise Unreachable(f"{suite} carries no package named like {pattern}")
    newest = max(names, key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)])
    _ask(["apt-get", *apt, "download", newest], cwd=into)
    (archive,) = into.glob("*.deb")
    root = into / "root"
    subprocess.run(["dpkg-deb", "-x", archive, root], check=True, timeout=120)
    return root


def _private_apt(suite: str, into: Path) -> list[str]:
    """Options that give apt `suite` alone, with lists and a cache below `into`."""
    uri, signed_by = _archive()
    source = f"Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\nArchitectures: amd64\n"
    if signed_by:
        source += f"Signed-By: {signed_by}\n"
    (into / "one.sources").write_text(source)
    for needed in ("lists/partial", "cache/archives/partial"):
        (into / needed).mkdir(parents=True)
    settings = {
        "Dir::Etc::sourcelist": into / "one.sources",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State::lists": into / "lists",
        "Dir::Cache": into / "cache",
        "APT::Architecture": "amd64",
        "APT::Update::Error-Mode": "any",
        "Acquire::Retries": 1,
        "Acquire::http::Timeout": 20,
        "Acquire::https::Timeout": 20,
        "Acquire::Languages": "none",
        # Apt's own user cannot enter a private cache directory.
        "APT::Sandbox::User": "root",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _archive() -> tuple[str, str]:
    """The address of the main Debian archive that this machine uses, and its keyring."""
    fields = "$(ORIGIN)|$(CODENAME)|$(SUITE)|$(REPO_URI)|$(SIGNED_BY)"
    targets = _ask(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"])
    for line in targets.splitlines():
        origin, codename, name, uri, signed_by = (line.split("|") + [""] * 5)[:5]
        # Updates and backports share the archive; security has one of its own.
        if origin == "Debian" and "security" not in codename + name + uri:
            if signed_by.startswith("/"):
                return uri, signed_by
            keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
            return uri, str(keyring) if keyring.exists() else ""
    raise Unreachable("apt is not configured with a Debian archive, or its lists were never fetched")


def _ask(command: list[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    except FileNotFoundError:
        raise Unreachable(f"there is no {command[0]} here") from None
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{command[0]} {command[-1]} took more than 300 s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:"))]
        raise Unreachable(f"{command[0]} {command[-1]}: {' '.join(lines) or done.stderr.strip()}")
    return done.stdout


def _uncompressed_image(bzimage: bytes) -> bytes:
    """The ELF inside a bzImage where we can unpack it, else the bzImage itself.

    QEMU enters the ELF through its PVH note.  Emulated, unpacking the kernel
    costs seconds; here it costs a fraction of one, once.
    """
    setup_sectors = bzimage[0x1F1] or 4
    start = (setup_sectors + 1) * 512 + int.from_bytes(bzimage[0x248:0x24C], "little")
    payload = bzimage[start : start + int.from_bytes(bzimage[0x24C:0x250], "little")]
    elf = b""
    if payload.startswith(_XZ):
        # Four bytes of length follow the stream, which only LZMADecompressor tolerates.
        elf = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(_ZSTD) and shutil.which("zstd"):
        done = subprocess.run(["zstd", "-dcq"], input=payload[:-4], capture_output=True, timeout=60)
        elf = done.stdout if done.returncode == 0 else b""
    return elf if elf.startswith(b"\x7fELF") else bzimage


def _closure(tree: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """The wanted modules and all they need, in loading order; what is built in is skipped."""
    files = {re.sub(r"\.ko(\.\w+)?$", "", path.name).replace("-", "_"): path for path in tree.rglob("*.ko*")}
    loaded: set[str] = set()

    def load(name: str) -> Iterator[tuple[str, bytes]]:
        if name in loaded or name not in files:
            return
        loaded.add(name)
        path = files[name]
        body = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        for need in _needs(body):
            yield from load(need)
        yield name, body

    for name in wanted:
        yield from load(name)


def _needs(module: bytes) -> list[str]:
    """What a module's own .modinfo says it depends on, hard and soft."""
    hard = re.search(rb"\x00depends=([^\x00]*)\x00", module)
    names = hard[1].decode().split(",") if hard else []
    for soft in re.findall(rb"\x00softdep=pre: ([^\x00]*)\x00", module):
        names += soft.decode().split(" post:")[0].split()
    return [name.replace("-", "_") for name in names if name]
