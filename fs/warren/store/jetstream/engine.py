"""What is asked of JetStream: a message by its place, the newest of a subject, and a write that expects.

    PREFIX      a stream: one subject for each topic, all its messages
    KV_PREFIX   a bucket: one subject for each key, its newest message; a place in the stream is a revision

Each question goes to the leader of its stream. One that is not answered is asked again until PATIENCE is
over, for a cluster that lost its leader has another within seconds. A write is asked again only while nothing
is in the place it is meant for: it carries the place of the message it must follow, and no two can follow the
same one. So it is done once or not at all, whatever was lost on the way, and one that comes late changes
nothing that others did meanwhile.

With replicas a leader compares the place on a subject before the others have agreed, so two writes under way
may both pass (nats-server 2.9). What all of them compare, when they apply it, is the newest place of the
whole stream. So there a write expects that too: one at a time in each process, and of two processes one
begins again.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import trio
from warren.store.interface import StoreFailed, StoreFull
from warren.store.jetstream.line import Line, Unanswered

T = TypeVar("T")

ANSWER: Final = 2.0  # seconds for one answer
PAUSE: Final = 0.1  # seconds until the next attempt
EXPECT: Final = "Nats-Expected-Last-Subject-Sequence"
EXPECT_ALL: Final = "Nats-Expected-Last-Sequence"
MARK: Final = "Warren-Write"
DELETED: Final = "KV-Operation"  # with DEL or PURGE: what a bucket's clients write for a deletion
_NOT_FOUND: Final = 404
_NO_MESSAGE, _NOT_DELETED, _WRONG_LAST = 10037, 10057, 10071
_FULL: Final = frozenset((10023, 10028, 10047, 10077, 10122))
# Another was faster to make it; or those who are to hold the replicas have not all been heard of yet.
_SOON: Final = frozenset((10005, 10023, 10058, 10074))
_MANY: Final = 100_000


class Found(NamedTuple):
    """A message in its place."""

    subject: str
    at: int
    headers: dict[str, str]
    data: bytes


class _Message(msgspec.Struct):
    subject: str
    seq: int
    data: str = ""
    hdrs: str = ""


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _State(msgspec.Struct):
    last_seq: int = 0
    messages: int = 0
    bytes: int = 0
    subjects: dict[str, int] | None = None


class Answer(msgspec.Struct):
    """Any answer of the API, as far as it concerns us."""

    error: _Error | None = None
    message: _Message | None = None
    state: _State | None = None
    config: dict[str, Any] | None = None
    cluster: dict[str, Any] | None = None
    seq: int = 0
    total: int = 0
    name: str = ""
    num_pending: int = 0


_decode: Final = msgspec.json.Decoder(Answer).decode


class Late(Exception):
    """The message that the write was to follow is not the newest any more."""


class Engine:
    """Questions to one pair of streams."""

    def __init__(self, line: Line, prefix: str, replicas: int, patience: float) -> None:
        self.line, self.replicas, self.patience = line, replicas, patience
        self.logs, self.values = prefix, f"KV_{prefix}"
        self._turns: dict[str, trio.Lock] = {}
        self._ends: dict[str, int] = {}  # the newest place of a stream, as far as is known here
        self.log_root, self.value_root = f"{prefix}.log", f"$KV.{prefix}"

    async def prepare(self) -> None:
        """Make the streams that are not there."""
        common: dict[str, Any] = {"storage": "file", "num_replicas": self.replicas, "discard": "new"}
        await self._make({"name": self.logs, "subjects": [f"{self.log_root}.>"], **common})
        await self._make(
            {"name": self.values, "subjects": [f"{self.value_root}.>"], "max_msgs_per_subject": 1, **common}
        )

    async def _make(self, config: dict[str, Any]) -> None:
        name, replicas = config["name"], config["num_replicas"]

        async def there_or_made() -> Answer:
            found = await self._once(f"STREAM.INFO.{name}", None)
            if found.error is None or found.error.code != _NOT_FOUND:
                return found
            found = await self._once(f"STREAM.CREATE.{name}", config)
            if found.error is not None and found.error.err_code in _SOON:
                raise Unanswered(found.error.description)
            return found

        found = self._check(await self.patiently(there_or_made))
        there = (found.config or {}).get("num_replicas", replicas)
        if there < replicas:
            raise StoreFailed(
                f"{self.line.shown}: the stream {name} has {there} replicas, and {replicas} are asked for; "
                f"change it with: nats stream edit {name} --replicas {replicas}"
            )

    # Reading

    async def newest(
        self, stream: str, subject: str, least: Callable[[], int] = lambda: 0
    ) -> Found | None:
        """The newest message of a subject.

        LEAST tells a place known to be taken there: an answer older than that comes from a leader who
        does not know everything yet, and is asked for again.
        """

        async def look() -> Found | None:
            found = self._message(await self._once(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject}))
            if (found.at if found else 0) < least():
                raise Unanswered("a leader that is not up to date")
            return found

        return await self.patiently(look)

    async def next(self, stream: str, subject: str, at: int) -> Found | None:
        """The first message of a subject, or of those under a wildcard, from a place on."""
        asked = {"seq": max(at, 1), "next_by_subj": subject}
        return self._message(await self.ask(f"STREAM.MSG.GET.{stream}", asked))

    async def state(self, stream: str) -> _State:
        """How a stream stands."""
        found = self._check(await self.ask(f"STREAM.INFO.{stream}"))
        return found.state or _State()

    async def subjects(self, stream: str, pattern: str) -> tuple[list[str], int]:
        """Every subject that has a message, and the place of the newest message by then."""
        names: list[str] = []
        while True:
            asked = {"subjects_filter": pattern, "offset": len(names)}
            found = self._check(await self.ask(f"STREAM.INFO.{stream}", asked))
            state = found.state or _State()
            names += state.subjects or ()
            if not state.subjects or len(names) >= found.total or len(state.subjects) < _MANY:
                return names, state.last_seq

    # Writing

    async def write(
        self,
        stream: str,
        subject: str,
        data: bytes,
        headers: dict[str, str],
        after: int,
        ours: Callable[[], Awaitable[int | None]],
    ) -> int:
        """Write a message that follows the one at AFTER, 0 for none; its place. Raises `Late`, StoreFull.

        OURS looks whether it is there after all, when an answer was lost: its place, 0 when nothing follows
        AFTER, None when something else does. Cancelled: it is written or not; what was asked is waited for.
        """
        headers = {**headers, EXPECT: str(after), "Nats-Expected-Stream": stream}
        if self.replicas == 1:
            return await self._write(stream, subject, data, headers, ours)
        async with self._turns.setdefault(stream, trio.Lock()):
            return await self._write(stream, subject, data, headers, ours)

    async def _write(
        self,
        stream: str,
        subject: str,
        data: bytes,
        headers: dict[str, str],
        ours: Callable[[], Awaitable[int | None]],
    ) -> int:
        doubt, lost = "", False
        with trio.CancelScope() as over:
            over.deadline = trio.current_time() + self.patience
            while True:
                if doubt:
                    try:
                        place = await ours()
                    except StoreFailed as e:
                        if not lost:
                            raise Late from None  # each attempt was refused, so it was not done
                        raise StoreFailed(f"{e}; the write may have been done") from None
                    if place is None:
                        raise Late
                    if place:
                        return place
                if self.replicas > 1:
                    if doubt or stream not in self._ends:
                        self._ends[stream] = (await self.state(stream)).last_seq
                    headers[EXPECT_ALL] = str(self._ends[stream])
                try:
                    with trio.CancelScope(shield=True):
                        said = await self.line.ask(subject, data, headers, ANSWER)
                    answer = _decode(said.data)
                    if answer.error is None:
                        self._ends[stream] = answer.seq
                        return answer.seq
                    doubt = answer.error.description
                    if answer.error.err_code == _WRONG_LAST:
                        if self.replicas == 1 and not lost:
                            raise Late
                        if self.replicas > 1:
                            continue
                    elif answer.error.code < 500 or answer.error.err_code in _FULL:
                        self._check(answer)
                except (Unanswered, msgspec.DecodeError) as e:
                    doubt, lost = str(e) or "no answer", True
                await trio.sleep(PAUSE)
        raise StoreFailed(f"{self.line.shown}: {doubt}; the write may have been done")

    async def purge(self, stream: str, subject: str, before: int) -> None:
        """Give back the room of a subject's messages before a place. Harmless to repeat, and to leave.

        A follower that is behind that place is moved to it by the server: it sees a place left out.
        """
        self._check(await self.ask(f"STREAM.PURGE.{stream}", {"filter": subject, "seq": before}))

    async def remove(self, stream: str, at: int) -> None:
        """Remove the message in one place. Harmless to repeat."""
        said = await self.ask(f"STREAM.MSG.DELETE.{stream}", {"seq": at, "no_erase": True})
        if said.error is not None and said.error.err_code not in (_NO_MESSAGE, _NOT_DELETED):
            self._check(said)

    async def follow(self, stream: str, pattern: str, to: str, seen: int, heartbeat: float) -> Answer:
        """Have all changes after SEEN told to a subject, without bodies; after 0 the newest of each first."""
        config = {
            "deliver_subject": to,
            "deliver_policy": "by_start_sequence" if seen else "last_per_subject",
            "filter_subject": pattern,
            "ack_policy": "none",
            "max_deliver": 1,
            "headers_only": True,
            "flow_control": True,
            "idle_heartbeat": round(heartbeat * 1e9),
            "inactive_threshold": round(60e9),
            "mem_storage": True,
            "num_replicas": 1,
        }
        if seen:
            config["opt_start_seq"] = seen + 1
        asked = {"stream_name": stream, "config": config}
        return self._check(await self.ask(f"CONSUMER.CREATE.{stream}", asked))

    # Asking

    async def ask(self, what: str, body: object = None) -> Answer:
        """One question of the API, as often as it takes."""

        async def once() -> Answer:
            return await self._once(what, body)

        return await self.patiently(once)

    async def patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What ATTEMPT answers, tried until PATIENCE is over."""
        trouble = ""
        with trio.move_on_after(self.patience):
            while True:
                try:
                    return await attempt()
                except Unanswered as e:
                    trouble = str(e)
                await trio.sleep(PAUSE)
        trouble = trouble or "no answer"
        raise StoreFailed(f"{self.line.shown}: {trouble}; see that a majority of its servers runs")

    async def _once(self, what: str, body: object) -> Answer:
        data = b"" if body is None else msgspec.json.encode(body)
        said = await self.line.ask(f"$JS.API.{what}", data, None, ANSWER)
        try:
            answer = _decode(said.data)
        except msgspec.DecodeError as e:
            raise Unanswered(f"an answer that cannot be read: {e}") from None
        if answer.error is not None and answer.error.code >= 500 and answer.error.err_code not in _FULL:
            raise Unanswered(answer.error.description)
        return answer

    def _message(self, answer: Answer) -> Found | None:
        if answer.error is not None and answer.error.err_code == _NO_MESSAGE:
            return None
        message = self._check(answer).message
        if message is None:
            return None
        headers = _headers(base64.b64decode(message.hdrs)) if message.hdrs else {}
        return Found(message.subject, message.seq, headers, base64.b64decode(message.data))

    def _check(self, answer: Answer) -> Answer:
        if (error := answer.error) is None:
            return answer
        said = f"{self.line.shown}: {error.description or error.code}"
        if error.err_code in _FULL:
            raise StoreFull(f"{said}; make room on its servers, or trim")
        raise StoreFailed(said)


def _headers(text: bytes) -> dict[str, str]:
    lines = text.decode("utf-8", "replace").split("\r\n")[1:]
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}
