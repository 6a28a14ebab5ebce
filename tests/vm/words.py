"""What a Linux kernel's client shows of ctl files, streams, sinks and errors.

The tree is the demonstration tree, or one whose files behave alike: `Words`
says where each is.  Its policy lets the guest use one verb of `ctl` and no
other, read the streams and write the sink.  Every case holds in both dialects
but those in `LINUX_ONLY`.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from .guest import Guest
from .mounts import in_guest

ERROR = re.compile(r"(\d{3}) \w+: .* trace=[0-9a-f]{16}")


@dataclass(frozen=True)
class Words:
    guest: Guest
    mnt: str
    tell: Callable[[str], None]
    """Make the next record of `events` here, with this text in it."""
    parked: Callable[[], int]
    """How many reads the server has parked."""
    allowed: str = "say"
    """The verb that the policy allows; it takes one word, which the next event holds."""
    refused: str = "reset"
    """A verb of the same file that the policy does not allow."""
    ctl: str = "ctl"
    events: str = "events"
    send: str = "send"
    recv: str = "recv"
    errstr: str = "dev/errstr"

    async def sh(self, script: str) -> str:
        return await in_guest(self.guest, self.inside(script))

    def inside(self, script: str) -> str:
        return f"cd {self.mnt} && {{ {script}\n}}"

    def follow(self, stream: str) -> str:
        """A script that says `open` once it has a stream open, then shows what comes."""
        return self.inside(f"exec 3< {stream}; echo open; exec cat <&3")


async def obeys_the_one_verb(w: Words) -> None:
    async with w.guest.start(w.follow(w.events)) as reader:
        await reader.expect(b"open\n")
        await w.sh(f"echo {w.allowed} by-redirection > {w.ctl}")
        await reader.expect(b"by-redirection")
        await w.sh(f"echo {w.allowed} appended >> {w.ctl}")
        await reader.expect(b"appended")


async def tells_its_verbs(w: Words) -> None:
    assert w.allowed in await w.sh(f"cat {w.ctl}")


async def shows_each_record_as_it_comes(w: Words) -> None:
    async with w.guest.start(w.follow(w.events)) as reader:
        await reader.expect(b"open\n")
        for name in ("first", "second", "third"):
            w.tell(name)
            # The next record is made only once this one was seen.
            await reader.expect(name.encode())
        assert reader.output.count(b"\n") == 4, reader.output


async def gives_one_record_a_read(w: Words) -> None:
    async with w.guest.start(w.inside(f"probe openread {w.events} 65536 2")) as reader:
        await reader.expect(b"open\n")
        w.tell("first")
        await reader.expect(b"first")
        w.tell("second")
        done = await reader.wait()
    assert done.status == 0
    assert re.fullmatch(rb"open\n\d+ bytes\n[^\n]*first[^\n]*\n\d+ bytes\n[^\n]*second[^\n]*\n", done.output)


async def gives_one_record_a_nonblocking_read(w: Words) -> None:
    async with w.guest.start(w.inside(f"probe openread {w.events} 65536 1 nonblock")) as reader:
        await reader.expect(b"open\n")
        w.tell("only")
        done = await reader.wait()
    assert done.status == 0
    assert re.fullmatch(rb"open\n\d+ bytes\n[^\n]*only[^\n]*\n", done.output)


async def lets_go_of_a_parked_read(w: Words) -> None:
    before = w.parked()
    script = f"""
        read from rest < /proc/uptime
        timeout 1 cat {w.events}
        echo status $?
        read to rest < /proc/uptime
        echo $from $to
        cat {w.ctl} > /dev/null"""
    said = await w.sh(script)
    found = re.fullmatch(r"(?:Terminated\n)?status (\d+)\n(\S+) (\S+)", said)
    assert found, said
    # Coreutils' timeout says 124; busybox becomes the command and dies with it.
    assert found[1] in ("124", "143")
    assert 0.5 < float(found[3]) - float(found[2]) < 3.0
    assert w.parked() == before


async def carries_records_from_sink_to_stream(w: Words) -> None:
    async with w.guest.start(w.follow(w.recv)) as reader:
        await reader.expect(b"open\n")
        await w.sh(f"echo one > {w.send}")
        await reader.expect(b"one\n")
        await w.sh(f"echo two >> {w.send}")
        await reader.expect(b"two\n")
        assert bytes(reader.output) == b"open\none\ntwo\n"


async def says_why_on_the_same_descriptor(w: Words) -> None:
    for line in ("no-such-verb", w.refused):
        said = await w.sh(f"exec 3<> {w.ctl}; echo {line} >&3 2>/dev/null && echo taken; cat <&3")
        assert "taken" not in said
        assert ERROR.search(said), said
        assert line in said


async def says_why_in_errstr(w: Words) -> None:
    said = await w.sh(f"echo no-such-verb 2>/dev/null > {w.ctl} && echo taken; cat {w.errstr}")
    assert "taken" not in said
    found = ERROR.search(said)
    assert found, said
    assert found[1] == "400"
    assert "no-such-verb" in said


async def refuses_another_verb(w: Words) -> None:
    done = await w.guest.run(w.inside(f"echo {w.refused} > {w.ctl}"))
    assert done.status != 0
    said = await w.sh(f"cat {w.errstr}")
    found = ERROR.search(said)
    assert found, said
    assert found[1] == "403"


Case = Callable[[Words], Awaitable[None]]

BOTH: tuple[Case, ...] = (
    obeys_the_one_verb,
    tells_its_verbs,
    shows_each_record_as_it_comes,
    gives_one_record_a_read,
    lets_go_of_a_parked_read,
    carries_records_from_sink_to_stream,
    says_why_on_the_same_descriptor,
    says_why_in_errstr,
    refuses_another_verb,
)
# Only its Tlopen carries O_NONBLOCK.
LINUX_ONLY: tuple[Case, ...] = (gives_one_record_a_nonblocking_read,)
