"""What an installation looks like that lacks an optional package.

    with without("qemu"):        `import qemu` fails, as do the modules of ours that begin with it
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType

DOORS = ("warren.boot.machines.client", "warren.tree.loop")


class _Refusing:
    """A finder that has none of PACKAGES."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


@contextmanager
def without(*packages: str) -> Iterator[None]:
    """Whatever was loaded already is loaded again afterwards, as it was."""
    loaded = {n: m for n, m in sys.modules.items() if n in DOORS or n.partition(".")[0] in packages}
    for name in loaded:
        del sys.modules[name]
    finder = _Refusing(packages)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.modules.update(loaded)
