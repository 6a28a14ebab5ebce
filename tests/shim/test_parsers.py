"""The C that reads what others wrote, compiled for this machine with sanitizers.

BootInfo is read beside our own encoder, which knows nothing of the C; replies beside the codec of warren.p9.
"""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import pytest
from warren.boot.formats.bootinfo import MCS, PLAIN, BootInfo, Layout, Region, Untyped
from warren.p9.codec import dialect
from warren.p9.fields import Qid
from warren.p9.messages import PLAIN as PLAIN_9P
from warren.p9.messages import Message, Rattach, Rclunk, Rerror, Ropen, Rread, Rversion, Rwalk, Rwrite

from tests.shim.host import TATTACH
from tests.shim.machine import SHIM, good, scratch

INFO = BootInfo(
    ipc_buffer=0x40D000,
    empty=Region(40, 4096),
    cnode_bits=12,
    schedcontrol=Region(36, 37),
    untyped_start=37,
    untyped=(Untyped(0xFEC00000, 12, True), Untyped(0x200000, 21, False), Untyped(0x400000, 22, False)),
)


@cache
def parsers() -> Path:
    out = scratch() / "parsers"
    root = SHIM / "root"
    line = [
        "gcc", "-std=gnu11", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
        "-Wall", "-Wextra", "-Werror", "-fno-builtin", f"-I{root}", f"-I{SHIM / 'shared'}", f"-I{good()}",
        "-o", str(out), str(Path(__file__).with_name("parsers.c")),
        *(str(root / name) for name in ("bootinfo.c", "nine.c", "text.c")),
    ]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def say(*words: str, data: bytes) -> str:
    done = subprocess.run([parsers(), *words], input=data, capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(("layout", "number"), [(PLAIN, 1), (MCS, 2)])
def test_bootinfo_is_read_as_it_was_written(layout: Layout, number: int, old: bool) -> None:
    page = INFO.encode(layout, old=old)
    for asked in (number, 0):
        for bits_at in (0, 10 if old else 8):
            assert say("bootinfo", str(asked), str(bits_at), data=page) == (
                f"mcs={int(layout is MCS)} old={int(old)} ipc={0x40D000} extra=0 cnode=12 empty=40-4096 "
                f"untyped=37+3 memory={(2 << 20) + (4 << 20)} best=39"
            )
    assert "implausible" in say("bootinfo", str(3 - number), "0", data=page)


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (16, 0, "the number of nodes"),
        (8, 1, "the number of nodes"),
        (32, 0, "the IPC buffer"),
        (32, 0x40D008, "the IPC buffer"),
        (32, 1 << 63, "the IPC buffer"),
        (0, 1 << 40, "what follows it"),
        (136, 3, "the root CNode"),
        (136, 64, "the root CNode"),
        (40, 5000, "outside the root CNode"),
        (40, 3, "called empty"),
        (160, 1 << 40, "the untypeds"),
        (160, 37, "the number of untypeds"),
        (160, 4000, "the number of untypeds"),
        (168, 0xFEC00001, "an untyped's size"),
    ],
)
def test_implausible_bootinfo_is_not_believed(at: int, value: int, words: str) -> None:
    page = bytearray(INFO.encode(PLAIN))
    page[at : at + 8] = value.to_bytes(8, "little")
    said = say("bootinfo", "1", "0", data=bytes(page))
    assert said.startswith("BootInfo is implausible")
    assert words in said


QID = Qid(0x80, 7, 1 << 63)
REPLIES: list[Message] = [
    Rversion(4096, "9P2000"), Rversion(0, ""), Rattach(QID), Rwalk([]), Rwalk([QID]), Rwalk([QID] * 16),
    Ropen(QID, 0xFFFFFFFF), Rread(b""), Rread(b"x" * 4072), Rwrite(0), Rwrite(65535), Rclunk(),
    Rerror("file does not exist"), Rerror(""),
]  # fmt: skip


@pytest.mark.parametrize("m", REPLIES, ids=lambda m: type(m).__name__)
def test_replies_of_our_codec_are_taken_whole_and_in_no_other_length(m: Message) -> None:
    frame = dialect(PLAIN_9P).pack(m, 5)
    words = ("reply", str(TATTACH if isinstance(m, Rerror) else frame[4] - 1), "5", "65535")
    assert say(*words, data=frame) == ("refused" if isinstance(m, Rerror) else "ok")
    for other in (frame[:-1], frame + b"x"):
        assert say(*words, data=other) not in ("ok", "refused")
        assert say(*words, data=len(other).to_bytes(4, "little") + other[4:]) not in ("ok", "refused")


def test_thousands_of_inputs() -> None:
    for layout in (PLAIN, MCS):
        assert say("fuzz", "11", "8000", data=INFO.encode(layout)) == "held"
