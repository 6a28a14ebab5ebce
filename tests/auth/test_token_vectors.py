"""docs/vectors/tokens.json: as its script makes it, as we judge it, and as a stranger does.

The stranger below is a verifier written from docs/tokens.md alone: it imports nothing of warren, reads
msgpack by itself, and matches patterns by turning them into regular expressions.
"""

import base64
import hashlib
import importlib.util
import json
import re
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from warren.auth.blocks import REASONS, Invalid
from warren.auth.token import verify

DOCS = Path(__file__).parents[2] / "docs"
PAGE = json.loads((DOCS / "vectors" / "tokens.json").read_text())
VECTORS: list[dict[str, Any]] = [{**PAGE["context"], **vector} for vector in PAGE["vectors"]]
PATHS = sorted({path for v in VECTORS for path in v.get("valid", {}).get("at", ())})


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("token_vectors", DOCS / "token_vectors.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE = script()


def test_the_file_has_not_drifted() -> None:
    written = (DOCS / "vectors" / "tokens.json").read_text()
    assert written == MADE.render(), "run: .venv/bin/python docs/token_vectors.py"


def test_there_is_one_for_every_reason_and_each_has_a_name_of_its_own() -> None:
    assert {v["invalid"] for v in VECTORS if "invalid" in v} == REASONS.keys()
    assert len({v["name"] for v in VECTORS}) == len(VECTORS)
    assert sum("valid" in v for v in VECTORS) > 10


def test_the_page_names_exactly_the_reasons() -> None:
    section = (DOCS / "tokens.md").read_text().partition("## Verifying")[2].partition("## Delegation")[0]
    assert set(re.findall(r"\| `(\w+)` \|", section)) == REASONS.keys()


@pytest.mark.parametrize("v", VECTORS, ids=lambda v: v["name"])
def test_we_judge_it_so(v: dict[str, Any]) -> None:
    chain, proof = bytes.fromhex(v["chain"]), bytes.fromhex(v["proof"])
    if "invalid" in v:
        with pytest.raises(Invalid) as refused:
            verify(chain, proof, **MADE.arguments(v))
        assert refused.value.reason == v["invalid"]
        return
    found = verify(chain, proof, **MADE.arguments(v))
    said = v["valid"]
    assert (found.actor, found.via, found.expires) == (said["actor"], said["via"], said["expires"])
    assert {path: MADE.words(found.grants.at(path)) for path in said["at"]} == said["at"]


@pytest.mark.parametrize("v", VECTORS, ids=lambda v: v["name"])
def test_a_stranger_judges_it_so(v: dict[str, Any]) -> None:
    expected = {"invalid": v["invalid"]} if "invalid" in v else v["valid"]
    try:
        judged = stranger(v)
    except Refused as e:
        judged = {"invalid": str(e)}
    assert judged == expected


class Refused(Exception):
    pass


def unpack(data: bytes) -> Any:
    """One msgpack value, in its one spelling, and nothing behind it."""
    value, rest = value_of(data, 0)
    if rest:
        raise Refused("encoding")
    return value


def take(data: bytes, n: int) -> tuple[bytes, bytes]:
    if len(data) < n:
        raise Refused("encoding")
    return data[:n], data[n:]


def value_of(data: bytes, depth: int) -> tuple[Any, bytes]:
    if depth > 5:
        raise Refused("encoding")
    head, data = take(data, 1)
    b = head[0]
    if b < 0x80 or b >= 0xE0:
        return struct.unpack("b" if b >= 0xE0 else "B", head)[0], data
    if 0xCC <= b <= 0xD3:
        form = "BHIQbhiq"[b - 0xCC]
        raw, data = take(data, struct.calcsize(">" + form))
        number = struct.unpack(">" + form, raw)[0]
        below = {"B": 1 << 7, "H": 1 << 8, "I": 1 << 16, "Q": 1 << 32}
        above = {"b": -(1 << 5), "h": -(1 << 7), "i": -(1 << 15), "q": -(1 << 31)}
        shortest = number >= below[form] if form in below else number < above[form]
        if not shortest:
            raise Refused("encoding")
        return number, data
    kind, n, least, data = length_of(b, data)
    if n < least:
        raise Refused("encoding")
    if kind in ("str", "bin"):
        raw, data = take(data, n)
        if kind == "bin":
            return raw, data
        try:
            return raw.decode(), data
        except UnicodeDecodeError:
            raise Refused("encoding") from None
    items = []
    for _ in range(n * (2 if kind == "map" else 1)):
        item, data = value_of(data, depth + 1)
        items.append(item)
    if kind == "array":
        return items, data
    names = items[::2]
    if any(type(name) is not str for name in names):
        raise Refused("encoding")
    if [n.encode() for n in names] != sorted({n.encode() for n in names}):
        raise Refused("encoding")
    return dict(zip(names, items[1::2], strict=True)), data


def length_of(b: int, data: bytes) -> tuple[str, int, int, bytes]:
    """(kind, length, the least length that needs this form, what follows)"""
    if 0x80 <= b < 0x90:
        return "map", b & 15, 0, data
    if 0x90 <= b < 0xA0:
        return "array", b & 15, 0, data
    if 0xA0 <= b < 0xC0:
        return "str", b & 31, 0, data
    forms = {
        0xC4: ("bin", 1, 0), 0xC5: ("bin", 2, 256), 0xC6: ("bin", 4, 65536),
        0xD9: ("str", 1, 32), 0xDA: ("str", 2, 256), 0xDB: ("str", 4, 65536),
        0xDC: ("array", 2, 16), 0xDD: ("array", 4, 65536),
        0xDE: ("map", 2, 16), 0xDF: ("map", 4, 65536),
    }  # fmt: skip
    if b not in forms:
        raise Refused("encoding")
    kind, size, least = forms[b]
    raw, data = take(data, size)
    return kind, int.from_bytes(raw, "big"), least, data


def sha(domain: str, data: bytes) -> bytes:
    return hashlib.sha256(domain.encode() + b"\0" + data).digest()


def signed(key: bytes, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def want(good: object, reason: str) -> None:
    if not good:
        raise Refused(reason)


def stranger(v: dict[str, Any]) -> dict[str, Any]:
    chain, proof, nonce = (bytes.fromhex(v[name]) for name in ("chain", "proof", "nonce"))
    want(len(nonce) == 32 and len(proof) == 64 and len(chain) <= 4096, "size")
    whole = unpack(chain)
    want(type(whole) is list and len(whole) == 2 and type(whole[0]) is int, "encoding")
    version, pairs = whole
    want(type(pairs) is list, "encoding")
    for pair in pairs:
        want(type(pair) is list and [type(x) for x in pair] == [bytes, bytes], "encoding")
    want(version == 1, "version")
    want(1 <= len(pairs) <= 8, "blocks")
    bodies: list[Any] = []
    ids: list[bytes] = []
    for body, signature in pairs:
        made = unpack(body)
        want(type(made) is list and [type(x) for x in made] == [bytes, dict, bytes], "encoding")
        for value in made[1].values():
            flat = value if type(value) is list else [value]
            want(all(type(x) in (int, str) for x in flat), "encoding")
        want((len(made[0]), len(made[2]), len(signature)) == (32, 32, 64), "encoding")
        want(not ids or made[0] == ids[-1], "link")
        bodies.append(made)
        ids.append(sha("warren token block 1", body))
    known = {sha("warren token issuer 1", bytes.fromhex(i["key"])): i for i in v["issuers"]}
    want(bodies[0][0] in known, "issuer")
    issuer = known[bodies[0][0]]
    key = bytes.fromhex(issuer["key"])
    for (body, signature), made in zip(pairs, bodies, strict=True):
        want(signed(key, signature, b"warren token block 1\0" + body), "signature")
        key = made[2]
    shown = nonce + sha("warren token chain 1", chain) + v["server"].encode()
    want(signed(key, proof, b"warren token proof 1\0" + shown), "proof")
    want(not {bodies[0][0].hex(), *(i.hex() for i in ids)} & set(v["revoked"]), "revoked")
    return weigh(v, issuer, [made[1] for made in bodies], ids)


def weigh(v: dict[str, Any], issuer: Any, blocks: list[dict[str, Any]], ids: list[bytes]) -> dict[str, Any]:
    for block in blocks:
        want(block.keys() <= CHECKS.keys(), "caveat")
        for name, value in block.items():
            want(CHECKS[name](value), "value")
    root = blocks[0]
    want({"allow", "aud", "exp", "nbf"} <= root.keys(), "missing")
    for block in blocks:
        want(("for" in block) == ("path" in block), "missing")
    acting = [block for block in blocks if "for" in block]
    want(len(acting) < 2, "delegate")
    want(0 < root["exp"] - root["nbf"] <= v["max_life"], "life")
    want(issuer["begins"] <= v["now"] < issuer["expires"], "window")
    want(all(v["now"] >= block["nbf"] - v["skew"] for block in blocks if "nbf" in block), "early")
    want(all(v["now"] < block["exp"] for block in blocks if "exp" in block), "expired")
    for block in blocks:
        want("aud" not in block or means(block["aud"], v["server"]), "audience")
        want("to" not in block or means(block["to"], v["presenter"]), "holder")
    want(all(minted(row, issuer["mint"]) for row in root["allow"]), "mint")
    layers = [block["allow"] for block in blocks if "allow" in block]
    for block in acting:
        below = [*(n for n in block["path"].split("/") if n), "**"]
        policy = [line.split(" ")[1:] for line in v["policy"]]
        trusted = [p for who, rights, p in policy if rights == "delegate" and means(who, v["presenter"])]
        want(any(inside(below, parts(p)) for p in trusted), "delegate")
        layers.append(["read,write,create,remove,ctl /" + "/".join(below)])
        layers.append([f"{rights} {p}" for who, rights, p in policy if means(who, block["for"])])
    return {
        "actor": acting[0]["for"] if acting else v["presenter"],
        "via": v["presenter"] if acting else None,
        "expires": min([block["exp"] for block in blocks if "exp" in block] + [issuer["expires"]]),
        "blocks": [i.hex() for i in ids],
        "meters": [
            [i.hex(), block.get("rate", []), block.get("bytes", 0)]
            for i, block in zip(ids, blocks, strict=True)
            if "rate" in block or "bytes" in block
        ],
        "at": {path: at(layers, path) for path in PATHS},
    }


RIGHTS = ["read", "write", "create", "remove", "ctl"]
NAME = r"[^\s/#*\0]+"
COMPONENT = re.compile(rf"\*\*?|(?!\.\.?\Z){NAME}")
SPIFFE = re.compile(
    r"spiffe://(?P<domain>[a-z0-9.-]+)"
    r"/(role/(\*|[A-Za-z][A-Za-z0-9-]{0,63})/|user/)(\*|[A-Za-z0-9][A-Za-z0-9._-]{0,63})"
)


def number(value: Any, least: int) -> bool:
    return type(value) is int and least <= value < 1 << 53


def pattern(value: Any) -> bool:
    return type(value) is str and (value == "local" or bool(SPIFFE.fullmatch(value)))


def row(value: Any) -> bool:
    if type(value) is not str or value.count(" ") != 1:
        return False
    rights, where = value.split(" ")
    if rights.split(",") != [r for r in RIGHTS if r in rights.split(",")]:
        return False
    path, hash_, verbs = where.partition("#")
    listed = verbs.split(",")
    if hash_ and (rights != "ctl" or "" in listed or listed != sorted(set(listed))):
        return False
    components = path[1:].split("/") if path != "/" else []
    return path[:1] == "/" and len(components) <= 32 and all(map(COMPONENT.fullmatch, components))


def plain_path(value: Any) -> bool:
    if type(value) is not str or value[:1] != "/":
        return False
    names = value[1:].split("/") if value != "/" else []
    return len(names) <= 32 and not {"", ".", ".."} & set(names) and "*" not in value and "\0" not in value


CHECKS = {
    "allow": lambda x: type(x) is list and x and all(map(row, x)),
    "aud": pattern,
    "bytes": lambda x: number(x, 1),
    "exp": lambda x: number(x, 0),
    "for": lambda x: pattern(x) and "*" not in x and x != "local",
    "nbf": lambda x: number(x, 0),
    "path": plain_path,
    "rate": lambda x: type(x) is list and len(x) == 2 and all(number(n, 1) for n in x),
    "to": pattern,
}


def means(pattern: str, name: str) -> bool:
    return bool(re.fullmatch(re.escape(pattern).replace(r"\*", "[^/]+"), name))


def parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def inside(inner: list[str], outer: list[str]) -> bool:
    if outer[:1] == ["**"]:
        return inside(inner, outer[1:]) or bool(inner and inside(inner[1:], outer))
    if not inner or not outer:
        return not inner and not outer
    return inner[0] != "**" and outer[0] in ("*", inner[0]) and inside(inner[1:], outer[1:])


def minted(text: str, mint: list[str]) -> bool:
    rights, pattern, verbs = halves(text)
    fitting = [halves(m) for m in mint]
    fitting = [m for m in fitting if inside(parts(pattern), parts(m[1]))]
    for right in rights:
        asked: list[str | None] = [*verbs] if verbs else [None]
        for verb in asked:
            gives = (r for r, _, v in fitting if right in r and (v is None or verb in v))
            if not any(True for _ in gives):
                return False
    return True


def halves(text: str) -> tuple[list[str], str, list[str] | None]:
    rights, where = text.split(" ")
    path, hash_, verbs = where.partition("#")
    return rights.split(","), path, verbs.split(",") if hash_ else None


def covers(pattern: str, path: str) -> bool:
    shape = "".join(
        "(/[^/]+)*" if p == "**" else "/[^/]+" if p == "*" else "/" + re.escape(p) for p in parts(pattern)
    )
    return bool(re.fullmatch(shape, "".join("/" + p for p in parts(path))))


def leads(pattern: str, path: str) -> bool:
    """A beginning of the pattern, up to a component or any `**`, must cover the path."""
    shape = parts(pattern)
    beginnings = [shape[:i] for i in range(len(shape) + 1)]
    return any(covers("/".join(b), path) for b in beginnings)


def at(layers: list[list[str]], path: str) -> str:
    names = ["walk", *RIGHTS]
    verbs: set[str] | None = None
    for layer in layers:
        rows = [halves(text) for text in layer]
        given = {r for rights, pattern, _ in rows if covers(pattern, path) for r in rights}
        if any(leads(pattern, path) for _, pattern, _ in rows):
            given.add("walk")
        names = [n for n in names if n in given]
        of = [v for rights, pattern, v in rows if "ctl" in rights and covers(pattern, path)]
        if None not in of:
            here = {verb for v in of if v is not None for verb in v}
            verbs = here if verbs is None else verbs & here
    return ",".join(names) + ("" if verbs is None or "ctl" not in names else "#" + ",".join(sorted(verbs)))


def test_the_file_format_on_the_page_is_the_one_we_write() -> None:
    token = MADE.chain_of(MADE.ROOT)
    names = []
    for part in token.write().split("\n\n"):
        head, *lines = part.strip().split("\n")
        assert all(len(line) <= 64 and "=" not in line for line in lines)
        text = "".join(lines)
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        names.append(head)
        assert data == (token.chain if head == "warren-token 1" else token.key.private_bytes_raw())
    assert names == ["warren-token 1", "warren-token-key 1"]
