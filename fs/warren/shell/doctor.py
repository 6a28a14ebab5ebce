"""doctor: what this host has, and what each lack costs

    warren doctor [--json]

One line for each thing that some part of Warren can use: whether it is here, what is known of it, and
if it is lacking, what that costs and how it is had. What can be tried is tried: an accelerator has to boot
a tiny image faster than QEMU does without it. Nothing is changed, and nothing here is needed by all.

    ok        it is here and works
    lacking   it is not here
    broken    it is here and does not work

The exit code is 0 unless Warren itself cannot run. --json prints one object for each thing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from warren.shell import exits, output
from warren.shell.arguments import Parser, add_json

OK, LACKING, BROKEN = "ok", "lacking", "broken"
_NULL = subprocess.DEVNULL
_OVMF = ("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_CODE_4M.fd")


class Finding(NamedTuple):
    """One thing: its state, what is known, what its lack costs, the way out."""

    state: str
    says: str
    costs: str = ""
    way_out: str = ""


def declare(parser: Parser) -> None:
    add_json(parser)


def run(args: Namespace) -> int:
    code = exits.OK
    for name, look in CHECKS.items():
        found = look()
        if args.json:
            output.document({"thing": name, **found._asdict()})
        else:
            output.line(f"{found.state:<8} {name:<12} {found.says}")
            if found.state != OK:
                output.line(f"{'':<21} costs: {found.costs}")
                output.line(f"{'':<21} way out: {found.way_out}")
        if name == "python" and found.state != OK:
            code = exits.UNAVAILABLE
    return code


def _python() -> Finding:
    here = ".".join(map(str, sys.version_info[:3]))
    missing = [name for name in ("trio", "msgspec", "cryptography") if find_spec(name) is None]
    if missing:
        return Finding(BROKEN, f"{here} without {', '.join(missing)}", "everything", "make setup")
    return Finding(OK, f"{here} at {sys.executable}")


def _fuse() -> Finding:
    costs = "no mounts; warren ls, cat and write work without"
    if not os.path.exists("/dev/fuse"):
        return Finding(LACKING, "there is no /dev/fuse", costs, "load the module: modprobe fuse")
    if os.geteuid() == 0:
        try:
            os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
        except OSError as e:
            why = os.strerror(e.errno or 0)
            return Finding(BROKEN, f"/dev/fuse: {why}", costs, "a container must be given the device")
        return Finding(OK, "/dev/fuse opens, and root mounts without help")
    helper = shutil.which("fusermount3") or shutil.which("fusermount")
    if helper is None:
        return Finding(LACKING, "no fusermount3, which mounts for users", costs, "install the package fuse3")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return Finding(BROKEN, "you may not open /dev/fuse", costs, "as root: chmod 666 /dev/fuse")
    return Finding(OK, f"{helper} mounts for users")


def _v9fs() -> Finding:
    costs = "this kernel cannot mount 9P by itself; warren mount does it through FUSE"
    kernel = os.uname().release
    if "\t9p\n" in Path("/proc/filesystems").read_text():
        return Finding(OK, f"Linux {kernel} mounts 9P by itself")
    modules = Path("/lib/modules", kernel)
    if any(modules.glob("kernel/fs/9p/9p.ko*")):
        return Finding(OK, f"Linux {kernel} has it as a module: modprobe 9pnet_fd 9p")
    return Finding(LACKING, f"Linux {kernel} has no 9P client", costs, "boot a kernel that has the module 9p")


def _program(name: str, costs: str, package: str) -> Callable[[], Finding]:
    def look() -> Finding:
        path = shutil.which(name)
        if path is None:
            return Finding(LACKING, f"no {name}", costs, f"install the package {package}")
        try:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5, stdin=_NULL)
        except (OSError, subprocess.TimeoutExpired) as e:
            return Finding(BROKEN, f"{path}: {e}", costs, f"install the package {package} again")
        first = (said.stdout or said.stderr).strip().partition("\n")[0]
        return Finding(OK, first or path)

    return look


def _accelerator() -> Finding:
    import trio
    from warren.boot.machines.probe import accelerator

    costs = "machines run under QEMU's interpreter, ten to a hundred times slower"
    found = trio.run(accelerator, "kvm")
    if found.works:
        return Finding(OK, f"kvm boots the probe image in {found.seconds * 1000:.0f} ms")
    here = os.path.exists("/dev/kvm")
    way_out = "inside a machine, ask for nested virtualisation" if here else "see the firmware's settings"
    return Finding(BROKEN if here else LACKING, f"kvm: {found.why}", costs, way_out)


def _ovmf() -> Finding:
    for path in _OVMF:
        if os.path.exists(path):
            return Finding(OK, path)
    costs = "no UEFI machines, no Secure Boot"
    return Finding(LACKING, "no OVMF firmware", costs, "install the package ovmf")


def _qmp() -> Finding:
    from warren.boot.machines import qmp

    if why := qmp.lacking():
        costs = "no machines but those of libvirt, no boot images"
        return Finding(LACKING, why.partition(":")[0], costs, why.partition(": ")[2])
    return Finding(OK, "qemu.qmp, by which QEMU is told things, can be loaded")


def _libvirt() -> Finding:
    from warren.boot.libvirt import library as libvirt

    if why := libvirt.lacking():
        way_out = "install libvirt-dev, pkg-config and gcc, then warren-9p[libvirt]"
        return Finding(LACKING, why.partition(";")[0], "machines are run by QEMU alone", way_out)
    return Finding(OK, "its library can be loaded; /vm/backends says whether it runs machines")


def _gpu() -> Finding:
    costs = "work for a GPU falls back to processors, or is refused"
    devices = sorted(p.name for p in Path("/dev").glob("nvidia[0-9]*"))
    if not devices:
        return Finding(LACKING, "no NVIDIA device", costs, "none for this host; another may lend its own")
    if shutil.which("nvidia-smi") is None:
        return Finding(BROKEN, f"{', '.join(devices)} without a driver's tools", costs, "install the driver")
    return Finding(OK, ", ".join(devices))


def _cgroups() -> Finding:
    costs = "limits on processors and memory are those of rlimits alone"
    unified = Path("/sys/fs/cgroup/cgroup.controllers")
    if unified.exists() and {"cpu", "memory"} <= set(unified.read_text().split()):
        return Finding(OK, "version 2, with cpu and memory")
    older = [name for name in ("cpu", "memory", "pids") if Path("/sys/fs/cgroup", name).is_dir()]
    if {"cpu", "memory"} <= set(older):
        return Finding(OK, f"version 1, with {', '.join(older)}")
    return Finding(LACKING, "no cgroups with cpu and memory", costs, "mount them at /sys/fs/cgroup")


def _files() -> Finding:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        costs = "fewer connections than the limits of a role allow"
        return Finding(LACKING, f"a process may open {hard} files", costs, "raise the hard limit: ulimit -Hn")
    return Finding(OK, f"a process may open {hard} files")


CHECKS: dict[str, Callable[[], Finding]] = {
    "python": _python,
    "files": _files,
    "fuse": _fuse,
    "v9fs": _v9fs,
    "qemu": _program("qemu-system-x86_64", "no machines, no boot images", "qemu-system-x86"),
    "qmp": _qmp,
    "accelerator": _accelerator,
    "ovmf": _ovmf,
    "libvirt": _libvirt,
    "cgroups": _cgroups,
    "jail": _program("bwrap", "programs are confined by their namespace alone", "bubblewrap"),
    "nats": _program("nats-server", "stores are of one machine: SQLite", "nats-server"),
    "gpu": _gpu,
}
