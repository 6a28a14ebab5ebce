"""/mailbox by mkdir, echo and cat, through a real kernel."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.conftest import fuse, watchdog  # noqa: F401  # fixtures that must run here too
from tests.fuse.mounts import Mount, mounted, sh
from tests.sources import ROOT


@pytest.fixture(scope="module")
def mount() -> Iterator[Mount]:
    place = Path(tempfile.mkdtemp(prefix="warren-"))
    command = [sys.executable, "-m", "tests.servers.mailbox.serving"]
    command += [str(place / "store.db"), str(place / "sock")]
    served = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with served:
        try:
            assert served.stdout
            assert served.stdout.readline() == b"listening\n"
            with mounted(f"unix!{place / 'sock'}", place / "mnt") as found:
                yield found
        finally:
            served.kill()
    shutil.rmtree(place)


@pytest.fixture
def topic(mount: Mount, request: pytest.FixtureRequest) -> Path:
    name: str = request.node.name
    made = mount.at / "mailbox" / name[5:60]
    made.mkdir()
    return made


def test_a_day_at_the_queue(topic: Path) -> None:
    said = sh(
        """
        echo hello >send
        got=$(cat recv)
        echo "$got"
        id=${got#id=}; id=${id%% *}
        echo $id >ack
        cat stats
        """,
        cwd=topic,
    ).out
    head, _, rest = said.partition("\n\n")
    assert head.startswith("id=")
    assert " attempt=1 lease=" in head
    assert rest.startswith("hello\ndepth=0\ninflight=0\n")


def test_dead_letters_come_back(topic: Path) -> None:
    said = sh(
        """
        echo 'set attempts=2' >ctl
        echo poison >send
        for n in 1 2; do
            got=$(cat recv); id=${got#id=}; id=${id%% *}
            echo "nack $id delay=0s" >ack
        done
        cat dlq/*/reason dlq/*/body
        echo 'redrive all' >dlq/ctl
        ls dlq
        cat recv
        """,
        cwd=topic,
    ).out
    assert said.startswith("reason=max_attempts attempts=2 last=nacked by=local ts=")
    assert "\npoison\nctl\nid=" in said
    assert " attempt=1 " in said


def test_options_headers_and_large_bodies(topic: Path) -> None:
    said = sh(
        """
        printf 'key=a prio=3\n\nwith a key' >send.h
        head -c 700000 /dev/zero | tr '\\0' x >large
        (printf 'len=700000\n\n'; cat large) >send.h
        exec 3<>recv
        echo 'max=1 vis=5m ack=none' >&3
        cat <&3
        exec 3>&-
        cat recv | tail -c 700000 | cmp - large && echo same
        """.replace("large", "/tmp/" + topic.parent.parent.parent.name + ".large"),
        cwd=topic,
    ).out
    Path("/tmp/" + topic.parent.parent.parent.name + ".large").unlink()
    assert " prio=3 key=a " in said or " key=a prio=3 " in said
    assert said.endswith("with a keysame\n")


def test_a_reader_that_is_killed_took_nothing(topic: Path) -> None:
    said = sh(
        """
        timeout 1 cat recv; echo $?
        echo once >send
        cat recv
        """,
        cwd=topic,
    ).out
    assert said.startswith("124\nid=")
    assert said.endswith("once\n")


def test_a_mistake_is_told(topic: Path) -> None:
    said = sh(
        """
        exec 3<>ack
        echo 0123456789ABCDEFGHJKMNPQRS >&3 || cat <&3
        echo colour=red >ctl || cat ../../dev/errstr
        rmdir groups || true
        """,
        cwd=topic,
    )
    assert said.out.startswith("409 conflict: you have no such lease on 0123456789ABCDEFGHJKMNPQRS")
    assert "400 unknown_verb" in said.out
