"""Whatever the bytes, a reader answers or refuses; it never breaks, hangs or reads it all."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.errors import Invalid
from registry.formats import inspect
from registry.formats.card import parse_card
from registry.formats.paths import check_path, check_paths
from tests.registry.formats import samples

NAMES = sorted(samples.HONEST)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 1 << 70) | st.text(max_size=5) | st.just(0.5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


def look(name, data):
    """Answer how many bytes were read; Invalid is an answer too."""
    seen = 0

    def read(start, end):
        nonlocal seen
        assert 0 <= start <= end <= len(data)
        seen += end - start
        return data[start:end]

    refusal = None
    try:
        assert inspect(name, len(data), read).to_json()["format"]
    except Invalid as error:
        refusal = error
    if refusal is not None:
        assert refusal.reason == "malformed_file"
        assert len(refusal.detail) < 1000
    return seen


def damage(chooser, data):
    data = bytearray(data)
    for _ in range(chooser.randint(1, 8)):
        if not data:
            break
        at = chooser.randrange(len(data))
        match chooser.randrange(5):
            case 0:
                data[at] = chooser.randrange(256)
            case 1:
                data[at : at + chooser.randint(1, 16)] = b""
            case 2:
                data[at:at] = chooser.randbytes(chooser.randint(1, 16))
            case 3:
                data[at : at + 8] = chooser.choice((b"\xff" * 8, bytes(8), b"\x7f" + b"\xff" * 7))
            case 4:
                data[at:] = data[: chooser.randrange(len(data))]
    return bytes(data)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files(name):
    chooser = random.Random(name)
    for _ in range(400):
        look(name, damage(chooser, samples.HONEST[name]))


@pytest.mark.parametrize("name", NAMES)
def test_files_cut_short(name):
    data = samples.HONEST[name]
    for length in range(0, len(data), max(1, len(data) // 200)):
        look(name, data[:length])


@given(st.sampled_from(NAMES), st.sampled_from(NAMES), st.binary(max_size=64))
@settings(max_examples=300, deadline=None)
def test_one_format_under_the_name_of_another(name, content, tail):
    look(name, samples.HONEST[content] + tail)
    look(name, tail + samples.HONEST[content])


@given(st.sampled_from(NAMES), st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_noise(name, data):
    look(name, data)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
            lambda name: "\0" not in name and name != "__metadata__"
        ),
        st.lists(st.integers(0, 5), max_size=4),
        max_size=6,
    )
)
@settings(max_examples=100, deadline=None)
def test_every_honest_safetensors_file_is_read(shapes):
    tensors = {}
    total = 0
    for name, shape in shapes.items():
        count = 1
        for size in shape:
            count *= size
        total += count
        tensors[name] = ("F16", shape, bytes(2 * count))
    data = samples.safetensors(tensors)
    facts = inspect("m.safetensors", len(data), lambda start, end: data[start:end])
    assert facts.parameters_count == total
    assert facts.tensors.count == len(shapes)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_myz_header_with_anything_in_any_place(data):
    header, body = data.draw(st.sampled_from(samples.MYZ_HEADERS))
    header = json.loads(json.dumps(header))
    spots = list(_spots(header))
    holder, key = data.draw(st.sampled_from(spots))
    holder[key] = data.draw(JSON)
    look("m.myz", samples.myz_file(header, body))


def _spots(value):
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(item, (dict, list)):
            yield from _spots(item)


def test_only_headers_are_read():
    big = samples.safetensors({"w": ("U8", [8 << 20], bytes(8 << 20))})
    assert look("m.safetensors", big) < 200_000
    weights = samples.onnx_tensor(dtype=2, dims=(8 << 20,), raw=bytes(8 << 20))
    assert look("m.onnx", samples.onnx(initializers=[weights])) < 500_000


@given(st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_a_path_is_kept_as_it_is_or_refused(path):
    try:
        assert check_path(path) == path
    except Invalid:
        return
    check_paths([path])
    assert not path.startswith("/")
    assert ".." not in path.split("/")


@given(st.text(max_size=300))
@settings(max_examples=300, deadline=None)
def test_a_card_is_always_read(text):
    parse_card(text)
    parse_card(f"---\n{text}\n---\n{text}")


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=10),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
    )
)
@settings(max_examples=100, deadline=None)
def test_a_card_with_odd_values_is_read(value):
    keys = ("license", "tags", "base_model", "language", "pipeline_tag")
    parse_card("---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key in keys) + "---\n")
