"""Encoders and decoders, written from the declarations in `messages`.

For each message and dialect one packing and one parsing function is generated the first time
it is asked for, and kept. They run no interpretation at call time: a run of fixed fields is one
`struct` call. The same tests hold for all of them (round trip, truncation, trailing bytes, one
byte at a time), so what they do does not rest on trust.

    dialect(DOTL).parse(view)             a whole frame → Message (raises BadFrame)
    dialect(DOTL).pack(message, tag)      → one frame as bytes
    dialect(DOTL).packer(Rgetattr)        → pack(tag, *fields), for the hot path
    dialect(DOTL).parsers                 type → parse(tag, view, offset, end)

Nothing here allocates before the length that asks for it was checked against the frame.
"""

import struct
from collections.abc import Callable
from functools import cache
from typing import Any

from warren.p9.fields import MAXWELEM, NOTAG, Kind, Qid, Stat
from warren.p9.messages import ALL, MESSAGES, PLAIN, WARREN, Message, absent_value

HEADER = struct.Struct("<IBH")
MINFRAME = HEADER.size

Parse = Callable[[int, memoryview, int, int], Message]


class BadFrame(ValueError):
    """The peer sent bytes that are no message; the connection cannot go on."""


class BadValue(ValueError):
    """We tried to send a value that its field cannot hold."""


def _short(cls: type[Message]) -> BadFrame:
    return BadFrame(f"{cls.__name__} is truncated")


def _long(cls: type[Message]) -> BadFrame:
    return BadFrame(f"{cls.__name__} has trailing bytes")


def text(view: memoryview) -> str:
    return str(view, "utf-8", "surrogateescape")


