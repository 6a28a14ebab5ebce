"""Writes docs/vectors/tokens.json: tokens that count, and one for every way not to.

    python docs/token_vectors.py         write it
    tests/auth/test_token_vectors.py     fails when the file is not what this would write

Keys and times are fixed, and Ed25519 signatures are deterministic, so the file is the same every time.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from warren.auth import blocks
from warren.auth.caveats import Caveats
from warren.auth.rights import RIGHTS, WALK, Allowed, Policy, parse_grant
from warren.auth.token import Issuer, Limits, Token, by_id, mint, narrow, verify

FILE = Path(__file__).parent / "vectors" / "tokens.json"
NOW = 1_800_000_000
HIVE = "spiffe://hive.example"
SERVER, ADA, GATE, BOB = (
    f"{HIVE}/role/Disk/d1",
    f"{HIVE}/user/ada",
    f"{HIVE}/role/Gate/g1",
    f"{HIVE}/user/bob",
)
MINT = ("read,write,create,remove,ctl /vm/**", "read /log/**", "ctl /queue/*/ctl#put,take")
PATHS = ("/", "/vm", "/vm/1", "/vm/1/ctl", "/vm/2/ctl", "/vm/1/disk", "/log/today", "/queue/a/ctl", "/etc")


def seed(name: str) -> bytes:
    return hashlib.sha256(f"warren token vectors: {name}".encode()).digest()


def key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(seed(name))


def public(name: str) -> bytes:
    return key(name).public_key().public_bytes_raw()


ISSUER = Issuer(public("issuer"), tuple(map(parse_grant, MINT)), NOW - 864000, NOW + 864000)
NONCE, OTHER_NONCE = seed("nonce"), seed("other nonce")
BASE: dict[str, Any] = {
    "issuers": [
        {"key": ISSUER.key.hex(), "begins": ISSUER.begins, "expires": ISSUER.expires, "mint": list(MINT)}
    ],
    "now": NOW, "nonce": NONCE.hex(), "server": SERVER, "presenter": ADA, "revoked": [],
    "max_life": 86400, "skew": 60, "policy": [],
}  # fmt: skip
ROOT: dict[str, blocks.Statement] = {
    "allow": ["read,write /vm/*/disk", "ctl /vm/1/ctl#start,stop"],
    "aud": f"{HIVE}/role/Disk/*",
    "exp": NOW + 3600,
    "nbf": NOW - 30,
}
DELEGATES = [f"allow {HIVE}/role/Gate/* delegate /vm/**", f"allow {BOB} read,ctl /vm/1/**"]


def chain_of(*caveats: dict[str, Any], issuer: str = "issuer") -> Token:
    """A chain with just these caveats, sound or not."""
    chain, signer = b"", key(issuer)
    for number, said in enumerate(caveats):
        holder = key(f"holder {number}")
        before = blocks.parse(chain) if chain else ()
        chain = blocks.append(before, said, signer, holder.public_key().public_bytes_raw())
        signer = holder
    return Token(chain, signer)


def resigned(*bodies: bytes) -> Token:
    """A chain of bodies as they are, each with a right signature."""
    names = ["issuer", *(f"holder {n}" for n in range(len(bodies)))]
    pairs = [(body, key(name).sign(blocks.BLOCK + body)) for body, name in zip(bodies, names, strict=False)]
    return Token(blocks.encode(pairs), key(names[-1]))


def body(caveats: dict[str, Any], number: int = 0, before: bytes | None = None) -> bytes:
    before = blocks.issuer_id(ISSUER.key) if before is None else before
    return msgspec.msgpack.encode((before, caveats, public(f"holder {number}")), order="deterministic")


class Vectors:
    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []

    def add(
        self, name: str, token: Token, reason: str = "", *, proof: bytes | None = None, **context: Any
    ) -> None:
        """TOKEN shown in BASE, but for CONTEXT; with REASON it must be refused so."""
        whole = {**BASE, **context}
        proof = token.prove(NONCE, SERVER) if proof is None else proof
        vector = {"name": name, **context, "chain": token.chain.hex(), "proof": proof.hex()}
        try:
            found = verify(token.chain, proof, **arguments(whole))
        except blocks.Invalid as e:
            if e.reason != reason:
                raise AssertionError(f"{name}: {e}") from e
            vector["invalid"] = reason
        else:
            if reason:
                raise AssertionError(f"{name}: it counts")
            vector["valid"] = {
                "actor": found.actor, "via": found.via, "expires": found.expires,
                "blocks": [i.hex() for i in found.blocks],
                "meters": [[m.block.hex(), list(m.rate or ()), m.bytes or 0] for m in found.meters],
                "at": {path: words(found.grants.at(path)) for path in PATHS},
            }  # fmt: skip
        self.made.append(vector)


def arguments(context: dict[str, Any]) -> dict[str, Any]:
    """A vector's context as `verify` takes it."""
    issuers = [
        Issuer(bytes.fromhex(i["key"]), tuple(map(parse_grant, i["mint"])), i["begins"], i["expires"])
        for i in context["issuers"]
    ]
    return {
        "issuers": by_id(issuers), "now": context["now"], "nonce": bytes.fromhex(context["nonce"]),
        "server": context["server"], "presenter": context["presenter"],
        "revoked": frozenset(map(bytes.fromhex, context["revoked"])),
        "limits": Limits(context["max_life"], context["skew"]), "policy": Policy.parse(context["policy"]),
    }  # fmt: skip


