"""Secure Boot: keys and verdicts, and then a machine whose firmware decides.

The two machines here boot side by side; the other ways to be refused are in tests/soak/test_secure_boot.py.
"""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from warren.boot.formats import authenticode, esp, uki, varstore
from warren.boot.secure import chain, eventlog, firmware
from warren.boot.secure.firmware import Keys
from warren.tree import Refused

from . import secure
from .secure import MARKER, Ran

LOADING = b'BdsDxe: loading Boot0001 "UEFI Non-Block Boot Device" from PciRoot(0x0)/Pci(0x1,0x0)\r\n'
STARTING = LOADING.replace(b"loading", b"starting")
REFUSED = LOADING.replace(b"loading", b"failed to load").replace(b"\r\n", b": Access Denied\r\n")
NOT_FOUND = REFUSED.replace(b"Access Denied", b"Not Found")
SHELL = b'BdsDxe: starting Boot0002 "EFI Internal Shell" from Fv(7CB8)\r\n'


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.at(tmp_path_factory.mktemp("secure") / "keys")


def test_keys_are_made_once_and_for_their_owner(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "keys"
    made = Keys.at(folder)
    again = Keys.at(folder)
    assert [p.certificate for p in (made.pk, made.kek, made.db)] == [
        p.certificate for p in (again.pk, again.kek, again.db)
    ]
    assert len({p.certificate.public_key().public_numbers() for p in (made.pk, made.kek, made.db)}) == 3  # type: ignore[union-attr]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.key")} == {0o600}
    assert sorted(path.name for path in folder.parent.iterdir()) == ["keys"]


def test_a_folder_that_was_made_for_them_is_filled(tmp_path: Path) -> None:
    assert Keys.at(tmp_path).db.certificate == Keys.at(tmp_path).db.certificate


async def test_who_makes_keys_at_once_gets_the_same(tmp_path: Path) -> None:
    found: list[Keys] = []

    async def make() -> None:
        found.append(await trio.to_thread.run_sync(Keys.at, tmp_path / "keys"))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(make)
    assert len({k.db.certificate for k in found}) == 1


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda f: (f / "db.key").chmod(0o640), "db.key can be read by others; chmod 600"),
        (lambda f: (f / "KEK.key").unlink(), "KEK.key is missing"),
        (lambda f: (f / "db.pem").unlink(), "db.pem is missing"),
        (lambda f: (f / "PK.key").write_bytes(b"x"), "PK cannot be read"),
        (lambda f: (f / "db.pem").write_bytes((f / "PK.pem").read_bytes()), "do not belong together"),
    ],
)
def test_keys_that_are_not_as_they_were_left_are_refused(
    tmp_path: Path, spoil: Callable[[Path], object], why: str
) -> None:
    folder = tmp_path / "keys"
    Keys.at(folder)
    spoil(folder)
    with pytest.raises(Refused, match=why):
        Keys.at(folder)


def test_a_signed_image_is_for_these_keys(keys: Keys, tmp_path: Path) -> None:
    signed = firmware.sign(secure.image(), keys)
    assert firmware.unsound(signed, keys) == ""
    assert firmware.unsound(secure.image(), keys) == "it is not signed"
    assert "another key" in firmware.unsound(signed, Keys.at(tmp_path / "others"))


def test_three_lists_are_enrolled_and_secure_boot_is_on(keys: Keys) -> None:
    found = {v.name: v for v in varstore.read(firmware.variables(keys))}
    for name, pair in (("PK", keys.pk), ("KEK", keys.kek), ("db", keys.db)):
        assert found[name].data == varstore.certificates(pair.certificate)
        assert found[name].attributes == 0x27
    assert found["SecureBootEnable"].data == b"\1"
    assert found["CustomMode"].data == b"\0"


