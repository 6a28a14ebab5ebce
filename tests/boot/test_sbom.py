"""SBOMs against the rules of CycloneDX 1.5, as far as our documents use them, and with the image's lock."""

import json
import re
from typing import Any

import pytest
from warren.boot.images.image import recipes_folder
from warren.boot.images.inputs import Lock
from warren.boot.images.sbom import SPDX, Component, debian, sbom, wheel

PARTS = [
    debian("libc6", "2.36-9+deb12u14", "bookworm", "a" * 64, ("GPL-2.0-only", "odd words")),
    debian("zlib1g", "1:1.2.13.dfsg-1", "bookworm", "b" * 64, ()),
    debian("linux-image-6.1.0-50-amd64", "6.1.176-1", "bookworm", "c" * 64, ("GPL-2.0-only",)),
    wheel("Sorted_Containers", "2.4.0", "d" * 64, ("MIT OR Apache-2.0",)),
    wheel("trio", "0.35.0", "e" * 64, ("MIT",)),
]
# Of the schema: what a component may be and have.
TYPES = {
    "application", "framework", "library", "container", "platform", "operating-system", "device",
    "device-driver", "firmware", "file", "machine-learning-model", "data",
}  # fmt: skip
FIELDS = {"type", "bom-ref", "name", "version", "hashes", "licenses", "purl"}
_WORD = r"[A-Za-z0-9.\-_~%]+"
PURL = re.compile(rf"pkg:[a-z]+(/{_WORD})+@{_WORD}(\?[a-z]+={_WORD}(&[a-z]+={_WORD})*)?")


def valid(document: dict[str, Any]) -> list[str]:
    """Everything that is against the rules."""
    wrong = []
    if (document.get("bomFormat"), document.get("specVersion")) != ("CycloneDX", "1.5"):
        wrong.append("format")
    if set(document) - {"$schema", "bomFormat", "specVersion", "serialNumber", "version", "metadata",
                        "components", "dependencies"}:  # fmt: skip
        wrong.append("fields")
    if not re.fullmatch(r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
                        document.get("serialNumber", "")):  # fmt: skip
        wrong.append("serial")
    if not isinstance(document.get("version"), int) or document["version"] < 1:
        wrong.append("version")
    every = [document["metadata"]["component"], *document["components"]]
    references = [part["bom-ref"] for part in every]
    if len(set(references)) != len(references):
        wrong.append("references")
    for part in every:
        wrong += [f"{part.get('name')}: {what}" for what in faults(part)]
    for edge in document["dependencies"]:
        if not {edge["ref"], *edge.get("dependsOn", ())} <= set(references):
            wrong.append(f"edge {edge['ref']}")
    return wrong


def faults(part: dict[str, Any]) -> list[str]:
    wrong = []
    if part.get("type") not in TYPES or not part.get("name") or set(part) - FIELDS:
        wrong.append("shape")
    for held in part.get("hashes", ()):
        if held["alg"] != "SHA-256" or not re.fullmatch(r"[0-9a-f]{64}", held["content"]):
            wrong.append("hash")
    licences = part.get("licenses", [])
    if any("expression" in one for one in licences) and len(licences) != 1:
        wrong.append("an expression stands alone")
    for one in licences:
        known = one.get("license", {})
        odd = known.keys() not in ({"id"}, {"name"}) or known.get("id", "MIT") not in SPDX
        if "license" in one and odd:
            wrong.append("licence")
    if "purl" in part and not PURL.fullmatch(part["purl"]):
        wrong.append(f"purl {part['purl']}")
    return wrong


def test_a_document_keeps_the_rules() -> None:
    document = json.loads(sbom("linux", "0.1.0", PARTS, "s"))
    assert valid(document) == []
    assert {part["name"] for part in document["components"]} == {part.name for part in PARTS}
    assert document["dependencies"][0]["dependsOn"] == sorted(part.reference for part in PARTS)


def test_packages_are_named_as_others_name_them() -> None:
    assert [part.purl for part in PARTS] == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64&distro=debian-bookworm",
        "pkg:deb/debian/zlib1g@1%3A1.2.13.dfsg-1?arch=amd64&distro=debian-bookworm",
        "pkg:deb/debian/linux-image-6.1.0-50-amd64@6.1.176-1?arch=amd64&distro=debian-bookworm",
        "pkg:pypi/sorted-containers@2.4.0",
        "pkg:pypi/trio@0.35.0",
    ]


def test_the_same_parts_give_the_same_bytes_and_other_inputs_another_serial() -> None:
    assert sbom("linux", "0.1.0", PARTS, "s") == sbom("linux", "0.1.0", reversed([*PARTS, *PARTS]), "s")
    assert sbom("linux", "0.1.0", PARTS, "s") != sbom("linux", "0.1.0", PARTS, "t")


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (("MIT",), [{"license": {"id": "MIT"}}]),
        (("GPL",), [{"license": {"name": "GPL"}}]),
        (("Apache-2.0 OR BSD-3-Clause",), [{"expression": "Apache-2.0 OR BSD-3-Clause"}]),
        (("MIT OR X11", "ISC"), [{"license": {"name": "MIT OR X11"}}, {"license": {"id": "ISC"}}]),
    ],
)
def test_licences_are_ids_names_or_one_expression(named: tuple[str, ...], said: list[object]) -> None:
    document = json.loads(sbom("x", "1", [Component("library", "one", "1", licences=named)], "s"))
    assert document["components"][0]["licenses"] == said
    assert valid(document) == []


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ('"specVersion": "1.5"', '"specVersion": "0.5"', "format"),
        ('"alg": "SHA-256"', '"alg": "MD5"', "libc6: hash"),
        ('"type": "library"', '"type": "thing"', "libc6: shape"),
        ('"id": "GPL-2.0-only"', '"id": "GPL"', "libc6: licence"),
        ("pkg:pypi/trio@0.35.0", "pypi trio", "trio: purl pypi trio"),
    ],
)
def test_the_rules_can_be_broken(old: str, new: str, wrong: str) -> None:
    text = sbom("linux", "0.1.0", PARTS, "s")
    assert old in text
    assert wrong in valid(json.loads(text.replace(old, new)))


def test_every_pinned_package_can_be_said() -> None:
    lock = Lock.parse((recipes_folder() / "linux.lock").read_text())
    parts = [
        debian(pin.name, pin.version, lock.suite, pin.sha256, ())
        if pin.kind == "deb" else wheel(pin.name, pin.version, pin.sha256, ())
        for pin in lock.pins
    ]  # fmt: skip
    document = json.loads(sbom("linux", "0.1.0", parts, "s"))
    assert valid(document) == []
    assert len(document["components"]) == len(lock.pins)
