"""Rights: one grammar for policies, role files and tokens.

    allow WHO RIGHTS PATTERN[#VERB,VERB...]

    WHO      any | local | role/ROLE/NAME | user/NAME | a full spiffe:// name; `*` is one component
    RIGHTS   a comma list of read write create remove ctl delegate; rw is read,write
    PATTERN  an absolute path; `*` is one component, `**` any number of them including none,
             so `/**` covers `/`; verbs after `#` narrow the right ctl and go with no other

Theory. A policy is a set of rows and a row only ever adds; nothing subtracts, so the order of rows
means nothing and the empty policy refuses everyone. A row *applies* to a subject, once, when it
attaches: that gives its `Grants`. A grant *covers* a path if its pattern matches all of it, and
*leads to* a path if it covers something at or below it. What covers gives its rights. What merely
leads gives WALK: one may pass through, and see the names that lead on, and no more. So a tree one
has no business in looks exactly like a tree that is not there.

`delegate` is the right to act for others below a path, by a token that names them. It is said in
policies only, it gives its holder nothing to do for itself, and so it is in no answer of `at`.

`Grants.at(path)` is pure and total; it keeps its answers, since a session asks about few paths.
`decide` is the one question behind it. `TokenGrants` answers in the same way for what several
`Grants` allow together, as the blocks of a token do.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

READ: Final = 1
WRITE: Final = 2
CREATE: Final = 4
REMOVE: Final = 8
CTL: Final = 16
WALK: Final = 32
DELEGATE: Final = 64

RIGHTS: Final = {
    "read": READ, "write": WRITE, "create": CREATE, "remove": REMOVE, "ctl": CTL, "delegate": DELEGATE,
}  # fmt: skip
EVERY: Final = READ | WRITE | CREATE | REMOVE | CTL
_SHORT: Final = {"rw": READ | WRITE}
_KEPT = 4096


class BadRow(ValueError):
    """A policy row that does not parse; the whole policy is refused."""


class Row(NamedTuple):
    """One `allow` line, parsed."""

    who: tuple[str, ...]
    rights: int
    pattern: tuple[str, ...]
    verbs: frozenset[str] | None  # None: every verb

    def __str__(self) -> str:
        return f"allow {'/'.join(self.who)} {self.grant}"

    @property
    def grant(self) -> str:
        """What it gives, without to whom: `RIGHTS PATTERN[#VERB,VERB...]`, always spelt the same."""
        rights = ",".join(name for name, bit in RIGHTS.items() if self.rights & bit)
        verbs = "" if self.verbs is None else "#" + ",".join(sorted(self.verbs))
        return f"{rights} /{'/'.join(self.pattern)}{verbs}"

    def applies(self, subject: str) -> bool:
        """Whether the row speaks of this subject: `local`, `any`, or a SPIFFE name."""
        return means(self.who, subject)


def means(who: Sequence[str], subject: str) -> bool:
    """Whether a parsed WHO speaks of a subject."""
    if who == ("any",):
        return True
    words = tuple(subject.split("/"))
    if who[0] in ("role", "user"):
        if not subject.startswith("spiffe://"):
            return False
        words = words[3:]
    fits = (w in ("*", s) for w, s in zip(who, words, strict=False))
    return len(words) == len(who) and all(fits)


def parse_row(text: str) -> Row:
    """A row from `allow WHO RIGHTS PATTERN`; the word allow may be left out."""
    words = text.split()
    if words and words[0] == "allow":
        words = words[1:]
    if len(words) != 3:
        raise BadRow(f"{text!r}: a row is WHO RIGHTS PATTERN, for example: local read,write /**")
    who, rights, where = words
    mask = 0
    for name in rights.split(","):
        bit = RIGHTS.get(name) or _SHORT.get(name)
        if not bit:
            raise BadRow(f"{text!r}: no right {name!r}; the rights are {', '.join(RIGHTS)}")
        mask |= bit
    path, hash_, names = where.partition("#")
    verbs = None
    if hash_:
        verbs = frozenset(names.split(","))
        if mask != CTL:
            raise BadRow(f"{text!r}: verbs narrow the right ctl and go with no other")
        if "" in verbs:
            raise BadRow(f"{text!r}: a verb is missing after #")
    if not path.startswith("/"):
        raise BadRow(f"{text!r}: a pattern is an absolute path such as /** or /vm/*/ctl")
    pattern = tuple(p for p in path.split("/") if p)
    for part in pattern:
        if part in (".", "..") or ("*" in part and part not in ("*", "**")) or "\0" in part:
            raise BadRow(f"{text!r}: {part!r} is no pattern component; * and ** stand alone")
    return Row(parse_who(who, text), mask, pattern, verbs)


def parse_grant(text: str) -> Row:
    """A row from `RIGHTS PATTERN`, as a token states it: whom it is for is not said here."""
    if len(text.split()) != 2:
        raise BadRow(f"{text!r}: it is RIGHTS PATTERN, for example: read,write /home/**")
    return parse_row(f"any {text}")


def parse_who(who: str, text: str) -> tuple[str, ...]:
    """A WHO, split into its components; TEXT is what it stands in, for the complaint."""
    words = tuple(who.split("/"))
    good = len(who.split()) == 1 and (
        who in ("any", "local")
        or (words[0] == "role" and len(words) == 3)
        or (words[0] == "user" and len(words) == 2)
        or (who.startswith("spiffe://") and len(words) > 3 and "*" not in words[2])
    )
    if not good or "" in (words[2:] if who.startswith("spiffe://") else words):
        raise BadRow(f"{text!r}: {who!r} is not any, local, role/ROLE/NAME, user/NAME or a spiffe:// name")
    return words


class Allowed(NamedTuple):
    """What may be done at one path: a mask of rights, and which verbs the right ctl is for."""

    mask: int
    verbs: frozenset[str] | None = frozenset()

    def verb(self, name: str) -> bool:
        return bool(self.mask & CTL) and (self.verbs is None or name in self.verbs)


NOTHING: Final = Allowed(0)


class Grants:
    """The rows of one subject, ready to be asked about paths."""

    def __init__(self, rows: Iterable[Row]) -> None:
        rows = tuple(rows)
        self.rows = tuple(row._replace(rights=row.rights & EVERY) for row in rows if row.rights & EVERY)
        self._delegates = tuple(row.pattern for row in rows if row.rights & DELEGATE)
        # With a row on /** everything may be walked and no directory needs to be filtered.
        self.sees_all = any(row.pattern == ("**",) for row in self.rows)
        self._known: dict[str, Allowed] = {}

    def may_delegate(self, top: str) -> bool:
        """Whether one row lets this subject act for others at TOP and everywhere below it."""
        below = (*_names(top), "**")
        return any(within(below, pattern) for pattern in self._delegates)

    def at(self, path: str) -> Allowed:
        """What may be done at PATH, an absolute path without `..`."""
        known = self._known.get(path)
        if known is None:
            if len(self._known) >= _KEPT:
                self._known.clear()
            known = self._known[path] = self._decide(path)
        return known

    def _decide(self, path: str) -> Allowed:
        mask = 0
        verbs: frozenset[str] | None = frozenset()
        names = _names(path)
        for row in self.rows:
            covers, leads = _match(row.pattern, names)
            if leads:
                mask |= WALK
            if covers:
                mask |= row.rights
                if row.rights & CTL:
                    verbs = None if verbs is None or row.verbs is None else verbs | row.verbs
        return Allowed(mask, verbs)


class TokenGrants(Grants):
    """What each of several grants allows: the intersection, path by path. None at all allow nothing."""

    def __init__(self, layers: Iterable[Grants]) -> None:
        super().__init__(())
        self.layers = tuple(layers)
        self.sees_all = bool(self.layers) and all(layer.sees_all for layer in self.layers)

    def _decide(self, path: str) -> Allowed:
        mask = EVERY | WALK if self.layers else 0
        verbs: frozenset[str] | None = None
        for layer in self.layers:
            allowed = layer.at(path)
            mask &= allowed.mask
            if allowed.verbs is not None:
                verbs = allowed.verbs if verbs is None else verbs & allowed.verbs
        return Allowed(mask, verbs if mask & CTL else frozenset())


def decide(grants: Grants, path: str, right: int, verb: str | None = None) -> bool:
    """Whether all rights of the mask RIGHT are there at PATH; with a VERB, also whether ctl is for it.

    Pure, and total: what is no right, no absolute path or not spelt as a place in a tree is refused.
    """
    if not right or right & ~(EVERY | WALK) or not path.startswith("/") or "\0" in path:
        return False
    if not {".", ".."}.isdisjoint(path.split("/")):
        return False
    allowed = grants.at(path)
    if right & ~allowed.mask:
        return False
    return verb is None or (bool(right & CTL) and allowed.verb(verb))


def exceeding(row: Row, rows: Iterable[Row]) -> str:
    """Of ROW what ROWS do not give: a right, or a verb after #; nothing if they give it all.

    For each right, and for each verb, one single row must give it wherever ROW does.
    """
    around = [r for r in rows if within(row.pattern, r.pattern)]
    for name, bit in RIGHTS.items():
        if row.rights & bit and not any(r.rights & bit for r in around):
            return name
    if row.rights & CTL and not any(r.rights & CTL and r.verbs is None for r in around):
        given = frozenset[str]().union(*(r.verbs for r in around if r.rights & CTL and r.verbs is not None))
        for verb in sorted(("*",) if row.verbs is None else row.verbs - given):
            return f"ctl#{verb}"
    return ""


def within(inner: Sequence[str], outer: Sequence[str]) -> bool:
    """Whether every path that INNER matches is matched by OUTER, as far as stepping through both tells.

    It errs to one side only: of patterns such as /**/* and /*/**, which mean the same in other words,
    it says no.
    """
    # Row by row of the table "does the rest of inner lie within the rest of outer", from the end.
    rest = [all(part == "**" for part in outer[j:]) for j in range(len(outer) + 1)]
    for part in reversed(inner):
        longer = [False] * (len(outer) + 1)
        for j in range(len(outer) - 1, -1, -1):
            if outer[j] == "**":
                longer[j] = longer[j + 1] or rest[j]
            elif part != "**":
                longer[j] = outer[j] in ("*", part) and rest[j + 1]
        rest = longer
    return rest[0]


def _names(path: str) -> tuple[str, ...]:
    return tuple(name for name in path.split("/") if name)


def _match(pattern: tuple[str, ...], path: tuple[str, ...]) -> tuple[bool, bool]:
    """(covers, leads to). Positions in the pattern are tracked as a set, so `**` costs no recursion."""
    at = _skip({0}, pattern)
    for name in path:
        step = set()
        for i in at:
            if i < len(pattern):
                if pattern[i] == "**":
                    step.add(i)
                elif pattern[i] in ("*", name):
                    step.add(i + 1)
        at = _skip(step, pattern)
        if not at:
            return False, False
    return len(pattern) in at, True


def _skip(at: set[int], pattern: tuple[str, ...]) -> set[int]:
    """A `**` may match nothing: whoever stands before it also stands behind it."""
    for i in sorted(at):
        while i < len(pattern) and pattern[i] == "**":
            i += 1
            at.add(i)
    return at


class Policy:
    """The rows of one export. Immutable: a change is another policy."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.rows = tuple(rows)

    @classmethod
    def parse(cls, lines: Iterable[str]) -> "Policy":
        """All rows, or BadRow with every bad line."""
        rows, bad = [], []
        for line in lines:
            try:
                rows.append(parse_row(line))
            except BadRow as e:
                bad.append(str(e))
        if bad:
            raise BadRow("\n".join(bad))
        return cls(rows)

    def in_hive(self, hive: str) -> "Policy":
        """The same, with role/R/N and user/N meaning members of HIVE itself.

        Else they mean a member of any domain that can be authenticated here, and a region, which
        names its own members, could name one of them QueenPrimary.
        """
        short = ("role", "user")
        rows = (r._replace(who=("spiffe:", "", hive, *r.who)) if r.who[0] in short else r for r in self.rows)
        return Policy(rows)

    def grants(self, subject: str) -> Grants:
        """What this subject may do. Nobody is a subject by default: no row, no grant."""
        return Grants(row for row in self.rows if row.applies(subject))
