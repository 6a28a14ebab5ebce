"""Every message of every dialect, through encoder and decoder.

The vectors are written out by hand from the manual's layouts, so that encoder and decoder cannot be wrong
together; the properties are derived from the declarations, so that no message can be forgotten.
"""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warren.p9 import messages as p9
from warren.p9.codec import (
    HEADER,
    MINFRAME,
    BadFrame,
    BadValue,
    Dialect,
    dialect,
    pack_stat,
    parse_stat,
    settle,
)
from warren.p9.fields import NOFID, NONUNAME, NOTAG, Qid, Stat
from warren.p9.messages import ALL, DOTL, MESSAGES, PLAIN, WARREN, Message
from warren.p9.server import Server
from warren.serve.pool import Pool

from tests.strategies import EVERY, integers, spoken


def resized(frame: bytes) -> bytes:
    """The frame with a size field that agrees with its length."""
    return struct.pack("<I", len(frame)) + frame[4:]


def refused(codec: Dialect, frame: bytes) -> bool:
    try:
        codec.parse(frame)
    except BadFrame:
        return True
    return False


@pytest.mark.parametrize("cls", EVERY, ids=lambda cls: cls.__name__)
@given(data=st.data())
def test_every_message_survives_the_wire_and_nothing_else_does(
    cls: type[Message], data: st.DataObject
) -> None:
    name, m = data.draw(spoken(cls))
    tag = NOTAG if cls is p9.Tversion else data.draw(st.integers(0, NOTAG - 1))
    codec = dialect(name)
    frame = codec.pack(m, tag)

    assert HEADER.unpack_from(frame) == (len(frame), cls.type, tag)
    back = codec.parse(frame)
    assert (back, back.tag, back.trace) == (m, tag, m.trace)
    assert codec.pack(back, tag) == frame

    for length in range(len(frame)):
        assert refused(codec, frame[:length])
        assert length < MINFRAME or refused(codec, resized(frame[:length]))
    for tail in (b"\0", b"\xff" * 9):
        assert refused(codec, frame + tail)
        assert refused(codec, resized(frame + tail))

    one_byte_at_a_time(name, frame, m, tag)


def one_byte_at_a_time(name: str, frame: bytes, m: Message, tag: int) -> None:
    pool = Pool(1 << 20)
    half = Server(pool)
    begin(half, name)
    found = 0
    for _ in range(2):
        for at in range(len(frame)):
            assert half.partial == bool(at)
            for got in half.requests(memoryview(frame)[at : at + 1]):
                assert at == len(frame) - 1
                assert (got, got.tag, got.trace) == (m, tag, m.trace)
                found += 1
    assert found == 2
    assert pool.used == 0


def begin(half: Server, name: str, msize: int = 8192) -> None:
    """A settled version exchange, forgotten."""
    for m in half.requests(memoryview(dialect(PLAIN).pack(p9.Tversion(msize, name), NOTAG))):
        assert isinstance(m, p9.Tversion)
        half.version(m)
    half.out.clear()


@pytest.mark.parametrize("cls", EVERY, ids=lambda cls: cls.__name__)
def test_the_edges_of_every_field(cls: type[Message]) -> None:
    for name in cls.dialects:
        for m in cls.examples():
            frame = dialect(name).pack(m, 5)
            assert dialect(name).pack(dialect(name).parse(frame), 5) == frame
        assert name in cls.dialects
    for name in set(ALL) - set(cls.dialects):
        with pytest.raises(BadValue):
            dialect(name).pack(next(cls.examples()), 5)


