"""The state of a hive: its directory, hive.toml, the lock, the authority it is founded on."""

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from warren.auth import keyfiles
from warren.auth.ca import CA
from warren.auth.certificates import load_chain, utc_now
from warren.auth.identity import Identity
from warren.auth.minters import read
from warren.auth.refusal import Missing, Refusal
from warren.auth.spiffe import check_hive
from warren.roles import found
from warren.roles.mounts import Mounted, above, mounted
from warren.roles.state import DEFAULT, Hive, State, new_hive

DAY = timedelta(days=1)


@pytest.fixture
def state(tmp_path: Path) -> State:
    made = State(tmp_path / "state")
    made.make()
    return made


def nothing(said: str) -> None:
    raise AssertionError(said)


def founded(state: State) -> Hive:
    hive = new_hive(DEFAULT)
    state.write(hive)
    found.keep(state, hive, nothing)
    return hive


# The directory


def test_the_directory_is_the_one_said_then_the_variables_then_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("WARREN_STATE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/you")
    assert State().directory == Path("/home/you/.local/state/warren/default")
    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert State().directory == Path("/xdg/warren/default")
    monkeypatch.setenv("WARREN_STATE", "/chosen")
    assert State().directory == Path("/chosen")
    monkeypatch.chdir(tmp_path)
    assert State("here").directory == tmp_path / "here"


def test_only_its_owner_enters(state: State) -> None:
    state.make_for("queen")
    for path in [state.directory, *state.directory.glob("**/")]:
        assert path.stat().st_mode & 0o777 == 0o700, path


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(Refusal, match="others may write there; chmod 700"):
        State(tmp_path).make()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs", "fuse.warren"])
def test_a_directory_on_a_network_is_refused(tmp_path: Path, kind: str) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        f"20 1 8:1 / / rw - ext4 /dev/sda1 rw\n21 20 0:9 / {tmp_path}/far rw - {kind} server:/x rw\n"
    )
    with pytest.raises(Refusal, match=f"it lies on {kind}, mounted at {tmp_path}/far"):
        State(tmp_path / "far/state", os.fspath(table)).make()
    assert not (tmp_path / "far").exists()
    State(tmp_path / "near", os.fspath(table)).make()


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    state = State(tmp_path / ("x" * 80))
    state.make()
    with pytest.raises(Refusal, match=r"107 bytes at most, not .*; choose a shorter --state"):
        state.make_for("queen")


def test_mounts_are_read_with_their_escapes_and_the_nearest_is_found(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "21 20 0:9 / /a\\040b rw shared:1 - fuse.warren unix!/s\\134t rw\n"
        "22 21 0:9 / /a\\040b/c rw - tmpfs tmpfs rw\n"
        "torn line\n"
    )
    assert mounted(os.fspath(table))[1] == Mounted("/a b", "fuse.warren", "unix!/s\\t")
    assert above("/a b/x/../y", os.fspath(table)) == Mounted("/a b", "fuse.warren", "unix!/s\\t")
    assert above("/a b/c/d", os.fspath(table)) == Mounted("/a b/c", "tmpfs", "tmpfs")
    assert above("/a bc", os.fspath(table)) == Mounted("/", "ext4", "/dev/sda1")
    assert mounted(os.fspath(tmp_path / "none")) == []


# hive.toml


def test_what_is_written_is_read_again(state: State) -> None:
    hive = new_hive({**DEFAULT, "far.1": "SensorRelay"}, queen="tls!hub!5640")
    state.write(hive)
    assert state.hive() == hive


def test_two_hives_have_two_names_that_certificates_take() -> None:
    names = {new_hive(DEFAULT).hive for _ in range(50)}
    assert len(names) == 50
    assert {check_hive(name) for name in names} == names


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hive = ", "Invalid value"),
        ("port = 5640", "required field `hive`"),
        ('hive = "a.b"\nport = "x"', "Expected `int`"),
        ('hive = "a.b"\nqueens = 2', "unknown field `queens`"),
        ('hive = "A B"', "cannot name a hive"),
        ('hive = "a.b"\n[roles]\n"../x" = "DroneWorker"', "is neither a role nor a user"),
        ('hive = "a.b"\n[roles]\nca = "DroneWorker"', "a name of the hive's own"),
    ],
)
def test_a_wrong_file_is_refused_and_says_where(state: State, text: str, says: str) -> None:
    state.file.write_text(text)
    with pytest.raises(Refusal, match=f"hive.toml: .*{says}"):
        state.hive()


def test_without_a_hive_it_is_said_how_to_make_one(state: State) -> None:
    with pytest.raises(Missing, match="there is no hive; make one: warren up --state"):
        state.hive()


# The lock


def test_one_holds_the_lock_and_others_read_who(state: State) -> None:
    assert state.holder() is None
    with state.locked("1 2 boot\n") as mine:
        assert mine
        assert state.holder() == "1 2 boot\n"
        with state.locked("other") as second:
            assert not second
        assert state.holder() == "1 2 boot\n"
    assert state.holder() is None


