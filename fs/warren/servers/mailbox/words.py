"""What people write to a topic's files, and what they read there.

    headers     idem=KEY prio=0-9 delay=DURATION ttl=DURATION key=KEY corr=ID type=WORD len=BYTES
                batch=N heard=KEY[,KEY…], with the first message of a write
    a message   a line of key=value, an empty line, the body of `len` bytes
    options     max=N vis=DURATION wait=DURATION ack=explicit|auto|none
    answers     ID [LEASE] | nack ID [LEASE] [delay=DURATION] | extend ID [LEASE] DURATION
    a place     from SEQ | from TIME | since DURATION

Words are quoted as in a ctl line. What is unknown, given twice or out of range is refused, and then nothing
of the write counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec
from warren.servers.mailbox.records import Message
from warren.tree import Refused, split
from warren.tree.headers import WORD, duration, head, number, text, word
from warren.tree.headers import options as said
from warren.tree.report import pairs

BATCH: Final = 32
BATCH_BYTES: Final = 512 << 10
LEASE_LEAST, LEASE_MOST = 0.25, 12 * 3600.0
_UNSAID: Final = b"0:0:0:"
_FIRST: Final = re.compile(rb"(?:batch=(\d{1,2}) )?(?:heard=([\w.:/,-]{1,4000}) )?")
_SIMPLE: Final = re.compile(rb"(?:idem=([\w.:/-]{1,200}) )?(?:key=([\w.:/-]{1,200}) )?len=(\d{1,7})\n\n")
_ID: Final = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_LEASE: Final = re.compile(r"[0-9a-f]{24}")
_LEVELS: Final = ("explicit", "auto", "none")
_WORDS: Final = ("key", "corr", "type")
_HEADERS: Final = ("idem", "prio", "delay", "ttl", "key", "corr", "type", "len", "batch", "heard")


class Draft(msgspec.Struct, frozen=True, gc=False):
    """A message that somebody wants to send."""

    body: bytes
    idem: bytes = b""
    key: str = ""
    corr: str = ""
    type: str = ""
    prio: int = 0
    delay: float = 0.0
    ttl: float = 0.0
    whole: bool = True

    def payload(self) -> bytes:
        """What must be the same where the idempotency key is."""
        words = _UNSAID
        if self.key or self.corr or self.type:
            words = "".join([f"{len(word)}:{word}" for word in (self.key, self.corr, self.type)]).encode()
        return blake2b(words + self.body, digest_size=16).digest()


class Parcel(NamedTuple):
    """What was written at once: messages, and idempotency keys that need not be remembered any more."""

    drafts: list[Draft]
    heard: Sequence[bytes] = ()


class Options(NamedTuple):
    """What a reader asks for; None is as the topic has it."""

    max: int = 1
    vis: float | None = None
    wait: float | None = None
    ack: str | None = None


class Answer(NamedTuple):
    """What is to become of a leased message."""

    verb: str  # ack, nack or extend
    id: str
    lease: str
    delay: float | None = None


# Values


def identity(value: str) -> str:
    """An id as it was given out."""
    if _ID.fullmatch(value) is None:
        raise Refused(400, f"{value[:40]!r} is no id; it is the 26 characters behind id= in what recv gave")
    return value


# Sending


def _head(data: bytes, at: int) -> tuple[dict[str, str], int] | None:
    return head(data, at, _HEADERS)


def _draft(named: Mapping[str, str], body: bytes, whole: bool) -> Draft:
    return Draft(
        body,
        word("idem", named["idem"]).encode() if "idem" in named else b"",
        prio=number("prio", named["prio"], 0, 9) if "prio" in named else 0,
        delay=duration("delay", named["delay"]) if "delay" in named else 0.0,
        ttl=duration("ttl", named["ttl"], 0.001) if "ttl" in named else 0.0,
        whole=whole,
        **{name: word(name, named[name]) for name in _WORDS if name in named},
    )


def _heard(named: Mapping[str, str]) -> Sequence[bytes]:
    return [word("heard", key).encode() for key in named["heard"].split(",")] if "heard" in named else ()


class Form:
    """What is written to `send.h`: one message, or a batch of them, each with its length."""

    def __init__(self, most: int) -> None:
        self.most = most

    def measure(self, data: bytes) -> int | None:
        """How long all of it will be, once that is said."""
        found = _head(data, 0)
        if found is None:
            return None
        named, at = found
        if "batch" not in named:
            return at + self._length(named, self.most) if "len" in named else None
        count = number("batch", named["batch"], 1, BATCH)
        for nth in range(count):
            if nth and (found := _head(data, at)) is None:
                return None
            named, at = found
            at += self._length(named, BATCH_BYTES)
            if at > len(data) and nth + 1 < count:
                return None
        return at

    def simple(self, data: bytes) -> Parcel | None:
        """What is in it, if all of it is here and said in the plainest words; None looks closer."""
        first = _FIRST.match(data)
        assert first is not None  # it may be empty
        said, heard = first.groups()
        count, most = (int(said), BATCH_BYTES) if said is not None else (1, self.most)
        if not 0 < count <= BATCH:
            return None
        drafts: list[Draft] = []
        at, size, end, match = first.end(), 0, len(data), _SIMPLE.match
        while (found := match(data, at)) is not None:
            idem, key, length = found.groups()
            begins = found.end()
            at = begins + int(length)
            size += at - begins
            if at > end or size > most:
                return None
            drafts.append(Draft(data[begins:at], idem or b"", key.decode() if key else ""))
            if len(drafts) == count:
                break
        if len(drafts) < count or at < end:
            return None
        keys: Sequence[bytes] = heard.split(b",") if heard else ()
        return Parcel(drafts, keys) if all(0 < len(key) <= WORD for key in keys) else None

    def open(self, data: bytes, declared: bool) -> Parcel:
        """What is in it, or a refusal."""
        found = _head(data, 0)
        if found is None:
            raise Refused(400, "no empty line ends the headers")
        named, at = found
        heard = _heard(named)
        if "batch" not in named:
            if len(data) - at > self.most:
                raise Refused(413, f"a message is at most {self.most} bytes")
            if "len" in named and number("len", named["len"], 0, self.most) != len(data) - at:
                raise Refused(422, f"{named['len']} bytes were declared, {len(data) - at} came")
            return Parcel([_draft(named, data[at:], declared)], heard)
        drafts = []
        for nth in range(number("batch", named["batch"], 1, BATCH)):
            if nth:
                if (found := _head(data, at)) is None:
                    raise Refused(422, f"the batch ends behind {nth} messages")
                named, at = found
                for once in ("batch", "heard"):
                    if once in named:
                        raise Refused(400, f"{once} is said once, with the first message")
            end = at + self._length(named, BATCH_BYTES)
            drafts.append(_draft(named, data[at:end], True))
            at = end
        if at != len(data):
            raise Refused(422, f"the batch is {at} bytes long, and {len(data)} came")
        if sum(len(draft.body) for draft in drafts) > BATCH_BYTES:
            raise Refused(413, f"the messages of a batch have at most {BATCH_BYTES} bytes together")
        return Parcel(drafts, heard)

    def _length(self, named: Mapping[str, str], most: int) -> int:
        if "len" not in named:
            raise Refused(400, "each message of a batch says its len=")
        return number("len", named["len"], 0, most)


def shown(message: Message, values: Mapping[str, object]) -> bytes:
    """A message as it is read: what is known of it on a line, an empty line, the body."""
    said = {k: v for k, v in (("key", message.key), ("corr", message.corr), ("type", message.type)) if v}
    if message.prio:
        said["prio"] = str(message.prio)
    if message.by:
        said["from"] = message.by
    if not message.whole:
        said["undeclared"] = "1"
    head = pairs({"id": message.id, **values, **said, "len": len(message.body)})
    return head.encode() + b"\n\n" + message.body


# Receiving


def options(data: bytes) -> Options:
    """What was written to `recv` before it is read."""
    named = said(data, ("max", "vis", "wait", "ack"))
    if named.get("ack", "explicit") not in _LEVELS:
        raise Refused(400, f"ack is one of {'|'.join(_LEVELS)}")
    return Options(
        number("max", named["max"], 1, BATCH) if "max" in named else 1,
        duration("vis", named["vis"], LEASE_LEAST, LEASE_MOST) if "vis" in named else None,
        duration("wait", named["wait"]) if "wait" in named else None,
        named.get("ack"),
    )


def answers(data: bytes) -> list[Answer]:
    """What was written to `ack`, line by line."""
    if len(data) > 64 << 10:
        raise Refused(413, "one write answers at most 64 KiB of lines")
    found = []
    lines = text(data, "text").split("\n")
    for nth, line in enumerate(lines, 1):
        try:
            if words := split(line.rstrip("\r")):
                found.append(_answer(words))
        except Refused as e:
            if len(lines) > 2:
                raise Refused(e.code, f"line {nth}: {e.detail}", reason=e.reason) from None
            raise
    if len({answer.id for answer in found}) < len(found):
        raise Refused(400, "an id is answered twice in one write")
    return found


def _answer(words: list[str]) -> Answer:
    verb = words.pop(0) if words[0] in ("ack", "nack", "extend") else "ack"
    usage = {"ack": "ID [LEASE]", "nack": "nack ID [LEASE] [delay=DURATION]",
             "extend": "extend ID [LEASE] DURATION"}[verb]  # fmt: skip
    delay: float | None = None
    if verb == "extend":
        if len(words) < 2:
            raise Refused(400, f"usage: {usage}")
        delay = duration("the extension", words.pop(), LEASE_LEAST, LEASE_MOST)
    elif verb == "nack" and words and words[-1].startswith("delay="):
        delay = duration("delay", words.pop().removeprefix("delay="))
    if not 1 <= len(words) <= 2:
        raise Refused(400, f"usage: {usage}")
    if len(words) == 2 and _LEASE.fullmatch(words[1]) is None:
        raise Refused(400, f"{words[1][:40]!r} is no lease; it is what recv gave behind lease=")
    return Answer(verb, identity(words[0]), words[1] if len(words) == 2 else "", delay)


def place(data: bytes, now: float) -> tuple[int | None, float | None]:
    """From which message or which time on a subscriber wants to read."""
    words = text(data, "text").split()
    if len(words) == 2 and words[0] == "since":
        return None, now - duration("since", words[1])
    if len(words) == 2 and words[0] == "from":
        if words[1].isascii() and words[1].isdigit():
            return number("from", words[1], 0, 10**15 - 1), None
        try:
            at = datetime.fromisoformat(words[1])
            return None, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError, OSError):
            pass
    raise Refused(400, "a subscriber says: from SEQ, from 2026-01-31T12:00:00Z, or since DURATION")
