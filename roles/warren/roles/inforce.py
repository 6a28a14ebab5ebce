"""What is in force in a role: its manifest, its policy and its namespace. Also the port behind /role.

A reload reads the role's file again and puts rows, limits and the namespace in force together, or nothing of
it. At /n stand, besides what the file says, the workers that have dialled in and what was posted in /srv.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from warren.auth.rights import Policy
from warren.namespaces import Space
from warren.namespaces.export import Cell
from warren.roles.changes import compare
from warren.roles.library import Shelf
from warren.roles.manifest import BadRole, Manifest, NoRole, load_role, parse_role
from warren.roles.reach import Way
from warren.roles.restricted import restricted
from warren.roles.signature import NO, proved
from warren.tree import Refused

if TYPE_CHECKING:
    from warren.roles.run import Role

RESTRICTED = "restricted"


class InForce:
    """The manifest in force and what comes of it."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.wanted = role.hive.roles[role.name]
        self.manifest, self.verified = self._first()
        self.loaded = role.clock.now()
        self.cell = Cell(Space())
        self.guests: dict[str, str] = {}  # what stands at /n, by name: its address

    # The manifest

    def _read(self, file: str) -> tuple[Manifest, str]:
        """FILE as it is now, if it is of this role, and how it was verified; BadRole or NoRole."""
        found = load_role(self.wanted, [self.role.state.roles], f"{file}.role")
        return proved(found, self.role.state.directory / "pki")

    def _first(self) -> tuple[Manifest, str]:
        """What may run. A file that does not hold leaves a role that says so and does little else."""
        try:
            manifest, verified = self._read(self.wanted)
        except (BadRole, NoRole) as e:
            manifest, verified = restricted(self.wanted, _said(e)), NO
        if manifest.restricted:
            self.role.tell(f"restricted: {manifest.restricted}")
        return manifest, verified

    def policy(self) -> Policy:
        """The rows, about members of this hive."""
        return self.manifest.policy.in_hive(self.role.identity.hive)

    async def reload(self) -> str:
        """Read the role's file again and put it in force. BadRole leaves what was."""
        return await self.load(self.wanted)

    async def load(self, name: str) -> str:
        """As reload, from the file of that name."""
        try:
            manifest, verified = self._read(name)
        except NoRole as e:
            raise Refused(404, _said(e)) from None
        if manifest.restricted and not self.manifest.restricted:
            raise Refused(403, f"{manifest.restricted}; what was in force stays so")
        said = compare(self.manifest, manifest)
        self.manifest, self.verified, self.loaded = manifest, verified, self.role.clock.now()
        self.role.export.limits = manifest.limits
        self.role.export.replace(self.policy())
        self.compose()
        self.role.log.event("reloaded", sha256=manifest.sha256[:16], changes=len(said.splitlines()))
        return said

    def validate(self, text: str) -> str:
        """What would change if TEXT were the role's file. BadRole if it is none."""
        shelf = Shelf([self.role.state.roles])
        made = parse_role(text, "validate", include=shelf.read, include_roles=shelf.read, role=self.wanted)
        return compare(self.manifest, made)

    # What is shown of it

    def text(self) -> str:
        return self.manifest.text

    def rows(self) -> str:
        return "".join(f"{row}\n" for row in self.manifest.policy.rows)

    def ns(self) -> str:
        return self.cell.space.lines()

    def status(self) -> Mapping[str, object]:
        manifest, role = self.manifest, self.role
        return {
            "role": manifest.role, "name": role.name, "state": role.lifecycle.state,
            "policy_rows": len(manifest.policy.rows), "manifest_sha256": manifest.sha256,
            "manifest": manifest.source, "loaded": time.strftime("%FT%TZ", time.gmtime(self.loaded)),
            "verified": self.verified, "restricted": manifest.restricted or "no",
            "revocation": str(role.export.freshness or "unwatched").removeprefix("revocation="),
        }  # fmt: skip

    # The namespace

    def compose(self) -> None:
        """The manifest's namespace, with whoever is there now at /n."""
        space = self.manifest.space
        for name, address in sorted(self.guests.items()):
            space = space.mount(address, f"/n/{name}", flags="c")
        self.cell.space = space
        if self.manifest.restricted:
            self.role.lifecycle.degrade(RESTRICTED, self.manifest.restricted)
        else:
            self.role.lifecycle.recover(RESTRICTED)

    def here(self, name: str, here: bool) -> None:
        """A worker has dialled in, or is gone. Its name is its own, whoever posted something under it."""
        ways = self.role.reach.ways
        if here:
            ways[f"${name}"] = Way(inward=name)
            self._put(name, f"${name}")
        else:
            ways.pop(f"${name}", None)
            self._take(name)
        self.role.log.event("joined" if here else "left", name=name)

    def post(self, name: str, address: str, subject: str) -> None:
        """Somebody posts a tree. No role is shadowed by one."""
        if name in self.guests or name in self.role.hive.roles:
            raise Refused(409, f"/n/{name} is taken; choose another name")
        self._put(name, address)
        self.role.log.event("posted", name=name, address=address, by=subject)

    def withdraw(self, name: str) -> None:
        """What was posted is posted no more. A worker that has dialled in by that name meanwhile stays."""
        if self.guests.get(name) != f"${name}" and self._take(name):
            self.role.log.event("withdrawn", name=name)

    def _put(self, name: str, address: str) -> None:
        before = dict(self.guests)
        self.guests[name] = address
        try:
            self.compose()
        except Refused:
            self.guests = before  # a namespace is bounded; whoever comes late is not in it
            raise

    def _take(self, name: str) -> bool:
        if self.guests.pop(name, None) is None:
            return False
        self.compose()
        return True


def _said(e: BadRole | NoRole) -> str:
    return (e.strerror or str(e)) if isinstance(e, NoRole) else str(e)
