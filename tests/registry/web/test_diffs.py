"""What changed between two versions, told first and then drawn; up to six beside each other."""

import json
import re

import pytest

from registry.models import Blob, Job, JobState, Version
from registry.services import jobs, weights
from registry.services.beside import MOST
from registry.services.diffs import (
    WeightsDiff,
    compare_config,
    compare_files,
    compare_texts,
    flat_config,
)
from registry.services.line_diffs import Budget, TooDifferentError, changed_lines
from registry.services.results import Outcome
from registry.services.versions import EvaluationSpec, add_evaluations, describe_version
from registry.web import changes
from registry.web.history import TIMES
from tests.factories import actor_of, make_model, make_version, safetensors_bytes

pytestmark = pytest.mark.django_db


def tensor(name, state="changed", **more):
    """Give a line of what a job finds out; 100 numbers in one row, unless told."""
    shape = more.pop("shape", [100])
    both = {"shape_before": shape, "shape_after": shape, "elements": 100}
    zeros = {"zeros_before": 0, "zeros_after": 0}
    return {"name": name, "state": state, **both, **zeros, "relative": 0.0, **more}


def found(*tensors):
    counts = {}
    for one in tensors:
        counts[one["state"]] = counts.get(one["state"], 0) + 1
    said = {"tensors_count": len(tensors), "counts": counts, "tensors": list(tensors)}
    return weights.cleaned(said)


PRUNED = found(
    tensor(
        "conv1.weight",
        relative=0.7,
        cosine=0.7,
        changed=90,
        emptied=90,
        zeros_after=90,
        norm_before=10.0,
        norm_after=7.141,
    ),
    tensor("conv1.bias", "equal"),
    tensor("fc.weight", relative=0.2, cosine=0.98, changed=30, emptied=30, zeros_after=30),
    tensor("fc.bias", "equal"),
)


def story(summary):
    return changes.story_of(WeightsDiff(state="known", summary=summary))


def test_a_story_says_what_pruning_did_layer_by_layer():
    told = story(PRUNED)
    assert told.sentences == [
        "2 of 4 tensors changed.",
        "conv1 lost 90% of its weights.",
        "fc lost 30% of its weights.",
        "What was left is as it was.",
        "conv1.weight changed most: by 70.0% of its norm, cosine 0.7000.",
        "2 are as before.",
    ]
    assert [(one.name, one.zeros_before, one.zeros_after) for one in told.layers][:2] == [
        ("conv1", "0.0%", "90.0%"),
        ("conv1.bias", "0.0%", "0.0%"),
    ]
    assert [(one.norm, one.cosine) for one in told.layers][:2] == [
        ("10 → 7.14", "0.7000"),
        ("", ""),
    ]
    (drawn,) = told.maps
    assert [name for name, _y in drawn.rows] == ["conv1", "fc"]
    assert [name for name, _x in drawn.columns] == ["weight", "bias"]
    assert [cell.shade for cell in drawn.cells] == ["h5", "h0", "h4", "h0"]


def test_a_story_says_more_than_how_much():
    told = story(
        found(
            tensor("a.w", "reshaped", shape_before=[32, 9], shape_after=[16, 9], relative=None),
            tensor("b.w", "recast", dtype_before="F32", dtype_after="F16"),
            tensor("c.w", "new", relative=None),
            tensor("d.w", "gone", relative=None),
            tensor("e.w", "renamed", name_before="old.w", relative=None),
            tensor("f.w", changed=100, emptied=50, zeros_after=50, relative=0.5),
        )
    ).sentences
    assert f"a.w went from 32{TIMES}9 to 16{TIMES}9." in told
    assert "1 is stored as F16 now, not as F32." in told
    assert "1 is new." in told
    assert "1 is gone." in told
    assert "1 has another name and the same numbers." in told
    assert "What was left was trained on since." in told


def test_what_was_rounded_to_zero_was_not_pruned():
    types = {"dtype_before": "F32", "dtype_after": "I8"}
    rounded = tensor("fc.w", changed=99, emptied=3, zeros_after=3, relative=0.01, **types)
    told = story(found(rounded))
    assert "1 is stored as I8 now, not as F32." in told.sentences
    assert not any("lost" in one or "trained" in one for one in told.sentences)
    assert [one.zeros_after for one in told.layers] == ["3.0%"]


