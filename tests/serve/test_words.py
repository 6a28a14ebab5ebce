"""The words of a tree as a client meets them: ctl, streams, sinks, blobs, clones, and how errors read."""

import errno
import re

import pytest
from trio.testing import wait_all_tasks_blocked
from warren.p9.messages import (
    ALL,
    DOTL,
    PLAIN,
    WARREN,
    Rclunk,
    Rlopen,
    Ropen,
    Rread,
    Rsetattr,
    Rwrite,
    Tclunk,
    Tfsync,
    Tlopen,
    Topen,
    Tread,
    Tsetattr,
    Twalk,
    Twrite,
    Txattrwalk,
)
from warren.servers.demo import Demo
from warren.tree import Blob, Ctl, Dir, File, Refused, Text, verb

from tests.wire import O_NONBLOCK, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY, RefusedBy, Wire, served

TRACE = re.compile(r" trace=([0-9a-f]{16})$")


async def refused(wire: Wire, fid: int, data: bytes) -> OSError:
    with pytest.raises(RefusedBy) as caught:
        await wire.write(fid, data)
    return caught.value


# ctl


@pytest.mark.parametrize("version", ALL)
async def test_a_ctl_file_reads_as_its_help_and_runs_verbs(version: str) -> None:
    demo = Demo()
    async with served(demo) as service:
        wire = await service.dial(version)
        await wire.open("ctl", 1, O_RDWR)
        help_ = (await wire.read(1)).decode()
        assert help_.splitlines()[0].startswith("say WORDS [times=INT]  # ")
        assert await wire.write(1, b"say 'two words' times=2\nreset\n") == 30
        assert [b"said" in record for record in demo.events.kept] == [True, True, False]


async def test_what_echo_sends_is_accepted_from_whoever_may_use_one_verb() -> None:
    demo = Demo()
    async with served(demo, ["any ctl /ctl#say"]) as service:
        wire = await service.dial()
        await wire.walk("ctl", 1)
        await wire.want(Rlopen, Tlopen(1, 0o100101))
        with pytest.raises(RefusedBy) as none:
            await wire.want(Rread, Txattrwalk(1, 2, "security.capability"))
        assert none.value.errno == errno.ENODATA
        await wire.want(Rsetattr, Tsetattr(1, 0x68, 0, 0, 0, 0, 0, 0, 0, 0))
        await wire.want(Rwrite, Twrite(1, 0, b"say x\n"))
        await wire.want(Rclunk, Tclunk(1))
        assert len(demo.events.kept) == 1

        await wire.open("ctl", 1, O_RDWR)
        assert (await refused(wire, 1, b"reset\n")).errno == errno.EACCES
        assert (await refused(wire, 1, b"say a\nreset\n")).errno == errno.EACCES
        assert len(demo.events.kept) == 1, "every line is decided before any runs"
        with pytest.raises(RefusedBy):
            await wire.want(Rsetattr, Tsetattr(1, 1, 0o777, 0, 0, 0, 0, 0, 0, 0))


async def test_all_lines_parse_before_any_runs_and_the_first_failure_stops() -> None:
    demo = Demo()
    async with served(demo) as service:
        wire = await service.dial(WARREN)
        await wire.open("ctl", 1, O_RDWR)
        error = await refused(wire, 1, b"say one\nsay two times=many\n")
        assert "line 2" in str(error)
        assert not demo.events.kept
        error = await refused(wire, 1, b"say one\nsay two times=101\nsay three\n")
        assert "line 2: times is 1 to 100, not 101" in str(error)
        assert len(demo.events.kept) == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"jump\n", "no verb 'jump'; the verbs are say, reset, unlock"),
        (b"say\n", "words is missing; usage: say WORDS"),
        (b"say a b\n", "'b' is one word too many"),
        (b"say 'a\n", "a quote is not closed"),
        (b"say a\0\n", "a NUL byte"),
        (b"say \xff\n", "byte 4 is not UTF-8"),
        (b"say " + b"x" * 5000, "longer than 4096 bytes"),
        (b"\n" * 400, "more than 256 lines"),
        (b"say a times=1 times=2", "times is given twice"),
    ],
)
async def test_a_verb_that_cannot_be_says_why_and_can_be_read_back(text: bytes, why: str) -> None:
    async with served(Demo()) as service:
        wire = await service.dial()
        await wire.open("ctl", 1, O_RDWR)
        await refused(wire, 1, text)
        told = (await wire.read(1)).decode()
        assert why in told
        assert told.endswith("\n")
        found = TRACE.search(told.rstrip())
        assert found
        entry = service.export.trace.find(int(found[1], 16))
        assert entry
        assert (entry.op, entry.path) == ("Twrite", "/ctl")
        assert why in entry.text
        await wire.open("dev/errstr", 2)
        assert (await wire.read(2)).decode() == told
        await wire.write(1, b"reset")
        assert b"say WORDS" in await wire.read(1), "success forgets the error"


