"""A TPM for a machine: swtpm, a process beside QEMU, that lives as long as its block.

    async with started(folder) as tpm:
        QEMU is given tpm.arguments and inherits tpm.fd
        ... when it is gone, by SIGKILL ...
        await tpm.pcrs(0, 4, 7)     what the firmware measured, from the TPM itself

The two speak over a socket pair, so there is no name that others could connect to. Our end of it stays open
when QEMU goes, and with it the TPM's memory; what is in it then was put there before, and nothing inside the
machine had a hand in the reading. A QEMU that ends by itself tells the TPM to end too, and then there is
nothing to be read: kill it first.

The kernel kills swtpm when the process that started it ends. The folder, for its state, is the caller's.
"""

from __future__ import annotations

import array
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio
from warren.tree import Refused

SWTPM: Final = "swtpm"
PATIENCE: Final = 5.0
_POLL: Final = 0.02
_SET_DATA_FD: Final = 0x10
_PCR_READ: Final = 0x17E
_NO_SESSIONS: Final = 0x8001
_SHA256: Final = 0x000B
# If the parent is another by now, ours had died before its death was asked about.
_ORPHAN: Final = '[ "$PPID" = "$0" ] && exec "$@"; exit 1'


def lacking() -> str:
    """"" if a TPM can be had here, else how to get it."""
    gone = next((tool for tool in (SWTPM, "setpriv") if shutil.which(tool) is None), None)
    return f"there is no {gone}; apt-get install {'swtpm' if gone == SWTPM else 'util-linux'}" if gone else ""


class Tpm:
    def __init__(self, ours: socket.socket, folder: Path) -> None:
        self._ours = ours
        self._folder = folder

    @property
    def fd(self) -> int:
        """What QEMU inherits under this number."""
        return self._ours.fileno()

    @property
    def arguments(self) -> list[str]:
        return [
            "-chardev", f"socket,id=tpm,fd={self.fd}",
            "-tpmdev", "emulator,id=tpm0,chardev=tpm",
            "-device", "tpm-crb,tpmdev=tpm0",
        ]  # fmt: skip

    async def pcrs(self, *numbers: int, patience: float = PATIENCE) -> dict[int, bytes]:
        """The SHA-256 bank. Only when QEMU is gone: two cannot speak at once. Cancelled, ask no more."""
        # A copy, for what waits without blocking may not be what QEMU was given.
        async with trio.SocketStream(trio.socket.from_stdlib_socket(self._ours.dup())) as control:
            data = await _attached(control, patience)
            async with data:
                return {n: await _read(data, n) for n in numbers}

    def said(self) -> str:
        """The end of its log."""
        try:
            return (self._folder / "log").read_bytes()[-2000:].decode(errors="replace")
        except FileNotFoundError:
            return ""


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[Tpm]:
    if lack := lacking():
        raise Refused(503, lack)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = _spawn(folder, theirs.fileno())
        try:
            yield Tpm(ours, folder)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(process.wait)


def _spawn(folder: Path, fd: int) -> subprocess.Popen[bytes]:
    """Never in a worker thread: the kernel takes the end of the thread that forks for the end of us."""
    guard = ["setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", _ORPHAN, str(os.getpid())]
    command = [SWTPM, "socket", "--tpm2", "--tpmstate", f"dir={folder}"]
    command += ["--ctrl", f"type=unixio,clientfd={fd}", "--log", f"file={folder / 'log'},level=1"]
    quiet = subprocess.DEVNULL
    return subprocess.Popen([*guard, *command], stdin=quiet, stdout=quiet, stderr=quiet, pass_fds=[fd])


async def _attached(control: trio.SocketStream, patience: float) -> trio.SocketStream:
    """A stream for commands, whose other end is handed to the TPM. A QEMU that was killed a moment ago lets
    go of the TPM soon."""
    ours, theirs = socket.socketpair()
    data = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    why = "it does not answer"
    try:
        with theirs, trio.move_on_after(patience):
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))]
            while why:
                try:
                    await control.socket.sendmsg([struct.pack(">I", _SET_DATA_FD)], rights)
                    answer = await control.receive_some(64)
                except (OSError, trio.BrokenResourceError):
                    answer = b""
                if not answer:
                    why = "it ended with QEMU"
                    break
                why = "QEMU still speaks with it" if answer != bytes(4) else ""
                if why:
                    await trio.sleep(_POLL)
    finally:
        if why:
            data.socket.close()
    if why:
        raise Refused(503, f"the TPM cannot be read: {why}; end QEMU with SIGKILL first")
    return data


async def _read(data: trio.SocketStream, n: int) -> bytes:
    """One PCR; the answer is counter, selection, digests, and has room for nothing else."""
    chosen = (1 << n).to_bytes(3, "little")
    body = struct.pack(">IHB", 1, _SHA256, 3) + chosen
    answer = b""
    with trio.move_on_after(PATIENCE):
        await data.send_all(struct.pack(">HII", _NO_SESSIONS, 10 + len(body), _PCR_READ) + body)
        answer = await data.receive_some(256)
    head = struct.pack(">HII", _NO_SESSIONS, 62, 0)
    told = struct.pack(">IHB", 1, _SHA256, 3) + chosen + struct.pack(">IH", 1, 32)
    if len(answer) != 62 or answer[:10] != head or answer[14:30] != told:
        code = answer[6:10].hex() or "nothing"
        raise Refused(502, f"the TPM does not tell PCR {n}: it answered {code}; did firmware start it?")
    return answer[30:]
