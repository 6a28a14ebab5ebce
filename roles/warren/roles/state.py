"""A hive's state: one directory that only its owner enters.

    STATE/hive.toml              the hive's name, its queen's port, and its roles: NAME = ROLE
    STATE/lock                   held by whoever supervises the hive, and names that process
    STATE/run/NAME/sock          where the role NAME answers; `hive` is the supervisor itself
    STATE/run/NAME/pid           its process
    STATE/run/NAME/born          the same so that it can be proved: pid, start, boot
    STATE/run/NAME/addr          other addresses it answers at, a line each
    STATE/pki/ca/  pki/NAME/     the authority, and each role's identity
    STATE/store/  log/NAME/      what roles keep, and what they say
    STATE/roles/                 role files that go before those of the package
    STATE/srv/NAME/              sockets that the role NAME posts at /srv
    STATE/vm/NAME/               what the machines of the role NAME have, as long as they run
    STATE/mnt/                   the queen's namespace, mounted

STATE is --state, else $WARREN_STATE, else $XDG_STATE_HOME/warren/default, else ~/.local/state/warren/default.
Files are replaced whole. A directory that others may write, or that lies on a network, is refused: what
is locked and renamed there would not be so for everybody.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from warren.auth import keyfiles
from warren.auth.refusal import Missing, Refusal
from warren.auth.spiffe import BadName, check_hive, parse
from warren.roles.directory import QUEEN, chosen_directory, default_directory, socket_of
from warren.roles.mounts import NETWORKED, TABLE, above

DEFAULT = {"queen": "QueenPrimary", "drone-1": "DroneWorker", "drone-2": "DroneWorker"}
PORT = 5640
ITS_PORT = "WARREN_PORT"
_LONGEST_SOCKET = 107
# `hive` is the supervisor, `mount` its mount, `ca` the authority; `$self` is a symbol of namespaces.
RESERVED = {"hive", "mount", "ca", "self"}
_FOLDERS = ("run", "pki", "store", "log", "roles", "srv")

__all__ = [
    "DEFAULT", "PORT", "QUEEN", "RESERVED", "Hive", "State", "check_roles", "default_directory", "new_hive",
]  # fmt: skip


class Hive(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What hive.toml says."""

    hive: str
    created: str = ""
    port: int = PORT  # where the queen would listen, if that is free
    queen: str = ""  # the address of a queen elsewhere, whose hive this machine has joined
    roles: dict[str, str] = {}

    @property
    def joined(self) -> bool:
        return bool(self.queen)

    def write(self) -> str:
        """As hive.toml has it."""
        lines = [f'hive = "{self.hive}"', f'created = "{self.created}"', f"port = {self.port}"]
        if self.queen:
            lines.append(f'queen = "{self.queen}"')
        lines += ["", "[roles]", *(f'"{name}" = "{role}"' for name, role in self.roles.items())]
        return "\n".join(lines) + "\n"

    def uri(self, name: str) -> str:
        """Who the role NAME is."""
        return f"spiffe://{self.hive}/role/{self.roles[name]}/{name}"


