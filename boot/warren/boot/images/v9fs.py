"""The v9fs test image: Debian's kernel, busybox, and a first process that runs scripts for its host.

    kernel     the kernel as an ELF with a PVH entry
    initrd     busybox with its commands as links, the modules, and the program below as /init and /bin/probe
    cmdline    the kernel's command line
    probe      that program, static, which the host runs as well to relay connections

Tests mount our servers in it, with the 9P client that people have. What its first process does, the sources
in images/v9fs say. It has no Warren in it, so it is the same while Warren changes.
"""

from __future__ import annotations

import subprocess
import tempfile
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Final

import trio
from warren.boot.formats import initramfs
from warren.boot.images import inputs, packages
from warren.boot.images.linux import entered
from warren.boot.images.manifest import Input, Signer
from warren.boot.images.plan import Outputs, Pinned, Progress, Recipe, Wanted, digest, programs, tool
from warren.boot.images.sbom import Component
from warren.tree.errors import Refused

FLAGS: Final = ("-static", "-O1", "-s", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wl,--build-id=none")
_BUILDERS: Final = (
    "formats.initramfs", "images.linux", "images.packages", "images.plan", "images.sbom", "images.v9fs",
)  # fmt: skip
BUSYBOX: Final = "bin/busybox"
_WORDS: Final = {"suite", "kernel", "packages", "modules", "cmdline", "programs"}
_ETC: Final = {"etc/passwd": b"root:x:0:0:root:/tmp:/bin/sh\n", "etc/group": b"root:x:0:\n"}


class V9fsPlan(Pinned):
    """What is built of a recipe of this kind."""

    def __init__(self, recipe: Recipe, folder: Path, store: Path, signer: Signer) -> None:
        super().__init__(recipe, folder, store, signer)
        said = recipe.said
        if said.keys() != _WORDS:
            raise Refused(422, f"{recipe.name}.toml: a v9fs recipe has {', '.join(sorted(_WORDS))}")
        self.wanted = Wanted(said["suite"], tuple(said["packages"]), said["kernel"], ())

    @cached_property
    def sources(self) -> dict[str, bytes]:
        """What is compiled, read once."""
        found = sorted((self.folder / str(self.recipe.said["programs"])).glob("*.c"))
        return {path.name: path.read_bytes() for path in found}

    @cached_property
    def inputs(self) -> list[Input]:
        found = [Input(digest(body), "source", name) for name, body in self.sources.items()]
        used = programs(*_BUILDERS)
        return [*self.pins(), *found, *used, tool("gcc"), tool("ld")]

    async def make(self, progress: Progress) -> Outputs:
        fetched = await inputs.fetched(self.lock, self.store, progress)
        return await trio.to_thread.run_sync(self._made, fetched, progress)

    def _made(self, fetched: Path, progress: Progress) -> Outputs:
        progress("compiling the first process")
        probe = self._compiled()
        held: dict[str, Path] = {pin.name: fetched / pin.sha256 for pin in self.lock.pins}
        (kernel,) = (path for name, path in held.items() if name.startswith("linux-image-"))
        vmlinuz = next(body for name, body in packages.members(kernel) if name.startswith("boot/vmlinuz-"))
        box = next(body for name, body in packages.members(held["busybox-static"]) if name == BUSYBOX)
        progress("packing")
        modules = list(packages.modules(kernel, self.recipe.said["modules"]))
        order = "".join(f"/modules/{name}.ko\n" for name, _ in modules)
        entries = [
            initramfs.directory("mnt"), *(initramfs.file(name, body) for name, body in _ETC.items()),
            initramfs.file("init", probe, 0o755), initramfs.file("bin/probe", probe, 0o755),
            initramfs.file(BUSYBOX, box, 0o755),
            *(initramfs.link(f"bin/{command}", "busybox") for command in _commands(box)),
            initramfs.file("modules/order", order.encode()),
            *(initramfs.file(f"modules/{name}.ko", body) for name, body in modules),
        ]  # fmt: skip
        itself = Component("application", "probe", version("warren-9p"), "", digest(probe), ("Apache-2.0",))
        return {
            "kernel": ("vmlinux", entered(vmlinuz)),
            "initrd": ("initrd", initramfs.cpio(entries)),
            "cmdline": ("cmdline", f"{self.recipe.said['cmdline']}\n".encode()),
            "probe": ("probe", probe),
            "sbom": ("sbom.json", self.bill(fetched, [itself], self.inputs)),
        }

    def _compiled(self) -> bytes:
        with tempfile.TemporaryDirectory(prefix="warren-image-") as work:
            for name, body in self.sources.items():
                (Path(work) / name).write_bytes(body)
            command = ["gcc", *FLAGS, "-o", "probe", *sorted(self.sources)]
            done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=120)
            if done.returncode:
                raise Refused(422, f"gcc refused the first process: {done.stderr.strip()[:300]}")
            return (Path(work) / "probe").read_bytes()


def _commands(box: bytes) -> list[str]:
    """The commands of a busybox, which lists them itself."""
    with tempfile.TemporaryDirectory(prefix="warren-image-") as work:
        program = Path(work) / "busybox"
        program.write_bytes(box)
        program.chmod(0o755)
        listed = subprocess.run([program, "--list"], capture_output=True, text=True, check=True, timeout=20)
    return sorted(set(listed.stdout.split()) - {"busybox"})