async def test_a_secret_reaches_neither_audit_nor_trace() -> None:
    async with served(Demo()) as service:
        wire = await service.dial()
        await wire.open("ctl", 1, O_RDWR)
        await wire.write(1, b"unlock front swordfish")
        assert await wire.read(1) == b"front is open\n"
        await refused(wire, 1, b"unlock front swordfish extra=1")
        everything = str(service.export.audit.lines) + str(service.export.trace.entries())  # type: ignore[attr-defined]
        assert "unlock front ***" in everything
        assert "swordfish" not in everything


async def test_errors_read_as_each_dialect_words_them() -> None:
    async with served(Demo()) as service:
        for version, words in (
            (PLAIN, "file does not exist"),
            (DOTL, ""),
            (WARREN, "404 not_found: file does not exist"),
        ):
            wire = await service.dial(version)
            with pytest.raises(RefusedBy) as caught:
                await wire.want(Rread, Twalk(0, 1, ["absent"]))
            assert caught.value.errno == (0 if version == PLAIN else errno.ENOENT)
            assert TRACE.sub("", caught.value.strerror or "") == words
            assert bool(TRACE.search(caught.value.strerror or "")) == (version == WARREN)


async def test_a_trace_id_that_came_with_the_request_is_the_one_in_the_error() -> None:
    async with served(Demo()) as service:
        wire = await service.dial(WARREN)
        m = Twalk(0, 1, ["absent"])
        m.trace = 0xFEEDFACECAFEBEEF
        with pytest.raises(RefusedBy, match="trace=feedfacecafebeef"):
            await wire.want(Rread, m)
        assert service.export.trace.find(0xFEEDFACECAFEBEEF)


async def test_an_internal_error_says_only_that() -> None:
    def burst() -> str:
        raise RuntimeError("the secret detail")

    async def later() -> str:
        raise RuntimeError("the secret detail")

    async with served(Dir({"bad": Text(burst), "worse": Text(later)})) as service:
        wire = await service.dial(WARREN)
        for fid, name in enumerate(("bad", "worse"), 1):
            await wire.open(name, fid)
            with pytest.raises(RefusedBy) as caught:
                await wire.read(fid)
            assert caught.value.errno == errno.EIO
            text = caught.value.strerror or ""
            assert TRACE.sub("", text) == "500 internal"
            found = TRACE.search(text)
            assert found
            entry = service.export.trace.find(int(found[1], 16))
            assert entry
            assert "the secret detail" in entry.text
        await wire.open("dev/errstr", 9)
        assert b"secret" not in await wire.read(9)


async def test_a_handle_that_gives_more_than_was_asked_for_is_our_error_and_not_the_wire_s() -> None:
    async with served(Dir({"f": File(lambda offset, count: bytes(count + 1))})) as service:
        wire = await service.dial()
        await wire.open("f", 1)
        with pytest.raises(RefusedBy) as caught:
            await wire.read(1)
        assert caught.value.errno == errno.EIO


# Streams


