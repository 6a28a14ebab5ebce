"""Who may import whom, executable.

    8  shell
    7  roles
    6  servers | namespaces
    5  serve | mount
    4  auth | store | traces | boot
    3  tree
    2  p9

Imports go downward only, never sideways on a line. `check` stands outside: it imports anything below 6 and
only tests import it. Servers are stricter still. Every `import` counts, also one inside a function or under
TYPE_CHECKING, and so does `import_module` with a name that can be read: an edge is an edge when it is lazy.
"""

import ast
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator

import pytest

from tests.sources import ROOT, Module, package_modules

LINES: dict[int, tuple[set[str], str]] = {
    2: ({"p9"}, "the protocol is bytes and state alone, so that it is tested, fuzzed and reused without I/O"),
    3: ({"tree"}, "a server author's words may not depend on how, where or for whom the tree is served"),
    4: (
        {"auth", "store", "traces", "boot"},
        "each is one trade that knows nothing of the others; what it needs of them it takes as a port",
    ),
    5: (
        {"serve", "mount"},
        "giving a tree and reaching one are two halves that meet on the wire only, or they agree in private",
    ),
    6: (
        {"servers", "namespaces"},
        "servers stay movable while they do not know where a namespace binds them, and the other way round",
    ),
    7: ({"roles"}, "the composition root names everything below and is named by the command alone"),
    8: ({"shell"}, "the command is sugar over files; nothing may come to need it"),
}
LINE = {package: line for line, (members, _) in LINES.items() for package in members}
REASON = {package: reason for members, reason in LINES.values() for package in members}

# What a server may import, and which servers may import the library of their trade.
SERVERS_MAY = {"tree": None, "store": None, "traces": None, "boot": {"vm", "boot"}, "auth": {"ca", "cap"}}
PORTS = "a server reaches the outside through a port, so that it runs in any role and in a test"
NO_NEIGHBOUR = "servers meet in the tree: one that needs another reads and writes its files"
NARROW_STORE = "servers know the store's interface, not its engines, so that a role may choose the engine"
OWN_TRADE = "this library is the trade of other servers, named in SERVERS_MAY"
SUITES = "the conformance suites judge everything below the servers and are run by tests"

STANDARD_ONLY = "the protocol needs nothing installed, so that a guest or a fuzzer can carry it alone"
SANS_IO = "bytes come in and go out as values here; sockets and threads belong to serve and mount"
IO_MODULES = {
    "asyncio",
    "multiprocessing",
    "select",
    "selectors",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "threading",
}
NO_SOCKET = "a server that opens a socket has a door without a guard; Dial and Attach are its ports"

# An optional dependency: the name it is imported by, and the extras in pyproject.toml that bring it.
OPTIONAL: dict[str, set[str]] = {
    "nats": {"jetstream"},
    "qemu": {"vm"},
    "trio_asyncio": {"jetstream", "vm"},
    "libvirt": {"libvirt"},
    "libvirt_qemu": {"libvirt"},
}
# The suites in `check` run where tests run, so they may use what the extra `test` brings.
TESTING = {"hypothesis"}


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """Every (line, dotted name) imported; `from a import b` is a.b where that is a module of ours, else a."""
    ours = {m.name for m in package_modules()} | {f"warren.{package}" for package in [*LINE, "check"]}
    package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                origin = ".".join([*above, *origin.split(".")]).strip(".")
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield node.lineno, inner if inner in ours else origin
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"}:
                yield node.lineno, leading_text(node.args[0]).strip(".")


def leading_text(name: ast.expr) -> str:
    """What can be read of a computed module name: all of a constant, the beginning of an f-string."""
    if isinstance(name, ast.JoinedStr) and name.values:
        name = name.values[0]
    return name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else "unreadable"


def objection(importer: str, target: str) -> str | None:
    """Why the module `importer` may not import `target`; None if it may."""
    here = importer.split(".")[1]
    top, *rest = target.split(".")
    if top != "warren":
        return foreign_objection(here, top)
    if not rest:
        return "warren is a namespace package without contents of its own"
    there = rest[0]
    if there == here:
        return NO_NEIGHBOUR if here == "servers" and importer.split(".")[2:3] != rest[1:2] else None
    if there == "check" or (here == "check" and LINE[there] >= 6):
        return SUITES
    if here == "check" or (here != "servers" and LINE[here] > LINE[there]):
        return None
    if here == "servers":
        return server_objection(importer, there, rest)
    return REASON[here]


