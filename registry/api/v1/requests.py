"""Bodies and query strings become typed values, or refusals that name each wrong field."""

from typing import Any, TypeVar

from django.http import QueryDict
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from registry.errors import FieldError, Invalid, Text, Unfit, Wording

_MAX_ERRORS = 50
_CODES = {
    "extra_forbidden": Wording("unknown_field", "There is no such field; remove it."),
    "missing": Wording("required", "This field is required."),
    "string_type": Wording("wrong_type", "Must be a text."),
    "int_type": Wording("wrong_type", "Must be a whole number."),
    "int_from_float": Wording("wrong_type", "Must be a whole number."),
    "int_parsing": Wording("wrong_type", "Must be a whole number."),
    "int_parsing_size": Wording("out_of_range", "The number is too large."),
    "float_type": Wording("wrong_type", "Must be a number."),
    "float_parsing": Wording("wrong_type", "Must be a number."),
    "finite_number": Wording("not_finite", "Must be a finite number."),
    "bool_type": Wording("wrong_type", "Must be true or false."),
    "bool_parsing": Wording("wrong_type", "Must be true or false."),
    "list_type": Wording("wrong_type", "Must be a list."),
    "dict_type": Wording("wrong_type", "Must be an object."),
    "model_type": Wording("wrong_type", "Must be an object."),
    "model_attributes_type": Wording("wrong_type", "Must be an object."),
    "uuid_type": Wording("wrong_type", "Must be a UUID."),
    "uuid_parsing": Wording("wrong_type", "Must be a UUID."),
    "greater_than_equal": Wording("out_of_range", "Must be at least {ge}."),
    "less_than_equal": Wording("out_of_range", "Must be at most {le}."),
    "literal_error": Wording("not_a_choice", "Must be {expected}."),
    "too_long": Wording("wrong_length", "Takes at most {max_length} items."),
    "too_short": Wording("wrong_length", "Needs at least {min_length} items."),
    "string_too_long": Wording("wrong_length", "Takes at most {max_length} characters."),
    "string_too_short": Wording("wrong_length", "Needs at least {min_length} characters."),
    "string_pattern_mismatch": Wording("bad_format", "Must look like {pattern}."),
}


class Body(BaseModel):
    """A JSON body: closed, and without conversions of types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Query(BaseModel):
    """A query string: closed; numbers are read from their text."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Shape = TypeVar("Shape", bound=BaseModel)


def read_body(shape: type[Shape], data: Any) -> Shape:
    """Check a parsed body.

    Raises:
        Invalid: naming each field that is missing, unknown or wrong.

    """
    return _validate(shape, data)


def read_query(shape: type[Shape], given: QueryDict) -> Shape:
    """Check a query string; only fields that are lists may stand there more than once.

    Raises:
        Invalid: naming each parameter that is unknown, repeated or wrong.

    """
    lists = {
        name
        for name, field in shape.model_fields.items()
        if str(field.annotation).startswith("list")
    }
    read: dict[str, Any] = {}
    for name, values in given.lists():
        if any("\0" in text for text in [name, *values]):
            raise _one(name.replace("\0", ""), "bad_character", "Holds the character U+0000.")
        if len(values) > 1 and name not in lists:
            raise _one(name, "repeated", "Give this parameter once.")
        read[name] = values if name in lists else values[-1]
    return _validate(shape, read)


def wrong_field(field: str, code: str, template: str, /, **values: Any) -> Invalid:
    """Make the refusal of one field that has the right shape and cannot be meant."""
    return Invalid(template, errors=[FieldError(field, code, template, **values)], **values)


def _one(field: str, code: str, template: str, /, **values: Any) -> Invalid:
    problem = FieldError(field, code, template, **values)
    return _refusal([problem], 1)


def _refusal(errors: list[FieldError], count: int) -> Invalid:
    first = errors[0]
    return Invalid(
        "The request is not valid. {place}{problem}{more}",
        errors=errors,
        place=f"{first.field}: " if first.field else Text("The body: "),
        problem=first,
        more=Text(" ({count} more)", count=count - 1) if count > 1 else "",
    )


def _validate(shape: type[Shape], data: Any) -> Shape:
    try:
        return shape.model_validate(data)
    except ValidationError as invalid:
        details = invalid.errors(include_url=False, include_input=False)
        errors = [_field_error(detail) for detail in details[:_MAX_ERRORS]]
    raise _refusal(errors, len(details))


def _field_error(detail: ErrorDetails) -> FieldError:
    field = ".".join(str(part)[:100] for part in detail["loc"])
    context = detail.get("ctx", {})
    error = context.get("error")
    if isinstance(error, Unfit):
        return FieldError(field, "invalid", error.template, **error.values)
    if wording := _CODES.get(detail["type"]):
        return FieldError(field, wording.code, wording.template, **context)
    return FieldError(field, "invalid", "{message}.", message=detail["msg"])
