"""Cards come out as harmless HTML."""

import pytest

from registry.web.markdown import render_markdown


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[a](javascript:alert(1))",
        "[a](JaVaScRiPt:alert(1))",
        "[a](data:text/html;base64,PHNjcmlwdD4=)",
        "![a](https://tracker.example/pixel.png)",
        "<svg><script>alert(1)</script></svg>",
        "<iframe src='https://a.example'></iframe>",
        "<a href='x' style='position:fixed'>a</a>",
        '```js" onload=alert(1)\nx\n```',
    ],
)
def test_nothing_active_gets_through(hostile):
    html = render_markdown(hostile)
    for trace in ("<script", "<img src=x", 'href="java', 'href="JaVa', 'href="data:', "<iframe"):
        assert trace not in html
    assert "tracker.example" not in html
    assert "<a href='x'" not in html
    assert " onload=" not in html.replace("&quot; onload=", "")


def test_headings_move_down_one_level():
    assert render_markdown("# One\n\n###### Six") == "<h2>One</h2>\n<h6>Six</h6>\n"


def test_tables_code_and_links_work():
    html = render_markdown("|a|\n|-|\n|1|\n\n```python\nx\n```\n\n[l](https://example.org) ~~s~~")
    assert '<table tabindex="0">' in html
    assert '<code class="language-python">' in html
    assert 'rel="noopener noreferrer nofollow"' in html
    assert "<s>s</s>" in html


def test_headings_of_tables_have_words():
    html = render_markdown("||b|\n|-|-|\n|1|2|")
    assert "<th></th>" not in html
    assert "<td></td>" in html
    assert "<th>b</th>" in html


def test_deep_and_long_texts_end():
    assert render_markdown("> " * 5000 + "x")
    assert len(render_markdown("a" * 2_000_000)) < 500_000


def test_tables_that_would_fill_themselves_up_are_shown_as_they_are_written():
    """A row of one cell is as wide as its table: four bytes for a thousand cells."""
    wide = "|" + "a|" * 1000 + "\n|" + "-|" * 1000 + "\n" + "|x|\n" * 65 + "\n"
    html = render_markdown(wide * 46)
    assert len(html) < 1_000_000
    assert "|x|" in html
    assert '<table tabindex="0">' in render_markdown("|a|b|\n|-|-|\n" + "|1|2|\n" * 1000)
    # Each line here ends the paragraph before it and begins a table, if there were room for one.
    assert render_markdown("|a|b|\n|-|-|\n" * 9000).count("<table") <= 1


def test_a_paragraph_that_would_take_too_long_is_shown_as_it_is_written():
    assert "<em>a</em>" in render_markdown("*a* " * 1000)
    assert render_markdown("*a* " * 2000).startswith("<p>*a* *a*")
    assert render_markdown("[" * 300_000 + "\n\n*b*").count("[") == 200_000
    assert "<em>b</em>" in render_markdown("<b>" * 4000 + "\n\n*b*")
    assert "<b>" not in render_markdown("<b>" * 4000)
