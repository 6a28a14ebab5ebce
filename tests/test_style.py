"""House rules about the files themselves, each with the defect it keeps out."""

import ast
import re

import pytest

from tests.sources import ROOT, SOURCE_ROOTS, Module, modules_of_tests, package_modules

CEILING = 500
VAGUE = {"base", "common", "handler", "handlers", "helper", "helpers", "manager", "misc", "util", "utils"}
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
EXCUSES = {"skip", "skipif", "importorskip", "xfail", "SkipTest", "skipTest", "skipIf", "skipUnless"}
MOCKS = {"mock", "MagicMock", "Mock", "AsyncMock"}


def names(tree: ast.AST) -> list[tuple[int, str, str]]:
    """Each (line, owner, name) that code mentions: `time.sleep`, `from time import sleep`, `import mock`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.append((node.lineno, last_name(node.value), node.attr))
        elif isinstance(node, ast.ImportFrom):
            owner = (node.module or "").rpartition(".")[2]
            found += [(node.lineno, owner, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(node.lineno, *alias.name.rpartition(".")[::2]) for alias in node.names]
    return found


def last_name(expression: ast.expr) -> str:
    """`c` of `a.b.c` and of `c`; nothing of what has no name."""
    return expression.attr if isinstance(expression, ast.Attribute) else getattr(expression, "id", "")


def excuses(tree: ast.AST) -> list[int]:
    owners = {"pytest", "mark", "unittest", "case"}
    return [line for line, owner, name in names(tree) if name in EXCUSES and owner in owners]


def sleeps(tree: ast.AST) -> list[int]:
    return [line for line, owner, name in names(tree) if (owner, name) == ("time", "sleep")]


def mocks(tree: ast.AST) -> list[int]:
    return [line for line, owner, name in names(tree) if owner == "mock" or name in MOCKS]


def swallowed(tree: ast.AST) -> list[int]:
    """Where everything that can go wrong is caught and dropped."""
    broad = {"Exception", "BaseException"}
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            dropped = all(isinstance(step, ast.Pass | ast.Continue) for step in node.body)
            if dropped and (node.type is None or last_name(node.type) in broad):
                lines.append(node.lineno)
        elif isinstance(node, ast.Call) and last_name(node.func) == "suppress":
            lines += [node.lineno for argument in node.args if last_name(argument) in broad]
    return lines


def vague(module: Module) -> list[str]:
    classes = [node.name for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]
    words = [module.path.stem, *classes]
    return [word for word in words if VAGUE & {part.lower() for part in WORD.findall(word)}]


def test_no_portion_claims_the_namespace_package() -> None:
    claims = [top for top in SOURCE_ROOTS if (ROOT / top / "warren/__init__.py").exists()]
    assert not claims, f"warren/__init__.py in {claims} makes the other portions of warren vanish"


def test_every_package_says_what_it_is_and_that_it_is_typed() -> None:
    portions = [path for top in SOURCE_ROOTS for path in (ROOT / top / "warren").iterdir() if path.is_dir()]
    assert portions
    for portion in portions:
        if portion.name != "__pycache__":
            assert (portion / "py.typed").exists(), f"{portion} would be untyped for whoever imports it"
    folders = {module.path.parent for module in package_modules()}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


@pytest.mark.parametrize("module", package_modules(), ids=lambda module: module.name)
def test_a_module_is_one_subject(module: Module) -> None:
    docstring = ast.get_docstring(module.tree)
    assert docstring or not module.text.strip(), f"{module.where}: the docstring is the module's man page"
    lines = module.text.count("\n")
    excused = re.search(r"\blong\b", docstring or "")
    assert lines <= CEILING or excused, (
        f"{module.where} has {lines} lines: split it, or let its docstring say why it is long"
    )


@pytest.mark.parametrize("module", package_modules() + modules_of_tests(), ids=lambda module: module.where)
def test_names_say_something_and_no_error_is_dropped(module: Module) -> None:
    assert not vague(module), "name the thing itself"
    assert not swallowed(module.tree), "catching everything and dropping it hides every defect behind it"


@pytest.mark.parametrize("module", modules_of_tests(), ids=lambda module: module.where)
def test_tests_neither_sleep_nor_mock_nor_excuse_themselves(module: Module) -> None:
    if not module.where.startswith(
        "tests/bench/"
    ):  # a benchmark polls foreign servers, which announce nothing
        assert not sleeps(module.tree), "wait for the event itself, or use MockClock"
    assert not mocks(module.tree), "use a verified stand-in: memory streams, the memory store, MockClock"
    if module.where != "tests/conftest.py":
        assert not excuses(module.tree), "only the not_run fixture leaves a test out, for its four reasons"


def test_these_rules_can_be_broken() -> None:
    def parse(text: str) -> ast.Module:
        return ast.parse(text)

    assert sleeps(parse("import time\ntime.sleep(1)")) == [2]
    assert sleeps(parse("from time import sleep")) == [1]
    assert not sleeps(parse("import trio\ntrio.sleep(1)"))
    assert mocks(parse("from unittest import mock"))
    assert mocks(parse("import unittest.mock"))
    assert mocks(parse("from unittest.mock import patch"))
    assert not mocks(parse("from trio.testing import MockClock"))
    assert excuses(parse("import pytest\n@pytest.mark.skipif(True)\ndef test(): ..."))
    assert excuses(parse("import pytest\npytest.importorskip('x')"))
    assert swallowed(parse("try: f()\nexcept Exception: pass")) == [2]
    assert swallowed(parse("try: f()\nexcept:\n    continue"))
    assert swallowed(parse("with contextlib.suppress(Exception): f()"))
    assert not swallowed(parse("try: f()\nexcept OSError: pass"))
    assert vague(Module(ROOT / "tests/file_utils.py", "x", "class SessionManager: ..."))
    assert not vague(Module(ROOT / "tests/database.py", "x", "class Baseline: ..."))
