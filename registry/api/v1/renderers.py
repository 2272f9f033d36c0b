"""The one way JSON goes out."""

from collections.abc import Mapping
from typing import Any, Final

import orjson
from rest_framework.renderers import BaseRenderer

_LEAST: Final = -(2**63)
_MOST: Final = 2**64 - 1


class JSONRenderer(BaseRenderer):
    """Write JSON quickly; times are RFC 3339 in UTC and end in Z."""

    media_type = "application/json"
    format = "json"
    charset = None

    def render(
        self,
        data: Any,
        accepted_media_type: str | None = None,  # noqa: ARG002 - DRF's signature
        renderer_context: Mapping[str, Any] | None = None,  # noqa: ARG002 - DRF's signature
    ) -> bytes:
        if data is None:
            return b""
        try:
            return orjson.dumps(data, option=orjson.OPT_UTC_Z)
        except orjson.JSONEncodeError:
            # The database gives large floats back as whole numbers, and those may be too long.
            return orjson.dumps(_shortened(data), option=orjson.OPT_UTC_Z)


def _shortened(value: Any) -> Any:
    """Make floats of whole numbers that no machine integer holds."""
    if isinstance(value, Mapping):
        return {key: _shortened(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(one) for one in value]
    if type(value) is int and not _LEAST <= value <= _MOST:
        return float(value)
    return value


class TextRenderer(BaseRenderer):
    """Write plain text."""

    media_type = "text/plain"
    format = "txt"
    charset = "utf-8"

    def render(
        self,
        data: Any,
        accepted_media_type: str | None = None,  # noqa: ARG002 - DRF's signature
        renderer_context: Mapping[str, Any] | None = None,  # noqa: ARG002 - DRF's signature
    ) -> bytes:
        return str(data).encode()
