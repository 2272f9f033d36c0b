"""Reads a model card: the YAML head of a README.md and the text below it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from registry.errors import Text

MAX_CARD_BYTES = 1024 * 1024
MAX_HEAD_BYTES = 64 * 1024
MAX_DEPTH = 16
MAX_VALUE = 200
MAX_ITEMS = 100
MAX_SUMMARY = 300

_HEAD = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
# What a YAML escape can bring in and no text here can hold: controls, bidirectional overrides,
# halves of characters.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NOT_PROSE = re.compile(r"^(#|\||<|!\[|\[!\[|```|~~~|---|===|\* |- |> )")
_LINK = re.compile(r"!?\[([^\]\n]{0,300})\]\([^)\n]{0,500}\)")


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card says; `problems` names what could not be understood, which is no error."""

    license: str = ""
    task: str = ""
    library: str = ""
    tags: Sequence[str] = ()
    base_models: Sequence[str] = ()
    datasets: Sequence[str] = ()
    language: Sequence[str] = ()
    summary: str = ""
    body: str = ""
    problems: Sequence[Text] = ()


class _BoundedLoader(yaml.BaseLoader):
    """Everything is text, nothing is built; no aliases (which multiply) and no deep nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested deeper than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def parse_card(text: str) -> Card:
    """Read as much of a card as makes sense; never raise."""
    problems: list[Text] = []
    text = text.replace("\0", "\ufffd")
    if len(text) > MAX_CARD_BYTES:
        text = text[:MAX_CARD_BYTES]
        problems.append(
            Text(
                "The card is longer than {limit} characters; the rest is left out.",
                limit=MAX_CARD_BYTES,
            )
        )
    match = _HEAD.match(text)
    body = text[match.end() :] if match else text
    head = _load_head(match.group(1), problems) if match else {}
    return Card(
        license=_first(head, "license", "licence") or _first(head, "license_name"),
        task=_first(head, "pipeline_tag", "task"),
        library=_first(head, "library_name", "library"),
        tags=_texts(head.get("tags")),
        base_models=_texts(head.get("base_model")),
        datasets=_texts(head.get("datasets")),
        language=_texts(head.get("language")),
        summary=_first(head, "summary", "description") or _first_paragraph(body),
        body=body.lstrip("\r\n"),
        problems=tuple(problems),
    )


def _load_head(head: str, problems: list[Text]) -> dict[str, Any]:
    if len(head) > MAX_HEAD_BYTES:
        problems.append(
            Text(
                "The YAML head is longer than {limit} characters and not read.",
                limit=MAX_HEAD_BYTES,
            )
        )
        return {}
    try:
        value = yaml.load(head, Loader=_BoundedLoader)  # noqa: S506 - BaseLoader builds only text
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        problems.append(Text("The YAML head is not valid and not read: {reason}.", reason=reason))
        return {}
    if isinstance(value, dict):
        return value
    if value:
        problems.append(Text("The YAML head is no list of `key: value` lines and not read."))
    return {}


def _first(head: dict[str, Any], *keys: str) -> str:
    for key in keys:
        if texts := _texts(head.get(key)):
            return texts[0]
    return ""


def _texts(value: Any) -> tuple[str, ...]:
    """Take one text or a list of texts; anything else in the list is left out."""
    items = value if isinstance(value, list) else [value]
    texts = (
        " ".join(_UNPRINTABLE.sub("", " ".join(item.split())).split())[:MAX_VALUE]
        for item in items
        if isinstance(item, str)
    )
    return tuple(dict.fromkeys(text for text in texts if text))[:MAX_ITEMS]


def _first_paragraph(body: str) -> str:
    """Take the first run of lines that are prose: no heading, list, table, image or code block."""
    prose: list[str] = []
    fence = ""
    for raw in body[: 32 * 1024].splitlines():
        line = raw.strip()
        if fence or line.startswith(("```", "~~~")):
            fence = ("" if line.startswith(fence) else fence) if fence else line[:3]
            line = ""
        if line and not _NOT_PROSE.match(line):
            prose.append(line)
        elif prose:
            break
    text = _LINK.sub(r"\1", " ".join(" ".join(prose).split())).replace("**", "").replace("`", "")
    return text if len(text) <= MAX_SUMMARY else text[: MAX_SUMMARY - 1].rstrip() + "…"
