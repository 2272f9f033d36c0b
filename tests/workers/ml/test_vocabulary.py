"""Words as numbers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.errors import Invalid
from workers.ml.vocabulary import (
    PADDING,
    UNKNOWN,
    Vocabulary,
    build_vocabulary,
    load_vocabulary,
    split_words,
)


def test_words_digits_and_marks_stand_alone():
    assert split_words("Don't call f_2(x), 42 ÄPFEL", 50) == (
        ["don", "'", "t", "call", "f", "_", "2", "(", "x", ")", ",", "4", "2", "äpfel"]
    )


def test_the_most_frequent_words_come_first_and_ties_by_spelling():
    vocabulary = build_vocabulary(["b a c", "b d"], size=5, max_length=10)
    assert vocabulary.words[2:] == ("b", "a", "c")
    assert vocabulary.encode("b zebra a", 10) == [2, UNKNOWN, 3]


def test_a_text_is_cut_and_never_empty():
    vocabulary = build_vocabulary(["a b c"], size=9, max_length=10)
    assert len(vocabulary.encode("a " * 100, 7)) == 7
    assert vocabulary.encode("   ", 7) == [UNKNOWN]


def test_saved_and_loaded_it_is_the_same(tmp_path):
    vocabulary = build_vocabulary(["ünïcode “words”\n"], size=30, max_length=10)
    vocabulary.save(tmp_path)
    assert load_vocabulary(tmp_path).words == vocabulary.words


@pytest.mark.parametrize(
    "content",
    [
        None,
        "{",
        "{}",
        "[1]",
        '["a"]',
        json.dumps(["<padding>", "<unknown>", "a", "a"]),
    ],
)
def test_a_bad_vocabulary_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "vocabulary.json").write_text(content)
    with pytest.raises(Invalid) as caught:
        load_vocabulary(tmp_path)
    assert caught.value.reason == "bad_vocabulary"


@given(st.text(max_size=300), st.integers(1, 20))
def test_any_text_becomes_known_numbers(text, longest):
    vocabulary = build_vocabulary([text], size=20, max_length=longest)
    numbers = vocabulary.encode(text, longest)
    assert 1 <= len(numbers) <= longest
    assert all(PADDING < number < len(vocabulary) for number in numbers)
    assert isinstance(vocabulary, Vocabulary)
