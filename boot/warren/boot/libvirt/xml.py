"""A machine as libvirt wants it described: XML, made of a recipe and what boots.

    text = domain(recipe, Parts(name=..., uuid=..., console=..., channel=..., kernel=...))

Nothing is in it that was not asked for: no network, no display, no USB, no balloon. Text goes in as text:
every name and path is an element's or an attribute's value, escaped by the standard library, and what XML
cannot carry at all is refused. The words for QEMU itself, which libvirt passes on unseen, are fixed.

`seclabel` is none: the driver of our own confines by no SELinux or AppArmor. What holds is that QEMU runs as
our user, with its own system call filter, in a folder that nobody else can enter.

libvirt knows PCs with their usual firmware. For a recipe of something smaller the one for a PC is taken, if
there is one: see `suitable`.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from warren.boot.machines.qemu import DEBUG_EXIT, EXPORT, LONGEST_CMDLINE, Drive
from warren.boot.machines.recipe import Recipe, load, names
from warren.tree import Refused

_QEMU: Final = "http://libvirt.org/schemas/domain/qemu/1.0"
_ON: Final = {"on": "on", "off": "off", "yes": "on", "no": "off"}
# What XML 1.0 has no way to write, and what nobody needs in a name: control characters, halves of pairs.
_UNSPEAKABLE: Final = re.compile("[\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class Parts:
    """What one machine is made of, beside its recipe. Paths of sockets: QEMU connects to them."""

    name: str
    uuid: str
    console: Path
    channel: Path
    emulator: str
    export: Path | None = None
    accel: str = "tcg"
    mem: int = 0  # bytes; the recipe's if 0, as for cpus
    cpus: int = 0
    kernel: Path | None = None
    initrd: Path | None = None
    cmdline: str = ""
    drives: tuple[Drive, ...] = ()


def suitable(recipe: Recipe) -> Recipe:
    """The recipe, or the one for a usual PC in its place. Refused (405) if libvirt cannot do it."""
    if recipe.machine.split(",")[0] == "microvm" or recipe.bios:
        other = f"{recipe.name.partition('-')[0]}-pc"
        if other not in names() or other == recipe.name:
            raise Refused(405, f"libvirt has PCs only; {recipe.name} is none: use qemu-tcg")
        recipe = load(other)
    if recipe.boots != "kernel":
        raise Refused(405, f"{recipe.name} boots from a disk, and libvirt gets a kernel: use qemu-tcg")
    if recipe.bus == "mmio":
        raise Refused(405, f"libvirt has no {recipe.bus} bus on a PC: use qemu-tcg")
    return recipe


def domain(recipe: Recipe, parts: Parts) -> str:
    """The machine. Raises Refused: 400 for text that cannot be in it, 405 for what libvirt has not got."""
    cmdline = " ".join(part for part in (recipe.cmdline, parts.cmdline) if part)
    if len(cmdline.encode(errors="surrogateescape")) > LONGEST_CMDLINE:
        raise Refused(413, f"a kernel's command line has at most {LONGEST_CMDLINE} bytes")
    if parts.kernel is None:
        raise Refused(400, f"the recipe {recipe.name} boots a kernel; say which")
    ET.register_namespace("qemu", _QEMU)
    top = ET.Element("domain", type="kvm" if parts.accel == "kvm" else "qemu")
    _text(top, "name", parts.name)
    _text(top, "uuid", parts.uuid)
    _text(top, "memory", str(parts.mem or recipe.mem), unit="b")
    _text(top, "vcpu", str(parts.cpus or recipe.cpus))
    machine, *options = recipe.machine.split(",")
    system = ET.SubElement(top, "os")
    _text(system, "type", "hvm", arch="x86_64", machine=machine)
    _text(system, "kernel", str(parts.kernel))
    if parts.initrd is not None:
        _text(system, "initrd", str(parts.initrd))
    if cmdline:
        _text(system, "cmdline", cmdline)
    _features(top, recipe, options)
    _processor(top, recipe)
    ET.SubElement(top, "clock", offset="utc")
    # A guest that wants to begin again ends, as everywhere in Warren; the machine sees to that, because this
    # line would hold for the reset button, too.
    for what, then in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        _text(top, what, then)
    _devices(top, recipe, parts)
    ET.SubElement(top, "seclabel", type="none")
    _own_words(top, recipe)
    return ET.tostring(top, encoding="unicode")


def _features(top: ET.Element, recipe: Recipe, options: list[str]) -> None:
    said = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in {"acpi", "smm"} or value not in _ON:
            raise Refused(405, f"libvirt has no word for {option!r} of {recipe.name}: use qemu-tcg")
        said[key] = _ON[value]
    features = ET.SubElement(top, "features")
    if said.get("acpi", "on") == "on":
        ET.SubElement(features, "acpi")
    if "smm" in said:
        ET.SubElement(features, "smm", state=said["smm"])


def _processor(top: ET.Element, recipe: Recipe) -> None:
    model, *flags = recipe.cpu.split(",")
    if model in {"max", "host"}:
        cpu = ET.SubElement(top, "cpu", mode="maximum" if model == "max" else "host-passthrough")
    else:
        cpu = ET.SubElement(top, "cpu", mode="custom", match="exact", check="none")
        _text(cpu, "model", model, fallback="allow")
    for flag in flags:
        on = not flag.startswith("-") and flag.partition("=")[2] not in {"off", "no"}
        name = flag.lstrip("+-").partition("=")[0]
        ET.SubElement(cpu, "feature", policy="require" if on else "disable", name=_plain(name))


def _devices(top: ET.Element, recipe: Recipe, parts: Parts) -> None:
    devices = ET.SubElement(top, "devices")
    _text(devices, "emulator", parts.emulator)
    ET.SubElement(devices, "controller", type="usb", model="none")
    virtio = recipe.channel == "virtio" or parts.export is not None
    if virtio:
        ET.SubElement(devices, "controller", type="virtio-serial", index="0", ports="4")
    _line(devices, "serial", parts.console, type="isa-serial", port="0")
    if recipe.channel == "serial":
        _line(devices, "serial", parts.channel, type="isa-serial", port="1")
    else:
        # The first console is by definition the first serial line; the guest calls the second one hvc0.
        _line(devices, "console", parts.console, type="serial", port="0")
        _line(devices, "console", parts.channel, type="virtio", port="1")
    if parts.export is not None:
        _line(devices, "channel", parts.export, type="virtio", name=EXPORT)
    for number, drive in enumerate(parts.drives):
        if number >= 26:
            raise Refused(413, "a machine has at most 26 disks")
        disk = ET.SubElement(devices, "disk", type="file", device="disk")
        ET.SubElement(disk, "driver", name="qemu", type=_plain(drive.format))
        ET.SubElement(disk, "source", file=_plain(str(drive.file)))
        ET.SubElement(disk, "target", dev=f"vd{chr(ord('a') + number)}", bus="virtio")
        if drive.read_only:
            ET.SubElement(disk, "readonly")
    ET.SubElement(devices, "memballoon", model="none")


def line_names(recipe: Recipe) -> dict[str, str]:
    """What libvirt calls the lines for 9P before QEMU."""
    channel = "charserial1" if recipe.channel == "serial" else "charconsole1"
    return {"channel": channel, "export": "charchannel0"}


def _own_words(top: ET.Element, recipe: Recipe) -> None:
    """What libvirt has no element for, in QEMU's words."""
    if recipe.exits:
        line = ET.SubElement(top, f"{{{_QEMU}}}commandline")
        for word in ("-device", f"isa-debug-exit,iobase={DEBUG_EXIT:#x},iosize=4"):
            ET.SubElement(line, f"{{{_QEMU}}}arg", value=word)


def _line(devices: ET.Element, kind: str, path: Path, **target: str) -> None:
    line = ET.SubElement(devices, kind, type="unix")
    ET.SubElement(line, "source", mode="connect", path=_plain(str(path)))
    ET.SubElement(line, "target", target)


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = _plain(text)


def _plain(text: str) -> str:
    if found := _UNSPEAKABLE.search(text):
        raise Refused(400, f"{found[0]!r} cannot be in what libvirt is told; it is in {text[:200]!r}")
    return text


__all__ = ["Parts", "domain", "line_names", "suitable"]
