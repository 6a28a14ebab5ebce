"""Record what real kernels say to our servers: `python -m tests.vm.record`.

Boots each kernel, mounts a small directory and the demonstration tree in both dialects through a
proxy that listens in, runs the scripts below in the guest, and writes the conversations to
traces/golden/. That needs doing again only when the scripts change: the fast tests replay the files
(tests/traces/test_golden.py) and compare every reply.

The scripts make their own events and wait for nothing outside the guest, so that a replay needs no
second party; and they move little data, for the files are kept in the repository.
"""

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio
from warren.servers.demo import Demo
from warren.servers.disk import Disk
from warren.traces.record import Recorder

from .guest import guest
from .images import KERNELS, Unreachable
from .mounts import LINUX, PLAIN, in_guest, mounted
from .servers import served

GOLDEN = Path(__file__).parents[2] / "traces" / "golden"
DISK_ROWS = ["allow any rw,create,remove /**"]
DEMO_ROWS = [
    "allow any ctl /ctl#say",
    "allow any rw /events",
    "allow any write /send",
    "allow any read /recv",
    "allow any read /dev/errstr",
]

BOTH = """
    ls -la > /dev/null; cat hello; cat deep/er/file; cat missing; ls nowhere
    echo one > new; echo two >> new; cat new; truncate -s 3 new; cat new; : > new
    mkdir made; mv new made-up; mv made-up newer; rm newer; rmdir made
    head -c 30000 /dev/zero > zeros; wc -c < zeros; rm zeros
"""
LINUX_ONLY = """
    ln hello linked; ln -s hello soft; readlink soft; cat soft; stat soft > /dev/null
    mkdir a b; echo x > a/f; mv a/f b/g; cat b/g; rm -r a b linked soft
    probe setxattr hello user.colour blue; probe getxattr hello user.colour; probe listxattr hello
    probe lock hello 0 10 exclusive < /dev/null
    df . > /dev/null; sync hello
"""
WORDS = """
    cat ctl; echo say hi > ctl; echo say again >> ctl; echo reset > ctl; echo nonsense > ctl
    exec 3<> ctl; echo bad >&3; cat <&3; exec 3>&-
    cat dev/errstr; cat hello; echo one > send; echo two > send
    timeout 1 cat events; timeout 1 cat recv
"""


def furnish(directory: Path) -> None:
    """What the directory holds when a conversation begins."""
    directory.mkdir()
    (directory / "hello").write_text("hello, world\n")
    (directory / "deep" / "er").mkdir(parents=True)
    (directory / "deep" / "er" / "file").write_bytes(bytes(range(256)) * 20)


@asynccontextmanager
async def listening_in(port: int, recorder: Recorder) -> AsyncIterator[int]:
    """A port that leads to PORT and records what passes."""

    async def pump(source: trio.SocketStream, sink: trio.SocketStream, asked: bool) -> None:
        async for data in source:
            recorder.feed(asked, data)
            await sink.send_all(data)
        await sink.send_eof()

    async def serve(client: trio.SocketStream) -> None:
        server = await trio.open_tcp_stream("127.0.0.1", port)
        async with server, client, trio.open_nursery() as nursery:
            nursery.start_soon(pump, client, server, True)
            await pump(server, client, False)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def record(series: str, into: Path) -> None:
    """All conversations of one kernel, in one boot."""
    with tempfile.TemporaryDirectory() as held:
        async with AsyncExitStack() as stack:
            plan, ports = [], []
            for dialect in (LINUX, PLAIN):
                for tree in ("disk", "demo"):
                    directory = Path(held) / f"{tree}-{dialect}"
                    furnish(directory)
                    root = Disk(directory) if tree == "disk" else Demo()
                    rows = DISK_ROWS if tree == "disk" else DEMO_ROWS
                    here = await stack.enter_async_context(served(root, rows))
                    recorder = Recorder()
                    ports.append(await stack.enter_async_context(listening_in(here.port, recorder)))
                    plan.append((tree, dialect, recorder))
            booted = await stack.enter_async_context(guest(series, ports=ports))
            for number, (tree, dialect, recorder) in enumerate(plan):
                script = WORDS if tree == "demo" else BOTH + (LINUX_ONLY if dialect == LINUX else "")
                async with mounted(booted, "/mnt/told", server=number, dialect=dialect) as at:
                    said = await in_guest(booted, f"cd {at} && {{ {script}\n}} 2>&1; true", 60)
                    print(f"== Linux {booted.release}, {dialect}, {tree}\n{said}")
                name = f"linux-{series}-{'plain' if dialect == PLAIN else 'dotl'}-{tree}.9p"
                recorder.save(into / name)
                print(f"-- {len(recorder.passed)} frames to {name}")


async def main() -> None:
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for series in KERNELS:
        try:
            await record(series, GOLDEN)
        except Unreachable as reason:
            print(f"not recorded: {series}: {reason}")


if __name__ == "__main__":
    trio.run(main)
