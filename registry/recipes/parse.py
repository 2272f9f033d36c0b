"""From parsed JSON to a recipe, and what to say where it is not valid."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from registry.errors import FieldError, Invalid, Text, Unfit, Wording
from registry.recipes.compress import CompressRecipe
from registry.recipes.diffing import DiffRecipe
from registry.recipes.exporting import ExportRecipe
from registry.recipes.fields import REFERENCE_PATTERN, REPOSITORY_PATTERN
from registry.recipes.profiling import ProfileRecipe
from registry.recipes.searching import SearchRecipe
from registry.recipes.train import TrainRecipe
from registry.recipes.tuning import TuneRecipe
from registry.recipes.use import EvaluateRecipe, InferRecipe

_MAX_ERRORS = 50

Recipe = (
    CompressRecipe
    | SearchRecipe
    | TrainRecipe
    | InferRecipe
    | EvaluateRecipe
    | ProfileRecipe
    | DiffRecipe
    | TuneRecipe
    | ExportRecipe
)
RECIPES: dict[str, type[Recipe]] = {
    "compress": CompressRecipe,
    "search": SearchRecipe,
    "train": TrainRecipe,
    "infer": InferRecipe,
    "evaluate": EvaluateRecipe,
    "profile": ProfileRecipe,
    "diff": DiffRecipe,
    "tune": TuneRecipe,
    "export": ExportRecipe,
}


def recipe_schema(kind: str | None = None) -> dict[str, Any]:
    """Return the JSON Schema of one kind of recipe, or of all of them."""
    if kind is not None:
        return RECIPES[kind].model_json_schema()
    union: TypeAdapter[Recipe] = TypeAdapter(Annotated[Recipe, Field(discriminator="kind")])
    return union.json_schema()


def parse_recipe(data: object) -> Recipe:
    """Read a recipe from parsed JSON; raise `Invalid` naming every wrong field."""
    if not isinstance(data, Mapping):
        raise Invalid("A recipe is a JSON object with kind, schema and steps.")
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in RECIPES:
        if "kind" in data:
            code, said = "not_a_choice", Text("{kind} is no kind of recipe", kind=_short(kind))
        else:
            code, said = "required", Text("The kind is missing")
        raise Invalid(
            "{problem}; choose one of {kinds}.",
            errors=[FieldError("kind", code, said.template, **said.values)],
            problem=said,
            kinds=", ".join(RECIPES),
        )
    try:
        return RECIPES[kind].model_validate(dict(data))
    except ValidationError as invalid:
        errors = list(_field_errors(kind, invalid))
        first = errors[0]
        raise Invalid(
            "The {kind} recipe is not valid. {place}{problem}{more}",
            errors=errors,
            kind=kind,
            place=f"{first.field}: " if first.field else "",
            problem=first,
            more=Text(" ({count} more)", count=len(errors) - 1) if len(errors) > 1 else "",
        ) from None


# --- errors in plain words ----------------------------------------------------------------------

_CODES = {
    "extra_forbidden": Wording("unknown_field", "There is no such field; remove it."),
    "missing": Wording("required", "This field is required."),
    "finite_number": Wording("not_finite", "Must be a finite number."),
    "bool_type": Wording("wrong_type", "Must be true or false."),
    "int_type": Wording("wrong_type", "Must be a whole number."),
    "int_from_float": Wording("wrong_type", "Must be a whole number."),
    "int_parsing_size": Wording("out_of_range", "The number is too large."),
    "float_type": Wording("wrong_type", "Must be a number."),
    "string_type": Wording("wrong_type", "Must be a text."),
    "string_unicode": Wording("wrong_type", "Must be a text of valid characters."),
    "tuple_type": Wording("wrong_type", "Must be a list."),
    "model_type": Wording("wrong_type", "Must be an object."),
    "model_attributes_type": Wording("wrong_type", "Must be an object."),
    "greater_than_equal": Wording("out_of_range", "Must be at least {ge}."),
    "greater_than": Wording("out_of_range", "Must be greater than {gt}."),
    "less_than_equal": Wording("out_of_range", "Must be at most {le}."),
    "less_than": Wording("out_of_range", "Must be less than {lt}."),
    "literal_error": Wording("not_a_choice", "Must be {expected}."),
    "union_tag_not_found": Wording("required", "This field is required."),
    "union_tag_invalid": Wording("not_a_choice", "Must be one of {expected_tags}."),
    "too_short": Wording("wrong_length", "Needs at least {min_length} item(s)."),
    "too_long": Wording("wrong_length", "Takes at most {max_length} item(s)."),
    "string_too_short": Wording("wrong_length", "Needs at least {min_length} character(s)."),
    "string_too_long": Wording("wrong_length", "Takes at most {max_length} characters."),
}
_PATTERNS = {
    REFERENCE_PATTERN: Wording(
        "bad_reference",
        "Write namespace/name, namespace/name@3 or namespace/name@alias.",
    ),
    REPOSITORY_PATTERN: Wording("bad_name", "Write namespace/name."),
}
_PATTERN = Wording("bad_format", "Must match {pattern}.")
_TAGGED = {"compress": "steps", "train": "architecture"}
_TAG_OF = {"steps": "method", "architecture": "name"}


def _field_errors(kind: str, invalid: ValidationError) -> Iterator[FieldError]:
    details = invalid.errors(include_url=False, include_input=False)
    if any(detail["loc"][:1] == ("steps",) and len(detail["loc"]) > 1 for detail in details):
        # A step that is wrong in itself makes pydantic add that there are too few steps.
        details = [
            detail
            for detail in details
            if (detail["type"], detail["loc"]) != ("too_short", ("steps",))
        ]
    for detail in details[:_MAX_ERRORS]:
        yield _field_error(_field(kind, detail), detail)


def _field_error(field: str, detail: ErrorDetails) -> FieldError:
    context = detail.get("ctx", {})
    error = context.get("error")
    if isinstance(error, Unfit):
        return FieldError(field, "inconsistent", error.template, **error.values)
    if detail["type"] == "string_pattern_mismatch":
        wording: Wording | None = _PATTERNS.get(context["pattern"], _PATTERN)
    else:
        wording = _CODES.get(detail["type"])
    if wording is None:
        return FieldError(field, "invalid", "{message}.", message=detail["msg"])
    return FieldError(field, wording.code, wording.template, **context)


def _field(kind: str, detail: ErrorDetails) -> str:
    """Name the field as the sender wrote it, without the tags that pydantic puts into unions."""
    where: Sequence[int | str] = detail["loc"]
    union = _TAGGED.get(kind)
    if union and where and where[0] == union:
        tag_at = 2 if union == "steps" else 1
        where = [part for at, part in enumerate(where) if at != tag_at]
        if detail["type"].startswith("union_tag"):
            where = [*where, _TAG_OF[union]]
    named = ".".join(str(part)[:100] for part in where)
    return named.encode(errors="replace").decode()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
