"""Machines with real firmware and Secure Boot, for tests: Debian's kernel, busybox, and what they say.

    ran = await run(image(keys), keys, folder)     ->  verdict, what the serial line said, PCRs

The first process tells what it sees of lockdown and of the TPM, and then the marker.
"""

import base64
import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from socket import socketpair
from tempfile import TemporaryDirectory

import trio
from warren.boot.formats import esp, uki
from warren.boot.formats.initramfs import cpio, directory, file
from warren.boot.images import inputs
from warren.boot.images.packages import members
from warren.boot.secure import firmware, tpm

from tests.vm.images import built, images

MARKER = b"WARREN GUEST UP"
LIMIT = 180.0
COMMAND_LINE = "console=ttyS0 quiet panic=-1 nokaslr mitigations=off"
OSREL = "ID=warren\nNAME=Warren\nVERSION_ID=1\n"

_INIT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc none /proc; $b mount -t sysfs none /sys; $b mount -t devtmpfs none /dev
$b mount -t securityfs none /sys/kernel/security
echo "lockdown: $($b cat /sys/kernel/security/lockdown)"
echo "cmdline: $($b cat /proc/cmdline)"
echo "memory: $($b dd if=/dev/mem of=/dev/null bs=1 count=1 2>&1)"
log=/sys/kernel/security/tpm0/binary_bios_measurements
[ ! -e $log ] || $b base64 $log | $b sed 's/^/log: /'
echo "WARREN GUEST UP"
$b sleep 1000
"""

_UNLOCK = """
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/ioctl.h>
int main(int count, char **words)
{
    int file = count == 2 ? open(words[1], O_RDONLY) : -1, none = 0;
    if (file >= 0 && ioctl(file, FS_IOC_SETFLAGS, &none) == 0)
        return 0;
    perror("unlock");
    return 1;
}
"""


@dataclass
class Ran:
    verdict: firmware.Verdict
    serial: bytes
    seconds: float
    """From the start of QEMU to the verdict."""
    pcrs: dict[int, bytes] = field(default_factory=dict)

    def said(self, word: str) -> str:
        found = re.findall(rf"^{word}: (.*?)\r?$", self.serial.decode(errors="replace"), re.MULTILINE)
        return "\n".join(found)

    def log(self) -> bytes:
        """The firmware's measurements, as the guest had them."""
        return base64.b64decode(self.said("log"))


@cache
def _packages() -> dict[str, Path]:
    """Debian's kernel and busybox, by the names of their packages: those that the v9fs image is made of."""

    def fetched() -> dict[str, Path]:
        built("v9fs")  # which pins them anew if they are not to be had any more
        place = images()
        lock = place.pinned("v9fs")
        assert lock is not None
        folder = trio.run(inputs.fetched, lock, place.store)
        return {pin.name: folder / pin.sha256 for pin in lock.pins}

    with ThreadPoolExecutor(1) as aside:  # trio may run here already
        return aside.submit(fetched).result()


@cache
def _kernel() -> tuple[bytes, bytes]:
    """The bzImage, and the module that shows the firmware's variables."""
    [package] = [path for name, path in _packages().items() if name.startswith("linux-image-")]
    pattern = re.compile(r"boot/vmlinuz-.*|lib/modules/.*/efivarfs\.ko")
    [vmlinuz, module] = sorted(entry for entry in members(package) if pattern.fullmatch(entry[0]))
    return vmlinuz[1], module[1]


def linux() -> bytes:
    """The bzImage, EFI entry and all."""
    return _kernel()[0]


@cache
def _unlock() -> bytes:
    """A program that takes a file's flags away: a shell has no word for it."""
    with TemporaryDirectory(prefix="warren-secure-") as work:
        (Path(work) / "unlock.c").write_text(_UNLOCK)
        command = ["gcc", "-static", "-Os", "-s", "-o", "unlock", "unlock.c"]
        subprocess.run(command, cwd=work, check=True, capture_output=True, timeout=60)
        return (Path(work) / "unlock").read_bytes()


def initrd(init: str = _INIT) -> bytes:
    """With the module that shows the firmware's variables; it is signed, or the kernel would not have it."""
    [box] = [body for name, body in members(_packages()["busybox-static"]) if name == "bin/busybox"]
    programs = {"bin/busybox": box, "bin/unlock": _unlock(), "init": init.encode()}
    return cpio([
        directory("dev"), directory("proc"), directory("sys"), file("efivarfs.ko", _kernel()[1]),
        *(file(name, body, 0o755) for name, body in programs.items()),
    ])  # fmt: skip


@cache
def image(init: str = _INIT) -> bytes:
    """Not signed."""
    return uki.build(uki.stub(), linux(), initrd(init), COMMAND_LINE, OSREL)


def without_keys() -> bytes:
    """Variables of a machine that nobody owns: Secure Boot is off."""
    return firmware.VARIABLES.read_bytes()


def _disk(folder: Path, efi: bytes) -> Path:
    (folder / "tpm").mkdir(mode=0o700, parents=True)
    disk = folder / "esp"
    disk.write_bytes(esp.build({esp.BOOT: efi}))
    return disk


async def run(
    efi: bytes, variables: bytes, folder: Path, *, measured: tuple[int, ...] = (), limit: float = LIMIT
) -> Ran:
    """Boot it until there is a verdict. With `measured`, beside a TPM whose PCRs are read in the end."""
    disk = await trio.to_thread.run_sync(_disk, folder, efi)
    ours, theirs = socketpair()
    async with AsyncExitStack() as stack:
        stack.enter_context(theirs)
        serial = await stack.enter_async_context(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        line = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-accel", "tcg", "-cpu", "max", "-m", "512",
            "-chardev", f"socket,id=serial,fd={theirs.fileno()}", "-serial", "chardev:serial",
            *firmware.machine(variables, disk, folder),
        ]  # fmt: skip
        fds = [theirs.fileno()]
        chip = None
        if measured:
            chip = await stack.enter_async_context(tpm.started(folder / "tpm"))
            line += chip.arguments
            fds.append(chip.fd)
        # `timeout` outlives a test that was killed, and ends a machine that sits at the firmware's prompt.
        guard = ["timeout", "--signal=KILL", str(int(limit) + 30), "nice", "-n", "5"]
        begun = time.monotonic()
        process = subprocess.Popen(  # noqa: ASYNC220  # its group is killed below, whatever happens
            [*guard, *line],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=fds,
            start_new_session=True,
        )
        theirs.close()
        told = bytearray()
        try:
            with trio.move_on_after(limit):
                while firmware.seen(bytes(told), MARKER) is None:
                    more = await serial.receive_some(65536)
                    if not more:
                        break
                    told += more
            seconds = time.monotonic() - begun
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(process.wait)
        pcrs = await chip.pcrs(*measured) if chip is not None else {}
    return Ran(firmware.verdict(bytes(told), MARKER), bytes(told), seconds, pcrs)
