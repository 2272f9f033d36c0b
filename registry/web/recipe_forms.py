"""The form of a new job, made from the recipe's own schema."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from django import forms
from django.http import QueryDict
from django.utils.translation import gettext as _

from registry.errors import Invalid, RegistryError
from registry.recipes import RECIPES, recipe_schema
from registry.web import searches
from registry.web.recipe_fields import Schema, make_field
from registry.web.refusals import words_of

CONTINUE: Final = "continue"
_NOT_ASKED: Final = frozenset({"kind", "schema", "steps", "architecture"})
_OF_STEP: Final = re.compile(r"steps\.(\d{1,2})\.(.+)")


@dataclass(frozen=True, kw_only=True)
class Way:
    """One thing a kind of job can do: a method of compression, an architecture to train."""

    key: str
    title: str
    about: str


def kinds() -> list[Way]:
    """List the kinds of jobs."""
    return [_way(kind, recipe_schema(kind)) for kind in RECIPES]


def ways(kind: str) -> list[Way]:
    """List what a kind of job can do; empty where there is nothing to choose."""
    if kind == searches.KIND:
        return [Way(key=key, title=title, about=about) for key, title, about in searches.goals()]
    schema = recipe_schema(kind)
    found = [_way(key, part) for key, part in _tagged(schema).items()]
    if "architecture" in schema["properties"]:
        found.append(
            Way(
                key=CONTINUE,
                title=_("Go on with a version"),
                about=_("Its architecture, weights and vocabulary are the start."),
            )
        )
    return found


def _way(key: str, schema: Schema) -> Way:
    title, about = schema["title"], _first_line(schema)
    return Way(key=key, title=_(title), about=_(about))


def _first_line(schema: Schema) -> str:
    return str(schema.get("description", "")).partition("\n")[0]


def _resolve(schema: Schema, part: Schema) -> Schema:
    if "$ref" in part:
        found: Schema = schema["$defs"][part["$ref"].rpartition("/")[2]]
        return found
    return part


def _steps(schema: Schema) -> Schema:
    found: Schema = schema["properties"].get("steps", {}).get("items", {})
    return found


def _tagged(schema: Schema) -> dict[str, Schema]:
    """Find the alternatives of a recipe by their tag: of its steps, or of its architecture."""
    for part in (_steps(schema), schema["properties"].get("architecture", {})):
        options = [part, *part.get("anyOf", [])]
        for option in options:
            mapping = option.get("discriminator", {}).get("mapping", {})
            if mapping:
                # In the order of the recipe's own union: the mapping is sorted by name.
                key_of = {ref: key for key, ref in mapping.items()}
                return {key_of[part["$ref"]]: _resolve(schema, part) for part in option["oneOf"]}
    return {}


def chooses_steps(kind: str) -> bool:
    """Tell whether a recipe of this kind is a list of steps that the writer chooses."""
    return "discriminator" in _steps(recipe_schema(kind))


def most_steps(kind: str) -> int:
    most: int = recipe_schema(kind)["properties"]["steps"]["maxItems"]
    return most


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A recipe while it is written: the methods of its steps in order, and what was typed."""

    kind: str
    methods: tuple[str, ...]
    typed: Mapping[str, Sequence[str]]
    touched: int | None = None
    """The step that was just added or moved: where the reader goes on."""

    @classmethod
    def of(cls, kind: str, way: str, sent: QueryDict) -> Self:
        """Read a draft from a form, or begin one with the way that was asked for."""
        typed = dict(sent.lists())
        if not chooses_steps(kind):
            return cls(kind=kind, methods=(), typed=typed)
        # One more than there may be, so that whoever sends too many hears of it.
        places = [f"steps.{at}.method" for at in range(most_steps(kind) + 1)]
        methods = [str(sent[place]) for place in places if place in sent] or [way]
        return cls(kind=kind, methods=_known(kind, methods), typed=typed)

    def changed(self, action: str) -> Self:
        """Add a step, or remove or move one: `add:METHOD`, `remove:N`, `up:N`, `down:N`."""
        verb, _colon, what = action.partition(":")
        order: list[int | str] = list(range(len(self.methods)))
        at = int(what) if what.isdecimal() and len(what) < 3 else -1
        if verb == "add":
            order = [*order, *_known(self.kind, [what])][: most_steps(self.kind)]
            at = len(order) - 1
        elif 0 <= at < len(order) > 1:
            moved = order.pop(at)
            if verb != "remove":
                at = max(0, at + (1 if verb == "down" else -1))
                order.insert(at, moved)
        return self._in(order, touched=min(max(0, at), len(order) - 1))

    def _in(self, order: Sequence[int | str], touched: int) -> Self:
        """Put steps into another order; a text stands for a new step of that method."""
        methods = tuple(old if isinstance(old, str) else self.methods[old] for old in order)
        now_at = {str(old): at for at, old in enumerate(order) if isinstance(old, int)}
        typed: dict[str, Sequence[str]] = {}
        for name, values in self.typed.items():
            of_step = _OF_STEP.fullmatch(name)
            if of_step is None:
                typed[name] = values
            elif of_step[1] in now_at:
                typed[f"steps.{now_at[of_step[1]]}.{of_step[2]}"] = values
        return type(self)(kind=self.kind, methods=methods, typed=typed, touched=touched)


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """A recipe that a form begins with: its way, the methods of its steps, what is filled in."""

    way: str
    methods: tuple[str, ...]
    initial: Mapping[str, Any]

    @classmethod
    def of(cls, recipe: Mapping[str, Any], kind: str) -> Self:
        """Read a recipe as a job keeps it, of an older release maybe, for a job of some kind."""
        filled = dict(_places(recipe))
        names = {name: filled.get(name) for name in ("model", "dataset", "output")}
        if recipe.get("kind") != kind:
            initial = {name: text for name, text in names.items() if text}
            return cls(way="", methods=(), initial=initial)
        if chooses_steps(kind):
            methods = tuple(str(step.get("method")) for step in recipe.get("steps", ()))
            known = _tagged(recipe_schema(kind)).keys()
            # Of a method that is gone by now nothing could be shown.
            return cls(way="", methods=methods if known >= set(methods) else (), initial=filled)
        if kind == searches.KIND:
            return cls(way=searches.goal_of(filled), methods=(), initial=filled)
        way = str(filled.get("architecture.name") or (CONTINUE if kind == "train" else ""))
        return cls(way=way, methods=(), initial=filled)


