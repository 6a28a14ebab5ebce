"""A writer that is killed again and again: no effect without evidence, and the audit stays whole."""

import json
import random
import subprocess
import sys
from pathlib import Path

from tests.sources import ROOT
from tests.traces.audits import new

ROUNDS = 40

# A parent forks writers and kills each after it saw a number of bytes of progress: a byte is sent after an
# intent, after it is durable, after the effect, after the outcome, so that every gap is hit.
WRITER = """
import os, random, signal, sys
from pathlib import Path
import trio
from tests.traces.audits import Kept, event

folder, seed, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)

def write(progress, run):
    kept = Kept(folder)
    audit = kept.open(segment_bytes=6000)
    effects = os.open(folder / "effects", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    async def act(task):
        n = 0
        while True:
            n += 1
            what = event(run * 1_000_000 + task * 100_000 + n)
            number, wait = audit.intent(what)
            os.write(progress, b"i")
            await wait.durable()
            os.write(progress, b"d")
            os.write(effects, f"{number} {what.path}\\n".encode())
            os.fsync(effects)
            os.write(progress, b"e")
            audit.outcome(number, what, 0)
            os.write(progress, b"o")

    async def main():
        async with trio.open_nursery() as nursery:
            for task in range(4):
                nursery.start_soon(act, task)
            while True:
                await trio.sleep(0.005)
                await audit.tick()

    trio.run(main)

for run in range(rounds):
    read, progress = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            write(progress, run)
        except BaseException as e:
            print(repr(e), file=sys.stderr, flush=True)
        finally:
            os._exit(1)
    os.close(progress)
    left = chance.randrange(1, 120)
    while left:
        got = os.read(read, left)
        if not got:
            break
        left -= len(got)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(read)
    print(os.WTERMSIG(status))
"""


def test_no_effect_lacks_its_evidence_however_often_the_writer_is_killed(tmp_path: Path) -> None:
    kept = new(tmp_path)
    seed = random.SystemRandom().randrange(1 << 30)
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(tmp_path), str(seed), str(ROUNDS)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.split() == ["9"] * ROUNDS
    kept.open().close()

    findings = kept.verify()
    assert findings.ok, (seed, findings.found)
    intents, ended, unknown = {}, set(), set()
    for path in kept.segments:
        for raw in path.read_bytes().splitlines():
            try:
                line = json.loads(raw)
            except ValueError:
                continue  # torn; that the next line notes it was verified above
            if line["kind"] == "intent":
                intents[line["seq"]] = line["path"]
            elif line["kind"] == "outcome":
                ended.add(line["of"])
            elif line["kind"] == "recovered":
                unknown.update(line["open"])
    effects = dict(row.split() for row in (tmp_path / "effects").read_text().splitlines())
    assert len(effects) > ROUNDS
    for number, what in effects.items():
        assert intents[int(number)] == what, seed
    assert ended | unknown == intents.keys(), seed
    assert not ended & unknown, seed
    assert unknown, "no writer was killed between intent and outcome"
    assert len(kept.segments) > 5
