"""A tree of words, used by a shell: echo, cat and cp where another system would have a client library."""

import errno
import hashlib
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.mounts import Child, Mount, refused, run, sh

START = Callable[..., Child]
READER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print("open", flush=True)
for line in sys.stdin:
    print(os.read(fd, int(line)), flush=True)
"""


@pytest.fixture
def at(demo: Mount) -> Path:
    return demo.at


def test_a_value_is_read_and_set_by_the_shell(at: Path) -> None:
    assert sh("cat hello", at).out == "hello, world\n"
    assert sh("echo good evening > hello; cat hello; wc -l < hello", at).out == "good evening\n1\n"
    assert sh("echo reset > ctl && cat hello", at).out == "hello, world\n"
    (at / "hello").write_text("by Python\n")
    assert (at / "hello").read_text() == "by Python\n"
    assert sh("printf a > hello; printf b >> hello; cat hello", at).out == "b\n"


def test_a_value_is_never_old(at: Path) -> None:
    with open(at / "hello", "rb", buffering=0) as kept:
        for n in range(50):
            (at / "hello").write_text(f"{n}\n")
            assert (at / "hello").read_text() == f"{n}\n"
            assert os.pread(kept.fileno(), 99, 0) == b"%d\n" % n


def test_the_tree_is_listed(at: Path) -> None:
    listed = sh("ls; ls dev", at).out.split()
    assert listed == ["clone", "ctl", "dev", "events", "hello", "recv", "scratch", "send", "submit", "errstr"]
    assert {"-rw-------", "--w-------", "-r--------"} <= set(sh("stat -c %A *", at).out.split())


def test_ctl_says_what_it_takes_and_takes_it(at: Path) -> None:
    assert sh("cat ctl", at).out.startswith("say WORDS [times=INT]  #")
    assert sh("echo reset > ctl; echo reset >> ctl; : > ctl; printf 'reset\\nreset\\n' > ctl", at).code == 0
    assert sh("exec 3<>ctl; echo unlock front 1234 >&3; cat <&3", at).out == "front is open\n"


ERROR = re.compile(
    r"400 unknown_verb: no verb '(\w+)'; the verbs are say, reset, unlock trace=[0-9a-f]{16}\n\Z"
)


@pytest.mark.parametrize("echo", ["echo", "/bin/echo"], ids=["builtin", "program"])
def test_a_refused_write_fails_and_says_why(at: Path, echo: str) -> None:
    """The builtin fails in the shell itself, whose child cat is; a program is a sibling of cat."""
    ran = sh(f"{echo} nonsense > ctl || cat dev/errstr", at)
    assert "Invalid argument" in ran.err
    found = ERROR.match(ran.out)
    assert found, ran
    assert found[1] == "nonsense"


def test_the_conversation_itself_says_why(at: Path) -> None:
    ran = sh("exec 3<>ctl; echo nonsense >&3 || cat <&3", at)
    assert ERROR.match(ran.out), ran


def test_an_error_is_for_who_made_it(at: Path, child: START) -> None:
    code = """
import os, sys
for line in sys.stdin:
    try:
        if line.strip() == "why":
            print(open(sys.argv[1] + "/dev/errstr").read().strip() or "nothing", flush=True)
            continue
        fd = os.open(sys.argv[1] + "/ctl", os.O_WRONLY)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)
    except OSError as e:
        print(e.errno, flush=True)
