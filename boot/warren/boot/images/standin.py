"""The stand-in and the root task: compiled from kernel-shim/, and looked at before they are an image."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Final

import trio
from warren.boot.formats import elf
from warren.boot.images.manifest import Input, Signer, sum_of
from warren.boot.images.plan import Outputs, Progress, Recipe, digest, programs, tool
from warren.boot.images.sbom import Component, sbom
from warren.boot.sel4 import abi
from warren.tree.errors import Refused

PATIENCE: Final = 120.0


class StandinPlan:
    """The stand-in kernel and the root task, compiled from kernel-shim/."""

    def __init__(self, recipe: Recipe, folder: Path, store: Path, signer: Signer) -> None:
        if recipe.said:
            raise Refused(422, f"{recipe.name}.toml: a standin recipe says nothing but kind and about")
        self.recipe = recipe

    @cached_property
    def sources(self) -> dict[str, bytes]:
        """What is compiled, read once; what a build left there is none of it."""
        shim = abi.shim_folder()
        suffixes = (".c", ".h", ".S", ".ld", ".toml")
        found = (p for p in sorted(shim.rglob("*")) if p.suffix in suffixes or p.name == "Makefile")
        plain = (p for p in found if p.is_file() and "out" not in p.relative_to(shim).parts)
        return {p.relative_to(shim).as_posix(): p.read_bytes() for p in plain}

    @cached_property
    def inputs(self) -> list[Input]:
        found = [
            Input(digest(body), "source", f"kernel-shim/{name}") for name, body in self.sources.items()
        ]
        tools = [tool(name) for name in ("gcc", "ld", "objcopy")]
        used = programs("sel4.abi", "formats.elf", "images.plan", "images.sbom", "images.standin")
        return [*found, *tools, *used]

    async def make(self, progress: Progress) -> Outputs:
        progress("compiling the stand-in kernel and the root task")
        for name in ("make", "gcc", "awk"):
            if shutil.which(name) is None:
                raise Refused(503, f"there is no {name} here, which compiles kernel-shim; install it")
        with tempfile.TemporaryDirectory(prefix="warren-image-") as work:
            out, sources = Path(work) / "out", Path(work) / "shim"
            for name, body in self.sources.items():
                (sources / name).parent.mkdir(parents=True, exist_ok=True)
                (sources / name).write_bytes(body)
            programs = os.environ.get("PATH", os.defpath)
            environment = {"PATH": programs, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
            done = None
            with trio.move_on_after(PATIENCE):
                done = await trio.run_process(
                    ["make", "-s", "-C", str(sources), f"OUT={out}"], check=False, capture_stdout=True,
                    capture_stderr=True, stdin=subprocess.DEVNULL, env=environment,
                )  # fmt: skip
            if done is None:
                raise Refused(504, f"make took more than {PATIENCE:g} s")
            if done.returncode:
                said = done.stderr.decode(errors="replace").strip().splitlines()
                raise Refused(422, f"kernel-shim does not compile: {' '.join(said)[:300]}")
            kernel = (out / "standin.elf").read_bytes()
            numbers = abi.Abi.standin(abi.load_toml(sources / "abi.toml"))
            root = abi.patch((out / "root.elf").read_bytes(), numbers)
        for what, data, rules in (("standin", kernel, elf.KERNEL), ("root", root, elf.ROOT_TASK)):
            if faults := elf.check(data, rules):
                raise Refused(422, f"{what}.elf: {faults[0].name}: {faults[0].text}")
        parts = [
            Component("firmware", name, version("warren-9p"), "", digest(body), ("Apache-2.0",))
            for name, body in (("standin", kernel), ("root-task", root))
        ]
        text = sbom(self.recipe.name, version("warren-9p"), parts, sum_of(self.inputs))
        return {
            "kernel": ("standin.elf", kernel),
            "root": ("root.elf", root),
            "sbom": ("sbom.json", text.encode()),
        }
