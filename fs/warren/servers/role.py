"""/role: the role file in force, and the way to another.

    /manifest   Text    the role file, as it was read
    /ns         Text    its namespace, as lines that rebuild it
    /policy     Text    its rows, `allow WHO RIGHTS PATTERN`
    /status     Text    role= name= state= policy_rows= manifest_sha256= loaded= … problems=
    /problems   Text    what was wrong with the last file that was refused, a line each
    /validate   Sink    write a role file, read the verdict from the same descriptor
    /ctl        Ctl     verbs: reload, load

    exec 3<>/role/validate; cat my.role >&3; cat <&3

A file that is refused is refused whole: the error names every bad line, and what was in force stays in
force. A verdict changes nothing; its first line is `ok` or says how many lines are bad.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from warren.tree import Ctl, Dir, Maybe, Refused, Sink, Text, verb
from warren.tree.report import attributes, bad_lines, faults

MOST: Final = 256 << 10  # bytes of a role file
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class RolePort(Protocol):
    """What this server needs of the role that it is part of."""

    def text(self) -> str:
        """The role file in force."""

    def ns(self) -> str:
        """The namespace in force."""

    def rows(self) -> str:
        """The policy in force, a row a line."""

    def status(self) -> Mapping[str, object]:
        """What is to be said of the role."""

    async def reload(self) -> str:
        """Read the role's file again; says what changed. ValueError or Refused name every bad line, and
        nothing was changed. Cancelled: all of it was done, or nothing."""

    async def load(self, name: str) -> str:
        """As reload, for the role file of that name."""

    def validate(self, text: str) -> Maybe[str]:
        """What would change with this role file; ValueError names every bad line."""


class RoleFiles(Dir):
    """The tree."""

    def __init__(self, port: RolePort) -> None:
        self.port = port
        self.problems: tuple[str, ...] = ()
        super().__init__(
            {
                "manifest": Text(port.text),
                "ns": Text(port.ns),
                "policy": Text(port.rows),
                "status": Text(lambda: attributes({**port.status(), "problems": len(self.problems)})),
                "problems": Text(lambda: "".join(f"{line}\n" for line in self.problems)),
                "validate": Sink(self.validate),
                "ctl": RoleCtl(self),
            }
        )

    async def validate(self, body: bytes) -> str:
        """The verdict on a role file. Cancelled has no effect."""
        if len(body) > MOST:
            raise Refused(413, f"a role file is at most {MOST} bytes")
        try:
            said = self.port.validate(body.decode())
            if not isinstance(said, str):
                said = await said
        except UnicodeDecodeError as e:
            return _verdict((f"byte {e.start} is not UTF-8",))
        except ValueError as e:
            return _verdict(bad_lines(e))
        return f"ok\n{said}"

    async def change(self, change: Callable[[], Awaitable[str]]) -> str:
        """Put another role file in force, and remember what was wrong with one that was refused."""
        try:
            said = await change()
        except ValueError as e:
            self.problems = bad_lines(e)
            raise faults(e) from None
        except Refused as e:
            self.problems = tuple(e.detail.splitlines())
            raise Refused(e.code, "; ".join(self.problems), reason=e.reason, errno=e.errno) from None
        self.problems = ()
        return said


class RoleCtl(Ctl):
    """How an operator changes the role while it runs."""

    def __init__(self, role: RoleFiles) -> None:
        self.role = role

    @verb
    async def reload(self) -> str:
        """Read the role's file again; a bad one is refused with every bad line and changes nothing."""
        return await self.role.change(self.role.port.reload)

    @verb
    async def load(self, name: str) -> str:
        """Put the role file NAME in force, one of the hive's own or a packaged one."""
        if not _NAME.fullmatch(name):
            raise Refused(400, f"{name!r} is no name of a role, such as DroneWorker; a path is not taken")
        return await self.role.change(lambda: self.role.port.load(name))


def _verdict(bad: tuple[str, ...]) -> str:
    return f"{len(bad)} bad line{'s' * (len(bad) != 1)}\n" + "".join(f"{line}\n" for line in bad)
