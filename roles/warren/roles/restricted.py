"""A restricted role: what runs where a role's files could not be proved.

    restricted(role, why)

It keeps its name, so that whoever looks finds it where it should be, and `restricted` says why. All else
is restricted.role of the package, whatever the files in STATE/roles say: no one dials it and it dials no
one, nothing is posted in its /srv, it sees only its own /dev /proc /role /log, and nobody but the user of its
own machine reads them, drains it, or bids it look at its files again.
"""

from __future__ import annotations

import dataclasses

from warren.roles.library import PACKAGE, Shelf
from warren.roles.manifest import Manifest, parse_role

FILE = "restricted.role"


def restricted(role: str, why: str) -> Manifest:
    """What may still run under the name of a role that may not run as its files say."""
    shelf = Shelf()
    text = f"role {role}\n{shelf.read(FILE)}"
    made = parse_role(text, "restricted", include=shelf.read)
    parts = tuple(part._replace(source=PACKAGE) for part in made.parts)
    return dataclasses.replace(made, source=PACKAGE, parts=parts, restricted=why)
