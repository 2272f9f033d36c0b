"""Refusals in the language of the page: the template is translated, then its values go in."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from django.conf import settings
from django.contrib import messages
from django.http import HttpRequest
from django.utils import translation
from django.utils.translation import gettext

from registry.errors import RegistryError, Text, fill, unpack
from registry.web.wording import WORDS

_TYPED: Final = "typed"
# Characters of a field; a session is no place for more.
_MOST_TYPED: Final = 4000


class Said(Protocol):
    """A text, a wrong field or a refusal."""

    template: str
    values: Mapping[str, Any]


def words_of(said: Said) -> str:
    """Say it in the language that is active."""
    values = {name: _value(name, value) for name, value in said.values.items()}
    return fill(gettext(said.template), values)


def attempt(request: HttpRequest, change: Callable[[], Any], done: str) -> None:
    """Make a small change; say that it was done, or why not, on the page that comes next."""
    try:
        change()
    except RegistryError as error:
        messages.error(request, words_of(error))
    else:
        messages.success(request, done)


def keep_typed(request: HttpRequest, page: str, form: str, fields: Iterable[str]) -> None:
    """Keep what was typed into a small form that was refused, for the page that comes next."""
    typed = {name: request.POST.get(name, "")[:_MOST_TYPED] for name in fields}
    request.session[_TYPED] = {"page": page, "forms": {form: typed}}


def take_typed(request: HttpRequest) -> dict[str, dict[str, str]]:
    """Give what was kept for this page, by the name of the form; once."""
    kept = request.session.get(_TYPED)
    if kept is None or kept["page"] != request.path:
        return {}
    del request.session[_TYPED]
    typed: dict[str, dict[str, str]] = kept["forms"]
    return typed


def stored_words(packed: Mapping[str, Any] | None, detail: str) -> str:
    """Say what a row keeps (`registry.errors.pack`), or `detail`, its English.

    Part of it was said by a process that read the files of strangers: only templates that are in
    the catalogue are filled in.
    """
    said = unpack(packed) if packed else None
    return words_of(said) if said is not None and _is_known(said) else detail


def _is_known(said: Text) -> bool:
    inner = [value for value in said.values.values() if isinstance(value, Text)]
    return gettext(said.template) != said.template and all(map(_is_known, inner))


def words_at(path: str, said: Said) -> str:
    """Say it in the language of the page that has, or asks at, this address."""
    language = translation.get_language_from_path(path) or settings.LANGUAGE_CODE
    with translation.override(language):
        return words_of(said)


def _value(name: str, value: Any) -> Any:
    if isinstance(value, Text | RegistryError):
        return words_of(value)
    words = WORDS.get(name.rpartition("_")[2], {})
    return str(words[value]) if isinstance(value, str) and value in words else value