def words(allowed: Allowed) -> str:
    """What may be done at a path: the rights, walk first, and the verbs if ctl is for some only."""
    names = ["walk"] * bool(allowed.mask & WALK) + [n for n, bit in RIGHTS.items() if allowed.mask & bit]
    verbs = "" if allowed.verbs is None or "ctl" not in names else "#" + ",".join(sorted(allowed.verbs))
    return ",".join(names) + verbs


def valid(v: Vectors) -> None:
    caveats = Caveats(
        allow=("read,write /vm/*/disk", "ctl /vm/1/ctl#start,stop"),
        aud=f"{HIVE}/role/Disk/*", exp=NOW + 3600, nbf=NOW - 30,
    )  # fmt: skip
    root = mint(key("issuer"), caveats, key=key("holder 0"))
    v.add("one block", root)
    less = narrow(root, Caveats(allow=("read /vm/**", "ctl /vm/*/ctl#reset,stop")), key=key("holder 1"))
    v.add("narrowed: only what both blocks allow", less)
    wide = narrow(root, Caveats(allow=("read,write,create,remove,ctl /**",)), key=key("holder 1"))
    v.add("widened: a block that allows more gives no more", wide)
    v.add("bound to who presents it", chain_of(ROOT, {"to": f"{HIVE}/user/*"}))
    v.add("shorter: the earliest exp counts", chain_of(ROOT, {"exp": NOW + 60, "nbf": NOW - 5}))
    v.add("metered", chain_of(ROOT, {"rate": [100, 20]}, {"bytes": 1 << 20, "rate": [5, 1]}))
    v.add("all verbs", chain_of({**ROOT, "allow": ["ctl /vm/*/ctl"]}))
    v.add(
        "verbs within the verbs that may be minted",
        chain_of({**ROOT, "allow": ["ctl /queue/a/ctl#put,take"]}),
    )
    v.add("eight blocks", chain_of(ROOT, *[{}] * 7))
    acting = chain_of(ROOT, {"for": BOB, "path": "/vm/1"})
    v.add(
        "for another: what token, path and the other's rows allow", acting, presenter=GATE, policy=DELEGATES
    )
    early = {**ROOT, "nbf": NOW + 60}
    v.add("a minter's clock is a minute ahead", chain_of(early))


