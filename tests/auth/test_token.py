"""Tokens under attack: altered, cut, spliced, replayed, stolen, lent on. Vectors have each reason once."""

import math
import pickle
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from warren.auth import blocks
from warren.auth.blocks import REASONS, BadText, Invalid
from warren.auth.caveats import Caveats, Meter
from warren.auth.meters import Meters, NoRoom
from warren.auth.rights import CTL, READ, WALK, WRITE, Grants, Policy, decide, parse_grant
from warren.auth.token import (
    Issuer,
    Limits,
    Token,
    Verified,
    by_id,
    mint,
    narrow,
    read_issuer,
    read_token,
    recheck,
    verify,
)

NOW = 1_800_000_000
SERVER, OTHER = "spiffe://hive/role/Disk/d1", "spiffe://hive/role/Disk/d2"
ADA, BOB, GATE = "spiffe://hive/user/ada", "spiffe://hive/user/bob", "spiffe://hive/role/Gate/g"
NONCE = bytes(range(32))
ROWS = ("read,write /vm/**", "ctl /vm/*/ctl#start,stop")


def key(n: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32)


def public(n: int) -> bytes:
    return key(n).public_key().public_bytes_raw()


def issuer(*rows: str, n: int = 1) -> Issuer:
    return Issuer(public(n), tuple(map(parse_grant, rows)), NOW - 10**6, NOW + 10**6)


ISSUERS = by_id([issuer("read,write,create,remove,ctl /**")])


def rooted(*rows: str, **more: Any) -> Token:
    said = {"allow": rows or ROWS, "aud": "spiffe://hive/role/Disk/*", "exp": NOW + 3600, "nbf": NOW, **more}
    return mint(key(1), Caveats(**said), key=key(10))


def shown(
    token: Token, *, proof: bytes | None = None, chain: bytes | None = None, **context: Any
) -> Verified:
    context = {"issuers": ISSUERS, "now": NOW, "nonce": NONCE, "server": SERVER, "presenter": ADA, **context}
    proof = token.prove(NONCE, SERVER) if proof is None else proof
    return verify(token.chain if chain is None else chain, proof, **context)


def refusal(token: Token, **context: Any) -> str:
    with pytest.raises(Invalid) as refused:
        shown(token, **context)
    assert refused.value.reason in REASONS
    return refused.value.reason


def three() -> Token:
    one = narrow(rooted(), Caveats(allow=("read /vm/**",)), key=key(11))
    return narrow(one, Caveats(exp=NOW + 60), key=key(12))


def test_a_token_says_what_it_allows() -> None:
    found = shown(rooted())
    assert found.grants.at("/vm/1/disk").mask == READ | WRITE | WALK
    assert decide(found.grants, "/vm/1/ctl", CTL, "start")
    assert not decide(found.grants, "/vm/1/ctl", CTL, "reset")
    assert not found.grants.at("/etc").mask
    assert found.grants.at("/").mask == WALK
    assert (found.actor, found.via, found.expires) == (ADA, None, NOW + 3600)


def test_any_byte_altered_refuses() -> None:
    token = three()
    proof = token.prove(NONCE, SERVER)
    for place in range(len(token.chain)):
        for flip in (1, 0x80, 0xFF):
            changed = bytearray(token.chain)
            changed[place] ^= flip
            # Against both proofs: the one that was seen, and one that the holder makes for it.
            assert refusal(token, chain=bytes(changed), proof=proof)
            assert refusal(Token(bytes(changed), token.key))
    for place in range(len(proof)):
        changed = bytearray(proof)
        changed[place] ^= 1
        assert refusal(token, proof=bytes(changed)) == "proof"


def test_any_part_left_out_refuses() -> None:
    token = three()
    for end in range(len(token.chain)):
        assert refusal(token, chain=token.chain[:end]) == "encoding"
    assert refusal(token, chain=token.chain + b"\0") == "encoding"


