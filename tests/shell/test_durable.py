"""What a hive works with, as an operator types it: mailbox, storage and task over the queen's mount."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shell.test_hive import Running, down, up

pytestmark = pytest.mark.usefixtures("fuse")


@pytest.fixture(scope="module")
def hive() -> Iterator[Running]:
    folder = Path(tempfile.mkdtemp(prefix="work-"))
    try:
        yield up(folder / "s", "queen=QueenPrimary")
    finally:
        down(folder / "s")
        shutil.rmtree(folder)


def test_a_message_is_sent_received_and_acknowledged(hive: Running) -> None:
    hive.good("mkdir $M/mailbox/orders; echo hello > $M/mailbox/orders/send")
    got = hive.good("cat $M/mailbox/orders/recv")
    head, _, body = got.partition("\n\n")
    values = dict(word.split("=", 1) for word in head.split())
    assert len(values["id"]) == 26
    assert (values["attempt"], values["from"], body) == ("1", "local", "hello\n")
    assert "depth=0\ninflight=1\n" in hive.good("cat $M/mailbox/orders/stats")
    hive.good(f"echo {values['id']} > $M/mailbox/orders/ack")
    assert "depth=0\ninflight=0\n" in hive.good("cat $M/mailbox/orders/stats")
    refused = hive.sh(f"echo {values['id']} > $M/mailbox/orders/ack || cat $M/dev/errstr")
    assert refused.out.startswith(("409 ", "404 ")), refused


def test_what_nobody_could_do_becomes_a_dead_letter_and_is_sent_again(hive: Running) -> None:
    hive.good("mkdir $M/mailbox/jobs; cd $M/mailbox/jobs; echo 'set attempts=2' > ctl; echo work > send")
    give_back = "id=$(sed -n 's/^id=\\([^ ]*\\).*/\\1/p' recv); echo nack $id > ack"
    hive.good(f"cd $M/mailbox/jobs; {give_back}; {give_back}")
    assert "attempts" in hive.good("cat $M/mailbox/jobs/dlq/*/reason")
    hive.good("echo 'redrive all' > $M/mailbox/jobs/dlq/ctl")
    assert hive.good("cat $M/mailbox/jobs/recv").endswith("\n\nwork\n")


def test_a_picture_is_stored_and_has_its_hash_for_a_name(hive: Running, tmp_path: Path) -> None:
    picture = tmp_path / "picture.webp"
    picture.write_bytes(os.urandom(300_000))
    name = hive.good(f"warren put $M/storage {picture}").strip()
    assert name == "sha256:" + hive.good(f"sha256sum {picture}").split()[0]
    hive.good(f"cmp {picture} $M/storage/{name}")
    assert hive.good(f"cat $M/storage/have/{name}") == "1\n"


def test_whoever_comes_right_behind_a_copy_finds_what_it_stored(hive: Running, tmp_path: Path) -> None:
    script = """
    for n in $(seq 20); do
        head -c $((n * 5000)) /dev/urandom > $P
        cp $P $M/storage/put
        cmp $P $M/storage/sha256:$(sha256sum $P | cut -d' ' -f1)
    done
    """
    hive.good(script, P=str(tmp_path / "p"))


def test_a_task_is_leased_and_done_once(hive: Running) -> None:
    hive.good("mkdir $M/task/builds; echo make > $M/task/builds/enq")
    got = hive.good("cat $M/task/builds/lease")
    head, _, body = got.partition("\n\n")
    fence = dict(word.split("=", 1) for word in head.split())["fence"]
    assert body == "make\n"
    hive.good(f"echo done {fence} effect=e1 > $M/task/builds/ctl")
    assert "depth=0" in hive.good("cat $M/task/builds/stats")


def test_nothing_is_lost_when_the_queen_is_killed(hive: Running) -> None:
    hive.good("mkdir $M/mailbox/kept; for n in 1 2 3; do echo $n > $M/mailbox/kept/send; done")
    os.kill(hive.pid("queen"), signal.SIGKILL)
    back = "until [ \"$(cat $M/proc/lifecycle/state 2>/dev/null)\" = ONLINE ]; do :; done"
    assert "depth=3\n" in hive.sh(f"timeout 30 bash -c '{back}; cat $M/mailbox/kept/stats'").out
    assert hive.good("cat $M/mailbox/kept/recv").endswith("\n\n1\n")
