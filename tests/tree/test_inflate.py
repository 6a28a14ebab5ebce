"""The guard of decompression: what swells is stopped early, what is honest passes, and it is measured."""

import gzip
import os
import random
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warren.tree import Refused
from warren.tree.inflate import PIECE, Guard, Inflating
from warren.tree.report import metrics

FREE = PIECE


def inflate(stream: Inflating, data: bytes, pieces: int = 0) -> bytes:
    out = b""
    size = pieces or len(data) or 1
    for at in range(0, len(data), size):
        for piece in stream.feed(data[at : at + size]):
            assert 0 < len(piece) <= PIECE
            out += piece
    stream.end()
    return out


def refusal(guard: Guard, data: bytes, encoding: str = "gzip", most: int | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        inflate(guard.begin(encoding, most), data)
    return caught.value


def of_ratio(about: int, size: int) -> tuple[bytes, bytes]:
    """A body of about SIZE whose compressed form has about that ratio all the way, and that form."""
    noise, packer, sent, body = random.Random(1), zlib.compressobj(9, zlib.DEFLATED, 31), b"", b""
    while len(body) < size:
        piece = noise.randbytes(1000) + bytes(1000 * (about - 1))
        body += piece
        sent += packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)
    return body, sent + packer.flush()


@given(st.binary(max_size=3000), st.sampled_from(["gzip", "zlib"]), st.integers(1, 700))
def test_what_was_compressed_comes_out(body: bytes, encoding: str, pieces: int) -> None:
    packed = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    stream = Guard(most=1 << 20, ratio=1000).begin(encoding)
    assert inflate(stream, packed, pieces) == body
    assert stream.given == len(body)
    assert stream.taken == len(packed)


@given(st.binary(max_size=2000))
def test_any_bytes_are_refused_with_422_or_inflated(data: bytes) -> None:
    guard = Guard(most=1 << 20)
    for encoding in guard.decoders:
        try:
            inflate(guard.begin(encoding), data)
        except Refused as e:
            if e.code not in (413, 422):
                raise