def test_a_killed_holder_holds_nothing(state: State) -> None:
    script = (
        "import sys; from warren.roles.state import State\n"
        "with State(sys.argv[1]).locked('x'): print(flush=True), input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, state.directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert state.holder() == "x"
        holder.send_signal(signal.SIGKILL)
    assert state.holder() is None
    with state.locked("y") as mine:
        assert mine


# Founding


def test_a_hive_is_founded_whole(state: State) -> None:
    hive = founded(state)
    for name, role in DEFAULT.items():
        me = Identity.load(state.pki(name))
        assert me.uri == f"spiffe://{hive.hive}/role/{role}/{name}"
        minters = read((state.pki(name) / "minters").read_text(), me.roots, utc_now())
        assert [one.key for one in minters] == [_minter(state)]
        assert me.lists
    for path in state.directory.glob("pki/**/*key*"):
        keyfiles.read_secret(path)


def _minter(state: State) -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = serialization.load_pem_private_key((state.pki("queen") / "minter.key").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    return key.public_key().public_bytes_raw()


def files(state: State) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in state.directory.glob("pki/**/*") if path.is_file()}


def test_founding_again_changes_nothing(state: State) -> None:
    hive = founded(state)
    before = files(state)
    found.keep(state, hive, nothing)
    assert files(state) == before


def test_what_has_lived_half_its_life_is_renewed_for_the_same_key(state: State) -> None:
    hive = founded(state)
    before = files(state)
    now = utc_now() + 4 * DAY
    found.keep(state, hive, nothing, now)
    changed = {path.name for path, data in files(state).items() if before.get(path) != data}
    assert changed == {"cert.pem", "issued.jsonl"}
    for name in DEFAULT:
        assert Identity.load(state.pki(name), now + 6 * DAY).uri == hive.uri(name)
    later = utc_now() + 20 * DAY
    found.keep(state, hive, nothing, later)
    me = Identity.load(state.pki("drone-1"), later)
    minters = read((state.pki("drone-1") / "minters").read_text(), me.roots, later)
    assert [(one.key, one.expires > (later + 20 * DAY).timestamp()) for one in minters] == [
        (_minter(state), True)
    ]


def test_another_minter_stays_certified(state: State, tmp_path: Path) -> None:
    from warren.auth.minters import certify
    from warren.auth.rights import parse_grant

    hive = founded(state)
    ca = CA(state.ca)
    other = certify(ca, b"\1" * 32, [parse_grant("read /**")], 90 * DAY, utc_now())
    minters = state.ca / "minters"
    minters.write_text(minters.read_text() + "\n" + other)
    later = utc_now() + 20 * DAY
    found.keep(state, hive, nothing, later)
    kept = read(minters.read_text(), load_chain(ca.bundle(), "roots"), later)
    assert {one.key for one in kept} == {b"\1" * 32, _minter(state)}


def test_what_a_crash_left_of_an_authority_is_begun_again(state: State) -> None:
    hive = new_hive(DEFAULT)
    half = state.directory / "pki/ca.new"
    keyfiles.make_directory(half)
    (half / "root.key").write_text("torn")
    keyfiles.make_directory(state.pki("queen"))
    found.keep(state, hive, nothing)
    assert CA(state.ca).hive == hive.hive
    assert not half.exists()
    (state.pki("queen") / "cert.pem").unlink()
    key = (state.pki("queen") / "key.pem").read_bytes()
    found.keep(state, hive, nothing)
    assert Identity.load(state.pki("queen")).uri == hive.uri("queen")
    assert (state.pki("queen") / "key.pem").read_bytes() == key


def test_who_was_revoked_is_not_let_in_again_by_coming_up(state: State) -> None:
    hive = founded(state)
    drone = Identity.load(state.pki("drone-1"))
    CA(state.ca).revoke(int(drone.serial, 16))
    said: list[str] = []
    before = (state.pki("drone-1") / "cert.pem").read_bytes()
    found.keep(state, hive, said.append, utc_now() + 4 * DAY)
    assert (state.pki("drone-1") / "cert.pem").read_bytes() == before
    assert len(said) == 1
    assert "drone-1: its certificate was revoked; to let it in again" in said[0]


def test_a_new_role_for_a_name_is_a_new_name_for_its_key(state: State) -> None:
    founded(state)
    key = (state.pki("drone-1") / "key.pem").read_bytes()
    hive = Hive(state.hive().hive, roles={**DEFAULT, "drone-1": "KioskInteractive"})
    found.keep(state, hive, nothing)
    assert Identity.load(state.pki("drone-1")).uri == hive.uri("drone-1")
    assert (state.pki("drone-1") / "key.pem").read_bytes() == key


def test_the_authority_of_another_hive_is_refused(state: State) -> None:
    founded(state)
    with pytest.raises(Refusal, match="it is the authority of hive-"):
        found.keep(state, new_hive(DEFAULT), nothing)


def test_a_machine_that_has_joined_makes_no_authority(state: State) -> None:
    found.keep(state, new_hive({"far": "DroneWorker"}, "a.b", "tls!hub!1"), nothing)
    assert not state.ca.exists()
