"""Caveats: what a block of a token says about its use.

    allow   rows `RIGHTS PATTERN[#VERB,...]`; within a block any of them, across blocks all
    exp     the second from which the token is dead
    nbf     the second before which it is not yet alive
    aud     the servers it is for: a SPIFFE name, in which a component behind the domain may be *
    to      who may present it, as with aud; without it, whoever holds its key
    for     on whose behalf it is presented: one SPIFFE name
    path    on which subtree: one path
    rate    [operations a second, burst], for all sessions of this block together
    bytes   of file data, for all sessions of this block together

Block 0 states allow, aud, exp and nbf. Any block may state any; each only takes away. An unknown caveat
refuses the token, since not to understand a restriction is not to enforce it.
"""

from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta
from warren.auth import spiffe
from warren.auth.blocks import Block, Invalid, Statement
from warren.auth.refusal import Refusal
from warren.auth.rights import DELEGATE, EVERY, BadRow, Row, means, parse_grant, parse_who

MAX_PARTS = 32
Text = Annotated[str, Meta(min_length=1)]
Second = Annotated[int, Meta(ge=0, lt=1 << 53)]
Count = Annotated[int, Meta(ge=1, lt=1 << 53)]


class Caveats(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The caveats of one block; None where it does not state one."""

    allow: Annotated[tuple[Text, ...], Meta(min_length=1)] | None = None
    aud: Text | None = None
    bytes_: Count | None = msgspec.field(default=None, name="bytes")
    exp: Second | None = None
    for_: Text | None = msgspec.field(default=None, name="for")
    nbf: Second | None = None
    path: Text | None = None
    rate: tuple[Count, Count] | None = None
    to: Text | None = None

    def statements(self) -> dict[str, Statement]:
        """What goes into the block. Invalid if a reader would refuse it."""
        said: dict[str, Statement] = msgspec.to_builtins(self, builtin_types=())
        said = {name: list(value) if isinstance(value, tuple) else value for name, value in said.items()}
        read(said, 0)
        return said

    @property
    def rows(self) -> tuple[Row, ...] | None:
        """What `allow` says, parsed."""
        return None if self.allow is None else tuple(parse_grant(text) for text in self.allow)

    @property
    def below(self) -> tuple[Row, ...] | None:
        """What `path` says, as rows."""
        if self.path is None:
            return None
        return (Row(("any",), EVERY, (*(n for n in self.path.split("/") if n), "**"), None),)


NAMES = frozenset(field.encode_name for field in msgspec.structs.fields(Caveats))


def read(said: dict[str, Statement], number: int) -> Caveats:
    """The caveats that block NUMBER states, each checked by itself."""
    unknown = sorted(said.keys() - NAMES)
    if unknown:
        raise Invalid("caveat", f"block {number}: {unknown[0][:40]!r}")
    try:
        caveats = msgspec.convert(said, Caveats)
        for text in caveats.allow or ():
            _check_row(text)
        for pattern in (caveats.aud, caveats.to):
            if pattern is not None:
                check_pattern(pattern)
        if caveats.for_ is not None:
            spiffe.parse(caveats.for_)
        if caveats.path is not None:
            _check_path(caveats.path)
    except (msgspec.ValidationError, BadRow, Refusal) as e:
        raise Invalid("value", f"block {number}: {e}") from None
    return caveats


def _check_row(text: str) -> None:
    row = parse_grant(text)
    if row.grant != text:
        raise BadRow(f"{text!r}: in a token it is spelt {row.grant!r}")
    if row.rights & DELEGATE:
        raise BadRow(f"{text!r}: a server trusts somebody to act for others; no token says so")
    if len(row.pattern) > MAX_PARTS:
        raise BadRow(f"a pattern of more than {MAX_PARTS} components")


def check_pattern(text: str) -> tuple[str, ...]:
    """A pattern of an aud or a to: in full, since a token may travel to where `role/R/N` is another's."""
    if text == "local":
        return (text,)
    if not text.startswith(spiffe.SCHEME):
        raise BadRow(f"{text!r}: in a token it is local or a whole name, spiffe://HIVE/role/ROLE/NAME")
    words = parse_who(text, text)
    # With a name in the place of each star, the pattern must be a name itself.
    spiffe.parse("/".join("x" if word == "*" else word for word in words))
    return words


def _check_path(text: str) -> None:
    parts = text[1:].split("/") if text != "/" else []
    good = text.startswith("/") and len(parts) <= MAX_PARTS and "\0" not in text
    if not good or not {"", ".", ".."}.isdisjoint(parts) or "*" in text:
        raise BadRow(f"{text[:80]!r}: path is one absolute path, without * or a / at its end")


class Meter(msgspec.Struct, frozen=True):
    """What one block limits: found again by its id, and charged to the chain's block 0."""

    block: bytes
    root: bytes
    until: int
    rate: tuple[int, int] | None
    bytes: int | None


class Stated(msgspec.Struct, frozen=True):
    """The caveats of a whole chain, taken together."""

    blocks: tuple[Caveats, ...]
    begins: int
    expires: int
    actor: str | None  # `for`
    path: str | None
    meters: tuple[Meter, ...]


def together(blocks: Iterable[Block]) -> Stated:
    """All caveats of a chain, as one statement; Invalid if they do not make one."""
    blocks = list(blocks)
    said = tuple(read(block.caveats, number) for number, block in enumerate(blocks))
    root = said[0]
    for name in ("allow", "aud", "exp", "nbf"):
        if getattr(root, name) is None:
            raise Invalid("missing", f"block 0 states no {name}")
    for number, caveats in enumerate(said):
        if (caveats.for_ is None) != (caveats.path is None):
            raise Invalid("missing", f"block {number}: for and path go together")
    acting = [c for c in said if c.for_ is not None]
    if len(acting) > 1:
        raise Invalid("delegate", "for is there twice")
    meters, until = [], 1 << 53
    for block, caveats in zip(blocks, said, strict=True):
        until = min(until, until if caveats.exp is None else caveats.exp)
        if caveats.rate or caveats.bytes_:
            meters.append(Meter(block.id, blocks[0].id, until, caveats.rate, caveats.bytes_))
    return Stated(
        blocks=said,
        begins=max(c.nbf for c in said if c.nbf is not None),
        expires=min(c.exp for c in said if c.exp is not None),
        actor=acting[0].for_ if acting else None,
        path=acting[0].path if acting else None,
        meters=tuple(meters),
    )


def fits(pattern: str, name: str) -> bool:
    """Whether a pattern of an aud or a to means NAME."""
    return means(check_pattern(pattern), name)
