import re
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.lexicon import (
    concept_token,
    concepts_named,
    english_of,
    is_chinese,
    pieces_of,
    read_words,
    terms_of,
)


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("sentence embeddings", "句子向量"),
        ("text classifiers", "文本分类"),
        ("Handwritten digits", "手写数字"),
        ("named-entity recognition", "命名实体识别"),
        ("a model for sentiment analysis", "情感分析模型"),
        ("quantised", "量化"),
    ],
)
def test_both_languages_are_indexed_by_the_same_concept(english, chinese):
    shared = set(terms_of(english).split()) & set(terms_of(chinese).split())
    assert any(term.startswith("concept") for term in shared)


def test_a_longer_phrase_holds_the_shorter_ones_in_the_index():
    terms = terms_of("文本分类").split()
    assert {concept_token(name) for name in ("text-classification", "text", "classification")} <= {
        *terms
    }


def test_a_query_is_cut_into_the_fewest_parts():
    parts = read_words(["能识别手写数字的小模型"])
    concepts = [name for one in parts for name in one.concepts]
    assert concepts == ["handwritten-digits", "small"]
    assert [one.words for one in read_words(["sentence", "embeddings", "fast"])] == [
        ("sentence", "embeddings"),
        ("fast",),
    ]


def test_a_typed_token_of_english_stays_whole():
    assert [one.words for one in read_words(["all-minilm-l6-v2", "alice/digits"])] == [
        ("all-minilm-l6-v2",),
        ("alice/digits",),
    ]


def test_a_concept_is_named_in_either_language_and_number():
    assert concepts_named("translation") == concepts_named("机器翻译") == ("translation",)
    assert concepts_named("translations") == ("translation",)
    assert concepts_named("nothing of that kind") == ()


@given(st.text(alphabet=st.sampled_from("句子向量 文本分类x光abc-_%\0\u202e😀ß"), max_size=60))
def test_what_is_typed_is_found_in_a_text_that_says_it(text):
    tokens = text.lower().split()
    indexed = set(terms_of(text).split())
    for part in read_words(tokens):
        for name in part.concepts:
            if all(ord(character) > 0x3000 for word in part.words for character in word):
                assert concept_token(name) in indexed


def concept_lines():
    """Give the table of concepts as it is written, a list of phrases a line."""
    lines = files("registry").joinpath("concepts.txt").read_text().splitlines()
    return [line.split(", ") for line in lines if line and not line.startswith("#")]


def test_each_phrase_of_the_table_names_one_concept():
    """A plural that ends in s is found by the singular: it is the same phrase in another line."""
    lines: dict[str, set[str]] = {}
    for line in concept_lines():
        for phrase in line:
            plain = phrase if is_chinese(phrase) else pieces_of(phrase).removesuffix("s")
            lines.setdefault(plain, set()).add(line[0])
    assert {phrase: names for phrase, names in lines.items() if len(names) > 1} == {}


def test_each_concept_of_the_table_is_said_in_both_languages():
    assert len(concept_lines()) > 300
    for name, *others in concept_lines():
        assert re.fullmatch("[a-z0-9-]+", name), name
        assert any(map(is_chinese, others)), name
        for phrase in others:
            assert phrase == phrase.strip().lower(), phrase
            if is_chinese(phrase):
                # One character is a part of too many words; a longer one is never looked for.
                assert 2 <= len(phrase) <= 8, phrase
            else:
                assert len(pieces_of(phrase).split()) <= 4, phrase


@pytest.mark.parametrize(
    ("chinese", "english"),
    [
        ("糖尿病患者的血糖预测", ["diabetes", "patient", "blood sugar"]),
        ("面向工厂的设备故障诊断", ["equipment failure", "diagnosis"]),
        ("用于电池剩余寿命的时间序列模型", ["battery", "remaining life", "time series"]),
        ("粤语语音识别", ["cantonese", "speech recognition"]),
        ("基于神经网络的英文语法纠错", ["neural network", "english", "grammar correction"]),
        ("车牌识别与行人检测", ["license plate", "pedestrian"]),
    ],
)
def test_what_a_card_says_in_chinese_reaches_the_encoder_in_english(chinese, english):
    said = english_of(f"{chinese} v2")
    assert not is_chinese(said)
    assert said.endswith("v2")
    for words in english:
        assert words in said