def test_blocks_hold_in_one_place_of_one_chain() -> None:
    token = three()
    pairs = [(b.body, b.signature) for b in blocks.parse(token.chain)]
    other = narrow(narrow(rooted(), Caveats(bytes_=1), key=key(11)), Caveats(), key=key(12))
    theirs = [(b.body, b.signature) for b in blocks.parse(other.chain)]
    orders: Iterable[list[tuple[bytes, bytes]]] = (
        [pairs[0], pairs[2]], [pairs[1], pairs[2]], [pairs[0], pairs[2], pairs[1]], pairs[::-1],
        [pairs[0], theirs[1], pairs[2]], [pairs[0], pairs[1], theirs[2]], [*pairs, pairs[2]],
    )  # fmt: skip
    for order in orders:
        assert refusal(Token(blocks.encode(order), token.key)) in ("link", "issuer")
    swapped = [pairs[0], (pairs[1][0], theirs[1][1]), pairs[2]]
    assert refusal(Token(blocks.encode(swapped), token.key)) == "signature"


def test_to_cut_a_block_off_one_needs_a_key_that_was_thrown_away() -> None:
    token = three()
    pairs = [(b.body, b.signature) for b in blocks.parse(token.chain)]
    assert refusal(Token(blocks.encode(pairs[:2]), token.key)) == "proof"
    with pytest.raises(Invalid, match="the key is not the one"):
        narrow(Token(blocks.encode(pairs[:1]), token.key), Caveats())


def test_a_proof_is_for_one_nonce_one_server_and_one_chain() -> None:
    token = three()
    proof = token.prove(NONCE, SERVER)
    assert refusal(token, proof=proof, nonce=bytes(32)) == "proof"
    assert refusal(token, proof=proof, server=OTHER) == "proof"
    wider = Token(rooted().chain, key(10))
    assert refusal(wider, proof=proof) == "proof"
    # The same last key, another chain: only the hash of the chain in the proof tells them apart.
    twin = rooted(exp=NOW + 7200)
    assert refusal(twin, proof=rooted().prove(NONCE, SERVER)) == "proof"
    assert shown(token, proof=proof)


def test_a_server_that_is_shown_a_token_can_show_it_to_nobody() -> None:
    token = rooted()
    seen = (token.chain, token.prove(bytes(32), OTHER))  # all that d2 ever gets, for a nonce it chose
    with pytest.raises(Invalid) as refused:
        verify(*seen, issuers=ISSUERS, now=NOW, nonce=NONCE, server=SERVER, presenter=ADA)
    assert refused.value.reason == "proof"


def test_what_lies_on_a_servers_disk_mints_nothing() -> None:
    """With every public thing there is, and with keys of its own, a thief is refused."""
    token = three()
    held = blocks.parse(token.chain)
    thief = Ed25519PrivateKey.generate()
    rows: dict[str, blocks.Statement] = {"allow": ["read /**"], "aud": SERVER, "exp": NOW + 60, "nbf": NOW}
    own = thief.public_key().public_bytes_raw()
    assert refusal(Token(blocks.append((), rows, thief, own), thief)) == "issuer"
    body = msgspec.msgpack.encode((held[0].before, rows, own), order="deterministic")
    assert refusal(Token(blocks.encode([(body, thief.sign(blocks.BLOCK + body))]), thief)) == "signature"
    assert refusal(Token(blocks.encode([(body, held[0].signature)]), thief)) == "signature"
    for number in range(1, 4):
        assert refusal(Token(blocks.append(held[:number], {}, thief, own), thief)) == "signature"
    # An issuer's public key under which the thief files its own does not match its id.
    assert refusal(Token(blocks.append((), rows, thief, own), thief), issuers={
        blocks.issuer_id(own): ISSUERS[blocks.issuer_id(public(1))]
    }) == "issuer"  # fmt: skip


def test_a_bound_token_is_only_for_whom_it_names() -> None:
    token = narrow(rooted(), Caveats(to="spiffe://hive/user/ada"))
    assert shown(token)
    for somebody in (BOB, "local", "any", "", "spiffe://other/user/ada", ADA + "/x"):
        assert refusal(token, presenter=somebody) == "holder"
    both = narrow(token, Caveats(to="spiffe://hive/user/bob"))
    assert refusal(both) == refusal(both, presenter=BOB) == "holder"


