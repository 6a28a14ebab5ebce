"""audit: what verify and show say, and a served audit from its first line to its heads."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.shell.conftest import Command
from tests.shell.running import EVERYTHING, serving, socket_in
from tests.traces.audits import Kept, event, new, three_segments

Documents = Callable[[str], list[Any]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return three_segments(tmp_path_factory.mktemp("whole"))


def test_verify_finds_nothing_in_a_whole_audit(run: Command, whole: Kept, documents: Documents) -> None:
    done = run("audit", "verify", str(whole.audit), "--heads", str(whole.heads), "--key", str(whole.public))
    last = len(run("audit", "show", str(whole.audit)).out.splitlines())
    says = f"3 segments, {last} lines, sequence {last}, signed up to sequence {last}: nothing was found\n"
    assert (done.code, done.out, done.err) == (0, says, "")
    done = run("audit", "verify", str(whole.audit), "--heads", str(whole.heads), "--json")
    assert done.err == "warren: the signatures of the heads were not checked; --key FILE checks them\n"
    (summary,) = documents(done.out)
    assert (summary["ok"], summary["heads"], summary["unchecked"], summary["covered"]) == (True, 3, 3, last)


def test_verify_names_what_it_finds_and_the_last_good_line(
    run: Command, whole: Kept, tmp_path: Path, documents: Documents
) -> None:
    kept = whole.copy(tmp_path / "kept")
    path = kept.segments[1]
    raw = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*raw[:4], raw[4].replace(b"/jobs/", b"/jebs/"), *raw[5:]]))
    seq = json.loads(raw[4])["seq"]
    done = run("audit", "verify", str(kept.audit))
    assert done.code == 9
    assert done.out.splitlines()[0] == (
        f"00000002.log:5: altered: sequence {seq}: the line or its hash was changed; "
        f"the last good line is 00000002.log:4, sequence {seq - 1}"
    )
    assert done.out.endswith(": 1 finding\n")
    finding, summary = documents(run("audit", "verify", str(kept.audit), "--json").out)
    assert (finding["kind"], finding["segment"], finding["line"], finding["seq"]) == (
        "altered",
        "00000002.log",
        5,
        seq,
    )
    assert finding["good"]["seq"] == seq - 1
    assert (summary["ok"], summary["findings"]) == (False, 1)


def test_verify_finds_a_cut_tail_by_heads(run: Command, whole: Kept, tmp_path: Path) -> None:
    kept = whole.copy(tmp_path / "kept")
    kept.segments[2].unlink()
    assert run("audit", "verify", str(kept.audit)).code == 0
    done = run("audit", "verify", str(kept.audit), "--heads", str(kept.heads), "--key", str(kept.public))
    assert done.code == 9
    assert done.out.startswith("00000003.log: cut: sequence ")


def test_show_chooses_by_time_subject_path_and_trace(
    run: Command, tmp_path: Path, documents: Documents
) -> None:
    kept = new(tmp_path)
    audit = kept.open()
    number, _ = audit.intent(event(7, op="create", trace=0xBEEF))
    audit.outcome(number, event(7, op="create", trace=0xBEEF), 409)
    audit.note(event(70)._replace(subject="local", path="/jobs/7/ctl#stop"), 403)
    audit.close()
    folder = str(kept.audit)

    def shown(*options: str) -> list[int]:
        return [line["seq"] for line in documents(run("audit", "show", folder, "--json", *options).out)]

    assert shown() == [1, 2, 3, 4]
    assert shown("--since", "1h") == [1, 2, 3, 4]
    assert shown("--since", "2999-01-01T00:00:00Z") == []
    assert shown("--subject", "local") == [4]
    assert shown("--path", "/jobs/7") == [2, 3, 4]
    assert shown("--path", "/jobs/7/ctl") == [4]
    assert shown("--path", "/job") == []
    assert shown("--trace", "000000000000beef") == shown("--trace", "trace=BEEF") == [2, 3]
    lines = run("audit", "show", folder).out.splitlines()
    assert lines[2].endswith(
        "Z 3 outcome session=1 role/Drone/d1 create /jobs/7 409 of=2 n=7 trace=000000000000beef"
    )
    assert lines[3].endswith("Z 4 note session=1 local create /jobs/7/ctl#stop 403 n=70")


def test_a_name_cannot_drive_the_terminal(run: Command, tmp_path: Path) -> None:
    kept = new(tmp_path)
    audit = kept.open()
    audit.intent(event(1)._replace(path="/\x1b[2J\nforged"))
    audit.close()
    out = run("audit", "show", str(kept.audit)).out
    assert "\x1b" not in out
    assert len(out.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "warren audit: it is verify DIR or show DIR; see warren help audit"),
        (["verify"], 2, "warren audit: it is verify DIR or show DIR"),
        (["verify", "x", "--since", "1h"], 2, "warren audit verify: --since is for show"),
        (["show", "x", "--heads", "y"], 2, "warren audit show: --heads is for verify"),
        (["verify", "x", "--key", "y"], 2, "warren audit verify: --key is for the heads; say where"),
        (["show", "{whole}", "--since", "yesterday"], 2, "warren audit show: --since 'yesterday' is no time"),
        (["show", "{whole}", "--trace", "xyz"], 2, "warren audit show: --trace 'xyz' is no trace id"),
        (["verify", "{folder}/none"], 3, "warren: {folder}/none: No such file or directory"),
        (["verify", "{folder}"], 3, "warren: {folder}: there is no *.log in it; give the directory that"),
        (["verify", "{whole}", "--heads", "{folder}"], 3, "warren: {folder}: there is no *.heads in it;"),
        (
            ["verify", "{whole}", "--heads", "{heads}", "--key", "{private}"],
            9,
            "warren: {private}: this is not a public key or a certificate in PEM",
        ),
    ],
)
def test_a_wrong_question_is_one_line(
    run: Command, whole: Kept, tmp_path: Path, words: list[str], code: int, says: str
) -> None:
    names = {
        "folder": tmp_path,
        "whole": whole.audit,
        "heads": whole.heads,
        "private": whole.key,
    }
    done = run("audit", *(word.format(**names) for word in words))
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1)
    assert done.err.startswith(says.format(**names))


def test_a_served_audit_is_signed_and_verifies_also_after_a_kill(run: Command, tmp_path: Path) -> None:
    kept = new(tmp_path / "kept")
    options = (
        "--audit", str(kept.audit), "--heads", str(kept.heads), "--heads-key", str(kept.key),
    )  # fmt: skip
    verifying = ("audit", "verify", str(kept.audit), "--heads", str(kept.heads), "--key", str(kept.public))
    for end in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        with serving("demo", *socket_in(tmp_path), *EVERYTHING, *options) as served:
            assert run("ctl", "/", "unlock", "front", "1234", at=served.at).code == 0
            assert run("audit", "verify", str(kept.audit)).code == 0  # while it runs
            served.process.send_signal(end)
            served.process.wait(5)
        (tmp_path / "sock").unlink(missing_ok=True)
    done = run(*verifying)
    assert (done.code, done.err) == (0, "")
    last = json.loads(kept.segments[-1].read_bytes().splitlines()[-1])["seq"]
    assert f"signed up to sequence {last}:" in done.out
    assert run("audit", "show", str(kept.audit), "--path", "/ctl").out.count("#unlock unlock front ***") == 3
    assert "front 1234" not in run("audit", "show", str(kept.audit), "--json").out


def test_the_trace_id_of_a_denial_finds_its_line(run: Command, tmp_path: Path) -> None:
    audit = tmp_path / "audit"
    with serving("demo", *socket_in(tmp_path), "--allow", "local read /**", "--audit", str(audit)) as served:
        refused = run("write", "/hello", "x", at=served.at)
    assert refused.code == 4
    trace = refused.err.split("trace=")[1].split(";")[0]
    (line,) = run("audit", "show", str(audit), "--trace", trace).out.splitlines()
    assert f" local Tlopen /hello 403 denied trace={trace}" in line


def test_a_server_whose_audit_is_full_says_so_and_changes_nothing(run: Command, tmp_path: Path) -> None:
    folder, audit = tmp_path / "served", tmp_path / "audit"
    folder.mkdir()
    (folder / "x").write_text("before")
    with serving("disk", str(folder), *socket_in(tmp_path), *EVERYTHING, "--audit", str(audit)) as served:
        os_limit(served.process.pid, (audit / "00000001.log").stat().st_size + 100)
        done = run("write", "/x", "after", at=served.at)
        assert (done.code, (folder / "x").read_text()) == (7, "before")
        assert "503 unavailable: the audit cannot be written: File too large" in done.err
        assert run("write", "/new", "y", at=served.at).code == 7
        assert run("cat", "/x", at=served.at).out == "before"
        served.process.terminate()
        assert served.process.stderr is not None
        said = served.process.stderr.read()
    assert said.splitlines() == [
        "warren: the audit cannot be written: File too large; from now on every effect is refused"
    ]
    assert os.listdir(folder) == ["x"]


def os_limit(pid: int, size: int) -> None:
    """No file of that process may grow beyond SIZE."""
    import resource

    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, size))


def test_heads_need_a_key_and_an_audit(run: Command, tmp_path: Path) -> None:
    listen = (*socket_in(tmp_path), "--audit", str(tmp_path / "audit"))
    done = run("serve", "demo", *listen, "--heads", str(tmp_path / "heads"))
    assert (done.code, done.err.split(";")[0]) == (
        2,
        "warren serve: --heads and --heads-key go together, with --audit",
    )
    done = run("serve", "demo", *listen, "--heads", str(tmp_path / "heads"), "--heads-key", "/nope")
    assert done.code == 3
