"""The bytes of a token: blocks, their signatures, their ids, and the text of token files.

    chain   msgpack [1, [[body, signature], ...]]       1 to 8 blocks, at most 4096 bytes
    body    msgpack [before, caveats, next]             before: the id of the block before it
    id      SHA-256("warren token block 1" 0 body)      of block 0, `before` is the issuer's id

Each block is signed by the key that the one before it names as `next`, the first by the issuer. Since a
body says what stands before it, a signature holds in one place of one chain and nowhere else. Every
value has one spelling: what would be encoded differently is refused, so an id cannot be dodged.

Nothing here knows what a caveat means. `docs/tokens.md` is the format for other implementations.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

VERSION: Final = 1
MAX_BYTES: Final = 4096
MAX_BLOCKS: Final = 8
NONCE_BYTES: Final = 32
PROOF_BYTES: Final = 64

# What a signature or a hash is of stands before it, so that none can be taken for another.
BLOCK: Final = b"warren token block 1\0"
CHAIN: Final = b"warren token chain 1\0"
PROOF: Final = b"warren token proof 1\0"
ISSUER: Final = b"warren token issuer 1\0"

REASONS: Final = {
    "size": "the chain is longer than 4096 bytes, or a nonce or proof has not its length",
    "encoding": "not the msgpack of a chain in its one spelling",
    "version": "a version of the format other than 1",
    "blocks": "no block, or more than 8",
    "link": "a block that does not name the id of what stands before it",
    "issuer": "the first block is of no issuer that is known",
    "signature": "a block not signed by the key before it",
    "proof": "the presenter has not shown that it holds the last key, to this server, for this nonce",
    "revoked": "a block, or the issuer, is revoked",
    "caveat": "a caveat with a name that is not known",
    "value": "a caveat whose value cannot be",
    "missing": "block 0 lacks one of allow, aud, exp, nbf; or there is one of for and path without the other",
    "life": "block 0 lives longer than this server accepts, or not at all",
    "window": "now is outside the time for which the issuer is certified",
    "early": "now is before an nbf",
    "expired": "now is not before every exp",
    "audience": "this server is not whom an aud means",
    "holder": "the presenter is not whom a to means",
    "mint": "block 0 allows what its issuer may not mint",
    "delegate": "for is there twice, or the presenter may not act for others on all of path",
}

Scalar = int | str
Statement = Scalar | list[Scalar]


class Invalid(Exception):
    """A token that does not count: REASON is one of REASONS, DETAIL is for the audit alone."""

    def __init__(self, reason: str, detail: str) -> None:
        # Some of it is the stranger's text, and a refusal must not be a way to fill the audit.
        self.reason, self.detail = reason, detail[:200]
        super().__init__(f"{reason}: {self.detail}")


class Block(NamedTuple):
    """One block, as it came: nothing in it is believed yet."""

    body: bytes
    signature: bytes
    before: bytes
    caveats: dict[str, Statement]
    next: bytes

    @property
    def id(self) -> bytes:
        return block_id(self.body)


_chain = msgspec.msgpack.Decoder(tuple[int, list[tuple[bytes, bytes]]])
_body = msgspec.msgpack.Decoder(tuple[bytes, dict[str, Statement], bytes])
_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def block_id(body: bytes) -> bytes:
    return hashlib.sha256(BLOCK + body).digest()


def issuer_id(key: bytes) -> bytes:
    """The id of an issuer: what block 0 of its tokens has before it."""
    return hashlib.sha256(ISSUER + key).digest()


def append(
    blocks: Sequence[Block], caveats: dict[str, Statement], signer: Ed25519PrivateKey, next_key: bytes
) -> bytes:
    """The chain of BLOCKS with one more, signed by SIGNER."""
    before = blocks[-1].id if blocks else issuer_id(signer.public_key().public_bytes_raw())
    body = _encode((before, caveats, next_key))
    chain = encode([*((b.body, b.signature) for b in blocks), (body, signer.sign(BLOCK + body))])
    if len(chain) > MAX_BYTES:
        raise Invalid("size", f"it would have {len(chain)} bytes, and {MAX_BYTES} are the most")
    if len(blocks) >= MAX_BLOCKS:
        raise Invalid("blocks", f"it has {len(blocks)} blocks, which is the most")
    return chain


def encode(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A chain of bodies and signatures."""
    return _encode((VERSION, list(pairs)))


