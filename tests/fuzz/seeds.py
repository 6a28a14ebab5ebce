"""The first corpus, written from the declarations: python -m tests.fuzz.seeds FOLDER.

One input a message for the decoder, and conversations that use each word of the demonstration tree for the
session. The fuzzer starts from them; what it finds beyond them joins the corpus.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from warren.p9 import messages as p9
from warren.p9.codec import MINFRAME, dialect
from warren.p9.fields import NOFID, NONUNAME, Qid, Stat
from warren.p9.messages import ALL, MESSAGES, PLAIN, Message

from tests.fuzz.targets import KINDS, PAUSE, POLICY, RAW

U32, U64 = 2**32 - 1, 2**64 - 1
DONT_TOUCH = Stat(0xFFFF, U32, Qid(255, U32, U64), U32, U32, U32, U64, "", "", "", "")


def of_decoder() -> Iterator[bytes]:
    for cls in MESSAGES.values():
        for number, name in enumerate(ALL):
            if name in cls.dialects:
                yield bytes([number]) + dialect(name).pack(list(cls.examples())[2], 1)


def script(name: str, *steps: Message | tuple[int, bytes], msize: int = 0) -> bytes:
    codec = dialect(name)
    kinds = [k for k in KINDS if k in codec.types]
    out = bytearray([ALL.index(name) + 3 * msize])
    for step in steps:
        if isinstance(step, tuple):
            what, payload = step
        else:
            what, payload = kinds.index(step.type), codec.pack(step, 1)[MINFRAME:]
        out += bytes([what, len(payload)]) + payload
    return bytes(out)


def openers(name: str, path: str, fid: int, flags: int) -> list[Message]:
    opened: Message = p9.Topen(fid, flags & 3) if name == PLAIN else p9.Tlopen(fid, flags)
    return [p9.Twalk(0, fid, path.split("/") if path else []), opened]


def of_session() -> Iterator[bytes]:
    pause, flush = (PAUSE, b""), p9.Tflush
    for name in ALL:

        def to(path: str, flags: int, *rest: Message | tuple[int, bytes], name: str = name) -> bytes:
            return script(name, *openers(name, path, 1, flags), *rest)

        yield to("hello", 2, p9.Twrite(1, 0, b"hi"), p9.Tread(1, 0, 100), p9.Tclunk(1))
        yield to("scratch", 2, p9.Twrite(1, 3, b"abc"), p9.Tread(1, 0, 100), p9.Tremove(1))
        yield to("ctl", 2, p9.Twrite(1, 0, b"say x times=2\nreset"), pause, p9.Tread(1, 0, 100))
        yield to("ctl", 2, p9.Twrite(1, 0, b"unlock a b\nbad"), pause, p9.Tread(1, 0, 100))
        yield to("events", 0, p9.Tread(1, 0, 100), p9.Tread(1, 0, 100), flush(4), pause, p9.Tclunk(1), pause)
        yield to("recv", 0, p9.Tread(1, 0, 9), *openers(name, "send", 2, 1), p9.Twrite(2, 0, b"abc"), pause,
                 p9.Tread(1, 0, 2), p9.Tread(1, 0, 2))  # fmt: skip
        yield to("submit", 1, p9.Twrite(1, 0, b"body"), p9.Tclunk(1))
        yield to("clone", 2, p9.Tread(1, 0, 9), p9.Twrite(1, 0, b"add 3"), pause,
                 p9.Twalk(0, 2, ["1", "value"]),
                 p9.Tclunk(1), p9.Tclunk(2))  # fmt: skip
        yield to("clone", 2, p9.Twrite(1, 0, b"keep"), pause, p9.Tclunk(1), p9.Twalk(0, 1, ["1", "ctl"]))
        yield to("clone", 2, p9.Twalk(0, 2, ["1"]), p9.Twalk(2, 3, ["..", "..", "hello"]), p9.Tclunk(2))
        yield to("events", 0, p9.Tread(1, 0, 9), (POLICY, b"x"), pause, p9.Tread(1, 0, 9), (POLICY, b"abcd"))
        yield to("dev/errstr", 0, p9.Tread(9, 0, 9), p9.Tread(1, 0, 100))
        yield script(name, p9.Tauth(1, "a", "", NONUNAME), p9.Tattach(1, NOFID, "", "/dev", NONUNAME),
                     p9.Twalk(1, 2, [".."]),
                     p9.Tversion(256, name), (RAW, bytes(7)), msize=1)  # fmt: skip
        yield to("", 0, p9.Tread(1, 0, 500), p9.Tclunk(1))
    yield script(PLAIN, p9.Tstat(0), p9.Twalk(0, 1, ["hello"]), p9.Twstat(1, DONT_TOUCH),
                 p9.Twstat(1, DONT_TOUCH._replace(length=0)), p9.Twstat(1, DONT_TOUCH._replace(name="x")),
                 p9.Tcreate(0, "n", 0o644, 1), p9.Topen(1, 0x51), p9.Tclunk(1))  # fmt: skip
    for name in ALL[1:]:
        yield script(name, *openers(name, "", 1, 0), p9.Treaddir(1, 0, 300), p9.Treaddir(1, 3, 60))
        yield script(name, p9.Tgetattr(0, 0x7FF), p9.Twalk(0, 1, ["ctl"]), p9.Tlopen(1, 0o100101),
                     p9.Txattrwalk(1, 2, "security.capability"), p9.Tsetattr(1, 0x68, *[0] * 8),
                     p9.Twrite(1, 0, b"say x\n"), PAUSE_STEP, p9.Tclunk(1))  # fmt: skip
        yield script(name, p9.Twalk(0, 1, ["scratch"]), p9.Txattrcreate(1, "user.a", 2, 0),
                     p9.Twrite(1, 0, b"ab"),
                     p9.Tclunk(1), p9.Tlcreate(0, "f", 2, 0o644, 0), p9.Tmkdir(0, "d", 0o755, 0))  # fmt: skip
        yield script(name, p9.Twalk(0, 1, ["scratch"]), p9.Tlock(1, 1, 1, 0, 0, 1, "c"),
                     p9.Tgetlock(1, 1, 0, 0, 1, "c"), p9.Trename(1, 0, "x"), p9.Trenameat(0, "hello", 0, "x"),
                     p9.Tunlinkat(0, "hello", 0), p9.Tlink(0, 1, "l"), p9.Tsymlink(0, "s", "t", 0),
                     p9.Treadlink(1), p9.Tstatfs(0), p9.Tfsync(1, 0),
                     p9.Tmknod(0, "f", 0, 0, 0, 0))  # fmt: skip


PAUSE_STEP = (PAUSE, b"")


def main(folder: Path) -> None:
    for target, found in (("decoder", of_decoder()), ("session", of_session())):
        (folder / target).mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(found):
            (folder / target / f"seed-{number:03}").write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
