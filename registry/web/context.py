"""What every page knows: who is looking, where they are, the same page in the other language."""

from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.urls import translate_url
from django.utils.translation import get_language_info

from registry.web.visitor import actor_of

_HTML_LANGUAGES = {"en": "en", "zh-hans": "zh-Hans"}


def page(request: HttpRequest) -> dict[str, Any]:
    segments = request.path_info.strip("/").split("/")
    if segments[0] in _HTML_LANGUAGES:
        segments = segments[1:]
    return {
        "actor": actor_of(request),
        "section": segments[0] if segments else "",
        "languages": _languages(request),
        "html_language": _HTML_LANGUAGES.get(getattr(request, "LANGUAGE_CODE", "en"), "en"),
        "product_version": settings.VERSION,
        "undo": _undo(request),
    }


def _languages(request: HttpRequest) -> list[dict[str, str]]:
    here = request.get_full_path()
    return [
        {
            "code": _HTML_LANGUAGES[code],
            "name": get_language_info(code)["name_local"],
            "href": translate_url(here, code),
        }
        for code, _name in settings.LANGUAGES
    ]


def _undo(request: HttpRequest) -> dict[str, Any] | None:
    """Take the way back that the last change left behind, once."""
    session = getattr(request, "session", None)
    if session is None or request.method != "GET" or "undo" not in session:
        return None
    undo: dict[str, Any] = session.pop("undo")
    return undo
