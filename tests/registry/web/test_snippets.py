"""Snippets are safe to paste: what an uploader chose never becomes code."""

import ast

import pytest

from registry.web.snippets import highlight, snippets
from tests.factories import make_model, make_version

pytestmark = pytest.mark.django_db

HOSTILE = [
    "a$(touch x).safetensors",
    "`id`.onnx",
    'b";import os;".csv',
    "c'd.json",
    "-rf.json",
    "e f.json",
    "g;h.json",
]


def code_of(owner, paths, visibility="public"):
    repository = make_model(owner, "named", visibility=visibility)
    version = make_version(owner, repository, {"a.txt": b"a"})
    found = snippets("http://127.0.0.1:8000", repository, version, paths)
    return {snippet.key: snippet.code for snippet in found}


def test_hostile_file_names_are_left_out(owner):
    for key, code in code_of(owner, HOSTILE).items():
        for path in HOSTILE:
            assert path not in code, key


def test_a_plain_name_beside_them_is_taken(owner):
    assert "weights/model.onnx" in code_of(owner, [*HOSTILE, "weights/model.onnx"])["curl"]


@pytest.mark.parametrize("visibility", ["public", "private"])
def test_python_snippets_are_python(owner, visibility):
    codes = code_of(owner, ["model.safetensors"], visibility)
    for key in ("python", "requests"):
        ast.parse(codes[key])
    for code in codes.values():
        assert ("MODELYARD_TOKEN" in code) is (visibility == "private")


def test_what_was_converted_is_what_there_is_to_use(owner):
    version = make_version(owner, make_model(owner, "named"), {"a.pkl": b"\x80\x04K\x01."})
    found = snippets(
        "http://127.0.0.1:8000",
        version.repository,
        version,
        ["a.pkl"],
        converted=["model.safetensors"],
    )
    for snippet in found:
        assert "a.pkl" not in snippet.code
        assert "derivatives" in snippet.code
    codes = {snippet.key: snippet.code for snippet in found}
    assert "$url/versions/1/derivatives/model.safetensors" in codes["curl"]
    ast.parse(codes["python"])


def test_highlighting_escapes_everything():
    html = highlight('x = "<b>" # <i>\nimport <u>')
    assert "<b>" not in html
    assert "<i>" not in html
    assert '<span class="k">import</span> &lt;u&gt;' in html
