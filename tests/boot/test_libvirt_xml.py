"""What libvirt is told of a machine: what was asked for, as text, and nothing else."""

import uuid
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from warren.boot.libvirt.xml import Parts, domain, suitable
from warren.boot.machines.qemu import EXPORT, Drive
from warren.boot.machines.recipe import Recipe, load, names
from warren.tree import Refused

HOSTILE = "a\"b'c<d>e&f]]>g,h=i $(j) ünïcode"


def parts(**given: object) -> Parts:
    lines = Path("/p/console"), Path("/p/channel")
    usual = Parts("name", str(uuid.uuid4()), *lines, "/usr/bin/qemu", kernel=Path("/k"))
    return replace(usual, **given)  # type: ignore[arg-type]


def described(recipe: Recipe, **given: object) -> ET.Element:
    return ET.fromstring(domain(recipe, parts(**given)))


def test_nothing_is_in_a_machine_that_nobody_asked_for() -> None:
    top = described(load("standin-pc"))
    devices = top.find("devices")
    assert devices is not None
    assert sorted(d.tag for d in devices) == ["controller", "emulator", "memballoon", "serial", "serial"]
    assert [d.get("model") for d in devices if d.tag in {"controller", "memballoon"}] == ["none", "none"]
    for absent in ("interface", "graphics", "video", "input", "hostdev", "filesystem", "rng", "sound"):
        assert top.find(f".//{absent}") is None
    assert top.find("seclabel") is not None


@pytest.mark.parametrize("where", ["name", "kernel", "initrd", "cmdline", "console", "export", "drives"])
def test_hostile_text_stays_text(where: str) -> None:
    drives = (Drive(Path("/d")),)
    given: dict[str, object] = {"initrd": Path("/i"), "cmdline": "c", "export": Path("/e"), "drives": drives}
    plain = described(load("linux-pc"), **given)
    path = Path("/", HOSTILE)
    given[where] = {"name": HOSTILE, "cmdline": HOSTILE, "drives": (Drive(path),)}.get(where, path)
    hostile = described(load("linux-pc"), **given)
    assert [e.tag for e in hostile.iter()] == [e.tag for e in plain.iter()]
    said = [e.text or "" for e in hostile.iter()] + [v for e in hostile.iter() for v in e.attrib.values()]
    assert any(text.endswith(HOSTILE) for text in said)


@pytest.mark.parametrize("bad", ["\0", "\n", "\x1b", "\x7f", "\udc80", "\uffff"])
def test_what_xml_cannot_carry_is_refused(bad: str) -> None:
    for given in ({"name": f"a{bad}"}, {"kernel": Path(f"/a{bad}")}, {"cmdline": f"a{bad}"}):
        with pytest.raises(Refused) as refused:
            described(load("standin-pc"), **given)
        assert refused.value.code == 400


def test_a_recipe_is_a_description() -> None:
    odd = replace(load("standin-pc"), machine="q35,smm=on,acpi=off", cpu="qemu64,+fsgsbase,-xsave")
    top = described(replace(odd, cmdline="first"), accel="kvm", mem=96 << 20, cpus=3, cmdline="second")
    assert top.get("type") == "kvm"
    kind = top.find("os/type")
    assert kind is not None
    assert kind.get("machine") == "q35"
    assert [e.tag for e in top.find("features") or ()] == ["smm"]
    assert [(f.get("name"), f.get("policy")) for f in top.iter("feature")] == [
        ("fsgsbase", "require"), ("xsave", "disable"),
    ]  # fmt: skip
    assert (top.findtext("memory"), top.findtext("vcpu")) == (str(96 << 20), "3")
    assert top.findtext("os/cmdline") == "first second"


def test_a_channel_on_virtio_is_a_console_and_an_export_is_a_port() -> None:
    top = described(load("linux-pc"), export=Path("/p/export"))
    port = top.find("devices/channel/target")
    assert port is not None
    assert port.get("name") == EXPORT
    assert [e.get("type") for e in top.iterfind("devices/console/target")] == ["serial", "virtio"]
    assert [e.get("path") for e in top.iterfind("devices/console/source")] == ["/p/console", "/p/channel"]


@pytest.mark.parametrize("name", [name for name in names() if load(name).boots == "kernel"])
def test_every_recipe_with_a_kernel_has_its_machine(name: str) -> None:
    found = suitable(load(name))
    assert described(found).findtext("os/kernel") == "/k"
    assert (found.channel, found.exits, found.export) == (
        load(name).channel, load(name).exits, load(name).export,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"boots": "disk"}, 405),
        ({"name": "odd-pc", "bios": "qboot.rom"}, 405),
        ({"name": "standin-pc", "bios": "qboot.rom"}, 405),
        ({"bus": "mmio"}, 405),
        ({"name": "odd-microvm", "machine": "microvm"}, 405),
        ({"machine": "pc,vmport=off"}, 405),
        ({"cmdline": "x" * 2048}, 413),
    ],
)
def test_what_libvirt_cannot_do_is_refused(change: dict[str, object], code: int) -> None:
    with pytest.raises(Refused) as refused:
        described(suitable(replace(load("standin-pc"), **change)))  # type: ignore[arg-type]
    assert refused.value.code == code


def test_a_kernel_there_must_be() -> None:
    with pytest.raises(Refused) as refused:
        described(load("standin-pc"), kernel=None)
    assert refused.value.code == 400
