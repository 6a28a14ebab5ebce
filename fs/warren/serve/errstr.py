"""/dev/errstr for trees that lack it.

A tree that has ctl files, sinks or other words shows this file beside its own: `with_errstr` lays it
over a root of words, unless it has it. A root that is no `Dir` (a disk) is left as it is, since its
names belong to its users.
"""

from collections.abc import Iterable
from errno import EBUSY

from warren.tree import Caller, Dir, Handle, Maybe, Node, Refused
from warren.tree.errstr import ErrStr


class _Over(Dir):
    """A directory with one more name than the one below it."""

    def __init__(self, below: Dir, name: str, node: Node) -> None:
        super().__init__()
        self.below, self.name, self.node = below, name, node
        self.mode = below.mode

    def lookup(self, name: str) -> Maybe[Node | None]:
        return self.node if name == self.name else self.below.lookup(name)

    def create(
        self, name: str, flags: int, mode: int, gid: int, caller: Caller
    ) -> Maybe[tuple[Node, Handle]]:
        return self._free(name).create(name, flags, mode, gid, caller)

    def mkdir(self, name: str, mode: int, gid: int, caller: Caller) -> Maybe[Node]:
        return self._free(name).mkdir(name, mode, gid, caller)

    def unlink(self, name: str, directory: bool | None, expect: Node | None = None) -> Maybe[None]:
        return self._free(name).unlink(name, directory, expect)

    def _free(self, name: str) -> Dir:
        """The directory below, for a name that is its own affair."""
        if name == self.name:
            raise Refused(409, f"{name} stands here for good", errno=EBUSY)
        return self.below

    def list(self) -> Maybe[Iterable[tuple[str, Node]]]:
        listed = self.below.list()
        if isinstance(listed, Iterable):
            return self._with(listed)
        return self._later(listed)

    async def _later(self, coming: object) -> Iterable[tuple[str, Node]]:
        return self._with(await coming)  # type: ignore[misc]  # what list() gives is iterable or awaitable

    def _with(self, listed: Iterable[tuple[str, Node]]) -> Iterable[tuple[str, Node]]:
        return [*((n, node) for n, node in listed if n != self.name), (self.name, self.node)]


def with_errstr(root: Node) -> Node:
    """ROOT with /dev/errstr, if it is a directory of words."""
    if not isinstance(root, Dir) or type(root).walk is not Dir.walk:
        return root
    dev = root.entries.get("dev")
    if isinstance(dev, Dir) and isinstance(dev.entries.get("errstr"), ErrStr):
        return root
    over = _Over(dev if isinstance(dev, Dir) else Dir(), "errstr", ErrStr())
    return _Over(root, "dev", over)
