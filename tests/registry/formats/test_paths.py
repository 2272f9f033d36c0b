"""Names of files inside a version."""

import pytest

from registry.errors import Invalid
from registry.formats.paths import check_path, check_paths


@pytest.mark.parametrize(
    "path",
    [
        "model.safetensors",
        "onnx/model_int8.onnx",
        "1_Pooling/config.json",
        ".gitattributes",
        "数据/模型.json",
        "a b/c d.txt",
        "~tilde",
        "console.log",
        "x" * 255,
    ],
)
def test_good_paths(path):
    assert check_path(path) == path


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "is empty"),
        ("/etc/passwd", "begins or ends with /"),
        ("a/", "begins or ends with /"),
        ("a//b", "has // in it"),
        ("../a", "'..'"),
        ("a/../../b", "'..'"),
        ("./a", "'.'"),
        ("a\\b", "in it"),
        ("C:/windows", "':'"),
        ("a\0b", "U+0000"),
        ("a\nb", "U+000A"),
        ("a\x7fb", "U+007F"),
        ("invoice\u202efdp.exe", "U+202E"),
        ("zero\u200bwidth", "U+200B"),
        ("\ufeffa", "U+FEFF"),
        ("half\ud800", "broken character"),
        ("e\u0301.txt", "normal form C"),
        ("con", "device name"),
        ("a/NUL.txt", "device name"),
        ("com1.log/x", "device name"),
        ("trailing.", "ends with a dot"),
        (" a", "space"),
        ("a /b", "space"),
        ("a" * 256, "longer than 255"),
        ("a/" * 600 + "b", "longer than 1024"),
        ("a/" * 40 + "b", "deeper than 32"),
        (".git/config", "git's own"),
        (".GIT/hooks/post-checkout", "git's own"),
        ("what?", "'?'"),
    ],
)
def test_bad_paths(path, reason):
    with pytest.raises(Invalid) as refusal:
        check_path(path)
    assert refusal.value.reason == "bad_path"
    assert reason in refusal.value.detail
    assert refusal.value.detail.isprintable()


@pytest.mark.parametrize(
    ("paths", "reason"),
    [
        (["README.md", "readme.md"], "only in case"),
        (["a/b", "A/B"], "only in case"),
        (["straße", "STRASSE"], "only in case"),
        (["ﬁle", "file"], "only in case"),
        (["a", "a"], "only in case"),
        (["a", "a/b"], "which is a file"),
        (["A/b/c", "a/b"], "which is a file"),
    ],
)
def test_paths_that_clash(paths, reason):
    with pytest.raises(Invalid, match=reason):
        check_paths(paths)


def test_paths_that_do_not_clash():
    check_paths(["a/b", "a/c", "ab", "a.b"])
