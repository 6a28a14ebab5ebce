"""Every way in that Secure Boot must close, on real firmware; and two that show that it is what closed them.

`make test` boots one signed and one altered image. Here are the others, two machines at a time.
"""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from warren.boot.formats import authenticode, pe, varstore
from warren.boot.formats.varstore import Variable
from warren.boot.secure import firmware
from warren.boot.secure.firmware import Keys, Pair

from tests.boot import secure
from tests.boot.secure import Ran

SILENT = "#!/bin/busybox sh\n/bin/busybox sleep 1000\n"


# Appends to db what a stranger would have in it, and then writes db anew; says what came of it.
MEDDLING = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc none /proc; $b mount -t sysfs none /sys; $b mount -t devtmpfs none /dev
$b insmod /efivarfs.ko
vars=/sys/firmware/efi/efivars
$b mount -t efivarfs none $vars
db=$vars/db-d719b2cb-3d3a-4596-a3bc-dad00e67656f
echo "on: $($b od -An -tx1 $vars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c)"
echo "before: $($b sha256sum <$db)"
echo "unlock: $(/bin/unlock $db 2>&1) $?"
{ $b printf '\\047\\000\\000\\000'; $b dd if=$db bs=1 skip=4; } 2>/dev/null >/new
echo "write: $($b dd if=/new of=$db bs=65536 2>&1)"
echo "remove: $($b rm -f $db 2>&1)"
$b printf '\\007\\000\\000\\000hello' >/hello
echo "harmless: $($b dd if=/hello of=$vars/Mine-8be4df61-93ca-11d2-aa0d-00e098032b8d bs=64 2>&1)"
echo "after: $($b sha256sum <$db)"
echo "WARREN GUEST UP"
$b sleep 1000
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.at(tmp_path_factory.mktemp("secure") / "keys")


def by(pair: Pair) -> bytes:
    return authenticode.sign(secure.image(), pair.key, pair.certificate)


