"""What is in a package: Debian packages, wheels, and a kernel's modules. Nothing is installed.

    for entry in debian(path)              files and links of a .deb, without directories
    for name, body in wheel(path)          the files that a wheel installs
    for name, body in modules(path, wanted)    of a kernel's package, in loading order
    licences(pin, path)                    what a package says of itself
"""

from __future__ import annotations

import io
import lzma
import re
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from warren.boot.formats import initramfs
from warren.boot.formats.initramfs import Entry
from warren.boot.images.inputs import Pin
from warren.tree.errors import Refused

PATIENCE: Final = 600.0


def members(deb: Path) -> Iterator[tuple[str, bytes]]:
    """The plain files of a Debian package."""
    for entry in debian(deb):
        if stat.S_ISREG(entry.mode):
            yield entry.name, entry.body


def debian(deb: Path) -> Iterator[Entry]:
    """What is in a Debian package, without its directories; a hard link is a file of its own."""
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], capture_output=True, timeout=PATIENCE)
    if done.returncode:
        raise Refused(422, f"dpkg-deb: {done.stderr.decode(errors='replace').strip()[:200]}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            if member.issym():
                yield initramfs.link(name, member.linkname)
            elif member.isfile() or member.islnk():
                body = tar.extractfile(member)
                assert body is not None
                yield initramfs.file(name, body.read(), 0o755 if member.mode & 0o111 else 0o644)


def wheel(path: Path) -> Iterator[tuple[str, bytes]]:
    """The files that a wheel installs, below where packages lie."""
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            inner = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", name)
            if not name.endswith("/") and ".data/" not in inner:
                yield inner, archive.read(name)



def modules(deb: Path, wanted: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """The modules wanted and what they need, in loading order, as they were signed; not what is built in."""
    files: dict[str, bytes] = {}
    for name, body in members(deb):
        if found := re.search(r"/([^/]+)\.ko(\.xz)?$", name):
            files[found[1].replace("-", "_")] = lzma.decompress(body) if found[2] else body
    loaded: set[str] = set()

    def load(name: str) -> Iterator[tuple[str, bytes]]:
        if name in loaded or name not in files:
            return
        loaded.add(name)
        for need in _needs(files[name]):
            yield from load(need)
        yield name, files[name]

    for name in wanted:
        yield from load(name)
    if not loaded:
        raise Refused(422, f"the kernel has none of the modules {', '.join(wanted)}; correct the recipe")


def _needs(module: bytes) -> list[str]:
    """What a module says that it depends on, hard and soft."""
    hard = re.search(rb"\0depends=([^\0]*)\0", module)
    names = hard[1].decode().split(",") if hard else []
    for soft in re.findall(rb"\0softdep=pre: ([^\0]*)\0", module):
        names += soft.decode().split(" post:")[0].split()
    return [name.replace("-", "_") for name in names if name]


def licences(pin: Pin, path: Path) -> tuple[str, ...]:
    """The licences that a package names, in its own words."""
    if pin.kind == "wheel":
        said = (body for name, body in wheel(path) if name.endswith(".dist-info/METADATA"))
        head = next(said, b"").decode(errors="replace").partition("\n\n")[0]
        found = re.search(r"^License-Expression: (.+)$|^License: (\S.{0,60})$", head, re.MULTILINE)
        return (found[1] or found[2],) if found else ()
    if pin.name.startswith("linux-image-"):
        return ("GPL-2.0-only",)  # its copyright file is a history of who wrote what
    wanted = f"usr/share/doc/{pin.name}/copyright"
    text = next((body for name, body in members(path) if name == wanted), b"").decode(errors="replace")
    return tuple(sorted(set(re.findall(r"^License: (\S+)\s*$", text, re.MULTILINE))))
