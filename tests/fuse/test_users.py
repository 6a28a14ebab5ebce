"""Whose mount it is: other users are kept out unless they are asked in."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.mounts import EVERYTHING, Ran, mounted, run
from tests.shell.running import serving, socket_in, warren

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that every user may look into: those of pytest are its owner's."""
    place = Path(tempfile.mkdtemp(prefix="warren-users-"))
    place.chmod(0o755)
    (place / "served").mkdir()
    (place / "served/file").write_text("for all\n")
    yield place
    shutil.rmtree(place)


def as_another(*words: str | Path) -> Ran:
    """As somebody else, where this test may become somebody else."""
    return run(*NOBODY, *words, code=None)


def test_other_users_are_kept_out(open_place: Path) -> None:
    with serving("disk", str(open_place / "served"), *socket_in(open_place), *EVERYTHING) as served:
        with mounted(served.at, open_place / "mnt") as mount:
            assert (mount.at / "file").read_text() == "for all\n"
            ran = as_another("cat", mount.at / "file")
            assert (ran.code, ran.out) != (0, "for all\n")
            if os.geteuid() == 0:
                assert os.strerror(errno.EACCES) in ran.err


def test_other_users_come_in_where_they_are_asked(open_place: Path) -> None:
    with serving("disk", str(open_place / "served"), *socket_in(open_place), *EVERYTHING) as served:
        if os.geteuid() != 0 and "\nuser_allow_other" not in Path("/etc/fuse.conf").read_text():
            done = warren("mount", served.at, str(open_place / "mnt"), "--allow-other")
            assert (done.code != 0, "user_allow_other" in done.err) == (True, True)
            return
        with mounted(served.at, open_place / "mnt", "--allow-other") as mount:
            assert (mount.at / "file").read_text() == "for all\n"
            for _ in range(2):
                assert as_another("cat", mount.at / "file").out == "for all\n"
            assert (mount.at / "file").stat().st_uid == os.geteuid()
