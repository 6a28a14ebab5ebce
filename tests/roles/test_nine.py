"""The nine roles: what each sees, and what each may and may not, asked of a real export."""

import errno
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from warren.auth.rights import READ, WRITE
from warren.p9.messages import Rreaddir, Treaddir
from warren.roles.manifest import load_role, roles, uses_secure9p
from warren.traces.audit import AuditMemory

from tests.roles.place import Place, attempt
from tests.wire import EVERYTHING, RefusedBy, served

GOLDENS = Path(__file__).parent / "goldens"
QUEENS = ("QueenPrimary", "RegionalQueen", "BareMetalQueen")
WORKERS = (
    "DroneWorker", "InteractiveAiBooth", "KioskInteractive", "GlassesAgent", "SensorRelay", "SimulatorTest",
)  # fmt: skip
NINE = (*QUEENS, *WORKERS)
HIVE = "hive.test"
LOCAL, ANY, GUEST = "local", "any", f"spiffe://{HIVE}/user/guest"
STRANGER = "spiffe://other.test/role/QueenPrimary/queen"


def member(role: str, name: str = "one") -> str:
    return f"spiffe://{HIVE}/role/{role}/{name}"


PRIMARY = member("QueenPrimary", "queen")


# What they are


def test_there_are_nine() -> None:
    assert sorted(NINE) == roles()


@pytest.mark.parametrize("role", NINE)
def test_the_printed_namespace_of_a_role_is_its_golden(role: str) -> None:
    assert load_role(role).space.lines() == (GOLDENS / f"{role}.ns").read_text()


def test_every_golden_is_of_a_role() -> None:
    assert {path.stem for path in GOLDENS.iterdir()} == set(NINE)


def test_all_nine_use_secure9p() -> None:
    using = [role for role in NINE if uses_secure9p(load_role(role))]
    assert len(using) / len(NINE) == 1.0


@pytest.mark.parametrize("role", NINE)
def test_every_role_has_the_trees_that_say_how_it_is(role: str) -> None:
    own = {serve.path: serve.server for serve in load_role(role).serves}
    common = {"/dev": "dev", "/proc": "proc", "/role": "role", "/srv": "srv", "/log": "log"}
    assert common.items() <= own.items()


def test_queens_hold_the_authority_and_listen() -> None:
    for role in QUEENS:
        m = load_role(role)
        own = {serve.path: serve.server for serve in m.serves}
        assert (own["/mesh/ca"], own["/cap"], m.listens, m.store) == ("ca", "cap", True, "sqlite")
    assert [load_role(role).exports_to for role in QUEENS] == [(), ("$queen",), ()]


def test_workers_dial_out_and_listen_nowhere() -> None:
    for role in WORKERS:
        m = load_role(role)
        assert (m.listens, m.exports_to) == (False, ("$queen",))
        assert not {"ca", "cap"} & {serve.server for serve in m.serves}


def test_what_a_worker_mounts_of_its_queen_is_read_only_and_not_the_whole() -> None:
    for role in WORKERS:
        far = {old: m for old, members in load_role(role).space.table.items() for m in members if old}
        assert set(far) == {("mesh",), ("cap",)}
        assert all(m.address == "$queen" and m.read_only and m.path == old for old, m in far.items())


# What they may do


class Ask(NamedTuple):
    role: str
    subject: str
    op: str
    path: str

    def __str__(self) -> str:
        return f"{self.role}: {self.subject.removeprefix(f'spiffe://{HIVE}/')} {self.op} {self.path}"


def who(word: str, role: str) -> list[str]:
    """The subjects that a word of the tables means, at ROLE."""
    match word:
        case "self":
            return [member(role)]
        case "queens":
            return [member(q) for q in QUEENS]
        case "sisters":  # but for the primary above a region
            above = {("RegionalQueen", "QueenPrimary")}
            return [member(q) for q in QUEENS if q != role and (role, q) not in above]
        case "workers":
            return [member(w) for w in WORKERS]
        case "others":
            return [member(w) for w in WORKERS if w != role]
    return [{"primary": PRIMARY, "guest": GUEST, "local": LOCAL, "any": ANY, "stranger": STRANGER}[word]]