@given(st.sampled_from(ALL), st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_bad_frame(name: str, raw: bytes) -> None:
    for frame in (raw, resized(raw.ljust(MINFRAME, b"\0"))):
        try:
            m = dialect(name).parse(frame)
        except BadFrame:
            continue
        assert dialect(name).pack(m, m.tag) == frame


@pytest.mark.parametrize("cls", EVERY, ids=lambda cls: cls.__name__)
def test_what_no_field_can_hold_is_a_bad_value(cls: type[Message]) -> None:
    m = next(cls.examples())
    for name, kind in cls.fields:
        over = {
            "int": 1 << 64,
            "str": "x" * 65536,
            "names": ["x" * 65536],
            "qid": Qid(256, 0, 0),
            "qids": [Qid(0, 1 << 32, 0)],
            "stat": Stat(0, 0, Qid(0, 0, 0), 0, 0, 0, 0, "x" * 65536, "", "", ""),
        }
        if kind.name == "data":
            continue
        bad = next(cls.examples())
        setattr(bad, name, over[kind.name])
        with pytest.raises(BadValue):
            dialect(cls.dialects[-1]).pack(bad, 1)
        assert bad != m


def test_equality_and_repr_are_of_the_fields_alone() -> None:
    one, other = p9.Tread(1, 2, 3), p9.Tread(1, 2, 3)
    other.tag = 9
    assert one == other != p9.Tread(1, 2, 4)
    assert one != p9.Treaddir(1, 2, 3)
    assert repr(p9.Twrite(1, 0, b"secret")) == "Twrite(fid=1, offset=0, data=<6 bytes>)"
    with pytest.raises(TypeError):
        p9.Tread(1, 2)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        p9.Tread(1, 2, 3, 4)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        p9.Tread(1, 2, 3, colour=4)  # type: ignore[call-arg]


@given(*[integers("I")] * 2)
def test_a_stat_has_two_sizes_that_must_agree(mode: int, mtime: int) -> None:
    raw = pack_stat(Stat(0, 0, Qid(0, 0, 1), mode, 0, mtime, 0, "n", "u", "g", "m"))
    assert int.from_bytes(raw[:2], "little") == len(raw) - 2
    for bad in (raw[:-1], raw + b"x", b"\0\0" + raw[2:], (len(raw) - 3).to_bytes(2, "little") + raw[2:-1]):
        with pytest.raises(BadFrame):
            parse_stat(memoryview(bad))


@pytest.mark.parametrize(
    ("offered", "answer"),
    [
        ("9P2000", PLAIN), ("9P2000.L", DOTL), ("9P2000.L.warren", WARREN), ("9P2000.u", PLAIN),
        ("9P2000.L.other", DOTL), ("9P2000.L.warren.2", WARREN), ("9P2000.", PLAIN), ("9P2000.l", PLAIN),
        ("9P2000.warren", PLAIN), ("9P20000", "unknown"), ("9P1998", "unknown"), ("", "unknown"),
        (".L", "unknown"), ("9p2000", "unknown"), ("unknown", "unknown"), (" 9P2000", "unknown"),
    ],
)  # fmt: skip
def test_a_version_is_answered_by_its_longest_known_prefix(offered: str, answer: str) -> None:
    assert settle(offered) == answer


VECTORS: list[tuple[str, int, Message, str]] = [
    (PLAIN, NOTAG, p9.Tversion(8192, "9P2000"), "13000000 64 ffff 00200000 0600 395032303030"),
    (DOTL, NOTAG, p9.Rversion(8192, "9P2000.L"), "15000000 65 ffff 00200000 0800 3950323030302e4c"),
    (PLAIN, 1, p9.Tauth(9, "u", "", NONUNAME), "10000000 66 0100 09000000 0100 75 0000"),
    (DOTL, 1, p9.Tauth(9, "u", "", 1000), "14000000 66 0100 09000000 0100 75 0000 e8030000"),
    (PLAIN, 2, p9.Tattach(1, NOFID, "glenda", "/x", NONUNAME),
     "1b000000 68 0200 01000000 ffffffff 0600 676c656e6461 0200 2f78"),
    (DOTL, 2, p9.Tattach(1, NOFID, "", "", NONUNAME),
     "17000000 68 0200 01000000 ffffffff 0000 0000 ffffffff"),
    (PLAIN, 2, p9.Rattach(Qid(0x80, 1, 2)), "14000000 69 0200 80 01000000 0200000000000000"),
    (PLAIN, 3, p9.Rerror("no"), "0b000000 6b 0300 0200 6e6f"),
    (DOTL, 3, p9.Rlerror(2, ""), "0b000000 07 0300 02000000"),
    (WARREN, 3, p9.Rlerror(2, "no"), "0f000000 07 0300 02000000 0200 6e6f"),
    (PLAIN, 4, p9.Tflush(3), "09000000 6c 0400 0300"),
    (DOTL, 4, p9.Rflush(), "07000000 6d 0400"),
    (PLAIN, 1, p9.Twalk(1, 2, ["usr", "lib"]),
     "1b000000 6e 0100 01000000 02000000 0200 0300 757372 0300 6c6962"),
    (PLAIN, 1, p9.Rwalk([Qid(0, 1, 2)]), "16000000 6f 0100 0100 00 01000000 0200000000000000"),
    (PLAIN, 1, p9.Topen(2, 0x11), "0c000000 70 0100 02000000 11"),
    (PLAIN, 1, p9.Ropen(Qid(0, 0, 3), 4096), "18000000 71 0100 00 00000000 0300000000000000 00100000"),
    (PLAIN, 1, p9.Tcreate(2, "f", 0o644, 1), "13000000 72 0100 02000000 0100 66 a4010000 01"),
    (PLAIN, 3, p9.Tread(5, 16, 4096), "17000000 74 0300 05000000 1000000000000000 00100000"),
    (PLAIN, 3, p9.Rread(b"abc"), "0e000000 75 0300 03000000 616263"),
    (DOTL, 3, p9.Twrite(5, 1 << 32, b"hi"), "19000000 76 0300 05000000 0000000001000000 02000000 6869"),
    (PLAIN, 3, p9.Rwrite(2), "0b000000 77 0300 02000000"),
    (WARREN, 1, p9.Tclunk(5), "13000000 78 0100 05000000 efcdab8967452301"),
    (PLAIN, 1, p9.Tremove(5), "0b000000 7a 0100 05000000"),
    (PLAIN, 1, p9.Rstat(Stat(1, 2, Qid(3, 4, 5), 6, 7, 8, 9, "a", "b", "c", "d")),
     "3e000000 7d 0100 3500 3300 0100 02000000 03 04000000 0500000000000000 06000000 07000000 08000000"
     "0900000000000000 0100 61 0100 62 0100 63 0100 64"),
    (DOTL, 1, p9.Tlopen(2, 0o100101), "0f000000 0c 0100 02000000 41800000"),
    (DOTL, 1, p9.Tlcreate(2, "f", 0o100, 0o644, 5),
     "1a000000 0e 0100 02000000 0100 66 40000000 a4010000 05000000"),
    (DOTL, 1, p9.Tmknod(2, "f", 1, 2, 3, 4),
     "1e000000 12 0100 02000000 0100 66 01000000 02000000 03000000 04000000"),
    (DOTL, 1, p9.Tgetattr(2, 0x7FF), "13000000 18 0100 02000000 ff07000000000000"),
    (DOTL, 1, p9.Tsetattr(2, 0x68, 1, 2, 3, 4, 5, 6, 7, 8),
     "43000000 1a 0100 02000000 68000000 01000000 02000000 03000000 0400000000000000 0500000000000000"
     "0600000000000000 0700000000000000 0800000000000000"),
    (DOTL, 1, p9.Txattrwalk(1, 2, "user.x"), "17000000 1e 0100 01000000 02000000 0600 757365722e78"),
    (DOTL, 1, p9.Txattrcreate(1, "a", 8, 2), "1a000000 20 0100 01000000 0100 61 0800000000000000 02000000"),
    (DOTL, 1, p9.Treaddir(1, 2, 3), "17000000 28 0100 01000000 0200000000000000 03000000"),
    (DOTL, 1, p9.Tlock(1, 1, 1, 0, 9, 77, "c"),
     "27000000 34 0100 01000000 01 01000000 0000000000000000 0900000000000000 4d000000 0100 63"),
    (DOTL, 1, p9.Rlock(1), "08000000 35 0100 01"),
    (DOTL, 1, p9.Trenameat(1, "a", 2, "b"), "15000000 4a 0100 01000000 0100 61 02000000 0100 62"),
    (DOTL, 1, p9.Tunlinkat(1, "a", 0x200), "12000000 4c 0100 01000000 0100 61 00020000"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "tag", "m", "written"), VECTORS, ids=repr)
def test_the_bytes_are_the_manual_s(name: str, tag: int, m: Message, written: str) -> None:
    frame = bytes.fromhex(written)
    if isinstance(m, p9.Tclunk):
        m.trace = 0x0123456789ABCDEF
    assert dialect(name).pack(m, tag).hex() == frame.hex()
    assert dialect(name).parse(frame) == m


def test_the_numbers_are_the_protocol_s() -> None:
    """From the manual and from Linux's 9p.h; an R is always its T and one more."""
    first = {"Tversion": 100, "Tauth": 102, "Tattach": 104, "Tflush": 108, "Twalk": 110, "Topen": 112,
             "Tcreate": 114, "Tread": 116, "Twrite": 118, "Tclunk": 120, "Tremove": 122, "Tstat": 124,
             "Twstat": 126, "Tstatfs": 8, "Tlopen": 12, "Tlcreate": 14, "Tsymlink": 16, "Tmknod": 18,
             "Trename": 20, "Treadlink": 22, "Tgetattr": 24, "Tsetattr": 26, "Txattrwalk": 30,
             "Txattrcreate": 32, "Treaddir": 40, "Tfsync": 50, "Tlock": 52, "Tgetlock": 54, "Tlink": 70,
             "Tmkdir": 72, "Trenameat": 74, "Tunlinkat": 76}  # fmt: skip
    numbers = {name: cls.type for name, cls in MESSAGES.items()}
    expected = {**first, **{"R" + name[1:]: n + 1 for name, n in first.items()}, "Rerror": 107, "Rlerror": 7}
    assert numbers == expected


def test_every_request_says_which_right_it_needs() -> None:
    assert not [m for m in EVERY if m.__name__[0] == "T" and m.need is None]
