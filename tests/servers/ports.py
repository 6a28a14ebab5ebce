"""What servers are given of a role, in the simplest form that keeps the promise."""

from collections.abc import Mapping, Sequence

import trio
from warren.p9.messages import DOTL
from warren.tree.ports import Conversation, Pressure


class Nobody:
    """A caller without a name."""

    subject = "any"
    session = 1
    last_error = ""


class Crowd:
    """Two sessions, for ever."""

    def conversations(self) -> Sequence[Conversation]:
        return [
            Conversation(3, "local", "attached", DOTL, 4, 100, 2000, 30, 2, 1),
            Conversation(17, "spiffe://hive/user/ann via=x", "greeted", "9P2000", 0, 1, 2, 0, 0, 0),
        ]

    def conversation(self, number: int) -> Conversation | None:
        return next((c for c in self.conversations() if c.number == number), None)

    def pressure(self) -> Pressure:
        return Pressure(busy=1, quota=2, cut=3, policy=4)

    def statistics(self) -> dict[str, int]:
        return {"sessions": 2, "fids": 4, "outstanding": 2, "flushed": 9, "operations": 101}


class BadRole(ValueError):
    def __init__(self, *errors: str) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


BAD = BadRole("a.role:3: no server 'x'", "a.role:7: no right 'fly'")


class TheRole:
    """A role whose file is one number of rows."""

    def __init__(self) -> None:
        self.count = 1
        self.wrong: Exception | None = None
        self.named = ""

    def text(self) -> str:
        return "role R\n"

    def ns(self) -> str:
        return "mount $self /\n"

    def rows(self) -> str:
        return "allow local read /**\n" * self.count

    def status(self) -> Mapping[str, object]:
        return {"role": "R", "name": "r-1", "state": "ONLINE", "policy_rows": self.count}

    async def reload(self) -> str:
        await trio.lowlevel.checkpoint()
        if self.wrong is not None:
            raise self.wrong
        self.count += 1
        return "policy: 1 row added"

    async def load(self, name: str) -> str:
        self.named = name
        return await self.reload()

    def validate(self, text: str) -> str:
        if "fly" in text:
            raise BAD
        return "policy: as it is\n"