def table(text: str) -> list[Ask]:
    """Lines `ROLE SUBJECT OPS PATH...`, where ROLE may be all, queens or workers."""
    asks = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        at, subject, ops, *paths = line.split()
        for role in {"all": NINE, "queens": QUEENS, "workers": WORKERS}.get(at, (at,)):
            asks += [Ask(role, s, op, p) for s in who(subject, role) for op in ops.split(",") for p in paths]
    return asks


MAY = table("""
# What the nine were made for.
DroneWorker         self     read                 /sim/there /sim/data/there
DroneWorker         self     write,create         /telemetry/there
InteractiveAiBooth  self     read                 /input/mic/there /input/cam/there /mnt/face_match/there
InteractiveAiBooth  self     write,create         /mnt/ui_in/there /mnt/speak/there
KioskInteractive    self     read                 /input/there /input/cam/there
KioskInteractive    self     write,create         /mnt/ui_in/there
GlassesAgent        self     read                 /input/cam/there
GlassesAgent        self     write,create         /cuda/there
SensorRelay         self     read                 /input/there
SensorRelay         self     write,create         /telemetry/there
SimulatorTest       self     read                 /sim/data/there
SimulatorTest       self     write,create         /testlog/there
queens              self     read,write,create    /srv/there
queens              self     remove               /srv/there

# Whoever runs the machine.
all                 local    list                 /
all                 local    read                 /proc/ns /role/status /log/events.log
all                 local    read,write,create    /srv/there
all                 local    ctl                  /role/ctl /proc/lifecycle/ctl

# A queen at those that dial her.
workers             queens   list                 /
workers             queens   read                 /proc/ns /role/status /log/events.log /srv/there /dev/time
workers             queens   ctl                  /role/ctl /proc/lifecycle/ctl
DroneWorker         primary  write,create,remove  /sim/there
DroneWorker         primary  read,remove          /telemetry/there
InteractiveAiBooth  primary  write,create,remove  /mnt/face_match/there
GlassesAgent        primary  read,remove          /cuda/there
SensorRelay         primary  read,remove          /telemetry/there
SimulatorTest       primary  write,create,remove  /sim/data/there
SimulatorTest       primary  read,remove          /testlog/there
RegionalQueen       primary  read                 /proc/ns /role/status /n/one/log/events.log
RegionalQueen       primary  ctl                  /role/ctl /proc/lifecycle/ctl /n/one/proc/lifecycle/ctl

# Members at their queen.
queens              workers  read                 /mesh/ca/bundle /mesh/ca/crl /cap/crl
queens              workers  read                 /dev/time /proc/lifecycle/state
queens              workers  write                /mesh/ca/csr

# People.
all                 guest    list                 / /proc /proc/lifecycle
all                 guest    read                 /dev/time /proc/lifecycle/state
queens              guest    list                 /n /n/one
queens              guest    read                 /mesh/ca/bundle /mesh/ca/crl /n/one/proc/lifecycle/state
""")