"""
    # Each in a session of its own, as two terminals are.
    both = [child(f"import os; os.setsid()\n{code}", at) for _ in range(3)]
    for other, word in zip(both, ("first", "second"), strict=False):
        assert other.ask(word) == str(errno.EINVAL)
    for other, word in zip(both, ("first", "second"), strict=False):
        assert f"no verb '{word}'" in other.ask("why")
    assert both[2].ask("why") == "nothing"


def test_looking_for_what_is_not_there_hides_no_error(at: Path) -> None:
    ran = sh("echo nonsense > ctl; ls nothing; test -e none/such; [ -f x ]; cat dev/errstr", at)
    assert ERROR.match(ran.out), ran


def test_the_newest_error_counts(at: Path) -> None:
    assert "'two'" in sh("echo one > ctl; /bin/echo two > ctl; cat dev/errstr", at).out
    assert "413" in sh("echo one > ctl; dd if=/dev/zero of=hello bs=5000 count=1; cat dev/errstr", at).out


def test_lines_of_one_write_are_all_or_none(at: Path) -> None:
    sh("echo kept > hello", at)
    ran = sh("/usr/bin/printf 'reset\\nnonsense\\n' > ctl || cat dev/errstr; cat hello", at)
    assert "400 unknown_verb" in ran.out
    assert ran.out.endswith("\nkept\n")


def test_a_write_that_does_not_fit_is_refused_whole(at: Path) -> None:
    (at / "hello").write_text("kept\n")
    fd = os.open(at / "hello", os.O_WRONLY)
    for size in (5000, 200_000, 1 << 20, 3 << 20):
        with pytest.raises(OSError):
            os.write(fd, b"x" * size)
    os.close(fd)
    assert (at / "hello").read_text() == "kept\n"


def test_what_may_not_be_done_is_refused(at: Path) -> None:
    for number, script in (
        (1, "echo x > events"),
        (1, "mkdir new"),
        (1, "touch new"),
        (1, "rm hello"),
        (1, "mv hello goodbye"),
        (1, "ln -s x y"),
        (1, "ln hello y"),
    ):
        assert sh(script, at, code=None).code == number, script
    assert (at / "hello").exists()


def test_times_and_modes_of_words_are_not_kept_and_cp_and_touch_are_content(at: Path) -> None:
    assert sh("touch hello; touch ctl", at, code=None).code == 0


def test_a_parked_cat_ends_when_told(at: Path) -> None:
    began = time.monotonic()
    assert sh("timeout 1 cat events", at, code=124).out == ""
    assert time.monotonic() - began < 3
    with subprocess.Popen(["cat", at / "recv"], stdout=subprocess.PIPE) as cat:
        assert cat.stdout
        _until_parked(cat)
        cat.send_signal(signal.SIGINT)
        assert cat.wait(5) == -signal.SIGINT


def test_a_process_that_catches_the_signal_goes_on(at: Path, child: START) -> None:
    """What v9fs cannot do: the read is interrupted, the handler runs, nothing was taken."""
    code = """
import os, signal, sys
class Rang(Exception): pass
def ring(*_): raise Rang
signal.signal(signal.SIGALRM, ring)
fd = os.open(sys.argv[1], os.O_RDONLY)
for line in sys.stdin:
    if line.strip() == "alarm":
        signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        print(os.read(fd, 999), flush=True)
    except Rang:
        print("rang", flush=True)
