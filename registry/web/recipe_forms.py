"""The form of a new job, made from the recipe's own schema."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from registry.recipes import RECIPES, recipe_schema

Schema = Mapping[str, Any]
CONTINUE: Final = "continue"
_NOT_ASKED: Final = frozenset({"kind", "schema", "steps", "architecture"})
# Words of the recipes' choices, for the catalogue.
_WORDS: Final = {
    "auto": gettext_noop("Automatic"),
    "cpu": gettext_noop("CPU"),
    "gpu": gettext_noop("GPU"),
    "constant": gettext_noop("Constant"),
    "cosine": gettext_noop("Cosine"),
    "step": gettext_noop("Steps"),
    "linear": gettext_noop("Linear"),
    "best": gettext_noop("Of the best epoch"),
    "last": gettext_noop("Of the last epoch"),
    "float32": gettext_noop("float32"),
    "mixed": gettext_noop("Mixed"),
    "sgd": gettext_noop("SGD"),
    "momentum": gettext_noop("SGD with momentum"),
    "adam": gettext_noop("Adam"),
    "adamw": gettext_noop("AdamW"),
    "rmsprop": gettext_noop("RMSprop"),
}


@dataclass(frozen=True, kw_only=True)
class Way:
    """One thing a kind of job can do: a method of compression, an architecture to train."""

    key: str
    title: str
    about: str
    chosen: bool = False


def kinds() -> list[Way]:
    """List the kinds of jobs."""
    return [_way(kind, recipe_schema(kind)) for kind in RECIPES]


def ways(kind: str) -> list[Way]:
    """List what a kind of job can do; empty where there is nothing to choose."""
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


def _tagged(schema: Schema) -> dict[str, Schema]:
    """Find the alternatives of a recipe by their tag: of its steps, or of its architecture."""
    properties = schema["properties"]
    for part in (properties["steps"]["items"], properties.get("architecture", {})):
        options = [part, *part.get("anyOf", [])]
        for option in options:
            mapping = option.get("discriminator", {}).get("mapping", {})
            if mapping:
                # In the order of the recipe's own union: the mapping is sorted by name.
                key_of = {ref: key for key, ref in mapping.items()}
                return {key_of[part["$ref"]]: _resolve(schema, part) for part in option["oneOf"]}
    return {}


class RecipeForm(forms.Form):
    """Fields named by their place in the recipe: `model`, `steps.0.epochs`."""

    def __init__(self, kind: str, way: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kind, self.way = kind, way
        schema = recipe_schema(kind)
        tagged = _tagged(schema)
        self.has_architecture = "architecture" in schema["properties"]
        self.constants: dict[str, str] = {}
        self.advanced: set[str] = set()
        for name, part in schema["properties"].items():
            if name in _NOT_ASKED or (
                self.has_architecture and name == "model" and way != CONTINUE
            ):
                continue
            self._add(name, _resolve(schema, part), required=name in self._required(schema, way))
        if self.has_architecture and way in tagged:
            self.constants["architecture.name"] = way
            self._add_all("architecture", tagged[way])
        step = schema["properties"]["steps"]["items"]
        step = _resolve(schema, step) if "$ref" in step else tagged[way]
        self.constants["steps.0.method"] = step["properties"]["method"]["const"]
        self._add_all("steps.0", step)

    @staticmethod
    def _required(schema: Schema, way: str) -> set[str]:
        return {*schema.get("required", []), *(["model"] if way == CONTINUE else [])}

    def _add_all(self, place: str, schema: Schema) -> None:
        for name, part in schema["properties"].items():
            if "const" not in part:
                required = name in schema.get("required", [])
                self._add(f"{place}.{name}", part, required=required)

    def _add(self, name: str, part: Schema, *, required: bool) -> None:
        options = [option for option in part.get("anyOf", [part]) if option.get("type") != "null"]
        # Constraints sit on the alternative, titles on the whole.
        field = _field({**options[0], **part}, required=required)
        title = part.get("title") or options[0].get("title", name)
        field.label = _(title)
        if about := part.get("description") or options[0].get("description"):
            field.help_text = _(about)
        if part.get("advanced"):
            self.advanced.add(name)
        self.fields[name] = field

    def _plain(self) -> list[forms.BoundField]:
        return [field for field in self if field.name not in self.advanced]

    def wide_fields(self) -> list[forms.BoundField]:
        """List the names: of versions, datasets and what is made."""
        return [field for field in self._plain() if "list" in field.field.widget.attrs]

    def small_fields(self) -> list[forms.BoundField]:
        wide = {field.name for field in (*self.wide_fields(), *self.switches())}
        return [field for field in self._plain() if field.name not in wide]

    def switches(self) -> list[forms.BoundField]:
        return [field for field in self._plain() if isinstance(field.field, forms.BooleanField)]

    def advanced_fields(self) -> list[forms.BoundField]:
        return [field for field in self if field.name in self.advanced]

    def advanced_errors(self) -> bool:
        return any(field.errors for field in self.advanced_fields())

    def recipe(self) -> dict[str, Any]:
        """Assemble the recipe; what was left empty is left out, and so gets its default or null."""
        recipe: dict[str, Any] = {"kind": self.kind, "schema": 1, "steps": [{}]}
        for name, value in {**self.constants, **self.cleaned_data}.items():
            field = self.fields.get(name)
            target: Any = recipe
            *places, last = name.split(".")
            for place in places:
                target = target[0] if place == "0" else target.setdefault(place, {})
            if value not in (None, ""):
                target[last] = value
            elif field is not None and field.initial not in (None, ""):
                # Emptied on purpose: the schema says what empty means.
                target[last] = None
        return recipe


def _field(part: Schema, *, required: bool) -> forms.Field:
    default = part.get("default")
    kind = part.get("type")
    low = part.get("minimum", part.get("exclusiveMinimum"))
    high = part.get("maximum", part.get("exclusiveMaximum"))
    if "enum" in part:
        choices = [(value, _(_WORDS.get(value, value))) for value in part["enum"]]
        return forms.ChoiceField(choices=choices, initial=default)
    if kind == "boolean":
        return forms.BooleanField(required=False, initial=default)
    if kind == "integer":
        return forms.IntegerField(required=required, min_value=low, max_value=high, initial=default)
    if kind == "number":
        widget = forms.NumberInput(attrs={"step": "any"})
        return forms.FloatField(
            required=required, min_value=low, max_value=high, initial=default, widget=widget
        )
    attrs = {"autocomplete": "off", "spellcheck": "false"}
    if target := part.get("reference") or part.get("output"):
        attrs |= {"list": f"{target}-names", "placeholder": "namespace/name"}
    return forms.CharField(
        required=required,
        max_length=part.get("maxLength"),
        initial=default,
        widget=forms.TextInput(attrs=attrs),
    )
