"""What a Linux kernel must be able to do with a served directory.

Each case works on both sides: what the guest did is looked up on the host,
and what the host made is read in the guest.  A case makes its own directory,
named after itself, so that none sees another's files and all may follow each
other in one boot.  `BOTH` hold in either dialect, `LINUX_ONLY` need 9P2000.L.
"""

import hashlib
import os
import random
import stat
from collections.abc import Awaitable, Callable
from dataclasses import replace

from .guest import Job
from .mounts import Place

Case = Callable[[Place], Awaitable[None]]

MIB = 1 << 20


async def lists(p: Place) -> None:
    (p.host / "file").write_bytes(b"seven b")
    (p.host / "dir").mkdir()
    (p.host / "dir" / "with a space").touch()
    assert (await p.sh("ls -A")).split() == ["dir", "file"]
    assert await p.sh("ls dir") == "with a space"
    assert await p.sh("stat -c '%n %s %F' file dir | sed 's/ [0-9]* directory/ directory/'") == (
        "file 7 regular file\ndir directory"
    )
    assert "No such file" in await p.refused("cat missing")


async def lists_ten_thousand(p: Place) -> None:
    for number in range(10_000):
        (p.host / f"entry-{number:05}").touch()
    assert await p.sh("probe readdir .", limit=120) == "10000 10000"


async def reads(p: Place) -> None:
    body = random.Random(1).randbytes(300_001)
    (p.host / "file").write_bytes(body)
    (p.host / "empty").touch()
    assert await p.sh("sha256sum < file") == f"{hashlib.sha256(body).hexdigest()}  -"
    assert await p.sh("wc -c < empty") == "0"
    middle = hashlib.sha256(body[123_000:163_000]).hexdigest()
    assert await p.sh("dd if=file bs=1000 skip=123 count=40 2>/dev/null | sha256sum") == f"{middle}  -"
    assert await p.sh("probe mmapread file | sha256sum") == f"{hashlib.sha256(body).hexdigest()}  -"


async def writes(p: Place) -> None:
    await p.sh("printf 'hello, host' > new")
    assert (p.host / "new").read_bytes() == b"hello, host"
    await p.sh("probe pwrite new 7 HOST && probe pwrite new 13 end")
    assert (p.host / "new").read_bytes() == b"hello, HOST\0\0end"
    assert await p.sh("tail -c 3 new") == "end"
    await p.sh("printf over > new")
    assert (p.host / "new").read_bytes() == b"over"


async def appends(p: Place) -> None:
    (p.host / "log").write_bytes(b"one\n")
    await p.sh("echo two >> log")
    with (p.host / "log").open("ab") as log:
        log.write(b"three\n")
    await p.sh("echo four >> log; echo five >> new")
    assert (p.host / "log").read_bytes() == b"one\ntwo\nthree\nfour\n"
    assert (p.host / "new").read_bytes() == b"five\n"


async def truncates(p: Place) -> None:
    (p.host / "file").write_bytes(b"0123456789")
    await p.sh("truncate -s 4 file")
    assert (p.host / "file").read_bytes() == b"0123"
    await p.sh("truncate -s 6 file")
    assert (p.host / "file").read_bytes() == b"0123\0\0"
    assert await p.sh("wc -c < file") == "6"
    await p.sh(": > file")
    assert (p.host / "file").read_bytes() == b""


async def renames(p: Place) -> None:
    (p.host / "a").write_bytes(b"a")
    (p.host / "b").write_bytes(b"b")
    (p.host / "dir").mkdir()
    (p.host / "dir" / "inside").touch()
    await p.sh("probe rename2 a c plain && probe rename2 dir moved plain")
    assert sorted(os.listdir(p.host)) == ["b", "c", "moved"]
    assert await p.sh("ls . moved") == ".:\nb\nc\nmoved\n\nmoved:\ninside"


async def replaces_by_rename(p: Place) -> None:
    (p.host / "old").write_bytes(b"old")
    (p.host / "new").write_bytes(b"new")
    await p.sh("probe rename2 new old plain")
    assert os.listdir(p.host) == ["old"]
    assert await p.sh("cat old") == "new"
    assert (p.host / "old").read_bytes() == b"new"


