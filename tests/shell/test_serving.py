"""serve: what it says, whom it lets in, how it ends, and a conversation on standard input and output."""

import json
import signal
import socket
import stat
import subprocess
from functools import partial
from pathlib import Path

import pytest
import trio
from warren.mount import dial

from tests.shell.conftest import Command
from tests.shell.running import EVERYTHING, WARREN, environment, serving, socket_in


def test_without_a_name_the_servers_are_listed(run: Command) -> None:
    names = ["disk", "demo", "cap"]
    assert [line.split()[0] for line in run("serve").out.splitlines()] == names
    assert [json.loads(line)["server"] for line in run("serve", "--json").out.splitlines()] == names


def test_without_a_row_it_runs_refuses_everyone_and_says_so(run: Command, tmp_path: Path) -> None:
    with serving("demo", *socket_in(tmp_path)) as served:
        assert "warren: everyone is refused; let yourself in with --allow 'local rw,ctl /**'" in served.said
        assert "warren: the audit is kept in memory only; --audit DIR keeps it" in served.said
        done = run("ls", "/", at=served.at)
    assert done.code == 4
    assert done.err.startswith("warren: /: 403 denied: local may not attach; the server's policy has no row")
    assert done.err.endswith("; the server's --allow rows decide: warren help serve\n")


def test_rows_add_up_and_what_they_do_not_give_is_refused(run: Command, tmp_path: Path) -> None:
    rows = ("--allow", "local read /hello", "--allow", "local ctl /ctl#say")
    with serving("demo", *socket_in(tmp_path), *rows) as served:
        assert not [line for line in served.said if "refused" in line]
        assert run("cat", "/hello", at=served.at).code == 0
        assert run("ctl", "/", "say", "hi", at=served.at).code == 0
        for words in (["ctl", "/", "reset"], ["write", "/hello", "x"], ["ls", "/"]):
            done = run(*words, at=served.at)
            assert (words, done.code, done.out) == (words, 4, "")
        assert run("cat", "/events", at=served.at).code == 3  # what is hidden is not there


def test_every_address_is_said_and_answers(run: Command, tmp_path: Path) -> None:
    command = [
        str(WARREN),
        "serve",
        "demo",
        "--json",
        "--listen",
        "tcp!127.0.0.1!0",
        *socket_in(tmp_path),
        *EVERYTHING,
    ]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:  # fmt: skip
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert said["server"] == "demo"
        tcp, unix = said["listening"]
        assert tcp.startswith("tcp!127.0.0.1!")
        assert unix == f"unix!{tmp_path}/sock"
        for at in (tcp, unix):
            assert run("cat", "/hello", at=at).out == "hello, world\n"
        process.terminate()
        _, err = process.communicate(timeout=5)
    assert [line for line in err.splitlines() if line.startswith("listening")] == [
        f"listening on {at}" for at in said["listening"]
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 0)])
async def test_a_signal_ends_it_at_once_with_a_reader_parked(number: int, code: int, tmp_path: Path) -> None:
    with serving("demo", *socket_in(tmp_path), *EVERYTHING) as served:
        assert stat.S_ISSOCK((tmp_path / "sock").lstat().st_mode)
        async with (
            dial(served.at) as files,
            await files.stream("/recv") as recv,
            trio.open_nursery() as nursery,
        ):

            async def read() -> None:
                with pytest.raises(ConnectionError):
                    await recv.record()

            nursery.start_soon(read)
            await files.stat("/")  # answered behind the read, which is parked by then
            began = trio.current_time()
            served.process.send_signal(number)
            assert await trio.to_thread.run_sync(served.process.wait, 5) == code
        assert trio.current_time() - began < 2
        assert served.process.stderr is not None
        assert served.process.stderr.read() == ""
    assert not (tmp_path / "sock").exists()


def test_an_interrupt_that_the_parent_ignored_stays_ignored(run: Command, tmp_path: Path) -> None:
    at = f"unix!{tmp_path}/sock"
    script = f"trap '' INT HUP; exec {WARREN} serve demo --listen '{at}' --allow 'local rw /**'"
    with subprocess.Popen(
        ["sh", "-c", script], env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while "listening" not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGHUP)
        assert run("ls", "/", at=at).code == 0
        process.terminate()
        assert process.wait(5) == 0