def invalid(v: Vectors) -> None:
    root = chain_of(ROOT)
    held = blocks.parse(root.chain)
    two = chain_of(ROOT, {"exp": NOW + 600})
    pairs = [(b.body, b.signature) for b in blocks.parse(two.chain)]

    def chain(name: str, reason: str, data: bytes, token: Token = root) -> None:
        changed = Token(data, token.key)
        v.add(name, changed, reason)

    chain("longer than 4096 bytes", "size", root.chain + bytes(4097 - len(root.chain)))
    v.add("a proof of 63 bytes", root, "size", proof=bytes(63))
    v.add("a nonce of 31 bytes", root, "size", nonce=NONCE[:31].hex(), proof=bytes(64))
    chain("nothing", "encoding", b"")
    chain("no msgpack", "encoding", b"\xc1")
    chain("a byte behind the end", "encoding", root.chain + b"\0")
    chain("the last byte is missing", "encoding", root.chain[:-1])
    chain("nested without end", "encoding", b"\x91" * 4096)
    chain(
        "an array of one with a longer length than it needs",
        "encoding",
        b"\x92\x01\xdc\x00\x01" + root.chain[3:],
    )
    plain = body(ROOT)
    at = plain.index(b"\xa3exp")
    twice = plain[:35].replace(b"\x84", b"\x85") + plain[35:at] + plain[at : at + 9] + plain[at:]
    v.add("a caveat twice", resigned(twice), "encoding")
    swapped = msgspec.msgpack.encode((held[0].before, dict(reversed(ROOT.items())), held[0].next))
    v.add("caveats out of order", resigned(swapped), "encoding")
    v.add("a caveat that is null", resigned(body({**ROOT, "to": None})), "encoding")
    v.add("a caveat that is true", resigned(body({**ROOT, "to": True})), "encoding")
    v.add("a key of 31 bytes", resigned(msgspec.msgpack.encode((held[0].before, {}, bytes(31)))), "encoding")
    chain("version 2", "version", b"\x92\x02" + root.chain[2:])
    chain("no block", "blocks", msgspec.msgpack.encode((1, [])))
    chain("nine blocks", "blocks", msgspec.msgpack.encode((1, [pairs[0]] * 9)))
    chain("two blocks in the other order", "link", blocks.encode(pairs[::-1]), two)
    other = [(b.body, b.signature) for b in blocks.parse(chain_of({**ROOT, "exp": NOW + 7200}).chain)]
    chain("a block of another chain", "link", blocks.encode([*other, pairs[1]]), two)
    v.add("an unknown issuer", chain_of(ROOT, issuer="stranger"), "issuer")
    v.add("no issuer is known", root, "issuer", issuers=[])
    forged = Token(
        blocks.encode([(held[0].body, key("stranger").sign(blocks.BLOCK + held[0].body))]), root.key
    )
    v.add("block 0 signed by somebody else", forged, "signature")
    bare = Token(blocks.encode([(held[0].body, key("issuer").sign(held[0].body))]), root.key)
    v.add("a signature without its domain", bare, "signature")
    stolen = blocks.append(held, {}, key("stranger"), public("holder 1"))
    v.add("block 1 signed by somebody else", Token(stolen, key("holder 1")), "signature")
    v.add("presented with another nonce", root, "proof", nonce=OTHER_NONCE.hex())
    v.add("shown to one server, presented to another", root, "proof", server=f"{HIVE}/role/Disk/d2")
    v.add(
        "proof of another chain by the same key",
        root,
        "proof",
        proof=Token(two.chain, root.key).prove(NONCE, SERVER),
    )
    v.add("a block cut off: the key before is not held", Token(root.chain, key("holder 1")), "proof")
    v.add("block 0 revoked", two, "revoked", revoked=[held[0].id.hex()])
    v.add("block 1 revoked", two, "revoked", revoked=[blocks.parse(two.chain)[1].id.hex()])
    v.add("the issuer revoked", two, "revoked", revoked=[ISSUER.id.hex()])
    v.add("an unknown caveat", chain_of(ROOT, {"weekday": "sunday"}), "caveat")
    values: dict[str, dict[str, Any]] = {
        "a row without a right": {"allow": ["/vm/**"]},
        "a right that is none": {"allow": ["fly /vm/**"]},
        "delegate, which no token says": {"allow": ["delegate /vm/**"]},
        "a row spelt otherwise": {"allow": ["rw /vm/**"]},
        "rights out of order": {"allow": ["write,read /vm/**"]},
        "a star in a component": {"allow": ["read /vm/a*"]},
        "a path with ..": {"allow": ["read /vm/../log"]},
        "33 components": {"allow": ["read " + "/a" * 33]},
        "verbs with another right": {"allow": ["read,ctl /vm/1/ctl#start"]},
        "no row": {"allow": []},
        "allow is text": {"allow": "read /vm/**"},
        "exp is text": {"exp": "soon"},
        "exp is negative": {"exp": -1},
        "aud is any": {"aud": "any"},
        "aud in short": {"aud": "role/Disk/d1"},
        "to is no name": {"to": f"{HIVE}/nobody"},
        "for is a pattern": {"for": f"{HIVE}/user/*", "path": "/vm/1"},
        "path has a star": {"for": BOB, "path": "/vm/*"},
        "path ends in a slash": {"for": BOB, "path": "/vm/"},
        "rate of one number": {"rate": [5]},
        "rate of nothing": {"rate": [0, 5]},
        "bytes of nothing": {"bytes": 0},
    }
    for name, said in values.items():
        v.add(f"value: {name}", chain_of(ROOT, said), "value")
    for name in ("allow", "aud", "exp", "nbf"):
        v.add(f"block 0 without {name}", chain_of({n: s for n, s in ROOT.items() if n != name}), "missing")
    v.add("for without path", chain_of(ROOT, {"for": BOB}), "missing")
    v.add("path without for", chain_of(ROOT, {"path": "/vm/1"}), "missing")
    long = {**ROOT, "nbf": NOW - 1, "exp": NOW + 86400}
    v.add("a second longer than a day", chain_of(long), "life")
    v.add("a shorter exp behind it does not mend that", chain_of(long, {"exp": NOW + 60}), "life")
    v.add("exp before nbf", chain_of({**ROOT, "nbf": NOW + 3600}), "life")
    v.add("the issuer's time is over", root, "window", now=ISSUER.expires)
    v.add("the issuer's time is not yet", root, "window", now=ISSUER.begins - 1)
    v.add("61 seconds early", chain_of({**ROOT, "nbf": NOW + 61}), "early")
    v.add("early by block 1", chain_of(ROOT, {"nbf": NOW + 61}), "early")
    v.add("expired this second", root, "expired", now=NOW + 3600)
    v.add("expired by block 1", two, "expired", now=NOW + 600)
    v.add("for another server", chain_of({**ROOT, "aud": f"{HIVE}/role/Log/*"}), "audience")
    v.add(
        "for a server of another hive",
        chain_of({**ROOT, "aud": "spiffe://other.example/role/Disk/d1"}),
        "audience",
    )
    v.add("for another server by block 1", chain_of(ROOT, {"aud": f"{HIVE}/role/Disk/d2"}), "audience")
    bound = chain_of(ROOT, {"to": ADA})
    v.add("presented by another", bound, "holder", presenter=BOB)
    v.add("presented by nobody in particular", bound, "holder", presenter="any")
    v.add("a path its issuer may not mint", chain_of({**ROOT, "allow": ["read /etc/**"]}), "mint")
    v.add("a right its issuer may not mint", chain_of({**ROOT, "allow": ["write /log/**"]}), "mint")
    v.add("a verb its issuer may not mint", chain_of({**ROOT, "allow": ["ctl /queue/a/ctl#drop"]}), "mint")
    v.add("every verb, of some", chain_of({**ROOT, "allow": ["ctl /queue/a/ctl"]}), "mint")
    acting = {"for": BOB, "path": "/vm/1"}
    v.add("for another, untrusted", chain_of(ROOT, acting), "delegate", presenter=GATE, policy=DELEGATES[1:])
    v.add("for another, by who is not trusted", chain_of(ROOT, acting), "delegate", policy=DELEGATES)
    above = {"for": BOB, "path": "/"}
    v.add(
        "for another, on more than trusted",
        chain_of(ROOT, above),
        "delegate",
        presenter=GATE,
        policy=DELEGATES,
    )
    v.add("for two others", chain_of(ROOT, acting, acting), "delegate", presenter=GATE, policy=DELEGATES)


def render() -> str:
    v = Vectors()
    valid(v)
    invalid(v)
    missing = blocks.REASONS.keys() - {vector.get("invalid") for vector in v.made}
    if missing:
        raise AssertionError(f"no vector for {missing}")
    seeds = ("issuer", "stranger", *(f"holder {n}" for n in range(8)))
    page = {
        "about": "Made by docs/token_vectors.py; docs/tokens.md says what it means. Bytes are hex.",
        "private_keys": {name: seed(name).hex() for name in seeds},
        "context": BASE,
        "vectors": v.made,
    }
    return json.dumps(page, indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(render())
