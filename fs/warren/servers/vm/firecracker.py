"""The back end `firecracker`: it is looked for, and never used.

Firecracker runs machines on a KVM that works, and on nothing else. Where this was written there is none, so
nothing of it could be tried, and what was never tried is not offered. /vm/backends says what of it is missing
here; where nothing is, it says that it is us who are missing.
"""

from __future__ import annotations

import shutil
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final, NoReturn

from warren.boot.machines.accel import Accelerators
from warren.servers.vm.backend import Place, Running, Spec, Works
from warren.tree import Refused

PROGRAM: Final = "firecracker"
_UNTRIED: Final = "Warren does not start it: that could not be tried yet. Use qemu-kvm"


class FirecrackerBackend:
    """Firecracker, as far as it is here."""

    def __init__(self, accelerators: Accelerators | None = None) -> None:
        self.name = "firecracker"
        self.accelerators = accelerators or Accelerators()

    async def probe(self) -> Works:
        """What is missing. Never works. Cancelled leaves nothing."""
        missing = []
        if shutil.which(PROGRAM) is None:
            missing.append(f"the program {PROGRAM} is not installed")
        if not (kvm := await self.accelerators.tried("kvm")).works:
            missing.append(f"it needs KVM: {kvm.why}")
        return Works(False, "; ".join(missing) or _UNTRIED)

    def started(self, spec: Spec, place: Place) -> AbstractAsyncContextManager[Running]:
        return _Never(self)


class _Never(AbstractAsyncContextManager[Running]):
    """What cannot be entered, and why."""

    def __init__(self, backend: FirecrackerBackend) -> None:
        self.backend = backend

    async def __aenter__(self) -> NoReturn:
        raise Refused(405, (await self.backend.probe()).why)

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        """Nobody was in."""


__all__ = ["FirecrackerBackend"]