def test_each_machine_has_its_own_copy_of_the_variables(keys: Keys, tmp_path: Path) -> None:
    folder = tmp_path / "a, machine"
    folder.mkdir()
    arguments = firmware.machine(firmware.variables(keys), folder / "esp", folder)
    assert (folder / "vars.fd").read_bytes() == firmware.variables(keys)
    assert f"if=pflash,unit=1,format=raw,file={tmp_path}/a,, machine/vars.fd" in arguments
    assert "q35,smm=on" in arguments


def test_where_there_is_no_firmware_the_package_is_named(
    keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firmware, "CODE", tmp_path / "code.fd")
    assert firmware.lacking() == f"there is no {tmp_path}/code.fd; apt-get install ovmf"
    with pytest.raises(Refused, match="apt-get install ovmf"):
        firmware.variables(keys)


@pytest.mark.parametrize(
    ("serial", "verdict"),
    [
        (LOADING + STARTING + MARKER, "booted"),
        (LOADING + REFUSED, "refused"),
        (LOADING + REFUSED + SHELL, "refused"),
        (LOADING + NOT_FOUND, "error"),
        (LOADING + STARTING, "error"),
        (LOADING + STARTING + b"BdsDxe: failed to load Boot0001 it: Access Denied", "error"),
        (LOADING + STARTING + b"Access Denied", "error"),
        (b"Access Denied", "error"),
        (b"", "error"),
    ],
)
def test_a_refusal_is_the_firmwares_own_before_anything_is_started(serial: bytes, verdict: str) -> None:
    assert firmware.verdict(serial, MARKER) == verdict
    assert firmware.seen(serial, MARKER) == (None if verdict == "error" else verdict)


def test_what_was_started_cannot_pose_as_refused_later() -> None:
    """Though by then nobody keeps the line that it was started with."""
    look = firmware.watching(MARKER)
    assert look(LOADING) is None
    assert look(LOADING + STARTING) is None
    assert look(REFUSED) is None
    assert look(REFUSED + MARKER) == "booted"
    assert firmware.watching(MARKER)(LOADING + REFUSED) == "refused"


async def test_the_firmware_starts_what_was_signed_and_not_what_was_altered(
    keys: Keys, tmp_path: Path
) -> None:
    signed = firmware.sign(secure.image(), keys)
    at = signed.index(b"WARREN GUEST UP")  # in the first file system
    altered = signed[:at] + b"WARREN GUEST in" + signed[at + 15 :]
    volume = firmware.variables(keys)
    ran: dict[str, Ran] = {}

    async def run(name: str, efi: bytes, measured: tuple[int, ...] = ()) -> None:
        ran[name] = await secure.run(efi, volume, tmp_path / name, measured=measured)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, "signed", signed, (0, 4, 7, 11))
        nursery.start_soon(run, "altered", altered)

    good, bad = ran["signed"], ran["altered"]
    assert good.verdict == "booted", good.serial[-2000:]
    assert good.said("lockdown") == "none [integrity] confidentiality"
    assert "Operation not permitted" in good.said("memory")
    assert good.said("cmdline") == secure.COMMAND_LINE
    assert bad.verdict == "refused", bad.serial[-2000:]
    assert b"Linux" not in bad.serial

    # What the TPM holds is this image and no other, and the guest's own log explains it.
    assert uki.measured(signed).value == good.pcrs[11]
    assert eventlog.alone(authenticode.digest(signed)) == good.pcrs[4]
    assert eventlog.check(good.log(), good.pcrs) == ""
    assert eventlog.started(eventlog.parse(good.log()), authenticode.digest(signed))
    assert chain.check(uki.measured(altered).text(), claimed=good.pcrs[11]) != ""
    assert chain.difference(uki.measured(altered), uki.measured(signed)).startswith("event 3, .initrd, is ")


def test_an_image_and_its_disk_are_the_same_every_time(keys: Keys) -> None:
    def made() -> bytes:
        unsigned = uki.build(uki.stub(), secure.linux(), secure.initrd(), secure.COMMAND_LINE, secure.OSREL)
        return esp.build({esp.BOOT: firmware.sign(unsigned, keys)})

    assert made() == made()
