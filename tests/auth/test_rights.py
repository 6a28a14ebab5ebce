"""Rows, grants and the one question, against a slow model that was written without looking at them.

The model has no patterns: it lists every path of a small world, and says which of them a row covers by
trying each way to deal the path's names out to the pattern's components.
"""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from warren.auth.rights import (
    CTL,
    DELEGATE,
    EVERY,
    READ,
    RIGHTS,
    WALK,
    WRITE,
    BadRow,
    Grants,
    Policy,
    Row,
    TokenGrants,
    decide,
    exceeding,
    means,
    parse_grant,
    parse_row,
    within,
)

NAMES = ("a", "b", "c")
DEEPEST = 4
WORLD = [p for n in range(DEEPEST + 1) for p in itertools.product(NAMES, repeat=n)]
VERBS = ("start", "stop", "reset")

components = st.sampled_from(["a", "b", "*", "**"])
patterns = st.lists(components, max_size=4).map(tuple)
masks = st.integers(1, EVERY)
verb_sets = st.none() | st.frozensets(st.sampled_from(VERBS), min_size=1)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    verbs = draw(verb_sets)
    return Row(("any",), draw(masks) if verbs is None else CTL, draw(patterns), verbs)


policies = st.lists(rows(), max_size=4).map(tuple)
chains = st.lists(policies, min_size=1, max_size=3)
paths = st.lists(st.sampled_from(NAMES), max_size=3).map(tuple)