async def makes_and_removes(p: Place) -> None:
    await p.sh("mkdir -p d/e && touch d/e/f && rm d/e/f")
    assert os.listdir(p.host / "d" / "e") == []
    (p.host / "d" / "e" / "kept").touch()
    assert "not empty" in (await p.refused("rmdir d/e")).lower()
    await p.sh("rm -r d")
    assert os.listdir(p.host) == []


async def changes_mode_and_time(p: Place) -> None:
    (p.host / "file").touch()
    await p.sh("chmod 640 file && touch -d @1000000000 file")
    status = (p.host / "file").stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert status.st_mtime == 1_000_000_000
    os.utime(p.host / "file", (0, 1_234_567_890))
    assert await p.sh("stat -c '%a %Y' file") == "640 1234567890"


async def copies_four_mib(p: Place) -> None:
    body = random.Random(4).randbytes(4 * MIB)
    (p.host / "down").write_bytes(body)
    digest = hashlib.sha256(body).hexdigest()
    said = await p.sh("cp down /tmp/copy && sha256sum < /tmp/copy && cp /tmp/copy up", limit=120)
    assert said == f"{digest}  -"
    assert hashlib.sha256((p.host / "up").read_bytes()).hexdigest() == digest


async def renames_across_directories(p: Place) -> None:
    for name in ("from", "to"):
        (p.host / name).mkdir()
    (p.host / "from" / "file").write_bytes(b"body")
    (p.host / "from" / "dir").mkdir()
    await p.sh("probe rename2 from/file to/elsewhere plain && probe rename2 from/dir to/dir plain")
    assert os.listdir(p.host / "from") == []
    assert sorted(os.listdir(p.host / "to")) == ["dir", "elsewhere"]
    assert await p.sh("cat to/elsewhere") == "body"
    assert "22 " in await p.refused("probe rename2 to to/dir/inside plain")


async def links(p: Place) -> None:
    (p.host / "file").write_bytes(b"body")
    await p.sh("ln file hard && echo more >> hard")
    assert (p.host / "file").read_bytes() == b"bodymore\n"
    assert (p.host / "file").stat().st_ino == (p.host / "hard").stat().st_ino
    assert await p.sh("stat -c %h file") == "2"


async def symlinks(p: Place) -> None:
    await p.sh("echo body > file && ln -s file soft && ln -s /nowhere dangling")
    assert os.readlink(p.host / "soft") == "file"
    assert os.readlink(p.host / "dangling") == "/nowhere"
    os.symlink("soft", p.host / "made-here")
    assert await p.sh("readlink dangling; readlink made-here; cat made-here") == "/nowhere\nsoft\nbody"
    assert await p.sh("stat -c %F dangling") == "symbolic link"
    await p.sh("rm soft")
    assert (p.host / "file").exists()


async def xattrs(p: Place) -> None:
    (p.host / "file").touch()
    await p.sh("probe setxattr file user.colour red && probe setxattr file user.size big")
    assert os.getxattr(p.host / "file", "user.colour") == b"red"
    os.setxattr(p.host / "file", "user.colour", b"a longer green")
    assert await p.sh("probe getxattr file user.colour") == "a longer green"
    names = (await p.sh("probe listxattr file")).split()
    assert {name for name in names if name.startswith("user.")} == {"user.colour", "user.size"}
    await p.sh("probe removexattr file user.colour")
    assert os.listxattr(p.host / "file") == ["user.size"]
    assert (await p.refused("probe getxattr file user.colour")).startswith("61 ")


async def _holding(job: Job) -> None:
    await job.expect(b"locked\n")


