"""`warren put`, and a storage under a real mount: what is printed is where it is, and `cmp` agrees."""

import errno
import gzip
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from warren.shell.exits import BAD_INPUT, DENIED, FULL, NOT_FOUND, USAGE

from tests.fuse.mounts import Mount, mounted, refused, sh
from tests.fuse.mounts import run as run_program
from tests.shell.conftest import Command
from tests.shell.running import Served, serving, socket_in, warren
from tests.sources import ROOT

SERVER = """
import sys, trio
from pathlib import Path
from tests.servers.clock import TrioClock
from tests.wire import export_of
from warren.serve.listen import listening
from warren.servers.storage import Storage
from warren.store import MemoryStore

async def main(folder):
    storage = Storage(folder / "blobs", MemoryStore(), TrioClock(), quota=40_000_000)
    allow = ["any read,write,create,remove /**", "any ctl /ctl#verify"]
    async with listening(export_of(storage, allow), [f"unix!{folder}/sock"]) as names:
        print(names[0], flush=True)
        await trio.sleep_forever()

trio.run(main, Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("storage")
    words = [sys.executable, "-c", SERVER, str(folder)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Served(process, [], process.stdout.readline().strip())
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def mount(fuse: None, storage: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    with mounted(storage.at, tmp_path_factory.mktemp("mount") / "mnt") as made:
        yield made


def address(body: bytes) -> str:
    return "sha256:" + hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 5, 65536, 3_000_001])
def test_put_prints_the_address_and_the_file_is_there(
    run: Command, storage: Served, tmp_path: Path, size: int
) -> None:
    body = os.urandom(size)
    (tmp_path / "picture").write_bytes(body)
    done = run("put", "/", str(tmp_path / "picture"), at=storage.at)
    assert done == (0, f"{address(body)}\n", "")
    assert run("cat", f"/have/{address(body)}").out == "1\n"
    assert warren("put", "/", "-", at=storage.at, stdin="words").out == f"{address(b'words')}\n"


def test_several_files_are_a_line_each_and_one_that_fails_does_not_stop_the_rest(
    run: Command, storage: Served, tmp_path: Path, documents: Callable[[str], list[Any]]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"22")
    missing = str(tmp_path / "missing")
    done = run("put", "--json", "/", str(one), missing, str(tmp_path), str(two), at=storage.at)
    assert done.code == NOT_FOUND
    assert documents(done.out) == [
        {"file": str(one), "address": address(b"1"), "bytes": 1},
        {"file": str(two), "address": address(b"22"), "bytes": 2},
    ]
    assert "missing: No such file" in done.err
    assert "this is a directory; put its files" in done.err


def test_a_compressed_file_is_stored_inflated(run: Command, storage: Served, tmp_path: Path) -> None:
    body = os.urandom(50_000) + bytes(100_000)
    packed = tmp_path / "body.gz"
    packed.write_bytes(gzip.compress(body))
    assert run("put", "--encoding", "gzip", "/", str(packed), at=storage.at).out == f"{address(body)}\n"
    packed.write_bytes(gzip.compress(bytes(10_000_000)))
    done = run("put", "--encoding", "gzip", "/", str(packed))
    assert done.code == BAD_INPUT
    assert "413 bomb: it inflates to more than 10 times its size" in done.err
    packed.write_bytes(b"no gzip")
    assert "422 bad_encoding" in run("put", "--encoding", "gzip", "/", str(packed)).err
    done = run("put", "--encoding", "br", "/", str(packed))
    assert "405 not_supported: there is no encoding 'br' here" in done.err


def test_a_quota_that_is_used_up_is_exit_10(run: Command, storage: Served, tmp_path: Path) -> None:
    with (tmp_path / "much").open("wb") as file:
        file.truncate(41_000_000)
    done = run("put", "/", str(tmp_path / "much"), at=storage.at)
    assert (done.code, done.out) == (FULL, "")
    assert "507 over_quota: your quota is 40000000 bytes" in done.err
    assert "coming=0" in run("cat", "/quota").out


def test_what_is_no_storage_says_so(run: Command, demo: Served, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    done = run("put", "/", str(tmp_path / "file"), at=demo.at)
    assert done.code == NOT_FOUND
    assert "/put: 404 not_found" in done.err


def test_who_may_not_write_is_told(run: Command, tmp_path: Path) -> None:
    (tmp_path / "put").write_bytes(b"")
    with serving("disk", str(tmp_path), *socket_in(tmp_path), "--allow", "any read /**") as at:
        assert run("put", "/", str(tmp_path / "put"), at=at.at).code == DENIED


def test_a_server_that_answers_something_else_is_not_believed(run: Command, tmp_path: Path) -> None:
    """A file called `put` of a disk takes everything and answers with its content."""
    (tmp_path / "put").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"x")
    with serving("disk", str(tmp_path), *socket_in(tmp_path), "--allow", "any read,write /**") as at:
        done = run("put", "/", str(tmp_path / "file"), at=at.at)
    assert done.code == 1
    assert f"the storage answered x, what was sent is {address(b'x')}" in done.err


@pytest.mark.parametrize("words", [[], ["/"], ["", "x"], ["/", ""], ["/", "-", "-"]])
def test_a_bad_command_line_does_nothing(run: Command, storage: Served, words: list[str]) -> None:
    assert run("put", *words, at=storage.at).code == USAGE


def test_n_prints_what_does_the_same_and_it_does(run: Command, mount: Mount, tmp_path: Path) -> None:
    body = os.urandom(100_000) + bytes(100_000)
    (tmp_path / "a file").write_bytes(body)
    (tmp_path / "a.gz").write_bytes(gzip.compress(body[1:]))
    plain = warren("put", "-n", "/", str(tmp_path / "a file"), at=mount.address).out
    packed = warren("put", "-n", "--encoding", "gzip", "/", str(tmp_path / "a.gz"), at=mount.address).out
    for line in (plain, packed):
        sh(line.replace("=/put", f"={mount.at}/put").replace(">/declared", f">{mount.at}/declared"), tmp_path)
    assert (mount.at / "have" / address(body)).read_text() == "1\n"
    assert (mount.at / address(body[1:])).read_bytes() == body[1:]


# Under a mount


def test_the_acceptance(mount: Mount, tmp_path: Path) -> None:
    """warren put M picture; cmp picture M/sha256:…; cat M/have/sha256:…"""
    picture = tmp_path / "picture.webp"
    picture.write_bytes(os.urandom(700_000))
    found = warren("put", str(mount.at), str(picture)).out.strip()
    assert found == "sha256:" + run_program("sha256sum", picture).out.split()[0]
    run_program("cmp", picture, mount.at / found)
    assert run_program("cat", mount.at / "have" / found).out == "1\n"
    run_program("cp", mount.at / found, tmp_path / "copy")
    run_program("cmp", picture, tmp_path / "copy")
    assert found in run_program("ls", mount.at).out


def test_cp_and_a_shell_store_as_well(mount: Mount, tmp_path: Path) -> None:
    body = os.urandom(3_000_000)
    (tmp_path / "body").write_bytes(body)
    run_program("cp", tmp_path / "body", mount.at / "put")
    # The commit of a close is not waited for by cp; whoever wants to know looks.
    fd = os.open(mount.at / "put", os.O_RDWR)
    os.write(fd, b"by hand")
    os.fsync(fd)
    assert os.read(fd, 100) == f"{address(b'by hand')}\n".encode()
    os.close(fd)
    sh(f"{{ echo len=9; printf 'by a line'; }} >{mount.at}/declared", tmp_path)
    assert (mount.at / address(b"by a line")).read_bytes() == b"by a line"
    run_program("cmp", tmp_path / "body", mount.at / address(body))


def test_names_are_files(mount: Mount, tmp_path: Path) -> None:
    found = warren("put", str(mount.at), "-", stdin="first").out.strip()
    again = warren("put", str(mount.at), "-", stdin="second").out.strip()
    sh(f"echo {found} >refs/latest; echo {again} >refs/latest", mount.at)
    assert run_program("cat", mount.at / "refs/latest").out == f"{again}\n"
    assert sh('cat "$(cat refs/latest)"', mount.at).out == "second"
    run_program("rm", mount.at / "refs/latest")
    with refused(errno.ENOENT):
        (mount.at / "refs/latest").read_bytes()


def test_damage_is_an_error_of_read_and_no_bytes(mount: Mount, storage: Served, tmp_path: Path) -> None:
    body = os.urandom(300_000)
    (tmp_path / "body").write_bytes(body)
    found = warren("put", str(mount.at), str(tmp_path / "body")).out.strip()
    assert (mount.at / found).read_bytes() == body
    hex = found.removeprefix("sha256:")
    file = Path(storage.at.removeprefix("unix!")).parent / "blobs" / hex[:2] / hex
    file.chmod(0o600)
    spoiled = bytearray(body)
    spoiled[150_000] ^= 1
    file.write_bytes(spoiled)
    with refused(errno.EBADMSG):
        (mount.at / found).read_bytes()
    done = warren("ctl", str(mount.at), "verify", found)
    assert done.code == BAD_INPUT
    assert "1 of 5 chunks are corrupt: 2" in done.err
    run_program("cp", tmp_path / "body", mount.at / "put")
    assert warren("ctl", str(mount.at), "verify", found).code == 0
    assert (mount.at / found).read_bytes() == body
