"""What is made of what was asked: a spec, its limits, and the tree that its guest has for itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from warren.boot.machines.guest import Guest
from warren.servers.vm.backend import Spec
from warren.servers.vm.limits import Bounds

if TYPE_CHECKING:
    from warren.servers.vm.images import Built
    from warren.servers.vm.machine import Machine

USUAL_MEM: Final = 256 << 20
OVERHEAD: Final = 1280 << 20  # of the emulator itself, its translated code above all


def spec_of(machine: Machine, built: Built | None) -> Spec:
    """The machine to be started. Words of its own image go before those that were asked for."""
    asked = machine.asked
    recipe = asked.recipe or (built.recipe if built is not None else "")
    files = {**(built.files if built is not None else {}), **asked.files}
    words = [built.cmdline] if built is not None and built.cmdline else []
    named = built is not None and built.named
    if named:
        words.append(f"warren.name={machine.label}")
    return Spec(
        name=machine.label, mem=asked.mem or (machine.vm.recipe(recipe).mem if recipe else USUAL_MEM),
        cpus=asked.cpus or 1, recipe=recipe, kernel=files.get("kernel"), initrd=files.get("initrd"),
        cmdline=" ".join([*words, *asked.words]), disks=tuple(asked.disks), export=named,
    )  # fmt: skip


def bounds_of(machine: Machine, spec: Spec) -> Bounds:
    """What was asked for, and where nothing was, what protects the host."""
    given = machine.asked.bounds
    return Bounds(given.cpu, given.mem or spec.mem + OVERHEAD, machine.disk_most, given.wall)


def guest_of(machine: Machine, on_report: Callable[[Mapping[str, str]], None]) -> Guest:
    """Its own tree, with the role that it is to run if there is one."""
    name = machine.asked.role
    machine.output.size = machine.disk_most
    return Guest(
        role=machine.inputs.text(name), signature=machine.inputs.text(f"{name}.sig"),
        inputs=machine.inputs.seen, output=machine.output, on_report=on_report,
    )  # fmt: skip