def test_a_longer_chain_or_one_block_more_is_refused_on_both_sides() -> None:
    token = rooted()
    for _ in range(7):
        token = narrow(token, Caveats())
    assert shown(token)
    with pytest.raises(Invalid, match="blocks: it has 8"):
        narrow(token, Caveats())
    with pytest.raises(Invalid, match="size"):
        narrow(rooted(), Caveats(allow=tuple(f"read /vm/{n:0>100}" for n in range(40))))


def test_size_is_looked_at_before_anything_else() -> None:
    before = time.perf_counter()
    for _ in range(100):
        assert refusal(rooted(), chain=bytes(1 << 20), proof=bytes(64)) == "size"
    assert time.perf_counter() - before < 5


@pytest.mark.parametrize(
    "data",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\x92\x01\xdd\xff\xff\xff\xff",
        b"\x92\x01\x91\x92\xc6\xff\xff\xff\xff",
        b"\x81" * 4096,
        b"\x92\x01\x91\x92\xc4\x05\x93\xc4\x00\xdf\xff\xc4\x00",
        b"\xd9\x01\xff",
    ],
)
def test_lengths_that_lie_are_refused(data: bytes) -> None:
    assert refusal(rooted(), chain=data, proof=bytes(64)) == "encoding"


@given(st.binary(max_size=300))
def test_any_bytes_at_all_are_refused_with_a_reason(data: bytes) -> None:
    assert refusal(rooted(), chain=data, proof=bytes(64))