def server_objection(importer: str, there: str, rest: list[str]) -> str | None:
    if there not in SERVERS_MAY:
        return PORTS
    trade = SERVERS_MAY[there]
    if trade is not None and importer.split(".")[2] not in trade:
        return OWN_TRADE
    return NARROW_STORE if there == "store" and len(rest) > 1 else None


def foreign_objection(here: str, top: str) -> str | None:
    if here == "p9" and top not in sys.stdlib_module_names:
        return STANDARD_ONLY
    if here == "p9" and top in IO_MODULES:
        return SANS_IO
    if here == "servers" and top in {"socket", "ssl"}:
        return NO_SOCKET
    return None


def test_every_import_points_downward() -> None:
    wrong = [
        f"{module.where}:{line} imports {target}: {reason}"
        for module in package_modules()
        for line, target in imports(module)
        if (reason := objection(module.name, target))
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_package_has_its_line() -> None:
    found = {module.name.split(".")[1] for module in package_modules()}
    assert found, "no packages were found at all"
    assert found <= {*LINE, "check"}


@pytest.mark.parametrize(
    ("importer", "source", "reason"),
    [
        ("tree.node", "import warren.serve", REASON["tree"]),
        ("tree.node", "def late():\n    from warren.serve import export", REASON["tree"]),
        ("tree.node", "from .. import serve", REASON["tree"]),
        ("tree.node", "from ..auth.rights import Rights", REASON["tree"]),
        ("serve.export", "from warren.mount import dial", REASON["serve"]),
        ("serve.export", "from warren import servers", REASON["serve"]),
        ("store.sqlite", "import warren.traces", REASON["store"]),
        ("roles.run", "import importlib\nimportlib.import_module('warren.shell.main')", REASON["roles"]),
        ("roles.run", "__import__(f'warren.shell.{x}')", REASON["roles"]),
        ("shell.main", "from warren.check import check_tree", SUITES),
        ("check.tree", "from warren.servers import demo", SUITES),
        ("servers.disk", "from warren.serve import Export", PORTS),
        ("servers.disk", "from warren.p9 import messages", PORTS),
        ("servers.disk", "from warren.servers.demo import demo", NO_NEIGHBOUR),
        ("servers.disk", "from . import demo", NO_NEIGHBOUR),
        ("servers.disk", "import socket", NO_SOCKET),
        ("servers.mailbox", "import warren.store.memory", NARROW_STORE),
        ("servers.mailbox", "import warren.auth.token", OWN_TRADE),
        ("p9.codec", "import trio", STANDARD_ONLY),
        ("p9.codec", "import socket", SANS_IO),
    ],
)
def test_a_forbidden_import_is_seen(importer: str, source: str, reason: str) -> None:
    module = Module(ROOT / "fs/warren" / f"{importer.replace('.', '/')}.py", f"warren.{importer}", source)
    assert reason in [objection(module.name, target) for _, target in imports(module)]


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("tree.node", "from warren.p9 import messages"),
        ("tree.node", "from .words import Word"),
        ("serve.export", "from warren.auth.rights import Rights"),
        ("check.store", "import warren.store.memory, warren.serve"),
        ("servers.mailbox", "from warren.store import Store"),
        ("servers.vm.clone", "from warren.servers.vm import machine\nimport warren.boot.machines.qemu"),
        ("shell.main", "import importlib\nimportlib.import_module(f'warren.shell.{name}')"),
        ("p9.codec", "import struct, errno"),
    ],
)
def test_a_lawful_import_passes(importer: str, source: str) -> None:
    module = Module(ROOT / "fs/warren" / f"{importer.replace('.', '/')}.py", f"warren.{importer}", source)
    objections = [objection(module.name, target) for _, target in imports(module)]
    assert objections
    assert set(objections) == {None}


def test_an_optional_dependency_enters_through_one_module() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {requirement.split(">=")[0] for requirement in project["dependencies"]}
    users = defaultdict(set)
    for module in package_modules():
        for _, target in imports(module):
            top = target.split(".")[0]
            known = TESTING if module.name.startswith("warren.check") else set()
            if top not in sys.stdlib_module_names | core | known | {"warren"}:
                users[top].add(module.where)
    assert not users.keys() - OPTIONAL.keys(), f"imported but not declared in OPTIONAL: {dict(users)}"
    crowded = {top: modules for top, modules in users.items() if len(modules) > 1}
    assert not crowded, f"one module is the only door to a dependency that may be absent: {crowded}"
    assert set().union(*OPTIONAL.values()) <= project["optional-dependencies"].keys()