def test_what_froze_is_named_and_what_has_nothing_in_common_too():
    froze = story(found(tensor("encoder.w", "equal"), tensor("head.w", changed=9, relative=0.01)))
    assert "Untouched: encoder." in froze.sentences
    apart = story(found(tensor("a", "new"), tensor("b", "gone")))
    assert apart.sentences[0] == "The two have no tensor of the same name."


def test_blocks_that_repeat_have_a_map_of_their_own():
    held = [
        tensor(f"encoder.layer.{n}.{part}.weight", relative=0.05, changed=1)
        for n in (0, 1, 10)
        for part in ("query", "key")
    ]
    first, blocks = story(found(tensor("pooler.weight", "equal"), *held)).maps
    assert [name for name, _y in first.rows] == ["pooler"]
    assert blocks.title == "encoder.layer"
    assert [name for name, _y in blocks.rows] == [f"encoder.layer.{n}" for n in (0, 1, 10)]
    assert [name for name, _x in blocks.columns] == ["query.weight", "key.weight"]
    assert len(blocks.cells) == 6


@pytest.fixture
def pair(owner):
    repository = make_model(owner, "net")
    files = {
        "README.md": b"# Net\n\nFirst words.\n",
        "config.json": b'{"a": {"b": 1}, "same": true}',
        "model.safetensors": safetensors_bytes(w=[1.0, 2.0]),
        "big.txt": b"x" * 300_000,
        "kept.bin": b"kept",
    }
    before = make_version(owner, repository, files, tags={"team": "nlp"})
    after = make_version(
        owner,
        repository,
        {
            **files,
            "README.md": b"# Net\n\nOther <b>words</b>.\n",
            "config.json": b'{"a": {"b": 2}, "same": true}',
            "model.safetensors": safetensors_bytes(w=[0.0, 2.0]),
            "big.txt": b"y" * 300_000,
        },
        tags={"team": "vision"},
        message="Retrained",
    )
    return before, after


def address(before, after, page=""):
    return f"/models/olga/net/versions/{before.number}/diff/{after.number}{page}"


def test_a_page_says_what_changed_between_two_versions(as_owner, owner, pair):
    for version, value in zip(pair, (0.9, 0.95), strict=True):
        number = EvaluationSpec(metric="accuracy", value=value, unit="share")
        add_evaluations(actor=actor_of(owner), version=version, evaluations=[number])
    page = as_owner.get(address(*pair)).content.decode()
    assert "<del>First words.</del>" in page
    assert "<ins>Other &lt;b&gt;words&lt;/b&gt;.</ins>" in page
    assert "a.b" in page
    assert "vision" in page
    assert "+5.00 pt" in page
    assert "compared by their digests only" in page
    assert "1 file is the same in both" in page
    assert "Compare the weights" in page


def test_weights_are_asked_for_on_the_page(as_owner, as_stranger, client, pair):
    assert "Sign in to have them compared" in client.get(address(*pair)).content.decode()
    answer = as_owner.post(address(*pair, "/weights"))
    assert (answer.status_code, answer.url) == (302, address(*pair) + "#weights")
    assert "A job reads both" in as_owner.get(address(*pair)).content.decode()
    job = Job.objects.get()
    claim = jobs.claim_job(worker="w", queues=["cpu"])
    jobs.finish_job(claim, Outcome(report={"summary": PRUNED}))
    job.refresh_from_db()
    assert job.state == JobState.SUCCEEDED
    for reader in (as_stranger, client):
        page = reader.get(address(*pair)).content.decode()
        assert "conv1 lost 90% of its weights." in page
        assert 'class="h5"' in page
        assert "style=" not in page


def test_only_the_weights_are_asked_for_again_while_a_job_reads_them(as_owner, owner, pair):
    as_owner.post(address(*pair, "/weights"))
    page = as_owner.get(address(*pair)).content.decode()
    assert f'hx-get="{address(*pair)}?part=weights"' in page
    part = as_owner.get(address(*pair) + "?part=weights").content.decode()
    assert part.lstrip().startswith("<section")
    assert 'id="weights"' in part
    assert "A job reads both" in part
    assert f'hx-get="{address(*pair)}?part=weights"' in part
    assert f'href="{address(*pair)}"' in part
    assert "First words." not in part
    files = {"model.safetensors": safetensors_bytes(w=[5.0])}
    other = make_version(owner, make_model(owner, "other"), files)
    there = f"{address(pair[0], other)}?repository=olga%2Fother"
    as_owner.post(f"{address(pair[0], other, '/weights')}?repository=olga/other")
    part = as_owner.get(f"{there}&part=weights").content.decode()
    assert f'hx-get="{there}&amp;part=weights"' in part


