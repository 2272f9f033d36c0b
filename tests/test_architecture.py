"""Rules of the layout that the import contracts cannot say."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from tests.slow import slow_tests

ROOT = Path(__file__).parents[1]
WRITES = {
    "save",
    "create",
    "delete",
    "update",
    "bulk_create",
    "bulk_update",
    "get_or_create",
    "update_or_create",
    "raw",
    "execute",
}
DOORS = sorted(
    path
    for folder in ("api", "web", "stream")
    for path in (ROOT / "registry" / folder).rglob("*.py")
)


def test_there_are_doors_to_look_at():
    assert DOORS


@pytest.mark.parametrize("path", DOORS, ids=lambda path: str(path.relative_to(ROOT)))
def test_doors_write_nothing_themselves(path):
    writes = [
        f"{path.name}:{node.lineno} {ast.unparse(node.func)}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in WRITES
        and _touches_rows(node.func.value)
    ]
    assert writes == []


def _touches_rows(receiver: ast.expr) -> bool:
    """Say whether an expression is a table's manager or a query of one."""
    return any(
        isinstance(node, ast.Attribute) and node.attr == "objects" for node in ast.walk(receiver)
    )


@pytest.mark.parametrize("folder", ["client/src", "config", "registry", "workers"])
def test_every_module_says_what_it_owns(folder):
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*.py")
        if "migrations" not in path.parts
        and path.read_text(encoding="utf-8").strip()
        and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) is None
    ]
    assert silent == []


def test_no_module_is_called_after_nothing():
    vague = {"utils", "helpers", "common", "core", "base", "misc"}
    # Django looks for an engine under this name.
    named_by_django = ROOT / "registry" / "database" / "base.py"
    found = [
        str(path.relative_to(ROOT))
        for folder in ("client/src", "config", "registry", "workers")
        for path in (ROOT / folder).rglob("*.py")
        if path.stem in vague and path != named_by_django
    ]
    assert found == []


def test_the_client_stands_alone():
    """It is installed on its own: the standard library and what it declares are all it has."""
    source = ROOT / "client/src/modelyard"
    declared = tomllib.loads((ROOT / "client/pyproject.toml").read_text(encoding="utf-8"))
    allowed = {re.match(r"[a-z]+", line)[0] for line in declared["project"]["dependencies"]}
    allowed |= {"modelyard", *sys.stdlib_module_names}
    modules = list(source.rglob("*.py"))
    assert modules
    foreign = {
        f"{path.name}: {module}"
        for path in modules
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for module in _imported(node)
        if module.partition(".")[0] not in allowed
    }
    assert foreign == set()


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""] if node.level == 0 else ["relative"]
    return []


def test_tests_that_are_called_slow_are_there():
    missing = [
        f"{path}::{name}"
        for path, _, name in (test.partition("::") for test in sorted(slow_tests()))
        if not (ROOT / path).is_file() or f"def {name}(" not in (ROOT / path).read_text("utf-8")
    ]
    assert not missing, "write tests/slow.txt anew (tests/slow.py says how)"
