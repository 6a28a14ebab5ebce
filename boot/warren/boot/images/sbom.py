"""What is in an image, for machines: a CycloneDX 1.5 document.

    text = sbom(name, version, parts, serial)

A part is a Component: what it is, where it comes from (a purl), its sum, and the licences that it names
itself. A licence in SPDX's words is an `id`, a whole expression is an `expression`, and what is neither stays
a name. There is no time in the document, and its serial number comes of the inputs, so the same image has
the same one.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import quote

FORMAT: Final = "1.5"
NAMESPACE: Final = uuid.UUID("6f6d5f0e-5c0b-5d1b-9d0a-77617272656e")
# Those that are met here. An identifier that is not SPDX's makes the document invalid.
SPDX: Final = frozenset((
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "GPL-2.0-only", "GPL-2.0-or-later",
    "GPL-3.0-only", "GPL-3.0-or-later", "ISC", "LGPL-2.0-or-later", "LGPL-2.1-only", "LGPL-2.1-or-later",
    "MIT", "MPL-2.0", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib",
))  # fmt: skip
_EXPRESSION: Final = re.compile(r"[A-Za-z0-9.+-]+( (OR|AND|WITH) [A-Za-z0-9.+-]+)+")


class Component(NamedTuple):
    """A part of an image. KIND is of CycloneDX: application, library, operating-system, firmware, file."""

    kind: str
    name: str
    version: str
    purl: str = ""
    sha256: str = ""
    licences: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        return self.purl or f"{self.kind}:{self.name}@{self.version}"


def debian(name: str, version: str, suite: str, sha256: str, licences: tuple[str, ...]) -> Component:
    where = f"?arch=amd64&distro=debian-{quote(suite, safe='')}"
    kind = "operating-system" if name.startswith("linux-image-") else "library"
    purl = f"pkg:deb/debian/{_part(name)}@{_part(version)}{where}"
    return Component(kind, name, version, purl, sha256, licences)


def wheel(name: str, version: str, sha256: str, licences: tuple[str, ...]) -> Component:
    purl = f"pkg:pypi/{_part(name.lower().replace('_', '-'))}@{_part(version)}"
    return Component("library", name, version, purl, sha256, licences)


def _part(text: str) -> str:
    return quote(text, safe="~.-_+").replace("+", "%2B")


def sbom(name: str, version: str, parts: Iterable[Component], serial: str) -> str:
    """The document. SERIAL says what it is of: the sum of the image's inputs."""
    own = Component("operating-system", name, version, licences=("Apache-2.0",))
    found = sorted(set(parts), key=lambda part: part.reference)
    document = {
        "$schema": f"http://cyclonedx.org/schema/bom-{FORMAT}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": FORMAT,
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, serial)}",
        "version": 1,
        "metadata": {
            "component": _said(own),
            "tools": {"components": [{"type": "application", "name": "warren", "version": version}]},
        },
        "components": [_said(part) for part in found],
        "dependencies": [
            {"ref": own.reference, "dependsOn": [part.reference for part in found]},
            *({"ref": part.reference} for part in found),
        ],
    }
    return json.dumps(document, indent=1, ensure_ascii=True) + "\n"


def _said(part: Component) -> dict[str, object]:
    made: dict[str, object] = {
        "type": part.kind, "bom-ref": part.reference, "name": part.name, "version": part.version,
    }  # fmt: skip
    if part.sha256:
        made["hashes"] = [{"alg": "SHA-256", "content": part.sha256}]
    if part.licences:
        made["licenses"] = _licences(part.licences)
    if part.purl:
        made["purl"] = part.purl
    return made


def _licences(named: tuple[str, ...]) -> list[dict[str, object]]:
    """One expression, or any number of licences: the format has no mixture of both."""
    if len(named) == 1 and _EXPRESSION.fullmatch(named[0]):
        return [{"expression": named[0]}]
    return [{"license": {"id" if one in SPDX else "name": one}} for one in named]