async def test_one_record_a_read_and_a_continuation_ends_what_cat_asks() -> None:
    demo = Demo()
    async with served(demo) as service:
        wire = await service.dial()
        await wire.open("events", 1)
        demo.tell("a")
        demo.tell("b")
        record = await wire.read(1, 0, 4096)
        assert b"kind=a" in record
        n = len(record)
        assert await wire.read(1, n, 4096 - n) == b"", "the same read(2) goes on"
        assert b"kind=b" in await wire.read(1, n, 4096)


async def test_a_reader_who_asks_anew_gets_a_record_whatever_the_offset() -> None:
    demo = Demo()
    async with served(demo) as service:
        wire = await service.dial()
        await wire.open("events", 1, O_NONBLOCK)
        demo.tell("a")
        demo.tell("b")
        n = len(await wire.read(1, 0, 4096))
        assert b"kind=b" in await wire.read(1, n, 4096)
        await wire.send(Tread(1, 0, 4096), tag=5)
        await wait_all_tasks_blocked()
        assert service.export.statistics()["parked"] == 1, "O_NONBLOCK still blocks"
        demo.tell("c")
        assert isinstance(await wire.reply(), Rread)


async def test_a_short_read_goes_on_with_its_record() -> None:
    demo = Demo()
    async with served(demo) as service:
        wire = await service.dial()
        await wire.open("recv", 1)
        await wire.open("send", 2, O_WRONLY)
        await wire.write(2, b"0123456789")
        await wire.write(2, b"next")
        assert [await wire.read(1, 0, 4), await wire.read(1, 4, 4), await wire.read(1, 8, 4)] == [
            b"0123", b"4567", b"89",
        ]  # fmt: skip
        assert await wire.read(1, 10, 4) == b"next"


async def test_a_reader_that_lagged_is_told() -> None:
    demo = Demo()
    async with served(demo) as service:
        wire = await service.dial()
        await wire.open("events", 1)
        for _ in range(300):
            demo.tell("x")
        assert await wire.read(1) == b"lost n=44\n"
        assert b"seq=45 " in await wire.read(1)


async def test_a_stream_can_begin_at_an_older_record() -> None:
    demo = Demo()
    async with served(demo) as service:
        wire = await service.dial()
        for _ in range(5):
            demo.tell("x")
        await wire.open("events", 1, O_RDWR)
        for bad, why in ((b"to 3", errno.EINVAL), (b"from x", errno.EINVAL), (b"from 99", errno.ESPIPE)):
            assert (await refused(wire, 1, bad)).errno == why
        await wire.write(1, b"from 3")
        assert b"seq=3 " in await wire.read(1)
        assert (await refused(wire, 1, b"from 1")).errno == errno.EEXIST


async def test_truncating_what_has_no_length_does_nothing() -> None:
    async with served(Demo()) as service:
        wire = await service.dial()
        for fid, name in enumerate(("hello", "ctl", "events", "send", "submit"), 1):
            await wire.open(name, fid, (O_RDWR if name in ("ctl", "hello", "events") else O_WRONLY) | O_TRUNC)
            await wire.want(Rsetattr, Tsetattr(fid, 0x68, 0, 0, 0, 0, 0, 0, 0, 0))


# Sinks and blobs


async def test_a_full_queue_refuses_at_once() -> None:
    async with served(Demo()) as service:
        wire = await service.dial(WARREN)
        await wire.open("send", 1, O_WRONLY)
        for _ in range(64):
            await wire.write(1, b"x")
        error = await refused(wire, 1, b"x")
        assert error.errno == errno.EAGAIN
        assert "429 busy: 64 records wait to be read retry_after=1" in str(error)


@pytest.mark.parametrize("version", ALL)
async def test_a_record_that_may_be_a_piece_of_more_is_refused(version: str) -> None:
    """What a client may put in one write is iounit; exactly that much may be the first piece of more."""
    async with served(Demo()) as service:
        wire = await service.dial(version, 512)
        await wire.walk("send", 1)
        if version == PLAIN:
            iounit = (await wire.want(Ropen, Topen(1, 1))).iounit
        else:
            iounit = (await wire.want(Rlopen, Tlopen(1, O_WRONLY))).iounit
        assert len(wire.pack(Twrite(1, 0, bytes(iounit)))) <= 512, "a write of iounit bytes must fit"
        await refused(wire, 1, bytes(iounit))
        assert await wire.write(1, bytes(iounit - 1)) == iounit - 1


