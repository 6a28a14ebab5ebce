"""The root task on the stand-in: ready on the wire, and what it does there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from warren.boot.sel4.abi import Abi, load_toml
from warren.serve.stream import serve_stream
from warren.tree import Dir, Queue, Sink, Stream, Text

from tests.shim.host import Host
from tests.shim.machine import (
    BOOTINFO,
    FAULT,
    NO_ROOT,
    REFUSED,
    UNKNOWN,
    WELL,
    Build,
    boot,
    built,
    scratch,
    with_abi,
)
from tests.wire import export_of

TABLES = load_toml()
STANDIN = Abi.standin(TABLES)


@pytest.mark.parametrize("machine", ["microvm", "pc"])
async def test_it_is_ready_on_the_wire(machine: str) -> None:
    host = Host(role=b"role Worker\n", verbs=["exit"])
    end = await boot(built(), host, machine=machine)
    assert end.code == WELL, end.log
    assert host.ready is not None
    said = host.reports
    assert (said["kernel"], said["abi"], said["labels"], said["mmu"]) == ("standin", "classic", "given", "ok")
    assert (said["role"], said["role.bytes"]) == ("read", "12")
    assert (said["state"], said["code"]) == ("ended", "42")
    stamps = [int(said[f"tsc.{name}"]) for name in ("kernel", "root", "ready")]
    assert stamps == sorted(stamps)
    assert "standin: a stand-in kernel, not seL4; classic numbers" in end.log
    assert "root: mmu: ok" in end.log


async def test_pvh_is_a_way_in_too() -> None:
    """QEMU prefers multiboot where it sees its header, so this image has none."""
    good = built()
    image = good.standin.read_bytes()
    assert image.count(b"\x02\xb0\xad\x1b") == 1
    standin = scratch() / "standin.elf"
    standin.write_bytes(image.replace(b"\x02\xb0\xad\x1b", b"\x90" * 4))
    host = Host(verbs=["exit"])
    end = await boot(Build(standin, good.root), host, append="mcs")
    assert end.code == BOOTINFO, end.log  # the command line came through as well
    host = Host(verbs=["exit"])
    assert (await boot(Build(standin, good.root), host)).code == WELL


async def test_the_verbs() -> None:
    verbs = ["say hello there\n", "test irq\ntest caps\n", "test abi", "test mmu"]
    host = Host(verbs=[*verbs, "test what", "fly away", "exit x", "exit 7"])
    end = await boot(built(), host)
    assert end.code == 7, end.log
    lines = host.written.decode().splitlines()
    assert "said=hello there" in lines
    assert "root: hello there" in end.log
    assert "irq=ok" in lines
    assert "caps.test=ok" in lines
    assert "label.issue=44" in lines
    assert lines.count("mmu=ok") == 2
    refused = [line for line in lines if line.startswith("refused=")]
    assert [line.split(":")[0].split("=")[1] for line in refused] == [
        "test", "not a verb; one of say test fault exit stop", "exit"
    ]  # fmt: skip
    assert refused[1].endswith(": fly")


@pytest.mark.parametrize(
    ("verbs", "code"),
    [
        (["exit 0"], WELL),
        (["exit 127"], 127),
        (["stop"], WELL),
        ([], WELL),
        (["\n", " \r\n", "exit 3\nexit 4"], 3),
    ],
)
async def test_the_end(verbs: list[str], code: int) -> None:
    host = Host(verbs=verbs)
    assert (await boot(built(), host)).code == code


@pytest.mark.parametrize(
    ("role", "word", "size"),
    [
        (None, "absent", 0),
        (b"", "empty", 0),
        (b"x" * 10_000, "read", 10_000),
        (b"x" * (20 << 10), "too long", None),
    ],
)
async def test_the_role(role: bytes | None, word: str, size: int | None) -> None:
    host = Host(role=role, verbs=["exit"])
    assert (await boot(built(), host)).code == WELL
    assert host.reports["role"] == word
    if size is not None:
        assert int(host.reports["role.bytes"]) == size
    else:
        assert int(host.reports["role.bytes"]) < 20 << 10  # it stopped reading


@pytest.mark.parametrize(("hidden", "words"), [(b"proc/boot", "no /proc/boot"), (b"ctl", "no /ctl")])
async def test_a_tree_without_its_files(hidden: bytes, words: str) -> None:
    end = await boot(built(), Host(hidden=(hidden,), verbs=["exit"]))
    assert end.code == REFUSED
    assert words in end.log


async def test_a_small_message_size_is_enough() -> None:
    host = Host(role=b"x" * 1500, verbs=["say " + "y" * 150, "exit"], msize=1048)
    assert (await boot(built(), host)).code == WELL
    assert host.reports["role.bytes"] == "1500"
    assert host.reports["said"] == "y" * 150


@pytest.mark.parametrize(
    ("records", "said", "refused"),
    [
        (["say " + "a" * 507 + "\n", "exit"], 507, 0),
        (["say " + "a" * 508, "exit"], None, 1),
        (["say " + "a" * 508 + "\nexit 9", "exit"], None, 1),
        (["say " + "exit " * 400 + "\n", "exit"], None, 1),
        (["say ok\nsay " + "a" * 2000 + "\nsay end", "exit"], 3, 1),
        (["a" * 5000, "exit"], None, 1),
        (["say of many\n" * 200, "exit"], 7, 0),
        (["a" * 512, "exit"], None, 1),
        (["say " + "a" * 507 + "\n" + "b" * 512 + "\nsay b", "exit"], 1, 1),
    ],
)
async def test_no_verb_is_made_of_the_tail_of_a_long_line(
    records: list[str], said: int | None, refused: int
) -> None:
    host = Host(verbs=list(records))
    end = await boot(built(), host)
    assert end.code in (WELL, 9), end.log
    lines = host.written.decode().splitlines()
    assert lines.count("refused=a line of more than 511 bytes") == refused
    assert len([line for line in lines if line.startswith("refused")]) == refused
    found = [len(line) - 5 for line in lines if line.startswith("said=")]
    assert found[-1:] == ([said] if said else [])
    assert len(found) in (0, 1, 2, 200)
    assert end.code == (9 if any("exit 9" in record for record in records) else WELL)


@pytest.mark.parametrize(
    ("append", "abi", "expected"),
    [
        ("mcs", Abi.genuine(TABLES, mcs=True, debug=True, frame=8), {"abi": "mcs", "labels": "probed"}),
        ("mcs issue=50 page=45", Abi.genuine(TABLES, mcs=True, frame=8), {"abi": "mcs", "labels": "probed"}),
        ("mcs", Abi.genuine(TABLES, frame=8), {"abi": "mcs", "labels": "probed"}),
        ("old-untyped", STANDIN, {"abi": "classic", "labels": "given"}),
        ("old-untyped", replace(STANDIN, untyped_bits_at=10), {"abi": "classic"}),
        ("issue=47 page=41", Abi.genuine(TABLES, frame=8), {"abi": "classic", "labels": "probed"}),
        ("issue=20 page=15", Abi.genuine(TABLES, mcs=False, frame=8), {"labels": "probed"}),
        ("issue=90 page=81", Abi.genuine(TABLES, mcs=False, frame=8), {"labels": "probed"}),
        ("issue=60 page=55 frame=10", replace(STANDIN, issue=60, in8=61, out8=64, page_map=55, page_unmap=56,
                                              frame=10), {"labels": "given"}),
    ],
)  # fmt: skip
async def test_other_kernels_numbers(append: str, abi: Abi, expected: dict[str, str]) -> None:
    host = Host(verbs=["test caps", "exit"])
    end = await boot(with_abi(built(), abi), host, append=append)
    assert end.code == WELL, end.log
    assert expected.items() <= host.reports.items()
    assert (host.reports["mmu"], host.reports["caps.test"]) == ("ok", "ok")


@pytest.mark.parametrize(
    ("append", "abi", "code"),
    [
        ("mcs", STANDIN, BOOTINFO),
        ("mcs", replace(STANDIN, layout=0), UNKNOWN),  # its Yield is another call there
        ("issue=91", Abi.genuine(TABLES, mcs=False, frame=8), 0),
        ("old-untyped", replace(STANDIN, untyped_bits_at=8), BOOTINFO),
        ("", replace(STANDIN, layout=2), BOOTINFO),
        ("", replace(STANDIN, frame=9), UNKNOWN),
    ],
)
async def test_wrong_numbers_are_found_out(append: str, abi: Abi, code: int) -> None:
    host = Host(verbs=["exit"])
    end = await boot(with_abi(built(), abi), host, append=append)
    assert host.ready is None
    assert end.code != WELL
    if code:
        assert end.code == code, end.log
        assert "standin: asked for" in end.log or "root: " in end.log


async def test_without_ports_a_debug_kernels_own_console_says_why() -> None:
    other = with_abi(built(), Abi.genuine(TABLES, mcs=False, debug=True, frame=8))
    end = await boot(other, Host(), append="issue=91")
    assert end.code == FAULT  # there is no other way to end
    assert "root: no label from 20 to 90 issues IO ports" in end.log
    end = await boot(other, Host(), append="issue=91 release")  # which has no such call
    assert end.code == UNKNOWN
    assert "what the stand-in does not have: system call -9" in end.log


@pytest.mark.parametrize(
    ("root", "append", "words"),
    [
        (None, "mcs nonsense", "a word that is not known: nonsense"),
        (None, "issue=", "a word that is not known: issue="),
        (None, "issue=4x", "a word that is not known"),
        (b"no ELF at all, and short", "", "the root task is refused: it is no ELF file"),
    ],
)
async def test_what_the_standin_refuses_to_start(root: bytes | None, append: str, words: str) -> None:
    build = built()
    if root is not None:
        other = scratch() / "root.elf"
        other.write_bytes(root)
        build = Build(build.standin, other)
    end = await boot(build, Host(), append=append)
    assert end.code == NO_ROOT
    assert words in end.log


@pytest.mark.parametrize(
    ("cpu", "words"), [("qemu64", "lacks fsgsbase"), ("qemu64,-nx", "lacks long mode, NX or syscall")]
)
async def test_a_processor_that_is_not_enough(cpu: str, words: str) -> None:
    end = await boot(built(), Host(), extra=["-cpu", cpu])
    assert end.code == NO_ROOT
    assert f"{words}; give QEMU -cpu max" in end.log


async def test_our_own_server_at_the_other_end() -> None:
    """No stand-in for the host here: a served tree, its streams and its rights."""
    verbs: Queue = Queue(depth=8)
    reports: list[bytes] = []

    async def put(data: bytes) -> None:
        reports.append(data)
        if b"state=ready" in data:
            verbs.put(b"say by the real one\n")
            verbs.put(b"exit\n")

    tree = Dir(
        {"role": Text(lambda: "role Worker\n"), "ctl": Stream(verbs), "proc": Dir({"boot": Sink(put)})},
    )
    export = export_of(tree)

    class Real:
        async def serve(self, stream: trio.abc.Stream) -> None:
            await serve_stream(export, stream, "any")

    end = await boot(built(), Real())
    assert end.code == WELL, end.log
    assert b"said=by the real one\n" in reports