def test_labels_of_an_archived_version_are_shown_to_maintainers_alone(as_owner, client, owner):
    repository = make_model(owner, "named")
    ports = [{"name": "x", "dtype": "float32", "shape": [4]}]
    signature = {"inputs": ports, "outputs": ports}
    one, two = (
        make_version(
            owner,
            repository,
            {"config.json": json.dumps({"signature": signature, "labels": labels}).encode()},
        )
        for labels in (["cat", "dog"], ["cat", "hidden word"])
    )
    there = f"/models/olga/named/versions/{one.number}/diff/{two.number}"
    assert "hidden word" in client.get(there).content.decode()
    describe_version(actor=actor_of(owner), version=two, changes={"state": "archived"})
    for address in (there, f"/api/v1{there}"):
        assert "hidden word" in as_owner.get(there).content.decode()
        assert "hidden word" not in client.get(address).content.decode()
    said = client.get(f"/api/v1{there}").json()["signature"]
    assert (said["accepts"], said["why"]) == (None, None)


def test_a_refusal_is_said_once_and_not_asked_for_again(as_owner, pair, settings):
    settings.JOB_MAX_QUEUED = 0
    page = as_owner.post(address(*pair, "/weights")).content.decode()
    assert "jobs waiting" in page
    assert 'hx-trigger="load' not in page
    assert 'hx-trigger="load' in as_owner.get(address(*pair)).content.decode()


def test_versions_of_two_models_are_compared(as_owner, as_stranger, owner, pair):
    other = make_model(owner, "other", visibility="private")
    version = make_version(owner, other, {"model.safetensors": safetensors_bytes(w=[5.0])})
    there = f"{address(pair[0], version)}?repository=olga/other"
    page = as_owner.get(there).content.decode()
    assert "olga/net@1 \N{RIGHTWARDS ARROW} olga/other@1" in page
    assert as_stranger.get(there).status_code == 404


def test_a_text_of_the_worst_kind_is_bounded(owner):
    repository = make_model(owner, "lines")
    same = b"a\n" * 20_000
    before = make_version(owner, repository, {"a.txt": same + b"b\n" * 40_000})
    after = make_version(owner, repository, {"a.txt": same + b"c\nd\n" * 20_000})
    files = compare_files(before, after)
    (text,) = compare_texts(actor_of(owner), before, after, files)
    assert text.why.detail == "More than 2000 lines changed."
    near = make_version(owner, repository, {"a.txt": same + b"x\n" + b"b\n" * 40_000})
    files = compare_files(before, near)
    (text,) = compare_texts(actor_of(owner), before, near, files)
    assert (text.added, text.removed) == (1, 0)
    assert text.lines[0].text == "-19998,6 +19998,7"


