"""The audit as its callers see it: numbering, denials under their quota, the lines themselves."""

import json
import random

import pytest
from warren.traces.audit import AuditMemory, Event
from warren.traces.audit.denials import BURST, EACH, OPS, OTHERS, RATE, SUBJECTS
from warren.traces.audit.lines import GENESIS, MAX_LINE, Line, parse, seal, unseal


class Hand:
    """A clock that is turned by hand."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def denial(subject: str, op: str = "Tlopen", path: str = "/x") -> Event:
    return Event(1, subject, op, path, "denied", 7)


def test_memory_records_at_once_and_keeps_the_newest() -> None:
    audit = AuditMemory(depth=3)
    for n in range(4):
        number, wait = audit.intent(Event(1, "local", "create", f"/{n}"))
        assert wait is None
        audit.outcome(number, Event(1, "local", "create", f"/{n}"), 0)
    assert [(line.seq, line.kind, line.of) for line in audit.lines] == [
        (6, "outcome", 5),
        (7, "intent", 0),
        (8, "outcome", 7),
    ]


def test_a_line_carries_its_trace_id() -> None:
    audit = AuditMemory()
    audit.note(denial("any"), 403)
    assert audit.lines[0].trace == "0000000000000007"


def test_a_flood_is_counted_by_subject_and_op_and_said_when_the_second_is_over() -> None:
    clock = Hand()
    audit = AuditMemory(clock=clock)
    for n in range(1000):
        audit.note(denial("role/Drone/mad", "Tlopen" if n % 4 else "Twalk"), 403)
    assert len(audit.lines) == EACH
    clock.time += 1
    audit.note(denial("local"), 403)
    counted, own = list(audit.lines)[EACH:]
    assert (counted.subject, counted.op, counted.code) == ("role/Drone/mad", "denials", 403)
    written = [line.op for line in audit.lines if line.op.startswith("T") and line is not own]
    opens, walks = 750 - written.count("Tlopen"), 250 - written.count("Twalk")
    assert counted.detail == f"n={1000 - EACH} Tlopen={opens} Twalk={walks}"
    assert (own.subject, own.op) == ("local", "Tlopen")


def test_subjects_and_ops_beyond_the_bound_are_others_and_no_denial_is_uncounted() -> None:
    clock = Hand()
    audit = AuditMemory(depth=100_000, clock=clock)
    chance = random.Random(1)
    total = 0
    for _ in range(20):
        for _ in range(chance.randrange(2000)):
            audit.note(denial(f"user/u{chance.randrange(400)}", f"T{chance.randrange(40)}"), 403)
            total += 1
        clock.time += 1
    audit.note(denial("last"), 403)
    counts = [line for line in audit.lines if line.op == "denials"]
    written = len(audit.lines) - len(counts)
    assert written + sum(int(line.detail.split()[0][2:]) for line in counts) == total + 1
    assert written <= BURST + RATE * 20
    assert len(counts) <= (SUBJECTS + 1) * 20
    assert max(len(line.detail.split()) for line in counts) <= OPS + 2
    assert OTHERS in {line.subject for line in counts}


def test_a_flood_never_holds_up_an_intent() -> None:
    audit = AuditMemory(clock=Hand())
    for _ in range(10_000):
        audit.note(denial("role/Drone/mad"), 403)
    audit.intent(Event(2, "local", "create", "/y"))
    assert (audit.lines[-1].kind, audit.lines[-1].path) == ("intent", "/y")
    assert len(audit.lines) == EACH + 1


def test_the_path_of_a_denial_is_cut_and_that_of_an_effect_is_not() -> None:
    audit = AuditMemory()
    audit.note(denial("any", path="/" + "x" * 50_000), 403)
    audit.intent(Event(1, "any", "create", "/" + "x" * 50_000))
    note, intent = audit.lines
    assert len(note.path) == 1024
    assert len(intent.path) == 50_001


@pytest.mark.parametrize(
    "path", ["/plain", '/"},"h":"' + "0" * 64 + '"}', "/new\nline", "/\udcff\x00", "/" + "é" * 200_000]
)
def test_any_name_makes_one_line_that_is_read_back(path: str) -> None:
    raw, h = seal(GENESIS, Line(1, 0.5, "intent", 1, "local", "create", path))
    assert raw.count(b"\n") == 1
    assert len(raw) <= MAX_LINE
    taken = unseal(raw)
    assert taken is not None
    assert taken[1] == h
    line = parse(raw)
    assert line is not None
    assert line.h == h.decode()
    assert json.loads(taken[0])["path"] == line.path
    if len(path) < 1000:
        assert line.path == path.encode("utf-8", "backslashreplace").decode()
    else:
        assert line.path.endswith(")")
        assert "sha256" in line.path