async def locks_files(p: Place) -> None:
    (p.host / "file").write_bytes(bytes(1000))
    q = replace(p, mnt=p.other)
    async with p.guest.start(f"cd {p.mnt} && probe lock file 0 0 exclusive hold") as holder:
        await _holding(holder)
        assert (await q.refused("probe lock file 0 0 exclusive")).startswith("11 ")
        assert (await q.refused("probe lock file 0 0 shared")).startswith("11 ")
    async with p.guest.start(f"cd {p.mnt} && probe lock file 0 0 shared hold") as holder:
        await _holding(holder)
        assert await q.sh("probe lock file 0 0 shared") == "locked"
        assert (await q.refused("probe lock file 0 0 exclusive")).startswith("11 ")


async def waits_for_a_lock(p: Place) -> None:
    (p.host / "file").touch()
    async with p.guest.start(f"cd {p.mnt} && probe lock file 0 0 exclusive hold") as holder:
        await _holding(holder)
        waits = "probe lock file 0 0 exclusive wait & sleep 1; kill -0 $! && echo waits; wait"
        async with p.guest.start(f"cd {p.other} && {{ {waits}; }}") as waiter:
            assert await waiter.expect(b"\n") == b"waits\n"
            await holder.close_input()
            # The kernel asks a server that answers "blocked" again only after 30 s: the request must park.
            assert (await waiter.wait(limit=10)).output == b"waits\nlocked\n"


async def locks_one_file_twice(p: Place) -> None:
    (p.host / "file").touch()
    assert await p.sh("probe locktwice file") == "locked twice"


async def locks_byte_ranges(p: Place) -> None:
    (p.host / "file").write_bytes(bytes(1000))
    q = replace(p, mnt=p.other)
    async with p.guest.start(f"cd {p.mnt} && probe lock file 100 100 exclusive hold") as holder:
        await _holding(holder)
        assert (await q.refused("probe lock file 199 1 exclusive")).startswith("11 ")
        assert await q.sh("probe lock file 200 100 exclusive") == "locked"
        assert await q.sh("probe lock file 0 100 exclusive") == "locked"
        assert await q.sh("probe getlock file 0 0") == "exclusive 100 100"
        assert await q.sh("probe getlock file 200 0") == "free"


async def drops_the_locks_of_the_dead(p: Place) -> None:
    (p.host / "file").write_bytes(bytes(10))
    async with p.guest.start(f"cd {p.mnt} && exec probe lock file 0 0 exclusive hold") as holder:
        await _holding(holder)
        await holder.signal(9)
        assert (await holder.wait()).status == 137
    assert await replace(p, mnt=p.other).sh("probe lock file 0 0 exclusive") == "locked"


async def uses_unlinked_files(p: Place) -> None:
    assert await p.sh("probe orphan ghost") == "written and read\nghost 5"
    assert os.listdir(p.host) == []


async def syncs(p: Place) -> None:
    await p.sh("echo body > file && probe fsync file")
    assert (p.host / "file").read_bytes() == b"body\n"
    await p.refused("probe fsync missing")


async def counts_space(p: Place) -> None:
    blocks = os.statvfs(p.host)
    said = await p.sh("stat -f -c '%s %b' .")
    size, total = (int(word) for word in said.split())
    assert size * total == blocks.f_bsize * blocks.f_blocks


async def shows_nanoseconds(p: Place) -> None:
    (p.host / "file").touch()
    os.utime(p.host / "file", ns=(0, 1_700_000_000_123_456_789))
    assert await p.sh("probe gettime file") == "1700000000 123456789"
    # A mount of v9fs has a granularity of one second for the times it sets, whatever the protocol carries.
    await p.sh("probe settime file 1600000000 987654321")
    assert (p.host / "file").stat().st_mtime == 1_600_000_000


BOTH: tuple[Case, ...] = (
    lists,
    lists_ten_thousand,
    reads,
    writes,
    appends,
    truncates,
    renames,
    makes_and_removes,
    changes_mode_and_time,
    copies_four_mib,
)
LINUX_ONLY: tuple[Case, ...] = (
    replaces_by_rename,
    renames_across_directories,
    links,
    symlinks,
    xattrs,
    locks_files,
    waits_for_a_lock,
    locks_one_file_twice,
    locks_byte_ranges,
    drops_the_locks_of_the_dead,
    uses_unlinked_files,
    syncs,
    counts_space,
    shows_nanoseconds,
)
