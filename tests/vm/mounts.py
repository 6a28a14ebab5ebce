"""A mount in a guest, beside the directory that the host serves there.

`Place` is what a case is given: `p.host` is the directory here, `p.mnt` the
same directory in the guest, `p.other` the same once more through a second
session, so that locks meet in the server and not in the guest's kernel.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from .guest import Guest, address

LINUX, PLAIN = "9p2000.L", "9p2000"


@dataclass(frozen=True)
class Place:
    guest: Guest
    dialect: str
    host: Path
    mnt: str
    other: str

    async def sh(self, script: str, limit: float = 30.0) -> str:
        """Run a script inside the mount; it must succeed.  Its output, without the last newline."""
        return await in_guest(self.guest, f"cd {self.mnt} && {{ {script}\n}}", limit)

    async def refused(self, script: str, limit: float = 30.0) -> str:
        """Run a script inside the mount; it must fail.  What it said."""
        done = await self.guest.run(f"cd {self.mnt} && {{ {script}\n}}", limit)
        assert done.status != 0, f"{script!r} succeeded: {done.text}"
        return done.text.rstrip("\n")


async def in_guest(guest: Guest, script: str, limit: float = 30.0) -> str:
    done = await guest.run(script, limit)
    assert done.status == 0, f"{script!r} gave status {done.status}: {done.text}"
    return done.text.removesuffix("\n")


@asynccontextmanager
async def mounted(
    guest: Guest, at: str, *, server: int = 0, dialect: str = LINUX, aname: str = ""
) -> AsyncIterator[str]:
    """Mount server number `server` at the guest's path `at`, and unmount it after."""
    options = f"trans=tcp,port=564,version={dialect},uname=root,access=any,msize=262144,cache=none,nodevmap"
    if aname:
        options += f",aname={aname}"
    await in_guest(guest, f"mkdir -p {at} && mount -t 9p -o {options} {address(server)} {at}")
    try:
        yield at
    finally:
        await guest.run(f"umount {at} || umount -l {at}")


@asynccontextmanager
async def place(
    guest: Guest, host: Path, *, server: int = 0, dialect: str = LINUX, aname: str = ""
) -> AsyncIterator[Place]:
    """The served directory `host`, mounted twice."""
    async with (
        mounted(guest, "/mnt/one", server=server, dialect=dialect, aname=aname) as mnt,
        mounted(guest, "/mnt/two", server=server, dialect=dialect, aname=aname) as other,
    ):
        yield Place(guest, dialect, host, mnt, other)
