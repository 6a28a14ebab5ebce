"""The table of FUSE messages: what is packed is parsed, and what is no message is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warren.mount.fuse import messages as m

EXAMPLES = [(number, shape, e) for number, shape in m.REQUESTS.items() for e in shape.examples()]
# Fixed sizes as linux/fuse.h has them, the header not counted.
SIZES = {
    m.FORGET: 8, m.GETATTR: 16, m.SETATTR: 88, m.MKNOD: 16, m.MKDIR: 8, m.RENAME: 8, m.LINK: 8, m.OPEN: 8,
    m.READ: 40, m.WRITE: 40, m.RELEASE: 24, m.FSYNC: 16, m.SETXATTR: 8, m.GETXATTR: 8, m.FLUSH: 24,
    m.INIT: 16, m.GETLK: 48, m.ACCESS: 8, m.CREATE: 16, m.INTERRUPT: 8, m.POLL: 24, m.BATCH_FORGET: 8,
    m.FALLOCATE: 32, m.RENAME2: 16, m.LSEEK: 24, m.IOCTL: 32, m.BMAP: 16,
}  # fmt: skip
REPLIES = {
    "Entry": 40, "Attributes": 16, "Attr": 88, "Opened": 16, "Written": 8, "Kstatfs": 80, "Locked": 24,
    "Ready": 8, "Sought": 8, "Agreed": 64, "Dirent": 24, "PollReady": 8, "InvalInode": 24, "InvalEntry": 16,
}  # fmt: skip


def parsed(raw: bytes) -> tuple[m.Header, object]:
    view = memoryview(raw)
    head = m.header(view)
    return head, m.body(head, view)


@pytest.mark.parametrize(("number", "shape", "example"), EXAMPLES)
def test_a_request_comes_back_as_it_was(number: int, shape: m.Shape, example: object) -> None:
    head, body = parsed(m.pack_request(number, example, 7, 9, 1, 2, 3))
    assert body == example
    assert (head.opcode, head.unique, head.nodeid, head.uid, head.gid, head.pid) == (number, 7, 9, 1, 2, 3)


@pytest.mark.parametrize(("number", "size"), SIZES.items())
def test_the_layout_is_the_kernels(number: int, size: int) -> None:
    assert m.REQUESTS[number].fixed.size == size


@pytest.mark.parametrize(("name", "size"), REPLIES.items())
def test_the_layout_of_replies_is_the_kernels(name: str, size: int) -> None:
    assert m.REPLIES[name].fixed.size == size
    for example in m.REPLIES[name].examples():
        assert m.REPLIES[name].parse(memoryview(m.packed(example))) == example


@pytest.mark.parametrize(("number", "shape", "example"), EXAMPLES)
def test_a_request_that_ends_early_is_refused(number: int, shape: m.Shape, example: object) -> None:
    tail = m.REQUESTS[number].pack(example)
    least = shape.fixed.size + sum(k == "name" for k in shape.kinds)
    for n in range(least):
        with pytest.raises(m.BadRequest):
            shape.parse(memoryview(tail[:n]))


@pytest.mark.parametrize(("number", "shape", "example"), EXAMPLES)
def test_bytes_left_over_are_refused(number: int, shape: m.Shape, example: object) -> None:
    if "data" not in shape.kinds:
        with pytest.raises(m.BadRequest):
            shape.parse(memoryview(shape.pack(example) + b"x"))


def test_a_header_says_its_own_length() -> None:
    raw = m.pack_request(m.LOOKUP, m.Named("x"), 1, 1, 0, 0, 0)
    for wrong in (raw[:-1], raw + b"x", raw[:39]):
        with pytest.raises(m.BadRequest):
            m.header(memoryview(wrong))


def test_extensions_are_stepped_over_and_never_beyond_the_request() -> None:
    whole = m.pack_request(m.LOOKUP, m.Named("x"), 1, 1, 0, 0, 0)

    def extended(units: int, room: int) -> memoryview:
        raw = bytearray(whole) + bytes(8 * room)
        m.HEAD.pack_into(raw, 0, len(raw), m.LOOKUP, 1, 1, 0, 0, 0, units, 0)
        return memoryview(raw)

    view = extended(2, 2)
    assert m.body(m.header(view), view) == m.Named("x")
    view = extended(5000, 2)
    with pytest.raises(m.BadRequest):
        m.body(m.header(view), view)


@pytest.mark.parametrize("raw", [b"", b"\0", b"x" * 5000, b"x" * 5000 + b"\0", b"x\0y\0"])
def test_a_name_is_bounded_not_empty_and_ends(raw: bytes) -> None:
    with pytest.raises(m.BadRequest):
        m.REQUESTS[m.LOOKUP].parse(memoryview(raw))


@given(st.sampled_from(sorted(m.REQUESTS)), st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(number: int, raw: bytes) -> None:
    shape = m.REQUESTS[number]
    try:
        body = shape.parse(memoryview(raw))
    except m.BadRequest:
        return
    assert len(shape.pack(body)) <= len(raw) + 2
