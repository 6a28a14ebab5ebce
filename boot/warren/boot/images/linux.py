"""The Linux role image, put together from packages.

    made = assemble(recipe, lock, inputs, portions, signer, keys)      word -> (file, bytes)

    kernel     the kernel as an ELF with a PVH entry, for `-kernel`: unpacking it emulated costs seconds
    vmlinuz    the kernel as Debian signed it
    initrd     two archives, one behind the other: the system, and Warren
    cmdline    the kernel's command line, with the key that roles must be signed with
    uki        all of it in one EFI program, signed for Secure Boot
    esp        a FAT disk that firmware boots it from

The system is what the recipe keeps of the Debian packages, and the wheels, and the kernel's modules; of
Python only what is compiled, since an archive without times would have every other kind compiled again at
each start. Debian's own interpreter compiles, by its own loader, so it does not matter what runs here. It
is asked as well whether the first process can be imported: what is missing is found now and not in a machine.

Nothing is installed, so no package's script runs, here or there.
"""

from __future__ import annotations

import lzma
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from warren.boot.formats import esp, initramfs, uki
from warren.boot.formats.initramfs import Entry
from warren.boot.images import packages
from warren.boot.images.inputs import Lock
from warren.boot.images.manifest import Signer
from warren.boot.secure import firmware
from warren.tree.errors import Refused

FIRST, SECOND = "warren.roles.init", "warren.roles.inside"  # the first process, and the role it starts
PYTHON: Final = "usr/bin/python3.11"
STDLIB: Final = "usr/lib/python3.11"
PACKAGES: Final = "usr/lib/python3/dist-packages"
LOADER: Final = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
INIT: Final = f"""#!/{PYTHON} -IS
import sys
sys.path.append("/{PACKAGES}")
from {FIRST} import main
main()
"""
ETC: Final = {
    "etc/passwd": b"root:x:0:0:root:/:/nonexistent\nwarren:x:1000:1000:warren:/tmp:/nonexistent\n",
    "etc/group": b"root:x:0:\nwarren:x:1000:\n",
    "etc/hostname": b"guest\n",
}
PLACES: Final = ("dev", "proc", "sys", "run", "n/hive")
LEFT_OUT: Final = ("shell", "check", "boot")  # portions of warren that a machine has no use for
KEPT: Final = (".py", ".ns", ".role", ".toml")
_XZ, _ZSTD = b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_PATIENCE: Final = 600.0

Progress = Callable[[str], None]
Outputs = dict[str, tuple[str, bytes]]


@dataclass(frozen=True)
class Linux:
    """What images/linux.toml says."""

    suite: str
    kernel: str
    packages: tuple[str, ...]
    wheels: tuple[str, ...]
    keep: tuple[str, ...]
    drop: tuple[str, ...]
    modules: tuple[str, ...]
    cmdline: str

    @classmethod
    def read(cls, said: Mapping[str, Any]) -> Linux:
        """From the recipe's table; Refused for what is missing, unknown or of another kind."""
        texts, lists = ("suite", "kernel", "cmdline"), ("packages", "wheels", "keep", "drop", "modules")
        if odd := set(said) ^ {*texts, *lists}:
            raise Refused(422, f"{', '.join(sorted(odd))}: a linux recipe has {', '.join((*texts, *lists))}")
        for name in texts:
            if not isinstance(said[name], str) or not said[name].isprintable():
                raise Refused(422, f"{name} is no line of text")
        for name in lists:
            if not isinstance(said[name], list) or not all(isinstance(one, str) for one in said[name]):
                raise Refused(422, f"{name} is no list of texts")
        made: dict[str, Any] = {name: tuple(said[name]) for name in lists}
        return cls(**{name: said[name] for name in texts}, **made)