"""
    other = child(code, at / "recv")
    assert other.ask("alarm") == "rang"
    sh("echo for you > send", at)
    assert other.ask("read") == repr(b"for you\n")


def _until_parked(process: "subprocess.Popen[bytes]") -> None:
    """Until it waits for a reply of the mount; there is no event for that."""
    stack, deadline = Path(f"/proc/{process.pid}/wchan"), time.monotonic() + 5
    while "request_wait" not in stack.read_text() and "fuse" not in stack.read_text():
        assert time.monotonic() < deadline
        os.sched_yield()


def test_whoever_left_takes_no_record(at: Path) -> None:
    """Each record of recv goes to one reader: one that was interrupted must not swallow it."""
    for _ in range(5):
        with subprocess.Popen(["cat", at / "recv"], stdout=subprocess.DEVNULL) as cat:
            _until_parked(cat)
            cat.kill()
    fd = os.open(at / "recv", os.O_RDONLY)
    for n in range(5):
        sh(f"echo {n} > send", at)
        assert os.read(fd, 999) == b"%d\n" % n
    os.close(fd)


def test_a_read_is_a_record(at: Path, child: START) -> None:
    a, b = (child(READER, at / "events") for _ in range(2))
    assert a.hear() == b.hear() == "open"
    sh("echo say hi times=3 > ctl", at)
    for reader in (a, b):
        for _ in range(3):
            assert reader.ask("100000").count("kind=said") == 1
        reader.tell("100000")
        assert reader.silent()
    sh("echo say bye > ctl", at)
    assert "bye" in a.hear()
    assert "bye" in b.hear()


def test_a_record_larger_than_the_buffer_is_continued(at: Path) -> None:
    fd = os.open(at / "recv", os.O_RDONLY)
    sh("echo 0123456789 > send; echo next > send", at)
    assert [os.read(fd, 4) for _ in range(4)] == [b"0123", b"4567", b"89\n", b"next"]
    assert os.read(fd, 4) == b"\n"
    os.close(fd)


def test_a_pipeline_reads_a_stream_line_by_line(at: Path) -> None:
    script = """
    head -n 2 recv & echo one > send; echo two > send; wait
    while read -r line; do echo "<$line>"; break; done < recv & echo three > send; wait
    """
    assert sh(script, at).out == "one\ntwo\n<three>\n"


def test_a_write_is_a_record(at: Path) -> None:
    fd = os.open(at / "recv", os.O_RDONLY)
    body = os.urandom(50_000)
    for data in (b"one", b"two\nlines\n", body):
        writer = os.open(at / "send", os.O_WRONLY)
        assert os.write(writer, data) == len(data)
        os.close(writer)
    assert [os.read(fd, 1 << 20) for _ in range(3)] == [b"one", b"two\nlines\n", body]
    os.close(fd)


def test_a_stream_can_be_waited_for_beside_others(at: Path) -> None:
    fd = os.open(at / "recv", os.O_RDONLY)
    other = os.open(at / "hello", os.O_RDONLY)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.register(other, select.POLLIN)
    assert poll.poll(2000) == [(other, select.POLLIN)]
    poll.unregister(other)
    assert poll.poll(50) == []
    sh("echo x > send", at)
    assert poll.poll(5000) == [(fd, select.POLLIN)]
    assert os.read(fd, 99) == b"x\n"
    os.close(fd)
    os.close(other)


def test_a_body_is_committed_whole(at: Path, tmp_path: Path) -> None:
    body = os.urandom(3_000_000)
    (tmp_path / "body").write_bytes(body)
    digest = hashlib.sha256(body).hexdigest()
    events = os.open(at / "events", os.O_RDONLY)
    run("cp", tmp_path / "body", at / "submit")
    assert b"kind=submitted bytes=3000000 declared=0" in os.read(events, 9999)
    run("dd", f"if={tmp_path / 'body'}", f"of={at / 'submit'}", "bs=100k", "conv=fsync,notrunc")
    assert b"kind=submitted bytes=3000000 declared=1" in os.read(events, 9999)
    fd = os.open(at / "submit", os.O_RDWR)
    os.write(fd, body)
    os.fsync(fd)
    assert os.pread(fd, 999, 0).decode() == f"bytes=3000000 sha256={digest}\n"
    os.close(fd)
    assert b"kind=submitted" in os.read(events, 9999)
    sh("exec 3>submit; echo a >&3; echo b >&3; exec 3>&-", at)
    assert b"bytes=4 declared=0" in os.read(events, 9999), "a shell's flushes commit nothing"
    os.close(events)


def test_a_clone_lives_as_long_as_its_descriptor(at: Path) -> None:
    script = """
    exec 3<>clone; read -r id <&3; cat $id/value
    echo add 5 >&3; cat $id/value
    echo add n=2 > $id/ctl; cat $id/value; ls $id
    exec 4<>clone; read -r other <&4; [ $id != $other ] && cat $other/value
    exec 3>&- 4>&-
    echo $id
    """
    *said, number = sh(script, at).out.split()
    assert said == ["0", "5", "7", "ctl", "value", "0"]
    deadline = time.monotonic() + 2.5
    while number in os.listdir(at):
        assert time.monotonic() < deadline, "nobody has it open"
    with refused(errno.ENOENT):
        os.stat(at / number)


def test_a_clone_may_be_kept(at: Path) -> None:
    number = sh("exec 3<>clone; read -r id <&3; echo keep >&3; exec 3>&-; echo $id", at).out.strip()
    assert sh(f"echo add 3 > {number}/ctl; cat {number}/value", at).out == "3\n"
    assert sh(f"echo finish > {number}/ctl", at).code == 0
    deadline = time.monotonic() + 2.5
    while number in os.listdir(at):
        assert time.monotonic() < deadline


def test_bytes_at_offsets(at: Path) -> None:
    assert sh("printf 0123456789 > scratch; dd if=scratch bs=1 skip=3 count=4 status=none", at).out == "3456"
    script = "printf XX | dd of=scratch bs=1 seek=4 conv=notrunc status=none; cat scratch"
    assert sh(script, at).out == "0123XX6789"
    assert sh("printf abc > scratch; cat scratch; stat -c %s scratch", at).out == "abc3\n"
    assert sh("head -c 70000 /dev/zero > scratch", at, code=1).code == 1
    assert "413" in sh("head -c 70000 /dev/zero > scratch; cat dev/errstr", at).out


def test_many_at_once(at: Path) -> None:
    command = ["head", "-n", "20", str(at / "events")]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(20)]
    for reader in readers:
        _until_parked(reader)
    sh("for i in $(seq 20); do echo say $i > ctl; done", at)
    outs = {reader.communicate(timeout=10)[0] for reader in readers}
    assert len(outs) == 1
    assert outs.pop().count(b"kind=said") == 20
