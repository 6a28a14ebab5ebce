"""The guest's root file system, as a cpio archive (newc) that we write ourselves.

    /init            probe.c and agent.c, one static program
    /bin/probe       the same
    /bin/busybox     with a link for each of its commands
    /modules/order   the modules' paths, in loading order
    /modules/*.ko
    /mnt             where the tests mount

The same inputs give the same bytes; the cache keeps one archive for each.
"""

import hashlib
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .kernel import Kernel, Unreachable, busybox, cached

_HERE = Path(__file__).parent
_SOURCES = (_HERE / "agent.c", _HERE / "probe.c")


@dataclass(frozen=True)
class Entry:
    name: str
    mode: int
    body: bytes = b""


def probe() -> Path:
    """The static program that is the guest's first process, its probe, and the host's relay."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise Unreachable("there is no C compiler for the guest's first process")
    flags = ["-static", "-O1", "-s", "-std=gnu11", "-Wall", "-Wextra", "-Werror"]
    key = hashlib.sha256(repr(flags).encode())
    for source in _SOURCES:
        key.update(source.read_bytes())

    def build(into: Path) -> None:
        command = [compiler, *flags, "-o", str(into / "probe"), *map(str, _SOURCES)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise RuntimeError(f"{compiler} refused the guest's first process:\n{done.stderr}")

    return cached(f"probe-{key.hexdigest()[:12]}", build) / "probe"


def initramfs(kernel: Kernel) -> Path:
    """The archive for a guest of `kernel`."""
    # Asked for before the archive is built: the cache's lock is not taken twice.
    program, box = probe(), busybox()
    inputs = [program, box, Path(__file__), *kernel.modules]
    key = hashlib.sha256(kernel.release.encode())
    for path in inputs:
        key.update(hashlib.sha256(path.read_bytes()).digest())

    def build(into: Path) -> None:
        (into / "initramfs").write_bytes(cpio(_contents(kernel, program, box)))

    return cached(f"initramfs-{kernel.release}-{key.hexdigest()[:12]}", build) / "initramfs"


def cpio(entries: list[Entry]) -> bytes:
    """A newc archive: inode numbers by position, owner root, time 0."""
    archive = bytearray()
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = [number, entry.mode, 0, 0, links, 0, len(entry.body), 0, 0, 0, 0, len(name), 0]
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        archive += bytes(-len(archive) % 4) + entry.body
        archive += bytes(-len(archive) % 4)
    return bytes(archive)


def _contents(kernel: Kernel, program: Path, box: Path) -> list[Entry]:
    listed = subprocess.run([box, "--list"], capture_output=True, text=True, check=True, timeout=20)
    entries = [Entry(name, stat.S_IFDIR | 0o755) for name in ("bin", "modules", "mnt", "etc")]
    # Some commands look up the user's name and home.
    entries.append(Entry("etc/passwd", stat.S_IFREG | 0o644, b"root:x:0:0:root:/tmp:/bin/sh\n"))
    entries.append(Entry("etc/group", stat.S_IFREG | 0o644, b"root:x:0:\n"))
    entries.append(Entry("init", stat.S_IFREG | 0o755, program.read_bytes()))
    entries.append(Entry("bin/probe", stat.S_IFREG | 0o755, program.read_bytes()))
    entries.append(Entry("bin/busybox", stat.S_IFREG | 0o755, box.read_bytes()))
    for command in sorted(set(listed.stdout.split()) - {"busybox"}):
        entries.append(Entry(f"bin/{command}", stat.S_IFLNK | 0o777, b"busybox"))
    order = "".join(f"/modules/{module.name}\n" for module in kernel.modules)
    entries.append(Entry("modules/order", stat.S_IFREG | 0o644, order.encode()))
    for module in kernel.modules:
        entries.append(Entry(f"modules/{module.name}", stat.S_IFREG | 0o644, module.read_bytes()))
    return entries
