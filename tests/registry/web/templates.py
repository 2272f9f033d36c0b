"""Finds every template that code gives to a refusal, by reading the code."""

import ast
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGES = ("registry", "workers")
# Where the family begins: its subclasses, and functions with a parameter `template`, belong to it.
FIRST = {"RegistryError": 0, "Text": 0, "FieldError": 2, "Unfit": 0, "Wording": 1}


@dataclass(frozen=True)
class Maker:
    """A class or function that takes a template, at `position`; it adds the values `adds`."""

    name: str
    position: int
    adds: frozenset[str] = frozenset()
    takes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Use:
    """A call of a maker."""

    place: str
    maker: Maker
    call: ast.Call
    node: ast.expr | None

    @property
    def template(self) -> str | None:
        """The literal, or None where there is none."""
        if isinstance(self.node, ast.Constant) and isinstance(self.node.value, str):
            return self.node.value
        return None

    @property
    def passes_on(self) -> bool:
        """Whether what is given was a template elsewhere: a parameter or an attribute."""
        if isinstance(self.node, ast.Name):
            return self.node.id == "template"
        return isinstance(self.node, ast.Attribute) and self.node.attr in {"template", "title"}

    @property
    def fields(self) -> set[str]:
        return fields_of(self.template or "")

    @property
    def values(self) -> set[str]:
        given = {word.arg for word in self.call.keywords if word.arg is not None}
        return (given - self.maker.takes) | self.maker.adds


def fields_of(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def trees() -> dict[str, ast.Module]:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
        for path in paths
        if "migrations" not in path.parts
    }


def uses(code: dict[str, ast.Module]) -> Iterator[Use]:
    """Give every call of a maker, wherever it stands."""
    everywhere, within = _makers(code)
    for place, tree in code.items():
        known = {**everywhere, **within[place]}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (maker := known.get(_name(node.func))):
                at = maker.position
                given = node.args[at] if len(node.args) > at else None
                yield Use(f"{place}:{node.lineno}", maker, node, given)


def titles(code: dict[str, ast.Module]) -> Iterator[tuple[str, str]]:
    """Give the title of every class of refusals."""
    for place, tree in code.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                body = {_target(line): line for line in node.body}
                value = getattr(body.get("title"), "value", None)
                if "status" in body and isinstance(value, ast.Constant):
                    yield place, str(value.value)


def _makers(code: dict[str, ast.Module]) -> tuple[dict[str, Maker], dict[str, dict[str, Maker]]]:
    """Find the makers known everywhere, and the private ones of each module."""
    everywhere = {name: Maker(name, at, takes=_TAKEN) for name, at in FIRST.items()}
    within: dict[str, dict[str, Maker]] = {place: {} for place in code}
    for place, tree in code.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (maker := _maker(node)):
                (within[place] if node.name.startswith("_") else everywhere)[node.name] = maker
    while found := dict(_subclasses(code, everywhere)):
        everywhere.update(found)
    return everywhere, within


def _maker(function: ast.FunctionDef) -> Maker | None:
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args)]
    if function.name in {"__init__", "fill"} or "template" not in names:
        return None
    takes = frozenset(argument.arg for argument in function.args.kwonlyargs)
    position = names.index("template") - (names[0] == "self")
    return Maker(function.name, position, _added(function), takes)


def _subclasses(
    code: dict[str, ast.Module], known: dict[str, Maker]
) -> Iterator[tuple[str, Maker]]:
    for tree in code.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name not in known:
                for base in node.bases:
                    if parent := known.get(_name(base)):
                        yield node.name, Maker(node.name, parent.position, takes=_TAKEN)


def _added(function: ast.FunctionDef) -> frozenset[str]:
    """Find the values that a function adds to those of its caller."""
    return frozenset(
        word.arg
        for node in ast.walk(function)
        if isinstance(node, ast.Call)
        and any(isinstance(one, ast.Name) and one.id == "template" for one in node.args)
        for word in node.keywords
        if word.arg is not None and word.arg not in _TAKEN
    )


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def _target(line: ast.stmt) -> str:
    if isinstance(line, ast.Assign):
        return _name(line.targets[0])
    return _name(line.target) if isinstance(line, ast.AnnAssign) else ""


_TAKEN = frozenset({"code", "errors", "position"})
