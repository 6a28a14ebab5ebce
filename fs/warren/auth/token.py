"""Tokens: a capability that its holder narrows offline, and that any server of the hive can check.

    mint(issuer_key, Caveats(allow=..., aud=..., exp=..., nbf=...))  ->  Token
    narrow(token, Caveats(exp=...))                                  ->  Token, never more than before
    token.prove(nonce, server)                                       ->  what is sent beside token.chain
    verify(chain, proof, ...)                                        ->  Verified, or Invalid is raised

A server holds public keys only, so whoever steals its disk can mint nothing. To present a token is to
sign the server's nonce and name with the chain's last key, which never leaves the holder: a server
that is shown a token cannot show it to another.

`verify` is pure: the time, the nonce, the names and what is revoked come in. Its steps stand in a fixed
order, the cheap ones before the signatures, and `docs/tokens.md` gives the same order. Its answer is
compiled: `Verified.grants` says of each path what the blocks allow together, as `Grants` do for a
policy. With a token these grants are all there is; they are never added to a policy's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from warren.auth import blocks as b
from warren.auth.blocks import Invalid
from warren.auth.caveats import MAX_PARTS, Caveats, Meter, Stated, fits, together
from warren.auth.rights import (
    DELEGATE,
    BadRow,
    Grants,
    Policy,
    Row,
    TokenGrants,
    exceeding,
    parse_grant,
)

_NOBODY = Policy()


@dataclass(frozen=True)
class Token:
    """A chain and its last key: whoever has both can present it, and narrow it."""

    chain: bytes
    key: Ed25519PrivateKey = field(repr=False)

    def prove(self, nonce: bytes, server: str) -> bytes:
        """The proof of possession, good for this nonce of this server and for nothing else."""
        if len(nonce) != b.NONCE_BYTES:
            raise Invalid("size", f"a nonce of {len(nonce)} bytes")
        return self.key.sign(b.proof_message(self.chain, nonce, server))

    def write(self) -> str:
        """The text of a token file. It is a secret."""
        return b.write_parts(
            [("warren-token", self.chain), ("warren-token-key", self.key.private_bytes_raw())]
        )

    def export(self) -> str:
        """The text without the key: enough to look at, to verify and to revoke; not to present."""
        return b.write_parts([("warren-token", self.chain)])


def read_token(text: str) -> tuple[bytes, Token | None]:
    """The chain of a token file, and the whole token if the key is there too. Nothing is verified."""
    parts = b.read_parts(text)
    if [name for name, _ in parts] not in (["warren-token"], ["warren-token", "warren-token-key"]):
        raise b.BadText("a token file is the part warren-token, then perhaps warren-token-key")
    chain = parts[0][1]
    if len(parts) == 1:
        return chain, None
    if len(parts[1][1]) != 32:
        raise b.BadText("warren-token-key: a key has 32 bytes")
    return chain, Token(chain, Ed25519PrivateKey.from_private_bytes(parts[1][1]))


def mint(issuer: Ed25519PrivateKey, caveats: Caveats, *, key: Ed25519PrivateKey | None = None) -> Token:
    """A token of one block. KEY, its first holder's, is made here unless it is given."""
    key = key or Ed25519PrivateKey.generate()
    chain = b.append((), caveats.statements(), issuer, key.public_key().public_bytes_raw())
    together(b.parse(chain))
    return Token(chain, key)


def narrow(token: Token, caveats: Caveats, *, key: Ed25519PrivateKey | None = None) -> Token:
    """The same with one block more; it needs nobody's leave, and TOKEN stays as good as it was."""
    held = b.parse(token.chain)
    if held[-1].next != token.key.public_key().public_bytes_raw():
        raise Invalid("proof", "the key is not the one that the last block names")
    key = key or Ed25519PrivateKey.generate()
    chain = b.append(held, caveats.statements(), token.key, key.public_key().public_bytes_raw())
    together(b.parse(chain))
    return Token(chain, key)