def test_a_bomb_of_a_thousand_to_one_is_refused_long_before_its_end() -> None:
    bomb = gzip.compress(bytes(100_000_000))
    assert len(bomb) < 100_000
    guard = Guard(most=1 << 40)
    tracemalloc.start()
    e = refusal(guard, bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (e.code, e.reason) == (413, "bomb")
    assert "10 times" in e.detail
    assert guard.given <= 10 * len(bomb) + FREE
    assert peak < 2 << 20


def test_just_below_the_ratio_passes_and_just_above_it_is_refused() -> None:
    body, packed = of_ratio(10, 1_000_000)
    real = len(body) / len(packed)
    assert 8 < real < 10
    assert inflate(Guard(most=1 << 30, ratio=real * 1.02).begin("gzip"), packed, 4000) == body
    assert refusal(Guard(most=1 << 30, ratio=real * 0.98), packed).reason == "bomb"
    assert inflate(Guard(most=1 << 30).begin("gzip"), packed) == body, "ten to one, unless said"
    assert refusal(Guard(most=1 << 30), of_ratio(13, 1_000_000)[1]).reason == "bomb"


def test_the_first_bytes_are_free_and_not_one_more() -> None:
    stream = Guard(most=1 << 30).begin("gzip")
    assert len(inflate(stream, gzip.compress(bytes(FREE)))) == FREE
    assert stream.ratio > 100
    assert refusal(Guard(most=1 << 30), gzip.compress(bytes(FREE + 1))).reason == "bomb"
    assert refusal(Guard(most=1 << 30, free=0), gzip.compress(bytes(1000))).reason == "bomb"


def test_the_cap_is_a_cap_whatever_the_ratio() -> None:
    body = os.urandom(200_000)
    packed = gzip.compress(body)
    assert inflate(Guard(most=200_000).begin("gzip"), packed) == body
    e = refusal(Guard(most=199_999), packed)
    assert (e.code, e.reason) == (413, "too_large")
    assert refusal(Guard(most=1 << 30), packed, most=199_999).code == 413, "one stream may have a lower cap"
    assert refusal(Guard(most=100), packed, most=1 << 30).code == 413, "and never a higher one"


def test_what_a_trailer_claims_is_not_believed() -> None:
    """The size that gzip writes behind a member is the sender's word, in either direction."""
    packed = gzip.compress(os.urandom(10_000))
    for claimed in (0, 1, 0xFFFFFFFF):
        lying = packed[:-4] + struct.pack("<I", claimed)
        assert refusal(Guard(most=1 << 20), lying).code == 422
    modest = gzip.compress(bytes(5_000_000))[:-4] + struct.pack("<I", 10)
    assert refusal(Guard(most=1 << 30), modest).reason == "bomb"


def test_many_members_count_together() -> None:
    member = gzip.compress(bytes(FREE - 1))
    guard = Guard(most=1 << 30)
    assert refusal(guard, member * 50).reason == "bomb"
    assert guard.given <= 2 * FREE
    honest = gzip.compress(os.urandom(1000))
    assert len(inflate(Guard(most=1 << 30).begin("gzip"), honest * 300)) == 300_000


def test_a_hundred_thousand_empty_members_are_only_bytes() -> None:
    """Each is twenty bytes; their cost grows with their number, not with its square."""
    empty = gzip.compress(b"")
    assert inflate(Guard(most=1).begin("gzip"), empty * 100_000) == b""


def test_a_bomb_in_a_bomb_loses_one_layer_and_is_harmless() -> None:
    inner = gzip.compress(bytes(3_000_000))
    outer = gzip.compress(inner)
    assert inflate(Guard(most=1 << 20).begin("gzip"), outer) == inner
    layers = bytes(10_000_000)
    for _ in range(4):
        layers = gzip.compress(layers)
    assert len(inflate(Guard(most=1 << 20).begin("gzip"), layers)) < 1 << 20


@pytest.mark.parametrize("cut", [0, 1, 9, 10, 200, -8, -1])
def test_what_stops_in_the_middle_is_refused(cut: int) -> None:
    packed = gzip.compress(os.urandom(1000))
    e = refusal(Guard(most=1 << 20), packed[:cut])
    assert (e.code, e.reason) == (422, "bad_encoding")
    assert "stops in the middle" in e.detail


def test_bytes_behind_the_end_are_refused() -> None:
    for encoding, packed in (("gzip", gzip.compress(b"x")), ("zlib", zlib.compress(b"x"))):
        for tail in (b"\0", b"x" * 30):
            assert refusal(Guard(most=100), packed + tail, encoding).code == 422
    assert refusal(Guard(most=100), zlib.compress(b"x") * 2, "zlib").code == 422


def test_one_encoding_is_not_taken_for_another() -> None:
    assert refusal(Guard(most=100), zlib.compress(b"x"), "gzip").code == 422
    assert refusal(Guard(most=100), gzip.compress(b"x"), "zlib").code == 422
    with pytest.raises(Refused, match="there is no encoding 'br' here; send gzip, zlib, or the bytes plain"):
        Guard(most=1).begin("br")


def test_an_encoding_is_a_row() -> None:
    guard = Guard(most=100, decoders={"raw": lambda: zlib.decompressobj(-15)})
    packer = zlib.compressobj(wbits=-15)
    assert inflate(guard.begin("raw"), packer.compress(b"x") + packer.flush()) == b"x"
    with pytest.raises(Refused, match=r"405|there is no encoding"):
        guard.begin("gzip")


def test_what_passed_and_what_was_refused_is_measured() -> None:
    guard = Guard(most=1 << 20)
    inflate(guard.begin("gzip"), gzip.compress(os.urandom(5000)))
    inflate(guard.begin("gzip"), gzip.compress(bytes(5000)))
    refusal(guard, gzip.compress(bytes(900_000)))
    refusal(guard, b"no gzip")
    refusal(guard, gzip.compress(os.urandom(2 << 20)))
    text = metrics(guard.counts("x"))
    for line in (
        "x_inflate_streams_total 5",
        'x_inflate_refused_total{why="ratio"} 1',
        'x_inflate_refused_total{why="size"} 1',
        'x_inflate_refused_total{why="damage"} 1',
        'x_inflate_ratio_bucket{le="+Inf"} 5',
    ):
        assert line in text.splitlines()
    buckets = [float(line.rpartition(" ")[2]) for line in text.splitlines() if "bucket{" in line]
    assert buckets == sorted(buckets), "buckets are cumulative"


@pytest.mark.parametrize("wrong", [{"ratio": 0.5}, {"most": -1}, {"free": -1}])
def test_a_guard_without_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a guard needs"):
        Guard(**({"most": 1} | wrong))  # type: ignore[arg-type]
