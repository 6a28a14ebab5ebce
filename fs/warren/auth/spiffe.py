"""Names: who a certificate speaks for.

    spiffe://HIVE/role/ROLE/NAME           a process in a role
    spiffe://HIVE/user/NAME                a person
    spiffe://REGION.HIVE/...               the same, in a region of the hive

HIVE is lower-case labels with dots between, as in the domain name system, 63 characters at most; REGION
is one such label. ROLE begins with a letter and has letters, digits and dashes; NAME begins with a letter
or a digit and also has dots and underscores; each has 64 characters at most. There is no other spelling:
no port, no escape, no empty component, no upper case in the domain. So two names are equal exactly if
their texts are.

A *pattern* is a full name in which a component behind the domain may be `*`, or what stands behind the
domain alone (`role/QueenPrimary/*`), which means the hive's own domain and no region's: otherwise a
region, which names its own members, could name a queen of the hive.
"""

import re
from typing import NamedTuple

from warren.auth.refusal import Refusal

SCHEME = "spiffe://"
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LONGEST_HIVE = 63
_LONGEST = 400  # of anything that is looked at at all
FORMS = "spiffe://HIVE/role/ROLE/NAME or spiffe://HIVE/user/NAME"


class BadName(Refusal):
    """A text that is no name of ours."""


class Name(NamedTuple):
    """A name, parsed: `str()` gives the text back."""

    domain: str
    parts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{SCHEME}{self.domain}/{'/'.join(self.parts)}"

    def within(self, hive: str) -> bool:
        """Whether the hive, or one of its regions, is who gives this name."""
        region, _, above = self.domain.partition(".")
        return bool(hive) and (self.domain == hive or (above == hive and bool(region)))

    def fits(self, pattern: str, hive: str) -> bool:
        """Whether PATTERN, as somebody of HIVE writes it, means this name."""
        if not pattern.startswith(SCHEME):
            pattern = f"{SCHEME}{hive}/{pattern}"
        domain, *parts = pattern.removeprefix(SCHEME).split("/")
        if domain != self.domain or len(parts) != len(self.parts):
            return False
        return all(want in ("*", have) for want, have in zip(parts, self.parts, strict=True))


def parse(text: str) -> Name:
    """The name that TEXT is, or BadName."""
    if len(text) > _LONGEST or not text.startswith(SCHEME):
        raise BadName(f"{text[:80]!r} is no name of a hive's member", f"write {FORMS}")
    domain, *parts = text.removeprefix(SCHEME).split("/")
    check_domain(domain)
    match parts:
        case ["role", role, name]:
            _word(_ROLE, role, "role", "a letter, then letters, digits or -")
            _word(_NAME, name, "name", "a letter or digit, then letters, digits or . _ -")
        case ["user", name]:
            _word(_NAME, name, "name", "a letter or digit, then letters, digits or . _ -")
        case _:
            raise BadName(f"{text!r} is neither a role nor a user", f"write {FORMS}")
    return Name(domain, tuple(parts))


def check_hive(text: str) -> str:
    """TEXT if it can name a hive."""
    if len(text) > _LONGEST_HIVE or not all(_LABEL.fullmatch(label) for label in text.split(".")):
        raise BadName(
            f"{text[:80]!r} cannot name a hive",
            "a hive's name is labels of a-z, 0-9 and - with dots between, 63 characters at most",
        )
    return text


def check_region(text: str) -> str:
    """TEXT if it can name a region of a hive."""
    if not _LABEL.fullmatch(text):
        raise BadName(
            f"{text[:80]!r} cannot name a region", "it is one label of a-z, 0-9 and -, such as west"
        )
    return text


def check_domain(text: str) -> str:
    """TEXT if it can be a hive or a region of one."""
    region, _, hive = text.partition(".")
    if len(text) > _LONGEST_HIVE and _LABEL.fullmatch(region):
        check_hive(hive)
    else:
        check_hive(text)
    return text


def _word(shape: re.Pattern[str], text: str, what: str, made_of: str) -> None:
    if not shape.fullmatch(text):
        raise BadName(f"{text[:80]!r} is no {what}", f"a {what} is {made_of}, 64 characters at most")