MAY_NOT = table("""
DroneWorker         self     write,create,remove  /sim/there
DroneWorker         self     read,remove          /telemetry/there
InteractiveAiBooth  self     write,create,remove  /input/mic/there /input/cam/there /mnt/face_match/there
InteractiveAiBooth  self     read,remove          /mnt/ui_in/there /mnt/speak/there
InteractiveAiBooth  self     read,write,create    /input/there /mnt/there
KioskInteractive    self     write,create,remove  /input/there
KioskInteractive    self     read,remove          /mnt/ui_in/there
KioskInteractive    self     read,write,create    /mnt/there
GlassesAgent        self     write,create,remove  /input/cam/there
GlassesAgent        self     read,remove          /cuda/there
GlassesAgent        self     read                 /input/there /input/mic/there
SensorRelay         self     write,create,remove  /input/there
SensorRelay         self     read,remove          /telemetry/there
SimulatorTest       self     write,create,remove  /sim/data/there
SimulatorTest       self     read,remove          /testlog/there
SimulatorTest       self     read,write,create    /sim/there
workers             self     list                 /
workers             self     read                 /log/events.log /proc/ns
workers             self     read,write,create    /srv/there
workers             self     ctl                  /role/ctl /proc/lifecycle/ctl

# A queen posts nothing with her workers, invents no reports, and does not watch people.
workers             queens   write,create,remove  /srv/there
workers             queens   write,create         /telemetry/there /cuda/there /testlog/there
workers             queens   read                 /input/mic/there /input/cam/there /mnt/face_match/there
workers             queens   read                 /mnt/speak/there /mnt/ui_in/there
workers             queens   read                 /mesh/ca/bundle /cap/crl
workers             queens   ctl                  /log/ctl

# Workers have no business with each other, nor with their queen beyond her authority.
workers             others   list                 /
workers             others   read                 /sim/there /telemetry/there /input/cam/there /proc/ns
workers             others   ctl                  /role/ctl
queens              workers  list                 / /n
queens              workers  read                 /srv/there /log/events.log /proc/ns /n/one/proc/ns
queens              workers  write                /srv/there /cap/crl /mesh/ca/crl
queens              workers  ctl                  /mesh/ca/ctl /cap/ctl /role/ctl /proc/lifecycle/ctl

queens              sisters  read,write           /srv/there
queens              sisters  read                 /log/events.log /n/one/log/events.log
queens              sisters  ctl                  /role/ctl /mesh/ca/ctl /n/one/proc/lifecycle/ctl

all                 guest    read                 /proc/ns /role/status /log/events.log
all                 guest    read                 /sim/there /input/cam/there /telemetry/there
all                 guest    read,write,create    /srv/there
all                 guest    ctl                  /role/ctl /proc/lifecycle/ctl
queens              guest    read                 /mesh/ca/status /n/one/proc/ns /n/one/log/events.log
queens              guest    write                /mesh/ca/csr
queens              guest    ctl                  /mesh/ca/ctl /n/one/proc/lifecycle/ctl

# The queen of another hive is nobody, and who shows no certificate is nobody too.
all                 stranger list                 / /dev
all                 stranger read                 /dev/time /proc/lifecycle/state
all                 stranger ctl                  /proc/lifecycle/ctl
all                 any      list                 / /dev
all                 any      read                 /dev/time /proc/lifecycle/state
""")


def by_subject(all_asks: Iterable[Ask]) -> list[tuple[str, str, list[Ask]]]:
    found: dict[tuple[str, str], list[Ask]] = {}
    for ask in all_asks:
        found.setdefault((ask.role, ask.subject), []).append(ask)
    return [(role, subject, asked) for (role, subject), asked in found.items()]


def shown(value: object) -> str:
    return value.removeprefix(f"spiffe://{HIVE}/") if isinstance(value, str) else ""


async def refusals(place: Place, rows: Sequence[str], asked: Iterable[Ask]) -> list[Ask]:
    """Those of ASKED that were refused, each asked on a connection of its own."""
    refused = []
    async with served(place.root, rows) as service:
        for ask in asked:
            try:
                await attempt(await service.dial(subject=ask.subject), ask.op, ask.path)
            except RefusedBy as e:
                if e.errno not in (errno.EACCES, errno.ENOENT):
                    raise
                refused.append(ask)
    return refused


def rows_of(role: str) -> list[str]:
    return [str(row) for row in load_role(role).policy.in_hive(HIVE).rows]


@pytest.mark.parametrize(("role", "subject", "asked"), by_subject(MAY), ids=shown)
async def test_what_a_row_gives_can_be_done(
    role: str, subject: str, asked: list[Ask], tmp_path: Path
) -> None:
    assert await refusals(Place(tmp_path), rows_of(role), asked) == []