def system(recipe: Linux, lock: Lock, inputs: Path, progress: Progress) -> bytes:
    """The archive of everything that is not ours, compressed."""
    keep, drop = _matcher(recipe.keep), _matcher(recipe.drop)
    found: dict[str, Entry] = {}
    kernel = Path()
    for pin in lock.pins:
        if pin.name.startswith("linux-image-"):
            kernel = inputs / pin.sha256
        elif pin.kind == "deb":
            for entry in packages.debian(inputs / pin.sha256):
                inner = entry.name.removeprefix(f"{STDLIB}/")
                if keep(entry.name) and not (inner != entry.name and drop(inner)):
                    found[entry.name] = entry
        else:
            for name, body in packages.wheel(inputs / pin.sha256):
                if not drop(name):
                    found[f"{PACKAGES}/{name}"] = initramfs.file(f"{PACKAGES}/{name}", body, 0o755)
    progress("compiling the standard library and the wheels")
    entries = _compiled(found.values(), None)
    modules = list(packages.modules(kernel, recipe.modules))
    order = "".join(f"/lib/modules/{name}.ko\n" for name, _ in modules)
    entries += [initramfs.file(f"lib/modules/{name}.ko", body) for name, body in modules]
    entries += [initramfs.file("lib/modules/order", order.encode())]
    entries += [initramfs.directory(name) for name in PLACES] + [initramfs.directory("tmp", 0o1777)]
    entries += [initramfs.file(name, body) for name, body in ETC.items()]
    entries += [initramfs.device("dev/console", 5, 1), initramfs.link("usr/bin/python3", "python3.11")]
    progress("packing the system")
    return initramfs.compressed(initramfs.cpio(entries))


def sources(portions: Iterable[Path]) -> dict[str, bytes]:
    """Warren as a machine gets it: name in `warren/…` -> contents, from the portions of the package."""
    found: dict[str, bytes] = {}
    for portion in portions:
        for path in sorted(portion.rglob("*")):
            name = path.relative_to(portion)
            idle = name.parts[0] in LEFT_OUT or "__pycache__" in name.parts
            if path.is_file() and not idle and name.suffix in KEPT:
                found[f"warren/{name.as_posix()}"] = path.read_bytes()
    return found


def ours(held: Mapping[str, bytes], base: bytes, progress: Progress) -> bytes:
    """The archive of Warren, compressed; BASE is the system's, whose Python compiles it."""
    progress("compiling warren")
    info = f"Metadata-Version: 2.1\nName: warren-9p\nVersion: {version('warren-9p')}\n".encode()
    entries = [initramfs.file(f"{PACKAGES}/{name}", body) for name, body in held.items()]
    entries.append(initramfs.file(f"{PACKAGES}/warren_9p-{version('warren-9p')}.dist-info/METADATA", info))
    made = _compiled(entries, base)
    made.append(initramfs.file("init", INIT.encode(), 0o755))
    return initramfs.compressed(initramfs.cpio(made))


def assemble(
    recipe: Linux, lock: Lock, inputs: Path, initrd: bytes, signer: Signer, keys: firmware.Keys,
    progress: Progress,
) -> Outputs:  # fmt: skip
    """Every file of the image, by its word. It takes seconds: in a thread."""
    (pin,) = (pin for pin in lock.pins if pin.name.startswith("linux-image-"))
    held = packages.members(inputs / pin.sha256)
    vmlinuz = next(body for name, body in held if name.startswith("boot/vmlinuz-"))
    cmdline = f"{recipe.cmdline} warren.key={signer.raw.hex()}"
    own = version("warren-9p")
    release = f'ID=warren\nNAME="Warren"\nVERSION_ID="{own}"\nPRETTY_NAME="Warren {own}"\n'
    progress("signing the EFI program")
    program = uki.build(uki.stub(), vmlinuz, initrd, cmdline, release, pin.name.removeprefix("linux-image-"))
    signed = firmware.sign(program, keys)
    progress("making the disk that firmware boots")
    return {
        "kernel": ("vmlinux", entered(vmlinuz)),
        "vmlinuz": ("vmlinuz", vmlinuz),
        "initrd": ("initrd", initrd),
        "cmdline": ("cmdline", f"{cmdline}\n".encode()),
        "uki": ("warren.efi", signed),
        "esp": ("esp.img", esp.build({"/EFI/BOOT/BOOTX64.EFI": signed})),
    }