def new_hive(roles: Mapping[str, str], hive: str = "", queen: str = "") -> Hive:
    """A hive with a name that no other has, so that two of them do not trust each other."""
    name = check_hive(hive or f"hive-{secrets.token_hex(4)}.warren")
    return Hive(name, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", _port(), queen, dict(roles))


def _port() -> int:
    """Where the queen of a new hive would listen. Hives of one machine that are to keep their ports have one
    each: while a queen is started again, another could take hers."""
    said = os.environ.get(ITS_PORT, "")
    if not said:
        return PORT
    if not (said.isascii() and said.isdigit() and 0 < int(said[:6]) < 1 << 16):
        way_out = "say a number from 1 to 65535, or unset it"
        raise Refusal(f"${ITS_PORT} is {said!r}, which is no port", way_out)
    return int(said)


def check_roles(roles: Mapping[str, str]) -> None:
    """Refuse names that cannot be."""
    for name, role in roles.items():
        try:
            parse(f"spiffe://x/role/{role}/{name}")
        except BadName as e:
            raise Refusal(f"{name}={role}: {e.text}", e.way_out) from None
        if name in RESERVED:
            raise Refusal(f"{name}={role}: {name} is a name of the hive's own", "choose another")


class State:
    """One state directory."""

    def __init__(self, directory: str | os.PathLike[str] | None = None, table: str = TABLE) -> None:
        self._table = table
        self.directory = chosen_directory(directory)
        self.file = self.directory / "hive.toml"
        self.ca = self.directory / "pki/ca"
        self.roles = self.directory / "roles"
        self.mnt = self.directory / "mnt"

    def run(self, name: str) -> Path:
        return self.directory / "run" / name

    def sock(self, name: str) -> Path:
        return socket_of(self.directory, name)

    def address(self, name: str) -> str:
        return f"unix!{self.sock(name)}"

    def pki(self, name: str) -> Path:
        return self.directory / "pki" / name

    def log(self, name: str) -> Path:
        return self.directory / "log" / name

    # Making it

    def make(self) -> None:
        """The directory and what stands in it, for the owner alone. One that cannot serve is refused."""
        self.check()
        for folder in (self.directory, *(self.directory / name for name in _FOLDERS)):
            keyfiles.make_directory(folder)
        os.chmod(self.directory, 0o700)

    def make_for(self, name: str) -> None:
        """The folders of one role."""
        length = len(os.fsencode(self.sock(name)))
        if length > _LONGEST_SOCKET:
            raise Refusal(
                f"{self.sock(name)}: a socket's path has {_LONGEST_SOCKET} bytes at most, not {length}",
                "choose a shorter --state",
            )
        for folder in (self.run(name), self.log(name)):
            keyfiles.make_directory(folder)
        if name not in RESERVED:
            keyfiles.make_directory(self.directory / "srv" / name)

    def check(self) -> None:
        """Refuse a directory that is another's, that others may write, or that lies on a network."""
        try:
            held = os.stat(self.directory)
        except FileNotFoundError:
            held = None
        except OSError as e:
            text = os.strerror(e.errno or errno.EIO)
            raise Refusal(f"{self.directory}: {text}", "choose another --state") from None
        if held is not None and held.st_uid != os.geteuid():
            raise Refusal(f"{self.directory}: it belongs to another user", "choose a --state of your own")
        if held is not None and held.st_mode & 0o022:
            raise Refusal(f"{self.directory}: others may write there", f"chmod 700 {self.directory}")
        on = above(os.path.realpath(self.directory), self._table)
        if on is not None and on.kind in NETWORKED:
            raise Refusal(
                f"{self.directory}: it lies on {on.kind}, mounted at {on.point}, and locks mean little there",
                "choose a --state on a disk of this machine",
            )

    # hive.toml

    def hive(self) -> Hive:
        """What hive.toml says, or the refusal that there is no hive here, or that it is wrong."""
        try:
            text = self.file.read_text()
        except FileNotFoundError:
            raise Missing(
                f"{self.directory}: there is no hive", f"make one: warren up --state {self.directory}"
            ) from None
        except PermissionError:
            raise Refusal(f"{self.directory}: it is another user's", "give a --state of yours") from None
        except (OSError, UnicodeDecodeError) as e:
            raise Refusal(f"{self.file}: {e}", "see who changed it") from None
        try:
            hive = msgspec.convert(tomllib.loads(text), Hive)
            check_hive(hive.hive)
            check_roles(hive.roles)
        except ValueError as e:  # of the syntax, of a field's type, of a name
            raise Refusal(f"{self.file}: {e}", "mend it; docs/operating.md shows one") from None
        return hive

    def write(self, hive: Hive) -> None:
        """Replace hive.toml."""
        keyfiles.write_whole(self.file, hive.write().encode())

    # Who supervises it

    @contextmanager
    def locked(self, content: str) -> Iterator[bool]:
        """The lock while the block runs, with CONTENT in it; False if somebody else holds it.

        The lock goes with the process, so what a killed one left in the file holds nobody up.
        """
        fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            os.truncate(fd, 0)
            os.pwrite(fd, content.encode(), 0)
            yield True
            os.truncate(fd, 0)
        finally:
            os.close(fd)

    def holder(self) -> str | None:
        """What the lock's holder wrote there; None if nobody holds it."""
        try:
            fd = os.open(self.directory / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError:
            raise Refusal(f"{self.directory}: it is another user's", "give a --state of yours") from None
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return os.read(fd, 4096).decode("ascii", "replace")
            return None
        finally:
            os.close(fd)