def parse(chain: bytes) -> list[Block]:
    """The blocks of a chain, linked to one another; their signatures are still to be checked."""
    if len(chain) > MAX_BYTES:
        raise Invalid("size", f"{len(chain)} bytes")
    try:
        version, pairs = _chain.decode(chain)
    except (ValueError, RecursionError) as e:
        raise Invalid("encoding", f"the chain: {e}") from None
    if version != VERSION:
        raise Invalid("version", str(version))
    if not 1 <= len(pairs) <= MAX_BLOCKS:
        raise Invalid("blocks", str(len(pairs)))
    if encode(pairs) != chain:
        raise Invalid("encoding", "the chain: not in its one spelling")
    blocks: list[Block] = []
    for number, (body, signature) in enumerate(pairs):
        blocks.append(_block(number, body, signature))
        if number and blocks[number].before != blocks[number - 1].id:
            raise Invalid("link", f"block {number}")
    return blocks


def _block(number: int, body: bytes, signature: bytes) -> Block:
    try:
        before, caveats, next_key = _body.decode(body)
    except (ValueError, RecursionError) as e:
        raise Invalid("encoding", f"block {number}: {e}") from None
    if _encode((before, caveats, next_key)) != body:
        raise Invalid("encoding", f"block {number}: not in its one spelling")
    if (len(before), len(next_key), len(signature)) != (32, 32, 64):
        raise Invalid("encoding", f"block {number}: an id, a key or a signature has not its length")
    return Block(body, signature, before, caveats, next_key)


def check_signatures(blocks: Sequence[Block], issuer_key: bytes) -> None:
    key = issuer_key
    for number, block in enumerate(blocks):
        if not signed(key, block.signature, BLOCK + block.body):
            raise Invalid("signature", f"block {number}")
        key = block.next


def signed(key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def proof_message(chain: bytes, nonce: bytes, server: str) -> bytes:
    """What the last key signs: this chain, shown to this server, now."""
    return PROOF + nonce + hashlib.sha256(CHAIN + chain).digest() + server.encode()


class BadText(ValueError):
    """A text that is not the parts of a file of ours."""


_LINE = 64


def write_parts(parts: Iterable[tuple[str, bytes]]) -> str:
    """Parts as text: `NAME 1`, base64url in lines of 64, an empty line between two parts."""
    texts = []
    for name, data in parts:
        text = base64.urlsafe_b64encode(data).decode().rstrip("=")
        lines = [text[i : i + _LINE] for i in range(0, len(text), _LINE)]
        texts.append("\n".join([f"{name} 1", *lines]) + "\n")
    return "\n".join(texts)


def read_parts(text: str) -> list[tuple[str, bytes]]:
    """The parts of a text, in order. An error never quotes the text, which may be secret."""
    parts = []
    lines = [line.strip() for line in text.split("\n")]
    for part in "\n".join(lines).strip("\n").split("\n\n"):
        head, _, joined = part.partition("\n")
        name, _, version = head.partition(" ")
        if not name.startswith("warren-") or version != "1":
            raise BadText("a part begins with a line such as: warren-token 1")
        joined = joined.replace("\n", "")
        try:
            data = base64.b64decode(joined + "=" * (-len(joined) % 4), altchars=b"-_", validate=True)
        except ValueError:
            raise BadText(f"{name}: what follows is not base64url") from None
        parts.append((name, data))
    return parts


def write_revoked(id: bytes, expires: int | None = None) -> str:
    """A line of a revocation list. It may be dropped once the block would be dead anyway."""
    return id.hex() + ("\n" if expires is None else f" exp={expires}\n")


def read_revoked(text: str) -> dict[bytes, int | None]:
    """The ids of a revocation list, each with the second after which nobody needs it, if that is known."""
    found: dict[bytes, int | None] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match line.partition("#")[0].split():
            case []:
                continue
            case [digits] if _ID.fullmatch(digits):
                found[bytes.fromhex(digits)] = None
            case [digits, exp] if _ID.fullmatch(digits) and _EXP.fullmatch(exp):
                # Of two lines about one id, the one that holds longer counts.
                known = found.get(id := bytes.fromhex(digits), 0)
                found[id] = None if known is None else max(known, int(exp[4:]))
            case _:
                raise BadText(f"line {number} is not: 64 hex digits, then perhaps exp=SECOND")
    return found


_ID = re.compile(r"[0-9a-f]{64}")
_EXP = re.compile(r"exp=[0-9]{1,15}")
