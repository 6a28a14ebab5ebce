"""Ctl files: verbs in, help out.

The signature of a method is the grammar of its verb, the first line of its docstring the help, and
the types of its parameters the parsers and completers:

    class DoorCtl(Ctl):
        @verb
        async def open_(self, door: str, *, hold: int = 0, pin: Secret = Secret("")) -> None:
            '''Open DOOR and hold it for that many seconds.'''

    $ cat ctl
    open DOOR [hold=INT] [pin=SECRET]  # Open DOOR and hold it for that many seconds.
    $ echo open front hold=3 > ctl

(A verb that is called as a method of `Node` is ends in `_`, which is not part of its name.)

A line is `verb word… key=value…` with rc quotes (`'two words'`, `''` is a quote), UTF-8, no NUL,
at most 4096 bytes; `#` at a word's start begins a comment, so help can be fed back. A parameter may
be given by place or by key; after `*` only by key. All lines of one write are parsed before any
runs; they run in order and stop at the first that fails, which is named by its line number.

A verb's return value, if it is a string, can be read back from the same descriptor. What went
wrong can too, since a kernel carries only an errno.
"""

import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, ClassVar, Literal, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

from warren.tree.errors import Refused
from warren.tree.node import CTL, Bytes, Caller, Changes, Handle, Maybe, Node

MAX_LINE = 4096
MAX_LINES = 256
_NEEDS_QUOTES = re.compile("[ \t'#=\n]")


class Secret(str):
    """A word that never appears in a log: audit and repr show `***`."""

    def __repr__(self) -> str:
        return "***"


class Duration(float):
    """Seconds, written `250ms`, `10s`, `5m`, `2h`, `1d` or a bare number of seconds."""

    UNITS: ClassVar = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

    @classmethod
    def parse(cls, word: str) -> "Duration":
        digits = word.rstrip("abcdefghijklmnopqrstuvwxyz")
        return cls(_finite(digits) * cls.UNITS[word[len(digits) :] or "s"])


def split(line: str) -> list[str]:
    """Words of one line, rc quotes undone. A quote inside `key='a b'` belongs to its word."""
    if "'" not in line and "#" not in line:  # as nearly always, and for a tenth of the time
        return [word for word in line.replace("\t", " ").split(" ") if word]
    words: list[str] = []
    word: list[str] | None = None
    quoted = False
    at = 0
    while at < len(line):
        c = line[at]
        at += 1
        if quoted:
            if c != "'":
                word = (word or []) + [c]
            elif line[at : at + 1] == "'":
                word = (word or []) + ["'"]
                at += 1
            else:
                quoted = False
        elif c == "'":
            quoted, word = True, word or []
        elif c in " \t":
            if word is not None:
                words.append("".join(word))
                word = None
        elif c == "#" and word is None:
            break
        else:
            word = (word or []) + [c]
    if quoted:
        raise Refused(400, "a quote is not closed", reason="bad_quoting")
    if word is not None:
        words.append("".join(word))
    return words


def quote(word: str) -> str:
    """A word as split() would read it back."""
    if word and _NEEDS_QUOTES.search(word) is None:
        return word
    return "'" + word.replace("'", "''") + "'"


def _boolean(word: str) -> bool:
    return {"1": True, "yes": True, "true": True, "on": True,
            "0": False, "no": False, "false": False, "off": False}[word.lower()]  # fmt: skip


def _finite(word: str) -> float:
    if not math.isfinite(value := float(word)):
        raise ValueError(word)
    return value


_PARSERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: lambda w: int(w, 0),
    float: _finite,
    bool: _boolean,
    Secret: Secret,
    Duration: Duration.parse,
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a verb: how it is written, parsed and completed."""

    name: str
    type: Any
    required: bool
    by_key: bool
    many: bool = False

    @property
    def choices(self) -> tuple[str, ...]:
        if get_origin(self.type) is Literal:
            return tuple(str(a) for a in get_args(self.type))
        return ("yes", "no") if self.type is bool else ()

    @property
    def shape(self) -> str:
        """As the help shows it."""
        kind = "|".join(self.choices) or self.type.__name__.upper()
        place = kind if self.choices else self.name.upper()
        word = f"{self.name}={kind}" if self.by_key else place
        return f"[{word}]..." if self.many else word if self.required else f"[{word}]"

    def parse(self, word: str) -> Any:
        if get_origin(self.type) is Literal:
            for choice in get_args(self.type):
                if str(choice) == word:
                    return choice
            raise Refused(400, f"{self.name} is one of {'|'.join(self.choices)}, not {word!r}")
        try:
            return _PARSERS[self.type](word)
        except (ValueError, KeyError):
            shown = "***" if self.type is Secret else repr(word)
            raise Refused(400, f"{self.name} takes {self.type.__name__.lower()}, not {shown}") from None


class Verb:
    """One verb: its grammar, taken from the method's signature."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method
        self.name = method.__name__.rstrip("_").replace("_", "-")
        self.help = (inspect.getdoc(method) or "").split("\n")[0]
        if not self.help:
            raise TypeError(f"verb {self.name} needs a docstring: its first line is the help")
        self.parameters: list[Parameter] = []
        self.spelt: dict[str, str] = {}  # a key, and the parameter that ends in _ since Python has the word
        self.wants_caller: str | None = None
        hints = get_type_hints(method)
        for p in list(inspect.signature(method).parameters.values())[1:]:
            kind = hints.get(p.name, str)
            if kind is Caller:
                self.wants_caller = p.name
                continue
            if get_origin(kind) in (Union, UnionType):
                kind = next(a for a in get_args(kind) if a is not type(None))
            if kind not in _PARSERS and get_origin(kind) is not Literal:
                raise TypeError(f"verb {self.name}: parameter {p.name} has no parser for {kind!r}")
            self.spelt[p.name.rstrip("_")] = p.name
            self.parameters.append(
                Parameter(
                    p.name.rstrip("_"),
                    kind,
                    p.default is p.empty and p.kind is not p.VAR_POSITIONAL,
                    p.kind is p.KEYWORD_ONLY,
                    p.kind is p.VAR_POSITIONAL,
                )
            )

    @property
    def usage(self) -> str:
        return " ".join([self.name, *(p.shape for p in self.parameters)])

    def parse(self, words: list[str]) -> "Call":
        """Words after the verb, as a call. Every mistake names the usage."""
        by_name = {p.name: p for p in self.parameters}
        places = [p for p in self.parameters if not p.by_key]
        positional: list[Any] = []
        keyed: dict[str, Any] = {}
        shown = [self.name]
        for word in words:
            key, eq, value = word.partition("=")
            named = by_name.get(key) if eq else None
            if named is not None and not named.many:
                if key in keyed or key in [p.name for p in places[: len(positional)]]:
                    raise Refused(400, f"{key} is given twice; usage: {self.usage}")
                keyed[key] = named.parse(value)
                shown.append(f"{key}=" + ("***" if named.type is Secret else quote(value)))
                continue
            place = places[min(len(positional), len(places) - 1)] if places else None
            if place is None or (len(positional) >= len(places) and not place.many):
                raise Refused(400, f"{word!r} is one word too many; usage: {self.usage}")
            if place.name in keyed:
                raise Refused(400, f"{place.name} is given twice; usage: {self.usage}")
            positional.append(place.parse(word))
            shown.append("***" if place.type is Secret else quote(word))
        given = set(keyed) | {p.name for p in places[: len(positional)]}
        for p in self.parameters:
            if p.required and p.name not in given:
                raise Refused(400, f"{p.name} is missing; usage: {self.usage}")
        return Call(self, tuple(positional), keyed, " ".join(shown))


@dataclass(frozen=True)
class Call:
    """A parsed line: what will run, and how audit may show it."""

    verb: Verb
    positional: tuple[Any, ...]
    keyed: dict[str, Any]
    shown: str
    line: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        return (self.verb.name,)

    def run(self, ctl: "Ctl", caller: Caller) -> Maybe[str | None]:
        extra = {self.verb.spelt[key]: value for key, value in self.keyed.items()}
        if self.verb.wants_caller:
            extra[self.verb.wants_caller] = caller
        result: Maybe[str | None] = self.verb.method(ctl, *self.positional, **extra)
        return result


F = TypeVar("F", bound=Callable[..., Any])


def verb(method: F) -> F:
    """Mark a method of a Ctl as a verb."""
    method._verb = Verb(method)  # type: ignore[attr-defined]
    return method


