"""The other end of COM2, by hand: a small plain-9P2000 server that a test can make lie.

    host = Host(role=b"...", verbs=["say hello", "exit"])
    await host.serve(stream)
    host.reports, host.kinds

It knows the files a root task uses and nothing else. A `Lie` is given each whole reply before it leaves and
sends what it likes instead; everything is bytes here, for what is under test is how they are read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

TVERSION, TATTACH, TWALK, TOPEN, TREAD, TWRITE, TCLUNK = 100, 104, 110, 112, 116, 118, 120
RERROR = 107
QID = bytes(13)
MSIZE = 4096

# The reply that would be right, and the kind of its request; what is sent instead.
Lie = Callable[[int, bytes], bytes]


def frame(kind: int, tag: int, body: bytes) -> bytes:
    return struct.pack("<IBH", 7 + len(body), kind, tag) + body


def text(words: bytes) -> bytes:
    return struct.pack("<H", len(words)) + words


@dataclass
class Host:
    """A tree of /role, /proc/boot and /ctl, and what was done in it."""

    role: bytes | None = b""
    verbs: list[str] = field(default_factory=list)  # one record each, then the end of the stream
    lie: Lie | None = None
    msize: int = MSIZE
    version: bytes = b"9P2000"
    hidden: tuple[bytes, ...] = ()  # paths that a walk does not find
    kinds: list[int] = field(default_factory=list)
    written: bytearray = field(default_factory=bytearray)
    ready: float | None = None  # trio's time when state=ready was written
    fids: dict[int, bytes] = field(default_factory=dict)

    @property
    def reports(self) -> dict[str, str]:
        """The lines of /proc/boot, the last one of each key."""
        lines = self.written.decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Answer until the machine is gone."""
        got = bytearray()
        try:
            while data := await stream.receive_some(65536):
                got += data
                while len(got) >= 7 and len(got) >= (size := struct.unpack_from("<I", got)[0]):
                    request = bytes(got[:size])
                    del got[:size]
                    kind, tag = request[4], struct.unpack_from("<H", request, 5)[0]
                    self.kinds.append(kind)
                    reply = self.answer(kind, tag, request[7:])
                    await stream.send_all(self.lie(kind, reply) if self.lie else reply)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    def answer(self, kind: int, tag: int, body: bytes) -> bytes:
        try:
            return frame(kind + 1, tag, self.do(kind, body))
        except FileNotFoundError:
            return frame(RERROR, tag, text(b"file does not exist"))

    def do(self, kind: int, body: bytes) -> bytes:
        """The body of the right reply."""
        if kind == TVERSION:
            self.fids.clear()
            asked: int = struct.unpack_from("<I", body)[0]
            return struct.pack("<I", min(asked, self.msize)) + text(self.version)
        fid: int = struct.unpack_from("<I", body)[0]
        if kind == TATTACH:
            self.fids[fid] = b""
            return QID
        if kind == TWALK:
            return self.walk(body[4:])
        if kind == TOPEN:
            return QID + bytes(4)
        if kind == TREAD:
            offset, most = struct.unpack_from("<QI", body, 4)
            path = self.fids[fid]
            data = self.cut(path, self.read(path, offset), most)
            return struct.pack("<I", len(data)) + data
        if kind == TWRITE:
            count: int = struct.unpack_from("<I", body, 12)[0]
            self.write(body[16 : 16 + count])
            return struct.pack("<I", count)
        assert kind == TCLUNK, f"a request of kind {kind}"
        del self.fids[fid]
        return b""

    def walk(self, body: bytes) -> bytes:
        new: int
        count: int
        new, count = struct.unpack_from("<IH", body)
        at, names = 6, []
        for _ in range(count):
            size = struct.unpack_from("<H", body, at)[0]
            names.append(body[at + 2 : at + 2 + size])
            at += 2 + size
        assert at == len(body), "a walk with bytes behind it"
        path = b"/".join(names)
        known = [b"proc/boot", b"ctl"] + ([b"role"] if self.role is not None else [])
        if path not in known or path in self.hidden:
            raise FileNotFoundError(path)
        self.fids[new] = path
        return struct.pack("<H", count) + QID * count

    def read(self, path: bytes, offset: int) -> bytes:
        if path == b"role":
            assert self.role is not None
            return self.role[offset:]
        assert path == b"ctl", f"{path!r} is read"
        return self.verbs.pop(0).encode() if self.verbs else b""

    def cut(self, path: bytes, data: bytes, most: int) -> bytes:
        """As much as was asked for; what is left of a record comes with the next read."""
        if path == b"ctl" and len(data) > most:
            self.verbs.insert(0, data[most:].decode())
        return data[:most]

    def write(self, data: bytes) -> None:
        self.written += data
        if self.ready is None and b"state=ready\n" in self.written:
            self.ready = trio.current_time()