@dataclass(frozen=True)
class Issuer:
    """A key that may mint: what at most, and from when until when."""

    key: bytes
    mint: tuple[Row, ...]
    begins: int
    expires: int

    @property
    def id(self) -> bytes:
        return b.issuer_id(self.key)

    def entry(self) -> bytes:
        """What the hive's authority signs."""
        return msgspec.msgpack.encode((self.key, self.begins, self.expires, [r.grant for r in self.mint]))

    def certify(self, sign: Callable[[bytes], bytes]) -> bytes:
        """The entry and the signature that SIGN, the authority's key, gives for it."""
        entry = self.entry()
        return msgspec.msgpack.encode((entry, sign(b.ISSUER + entry)))


_certified = msgspec.msgpack.Decoder(tuple[bytes, bytes])
_entry = msgspec.msgpack.Decoder(tuple[bytes, int, int, list[str]])


def read_issuer(data: bytes, check: Callable[[bytes, bytes], bool]) -> Issuer:
    """An issuer that was certified; CHECK(signature, message) answers with the authority's public key."""
    try:
        entry, signature = _certified.decode(data)
        if not check(signature, b.ISSUER + entry):
            raise b.BadText("an issuer that this hive's authority has not signed")
        key, begins, expires, rows = _entry.decode(entry)
        issuer = Issuer(key, tuple(parse_grant(row) for row in rows), begins, expires)
    except BadRow as e:
        raise b.BadText(f"an issuer with a row that does not parse: {e}") from None
    except (msgspec.MsgspecError, UnicodeError):
        raise b.BadText("not the entry of an issuer") from None
    if len(key) != 32 or issuer.entry() != entry:
        raise b.BadText("not the entry of an issuer in its one spelling")
    if any(r.rights & DELEGATE or len(r.pattern) > MAX_PARTS for r in issuer.mint):
        raise b.BadText("an issuer that would mint what no token may say")
    return issuer


@dataclass(frozen=True)
class Limits:
    """What a verifier accepts besides."""

    max_life: int = 86400  # of block 0, from nbf to exp
    skew: int = 60  # how much later than ours the minter's clock may be; an exp gets nothing


@dataclass(frozen=True)
class Verified:
    """A token that counts, compiled."""

    grants: TokenGrants
    expires: int
    blocks: tuple[bytes, ...]  # their ids, from the root on
    issuer: bytes
    meters: tuple[Meter, ...]
    actor: str  # on whose behalf
    via: str | None  # who acts for it, if that is another
    path: str | None

    @property
    def ids(self) -> frozenset[bytes]:
        """The token is dead as soon as one of these is revoked."""
        return frozenset((self.issuer, *self.blocks))


def verify(
    chain: bytes,
    proof: bytes,
    *,
    issuers: Mapping[bytes, Issuer],
    now: float,
    nonce: bytes,
    server: str,
    presenter: str,
    revoked: Collection[bytes] = frozenset(),
    limits: Limits = Limits(),
    policy: Policy = _NOBODY,
    seen: Seen | None = None,
) -> Verified:
    """What CHAIN is good for, shown with PROOF by PRESENTER to us, SERVER; Invalid if for nothing.

    NONCE was made by us for this one presentation. POLICY is asked about delegation alone. SEEN spares
    the chain's own signatures when the very same bytes were checked before; the proof is always checked.
    """
    if len(nonce) != b.NONCE_BYTES or len(proof) != b.PROOF_BYTES:
        raise Invalid("size", "a nonce or a proof has not its length")
    held = b.parse(chain)
    issuer = _signed(chain, held, issuers, seen)
    if not b.signed(held[-1].next, proof, b.proof_message(chain, nonce, server)):
        raise Invalid("proof", "the last key has not signed for this nonce and this server")
    return _weigh(held, issuer, now, server, presenter, revoked, limits, policy)


