"""A model card's Markdown as HTML that is safe to show: rendered first, then sanitised."""

from collections.abc import Sequence
from typing import Final

import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, table
from markdown_it.rules_core import StateCore
from markdown_it.token import Token

MAX_CHARACTERS: Final = 200_000
# The time that one paragraph takes grows with the square of its length: ten thousand brackets take
# a moment, a hundred thousand half a minute. A longer one is shown as it is written.
_MAX_PARAGRAPH: Final = 5_000
# Of all tables together. A row of one cell is filled up to the width of its table, so a card of
# 200 kB could ask for millions, a minute of work for each reader; a table beyond, and all that
# follow it, are shown as text.
_MAX_CELLS: Final = 20_000
# fmt: off
_TAGS: Final = {
    "a", "blockquote", "br", "code", "dd", "del", "dl", "dt", "em", "h1", "h2", "h3", "h4", "h5",
    "h6", "hr", "img", "li", "ol", "p", "pre", "s", "strong", "sub", "sup", "table", "tbody",
    "td", "th", "thead", "tr", "ul",
}
# fmt: on
_ATTRIBUTES: Final = {
    "a": {"href", "title"},
    "img": {"src", "alt", "title"},
    "ol": {"start"},
    "code": {"class"},
}


def _allowed(tag: str, attribute: str, value: str) -> str | None:
    if tag == "code" and attribute == "class":
        return value if value.startswith("language-") else None
    # Pictures from elsewhere would tell their host who reads the card, and the CSP refuses them.
    if tag == "img" and attribute == "src" and not value.startswith("data:image/"):
        return None
    return value


_SANITISER: Final = nh3.Cleaner(
    tags=_TAGS,
    attributes=_ATTRIBUTES,
    attribute_filter=_allowed,
    # A wide table scrolls in a narrow window, by the keyboard too.
    set_tag_attribute_values={"table": {"tabindex": "0"}},
    url_schemes={"http", "https", "mailto", "data"},
    link_rel="noopener noreferrer nofollow",
    strip_comments=True,
)
_MARKDOWN: Final = MarkdownIt("commonmark", {"html": False, "maxNesting": 40}).enable(
    ["table", "strikethrough"]
)


def _unhead_empty_cells(tokens: Sequence[Token]) -> None:
    """Make a cell without words an ordinary one: an empty heading says nothing to a reader."""
    for start, content, end in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if start.type == "th_open" and end.type == "th_close" and not content.content.strip():
            start.tag = end.tag = "td"


def _parse_paragraphs(state: StateCore) -> None:
    """Find emphasis, links and code in what is not too long for it."""
    for token in state.tokens:
        if token.type != "inline":
            continue
        token.children = []
        if len(token.content) > _MAX_PARAGRAPH:
            token.children.append(Token("text", "", 0, content=token.content))
        else:
            state.md.inline.parse(token.content, state.md, state.env, token.children)


def _parse_table(state: StateBlock, start: int, end: int, silent: bool) -> bool:  # noqa: FBT001 - the parser's
    """Parse a table, as long as there is room for its cells."""
    used = state.env.get("cells", 0)
    if used > _MAX_CELLS or not table(state, start, end, True):  # noqa: FBT003 - the parser's
        return False
    if silent:
        return True
    last = next((line for line in range(start, end) if state.isEmpty(line)), end)
    first_row = state.src[state.bMarks[start] : state.eMarks[start]]
    used += (first_row.count("|") + 1) * (last - start)
    state.env["cells"] = used
    return used <= _MAX_CELLS and table(state, start, end, False)  # noqa: FBT003 - the parser's


_MARKDOWN.core.ruler.at("inline", _parse_paragraphs)
_MARKDOWN.block.ruler.at("table", _parse_table, {"alt": ["paragraph", "reference"]})


def render_markdown(text: str) -> str:
    """Return sanitised HTML; headings move down one level, so that the page keeps its one h1."""
    tokens = _MARKDOWN.parse(text[:MAX_CHARACTERS])
    for token in tokens:
        if token.type in {"heading_open", "heading_close"}:
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"
    _unhead_empty_cells(tokens)
    html: str = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})
    return _SANITISER.clean(html)
