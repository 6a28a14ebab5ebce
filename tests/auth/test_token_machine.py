"""No sequence of narrowing, delegating, revoking and waiting ever grants more than the root did.

The machine keeps, beside each token, what a slow model says it may do at each path of a small world: a set
of (path, right). Whatever is done to tokens, in any order, a verifier's answer must be exactly the model's,
and the model's sets only ever shrink.
"""

import itertools
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from warren.auth.blocks import Invalid, parse
from warren.auth.caveats import Caveats
from warren.auth.rights import CTL, READ, WALK, WRITE, Policy, decide, parse_grant
from warren.auth.token import Issuer, Token, by_id, mint, narrow, verify

NOW = 1_800_000_000
SERVER, GATE, BOB = "spiffe://hive/role/Disk/d", "spiffe://hive/role/Gate/g", "spiffe://hive/user/bob"
NONCE = bytes(32)
NAMES = ("a", "b")
WORLD = [p for n in range(4) for p in itertools.product(NAMES, repeat=n)]
ASKED: list[tuple[int, str | None]] = [(READ, None), (WRITE, None), (CTL, "go"), (CTL, "halt"), (WALK, None)]
ISSUER = Ed25519PrivateKey.from_private_bytes(bytes(32))
MINTED = ("read,write /a/**", "ctl /*/b#go,halt")
BOBS = "read,ctl /a/**"
POLICY = Policy.parse([f"allow {GATE} delegate /a/**", f"allow {BOB} {BOBS}"])

Answers = frozenset[tuple[tuple[str, ...], int, str | None]]


def covers(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(covers(pattern[1:], path[n:]) for n in range(len(path) + 1))
    return bool(path) and pattern[0] in ("*", path[0]) and covers(pattern[1:], path[1:])


def answers(rows: tuple[str, ...]) -> Answers:
    """Every yes to (path, right, verb), found by trying."""
    found = set()
    for row in rows:
        rights, where = row.split(" ")
        text, _, verbs = where.partition("#")
        pattern = tuple(part for part in text.split("/") if part)
        masks = {"read": READ, "write": WRITE, "ctl": CTL}
        given = {
            (masks[r], v) for r in rights.split(",") for v in (("go", "halt") if r == "ctl" else (None,))
        }
        if verbs:
            given = {(CTL, v) for v in verbs.split(",")}
        for path in WORLD:
            if covers(pattern, path):
                found |= {(path, *right) for right in given}
            deeper = itertools.chain.from_iterable(itertools.product(NAMES, repeat=n) for n in range(5))
            if any(covers(pattern, path + more) for more in deeper):
                found.add((path, WALK, None))
    return frozenset(found)


@dataclass
class Held:
    """A token, and what may be said of it."""

    token: Token
    may: Answers
    exp: int
    acting: bool = False


patterns = st.lists(st.sampled_from(["a", "b", "*", "**"]), max_size=3).map(lambda p: "/" + "/".join(p))
rows = st.one_of(
    st.builds(
        " ".join, st.tuples(st.sampled_from(["read", "write", "read,write", "read,write,ctl"]), patterns)
    ),
    st.builds("ctl {}#{}".format, patterns, st.sampled_from(["go", "halt", "go,halt", "other"])),
)


class Tokens(RuleBasedStateMachine):
    tokens: Bundle[Held] = Bundle("tokens")

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.revoked: set[bytes] = set()
        self.all: list[Held] = []
        self.issuers = by_id([
            Issuer(ISSUER.public_key().public_bytes_raw(), tuple(map(parse_grant, MINTED)), 0, NOW * 2)
        ])  # fmt: skip

    def hold(self, held: Held) -> Held:
        self.all.append(held)
        return held

    @initialize(target=tokens)
    def root(self) -> Held:
        caveats = Caveats(allow=MINTED, aud=SERVER, exp=NOW + 3600, nbf=NOW, to=GATE)
        return self.hold(Held(mint(ISSUER, caveats), answers(MINTED), NOW + 3600))

    @rule(target=tokens, held=tokens, allow=st.lists(rows, min_size=1, max_size=3).map(tuple))
    def narrow_rows(self, held: Held, allow: tuple[str, ...]) -> Held:
        return self.add(held, Caveats(allow=allow), held.may & answers(allow))

    @rule(target=tokens, held=tokens, ttl=st.integers(0, 7200))
    def narrow_time(self, held: Held, ttl: int) -> Held:
        made = self.add(held, Caveats(exp=NOW + ttl), held.may)
        made.exp = min(held.exp, NOW + ttl)
        return made

    @rule(target=tokens, held=tokens, path=st.sampled_from(["/a", "/a/b", "/", "/b"]))
    def delegate(self, held: Held, path: str) -> Held:
        if held.acting:
            return held
        below = answers(("read,write,ctl " + path.rstrip("/") + "/**",)) & answers((BOBS,))
        trusted = path.startswith("/a")
        made = self.add(held, Caveats(for_=BOB, path=path), held.may & below if trusted else frozenset())
        made.acting = True
        return made

    def add(self, held: Held, caveats: Caveats, may: Answers) -> Held:
        if len(parse(held.token.chain)) == 8:
            return held
        made = Held(narrow(held.token, caveats), may, held.exp, held.acting)
        assert made.may <= held.may
        return self.hold(made)

    @rule(held=consumes(tokens), number=st.integers(0, 7))
    def revoke(self, held: Held, number: int) -> None:
        chain = parse(held.token.chain)
        self.revoked.add(chain[max(number, 1) % len(chain)].id)

    @rule(seconds=st.integers(1, 900))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def every_answer_is_the_models(self) -> None:
        for held in self.all[-6:]:
            ids = {block.id for block in parse(held.token.chain)}
            dead = self.now >= held.exp or bool(ids & self.revoked)
            expected = frozenset() if dead else held.may
            assert self.found(held.token) == expected
            assert expected <= self.all[0].may

    def found(self, token: Token) -> Answers:
        try:
            grants = verify(
                token.chain, token.prove(NONCE, SERVER), issuers=self.issuers, now=self.now, nonce=NONCE,
                server=SERVER, presenter=GATE, revoked=self.revoked, policy=POLICY,
            ).grants  # fmt: skip
        except Invalid:
            return frozenset()
        yes = (
            (path, right, verb)
            for path in WORLD
            for right, verb in ASKED
            if decide(grants, "/" + "/".join(path), right, verb)
        )
        return frozenset(yes)


Tokens.TestCase.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
TestNoMoreThanTheRoot = Tokens.TestCase