def covers(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(covers(pattern[1:], path[n:]) for n in range(len(path) + 1))
    return bool(path) and pattern[0] in ("*", path[0]) and covers(pattern[1:], path[1:])


def leads(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """Some path below, with names of its own or those of the pattern, is covered."""
    below = itertools.chain.from_iterable(itertools.product(NAMES, repeat=n) for n in range(len(pattern) + 1))
    return any(covers(pattern, path + more) for more in below)


def allows(policy: tuple[Row, ...], path: tuple[str, ...], right: int, verb: str | None) -> bool:
    if right == WALK:
        return any(leads(r.pattern, path) for r in policy)
    there = [r for r in policy if covers(r.pattern, path) and r.rights & right]
    return any(verb is None or r.verbs is None or verb in r.verbs for r in there)


def questions() -> list[tuple[int, str | None]]:
    return [(1 << n, None) for n in range(6)] + [(CTL, verb) for verb in VERBS]


def spelt(path: tuple[str, ...]) -> str:
    return "/" + "/".join(path)


@given(policies, paths)
def test_decide_agrees_with_the_model_on_rows(policy: tuple[Row, ...], path: tuple[str, ...]) -> None:
    grants = Grants(policy)
    for right, verb in questions():
        assert decide(grants, spelt(path), right, verb) == allows(policy, path, right, verb)


@given(chains, paths)
def test_decide_agrees_with_the_model_on_blocks(chain: list[tuple[Row, ...]], path: tuple[str, ...]) -> None:
    grants = TokenGrants(Grants(policy) for policy in chain)
    for right, verb in questions():
        expected = all(allows(policy, path, right, verb) for policy in chain)
        assert decide(grants, spelt(path), right, verb) == expected


@given(policies, paths, st.integers(1, EVERY | WALK))
def test_a_question_about_several_rights_is_all_of_them(
    policy: tuple[Row, ...], path: tuple[str, ...], mask: int
) -> None:
    single = [decide(Grants(policy), spelt(path), bit) for bit, _ in questions()[:6] if mask & bit]
    assert decide(Grants(policy), spelt(path), mask) == all(single)


@given(chains)
def test_who_sees_all_may_walk_everywhere(chain: list[tuple[Row, ...]]) -> None:
    for grants in (Grants(chain[0]), TokenGrants(Grants(policy) for policy in chain)):
        if grants.sees_all:
            assert all(grants.at(spelt(path)).mask & WALK for path in WORLD)


@given(st.text(max_size=20), st.integers(-3, 200), st.none() | st.text(max_size=6))
def test_decide_is_total_and_refuses_what_is_no_question(path: str, right: int, verb: str | None) -> None:
    everything = Grants([parse_grant("read,write,create,remove,ctl /**")])
    answer = decide(everything, path, right, verb)
    lawful = path.startswith("/") and "\0" not in path and not {".", ".."} & set(path.split("/"))
    asked = 0 < right <= EVERY | WALK and (verb is None or bool(right & CTL))
    assert answer == (lawful and asked)


@pytest.mark.parametrize("path", ["", "a", "a/b", "/a/../b", "/..", "/./a", "/a\0"])
def test_what_is_no_place_in_a_tree_is_refused(path: str) -> None:
    assert not decide(Grants([parse_grant("read /**")]), path, READ)


def test_no_rows_and_no_layers_allow_nothing() -> None:
    for grants in (Grants(()), TokenGrants(()), TokenGrants([Grants(()), Grants([parse_grant("read /**")])])):
        assert not any(grants.at(spelt(path)).mask for path in WORLD)
        assert not grants.sees_all


@given(patterns, patterns)
def test_what_lies_within_is_covered_everywhere(inner: tuple[str, ...], outer: tuple[str, ...]) -> None:
    if within(inner, outer):
        assert all(covers(outer, path) for path in WORLD if covers(inner, path))
    else:
        # It may only be too careful about stars that stand side by side.
        uncovered = any(covers(inner, path) and not covers(outer, path) for path in WORLD)
        assert uncovered or ("**" in inner and "**" in outer)


@given(patterns)
def test_a_pattern_lies_within_itself_and_within_everything(pattern: tuple[str, ...]) -> None:
    assert within(pattern, pattern)
    assert within(pattern, ("**",))


@given(rows(), policies)
def test_what_does_not_exceed_is_given_everywhere(row: Row, policy: tuple[Row, ...]) -> None:
    if exceeding(row, policy):
        return
    inner, outer = Grants([row]), Grants(policy)
    for path in WORLD:
        for right, verb in questions():
            assert not decide(inner, spelt(path), right, verb) or decide(outer, spelt(path), right, verb)


@pytest.mark.parametrize(
    ("row", "over"),
    [
        ("read /log/x", ""),
        ("read /log/**", ""),
        ("read,write /log/x", "write"),
        ("read /other", "read"),
        ("read /**", "read"),
        ("ctl /q/1/ctl#put", ""),
        ("ctl /q/1/ctl#put,take", ""),
        ("ctl /q/1/ctl#drop,put", "ctl#drop"),
        ("ctl /q/1/ctl", "ctl#*"),
        ("ctl /vm/1", ""),
        ("ctl /vm/1#any", ""),
    ],
)
def test_what_a_row_has_too_much(row: str, over: str) -> None:
    given_rows = ["read /log/**", "ctl /q/*/ctl#put", "ctl /q/1/ctl#take", "ctl /vm/*"]
    assert exceeding(parse_grant(row), [parse_grant(text) for text in given_rows]) == over


def test_delegate_is_the_right_to_act_for_others_and_nothing_else() -> None:
    row = "allow role/Gate/* delegate /vm/**"
    gate = Policy.parse([row]).grants("spiffe://h/role/Gate/g1")
    assert not any(gate.at(path).mask for path in ("/", "/vm", "/vm/1"))
    assert not gate.sees_all
    assert gate.may_delegate("/vm")
    assert gate.may_delegate("/vm/1/2")
    assert not gate.may_delegate("/")
    assert not gate.may_delegate("/other")
    assert not Policy.parse([row]).grants("spiffe://h/user/g1").may_delegate("/vm")
    assert str(parse_row(row)) == row


def test_delegate_beside_other_rights_changes_none_of_them() -> None:
    both = Grants([parse_grant("read,delegate /vm/*")])
    assert both.at("/vm/1") == Grants([parse_grant("read /vm/*")]).at("/vm/1")
    assert not both.may_delegate("/vm/1")  # the row says nothing of what is below


def test_delegate_may_not_be_asked_for_as_a_right() -> None:
    assert not decide(Grants([parse_grant("delegate /**")]), "/a", DELEGATE)


def test_short_names_mean_the_hive_alone_once_it_is_said() -> None:
    policy = Policy.parse(["allow role/Queen/* ctl /**", "allow user/ada read /**", "allow any read /motd"])
    queen, regional = "spiffe://hive/role/Queen/q", "spiffe://west.hive/role/Queen/q"
    assert policy.grants(regional).sees_all
    policy = policy.in_hive("hive")
    assert policy.grants(queen).at("/x").mask == CTL | WALK
    assert not policy.grants(regional).at("/x").mask
    assert policy.grants(regional).at("/motd").mask == READ | WALK
    assert policy.grants("spiffe://hive/user/ada").at("/x").mask == READ | WALK


@pytest.mark.parametrize(
    ("who", "subject", "meant"),
    [
        ("any", "local", True),
        ("any", "any", True),
        ("local", "local", True),
        ("local", "any", False),
        ("role/A/*", "spiffe://h/role/A/x", True),
        ("role/A/*", "spiffe://h/role/B/x", False),
        ("role/A/*", "role/A/x", False),
        ("role/A/*", "spiffe://h/x/role/A/x", False),
        ("user/*", "spiffe://h/user/ada", True),
        ("user/ada", "spiffe://h/user/adam", False),
        ("spiffe://h/user/*", "spiffe://h/user/ada", True),
        ("spiffe://h/user/*", "spiffe://h.x/user/ada", False),
        ("spiffe://h/user/*", "spiffe://h/user/ada/b", False),
    ],
)
def test_whom_a_row_speaks_of(who: str, subject: str, meant: bool) -> None:
    assert parse_row(f"{who} read /").applies(subject) == meant
    assert means(tuple(who.split("/")), subject) == meant


@given(rows())
def test_a_row_is_read_back_as_it_is_written(row: Row) -> None:
    assert parse_row(str(row)) == row
    assert parse_grant(row.grant) == row
    assert re.fullmatch(r"[a-z,]+ /\S*", row.grant)


@pytest.mark.parametrize(
    "text",
    [
        "", "read", "read /a /b", "fly /a", "read a", "read /a*", "read /a/../b", "read /./a",
        "read,ctl /a#x", "ctl /a#", "ctl /a#x,,y", "read /a\0b", ",read /a",
    ],
)  # fmt: skip
def test_a_bad_row_is_refused(text: str) -> None:
    with pytest.raises(BadRow):
        parse_grant(text)


@pytest.mark.parametrize(
    "who", ["", "nobody", "role/A", "role//x", "user/a/b", "spiffe://h", "spiffe://*/user/a"]
)
def test_a_bad_who_is_refused(who: str) -> None:
    with pytest.raises(BadRow):
        parse_row(f"{who} read /a")


def test_a_policy_names_every_bad_line() -> None:
    with pytest.raises(BadRow) as refused:
        Policy.parse(["any fly /", "any read /ok", "nobody read /"])
    assert "fly" in str(refused.value)
    assert "nobody" in str(refused.value)
    assert "ok" not in str(refused.value)


def test_what_was_asked_before_is_looked_up() -> None:
    plain = Grants([parse_grant("read,write /a/**")])
    token = TokenGrants([plain, Grants([parse_grant("read /a/**")])])
    for grants in (plain, token):
        assert grants.at("/a/b") is grants.at("/a/b")
        for n in range(5000):
            grants.at(f"/a/{n}")
        assert len(grants._known) <= 4096
    assert token.at("/a/b").mask == READ | WALK
    assert plain.at("/a/b").mask == READ | WRITE | WALK


def test_every_right_has_a_bit_of_its_own() -> None:
    assert len(set(RIGHTS.values()) | {WALK}) == len(RIGHTS) + 1
    assert sum(RIGHTS.values()) == EVERY | DELEGATE