def untext(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogateescape")
    if len(raw) > 0xFFFF:
        raise BadValue("string is longer than 65535 bytes")
    return raw


_QID = struct.Struct("<BIQ")
_STAT = struct.Struct("<HIBIQIIIQ")


def pack_stat(stat: Stat) -> bytes:
    """A directory entry with its inner size, as Rstat, Twstat and directory reads carry it."""
    body = _STAT.pack(stat.type, stat.dev, *stat.qid, *stat[3:7])
    for word in stat[7:]:
        raw = untext(word)
        body += len(raw).to_bytes(2, "little") + raw
    if len(body) > 0xFFFF:
        raise BadValue("stat is longer than 65535 bytes")
    return len(body).to_bytes(2, "little") + body


def parse_stat(view: memoryview) -> Stat:
    """The inverse of pack_stat; the view must hold exactly one entry."""
    if len(view) < 2 + _STAT.size or int.from_bytes(view[:2], "little") != len(view) - 2:
        raise BadFrame("stat has a wrong size")
    kind, dev, qtype, qver, qpath, *numbers = _STAT.unpack_from(view, 2)
    words, off = [], 2 + _STAT.size
    for _ in range(4):
        if len(view) < off + 2:
            raise BadFrame("stat is truncated")
        n = int.from_bytes(view[off : off + 2], "little")
        if len(view) < off + 2 + n:
            raise BadFrame("stat is truncated")
        words.append(text(view[off + 2 : off + 2 + n]))
        off += 2 + n
    if off != len(view):
        raise BadFrame("stat has trailing bytes")
    return Stat(kind, dev, Qid(qtype, qver, qpath), *numbers, *words)


def _present(kind: Kind, name: str) -> bool:
    return not kind.only or (kind.only == "L" and name != PLAIN) or name == WARREN


def _write_parser(
    cls: type[Message], fields: list[tuple[str, Kind]], absent: list[str], traced: bool
) -> Parse:
    """Source of parse(tag, buf, off, end). Fixed fields and the length that follows go in one unpack."""
    out = ["def parse(tag, buf, off, end):", " m = new(cls); m.tag = tag"]
    run: list[str] = []
    fmt = ""
    count = 0

    def flush() -> None:
        nonlocal run, fmt, count
        if not run:
            return
        size = struct.calcsize("<" + fmt)
        out.append(f" if end - off < {size}: raise short(cls)")
        out.append(f" {', '.join(run)}, = s{count}(buf, off); off += {size}")
        structs[f"s{count}"] = struct.Struct("<" + fmt).unpack_from
        run, fmt, count = [], "", count + 1

    structs: dict[str, Any] = {}
    for name, kind in fields:
        if kind.name == "int":
            run.append(f"m.{name}")
            fmt += kind.fmt
        elif kind.name == "qid":
            run += ["a", "b", "c"]
            fmt += "BIQ"
            flush()
            out.append(f" m.{name} = Qid(a, b, c)")
        else:
            run.append("n")
            fmt += "I" if kind.name == "data" else "H"
            flush()
            if kind.name in ("str", "data", "stat"):
                wrap = {"str": "text", "stat": "stat"}.get(kind.name, "")
                out.append(" if end - off < n: raise short(cls)")
                out.append(f" m.{name} = {wrap}(buf[off:off+n]); off += n")
            else:
                out.append(f" if n > {MAXWELEM}: raise Bad('more than {MAXWELEM} {name} in one message')")
                out.append(" found = []")
                out.append(" for _ in range(n):")
                if kind.name == "names":
                    out.append("  if end - off < 2: raise short(cls)")
                    out.append("  k = buf[off] | buf[off+1] << 8; off += 2")
                    out.append("  if end - off < k: raise short(cls)")
                    out.append("  found.append(text(buf[off:off+k])); off += k")
                else:
                    out.append("  if end - off < 13: raise short(cls)")
                    out.append("  found.append(Qid(*qid(buf, off))); off += 13")
                out.append(f" m.{name} = found")
    if traced:
        run.append("m.trace")
        fmt += "Q"
    flush()
    out += [f" m.{line}" for line in absent]
    out += [" if off != end: raise long(cls)"]
    out += [] if traced else [" m.trace = 0"]
    out += [" return m"]
    parse: Parse = _compile("\n".join(out), "parse", {
        **structs, "cls": cls, "new": cls.__new__, "short": _short, "long": _long, "text": text,
        "stat": parse_stat, "Qid": Qid, "qid": _QID.unpack_from, "Bad": BadFrame,
    })
    return parse


def _write_packer(cls: type[Message], fields: list[tuple[str, Kind]], traced: bool) -> Any:
    """Source of pack(tag, *fields[, trace]) → the frame."""
    names = [name for name, _ in fields]
    args = ", ".join(["tag", *names, *(["trace=0"] if traced else [])])
    out = [f"def pack({args}):"]
    fixed = "".join(k.fmt or {"qid": "BIQ"}.get(k.name, "") for _, k in fields)
    variable = [n for n, k in fields if k.name not in ("int", "qid")]
    if not variable:
        fmt = "<IBH" + fixed + ("Q" if traced else "")
        values = [f"{n}[0], {n}[1], {n}[2]" if k.name == "qid" else n for n, k in fields]
        values += ["trace"] if traced else []
        inner = ", ".join([str(struct.calcsize(fmt)), str(cls.type), "tag", *values])
        out.append(f" return _s({inner})")
        env: dict[str, Any] = {"_s": struct.Struct(fmt).pack}
    else:
        # Each variable field becomes bytes first; then every run of fixed fields, with the length that
        # follows it, is one struct call. The first run carries the header.
        env = {"_untext": untext, "_stat": pack_stat, "_qid": _QID.pack, "_join": b"".join}
        make = {
            "str": "_untext({n})",
            "stat": "_stat({n})",
            "data": "{n}",
            "names": "_join([len(_r).to_bytes(2, 'little') + _r for _r in map(_untext, {n})])",
            "qids": "_join([_qid(*_q) for _q in {n}])",
        }
        pieces: list[str] = []
        fmt, run = "IBH", ["_size", str(cls.type), "tag"]
        fixed_size = struct.calcsize("<IBH")
        for name, kind in fields:
            if kind.name == "int":
                fmt, run = fmt + kind.fmt, [*run, name]
                continue
            if kind.name == "qid":
                fmt, run = fmt + "BIQ", [*run, f"{name}[0]", f"{name}[1]", f"{name}[2]"]
                continue
            raw = f"_v{len(pieces)}"
            out.append(f" {raw} = {make[kind.name].format(n=name)}")
            counted = name if kind.name in ("names", "qids") else raw
            fmt, run = fmt + ("I" if kind.name == "data" else "H"), [*run, f"len({counted})"]
            pieces += [_packed(env, fmt, run), raw]
            fixed_size += struct.calcsize("<" + fmt) - (fixed_size if len(pieces) == 2 else 0)
            fmt, run = "", []
        if traced:
            fmt, run = fmt + "Q", [*run, "trace"]
        if fmt:
            pieces.append(_packed(env, fmt, run))
            fixed_size += struct.calcsize("<" + fmt)
        lengths = " + ".join(f"len({p})" for p in pieces if p.startswith("_v"))
        out.append(f" _size = {fixed_size} + {lengths}")
        out.append(f" return _join(({', '.join(pieces)}))")
    return _compile("\n".join(out), "pack", env)


def _packed(env: dict[str, Any], fmt: str, run: list[str]) -> str:
    """An expression that packs RUN; its struct goes into ENV."""
    name = f"_s{len(env)}"
    env[name] = struct.Struct("<" + fmt).pack
    return f"{name}({', '.join(run)})"


def _compile(source: str, name: str, env: dict[str, Any]) -> Any:
    exec(compile(source, f"<{name} generated by warren.p9.codec>", "exec"), env)
    return env[name]


class _Parsers(dict[int, Parse]):
    """type → parser, generated when first met: a process that speaks one dialect pays for one."""

    def __init__(self, owner: "Dialect") -> None:
        super().__init__()
        self.owner = owner

    def __missing__(self, number: int) -> Parse:
        cls = self.owner.types.get(number)
        if cls is None:
            raise BadFrame(f"message type {number} is not in {self.owner.name}")
        self[number] = made = self.owner.parser(cls)
        return made


class Dialect:
    """The codec of one protocol version."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.types = {m.type: m for m in MESSAGES.values() if name in m.dialects}
        self.parsers: dict[int, Parse] = _Parsers(self)
        self._packers: dict[type[Message], Any] = {}

    def _traced(self, cls: type[Message]) -> bool:
        return self.name == WARREN and cls.__name__[0] == "T" and cls.__name__ != "Tversion"

    def parser(self, cls: type[Message]) -> Parse:
        fields = [(n, k) for n, k in cls.fields if _present(k, self.name)]
        absent = [f"{n} = {absent_value(k)!r}" for n, k in cls.fields if not _present(k, self.name)]
        return _write_parser(cls, fields, absent, self._traced(cls))

    def packer(self, cls: type[Message]) -> Callable[..., bytes]:
        """pack(tag, *fields) for one message, without building an object first."""
        made: Callable[..., bytes] | None = self._packers.get(cls)
        if made is None:
            if self.name not in cls.dialects:
                raise BadValue(f"{cls.__name__} is not in {self.name}")
            fields = [(n, k) for n, k in cls.fields if _present(k, self.name)]
            made = self._packers[cls] = _write_packer(cls, fields, self._traced(cls))
        return made

    def pack(self, m: Message, tag: int) -> bytes:
        """One message as a frame."""
        values = [getattr(m, n) for n, k in m.fields if _present(k, self.name)]
        if self._traced(type(m)):
            values.append(m.trace)
        try:
            return self.packer(type(m))(tag, *values)
        except (struct.error, OverflowError) as e:
            raise BadValue(f"{type(m).__name__}: {e}") from None

    def parse(self, frame: bytes | bytearray | memoryview) -> Message:
        """One whole frame as a message; its own size field must agree."""
        view = memoryview(frame)
        if len(view) < MINFRAME:
            raise BadFrame("frame is shorter than its header")
        size, number, tag = HEADER.unpack_from(view)
        if size != len(view):
            raise BadFrame(f"frame says {size} bytes and has {len(view)}")
        return self.parsers[number](tag, view, MINFRAME, size)


@cache
def dialect(name: str) -> Dialect:
    """The codec for a version string that `settle` returned."""
    if name not in ALL:
        raise BadValue(f"no dialect {name}")
    return Dialect(name)


def settle(offered: str) -> str:
    """Which of our dialects answers an offered version; `unknown` when none does.

    A version with a suffix we lack is answered by its longest known prefix: 9P2000.u by 9P2000.
    """
    words = offered.split(".")
    for n in range(len(words), 0, -1):
        if (name := ".".join(words[:n])) in ALL:
            return name
    return "unknown"


__all__ = [
    "HEADER", "MINFRAME", "NOTAG", "BadFrame", "BadValue", "Dialect", "dialect", "pack_stat", "parse_stat",
    "settle", "text", "untext",
]
