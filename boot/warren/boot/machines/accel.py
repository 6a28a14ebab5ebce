"""Which accelerator a machine gets: the first that its recipe names and that a tiny image has run on.

    accelerators = Accelerators(state / "accelerators.json")
    await accelerators.choose(recipe)            "kvm", or "tcg" where nothing better works
    await accelerators.choose(recipe, "kvm")     that one, or Refused with why it does not work

QEMU's own interpreter, `tcg`, needs no trial. What was found of the others holds until this machine boots
again or QEMU is replaced; with a file, also for other processes.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Final

import trio
from warren.boot.machines.probe import QEMU, Verdict, accelerator
from warren.boot.machines.recipe import ACCELERATORS, Recipe
from warren.tree import Refused

INTERPRETER: Final = "tcg"


class Accelerators:
    """What was found of each."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.found: dict[str, Verdict] = {}
        self._one = trio.Lock()

    async def choose(self, recipe: Recipe, wanted: str = "") -> str:
        """The one to use. Cancelled: nothing more is known than before."""
        if wanted and wanted not in ACCELERATORS:
            raise Refused(400, f"there is no accelerator {wanted!r}; there are {', '.join(ACCELERATORS)}")
        for name in (wanted,) if wanted else recipe.accel:
            if name == INTERPRETER or (found := await self.tried(name)).works:
                return name
            if wanted:
                raise Refused(503, f"{name} does not work here: {found.why}; use accel=tcg")
        raise Refused(503, f"no accelerator of the recipe {recipe.name} works here; use accel=tcg")

    async def tried(self, name: str) -> Verdict:
        """Whether it works here. The first to ask waits for the trial."""
        async with self._one:
            if name not in self.found:
                self.found[name] = self._remembered().get(name) or await self._try(name)
            return self.found[name]

    async def _try(self, name: str) -> Verdict:
        found = await accelerator(name)
        if self.file is not None:
            known = {**self._remembered(), name: found}
            text = json.dumps({"here": _here(), "found": {n: list(v) for n, v in known.items()}})
            fresh = self.file.with_name(f"{self.file.name}.{os.getpid()}")
            try:
                fresh.write_text(text)
                os.replace(fresh, self.file)
            except OSError:
                fresh.unlink(missing_ok=True)  # it is found again next time
        return found

    def _remembered(self) -> dict[str, Verdict]:
        if self.file is None:
            return {}
        try:
            said = json.loads(self.file.read_text())
            if said["here"] != _here():
                return {}
            return {n: Verdict(bool(w), str(why), float(s)) for n, (w, why, s) in said["found"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}


def _here() -> str:
    """What changes when a finding may no longer hold."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = "-"
    where = shutil.which(QEMU)
    st = os.stat(where) if where else None
    return f"{boot} {st.st_ino} {st.st_mtime_ns}" if st else boot
