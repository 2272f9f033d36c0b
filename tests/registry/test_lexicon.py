import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.lexicon import concept_token, concepts_named, read_words, terms_of


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
