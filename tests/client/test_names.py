"""Names and notes under everything that could stand in them."""

import contextlib
import json
import threading
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.errors import BadName
from modelyard.folder import Digests
from modelyard.names import check_path, check_paths, parse_reference
from modelyard.pull import RANGE, Part
from modelyard.state import read_json, write_json
from modelyard.tus import PushMemory
from registry.errors import Invalid
from registry.formats import paths as servers

PATHS = st.one_of(
    st.text(max_size=40),
    st.lists(
        st.sampled_from(
            ["a", "..", ".", "", "B", "con", "aux.txt", "x.", " y", "é", "e\u0301", "C:", "\\", "ß"]
        ),
        max_size=5,
    ).map("/".join),
)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def passes(check, *arguments):
    try:
        check(*arguments)
    except (BadName, Invalid):
        return False
    return True


@given(PATHS)
@settings(max_examples=1000)
def test_a_path_that_passes_stays_where_it_belongs(path):
    if not passes(check_path, path):
        return
    assert not PurePosixPath(path).is_absolute()
    on_windows = PureWindowsPath(path)
    assert not on_windows.drive
    assert not on_windows.root
    assert list(on_windows.parts) == path.split("/") == list(PurePosixPath(path).parts)
    assert not {"..", "."} & set(path.split("/"))


@given(PATHS)
@settings(max_examples=1000)
def test_the_rules_are_those_of_the_server(path):
    theirs = passes(servers.check_path, path)
    # The client knows no unassigned characters: that depends on the age of its Python.
    if any(unicodedata.category(character) == "Cn" for character in path):
        return
    assert passes(check_path, path) == theirs


@given(
    st.lists(
        st.lists(
            st.sampled_from(["a", "A", "ß", "ss", "ﬁ", "fi", "b"]), min_size=1, max_size=3
        ).map("/".join),
        max_size=5,
    )
)
def test_and_so_are_those_for_several(paths):
    assert passes(check_paths, paths) == passes(servers.check_paths, paths)


@pytest.mark.parametrize(
    ("text", "repository", "selector"),
    [
        ("a/b", "a/b", "latest"),
        ("a/b@latest", "a/b", "latest"),
        ("a/b@12", "a/b", "12"),
        ("a/b:12", "a/b", "12"),
        ("a/b:champion", "a/b", "@champion"),
        ("A-1/b.c_d@冠军", "A-1/b.c_d", "@冠军"),
    ],
)
def test_references(text, repository, selector):
    reference = parse_reference(text)
    assert (reference.repository, reference.selector) == (repository, selector)


@given(st.text(max_size=30))
def test_a_reference_never_leaves_its_place_in_an_address(text):
    with contextlib.suppress(BadName):
        reference = parse_reference(text)
        assert reference.repository.count("/") == 1
        assert not {"..", "."} & set(reference.repository.split("/"))
        assert not set("/?#%") & set(reference.selector)


# --- Notes on the disk ---------------------------------------------------------------------------


@given(st.binary(max_size=200), st.data())
def test_a_memory_of_a_push_survives_any_end(tmp_path_factory, tail, data):
    place = tmp_path_factory.mktemp("memory") / "push.json"
    memory = PushMemory(place)
    memory.remember_upload("a" * 64, "http://host/1")
    key = memory.key_for("body")
    content = place.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    place.write_bytes(content[:cut] + tail)
    again = PushMemory(place)
    assert again.upload("a" * 64) in {"", "http://host/1"} or tail
    again.remember_upload("b" * 64, "http://host/2")
    once_more = PushMemory(place)
    assert once_more.upload("b" * 64) == "http://host/2"
    if cut == len(content) and not tail:
        assert once_more.key_for("body") == key


@given(TREES, st.integers(0, 3 * RANGE))
def test_a_note_of_a_pull_never_says_more_than_the_file_holds(tmp_path_factory, note, size):
    folder = tmp_path_factory.mktemp("parts")
    fresh = Part(folder, "a" * 64, size)
    fresh.prepare()
    fresh.save()
    place = folder / f"{'a' * 64}.json"
    known = json.loads(place.read_text())
    place.write_text(json.dumps({**known, "done": note}))
    part = Part(folder, "a" * 64, size)
    assert len(part.done) == -(-size // RANGE)
    assert 0 <= part.bytes_done <= size
    place.write_text(json.dumps(note))
    assert Part(folder, "a" * 64, size).bytes_done == 0
    part.path.unlink()
    place.write_text(json.dumps(known))
    assert Part(folder, "a" * 64, size).bytes_done == 0


@given(st.binary(max_size=100))
def test_a_state_file_is_read_as_untrusted(tmp_path_factory, content):
    place = tmp_path_factory.mktemp("state") / "a.json"
    place.write_bytes(content)
    assert isinstance(read_json(place), dict)


def test_a_state_file_is_written_whole_or_not_at_all(tmp_path):
    place = tmp_path / "a.json"
    write_json(place, {"a": 1})
    with pytest.raises(TypeError):
        write_json(place, {"a": object()})
    assert read_json(place) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@given(TREES)
@settings(max_examples=50)
def test_digests_that_somebody_else_wrote_are_not_believed(tmp_path_factory, entry):
    folder = tmp_path_factory.mktemp("digests")
    (folder / "file").write_bytes(b"content")
    digests = Digests(folder, threading.Event())
    place = Path(digests._path)
    write_json(place, {"file": entry})
    found = Digests(folder, threading.Event()).of("file", folder / "file")
    assert len(found) == 64
    place.unlink()
