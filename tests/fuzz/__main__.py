"""python -m tests.fuzz --minutes N: fuzz the decoder and the server session.

First every property of the protocol at a thousand cases a message (Hypothesis), then atheris on each target
for its share of the time, at the lowest priority. New inputs join the corpus in place, which is then
minimised; an input that breaks something is saved to crashes/ and the exit status is 1.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SHARES = {"decoder": 0.15, "session": 0.85}
LONGEST = {"decoder": 400, "session": 700}
KEPT = {"decoder": 110, "session": 170}
INSTRUMENTED = [
    "warren.p9",
    "warren.serve",
    "warren.tree",
    "warren.auth",
    "warren.servers",
    "tests.fuzz.targets",
]


def fuzz(target: str, arguments: list[str]) -> None:
    """Become the fuzzer; never returns."""
    import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

    with atheris.instrument_imports(include=INSTRUMENTED):
        from warren.p9 import codec

        written = codec._compile
        # The codec's inner code is generated at run time, behind the back of the import hook.
        codec._compile = lambda *a: atheris.instrument_func(written(*a))
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[target])
    atheris.Fuzz()


def run(target: str, *arguments: str) -> int:
    command = [sys.executable, "-m", "tests.fuzz", "--target", target, *arguments]
    return subprocess.run(command, cwd=HERE.parent.parent, preexec_fn=lambda: os.nice(19)).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument(
        "--target", choices=sorted(SHARES), help="only this one; further words go to libFuzzer"
    )
    options, rest = parser.parse_known_args()
    if options.target:
        fuzz(options.target, rest)
    status = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--hypothesis-profile=fuzz", "tests/p9"],
        cwd=HERE.parent.parent,
    ).returncode
    crashes = HERE / "crashes"
    crashes.mkdir(exist_ok=True)
    from tests.fuzz.minimise import minimise
    from tests.fuzz.targets import TARGETS

    for target, share in SHARES.items():
        seconds = max(1, int(options.minutes * 60 * share))
        print(f"fuzzing {target} for {seconds} s", flush=True)
        status |= run(
            target, f"-max_total_time={seconds}", f"-max_len={LONGEST[target]}",
            f"-dict={HERE / 'words.dict'}", f"-artifact_prefix={crashes}/{target}-", "-print_final_stats=1",
            "-timeout=20", "-rss_limit_mb=2048", str(HERE / "corpus" / target),
        )  # fmt: skip
        minimise(TARGETS[target], HERE / "corpus" / target, KEPT[target])
    return int(bool(status))


if __name__ == "__main__":
    sys.exit(main())