class Bodies(Dir):
    """A blob that keeps what was committed; the first byte may declare a length."""

    def __init__(self, measured: bool = False) -> None:
        self.kept: list[tuple[bytes, bool]] = []
        measure = (lambda body: body[0] if body else None) if measured else None
        super().__init__({"blob": Blob(self.keep, measure, limit=100)})

    def keep(self, body: bytes, declared: bool) -> str:
        if b"bad" in body:
            raise Refused(422, "the body is bad")
        self.kept.append((body, declared))
        return f"{len(body)}"


async def test_a_body_commits_at_clunk_and_says_so() -> None:
    tree = Bodies()
    async with served(tree) as service:
        wire = await service.dial()
        await wire.open("blob", 1, O_WRONLY)
        await wire.write(1, b"abc")
        await wire.write(1, b"def", 3)
        assert not tree.kept
        await wire.clunk(1)
        assert tree.kept == [(b"abcdef", False)]


async def test_a_body_commits_at_fsync_once() -> None:
    tree = Bodies()
    async with served(tree) as service:
        wire = await service.dial()
        await wire.open("blob", 1, O_RDWR)
        await wire.write(1, b"abc")
        for _ in range(2):
            await wire.ask(Tfsync(1, 0))
        assert await wire.read(1) == b"3\n"
        assert (await refused(wire, 1, b"more")).errno == errno.EEXIST
        await wire.clunk(1)
        assert tree.kept == [(b"abc", True)]


async def test_a_declared_body_commits_on_its_last_byte() -> None:
    tree = Bodies(measured=True)
    async with served(tree) as service:
        wire = await service.dial()
        await wire.open("blob", 1, O_WRONLY)
        await wire.write(1, b"\x06abc")
        await wire.write(1, b"de", 4)
        assert tree.kept == [(b"\x06abcde", True)]
        await wire.clunk(1)
        assert len(tree.kept) == 1

        await wire.open("blob", 1, O_WRONLY)
        await wire.write(1, b"\x06abc")
        assert (await refused(wire, 1, b"defg")).errno in (errno.ESPIPE, errno.EFBIG)
        with pytest.raises(RefusedBy):
            await wire.clunk(1)
        assert len(tree.kept) == 1, "a length mismatch discards"

        await wire.open("blob", 1, O_WRONLY)
        assert (await refused(wire, 1, b"\xc8abc")).errno == errno.EFBIG
        await wire.clunk(1)
        assert len(tree.kept) == 1


async def test_a_disconnect_and_a_new_version_discard_a_body() -> None:
    tree = Bodies()
    async with served(tree) as service:
        wire = await service.dial()
        await wire.open("blob", 1, O_WRONLY)
        await wire.write(1, b"abc")
        await wire.version()
        await wire.attach()
        await wire.open("blob", 1, O_WRONLY)
        await wire.write(1, b"def")
        await wire.stream.aclose()
        await wait_all_tasks_blocked()
        assert not service.export.sessions
        assert not tree.kept


async def test_a_body_is_written_in_order_and_within_its_limit() -> None:
    tree = Bodies()
    async with served(tree) as service:
        wire = await service.dial()
        await wire.open("blob", 1, O_WRONLY)
        for offset in (1, 2**64 - 1):
            with pytest.raises(RefusedBy) as caught:
                await wire.write(1, b"x", offset)
            assert caught.value.errno == errno.ESPIPE
        assert (await refused(wire, 1, bytes(101))).errno == errno.EFBIG
        await wire.write(1, b"bad")
        with pytest.raises(RefusedBy) as caught:
            await wire.want(Rread, Tfsync(1, 0))
        assert caught.value.errno == errno.EBADMSG
        await wire.clunk(1)
        assert not tree.kept


# Clones