def test_descriptors_are_raised_to_the_hard_limit(tmp_path: Path) -> None:
    script = f"ulimit -Sn 64; exec {WARREN} serve demo --listen 'unix!{tmp_path}/sock'"
    with subprocess.Popen(
        ["sh", "-c", script], env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while "listening" not in process.stderr.readline():
            pass
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        process.terminate()
    soft, hard = next(line for line in limits.splitlines() if "open files" in line).split()[3:5]
    assert soft == hard != "64"


def test_the_audit_is_kept_where_it_is_said(run: Command, tmp_path: Path) -> None:
    audit = tmp_path / "audit"
    with serving("demo", *socket_in(tmp_path), *EVERYTHING, "--audit", str(audit)) as served:
        assert served.said == [f"listening on {served.at}"]
        assert run("ctl", "/", "unlock", "front", "1234", at=served.at).code == 0
    lines = (audit / "00000001.log").read_text()
    assert '"path":"/ctl#unlock"' in lines
    assert "front 1234" not in lines  # the hash of a line may have any digits
    (tmp_path / "file").touch()
    done = run("serve", "demo", *socket_in(tmp_path), "--audit", str(tmp_path / "file"))
    assert done.code == 5
    assert f"{tmp_path}/file" in done.err


def test_read_only_is_read_only(run: Command, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with serving("disk", str(tmp_path), "--read-only", *socket_in(tmp_path), *EVERYTHING) as served:
        assert run("cat", "/x", at=served.at).out == "x"
        done = run("write", "/x", "y", at=served.at)
    assert done.code == 4
    assert (tmp_path / "x").read_text() == "x"


LISTEN = ("--listen", "tcp!127.0.0.1!0")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (
            ["demo", "--listen", "tcp!0.0.0.0!0"],
            2,
            "warren serve: 0.0.0.0 is not loopback: plain TCP proves no",
        ),
        (
            ["demo", "--listen", "udp!x"],
            2,
            "warren serve: 'udp!x' is no address to listen on; it is unix!PATH",
        ),
        (["demo"], 2, "warren serve: nowhere to listen; say where, such as --listen 'tcp!"),
        (["nope", *LISTEN], 2, "warren serve: no server 'nope'; there are disk and demo"),
        (["disk", *LISTEN], 2, "warren serve disk: it takes one DIR, not none; see warren help serve"),
        (["demo", "x", *LISTEN], 2, "warren serve demo: it takes no further word, not x; see"),
        (["demo", "--read-only", *LISTEN], 2, "warren serve demo: --read-only is for disk;"),
        (
            ["demo", *LISTEN, "--allow", "local read"],
            2,
            "warren serve: --allow 'local read': a row is WHO RIGHTS",
        ),
        (["demo", "--json", "--listen", "stdio"], 2, "warren serve: --json prints where stdio talks"),
        (["disk", "/nope", *LISTEN], 3, "warren: /nope: No such file or directory; give a directory"),
        (
            ["disk", "/etc/hostname", *LISTEN],
            9,
            "warren: /etc/hostname: only a directory can be served; give",
        ),
    ],
)
def test_a_server_that_cannot_start_says_why_in_one_line(
    run: Command, words: list[str], code: int, says: str
) -> None:
    done = run("serve", *words)
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)
    assert done.err.startswith(says)


def test_an_address_in_use_is_a_conflict_and_nothing_stays_behind(run: Command, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "demo", *socket_in(tmp_path), "--listen", f"tcp!127.0.0.1!{port}")
    assert done.code == 5
    assert done.err.startswith(
        f"warren: 127.0.0.1!{port}: Address already in use; another server may run there"
    )
    assert not (tmp_path / "sock").exists()


async def test_stdio_is_a_conversation_and_its_end_is_the_servers() -> None:
    command = [str(WARREN), "serve", "demo", "--listen", "stdio", *EVERYTHING]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            partial(
                trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, env=environment(),
            )
        )  # fmt: skip
        assert isinstance(process, trio.Process)
        assert process.stdin
        assert process.stdout
        assert process.stderr
        with trio.fail_after(20):
            async with dial(trio.StapledStream(process.stdin, process.stdout)) as files:
                assert files.version == "9P2000.L.warren"
                await files.write("/hello", b"good evening\n")
                assert await files.read("/hello") == b"good evening\n"
                assert "ctl" in [e.name for e in await files.ls("/")]
            said = b"".join([piece async for piece in process.stderr])
            assert await process.wait() == 0
    assert said.splitlines()[-1] == b"listening on stdio"


def test_stdio_with_a_socket_beside_goes_on_after_the_conversation(run: Command, tmp_path: Path) -> None:
    # serving() gives no conversation: standard input is at its end from the beginning.
    with serving("demo", "--listen", "stdio", *socket_in(tmp_path), *EVERYTHING) as served:
        assert run("cat", "/hello", at=served.at).out == "hello, world\n"