def recheck(
    chain: bytes,
    *,
    issuers: Mapping[bytes, Issuer],
    now: float,
    server: str,
    presenter: str,
    revoked: Collection[bytes] = frozenset(),
    limits: Limits = Limits(),
    policy: Policy = _NOBODY,
    seen: Seen | None = None,
) -> Verified:
    """The same without the proof: for a session that gave it, after something was revoked or changed."""
    held = b.parse(chain)
    return _weigh(held, _signed(chain, held, issuers, seen), now, server, presenter, revoked, limits, policy)


class Seen:
    """Chains whose signatures were found good, each under one issuer's key. Bounded; the oldest goes."""

    def __init__(self, most: int = 1024) -> None:
        self._most = most
        self._good: dict[tuple[bytes, bytes], None] = {}

    def good(self, chain: bytes, key: bytes) -> bool:
        return (sha256(chain).digest(), key) in self._good

    def add(self, chain: bytes, key: bytes) -> None:
        if len(self._good) >= self._most:
            del self._good[next(iter(self._good))]
        self._good[sha256(chain).digest(), key] = None


def _signed(
    chain: bytes, held: list[b.Block], issuers: Mapping[bytes, Issuer], seen: Seen | None
) -> Issuer:
    issuer = issuers.get(held[0].before)
    if issuer is None or issuer.id != held[0].before:
        raise Invalid("issuer", held[0].before.hex())
    if seen is None or not seen.good(chain, issuer.key):
        b.check_signatures(held, issuer.key)
        if seen is not None:
            seen.add(chain, issuer.key)
    return issuer


def _weigh(
    held: list[b.Block],
    issuer: Issuer,
    now: float,
    server: str,
    presenter: str,
    revoked: Collection[bytes],
    limits: Limits,
    policy: Policy,
) -> Verified:
    ids = tuple(block.id for block in held)
    for dead in (issuer.id, *ids):
        if dead in revoked:
            raise Invalid("revoked", dead.hex())
    stated = together(held)
    _check_times(stated, issuer, now, limits)
    for number, caveats in enumerate(stated.blocks):
        if caveats.aud is not None and not fits(caveats.aud, server):
            raise Invalid("audience", f"block {number}: {caveats.aud!r} is not {server!r}")
        if caveats.to is not None and not fits(caveats.to, presenter):
            raise Invalid("holder", f"block {number}: {caveats.to!r} is not {presenter!r}")
    for row in stated.blocks[0].rows or ():
        if over := exceeding(row, issuer.mint):
            raise Invalid("mint", f"{row.grant!r}: its issuer may not mint {over} there")
    layers = [Grants(issuer.mint)]
    layers += [Grants(rows) for c in stated.blocks for rows in (c.rows, c.below) if rows is not None]
    if stated.actor is not None and stated.path is not None:
        if not policy.grants(presenter).may_delegate(stated.path):
            raise Invalid("delegate", f"{presenter!r} may not act for others on all of {stated.path!r}")
        layers.append(policy.grants(stated.actor))
    return Verified(
        grants=TokenGrants(layers),
        expires=min(stated.expires, issuer.expires),
        blocks=ids,
        issuer=issuer.id,
        meters=stated.meters,
        actor=stated.actor or presenter,
        via=presenter if stated.actor else None,
        path=stated.path,
    )


def _check_times(stated: Stated, issuer: Issuer, now: float, limits: Limits) -> None:
    root = stated.blocks[0]
    life = (root.exp or 0) - (root.nbf or 0)
    if not 0 < life <= limits.max_life:
        raise Invalid("life", f"{life} s, and {limits.max_life} s are the most")
    if not issuer.begins <= now < issuer.expires:
        raise Invalid("window", f"the issuer is certified from {issuer.begins} to {issuer.expires}")
    if now < stated.begins - limits.skew:
        raise Invalid("early", f"from {stated.begins} on")
    if now >= stated.expires:
        raise Invalid("expired", f"at {stated.expires}")


def by_id(issuers: Iterable[Issuer]) -> dict[bytes, Issuer]:
    """Issuers as `verify` wants them."""
    return {issuer.id: issuer for issuer in issuers}