def interleaved(count):
    """Give texts with very many short matches, each of which is found by going through the rest."""
    old = [f"line {i * i % 97}" for i in range(count)]
    new = [part for i in range(count // 2) for part in (old[i], f"only {i}")]
    return old, new


class Counted(str):
    """A line that counts how often it is looked up."""

    __slots__ = ()
    looked_up = 0

    def __hash__(self):
        Counted.looked_up += 1
        return super().__hash__()


def test_lines_are_compared_within_a_budget():
    old, new = interleaved(2000)
    budget = Budget(200_000)
    Counted.looked_up = 0
    with pytest.raises(TooDifferentError):
        list(changed_lines([Counted(line) for line in old], new, budget))
    assert Counted.looked_up <= 200_000 + len(old)
    assert 0 <= budget.left < 200_000
    few = changed_lines(old, [*old[:-1], "last"], budget)
    assert [line.sign for line in few] == ["@", " ", " ", " ", "-", "+"]


def test_all_texts_of_a_comparison_share_one_budget(as_owner, owner):
    repository = make_model(owner, "lines")
    for lines in interleaved(2000):
        files = {f"{n}.txt": ("\n".join(lines) + f"\n{n}").encode() for n in range(4)}
        last = {"small.txt": lines[1].encode()}
        make_version(owner, repository, {**files, **last})
    before, after = repository.versions.order_by("number")
    texts = compare_texts(actor_of(owner), before, after, compare_files(before, after))
    why = "Comparing it line by line would take too long."
    assert [text.why and text.why.detail for text in texts] == [why] * 4 + [None]
    assert [line.text for line in texts[-1].lines] == ["-1 +1", "line 1", "only 0"]
    assert why in as_owner.get("/models/olga/lines/versions/1/diff/2").content.decode()


def test_lines_that_look_like_the_head_of_a_diff_are_lines(owner):
    repository = make_model(owner, "flags")
    before = make_version(owner, repository, {"a.txt": b"---\nlicense: mit\n---\n--seed 1\n"})
    after = make_version(owner, repository, {"a.txt": b"--seed 2\n++ b\n"})
    files = compare_files(before, after)
    (text,) = compare_texts(actor_of(owner), before, after, files)
    assert [line.text for line in text.lines if line.sign == "-"] == [
        "---",
        "license: mit",
        "---",
        "--seed 1",
    ]
    assert [line.text for line in text.lines if line.sign == "+"] == ["--seed 2", "++ b"]


def compared(owner, repository, *configs):
    files = [{"config.json": json.dumps(config).encode()} for config in configs]
    before, after = (make_version(owner, repository, one) for one in files)
    return {
        row.name: (row.before, row.after) for row in compare_config(actor_of(owner), before, after)
    }


def test_a_text_of_a_setting_is_told_from_a_number(owner):
    repository = make_model(owner, "typed")
    texts = {"layers": "2", "x": "true", "n": "null", "l": "[1]", "t": "plain", "q": '"a"'}
    values = {"layers": 2, "x": True, "n": None, "l": [1], "t": "plain", "q": "a"}
    assert compared(owner, repository, texts, values) == {
        "layers": ('"2"', "2"),
        "x": ('"true"', "true"),
        "n": ('"null"', "null"),
        "l": ('"[1]"', "[1]"),
        "q": (r'"\"a\""', "a"),
    }


def test_settings_are_told_apart_by_all_of_their_names(owner):
    repository = make_model(owner, "named")
    long = "a" * 300
    found = compared(owner, repository, {long: {"b": 1, "c": 2}}, {long: {"b": 1, "c": 3}})
    ((name, change),) = found.items()
    assert (change, name[-2:], len(name) <= 300) == (("2", "3"), ".c", True)
    dotted = compared(owner, repository, {"a.b": 1, "a": {"b": 2}}, {"a.b": 1, "a": {"b": 3}})
    assert dotted == {"a.b": ("2", "3")}
    nameless = compared(owner, repository, {"b": 1, "": {"b": 2}}, {"b": 1, "": {"b": 3}})
    assert nameless == {'"".b': ("2", "3")}


def test_many_settings_under_a_very_long_name_take_no_copy_of_it_each():
    version = Version(config={"a" * 400_000: {f"{n:x}": 0 for n in range(50_000)}})
    found = flat_config(version)
    assert len(found) == 50_000
    assert sum(map(len, found)) < 50_000 * 301


def test_a_difference_after_what_is_shown_is_one(as_owner, owner):
    repository = make_model(owner, "long")
    for end in ("a", "b"):
        config = json.dumps({"template": "x" * 400 + end}).encode()
        make_version(owner, repository, {"config.json": config})
    page = as_owner.get("/models/olga/long/compare?v=1&v=2&only=differences").content.decode()
    assert "template" in page
    assert "x" * 301 not in page


def test_what_rounds_alike_is_a_difference(as_owner, owner):
    repository = make_model(owner, "close")
    ports = [{"name": f"x{n}", "dtype": "float32", "shape": [1]} for n in range(24)]
    for end in (1, 2):
        version = make_version(owner, repository, {})
        changed = [*ports[:-1], {**ports[-1], "shape": [end]}]
        Version.objects.filter(pk=version.pk).update(
            size_bytes=10_000_000 + end,
            parameters_count=22_000_000 + end,
            signature={"inputs": changed, "outputs": ports},
            config={"of": end, "text": "1" if end == 1 else 1, "none": None},
        )
        add_evaluations(
            actor=actor_of(owner),
            version=version,
            evaluations=[
                EvaluationSpec(metric="accuracy", value=(9500 + end) / 10_000, unit="share")
            ],
        )
    page = as_owner.get("/models/olga/close/compare?v=1&v=2&only=differences").content.decode()
    for words in ("95.0% (0.9501)", "95.0% (0.9502)", "10.0 MB (10,000,001)", "(22,000,002)"):
        assert words in page, words
    assert ">Inputs<" in page
    assert ">Outputs<" not in page
    assert ">text<" in page, "a number is no text"
    assert ">none<" not in page


def test_files_are_compared_by_their_whole_digests(as_owner, owner):
    repository = make_model(owner, "same")
    for end in (b"1", b"2"):
        make_version(owner, repository, {"a.bin": end})
    for number, blob in enumerate(Blob.objects.filter(artifacts__path="a.bin").order_by("pk")):
        Blob.objects.filter(pk=blob.pk).update(sha256=f"{'ab' * 31}0{number}")
    page = as_owner.get("/models/olga/same/compare?v=1&v=2&only=differences").content.decode()
    assert f"{'ab' * 31}00" in page
    assert f"{'ab' * 31}01" in page


def test_rows_past_the_limit_are_not_called_alike(as_owner, owner):
    repository = make_model(owner, "wide")
    for value in (1, 2):
        config = {f"s{n:03}": value for n in range(305)}
        make_version(owner, repository, {"config.json": json.dumps(config).encode()})
    page = as_owner.get("/models/olga/wide/compare?v=1&v=2&only=differences").content.decode()
    assert "5 more lines than are shown" in page
    assert "5 alike" not in page


def test_versions_stand_beside_each_other(as_owner, owner, pair):
    page = as_owner.get("/models/olga/net/compare?v=1&v=2").content.decode()
    assert "Retrained" in page
    assert "kept.bin" in page
    only = as_owner.get("/models/olga/net/compare?v=1&v=2&only=differences").content.decode()
    assert "kept.bin" not in only
    assert "vision" in only
    assert "same" not in only.partition("config.json")[2].partition("Files")[0].split()


def test_what_reads_alike_beside_each_other_is_told_apart(as_owner, owner):
    repository = make_model(owner, "near")
    names = [f"label-{number}" for number in range(100)]
    for config in (
        {"pad": None, "layers": 2, "labels": names},
        {"pad": "null", "layers": "2", "labels": [*names[:-1], "other"]},
    ):
        make_version(owner, repository, {"config.json": json.dumps(config).encode()})
    page = as_owner.get("/models/olga/near/compare?v=1&v=2&only=differences").content.decode()
    cells = page.partition("config.json")[2]
    for one, other in (("null", "&quot;null&quot;"), ("2 (2)", "2 (&quot;2&quot;)")):
        assert f">{one}<" in "".join(cells.split("\n")).replace("  ", "")
        assert other in cells
    first, second = re.findall(r"SHA-256 ([0-9a-f]{12})", cells)
    assert first != second


def test_at_most_six_and_only_what_may_be_seen(as_stranger, owner, pair):
    hidden = make_model(owner, "hidden", visibility="private")
    make_version(owner, hidden, {})
    many = "&".join(f"v={n}" for n in (1, 2, 1, "olga/net@2", "olga/hidden@1", 99, "@none", 5, 6))
    page = as_stranger.get(f"/models/olga/net/compare?{many}").content.decode()
    assert "There is no version olga/hidden@1 that you may see." in page
    assert "There is no version 99 that you may see." in page
    assert page.count('<th scope="col">') <= MOST + 1
    empty = as_stranger.get("/models/olga/net/compare")
    assert "Choose versions" in empty.content.decode()


def test_the_history_leads_to_both(as_owner, pair):
    page = as_owner.get("/models/olga/net?tab=versions").content.decode()
    assert 'action="/models/olga/net/compare"' in page
    assert page.count('form="beside"') == 2
    assert address(*pair) in page
    assert address(*pair) in as_owner.get("/models/olga/net/versions/2").content.decode()
