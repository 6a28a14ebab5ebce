"""Debian's diod tools, clients that we did not write, use the disk server."""

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from warren.auth.rights import Policy
from warren.serve.export import Export
from warren.serve.listen import listening
from warren.servers.disk import Disk
from warren.traces.audit import AuditMemory
from warren.traces.ring import TraceRing


@asynccontextmanager
async def a_disk(folder: Path) -> AsyncIterator[str]:
    (folder / "sub").mkdir()
    (folder / "sub" / "inner").write_text("inside\n")
    (folder / "outer").write_bytes(bytes(range(256)) * 5000)
    export = Export(Disk(folder), Policy.parse(["any read /**"]), AuditMemory(), TraceRing())
    async with listening(export, ["tcp!127.0.0.1!0"]) as [address]:
        yield "127.0.0.1:" + address.rpartition("!")[2]


async def tool(name: str, at: str, aname: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    command = [f"/usr/sbin/{name}", "-s", at, "-a", aname, *words]
    with trio.fail_after(20):
        return await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)


TOP, SUB = {"outer", "sub"}, {"inner"}


@pytest.mark.parametrize(("aname", "names"), [("", TOP), ("/", TOP), ("sub", SUB), ("/sub", SUB)])
async def test_diodls_lists_what_an_aname_means(tmp_path: Path, aname: str, names: set[str]) -> None:
    async with a_disk(tmp_path) as at:
        plain = await tool("diodls", at, aname)
        assert plain.returncode == 0, plain.stderr
        assert set(plain.stdout.decode().split()) == names
        long = await tool("diodls", at, aname, "-l")
        assert long.returncode == 0, long.stderr
        assert names <= set(long.stdout.decode().split())


async def test_diodcat_reads_files_whole(tmp_path: Path) -> None:
    async with a_disk(tmp_path) as at:
        assert (await tool("diodcat", at, "/", "outer")).stdout == bytes(range(256)) * 5000
        assert (await tool("diodcat", at, "/sub", "inner")).stdout == b"inside\n"


@pytest.mark.parametrize("aname", ["/missing", "/..", "../..", "/outer/x"])
async def test_an_aname_that_leads_nowhere_is_refused(tmp_path: Path, aname: str) -> None:
    async with a_disk(tmp_path) as at:
        assert (await tool("diodls", at, aname)).returncode != 0
