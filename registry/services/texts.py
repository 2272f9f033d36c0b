"""What text from outside may contain before it is stored."""

import re
from typing import Any

from registry.errors import FieldError, Invalid

# C0 and C1 controls but tab, line feed and carriage return; bidirectional overrides; surrogates.
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def check_text(field: str, value: object, *, max_length: int) -> str:
    """Return `value` stripped, or refuse it.

    Raises:
        Invalid: it is no text, too long, or holds control or bidirectional characters.

    """
    if not isinstance(value, str):
        raise invalid_field(field, "wrong_type", "{field} must be text.", field=field)
    if len(value) > max_length:
        raise invalid_field(
            field,
            "too_long",
            "{field} has {count} characters; at most {limit} fit.",
            field=field,
            count=len(value),
            limit=max_length,
        )
    if found := _FORBIDDEN.search(value):
        raise invalid_field(
            field,
            "bad_character",
            "{field} holds the character U+{character:04X}; remove it.",
            field=field,
            character=ord(found.group()),
        )
    return value.strip()


def invalid_field(field: str, code: str, template: str, /, **values: Any) -> Invalid:
    """Make the refusal of one field."""
    problem = FieldError(field, code, template, **values)
    return Invalid(template, code=code, errors=[problem], **values)
