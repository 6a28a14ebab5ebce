"""When something is tried again: in virtual time, without a network."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock
from warren.mount.sdk.patience import Patience, Tries, code, passing, persist, told, unsure
from warren.mount.sdk.place import Place, place, plainly

TRACE = " trace=0123456789abcdef"
PEER = "unix!/run/q/sock"


def said(number: int, text: str) -> OSError:
    """A server's line, as the client raises it."""
    return OSError(number, text + TRACE, "/p")


BUSY = said(errno.EAGAIN, "429 busy: the topic is full retry_after=1")
DOWN = said(errno.EBUSY, "503 unavailable: the store retry_after=1.5")
DENIED = said(errno.EACCES, "403 denied: no row")
CONFLICT = said(errno.EBUSY, "409 conflict: it is in use")
FULL = said(errno.ENOSPC, "507 full: the disk")
LOST = ConnectionResetError(errno.ECONNRESET, f"the connection was lost{TRACE}; the outcome is unknown", "/p")
LATE = TimeoutError(errno.ETIMEDOUT, f"{PEER} gave no answer in 30 s{TRACE}", "/p")
AWAY = OSError(errno.EHOSTUNREACH, "no route to host")
NO_SOCKET = OSError(errno.ENOENT, f"{PEER}: No such file or directory", "/")
NO_FILE = OSError(errno.ENOENT, f"404 not_found: file does not exist{TRACE}", "/p")
REFUSED = OSError(errno.ECONNREFUSED, f"{PEER}: Connection refused", "/")
BARRED = PermissionError(errno.EACCES, f"{PEER}: our certificate was refused: revoked")
LIAR = said(errno.EACCES, "403 denied: retry_after=9 is what the row says")


@pytest.mark.parametrize(
    ("e", "again", "unknown"),
    [
        (BUSY, True, False), (DOWN, True, True), (DENIED, False, False), (CONFLICT, False, False),
        (FULL, False, False), (LOST, True, True), (LATE, True, True), (AWAY, True, True),
        (NO_SOCKET, True, False), (NO_FILE, False, False), (REFUSED, True, False), (BARRED, False, False),
        (LIAR, False, False),
        (said(errno.ECONNRESET, "500 internal: connection reset by peer"), True, True),
        (said(errno.EHOSTUNREACH, "502 upstream: it hung up"), True, True),
        (said(errno.ENOSPC, "507 full: the log retry_after=1"), True, False),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), True, False),
        (OSError(errno.EIO, "Input/output error"), False, True),
    ],
)  # fmt: skip
def test_what_passes_and_what_may_have_been_done_are_told_apart(
    e: OSError, again: bool, unknown: bool
) -> None:
    assert (passing(e, PEER), unsure(e, PEER)) == (again, unknown)


def test_only_a_servers_own_words_ask_for_a_pause() -> None:
    assert told(BUSY) == 1
    assert told(DOWN) == 1.5
    assert told(LIAR) is None
    assert told(OSError(errno.EAGAIN, "retry_after=5")) is None
    assert [code(e) for e in (BUSY, LOST, NO_SOCKET)] == [429, 0, 0]


class Fails:
    """Work that fails so often, and notes when it was tried."""

    def __init__(self, e: OSError, times: int) -> None:
        self.e, self.times, self.at = e, times, list[float]()
        self.unsure: list[bool] = []

    async def __call__(self, tries: Tries) -> str:
        self.at.append(trio.current_time())
        self.unsure.append(tries.unsure)
        await trio.lowlevel.checkpoint()
        if len(self.at) <= self.times:
            raise type(self.e)(self.e.errno, self.e.strerror, self.e.filename)
        return "done"


async def test_pauses_are_full_jitter_up_to_a_time_that_doubles(autojump_clock: MockClock) -> None:
    waits: list[list[float]] = [[] for _ in range(12)]
    for seed in range(60):
        work = Fails(LOST, 12)
        await persist(work, Patience(1e6, chance=random.Random(seed)), what="/p")
        for n, (a, b) in enumerate(zip(work.at, work.at[1:], strict=False)):
            waits[n].append(b - a)
    for n, wait in enumerate(waits):
        most = min(60.0, 0.2 * 2**n)
        assert max(wait) <= most
        assert max(wait) > most * 0.8, "as likely late"
        assert min(wait) < most * 0.2, "as soon"


async def test_what_the_server_asks_for_is_waited_for_besides(autojump_clock: MockClock) -> None:
    work = Fails(BUSY, 3)
    assert await persist(work, Patience(), what="/p") == "done"
    assert all(b - a >= 1 for a, b in zip(work.at, work.at[1:], strict=False))


