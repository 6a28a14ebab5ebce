"""What the house rules look at: every Python module of the packages and of the tests, parsed once."""

import ast
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE_ROOTS = ("fs", "namespaces", "roles", "boot", "traces")


@dataclass(frozen=True)
class Module:
    path: Path
    name: str
    text: str

    @property
    def where(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, str(self.path))


def read(path: Path, root: Path) -> Module:
    parts = path.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(path, name, path.read_text())


@cache
def package_modules() -> tuple[Module, ...]:
    """The modules of `warren`, from every source root."""
    roots = [ROOT / top for top in SOURCE_ROOTS]
    return tuple(read(path, root) for root in roots for path in sorted(root.rglob("*.py")))


@cache
def modules_of_tests() -> tuple[Module, ...]:
    return tuple(read(path, ROOT) for path in sorted((ROOT / "tests").rglob("*.py")))
