import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import Invalid
from registry.query_language import FIELDS, MAX_CHARACTERS, MAX_TERMS, Bounds, parse


def bounds(query):
    (one,) = parse(query).narrowings
    return one.bounds


def test_a_query_is_words_phrases_and_fields_in_any_order():
    asked = parse('tiny task:translation "natural language" -large tag:team=nlp')
    assert [(one.text, one.together, one.negated) for one in asked.words] == [
        ("tiny", False, False),
        ("natural language", True, False),
        ("large", False, True),
    ]
    assert [(one.field, one.detail, one.text) for one in asked.narrowings] == [
        ("task", "", "translation"),
        ("tag", "team", "nlp"),
    ]
    assert asked.text == "tiny natural language"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("params:<50M", Bounds(high=50e6, with_high=False)),
        ("params:<=1.5b", Bounds(high=1.5e9)),
        ("size:>=100MB", Bounds(low=100e6)),
        ("size:>1GiB", Bounds(low=float(1 << 30), with_low=False)),
        ("downloads:10..2k", Bounds(low=10, high=2000)),
        ("latency:<500us", Bounds(high=0.5, with_high=False)),
        ("latency:<2s", Bounds(high=2000, with_high=False)),
        ("memory:..300MB", Bounds(high=300e6)),
        ("accuracy:>95%", Bounds(low=0.95, with_low=False)),
        ("accuracy:=0.95", Bounds(low=0.95, high=0.95)),
        ("accuracy:0.95", Bounds(low=0.945, high=0.955, with_high=False)),
        ("params:50M", Bounds(low=49.5e6, high=50.5e6, with_high=False)),
    ],
)
def test_numbers_have_units_and_bounds(query, expected):
    assert bounds(query) == expected


def test_measurements_are_asked_for_by_their_short_names_or_in_full():
    metrics = [one.detail for one in parse("latency:<5 f1:>0.9 metric.rouge1:>0.4").narrowings]
    assert metrics == ["latency_p50_batch1", "f1_macro", "rouge1"]


def test_days_are_whole_days_of_utc():
    first = datetime(2026, 1, 31, tzinfo=UTC).timestamp()
    assert bounds("created:>=2026-01-31") == Bounds(low=first)
    assert bounds("created:<2026-01-31") == Bounds(high=first, with_high=False)
    after = bounds("created:>2026-01-31")
    assert after.low == pytest.approx(first + 86_400, abs=1e-3)
    month = bounds("updated:2026-01-01..2026-01-31")
    assert month.high == after.low


@pytest.mark.parametrize(
    ("query", "position"),
    [
        ('tiny "bert', 5),
        ('tag:team="nlp', 9),
        ("tiny wings:3", 5),
        ("params:", 7),
        ("params:<many", 8),
        ("params:1..x", 10),
        ("size:9GB..1GB", 5),
        ("size:5ms", 5),
        ("accuracy:nan", 9),
        ("created:yesterday", 8),
        ("created:<2026-02-30", 9),
        ("a tag:=x", 6),
        ("metric:>1", 0),
        ("task.x:y", 0),
        ("w " * MAX_TERMS + "more", 2 * MAX_TERMS),
        ("x" * (MAX_CHARACTERS + 1), MAX_CHARACTERS),
    ],
)
def test_a_refusal_points_at_the_place(query, position):
    with pytest.raises(Invalid) as refused:
        parse(query)
    (problem,) = refused.value.errors
    assert (problem.field, problem.code) == ("q", "bad_query")
    assert problem.position == position


def test_a_refusal_of_a_field_proposes_the_nearest():
    with pytest.raises(Invalid, match=r"Did you mean accuracy:>0\.95\?"):
        parse("acuracy:>0.9")


def test_quotes_take_a_colon_for_what_it_is():
    (one,) = parse('"http://example.org"').words
    assert one.text == "http://example.org"


_PIECES = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ['"', "-", ":", "..", "<", "=", " ", "%", "_", "句子", "\u202e", "tag:", "1MB"]
    ),
    st.sampled_from([f"{name}:" for name in FIELDS]),
)


@given(st.lists(_PIECES, max_size=30).map("".join))
def test_any_text_is_read_or_refused_at_a_place_within_it(query):
    try:
        asked = parse(query)
    except Invalid as refused:
        (problem,) = refused.errors
        assert 0 <= problem.position <= len(query)
        return
    for word in asked.words:
        assert word.text == word.text.strip() != ""
        rest = query[word.position :]
        # Quotes that close something inside a word are left out of it.
        assert word.text in rest or word.text in rest.replace('"', "")
    for one in asked.narrowings:
        assert one.field in FIELDS
        for bound in (one.bounds.low, one.bounds.high) if one.bounds else ():
            assert bound is None or math.isfinite(bound)
