"""Past faults, put back one by one: each is caught, in words a person can read, and the good build is not.

The faults are those that once cost days, and ways in which a kernel may fail to keep its word. Every one is
built into its own image by -DFAULT_name; a test that would pass without the fault proves nothing, so
each has the good build beside it, here or in test_ready.
"""

from __future__ import annotations

import pytest

from tests.shim.host import Host
from tests.shim.machine import (
    BOOTINFO,
    FAULT,
    KERNEL,
    REFUSED,
    UNKNOWN,
    WELL,
    boot,
    built,
    good,
    make,
    variant,
)


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        ("privileged", FAULT, "the root task faulted: vector 13 general protection error 0x0 rip 0x40"),
        ("thread", FAULT, "the root task faulted: vector 14 page fault error 0x4 rip 0x40"),
        ("sign", UNKNOWN, "unknown system call 1: the kernel's numbers are negative, so the sign is wrong"),
        ("bootinfo", BOOTINFO, "root: the kernel passed no BootInfo: its address is 0"),
    ],
)
async def test_a_past_fault_is_caught(fault: str, code: int, words: str) -> None:
    host = Host(verbs=["exit"])
    end = await boot(built(fault), host)
    assert end.code == code, end.log
    assert words in end.log
    assert host.ready is None


async def test_no_thread_pointer_is_told_by_its_address() -> None:
    end = await boot(built("thread"), Host())
    assert "address 0x0 (not mapped, read, user)" in end.log


async def test_a_kernel_that_passes_no_bootinfo() -> None:
    """The same, with the fault on the other side."""
    end = await boot(built(), Host(), append="no-bootinfo")
    assert end.code == BOOTINFO
    assert "the kernel passed no BootInfo: its address is 0" in end.log


def test_a_32_bit_object_is_refused() -> None:
    """By the linker, and by `make check` for whoever links otherwise."""
    out, done = variant("object32")
    assert done.returncode != 0
    assert "i386 architecture of input file" in done.stderr
    assert "text.o" in done.stderr
    assert not (out / "root.elf").exists()
    (out / "root.elf").write_bytes((good() / "root.elf").read_bytes())  # as if something had linked it
    check = make(out, "check")
    assert check.returncode != 0
    assert "root/text.o is not a 64-bit object" in check.stderr
    assert make(good(), "check").returncode == 0


@pytest.mark.parametrize(
    ("fault", "words"),
    [("unzeroed", "a new page is not zero-filled"), ("twice", "a page was mapped twice")],
)
async def test_the_mmu_test_finds_a_kernel_out(fault: str, words: str) -> None:
    host = Host(verbs=["exit"])
    end = await boot(built(fault), host)
    assert end.code == REFUSED, end.log
    assert f"root: mmu: {words}" in end.log
    assert host.ready is None
    assert b"state=failed\n" in host.written
    assert host.reports["state"] == "ended"
    assert host.reports["mmu"] == words


async def test_the_mmu_test_ends_with_a_page_that_is_gone() -> None:
    """A page that stays after it was unmapped can only be found by touching it."""
    end = await boot(built(), Host(verbs=["fault unmapped", "exit"]))
    assert end.code == FAULT
    assert "address 0x5ff000 (not mapped, write, user)" in end.log
    host = Host(verbs=["fault unmapped", "exit"])
    end = await boot(built("unmap"), host)
    assert end.code == WELL
    assert (host.reports["mmu"], host.reports["fault"]) == ("ok", "survived: the kernel let it pass")


@pytest.mark.parametrize(("fault", "words"), [("", "ok"), ("irq", "failed: the timer does not interrupt")])
async def test_the_interrupt_test(fault: str, words: str) -> None:
    host = Host(verbs=["test irq", "exit"])
    assert (await boot(built(fault), host)).code == WELL
    assert host.reports["irq"] == words
    assert int(host.reports["irq.ticks"]) == (3 if words == "ok" else 0)


async def test_no_byte_is_slept_through() -> None:
    """A byte that comes just before the root task rests wakes it. With no timer, nothing else would, and of
    machines that read so much every second one once stood still."""
    for _ in range(3):
        host = Host(role=b"x" * 16_000, verbs=["say on"] * 20 + ["exit"])
        assert (await boot(built("irq"), host)).code == WELL
        assert host.written.count(b"said=on\n") == 20


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("null", "vector 14 page fault error 0x4"),
        ("text", "address 0x400000 (not allowed, write, user)"),
        ("data", "(not allowed, read, user, instruction fetch)"),
        ("kernel", "address 0xffffffff80100000 (not allowed, read, user)"),
        ("privileged", "vector 13 general protection"),
        ("port", "vector 13 general protection"),
        ("instruction", "vector 6 invalid opcode"),
    ],
)
async def test_what_user_mode_must_not_do(name: str, words: str) -> None:
    """Code is not writable, data not executable, and the kernel's memory and ports are out of reach."""
    host = Host(verbs=[f"fault {name}", "exit"])
    end = await boot(built(), host)
    assert end.code == FAULT, end.log
    assert words in end.log
    assert host.ready is not None
    assert "fault=survived" not in host.written.decode()


async def test_the_standins_own_faults_are_told_apart() -> None:
    end = await boot(built("user_memory"), Host())
    assert end.code == KERNEL, end.log
    assert "the stand-in faulted: vector 14 page fault error 0x1" in end.log
    assert "address 0x400000 (not allowed, read, kernel)" in end.log


async def test_what_the_standin_lacks_ends_loudly() -> None:
    end = await boot(built(), Host(verbs=["fault call", "exit"]))
    assert end.code == UNKNOWN
    assert "what the stand-in does not have: an invocation of the capability in slot 4294967295" in end.log


async def test_a_fault_that_is_none() -> None:
    host = Host(verbs=["fault of whom", "exit"])
    assert (await boot(built(), host)).code == WELL
    assert host.reports["refused"].startswith("fault: one of null unmapped")