def entered(bzimage: bytes) -> bytes:
    """The ELF inside a bzImage where it can be unpacked here, else the bzImage itself."""
    setup = (bzimage[0x1F1] or 4) + 1
    start = setup * 512 + int.from_bytes(bzimage[0x248:0x24C], "little")
    payload = bzimage[start : start + int.from_bytes(bzimage[0x24C:0x250], "little")]
    elf = b""
    if payload.startswith(_XZ):
        elf = lzma.LZMADecompressor().decompress(payload)  # the length behind the stream is left over
    elif payload.startswith(_ZSTD):
        elf = initramfs.inflated(payload[:-4])
    return elf if elf.startswith(b"\x7fELF") else bzimage


def _matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether one of the patterns is about a path."""
    made = []
    for pattern in patterns:
        parts = re.split(r"(\*\*/|\*\*|\*)", pattern)
        words = {"**/": r"(?:.*/)?", "**": ".*", "*": "[^/]*"}
        made.append("".join(words.get(part, re.escape(part)) for part in parts))
    return re.compile("|".join(made) or r"(?!)", re.DOTALL).fullmatch  # type: ignore[return-value]


# Python


def _compiled(entries: Iterable[Entry], base: bytes | None) -> list[Entry]:
    """ENTRIES with every Python source replaced by what it compiles to; BASE has the interpreter, if they
    have not. The sources' order and names alone decide what comes out."""
    entries = list(entries)
    with tempfile.TemporaryDirectory(prefix="warren-image-") as folder:
        root = Path(folder) / "root"
        for entry in [*(initramfs.listed(initramfs.inflated(base)) if base else ()), *entries]:
            _lay(root, entry)
        compiled = [e for e in entries if e.name.endswith(".py")]
        wanted = "".join(f"{e.name}\n" for e in sorted(compiled))
        _python(root, _COMPILE, wanted)
        if base is not None:
            _python(root, _CHECK, "")
        made = [e for e in entries if not e.name.endswith(".py")]
        return made + [initramfs.file(f"{e.name}c", (root / f"{e.name}c").read_bytes()) for e in compiled]


_COMPILE: Final = """
import py_compile, sys
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
for line in sys.stdin:
    name = line.strip()
    py_compile.compile(name, name + "c", "/" + name, doraise=True, invalidation_mode=mode)
"""

_CHECK: Final = f"""
import sys
sys.path.append("{PACKAGES}")
import {FIRST}, {SECOND}
for line in open("/proc/self/maps"):
    path = line.split()[-1]
    if ".so" in path and not path.startswith(sys.argv[1]):
        raise SystemExit(f"it needs {{path}}, which the recipe does not keep")
"""


def _python(root: Path, program: str, told: str) -> None:
    """Run PROGRAM by the Python in ROOT, with ROOT as its directory."""
    libraries = ":".join(str(root / name) for name in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"))
    interpreter = [str(root / LOADER), "--library-path", libraries, str(root / PYTHON)]
    command = [*interpreter, "-BS", "-c", program, str(root)]
    # Sets of names are written in the order of their hashes.
    environment = {"PYTHONHASHSEED": "0", "PYTHONHOME": str(root / "usr"), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        command, input=told.encode(), capture_output=True, timeout=_PATIENCE, cwd=root, env=environment
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise Refused(422, f"the image's own Python: {said[-1] if said else done.returncode}")


def _lay(root: Path, entry: Entry) -> None:
    """Put an entry where the interpreter finds it; links are within, devices are left out."""
    path = root / initramfs.plain(entry.name)
    # A link of a package may lead anywhere; what comes behind it would be written there.
    where = path.parent if stat.S_ISLNK(entry.mode) else path
    if not where.resolve().is_relative_to(root.resolve()):
        raise Refused(422, f"{entry.name} leads out of the image by a link; leave its package out")
    path.parent.mkdir(parents=True, exist_ok=True)
    if stat.S_ISREG(entry.mode):
        path.write_bytes(entry.body)
        path.chmod(stat.S_IMODE(entry.mode))
    elif stat.S_ISLNK(entry.mode) and not os.path.lexists(path):
        target = entry.body.decode()
        within = os.path.relpath(root / target.lstrip("/"), path.parent)
        path.symlink_to(within if target.startswith("/") else target)