def altered(section: str) -> Callable[[Keys], bytes]:
    """Signed, and then one bit in the middle of a section is another."""

    def image(keys: Keys) -> bytes:
        signed = bytearray(by(keys.db))
        [found] = [s for s in pe.read(bytes(signed)).sections if s.name == section]
        signed[found.raw + found.size // 2] ^= 1
        return bytes(signed)

    return image


def entered_elsewhere(keys: Keys) -> bytes:
    """Signed, and then its header leads into the middle of the stub."""
    signed = bytearray(by(keys.db))
    signed[pe.read(bytes(signed)).optional + 16] ^= 8
    return bytes(signed)


def claimed(keys: Keys) -> bytes:
    """Another's image under our certificate's name, with the signature of a stranger's key."""
    ours, theirs = by(keys.db), by(firmware.made("db"))
    return ours.replace(signature(ours), signature(theirs))


def signature(signed: bytes) -> bytes:
    """The number that only the key's owner can make: 256 bytes at the end of the message."""
    at, _ = pe.read(signed).certificates
    end = at + int.from_bytes(signed[at : at + 4], "little")
    return signed[end - 256 : end]


REFUSED: dict[str, Callable[[Keys], bytes]] = {
    "unsigned": lambda keys: secure.image(),
    "signed by a stranger of the same name": lambda keys: by(firmware.made("db")),
    "signed by PK, which signs no programs": lambda keys: by(keys.pk),
    "signed by KEK, which signs no programs": lambda keys: by(keys.kek),
    "with a stranger's signature under our name": claimed,
    "altered in the command line": altered(".cmdline"),
    "altered in the kernel": altered(".linux"),
    "altered in the stub": altered(".text"),
    "entered elsewhere": entered_elsewhere,
    "signed, and cut from its signature": lambda keys: by(keys.db)[: pe.read(by(keys.db)).certificates[0]],
}


async def test_the_firmware_refuses_whatever_is_not_ours(keys: Keys, tmp_path: Path) -> None:
    volume, two, ran = firmware.variables(keys), trio.CapacityLimiter(2), dict[str, Ran]()

    async def run(number: int, name: str) -> None:
        async with two:
            ran[name] = await secure.run(REFUSED[name](keys), volume, tmp_path / str(number))

    async with trio.open_nursery() as nursery:
        for number, name in enumerate(REFUSED):
            nursery.start_soon(run, number, name)
    otherwise = {name: found.serial[-500:] for name, found in ran.items() if found.verdict != "refused"}
    assert not otherwise


async def test_without_keys_the_same_firmware_boots_what_is_unsigned(tmp_path: Path) -> None:
    """So it was the keys that refused; and the kernel locks nothing down."""
    found = await secure.run(secure.image(), secure.without_keys(), tmp_path / "machine")
    assert found.verdict == "booted"
    assert found.said("lockdown") == "[none] integrity confidentiality"


def started_with(options: str) -> list[Variable]:
    """A boot option of the image on the disk, with a command line, and an order that begins with it."""
    bridge = struct.pack("<BBHII", 2, 1, 12, 0x0A0341D0, 0)
    disk = struct.pack("<BBHBB", 1, 1, 6, 0, 1)
    name = "\\EFI\\BOOT\\BOOTX64.EFI\0".encode("utf-16-le")
    file = struct.pack("<BBH", 4, 4, 4 + len(name)) + name
    path = bridge + disk + file + struct.pack("<BBH", 0x7F, 0xFF, 4)
    title = "meddled\0".encode("utf-16-le")
    option = struct.pack("<IH", 1, len(path)) + title + path + options.encode("utf-16-le") + b"\0\0"
    order = Variable("BootOrder", varstore.GLOBAL, struct.pack("<H", 0x77), 7)
    return [Variable("Boot0077", varstore.GLOBAL, option, 7), order]


@pytest.mark.parametrize("secure_boot", [True, False])
async def test_no_other_command_line_comes_in_from_outside(
    keys: Keys, tmp_path: Path, secure_boot: bool
) -> None:
    """Without keys the same option is heeded, so it was one that counts."""
    volume = firmware.variables(keys) if secure_boot else secure.without_keys()
    meddled = varstore.append(volume, started_with(f"{secure.COMMAND_LINE} lockdown=none meddled=yes"))
    found = await secure.run(by(keys.db), meddled, tmp_path / "machine")
    assert found.verdict == "booted", found.serial[-500:]
    assert b"starting Boot0077" in found.serial
    assert ("meddled=yes" in found.said("cmdline")) != secure_boot
    assert (found.said("cmdline") == secure.COMMAND_LINE) == secure_boot


async def test_the_lists_are_not_changed_from_inside(keys: Keys, tmp_path: Path) -> None:
    meddler = firmware.sign(secure.image(MEDDLING), keys)
    found = await secure.run(meddler, firmware.variables(keys), tmp_path / "machine")
    assert found.verdict == "booted", found.serial[-500:]
    assert found.said("on").split()[-1] == "01"
    assert found.said("unlock") == " 0", "a file that is immutable says nothing of the firmware"
    assert "Permission denied" in found.said("write")
    assert "can't remove" in found.said("remove")
    assert found.said("after") == found.said("before")
    left = {v.name: v.data for v in varstore.read((tmp_path / "machine" / "vars.fd").read_bytes())}
    assert left["db"] == varstore.certificates(keys.db.certificate)
    assert "Mine" in left, "variables that nobody guards can be written, so the others could have been"


async def test_silence_is_an_error_and_no_refusal(keys: Keys, tmp_path: Path) -> None:
    silent = firmware.sign(secure.image(SILENT), keys)
    found = await secure.run(silent, firmware.variables(keys), tmp_path / "machine", limit=20)
    assert found.verdict == "error"
    assert found.seconds >= 20


async def test_what_is_measured_is_the_same_at_every_boot(keys: Keys, tmp_path: Path) -> None:
    signed = firmware.sign(secure.image(), keys)
    numbers = (0, 2, 4, 7, 11)
    ran: list[Ran] = []

    async def run(n: int) -> None:
        ran.append(await secure.run(signed, firmware.variables(keys), tmp_path / str(n), measured=numbers))

    async with trio.open_nursery() as nursery:
        for n in range(2):
            nursery.start_soon(run, n)
    assert ran[0].pcrs == ran[1].pcrs
    assert all(found.verdict == "booted" for found in ran)
