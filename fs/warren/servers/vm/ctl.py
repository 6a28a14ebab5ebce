"""The verbs of one machine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from warren.servers.vm.archive import leave
from warren.servers.vm.asked import LEAST_MEM, MOST_CPUS, MOST_MEM, file_of, name_of, share_of, size
from warren.servers.vm.backend import Disk
from warren.servers.vm.machine import OWN
from warren.servers.vm.qcow2 import MOST
from warren.tree import Caller, Ctl, Duration, Refused, verb

if TYPE_CHECKING:
    from warren.servers.vm.machine import Machine


class MachineCtl(Ctl):
    """What a machine is to be, and what it is to do."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    # What it is to be

    @verb
    async def image(self, name: str) -> None:
        """Boot the image of that NAME; it is built first if need be."""
        self.machine.must("image")
        there = sorted(self.machine.vm.images.names())
        if name not in there:
            raise Refused(404, f"there is no image {name}; there are {', '.join(there) or 'none'}")
        self.machine.asked.image = name

    @verb
    async def kernel(self, file: str, caller: Caller, initrd: str = "") -> None:
        """Boot a kernel, with an initrd: a FILE of in/, or of this host for local callers."""
        machine = self.machine
        machine.must("kernel")
        found = {"kernel": file_of(file, machine.inputs, caller)}
        if initrd:
            found["initrd"] = file_of(initrd, machine.inputs, caller)
        machine.asked.kernel, machine.asked.files = file, found

    @verb
    async def recipe(self, name: str) -> None:
        """Be a machine of that kind; an image has one of its own."""
        self.machine.must("recipe")
        self.machine.vm.recipe(name)
        self.machine.asked.recipe = name

    @verb
    async def arg(self, *words: str) -> None:
        """Put WORDS behind the kernel's command line."""
        self.machine.must("arg")
        self.machine.asked.add_words(words)

    @verb
    async def name(self, name: str) -> None:
        """Be called NAME, which is where the tree that it serves will stand in /n."""
        self.machine.must("name")
        self.machine.vm.free_name(name_of(name), self.machine)
        self.machine.asked.name = name

    @verb
    async def mem(self, size_: str) -> None:
        """Have that much memory, such as 512M."""
        self.machine.must("mem")
        self.machine.asked.mem = size(size_, "mem", LEAST_MEM, MOST_MEM)

    @verb
    async def cpus(self, count: int) -> None:
        """Have that many processors."""
        self.machine.must("cpus")
        if not 1 <= count <= MOST_CPUS:
            raise Refused(400, f"a machine has from 1 to {MOST_CPUS} processors")
        self.machine.asked.cpus = count

    @verb
    async def disk(self, what: str, caller: Caller, ro: bool = False) -> None:
        """Have a disk: an empty one of a size such as 64M, or what a file has; writes are never kept."""
        machine = self.machine
        machine.must("disk")
        if re.fullmatch(r"\d+[KMGT]?", what, re.ASCII):
            machine.asked.add_disk(Disk(None, size(what, "disk", 512, MOST)))
        else:
            machine.asked.add_disk(Disk(file_of(what, machine.inputs, caller), 0, ro))

    @verb
    async def share(self, path: str, *rights: str, caller: Caller) -> None:
        """Let the guest use PATH of this role, with RIGHTS that you have too (read, if none is said)."""
        machine = self.machine
        machine.must("share")
        owner = machine.vm.standing(caller)
        machine.asked.shares.append(share_of(path, rights, owner, OWN, machine.asked.shares))

    @verb
    async def role(self, file: str) -> None:
        """Have the guest run the role manifest FILE of in/; FILE.sig beside it is its signature."""
        self.machine.must("role")
        if self.machine.inputs.path(file.removeprefix("in/")) is None:
            raise Refused(404, f"there is no {file} in the machine's in/; put it there first")
        self.machine.asked.role = file.removeprefix("in/")

    @verb
    async def limit(
        self, *, cpu: float = 0.0, mem: str = "", disk: str = "", wall: Duration = Duration(0)  # noqa: B008
    ) -> None:
        """Have no more of the host than that: cpu=1 mem=256M disk=1G wall=60s."""
        self.machine.must("limit")
        self.machine.asked.limit(cpu, mem, disk, wall)

    @verb
    async def backend(self, name: str) -> None:
        """Be run by that back end; see the file backends."""
        self.machine.must("backend")
        there = self.machine.vm.backends.all
        if name not in there:
            raise Refused(404, f"there is no back end {name}; there are {', '.join(there)}")
        self.machine.asked.backend = name

    @verb
    async def stay(self) -> None:
        """Go on when the image has done what it does."""
        self.machine.must("stay")
        self.machine.asked.stays = True

    # What it is to do

    @verb
    async def start(self) -> None:
        """Begin. It goes on by itself: read events, console or wait."""
        self.machine.start()

    @verb
    async def stop(self) -> None:
        """Ask the guest to end; after ten seconds it is ended."""
        await self.machine.stop()

    @verb
    async def kill(self) -> None:
        """End it now."""
        await self.machine.kill()

    @verb
    async def pause(self) -> None:
        """Let its processors stand still."""
        await self.machine.pause()

    @verb
    async def resume(self) -> None:
        """Let them go on."""
        await self.machine.resume()

    @verb
    async def reset(self) -> None:
        """Press its reset button: the guest begins again."""
        await self.machine.reset()

    @verb
    async def snapshot(self, name: str) -> None:
        """Keep its memory, processors and disks under NAME, as they are now."""
        await self.machine.snapshot(_plain(name))

    @verb
    async def restore(self, name: str) -> None:
        """Be as at the snapshot NAME; what is open on its channel is not."""
        await self.machine.restore(_plain(name))

    @verb
    async def tell(self, *words: str) -> None:
        """Give the guest a verb, as its image understands it: say, exit, stop."""
        self.machine.tell(" ".join(words))

    @verb
    async def export(self, name: str = "export") -> str:
        """Leave an archive NAME.tar of in/, out/, status, events and console in out/."""
        return await leave(self.machine, _plain(name))

    @verb
    async def keep(self) -> None:
        """Stay when nobody holds it any more, until finish."""
        self.machine.vm.keep_machine(self.machine.id)

    @verb
    async def finish(self) -> None:
        """Be kept no longer: it ends with the last who holds it."""
        self.machine.vm.finish_machine(self.machine.id)


def _plain(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name, re.ASCII):
        raise Refused(400, f"{name!r} is no name; letters, digits, - _ and . are, up to 64 of them")
    return name
