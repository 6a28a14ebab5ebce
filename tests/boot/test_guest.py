"""The guest's own tree, as a guest reaches it."""

import os
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import trio
from trio.testing import MockClock
from warren.boot.machines import guest as words
from warren.boot.machines.guest import Basket, Guest, parse
from warren.check.tree import check_tree
from warren.tree import Dir, Refused

from tests.servers.reach import files_of


async def test_it_is_a_tree(autojump_clock: MockClock) -> None:
    """All but the basket, for the suite wants to make directories where it may make files."""
    await check_tree(lambda: nullcontext(Guest(role="role R\n", inputs={"job": b"x"}, output=Dir())))


async def test_a_guest_finds_what_it_was_given() -> None:
    given = Guest(role="role R\n", signature="c2ln\n", inputs={"job": b"x" * 100_000})
    async with files_of(given) as files:
        assert await files.read("/role") == b"role R\n"
        assert await files.read("/role.sig") == b"c2ln\n"
        assert await files.read("/in/job") == b"x" * 100_000
        names = {entry.name for entry in await files.ls("/")} - {"dev"}
        assert names == {"ctl", "in", "out", "proc", "role", "role.sig"}
        for path in ("/role", "/in/job", "/role.sig"):
            with pytest.raises(PermissionError):
                await files.write(path, b"mine")


async def test_ready_is_what_it_writes() -> None:
    said = []
    given = Guest(on_report=lambda one: said.append(dict(one)))
    async with files_of(given) as files:
        await files.write("/proc/boot", b"kernel=standin\nstate=starting\n")
        assert not given.ready.is_set()
        await files.write("/proc/boot", b"state=ready\nmmu=ok\n")
        assert given.ready.is_set()
        assert await files.read("/proc/boot") == b"kernel=standin\nstate=ready\nmmu=ok\n"
    assert given.report == {"kernel": "standin", "state": "ready", "mmu": "ok"}
    assert said == [{"kernel": "standin", "state": "starting"}, {"state": "ready", "mmu": "ok"}]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("state", 400), ("=x", 400), ("State=x", 400), ("a b=c", 400), ("state=ready\n\nx=1", 400),
        ("k" * 40 + "=1", 400), ("v=" + "x" * (words.VALUE + 1), 413),
    ],
)  # fmt: skip
async def test_a_report_that_is_none_is_refused_whole(text: str, code: int) -> None:
    given = Guest()
    with pytest.raises(Refused) as refused:
        parse(text)
    assert refused.value.code == code
    async with files_of(given) as files:
        with pytest.raises(OSError, match=f"{code} "):
            await files.write("/proc/boot", text.encode())
    assert not given.report


async def test_a_report_is_bounded() -> None:
    given = Guest()
    async with files_of(given) as files:
        await files.write("/proc/boot", "".join(f"k{n}=1\n" for n in range(words.KEYS)).encode())
        await files.write("/proc/boot", b"k1=2\n")
        with pytest.raises(OSError, match=f"a report has at most {words.KEYS} keys"):
            await files.write("/proc/boot", b"more=1\n")
    assert len(given.report) == words.KEYS


def test_what_is_reported_stays_on_its_line() -> None:
    assert parse("a=x\x1b[31m\u2028y\n") == {"a": "x\\x1b[31m\\x2028y"}


async def test_verbs_come_one_a_read_and_wait_for_a_reader(autojump_clock: MockClock) -> None:
    given = Guest()
    given.tell("say hello")
    given.tell("exit 0")
    async with files_of(given) as files, await files.open("/ctl", os.O_RDONLY) as ctl:
        assert await ctl.read(100) == b"say hello\n"
        assert await ctl.read(100) == b"exit 0\n"
        with trio.move_on_after(1) as patience:
            await ctl.read(100)
        assert patience.cancelled_caught
        given.tell("test mmu")
        assert await ctl.read(100) == b"test mmu\n"


@pytest.mark.parametrize("line", ["", "two\nlines", "x" * (words.LONGEST_VERB + 1), "bell\a"])
def test_what_is_no_verb_is_not_told(line: str) -> None:
    with pytest.raises(Refused, match="is a line of at most"):
        Guest().tell(line)


def test_a_guest_that_does_not_listen_is_told_so_much_and_no_more() -> None:
    given = Guest()
    for n in range(words.VERBS):
        given.tell(f"say {n}")
    with pytest.raises(Refused) as refused:
        given.tell("say more")
    assert refused.value.code == 429


async def test_a_guest_leaves_files() -> None:
    given = Guest()
    async with files_of(given) as files:
        async with await files.create("/out/result", os.O_RDWR) as file:
            await file.pwrite(b"world", 6)
            await file.pwrite(b"hello ", 0)
            assert await file.pread(100, 0) == b"hello world"
        await files.write("/out/result", b"short")
        async with await files.create("/out/gone", os.O_WRONLY):
            pass
        await files.remove("/out/gone")
    assert isinstance(given.output, Basket)
    assert list(given.output.files) == ["result"]
    assert given.output["result"] == b"short"


async def test_what_it_leaves_is_bounded() -> None:
    basket = Basket(files=2, size=10)
    async with files_of(basket) as files:
        async with await files.create("/a", os.O_RDWR) as a:
            await a.pwrite(b"123456", 0)
            async with await files.create("/b", os.O_RDWR) as b:
                await b.pwrite(b"1234", 0)
                for data, at in ((b"x", 4), (b"x", 1 << 62), (b"12345", 0)):
                    with pytest.raises(OSError, match="507 "):
                        await b.pwrite(data, at)
                await b.pwrite(b"9876", 0)
            with pytest.raises(OSError, match="507 "):
                await files.create("/c", os.O_RDWR)
        with pytest.raises(FileExistsError):
            await files.create("/a", os.O_RDWR | os.O_EXCL)
    assert (basket["a"], basket["b"]) == (b"123456", b"9876")


@pytest.mark.parametrize("work", ["write", "truncate", "read"])
def test_a_file_that_was_removed_holds_nothing_and_takes_nothing(work: str) -> None:
    """Or a guest that keeps it open would fill the host with what nobody counts."""
    basket = Basket(files=2, size=1000)
    basket.create("a", 0, 0, 0, None)  # type: ignore[arg-type]
    old = basket.files["a"]
    old._write(0, b"x" * 900)
    basket.unlink("a", None)
    assert not old.data
    attempts: dict[str, Callable[[], object]] = {
        "write": lambda: old._write(0, b"x"), "truncate": lambda: old._cut(0),
        "read": lambda: old._read(0, 10),
    }  # fmt: skip
    with pytest.raises(Refused, match="removed"):
        attempts[work]()
    assert not old.data
