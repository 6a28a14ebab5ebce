"""A TPM beside a machine. What QEMU and the firmware say to it is said here by the test, word for word."""

import array
import hashlib
import os
import socket
import struct
from pathlib import Path

import pytest
import trio
from warren.boot.secure import tpm
from warren.tree import Refused

INIT, SHUTDOWN, SET_DATA_FD = 2, 3, 0x10


class Machine:
    """QEMU's side: the control channel that it inherits, and a channel for commands that it makes."""

    def __init__(self, fd: int) -> None:
        self.control = socket.socket(fileno=os.dup(fd))
        self.control.settimeout(10)
        self.data, theirs = socket.socketpair()
        self.data.settimeout(10)
        with theirs:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))]
            self.control.sendmsg([struct.pack(">I", SET_DATA_FD)], rights)
            assert self.control.recv(4) == bytes(4)
        assert self.say(INIT, bytes(4)) == bytes(4)
        self.data.sendall(struct.pack(">HIIH", 0x8001, 12, 0x144, 0))  # as firmware begins: Startup, cleared
        assert self.data.recv(256)[6:10] == bytes(4)

    def say(self, word: int, more: bytes = b"") -> bytes:
        self.control.sendall(struct.pack(">I", word) + more)
        return self.control.recv(4)

    def extend(self, n: int, digest: bytes) -> None:
        password = struct.pack(">IHBH", 0x40000009, 0, 0, 0)
        body = struct.pack(">II", n, len(password)) + password + struct.pack(">IH", 1, 0x000B) + digest
        self.data.sendall(struct.pack(">HII", 0x8002, 10 + len(body), 0x182) + body)
        assert self.data.recv(256)[6:10] == bytes(4)

    def gone(self) -> None:
        """As the kernel ends it."""
        self.data.close()
        self.control.close()


def processes(folder: Path) -> list[str]:
    """Those whose command line names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if os.fsencode(folder) in line:
                found.append(entry.name)
    return found


async def test_what_was_extended_is_read_when_the_machine_is_gone(tmp_path: Path) -> None:
    one, two = hashlib.sha256(b"one").digest(), hashlib.sha256(b"two").digest()
    async with tpm.started(tmp_path) as t:
        machine = await trio.to_thread.run_sync(Machine, t.fd)
        machine.extend(4, one)
        machine.extend(4, two)
        machine.gone()
        found = await t.pcrs(4, 7)
        again = await t.pcrs(4)
    inner = hashlib.sha256(bytes(32) + one).digest()
    assert found == {4: hashlib.sha256(inner + two).digest(), 7: bytes(32)}
    assert again[4] == found[4]


async def test_nothing_is_left_of_it(tmp_path: Path) -> None:
    async with tpm.started(tmp_path) as t:
        machine = await trio.to_thread.run_sync(Machine, t.fd)
        assert processes(tmp_path)
        machine.gone()
    assert not processes(tmp_path)


async def test_a_tpm_that_ended_with_its_machine_is_not_read(tmp_path: Path) -> None:
    async with tpm.started(tmp_path) as t:
        machine = await trio.to_thread.run_sync(Machine, t.fd)
        assert machine.say(SHUTDOWN) == bytes(4)
        machine.gone()
        with pytest.raises(Refused, match="end QEMU with SIGKILL first"):
            await t.pcrs(0)


async def test_two_do_not_speak_with_it_at_once(tmp_path: Path) -> None:
    async with tpm.started(tmp_path) as t:
        machine = await trio.to_thread.run_sync(Machine, t.fd)
        with pytest.raises(Refused, match="QEMU still speaks with it"):
            await t.pcrs(0, patience=0.1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(t.pcrs, 0)
            machine.gone()  # while it is asked


async def test_a_tpm_that_nobody_began_says_so(tmp_path: Path) -> None:
    async with tpm.started(tmp_path) as t:
        with pytest.raises(Refused, match="PCR 0"):
            await t.pcrs(0)


async def test_it_names_its_end_to_qemu(tmp_path: Path) -> None:
    async with tpm.started(tmp_path) as t:
        assert f"socket,id=tpm,fd={t.fd}" in t.arguments
        assert "tpm-crb,tpmdev=tpm0" in t.arguments


async def test_where_there_is_none_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tpm.lacking() == "there is no swtpm; apt-get install swtpm"
    with pytest.raises(Refused, match="apt-get install swtpm"):
        async with tpm.started(tmp_path):
            raise AssertionError("it began")