async def test_a_pause_that_ends_behind_the_deadline_is_not_made(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    with pytest.raises(BlockingIOError) as caught:
        await persist(Fails(said(errno.EAGAIN, "429 busy: x retry_after=3600"), 9), Patience(), what="/p")
    assert trio.current_time() == began
    with pytest.raises(BlockingIOError) as caught:
        await persist(Fails(BUSY, 1000), Patience(10), what="/p")
    assert trio.current_time() - began <= 10
    assert any("tried" in note for note in caught.value.__notes__)


async def test_work_that_does_not_end_is_ended_by_the_deadline(autojump_clock: MockClock) -> None:
    async def never(tries: Tries) -> None:
        await trio.sleep_forever()

    began = trio.current_time()
    with pytest.raises(TimeoutError, match="not done within 7 s; the outcome is unknown") as caught:
        await persist(never, Patience(), what="/p", deadline=7)
    assert (trio.current_time() - began, caught.value.filename) == (7, "/p")


async def test_an_effect_is_tried_again_only_if_it_was_surely_not_had(autojump_clock: MockClock) -> None:
    for e, tried in ((BUSY, 2), (REFUSED, 2), (LOST, 1), (DOWN, 1), (LATE, 1)):
        work = Fails(e, 1)
        if tried == 2:
            await persist(work, Patience(), what="/p", peer=PEER, repeats=False)
        else:
            with pytest.raises(OSError, match=str(e.strerror)[:10]):
                await persist(work, Patience(), what="/p", peer=PEER, repeats=False)
        assert len(work.at) == tried, e


async def test_an_error_says_that_an_earlier_try_may_have_been_done(autojump_clock: MockClock) -> None:
    coming = [LOST, DENIED]

    async def work(tries: Tries) -> None:
        raise coming.pop(0)

    with pytest.raises(PermissionError) as caught:
        await persist(work, Patience(), what="/p")
    assert caught.value.__notes__ == [
        "tried 2 times", "an earlier try may have been done; the outcome is unknown",
    ]  # fmt: skip
    tried = Fails(LOST, 2)
    await persist(tried, Patience(), what="/p")
    assert tried.unsure == [False, True, True]


async def test_who_waits_has_a_deadline_only_for_failures_in_a_row(autojump_clock: MockClock) -> None:
    async def long(tries: Tries) -> str:
        await trio.sleep(1000)
        return "there"

    assert await persist(long, Patience(5), what="/p", waits=True) == "there"
    began = trio.current_time()
    with pytest.raises(ConnectionResetError):
        await persist(Fails(LOST, 1000), Patience(5), what="/p", waits=True)
    assert trio.current_time() - began <= 5


# Where


def test_the_environment_says_where_and_who(tmp_path: Path) -> None:
    state = {"WARREN_STATE": str(tmp_path)}
    assert place(environ=state) == Place(f"unix!{tmp_path}/run/queen/sock")
    assert place(environ={"XDG_STATE_HOME": "/x"}).address == "unix!/x/warren/default/run/queen/sock"
    assert place(environ={"RON_NODE_URL": "unix!/r"}).address == "unix!/r"
    assert place(environ={"RON_NODE_URL": "unix!/r", "WARREN_NODE_URL": "unix!/w"}).address == "unix!/w"
    secure = {"WARREN_NODE_URL": "tls://hub:5640", "WARREN_ID": "/me", "RON_CAP": "/cap"}
    assert place(environ=secure) == Place("tls!hub!5640", Path("/me"), Path("/cap"))
    assert place("unix!/a", environ={"WARREN_NODE_URL": "unix!/w"}).address == "unix!/a"


def test_addresses_may_be_written_as_urls() -> None:
    assert plainly("tls://[::1]:5640/") == "tls!::1!5640"
    assert plainly("unix:///run/sock") == "unix!/run/sock"
    assert plainly("tcp!h!1") == "tcp!h!1"
    for bad in ("https://hub:443", "tls://hub", "hub:5640", "tls://"):
        with pytest.raises(ValueError, match="is not an address"):
            place(bad, environ={})


def test_an_identity_is_found_if_there_is_one_and_asked_for_if_there_are_more(tmp_path: Path) -> None:
    there = {"WARREN_STATE": str(tmp_path), "WARREN_NODE_URL": "tls!hub!1"}
    with pytest.raises(ValueError, match="none is in"):
        place(environ=there)
    for name in ("ca", "queen"):
        (tmp_path / "pki" / name).mkdir(parents=True)
        (tmp_path / "pki" / name / "cert.pem").touch()
    assert place(environ=there).id == tmp_path / "pki/queen"
    (tmp_path / "pki/drone").mkdir()
    (tmp_path / "pki/drone/cert.pem").touch()
    with pytest.raises(ValueError, match="drone, queen: name a folder with WARREN_ID"):
        place(environ=there)


def test_a_token_never_stands_in_the_environment_and_is_never_left_out() -> None:
    text = "warren-token 1\nc2VjcmV0\n"
    with pytest.raises(ValueError, match="names a file") as caught:
        place(environ={"WARREN_NODE_URL": "tls!h!1", "WARREN_CAP": text})
    assert "c2VjcmV0" not in str(caught.value)
    with pytest.raises(ValueError, match="is shown no token"):
        place(environ={"WARREN_NODE_URL": "unix!/s", "WARREN_CAP": "/cap"})