class Ctl(Node):
    """A file whose writes are verbs and whose reading is their help."""

    mode = 0o600
    is_ctl = True
    swallows_truncate = True
    word = CTL
    verbs: ClassVar[dict[str, Verb]] = {}

    def __init_subclass__(cls) -> None:
        found = dict(cls.verbs)
        for value in vars(cls).values():
            if isinstance(v := getattr(value, "_verb", None), Verb):
                if hasattr(Ctl, v.method.__name__):
                    raise TypeError(f"{v.method.__name__} is a method of every file: name it {v.name}_")
                found[v.name] = v
        cls.verbs = found

    def help(self) -> str:
        """A line a verb; the whole can be written back, for the rest is a comment."""
        return "".join(f"{v.usage}  # {v.help}\n" for v in self.verbs.values())

    def parse(self, data: bytes) -> list[Call]:
        """Every line of one write as a call, or a refusal that names the line; nothing runs."""
        if b"\0" in data:
            raise Refused(400, "a NUL byte is in the text")
        try:
            lines = data.decode("utf-8").split("\n")
        except UnicodeDecodeError as e:
            raise Refused(400, f"byte {e.start} is not UTF-8") from None
        if len(lines) > MAX_LINES:
            raise Refused(413, f"more than {MAX_LINES} lines in one write")
        calls = []
        for number, line in enumerate(lines, 1):
            try:
                if len(line.encode()) > MAX_LINE:
                    raise Refused(413, f"the line is longer than {MAX_LINE} bytes")
                if words := split(line.rstrip("\r")):
                    calls.append(self._call(words, number))
            except Refused as e:
                if len(lines) > 2 or (len(lines) == 2 and lines[1]):
                    raise Refused(e.code, f"line {number}: {e.detail}", reason=e.reason) from None
                raise
        return calls

    def _call(self, words: list[str], number: int) -> Call:
        found = self.verbs.get(words[0])
        if found is None:
            raise Refused(
                400,
                f"no verb {words[0]!r}; the verbs are {', '.join(self.verbs) or 'none'}",
                reason="unknown_verb",
            )
        call = found.parse(words[1:])
        return Call(call.verb, call.positional, call.keyed, call.shown, number)

    def complete(self, words: list[str]) -> Iterator[str]:
        """What could follow these words, the last of which may be unfinished."""
        *before, last = words or [""]
        if not before:
            yield from (name for name in self.verbs if name.startswith(last))
        elif found := self.verbs.get(before[0]):
            yield from complete(found.parameters, before[1:], last)

    def setattr(self, changes: Changes) -> Maybe[None]:
        """What `echo` sends before it writes is harmless here and does nothing."""

    def open(self, flags: int, caller: Caller) -> Maybe[Handle]:
        return CtlHandle(self)


def complete(parameters: list[Parameter], before: list[str], last: str) -> Iterator[str]:
    """Words that fit the next parameter: its choices, and the keys not yet given."""
    keys = {w.partition("=")[0] for w in before if "=" in w}
    places = [p for p in parameters if not p.by_key]
    done = sum("=" not in w for w in before)
    if places and (done < len(places) or places[-1].many):
        yield from (c for c in places[min(done, len(places) - 1)].choices if c.startswith(last))
    for p in parameters:
        if p.by_key and p.name not in keys:
            options = [f"{p.name}={c}" for c in p.choices] or [f"{p.name}="]
            yield from (o for o in options if o.startswith(last))


class Command(Protocol):
    """What the session decides, writes to the audit, and runs: a line, or lines that go on together."""

    @property
    def names(self) -> tuple[str, ...]:
        """The verbs in it. Whoever may not use one of them may not have it run."""

    @property
    def shown(self) -> str:
        """How the audit may show it."""

    @property
    def line(self) -> int:
        """Where it begins, counted from 1."""


class Control(Handle):
    """An open file that is controlled by verbs. The session asks for the commands of a write, decides each
    verb, and writes audit before a command runs."""

    record = True
    tells = True
    says = b""

    def commands(self, data: bytes) -> Sequence[Command]:
        """What one write asks for, or a refusal that names the line; nothing runs."""
        raise NotImplementedError

    def run(self, command: Any, caller: Caller) -> Maybe[str | None]:
        """Do what one of `commands` says; what is returned can be read back."""
        raise NotImplementedError


class CtlHandle(Control):
    """An open ctl file of this process."""

    def __init__(self, ctl: Ctl, greeting: str = "") -> None:
        self.ctl = ctl
        self.says = (greeting or ctl.help()).encode()

    def commands(self, data: bytes) -> Sequence[Command]:
        return self.ctl.parse(data)

    def run(self, command: Call, caller: Caller) -> Maybe[str | None]:
        return command.run(self.ctl, caller)

    def read(self, offset: int, count: int) -> Maybe[Bytes]:
        return self.says[offset : offset + count]
