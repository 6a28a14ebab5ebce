"""How commands end: Ctrl-C, a reader that left, an output that is full or closed, a server that is gone."""

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.shell.conftest import Command
from tests.shell.running import EVERYTHING, WARREN, Served, environment, serving, socket_in, warren


@contextmanager
def started(*words: str, at: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A command that runs while the block does; its output is unbuffered bytes."""
    with subprocess.Popen(
        [WARREN, *words], env=environment(at), bufsize=0, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdout is not None
    return process.stdout.readline()


def ended(process: "subprocess.Popen[bytes]") -> tuple[int, bytes]:
    """The exit code, soon, and what was said on standard error."""
    code = process.wait(2)
    assert process.stderr is not None
    return code, process.stderr.read()


def test_ctrl_c_ends_a_parked_read_quietly_and_takes_nothing_with_it(run: Command, demo: Served) -> None:
    with started("cat", "/recv", at=demo.at) as process:
        assert run("write", "/send", "first", at=demo.at).code == 0
        assert line_of(process) == b"first\n"  # and now it waits for the second
        process.send_signal(signal.SIGINT)
        assert ended(process) == (130, b"")
    assert run("write", "/send", "second", at=demo.at).code == 0
    with started("cat", "/recv", at=demo.at) as process:
        assert line_of(process) == b"second\n"


def test_ctrl_c_while_a_server_keeps_silent(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "sock"))
        silent.listen()
        silent.settimeout(10)
        with started("ls", "/", at=f"unix!{tmp_path}/sock") as process:
            peer, _ = silent.accept()
            with peer:
                assert peer.recv(4)
                process.send_signal(signal.SIGINT)
                assert ended(process) == (130, b"")


def test_ctrl_c_while_nobody_reads_the_output(disk: Served, folder: Path) -> None:
    (folder / "large").write_bytes(bytes(8 << 20))
    with started("cat", "/large", at=disk.at) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"\0"  # far more than a pipe holds is behind it
        process.send_signal(signal.SIGINT)
        assert ended(process) == (130, b"")


def test_ctrl_c_while_standard_input_is_awaited(run: Command, demo: Served) -> None:
    command = [str(WARREN), "write", "/hello"]
    with subprocess.Popen(
        command, env=environment(demo.at), stdin=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"x" * 65536)
        process.stdin.write(b"x" * 65536)  # fits only once the command has begun to read
        process.send_signal(signal.SIGINT)
        assert ended(process) == (130, b"")
    assert run("cat", "/hello", at=demo.at).out == "hello, world\n"


def test_a_reader_that_leaves_ends_a_parked_read(run: Command, demo: Served) -> None:
    with started("cat", "/recv", at=demo.at) as process:
        assert run("write", "/send", "only", at=demo.at).code == 0
        assert line_of(process) == b"only\n"
        assert process.stdout is not None
        process.stdout.close()  # as `| head -1` does
        assert ended(process) == (141, b"")


@pytest.mark.parametrize("command", ["cat /large", "ls --json /", "help"])
def test_a_closed_pipe_is_quiet(disk: Served, folder: Path, command: str) -> None:
    (folder / "large").write_bytes(bytes(8 << 20))
    script = f"{{ {WARREN} {command}; echo $? >&2; }} | true"
    done = subprocess.run(["sh", "-c", script], env=environment(disk.at), capture_output=True, text=True)
    assert done.stderr in ("141\n", "0\n")  # 0: everything fitted before the reader was gone
    if "large" in command:
        assert done.stderr == "141\n"


def test_a_full_output_is_an_error_and_a_closed_one_is_not(demo: Served) -> None:
    def redirected(to: str) -> tuple[int, str]:
        script = f"{WARREN} ls / {to}"
        done = subprocess.run(["sh", "-c", script], env=environment(demo.at), capture_output=True, text=True)
        return done.returncode, done.stderr

    full = "warren: standard output: No space left on device; see where it was redirected to\n"
    assert redirected(">/dev/full") == (10, full)
    assert redirected(">&-") == (0, "")
    assert redirected("2>&-") == (0, "")


def test_a_server_that_goes_away_is_told(run: Command, tmp_path: Path) -> None:
    with serving("demo", *socket_in(tmp_path), *EVERYTHING) as served:
        with started("cat", "/recv", at=served.at) as process:
            assert run("write", "/send", "x", at=served.at).code == 0
            assert line_of(process) == b"x\n"
            served.process.kill()
            code, said = ended(process)
    assert code == 7
    assert said.startswith(b"warren: /recv: the connection to unix!")
    assert said.endswith(b"; see whether the server runs; --at or $WARREN_AT says where it is\n")
    assert said.count(b"\n") == 1


def test_tail_follows_a_file_that_grows_and_begins_again_when_it_shrinks(disk: Served, folder: Path) -> None:
    log = folder / "log"
    log.write_text("one\ntwo\n")
    with started("tail", "-f", "-n", "1", "/log", at=disk.at) as process:
        assert line_of(process) == b"two\n"
        with log.open("a") as grown:
            grown.write("three\n")
        assert line_of(process) == b"three\n"
        log.write_text("anew\n")
        assert line_of(process) == b"anew\n"
        process.send_signal(signal.SIGINT)
        code, said = ended(process)
    assert code == 130
    assert said == b"warren: /log: it became shorter; reading it from its beginning\n"


async def test_each_record_is_seen_as_it_comes(demo: Served) -> None:
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(
                trio.run_process, [str(WARREN), "cat", "/events"], env=environment(demo.at),
                stdout=subprocess.PIPE, check=False,
            )
        )  # fmt: skip
        assert isinstance(process, trio.Process)
        assert process.stdout
        with trio.fail_after(20):
            # Events begin with the next one, so the first is said until it is heard.
            heard = trio.Event()

            async def say() -> None:
                while not heard.is_set():
                    await trio.to_thread.run_sync(warren, "ctl", "--at", demo.at, "/", "say", "hi")

            nursery.start_soon(say)
            record = await process.stdout.receive_some()
            heard.set()
            assert b"kind=said words='hi'" in record
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 130