CAVEATS = ["allow", "aud", "bytes", "exp", "for", "nbf", "path", "rate", "to", "x"]
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=8)
nested = st.recursive(
    plain | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(nested, st.sampled_from(CAVEATS))
def test_any_value_of_a_caveat_is_taken_or_refused(value: Any, name: str) -> None:
    """The issuer itself signs what it likes: no value gets past, or breaks, the reader."""
    said = {"allow": ["read /a"], "aud": SERVER, "exp": NOW + 9, "nbf": NOW, "path": "/a", name: value}
    body = msgspec.msgpack.encode((blocks.issuer_id(public(1)), said, public(10)), order="deterministic")
    token = Token(blocks.encode([(body, key(1).sign(blocks.BLOCK + body))]), key(10))
    assert refusal(token)


def test_a_token_ends_with_its_issuer() -> None:
    short = replace(issuer("read,write,ctl /**"), expires=NOW + 5)
    assert shown(rooted(), issuers=by_id([short])).expires == NOW + 5
    assert refusal(rooted(), issuers=by_id([short]), now=NOW + 5) == "window"


def test_an_issuer_may_mint_so_much_and_no_more() -> None:
    small = by_id([issuer("read /vm/**", "ctl /vm/*/ctl#start")])
    assert shown(rooted("read /vm/1/**", "ctl /vm/1/ctl#start"), issuers=small)
    for rows in (ROWS, ("read /**",), ("write /vm/1",), ("ctl /vm/1/ctl",), ("read /vm/**", "read /etc")):
        assert refusal(rooted(*rows), issuers=small) == "mint"


@pytest.mark.parametrize(
    ("limits", "reason"),
    [(Limits(), ""), (Limits(max_life=3600), ""), (Limits(max_life=3599), "life")],
)
def test_how_long_a_token_may_live_is_the_servers_to_say(limits: Limits, reason: str) -> None:
    if reason:
        assert refusal(rooted(), limits=limits) == reason
    else:
        assert shown(rooted(), limits=limits)


def test_time_begins_and_ends_to_the_second() -> None:
    token = rooted()
    assert refusal(token, now=NOW - 60.001) == "early"
    assert shown(token, now=NOW - 60)
    assert refusal(token, now=NOW - 1, limits=Limits(skew=0)) == "early"
    assert shown(token, now=NOW + 3599.999)
    assert refusal(token, now=NOW + 3600) == "expired"
    assert refusal(token, now=math.nan) in ("window", "early", "expired")


def test_revoking_a_block_kills_it_and_what_descends_from_it_only() -> None:
    root = rooted()
    left = narrow(root, Caveats(), key=key(20))
    right = narrow(root, Caveats(), key=key(21))
    below = narrow(left, Caveats(), key=key(22))
    middle = blocks.parse(left.chain)[1].id
    assert refusal(left, revoked={middle}) == refusal(below, revoked={middle}) == "revoked"
    assert shown(root, revoked={middle})
    assert shown(right, revoked={middle})
    for token in (root, left, right, below):
        assert refusal(token, revoked={shown(root).blocks[0]}) == "revoked"
        assert refusal(token, revoked={shown(root).issuer}) == "revoked"
        assert shown(token).ids.issuperset(shown(root).ids)


def test_a_live_session_is_judged_again_without_a_new_proof() -> None:
    token = three()
    context: dict[str, Any] = {"issuers": ISSUERS, "now": NOW, "server": SERVER, "presenter": ADA}
    again = recheck(token.chain, **context)
    assert again.blocks == shown(token).blocks
    for change, reason in (
        ({"revoked": {again.blocks[1]}}, "revoked"),
        ({"now": NOW + 60}, "expired"),
        ({"issuers": {}}, "issuer"),
    ):
        with pytest.raises(Invalid) as refused:
            recheck(token.chain, **{**context, **change})
        assert refused.value.reason == reason


class TestDelegating:
    """The gate holds a wide token, and passes on what Bob asks."""

    policy = Policy.parse(
        ["allow role/Gate/* delegate /vm/**", "allow user/bob read,ctl /vm/**", "allow user/ada read /vm/**"]
    )

    def lent(self, path: str = "/vm/1", who: str = BOB) -> Token:
        return narrow(rooted(to=GATE), Caveats(for_=who, path=path))

    def test_it_gives_what_the_token_the_path_and_the_caller_have_in_common(self) -> None:
        found = shown(self.lent(), presenter=GATE, policy=self.policy)
        assert (found.actor, found.via, found.path) == (BOB, GATE, "/vm/1")
        assert found.grants.at("/vm/1/disk").mask == READ | WALK  # the caller may not write
        assert decide(found.grants, "/vm/1/ctl", CTL, "start")
        assert not decide(found.grants, "/vm/1/ctl", CTL, "reset")  # the token is not for that
        assert not found.grants.at("/vm/2/disk").mask  # another subtree

    def test_a_caller_without_rights_here_gets_none(self) -> None:
        found = shown(self.lent(who="spiffe://hive/user/eve"), presenter=GATE, policy=self.policy)
        assert not any(found.grants.at(path).mask for path in ("/", "/vm", "/vm/1", "/vm/1/ctl"))

    def test_nobody_acts_for_others_by_default(self) -> None:
        assert refusal(self.lent(), presenter=GATE) == "delegate"

    def test_only_who_is_trusted_acts_and_only_there(self) -> None:
        unbound = narrow(rooted(), Caveats(for_=BOB, path="/vm/1"))
        assert refusal(unbound, policy=self.policy) == "delegate"
        for path in ("/", "/v", "/vmx"):
            assert refusal(self.lent(path), presenter=GATE, policy=self.policy) == "delegate"
        assert refusal(self.lent(), presenter=ADA, policy=self.policy) == "holder"

    def test_one_token_acts_for_one(self) -> None:
        with pytest.raises(Invalid, match="twice"):
            narrow(self.lent(), Caveats(for_=ADA, path="/vm/1"))

    def test_it_can_be_narrowed_on(self) -> None:
        less = narrow(self.lent(), Caveats(allow=("read /vm/1/disk",)))
        found = shown(less, presenter=GATE, policy=self.policy)
        assert found.actor == BOB
        assert not found.grants.at("/vm/1/ctl").mask

    def test_the_policy_adds_nothing_else_to_a_token(self) -> None:
        generous = Policy.parse(["allow any read,write,create,remove,ctl /**"])
        assert not shown(rooted("read /vm/1"), policy=generous).grants.at("/etc").mask


class TestMeters:
    def meter(self, n: int = 1, root: int = 0, until: int = 100, **more: Any) -> Meter:
        return Meter(bytes([n, root]), bytes([root]), until, more.get("rate"), more.get("bytes"))

    def test_a_rate_is_a_bucket(self) -> None:
        session = Meters().of([self.meter(rate=(2, 3))], 0)
        assert [session.take(0) for _ in range(3)] == [0, 0, 0]
        assert session.take(0) == pytest.approx(0.5)
        assert session.take(0.25) == pytest.approx(0.25)
        assert session.take(0.5) == 0
        assert [session.take(100) for _ in range(4)] == [0, 0, 0, pytest.approx(0.5)]

    def test_bytes_are_used_up_and_what_does_not_fit_takes_nothing(self) -> None:
        session = Meters().of([self.meter(bytes=10)], 0)
        assert session.take(0, 6) == 0
        assert session.take(0, 5) == math.inf
        assert session.take(0, 4) == 0
        assert session.take(99, 1) == math.inf

    def test_what_moved_more_than_was_left_is_gone_and_nothing_follows(self) -> None:
        meters = Meters()
        one, two = (meters.of([self.meter(bytes=10)], 0) for _ in range(2))
        assert one.take(0) == two.take(0) == 0
        one.spend(8)
        assert two.take(0) == 0
        two.spend(8)
        assert one.take(0) == two.take(99) == math.inf

    def test_sessions_of_a_block_share_it_and_narrowing_gives_no_other(self) -> None:
        token = narrow(rooted(), Caveats(bytes_=10, rate=(1, 2)))
        less = narrow(token, Caveats(bytes_=8))
        meters = Meters()
        first, second = (meters.of(shown(t).meters, NOW) for t in (token, less))
        assert first.take(NOW, 6) == 0
        assert second.take(NOW, 5) == math.inf
        assert second.take(NOW, 3) == 0
        assert first.take(NOW) == 1
        third = meters.of(shown(token).meters, NOW + 50)
        assert third.take(NOW + 50, 2) == math.inf
        assert third.take(NOW + 50, 1) == 0

    def test_a_clock_that_steps_back_gives_nothing(self) -> None:
        session = Meters().of([self.meter(rate=(1, 1))], 50)
        assert session.take(50) == 0
        assert session.take(10) == 1
        assert session.take(10.5) == pytest.approx(0.5)

    def test_one_token_cannot_fill_the_room_of_others(self) -> None:
        meters = Meters(per_root=3, in_all=5)
        for n in range(3):
            meters.of([self.meter(n, bytes=1)], 0)
        with pytest.raises(NoRoom):
            meters.of([self.meter(9, bytes=1)], 0)
        assert meters.of([self.meter(0, bytes=1)], 0).take(0, 1) == 0
        meters.of([self.meter(0, root=1, bytes=1), self.meter(1, root=1, bytes=1)], 0)
        with pytest.raises(NoRoom):
            meters.of([self.meter(0, root=2, bytes=1)], 0)

    def test_a_counter_is_forgotten_when_its_block_is_dead_and_not_before(self) -> None:
        meters = Meters(per_root=1)
        assert meters.of([self.meter(1, bytes=1, until=10)], 0).take(0, 1) == 0
        with pytest.raises(NoRoom):
            meters.of([self.meter(2, bytes=1)], 9.9)
        assert meters.of([self.meter(1, bytes=1, until=10)], 9.9).take(9.9, 1) == math.inf
        assert meters.of([self.meter(2, bytes=1)], 10).take(10, 1) == 0
        assert len(meters) == 1


def test_the_key_shows_nowhere() -> None:
    token = rooted()
    secret = token.key.private_bytes_raw()
    assert "key" not in repr(token)
    assert secret not in token.export().encode()
    assert blocks.read_parts(token.export()) == [("warren-token", token.chain)]
    with pytest.raises(TypeError):
        pickle.dumps(token)


def test_a_token_file_is_read_back() -> None:
    token = three()
    chain, again = read_token(token.write())
    assert chain == token.chain
    assert again is not None
    assert shown(again)
    assert read_token(token.export()) == (token.chain, None)
    assert read_token("\n" + token.write().replace("\n", "\r\n") + "\n")[0] == chain


@pytest.mark.parametrize(
    "change", ["", "junk", "warren-token 2\nAAAA\n", "warren-token 1\nA*==\n", "warren-token-key 1\nAAAA\n"]
)
def test_a_bad_token_file_is_refused_and_not_quoted(change: str) -> None:
    with pytest.raises(BadText) as refused:
        read_token(change)
    assert "junk" not in str(refused.value)
    assert "A*" not in str(refused.value)


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(BadText, match="32 bytes"):
        read_token(blocks.write_parts([("warren-token", b"x"), ("warren-token-key", b"y")]))


class TestIssuers:
    made = issuer("read /vm/**", "ctl /vm/*/ctl#start")

    def test_the_authority_certifies_with_whatever_key_it_has(self) -> None:
        ca = key(50)

        def check(signature: bytes, message: bytes) -> bool:
            return blocks.signed(public(50), signature, message)

        data = self.made.certify(ca.sign)
        assert read_issuer(data, check) == self.made
        elliptic = ec.generate_private_key(ec.SECP256R1())
        data = self.made.certify(lambda message: elliptic.sign(message, ec.ECDSA(hashes.SHA256())))

        def check_elliptic(signature: bytes, message: bytes) -> bool:
            try:
                elliptic.public_key().verify(signature, message, ec.ECDSA(hashes.SHA256()))
            except InvalidSignature:
                return False
            return True

        assert read_issuer(data, check_elliptic) == self.made
        with pytest.raises(BadText, match="has not signed"):
            read_issuer(data, check)

    def test_any_byte_altered_refuses(self) -> None:
        def check(signature: bytes, message: bytes) -> bool:
            return blocks.signed(public(50), signature, message)

        data = self.made.certify(key(50).sign)
        for place in range(len(data)):
            changed = bytearray(data)
            changed[place] ^= 1
            with pytest.raises(BadText):
                read_issuer(bytes(changed), check)

    @pytest.mark.parametrize("rows", [["delegate /**"], ["rw /a"], ["nothing"], ["read " + "/a" * 33]])
    def test_rows_that_no_token_may_say_are_refused_though_signed(self, rows: list[str]) -> None:
        entry = msgspec.msgpack.encode((public(1), NOW, NOW + 1, rows))
        with pytest.raises(BadText):
            read_issuer(msgspec.msgpack.encode((entry, b"")), lambda *_: True)

    def test_a_signature_of_a_block_is_none_of_an_issuer(self) -> None:
        data = msgspec.msgpack.encode((self.made.entry(), key(50).sign(blocks.BLOCK + self.made.entry())))
        with pytest.raises(BadText):
            read_issuer(data, lambda s, m: blocks.signed(public(50), s, m))


def test_a_public_key_that_is_no_point_signs_nothing() -> None:
    assert not blocks.signed(b"\xff" * 32, bytes(64), b"")
    assert not blocks.signed(b"short", bytes(64), b"")
    assert isinstance(key(1).public_key(), Ed25519PublicKey)


def test_a_chain_of_three_is_checked_in_time_and_asked_like_any_grants() -> None:
    """Ceilings an order of magnitude above what was measured, so that only a change of kind is seen."""
    token = three()
    proof = token.prove(NONCE, SERVER)

    def best(times: int, work: Any) -> float:
        spans = []
        for _ in range(5):
            begin = time.perf_counter()
            for _ in range(times):
                work()
            spans.append((time.perf_counter() - begin) / times)
        return min(spans)

    assert best(10, lambda: shown(token, proof=proof)) < 0.01
    grants, plain = shown(token).grants, Grants([parse_grant("read /vm/**")])
    plain_time, token_time = (best(20000, lambda g=g: g.at("/vm/1/disk")) for g in (plain, grants))
    assert token_time < 3 * plain_time
