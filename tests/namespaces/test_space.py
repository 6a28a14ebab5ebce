"""A namespace as a value: against a model written in another way, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from warren.namespaces import Member, Space, read
from warren.namespaces.space import MAX_MEMBERS, Path, place, spell
from warren.tree import Refused

Op = tuple[str, ...]

NAMES = st.sampled_from("abc")
PATHS = st.lists(NAMES, max_size=3).map(lambda names: spell(tuple(names)))
ADDRESSES = st.sampled_from(["$self", "$queen", "tcp!h!1"])
UNITING = st.sampled_from(["", "", "a", "b"])
MORE = st.sampled_from(["", "", "c", "r"])
FLAGS = st.tuples(UNITING, MORE).map("".join)
OPS = st.one_of(
    st.tuples(st.just("mount"), FLAGS, ADDRESSES, PATHS, PATHS),
    st.tuples(st.just("bind"), FLAGS, PATHS, PATHS),
    st.tuples(st.just("unmount"), st.just(""), PATHS),
)

ODD = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters="/"), min_size=1, max_size=6)
ODD_NAMES = (ODD | st.sampled_from(["two words", "it's", "'", "$x", "$", "#", "a=b", "-a"])).filter(
    lambda name: name not in (".", "..")
)
ODD_PATHS = st.lists(ODD_NAMES, max_size=4).map(tuple)
ODD_ADDRESSES = st.sampled_from(["$self", "$drone-1", "tls!a b!5", "unix!/it's #1", "tcp!h=1!2"])
KINDS = st.sampled_from([(False, False), (True, False), (False, True)])
MEMBERS = st.builds(lambda a, p, kind: Member(a, p, *kind), ODD_ADDRESSES, ODD_PATHS, KINDS)
UNIONS = st.lists(MEMBERS, min_size=1, max_size=3, unique_by=lambda m: m[:2]).map(tuple)
SPACES = st.dictionaries(ODD_PATHS, UNIONS, max_size=6).map(Space)


def done(space: Space, op: Op) -> Space:
    """The Space after one operation, which may be refused."""
    kind, flags, *words = op
    if kind == "mount":
        return space.mount(words[0], words[1], words[2], flags)
    return space.bind(words[0], words[1], flags) if kind == "bind" else space.unmount(words[0])


def after(*ops: Op) -> Space:
    space = Space()
    for op in ops:
        try:
            space = done(space, op)
        except Refused:
            pass  # changes nothing
    return space


BUILT = st.lists(OPS, max_size=12).map(lambda ops: after(*ops))


@dataclass
class Model:
    """A namespace as a function from paths to where they lead: what is asked anew at every look is said once
    by the table of a Space. A bind is a substitution of one path's beginning for another's.
    """

    points: frozenset[Path]
    look: Callable[[Path], list[tuple[str, Path, bool]]]

    def depth(self, path: Path) -> int:
        """How long the mount point is that decides about a path; -1 without one."""
        return max((len(p) for p in self.points if path[: len(p)] == p), default=-1)

    def over(self, old: Path, new: Callable[[Path], list[tuple[str, Path, bool]]], at: set[Path]) -> Model:
        """With NEW, a function of what is left of a path, at OLD."""
        inside = {p for p in self.points if p[: len(old)] == old}

        def look(path: Path) -> list[tuple[str, Path, bool]]:
            return new(path[len(old) :]) if path[: len(old)] == old else self.look(path)

        return Model(self.points - inside | {old + p for p in at}, look)

    def mounted(self, address: str, old: Path, aname: Path, flags: str) -> Model:
        lone = Model(frozenset({()}), lambda path: [(address, aname + path, False)])
        return self.shown(lone, (), old, flags)

    def shown(self, other: Model, new: Path, old: Path, flags: str) -> Model:
        """With what OTHER has at NEW at OLD."""
        at = {(), *(p[len(new) :] for p in other.points if p[: len(new)] == new)}

        def theirs(rest: Path) -> list[tuple[str, Path, bool]]:
            return [(a, p, ro or "r" in flags) for a, p, ro in other.look(new + rest)]

        if "a" not in flags and "b" not in flags:
            return self.over(old, theirs, at)
        mine = {p[len(old) :] for p in self.points if p[: len(old)] == old}

        def both(rest: Path) -> list[tuple[str, Path, bool]]:
            ours = self.depth(old + rest) - len(old)
            their = other.depth(new + rest) - len(new)
            if max(ours, their) > 0:
                first = ours >= their if "a" in flags else ours > their
                return self.look(old + rest) if first else theirs(rest)
            united = theirs(())
            was = [m for m in self.look(old) if m[:2] not in {u[:2] for u in united}]
            return [(a, p + rest, ro) for a, p, ro in (was + united if "a" in flags else united + was)]

        return self.over(old, both, at | mine)

    def unmounted(self, old: Path) -> Model:
        above = max((p for p in self.points if old[: len(p)] == p and p != old), key=len, default=None)

        def beneath(rest: Path) -> list[tuple[str, Path, bool]]:
            if above is None:
                return []
            return [(a, p + old[len(above) :] + rest, ro) for a, p, ro in self.look(above)]

        return self.over(old, beneath, set())

    def names(self, path: Path) -> set[str]:
        return {p[len(path)] for p in self.points if p[: len(path)] == path and p != path}


def modelled(model: Model, op: Op) -> Model:
    kind, flags, *words = op
    if kind == "mount":
        return model.mounted(words[0], place(words[1]), place(words[2]), flags)
    if kind == "bind":
        return model.shown(model, place(words[0]), place(words[1]), flags)
    return model.unmounted(place(words[0]))


@given(st.lists(OPS, max_size=10), st.lists(PATHS, min_size=1, max_size=6))
@example(
    [
        ("mount", "", "$queen", "/a", "/"),
        ("mount", "", "$self", "/a/b", "/"),
        ("mount", "", "tcp!h!1", "/c", "/"),
        ("bind", "b", "/a", "/c"),
        ("unmount", "", "/a"),
    ],
    ["/a", "/c", "/c/b", "/c/a"],
)
def test_a_path_leads_where_the_model_says(ops: list[Op], paths: list[str]) -> None:
    space, model = Space(), Model(frozenset(), lambda path: [])
    for op in ops:
        try:
            space = done(space, op)
        except Refused:
            continue
        model = modelled(model, op)
    assert set(space.table) == model.points
    for path in {place(p) for p in paths} | model.points:
        members, names = space.at(path)
        assert [m[:3] for m in members] == model.look(path)
        assert names == model.names(path)


@given(SPACES | BUILT)
def test_its_printed_lines_rebuild_it(space: Space) -> None:
    again = read(space.lines())
    assert again == space
    assert hash(again) == hash(space)
    assert again.lines() == space.lines()


@given(BUILT, OPS)
def test_to_fork_is_to_keep_it(space: Space, op: Op) -> None:
    fork, before = space, space.lines()
    try:
        changed = done(space, op)
    except Refused:
        changed = space
    assert fork.lines() == before
    assert (changed == fork) == (changed.lines() == before)


@given(BUILT, PATHS, PATHS, FLAGS)
def test_what_is_read_only_stays_so_where_it_is_bound(space: Space, new: str, old: str, flags: str) -> None:
    locked = {m[:2] for m in space.at(place(new))[0] if m.read_only}
    try:
        bound = space.bind(new, old, flags).at(place(old))[0]
    except Refused:
        return
    assert all(m.read_only for m in bound if m[:2] in locked)
    assert not any(m.read_only and m.creates for m in bound)


def test_a_bind_holds_what_it_named() -> None:
    space = Space().mount("$queen", "/n/queen").bind("/n/queen/mesh", "/mesh", "r").unmount("/n/queen")
    assert space.table == {("mesh",): (Member("$queen", ("mesh",), True, False),)}
    assert space.lines() == "mount -r $queen /mesh /mesh\n"


def test_a_bind_brings_the_mount_points_below() -> None:
    space = Space().mount("$self", "/a").mount("$queen", "/a/b/c").bind("/a", "/x", "r")
    assert space.at(("x", "b", "c"))[0] == (Member("$queen", (), True, False),)
    assert space.at(("x", "b"))[1] == {"c"}
    assert space.unmount("/x") == Space().mount("$self", "/a").mount("$queen", "/a/b/c")


def test_uniting_with_what_is_provided_from_above_keeps_it() -> None:
    space = Space().mount("$self", "/").mount("$queen", "/bin", "/tools", "ac")
    assert space.at(("bin",))[0] == (
        Member("$self", ("bin",), False, False),
        Member("$queen", ("tools",), False, True),
    )
    assert space.at(("bin", "x"))[0][1].path == ("tools", "x")
    assert space.unmount("/bin") == Space().mount("$self", "/")


def test_a_union_has_a_directory_once_and_uniting_again_moves_it() -> None:
    union = Space().mount("$self", "/u").mount("$queen", "/u", "", "a")
    assert [m.address for m in union.mount("$queen", "/u", "", "br").at(("u",))[0]] == ["$queen", "$self"]


def test_of_mount_points_on_both_sides_the_first_side_keeps_its_own() -> None:
    space = Space().mount("$self", "/s").mount("$self", "/s/in")
    space = space.mount("$queen", "/q").mount("$queen", "/q/in")
    assert [m.address for m in space.bind("/q", "/s", "a").at(("s", "in"))[0]] == ["$self"]
    assert [m.address for m in space.bind("/q", "/s", "b").at(("s", "in"))[0]] == ["$queen"]


def test_new_files_go_only_where_a_line_says_so() -> None:
    space = Space().mount("$self", "/u", "", "c").mount("$queen", "/u", "", "a")

    def creators(changed: Space, *path: str) -> list[str]:
        return [m.address for m in changed.at(path)[0] if m.creates]

    assert creators(space, "u") == ["$self"]
    assert creators(space.bind("/u", "/v"), "v") == ["$self"]
    assert creators(space.bind("/u/in", "/v"), "v") == []
    assert creators(space.bind("/u/in", "/v", "c"), "v") == ["$self", "$queen"]
    assert creators(space.bind("/u", "/v", "r"), "v") == []
    assert creators(space.mount("tcp!h!1", "/u/in", "", "a"), "u", "in") == []
    assert creators(space.mount("tcp!h!1", "/u/in", "", "ac"), "u", "in") == ["tcp!h!1"]


def test_one_member_leaves_a_union_by_path_or_by_address() -> None:
    space = Space().mount("$self", "/s").mount("$queen", "/q").bind("/s", "/u").bind("/q", "/u", "a")
    alone = Space().mount("$self", "/s").mount("$queen", "/q").bind("/s", "/u")
    assert space.unmount("/u", "/q") == alone
    assert space.unmount("/u", "$queen") == alone
    assert alone.unmount("/u", "/s") == Space().mount("$self", "/s").mount("$queen", "/q")


def test_replacing_takes_away_what_was_mounted_below() -> None:
    assert Space().mount("$queen", "/n/q").mount("$self", "/n") == Space().mount("$self", "/n")


def test_dots_are_lexical_and_stop_at_the_root() -> None:
    assert place("/a/./b//../../../c/") == ("c",)
    assert Space().mount("$self", "/a/../b", "x/../y") == Space().mount("$self", "/b", "/y")


def test_the_way_to_a_mount_point_is_a_directory_and_nothing_else_is() -> None:
    space = Space().mount("$queen", "/n/queen")
    assert space.at(("n",)) == ((), frozenset({"queen"}))
    assert space.at(()) == ((), frozenset({"n"}))
    assert space.at(("m",)) == ((), frozenset())
    assert space.addresses() == {"$queen"}


def grown(n: int) -> Space:
    space = Space()
    for i in range(n):
        space = space.mount("$self", f"/{i}")
    return space


BASE = Space().mount("$self", "/s", "", "r").mount("$queen", "/n/queen")


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        (lambda: BASE.mount("$self", "x"), 400, "'x' is no absolute path"),
        (lambda: BASE.mount("queen", "/x"), 400, r"'queen' is not an address; write .*, or \$name"),
        (lambda: BASE.mount("tcp!$h!1", "/x"), 400, "is no address"),
        (lambda: BASE.mount("$self", "/x\n"), 400, "names are printable"),
        (lambda: BASE.mount("$self", "/x", "", "z"), 400, "there is no flag 'z'"),
        (lambda: BASE.mount("$self", "/x", "", "ab"), 400, "exclude each other"),
        (lambda: BASE.mount("$self", "/x" * 65), 413, "64 names and 1024 characters are the most"),
        (lambda: BASE.mount("$self", "/" + "x" * 1024), 413, "is too deep"),
        (lambda: BASE.bind("/s", "/s/x"), 409, "/s cannot be bound into itself, at /s/x"),
        (lambda: BASE.bind("/s", "/s", "a"), 409, "/s cannot be bound into itself;"),
        (lambda: BASE.bind("/y", "/x"), 404, "/y is not there"),
        (lambda: BASE.bind("/n", "/x"), 404, "/n only leads to what is mounted below it: queen"),
        (lambda: BASE.bind("/s", "/x", "c"), 409, "/s is read-only, so it takes no new files"),
        (lambda: BASE.unmount("/n"), 404, "nothing is mounted at /n; below it there is /n/queen"),
        (lambda: BASE.unmount("/y"), 404, "nothing is mounted at /y; warren ns shows what is"),
        (lambda: BASE.unmount("/s", "$queen"), 404, r"\$queen is not in the union at /s, which has \$self"),
        (lambda: BASE.unmount("/s", "/n/queen"), 404, "/n/queen is not in the union at /s"),
        (lambda: grown(MAX_MEMBERS + 1), 507, "257 mounts are too many, there may be 256"),
        (lambda: grown(129).bind("/1", "/x").mount("$self", "/d").bind("/", "/q"), 409, "into itself"),
        (lambda: Space({("a/b",): (Member("$self", (), False, False),)}), 400, "is no name in a path"),
        (lambda: Space({("a",): (Member("$s", (), False, False),) * 2}), 409, "is twice in the union at /a"),
    ],
)
def test_what_cannot_be_is_refused(change: Callable[[], Space], code: int, says: str) -> None:
    with pytest.raises(Refused, match=says) as e:
        change()
    assert e.value.code == code


def test_the_bound_can_be_reached() -> None:
    assert len(grown(MAX_MEMBERS).table) == MAX_MEMBERS
    assert len(Space().mount("$self", "/x" * 64).point(("x",) * 64) or ()) == 64
