"""An empty policy: whatever is asked, in whatever dialect, the answer is a refusal."""

import pytest
from warren.p9.fields import NOFID, NONUNAME
from warren.p9.messages import (
    ALL,
    MESSAGES,
    PLAIN,
    Message,
    Rattach,
    Rerror,
    Rflush,
    Rlerror,
    Tattach,
    Tflush,
    Twalk,
)
from warren.servers.demo import Demo
from warren.tree import Dir

from tests.wire import RefusedBy, served

REQUESTS = [m for name, m in MESSAGES.items() if name[0] == "T" and name not in ("Tversion", "Tflush")]
NO_EFFECT = {"intent", "outcome"}


def questions(cls: type[Message]) -> list[Message]:
    """Edges of every field, and fid 0 wherever a fid is asked for."""
    found = list(cls.examples())
    for m in cls.examples():
        for name, _ in cls.fields:
            if name.endswith("fid") and name != "afid":
                setattr(m, name, 0)
        if isinstance(m, Tattach):
            m.afid = NOFID
        found.append(m)
    return found


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("subject", ["any", "local", "spiffe://hive/role/QueenPrimary/q", "root", ""])
async def test_nothing_but_refusals(version: str, subject: str) -> None:
    async with served(Demo(), allow=[]) as service:
        wire = service.connect(subject)
        await wire.version(version)
        with pytest.raises(RefusedBy):
            await wire.attach()
        asked = 0
        for cls in REQUESTS:
            if version not in cls.dialects:
                continue
            for m in questions(cls):
                reply = await wire.ask(m)
                assert isinstance(reply, Rerror if version == PLAIN else Rlerror), (m, reply)
                asked += 1
        assert asked > 60
        assert isinstance(await wire.ask(Tflush(9)), Rflush)
        assert not NO_EFFECT & {line.split()[0] for line in service.audited()}
        assert not [e for e in service.export.trace.errors if e.code == 500]
        assert "note Tattach / 403" in service.audited()


@pytest.mark.parametrize("version", ALL)
async def test_a_path_one_may_not_see_reads_like_one_that_is_missing(version: str) -> None:
    tree = Dir({"open": Demo(), "secret": Demo()})
    async with served(tree, ["any read,write,create,remove,ctl /open/**"]) as service:
        wire = await service.dial(version)
        texts = set()
        for name in ("secret", "missing"):
            reply = await wire.ask(Twalk(0, 1, [name]))
            assert isinstance(reply, Rerror | Rlerror)
            texts.add((getattr(reply, "ecode", 0), reply.ename.partition(" trace=")[0]))
            other = service.connect()
            await other.version(version)
            with pytest.raises(RefusedBy):
                await other.want(Rattach, Tattach(0, NOFID, "", name, NONUNAME))
        assert len(texts) == 1