@pytest.mark.parametrize(("role", "subject", "asked"), by_subject(MAY_NOT), ids=shown)
async def test_what_no_row_gives_is_refused(
    role: str, subject: str, asked: list[Ask], tmp_path: Path
) -> None:
    place = Place(tmp_path)
    before = place.state()
    assert await refusals(place, rows_of(role), asked) == asked
    assert place.state() == before


async def test_what_is_refused_could_be_done_by_whoever_had_a_row(tmp_path: Path) -> None:
    """Else the table of refusals would prove nothing but that a path is misspelt."""
    once = {(ask.op, ask.path): ask for ask in MAY_NOT}
    last = sorted(once.values(), key=lambda ask: ask.op == "remove")
    assert await refusals(Place(tmp_path), EVERYTHING, last) == []


async def test_a_guest_who_bids_a_worker_drain_is_refused_and_named(tmp_path: Path) -> None:
    for role, path in (("QueenPrimary", "n/one/proc/lifecycle/ctl"), ("DroneWorker", "proc/lifecycle/ctl")):
        place = Place(tmp_path / role)
        async with served(place.root, rows_of(role)) as service:
            wire = await service.dial(subject=GUEST)
            with pytest.raises(RefusedBy) as caught:
                await attempt(wire, "ctl", path)
            assert caught.value.errno == errno.EACCES
            audit = service.export.audit
            assert isinstance(audit, AuditMemory)
            noted = [(line.subject, line.path, line.code) for line in audit.lines]
            assert noted == [(GUEST, f"/{path}", 403)]


async def test_a_listing_shows_a_guest_only_what_leads_somewhere(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with served(place.root, rows_of("QueenPrimary")) as service:
        wire = await service.dial(subject=GUEST)
        for path, names in (("", {"dev", "proc", "mesh", "n"}), ("proc", {"lifecycle"}), ("n/one", {"proc"})):
            await wire.open(path, 5)
            entries = bytes((await wire.want(Rreaddir, Treaddir(5, 0, 8000))).data)
            every = (*place.root.entries, "lifecycle", "ns")
            assert {name for name in every if name.encode() in entries} == names
            await wire.clunk(5)


def test_queens_act_for_others_at_those_that_dial_them_and_nobody_else_does() -> None:
    for role in NINE:
        policy = load_role(role).policy.in_hive(HIVE)
        acting = {other for other in NINE if policy.grants(member(other)).may_delegate("/")}
        above = {"QueenPrimary"} if role == "RegionalQueen" else set()
        assert acting == (set(QUEENS) if role in WORKERS else above)
        assert not any(policy.grants(subject).may_delegate("/") for subject in (LOCAL, ANY, GUEST))


def test_what_a_role_writes_to_has_a_place_from_the_start() -> None:
    for role in WORKERS:
        m = load_role(role)
        made = {s.path for s in m.serves} | {
            f"{s.path}/{name}" for s in m.serves for name in s.options.get("dirs", "").split(",") if name
        }
        for row in m.policy.rows:
            if row.who == ("role", role, "*"):
                assert "/" + "/".join(row.pattern[:-1]) in made


def test_the_page_says_of_each_role_what_its_rows_do() -> None:
    page = (Path(__file__).parents[2] / "docs/roles.md").read_text()
    lines = page.partition("| role | dials a queen |")[2].partition("\n\n")[0].split("\n")[2:]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    assert [row[0] for row in rows] == list(NINE)
    for role, dials, dialled, own, reads, writes in rows:
        m = load_role(role)
        assert (dials, dialled) == ("yes" if m.exports_to else "", "yes" if m.listens else "")
        common = {"/dev", "/proc", "/role", "/srv", "/log"}
        assert own.split() == [s.path for s in m.serves if s.path not in common]
        its = [r for r in m.policy.rows if r.who == ("role", role, "*")]
        for places, right in ((reads, READ), (writes, WRITE)):
            assert places.split() == ["/" + "/".join(r.pattern[:-1]) for r in its if r.rights & right]