def _places(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Name each value of a recipe by its place, as the fields of a form are named."""
    if isinstance(value, Mapping):
        parts = [(str(name), part) for name, part in value.items()]
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        parts = [(str(number), part) for number, part in enumerate(value)]
    else:
        yield at, value
        return
    for name, part in parts:
        yield from _places(part, f"{at}.{name}" if at else name)


def _known(kind: str, methods: Sequence[str]) -> tuple[str, ...]:
    known = _tagged(recipe_schema(kind))
    for method in methods:
        if method not in known:
            raise Invalid(
                "{method!r} is no method of this kind of job.",
                code="unknown_method",
                method=method[:100],
            )
    return tuple(methods)


@dataclass(frozen=True)
class Part:
    """Fields that stand together: those of the whole recipe, or of one step."""

    fields: Sequence[forms.BoundField]
    advanced: frozenset[str]

    def _plain(self) -> list[forms.BoundField]:
        return [field for field in self.fields if field.name not in self.advanced]

    def wide_fields(self) -> list[forms.BoundField]:
        """List the names: of versions, datasets and what is made."""
        return [field for field in self._plain() if "list" in field.field.widget.attrs]

    def small_fields(self) -> list[forms.BoundField]:
        wide = {field.name for field in (*self.wide_fields(), *self.switches())}
        return [field for field in self._plain() if field.name not in wide]

    def switches(self) -> list[forms.BoundField]:
        return [field for field in self._plain() if isinstance(field.field, forms.BooleanField)]

    def advanced_fields(self) -> list[forms.BoundField]:
        return [field for field in self.fields if field.name in self.advanced]

    def advanced_errors(self) -> bool:
        return any(field.errors for field in self.advanced_fields())


@dataclass(frozen=True)
class Step(Part):
    """One step of a recipe on the page."""

    at: int
    count: int
    way: Way
    errors: Sequence[str]

    @property
    def number(self) -> int:
        return self.at + 1

    @property
    def is_first(self) -> bool:
        return self.at == 0

    @property
    def is_last(self) -> bool:
        return self.number == self.count


class RecipeForm(forms.Form):
    """Fields named by their place in the recipe: `model`, `steps.0.epochs`."""

    def __init__(
        self, kind: str, way: str, *args: Any, methods: Sequence[str] = (), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.kind, self.way, self.methods = kind, way, tuple(methods)
        schema = self._schema = recipe_schema(kind)
        tagged = _tagged(schema)
        self.has_architecture = "architecture" in schema["properties"]
        self.constants: dict[str, str] = {}
        self.advanced: set[str] = set()
        self.nullable: set[str] = set()
        self.step_errors: dict[int, list[str]] = {}
        for name, part in schema["properties"].items():
            if name in _NOT_ASKED or (
                self.has_architecture and name == "model" and way != CONTINUE
            ):
                continue
            self._add(name, part, required=name in self._required(schema, way))
        if self.has_architecture and way in tagged:
            self.constants["architecture.name"] = way
            self._add_all("architecture", tagged[way])
        steps = _steps(schema)
        parts = [tagged[method] for method in self.methods]
        if not parts and "$ref" in steps:
            parts = [_resolve(schema, steps)]
        self.steps_count = len(parts)
        for at, part in enumerate(parts):
            self.constants[f"steps.{at}.method"] = part["properties"]["method"]["const"]
            self._add_all(f"steps.{at}", part)

    @classmethod
    def drafted(cls, kind: str, way: str, draft: Draft, **kwargs: Any) -> Self:
        """Show what was typed so far, without judging it."""
        form = cls(kind, way, methods=draft.methods, **kwargs)
        for name, field in form.fields.items():
            of_step = _OF_STEP.fullmatch(name)
            if of_step and f"steps.{of_step[1]}.method" not in draft.typed:
                continue
            values = draft.typed.get(name, [])
            if isinstance(field, forms.BooleanField):
                form.initial[name] = bool(values)
            elif isinstance(field, forms.MultipleChoiceField):
                form.initial[name] = values
            else:
                form.initial[name] = values[-1] if values else ""
        return form

    @staticmethod
    def _required(schema: Schema, way: str) -> set[str]:
        return {*schema.get("required", []), *(["model"] if way == CONTINUE else [])}

    def _add_all(self, place: str, schema: Schema) -> None:
        for name, part in schema["properties"].items():
            if "const" not in part:
                required = name in schema.get("required", [])
                self._add(f"{place}.{name}", part, required=required)

    def _add(self, name: str, part: Schema, *, required: bool) -> None:
        options = part.get("anyOf", [part])
        kept = [_resolve(self._schema, o) for o in options if o.get("type") != "null"]
        if "properties" in kept[0]:
            self._add_all(name, kept[0])
            return
        # Constraints sit on the alternative, titles on the whole.
        whole = {**kept[0], **part}
        nullable = len(kept) < len(options)
        field = make_field(whole, required=required, nullable=nullable)
        field.label = _(whole.get("title", name))
        if about := whole.get("description"):
            field.help_text = _(about)
        if whole.get("advanced"):
            self.advanced.add(name)
        if nullable:
            self.nullable.add(name)
        self.fields[name] = field

    @property
    def whole(self) -> Part:
        """Give the fields beside those of chosen steps."""
        fields = [field for field in self if not self.methods or not _OF_STEP.match(field.name)]
        return Part(fields, frozenset(self.advanced))

    def steps(self) -> list[Step]:
        """Give the chosen steps in order."""
        titles = {way.key: way for way in ways(self.kind)}
        return [
            Step(
                [field for field in self if field.name.startswith(f"steps.{at}.")],
                frozenset(self.advanced),
                at,
                len(self.methods),
                titles[method],
                self.step_errors.get(at, ()),
            )
            for at, method in enumerate(self.methods)
        ]

    def takes_more(self) -> bool:
        return len(self.methods) < most_steps(self.kind)

    def show_refusal(self, error: RegistryError) -> None:
        """Put a refusal beside the field or the step that it names, else above the form."""
        if not error.errors:
            self.add_error(None, words_of(error))
        for item in error.errors:
            words = words_of(item)
            if name := self._nearest(item.field):
                self.add_error(name, words)
            elif of_step := re.match(r"steps\.(\d+)", item.field if self.methods else ""):
                self.step_errors.setdefault(int(of_step[1]), []).append(words)
                self.add_error(None, _step_named(int(of_step[1]) + 1, words))
            else:
                self.add_error(None, words)

    def _nearest(self, place: str) -> str | None:
        """Find the field at a place, or the one that holds it: `steps.0.layers` for its item 3."""
        while place and place not in self.fields:
            place = place.rpartition(".")[0]
        return place or None

    def recipe(self) -> dict[str, Any]:
        """Assemble the recipe; what was left empty is left out, and so gets its default or null."""
        recipe: dict[str, Any] = {"kind": self.kind, "schema": 1}
        if "steps" in self._schema["properties"]:
            recipe["steps"] = [{} for _step in range(self.steps_count)]
        for name, value in {**self.cleaned_data, **self.constants}.items():
            if value not in (None, "", []):
                _put(recipe, name.split("."), value)
            elif name in self.nullable and self.fields[name].initial not in (None, "", [], ()):
                # Emptied on purpose: the schema says what empty means.
                _put(recipe, name.split("."), None)
        return recipe


def _step_named(number: int, words: str) -> str:
    return _("Step %(number)s: %(problem)s") % {"number": number, "problem": words}


def _put(recipe: dict[str, Any], path: Iterable[str], value: Any) -> None:
    target: Any = recipe
    *places, last = path
    for place in places:
        target = target[int(place)] if place.isdecimal() else target.setdefault(place, {})
    target[last] = value
