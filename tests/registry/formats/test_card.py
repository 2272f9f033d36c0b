"""The head of a README fills the fields of a model; an odd head is reported, never an error."""

import pytest

from registry.formats.card import parse_card

CARD = """---
license: apache-2.0
pipeline_tag: sentence-similarity
library_name: sentence-transformers
tags:
  - embeddings
  - embeddings
  - 2024
base_model: nreimers/MiniLM-L6-H384-uncased
datasets: [s2orc, ms_marco]
language: en
---

# all-MiniLM-L6-v2

[![badge](https://x)](https://y)

This is a **sentence-transformers** model, see [the site](https://www.sbert.net).
It maps sentences.

## Usage
"""


def test_a_whole_card():
    card = parse_card(CARD)
    assert card.license == "apache-2.0"
    assert card.task == "sentence-similarity"
    assert card.library == "sentence-transformers"
    assert card.tags == ("embeddings", "2024")
    assert card.base_models == ("nreimers/MiniLM-L6-H384-uncased",)
    assert card.datasets == ("s2orc", "ms_marco")
    assert card.language == ("en",)
    assert card.summary == "This is a sentence-transformers model, see the site. It maps sentences."
    assert card.body.startswith("# all-MiniLM")
    assert card.problems == ()


def test_a_card_without_a_head():
    card = parse_card("# Title\n\nJust text.\n\n---\n\nmore")
    assert (card.summary, card.license, card.problems) == ("Just text.", "", ())


def test_windows_lines():
    assert parse_card("---\r\nlicense: mit\r\n---\r\n# A\r\n").license == "mit"


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        ("a: [", "not valid"),
        ("a: &x 1\nb: *x", "aliases are not read"),
        ("a: " + "[" * 40 + "]" * 40, "nested deeper"),
        ("- just\n- a list", "no list of"),
        ("a: !!python/object:os.system x\nlicense: mit", None),
        ("x" * 70_000, "longer than"),
        ("? [a, b]\n: c", "not valid"),
    ],
)
def test_odd_heads_are_problems(head, problem):
    card = parse_card(f"---\n{head}\n---\nBody.")
    assert card.body == "Body."
    if problem:
        assert problem in card.problems[0].detail
    else:
        assert card.license == "mit"


def test_values_of_the_wrong_kind_are_left_out():
    card = parse_card("---\nlicense: {a: b}\ntags: [a, [b], {c: d}, '']\nlanguage: null\n---\n")
    assert (card.license, card.tags) == ("", ("a",))


def test_a_huge_card_is_cut():
    card = parse_card("word " * 300_000)
    assert len(card.body) <= 1024 * 1024
    assert len(card.summary) <= 300
    assert card.problems


def test_the_summary_is_prose_even_right_below_a_heading_or_above_code():
    below = parse_card("# Name\nThis is a [model](https://x.test) that\nmaps text.\n\nMore.\n")
    assert below.summary == "This is a model that maps text."
    assert parse_card("```\ncode\n\nmore code\n```\n\nReal words.\n").summary == "Real words."
    assert parse_card("Above code:\n```python\nimport x\n```\n").summary == "Above code:"


def test_escapes_bring_in_no_character_that_a_table_cannot_hold():
    card = parse_card('---\ntags: ["a\\0b", "c\\uD800d", "\\0"]\nlicense: "\\u202emit\\x07"\n---\n')
    assert (card.tags, card.license) == (("ab", "cd"), "mit")