async def test_a_clone_lives_while_a_fid_is_inside_it() -> None:
    demo = Demo()
    async with served(demo) as service:
        wire = await service.dial()
        await wire.open("clone", 1, O_RDWR)
        assert await wire.read(1) == b"1\n"
        assert await wire.write(1, b"add 5\nadd") == 9
        assert await wire.read(1) == b"5\n6\n"
        other = await service.dial()
        await other.open("1/value", 2)
        await wire.clunk(1)
        assert await other.read(2) == b"6\n"
        await other.clunk(2)
        assert not demo.counters
        with pytest.raises((RefusedBy, AssertionError)):
            await other.walk("1/ctl", 3)


async def test_a_kept_clone_outlives_its_maker_until_it_is_finished() -> None:
    demo = Demo()
    async with served(demo) as service:
        wire = await service.dial()
        await wire.open("clone", 1, O_RDWR)
        await wire.write(1, b"keep")
        await wire.stream.aclose()
        await wait_all_tasks_blocked()
        assert list(demo.counters) == ["1"]
        wire = await service.dial()
        await wire.open("1/ctl", 1, O_WRONLY)
        await wire.write(1, b"finish")
        assert list(demo.counters) == ["1"], "it is held"
        await wire.clunk(1)
        assert not demo.counters


async def test_walking_out_of_a_clone_lets_go_of_it() -> None:
    demo = Demo()
    async with served(demo) as service:
        wire = await service.dial()
        await wire.open("clone", 1, O_RDWR)
        await wire.walk("1/value", 2)
        await wire.clunk(1)
        assert demo.counters
        await wire.walk("../..", 2, fid=2)
        assert not demo.counters


async def test_opening_a_clone_twice_at_once_makes_no_orphan() -> None:
    demo = Demo()
    async with served(demo) as service:
        wire = await service.dial()
        await wire.walk("clone", 1)
        await wire.send(Tlopen(1, O_RDWR), Tlopen(1, O_RDWR), tag=5)
        kinds = sorted(type(m).__name__ for m in await wire.replies(2))
        assert kinds == ["Rlerror", "Rlopen"]
        await wire.clunk(1)
        assert not demo.counters


async def test_a_clone_s_ctl_is_guarded_by_its_own_path() -> None:
    async with served(Demo(), ["any ctl /clone", "any ctl /*/ctl#add"]) as service:
        wire = await service.dial()
        await wire.open("clone", 1, O_RDWR)
        await wire.write(1, b"add")
        assert (await refused(wire, 1, b"keep")).errno == errno.EACCES


async def test_reading_a_value_needs_its_line_whole() -> None:
    words = ["first"]
    async with served(Dir({"value": Text(lambda: words[-1])})) as service:
        wire = await service.dial()
        await wire.open("value", 1, O_RDONLY)
        assert await wire.read(1, 0, 3) == b"fir"
        words.append("changed")
        assert await wire.read(1, 3, 10) == b"st\n", "what is read was true at one moment"
        assert await wire.read(1, 0, 10) == b"changed\n"


class WaitCtl(Ctl):
    @verb
    def wait(self, *, for_: int = 0) -> str:
        """Wait for so long."""
        return f"waited {for_}"


async def test_a_word_that_python_has_is_a_key_like_any_other() -> None:
    async with served(Dir({"ctl": WaitCtl()})) as service:
        wire = await service.dial()
        await wire.open("ctl", 1, O_RDWR)
        assert await wire.read(1) == b"wait [for=INT]  # Wait for so long.\n"
        await wire.write(1, b"wait for=7\n")
        assert await wire.read(1) == b"waited 7\n"


async def test_a_body_whose_declaration_is_refused_is_not_committed_by_the_close() -> None:
    committed = []

    def measure(head: bytes) -> int | None:
        raise Refused(400, "that declares nothing")

    def commit(body: bytes, declared: bool) -> None:
        committed.append(body)

    async with served(Dir({"put": Blob(commit, measure)})) as service:
        wire = await service.dial()
        await wire.open("put", 1, O_WRONLY)
        with pytest.raises(RefusedBy):
            await wire.write(1, b"len=x\n")
        await wire.clunk(1)
    assert committed == []
