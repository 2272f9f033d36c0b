"""Gather every translated text; `python -m tests.registry.web.messages` updates the files."""

import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from babel.messages.catalog import Catalog
from babel.messages.extract import extract
from babel.messages.pofile import read_po, write_po
from django.conf import settings
from django.utils.translation.template import templatize

from registry.recipes import RECIPES, recipe_schema
from tests.registry.web.templates import titles, trees, uses

ROOT = Path(__file__).parents[3]
LOCALE = ROOT / "locale"
CATALOGUES = sorted(LOCALE.glob("*/LC_MESSAGES/django.po"))
KEYWORDS = {
    "_": None,
    "gettext": None,
    "gettext_lazy": None,
    "gettext_noop": None,
    "ngettext": (1, 2),
    "pgettext": ((1, "c"), 2),
    "pgettext_lazy": ((1, "c"), 2),
    "npgettext": ((1, "c"), 2, 3),
}


@cache
def template_catalogue() -> Catalog:
    """Collect the texts of pages, recipes and refusals, without translations."""
    found = Catalog(project="Modelyard", charset="utf-8", fuzzy=False)
    texts = (*_of_code(), *_of_templates(), *_of_recipes(), *_of_refusals())
    for text, context, place in texts:
        # No line numbers: a catalogue changes when a text does, not when a line moves.
        found.add(text, context=context, locations=[(place, None)])
    return found


def _of_code() -> Iterator[tuple[Any, str | None, str]]:
    for path in sorted((ROOT / "registry" / "web").rglob("*.py")):
        yield from _extract(path.read_text(encoding="utf-8"), path)


def _of_templates() -> Iterator[tuple[Any, str | None, str]]:
    for path in sorted((ROOT / "templates").rglob("*.html")):
        code = templatize(path.read_text(encoding="utf-8"), origin=path.name)
        yield from _extract("\n".join(line.lstrip() for line in code.splitlines()), path)


def _extract(code: str, path: Path) -> Iterator[tuple[Any, str | None, str]]:
    source = io.BytesIO(code.encode())
    for _line, text, _comments, context in extract("python", source, keywords=KEYWORDS):
        yield text, context, str(path.relative_to(ROOT))


def _of_refusals() -> Iterator[tuple[Any, str | None, str]]:
    code = trees()
    for use in uses(code):
        if use.template:
            yield use.template, None, use.place.partition(":")[0]
    for place, title in titles(code):
        yield title, None, place


def _of_recipes() -> Iterator[tuple[Any, str | None, str]]:
    for kind in RECIPES:
        schema = recipe_schema(kind)
        parts = [schema, *schema.get("$defs", {}).values()]
        for part in parts:
            for text in (part.get("title"), part.get("description", "").partition("\n")[0]):
                if text:
                    yield text, None, "registry/recipes/"
            for name, field in part.get("properties", {}).items():
                if name in {"kind", "schema", "steps", "architecture"} or "const" in field:
                    continue
                options = [field, *field.get("anyOf", [])]
                for text in (
                    option.get(key) for option in options for key in ("title", "description")
                ):
                    if text:
                        yield text, None, "registry/recipes/"


def read_catalogue(path: Path) -> Catalog:
    with path.open("rb") as file:
        return read_po(file, locale=path.parts[-3])


def write_catalogue(path: Path, catalogue: Catalog) -> None:
    """Write a catalogue with a head that says only what programs need, so that it never churns."""
    body = io.BytesIO()
    write_po(body, catalogue, sort_output=True, width=98, omit_header=True)
    head = (
        'msgid ""\nmsgstr ""\n"Project-Id-Version: Modelyard\\n"\n'
        f'"Language: {path.parts[-3]}\\n"\n"Plural-Forms: {catalogue.plural_forms}\\n"\n'
        '"MIME-Version: 1.0\\n"\n"Content-Type: text/plain; charset=utf-8\\n"\n'
        '"Content-Transfer-Encoding: 8bit\\n"\n\n'
    )
    path.write_bytes(head.encode() + body.getvalue().lstrip())


def update() -> None:
    for path in CATALOGUES:
        catalogue = read_catalogue(path)
        catalogue.update(template_catalogue(), no_fuzzy_matching=True)
        catalogue.obsolete.clear()
        write_catalogue(path, catalogue)


if __name__ == "__main__":
    settings.configure(USE_I18N=True)
    update()
