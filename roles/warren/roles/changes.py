"""What another role file changes, in words.

    compare(old, new)     a line for each change, or `nothing has changed`
    waiting(old, new)     those of them that come with a restart only

Rows, the namespace and limits are put in force while a role runs. Which trees it serves, where it keeps what
must last, and how it meets others are settled when it starts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from warren.roles.manifest import Manifest

NOTHING = "nothing has changed"


def compare(old: Manifest, new: Manifest) -> str:
    """The changes from OLD to NEW, those that need a restart last."""
    said = _sets("policy", map(str, old.policy.rows), map(str, new.policy.rows))
    said += _sets("namespace", old.space.lines().splitlines(), new.space.lines().splitlines())
    for each in dataclasses.fields(old.limits):
        was, is_ = getattr(old.limits, each.name), getattr(new.limits, each.name)
        if was != is_:
            said.append(f"limit {each.name}: {was} before, {is_} now")
    said += [f"{line}; needs a restart" for line in waiting(old, new)]
    return "\n".join(said) or NOTHING


def waiting(old: Manifest, new: Manifest) -> list[str]:
    """The changes from OLD to NEW that a role which runs cannot make."""
    said = _sets("serve", map(str, old.serves), map(str, new.serves))
    said += _sets("export", old.exports_to, new.exports_to)
    if old.store != new.store:
        said.append(f"store: {old.store} before, {new.store} now")
    for what, was, is_ in (
        ("listen tls", old.listens, new.listens),
        ("strict", old.strict, new.strict),
        ("restricted", bool(old.restricted), bool(new.restricted)),
    ):
        if was != is_:
            said.append(f"{what}: {'yes' if is_ else 'no'} now")
    return said


def _sets(what: str, old: Iterable[str], new: Iterable[str]) -> list[str]:
    """What went and what came, each in its file's order."""
    before, after = list(dict.fromkeys(old)), list(dict.fromkeys(new))
    gone = [f"{what} - {line}" for line in before if line not in set(after)]
    return gone + [f"{what} + {line}" for line in after if line not in set(before)]
