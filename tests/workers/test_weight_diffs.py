"""Weights of two versions, compared by a real job, and who may read what it found."""

import orjson
import pytest
from django.db.models import Value
from django.db.models.functions import Replace
from django.test import Client

from registry.errors import Invalid, NotFound
from registry.formats import INSPECTOR
from registry.models import Inspection, Job, JobState, WeightDiff
from registry.services import diffs, weights
from registry.services.catalog import describe_repository
from registry.services.jobs import submit_job
from registry.services.versions import describe_version
from tests import factories
from tests.factories import actor_of, make_token, safetensors_bytes
from tests.registry.formats import samples
from tests.workers.ml.little import write_cnn
from tests.workers.tiny import run_next

WEIGHTS = {"conv1.weight": [1.0, 2.0, 3.0, 4.0], "fc.weight": [1.0, 1.0], "old": [7.0]}
PRUNED = {"conv1.weight": [0.0, 0.0, 3.0, 4.0], "fc.weight": [1.0, 1.0]}


@pytest.fixture
def model(owner):
    repository = factories.make_model(owner, "digits-cnn")
    for tensors in (WEIGHTS, PRUNED):
        factories.make_version(
            owner, repository, {"model.safetensors": safetensors_bytes(**tensors)}
        )
    return repository


def pair(repository):
    return list(repository.versions.select_related("repository__namespace").order_by("number"))


def api(user, method, path):
    headers = {"Authorization": f"Bearer {make_token(user)}"} if user else {}
    answer = Client().generic(method, f"/api/v1/models/{path}", headers=headers)
    return answer.status_code, orjson.loads(answer.content)


def test_weights_are_compared_by_a_job_and_kept_by_content(owner, model):
    address = "alice/digits-cnn/versions/1/diff/2/weights"
    assert api(owner, "GET", address)[1]["state"] == "unknown"
    status, asked = api(owner, "POST", address)
    assert (status, asked["state"]) == (202, "running")
    # Who asks again is told of the same job.
    assert api(owner, "POST", address)[1]["job"] == asked["job"]
    run_next()
    job = Job.objects.get(pk=asked["job"])
    assert (job.state, job.error_detail) == (JobState.SUCCEEDED, "")
    assert "tensors" not in job.report["summary"]
    status, found = api(owner, "POST", address)
    assert (status, found["state"], found["job"]) == (200, "known", None)
    assert found["summary"]["counts"] == {"changed": 1, "equal": 1, "gone": 1}
    conv, fc, old = found["tensors"]
    assert (conv["name"], conv["state"], conv["emptied"]) == ("conv1.weight", "changed", 2)
    assert (conv["zeros_before"], conv["zeros_after"]) == (0, 2)
    assert conv["relative"] == pytest.approx((5 / 30) ** 0.5, rel=1e-5)
    assert (fc["state"], old["state"]) == ("equal", "gone")
    # Anybody who sees both reads it, signed in or not.
    status, diff = api(None, "GET", "alice/digits-cnn/versions/1/diff/2")
    assert diff["weights"]["summary"]["counts"] == found["summary"]["counts"]


def test_a_waiting_comparison_is_found_after_its_model_was_renamed(owner, model):
    asked = api(owner, "POST", "alice/digits-cnn/versions/1/diff/2/weights")[1]
    describe_repository(actor=actor_of(owner), repository=model, changes={"name": "cnn"})
    found = api(owner, "POST", "alice/cnn/versions/1/diff/2/weights")[1]
    assert (found["state"], found["job"]) == ("running", asked["job"])
    assert api(owner, "GET", "alice/cnn/versions/2/diff/1/weights")[1]["state"] == "unknown"


def test_numbers_as_large_as_floats_are_can_be_told(owner, client):
    """As of a mask, whose least number is -3.4e38: the database gives it back as a whole number."""
    repository = factories.make_model(owner, "masked")
    for mask in ([-3.4e38, 0.0], [-3.4e38, 1.0]):
        factories.make_version(
            owner, repository, {"model.safetensors": safetensors_bytes(w=[1.0], mask=mask)}
        )
    address = "alice/masked/versions/1/diff/2"
    api(owner, "POST", f"{address}/weights")
    run_next()
    status, found = api(owner, "GET", f"{address}/weights")
    assert (status, found["state"]) == (200, "known")
    mask = found["tensors"][0]
    assert (mask["name"], mask["norm_before"]) == ("mask", pytest.approx(3.4e38))
    client.force_login(owner)
    page = client.get(f"/models/{address}")
    assert (page.status_code, "mask" in page.content.decode()) == (200, True)


def test_the_same_bytes_elsewhere_are_answered_at_once(owner, model):
    diffs.request_weights(actor=actor_of(owner), before=pair(model)[0], after=pair(model)[1])
    run_next()
    bob = factories.UserFactory(username="bob")
    other = factories.make_model(bob, "copy", visibility="private")
    for tensors in (WEIGHTS, PRUNED):
        factories.make_version(bob, other, {"model.safetensors": safetensors_bytes(**tensors)})
    before, after = pair(other)
    assert diffs.compare_weights(actor_of(bob), before, after).state == "known"
    # Across two models; and who does not see one of both sees nothing.
    address = "bob/copy/versions/1/diff/2/weights?repository=alice/digits-cnn"
    assert api(bob, "GET", address)[1]["state"] == "known"
    assert api(owner, "GET", address)[0] == 404
    hidden = "alice/digits-cnn/versions/1/diff/2/weights?repository=bob/copy"
    assert api(owner, "GET", hidden)[0] == 404


def test_a_reader_has_weights_compared_in_their_own_namespace(owner, model):
    bob = factories.UserFactory(username="bob")
    before, after = pair(model)
    found = diffs.request_weights(actor=actor_of(bob), before=before, after=after)
    assert found.job.namespace.slug == "bob"
    run_next()
    assert diffs.compare_weights(actor_of(bob), before, after).state == "known"


def test_equal_weights_need_no_job(owner, model):
    again = factories.make_version(
        owner, model, {"model.safetensors": safetensors_bytes(**PRUNED), "x.txt": b"x"}
    )
    _, before, _ = pair(model)
    found = diffs.request_weights(actor=actor_of(owner), before=before, after=again)
    assert (found.state, found.job) == ("equal", None)
    assert Job.objects.count() == 0


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ("encoder.safetensors", "decoder.safetensors"),
        ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"),
        ("adapter_model.safetensors", "model.safetensors"),
    ],
)
def test_all_components_are_compared(owner, changed, kept):
    repository = factories.make_model(owner, "pipeline")
    for value in (1.0, 2.0):
        files = {changed: safetensors_bytes(w=[value]), kept: safetensors_bytes(w=[5.0])}
        factories.make_version(owner, repository, files)
    address = "alice/pipeline/versions/1/diff/2/weights"
    asked = api(owner, "POST", address)[1]
    assert asked["state"] == "running"
    assert asked["compared"] == {
        "before": sorted([changed, kept]),
        "after": sorted([changed, kept]),
    }
    assert asked["left_out"] == {"before": [], "after": []}
    run_next()
    found = api(owner, "GET", address)[1]
    states = {row["name"]: row["state"] for row in found["tensors"]}
    assert states == {
        f"{changed.removesuffix('.safetensors')}:w": "changed",
        f"{kept.removesuffix('.safetensors')}:w": "equal",
    }


@pytest.mark.parametrize(
    ("before", "after", "states"),
    [
        pytest.param(
            {"a/model": {"w": [1.0]}, "b/model": {"w": [2.0]}},
            {"a/model": {"w": [1.5]}, "b/model": {"w": [2.0]}},
            {"a/model:w": "changed", "b/model:w": "equal"},
            id="one stem in two folders",
        ),
        pytest.param(
            {
                "llm/model-00001-of-00002": {"u": [1.0]},
                "llm/model-00002-of-00002": {"v": [2.0]},
                "vae/model": {"u": [3.0]},
            },
            {
                "llm/model-00001-of-00003": {"u": [1.0]},
                "llm/model-00002-of-00003": {"v": [2.5]},
                "llm/model-00003-of-00003": {"x": [4.0]},
                "vae/model": {"u": [3.0]},
            },
            {
                "llm/model:u": "equal",
                "llm/model:v": "changed",
                "llm/model:x": "new",
                "vae/model:u": "equal",
            },
            id="other shards in a folder",
        ),
        pytest.param(
            {"weights": {"w": [1.0]}},
            {"model": {"w": [1.5]}, "lora/adapter": {"w": [2.0]}},
            {"model:w": "changed", "lora/adapter:w": "new"},
            id="one file and several components",
        ),
        pytest.param(
            {
                "model": {"w": [1.0]},
                "model-00001-of-00001": {"w": [1.0]},
                "llm/model-00001-of-00002": {"u": [2.0]},
                "llm/model-00002-of-00002": {"v": [3.0]},
            },
            {
                "model": {"w": [1.0]},
                "model-00001-of-00001": {"w": [1.5]},
                "llm/model": {"u": [2.0], "v": [3.5]},
            },
            {
                "model.safetensors:w": "equal",
                "model-00001-of-00001.safetensors:w": "changed",
                "llm/model:u": "equal",
                "llm/model:v": "changed",
            },
            id="a file beside shards of its name",
        ),
        pytest.param(
            {"unet/diffusion_model": {"w": [1.0]}, "vae/diffusion_model": {"w": [2.0]}},
            {"unet/diffusion_pytorch_model": {"w": [1.5]}, "vae/fused": {"w": [2.0]}},
            {"unet/diffusion_pytorch_model:w": "changed", "vae/fused:w": "equal"},
            id="other names in the same folders",
        ),
    ],
)
def test_components_are_compared_with_their_counterparts(owner, before, after, states):
    repository = factories.make_model(owner, "parts")
    for parts in (before, after):
        files = {
            f"{name}.safetensors": safetensors_bytes(**tensors) for name, tensors in parts.items()
        }
        files |= {"llm/model.safetensors.index.json": orjson.dumps({"weight_map": sorted(files)})}
        factories.make_version(owner, repository, files)
    address = "alice/parts/versions/1/diff/2/weights"
    asked = api(owner, "POST", address)[1]
    assert asked["compared"] == {
        side: sorted(f"{name}.safetensors" for name in parts)
        for side, parts in (("before", before), ("after", after))
    }
    assert asked["left_out"] == {"before": [], "after": []}
    run_next()
    found = api(owner, "GET", address)[1]
    assert {row["name"]: row["state"] for row in found["tensors"]} == states


def test_what_only_one_version_has_is_new(owner):
    repository = factories.make_model(owner, "adapted")
    base = {"model.safetensors": safetensors_bytes(w=[1.0])}
    adapter = {"adapter_model.safetensors": safetensors_bytes(lora=[2.0])}
    factories.make_version(owner, repository, base)
    factories.make_version(owner, repository, {**base, **adapter})
    api(owner, "POST", "alice/adapted/versions/1/diff/2/weights")
    run_next()
    found = api(owner, "GET", "alice/adapted/versions/1/diff/2/weights")[1]
    assert found["summary"]["counts"] == {"equal": 1, "new": 1}


def test_other_formats_of_the_same_weights_are_left_out_and_named(owner, client):
    repository = factories.make_model(owner, "mixed")
    for graph in (samples.onnx(), samples.onnx(opset=18)):
        files = {"model.safetensors": safetensors_bytes(w=[1.0]), "model.onnx": graph}
        factories.make_version(owner, repository, files)
    found = api(owner, "GET", "alice/mixed/versions/1/diff/2/weights")[1]
    assert found["state"] == "equal"
    assert found["compared"] == {"before": ["model.safetensors"], "after": ["model.safetensors"]}
    assert found["left_out"] == {"before": ["model.onnx"], "after": ["model.onnx"]}
    page = client.get("/models/alice/mixed/versions/1/diff/2").content.decode()
    assert "What was compared is the same in both, byte for byte." in page
    assert "Compared: model.safetensors." in page
    assert "Left out: model.onnx." in page


def graph_with(*locations):
    """Write a graph that has six numbers in each of these files beside it."""
    weights = [
        samples.onnx_tensor(
            f"w{number}",
            raw=None,
            extra=samples.field(13, samples.field(1, "location") + samples.field(2, location))
            + samples.field(14, 1),
        )
        for number, location in enumerate(locations)
    ]
    return samples.onnx(initializers=weights)


def test_data_that_a_graph_refers_to_belongs_to_its_weights(owner):
    repository = factories.make_model(owner, "outside")
    for data in (b"1" * 24, b"2" * 24):
        files = {
            "onnx/model.onnx": graph_with("weights.bin"),
            "onnx/weights.bin": data,
            "weights.bin": b"\1" + data,
        }
        factories.make_version(owner, repository, files)
    address = "alice/outside/versions/1/diff/2/weights"
    asked = api(owner, "POST", address)[1]
    assert asked["state"] == "running"
    assert asked["left_out"] == {"before": ["weights.bin"], "after": ["weights.bin"]}
    run_next()
    found = api(owner, "GET", address)[1]
    assert [(row["name"], row["state"]) for row in found["tensors"]] == [("w0", "changed")]


def test_what_no_graph_refers_to_is_left_out_and_named(owner, client):
    repository = factories.make_model(owner, "beside")
    for data in (b"\1\0", b"\2\0"):
        files = {
            "model.onnx": graph_with("model.onnx_data"),
            "model.onnx_data": bytes(24),
            "pytorch_model.bin": data,
        }
        factories.make_version(owner, repository, files)
    found = api(owner, "GET", "alice/beside/versions/1/diff/2/weights")[1]
    assert found["state"] == "equal"
    assert found["left_out"] == {"before": ["pytorch_model.bin"], "after": ["pytorch_model.bin"]}
    page = client.get("/models/alice/beside/versions/1/diff/2").content.decode()
    assert "Left out: pytorch_model.bin." in page


def test_until_graphs_were_looked_at_anything_beside_them_may_be_their_data(owner):
    repository = factories.make_model(owner, "older")
    for data in (b"\1\0", b"\2\0"):
        files = {"model.onnx": samples.onnx(), "data.bin": data, "README.md": b"# Words"}
        factories.make_version(owner, repository, files)
    before, after = pair(repository)
    assert diffs.compare_weights(actor_of(owner), before, after).state == "equal"
    Inspection.objects.update(inspector=Replace("inspector", Value(INSPECTOR), Value("headers-3")))
    found = diffs.compare_weights(actor_of(owner), before, after)
    assert (found.state, found.weights.beside_before) == ("unknown", ())


def test_says_why_weights_cannot_be_compared(owner, model):
    words = factories.make_version(owner, model, {"notes.txt": b"no weights"})
    found = diffs.request_weights(actor=actor_of(owner), before=pair(model)[0], after=words)
    assert found.state == "impossible"
    assert "no safetensors" in found.why.detail
    data = factories.make_model(owner, "rows", kind="dataset")
    rows = [factories.make_version(owner, data, {"a.csv": text}) for text in (b"1", b"2")]
    found = diffs.compare_weights(actor_of(owner), *rows)
    assert (found.state, found.why.detail) == ("impossible", "Only models have weights.")


def test_of_archived_weights_only_maintainers_learn(owner, model):
    before, after = pair(model)
    diffs.request_weights(actor=actor_of(owner), before=before, after=after)
    run_next()
    describe_version(actor=actor_of(owner), version=before, changes={"state": "archived"})
    assert diffs.compare_weights(actor_of(owner), before, after).state == "known"
    bob = actor_of(factories.UserFactory())
    assert diffs.compare_weights(bob, before, after).state == "impossible"


def test_versions_without_a_common_tensor_still_compare(owner, model):
    other = factories.make_version(
        owner, model, {"model.safetensors": safetensors_bytes(quite=[1.0], different=[2.0])}
    )
    before = pair(model)[0]
    diffs.request_weights(actor=actor_of(owner), before=before, after=other)
    run_next()
    found = diffs.compare_weights(actor_of(owner), before, other)
    assert found.summary["counts"] == {"new": 2, "gone": 3}
    assert found.summary["relative"] is None


def test_what_a_process_says_is_cut_to_what_is_known():
    said = {
        "tensors_count": "many",
        "counts": {"changed": 2, "strange": 1, "new": -1},
        "relative": float("inf"),
        "tensors": [
            {"name": "a", "state": "changed", "relative": "x", "changed": True, "more": 1},
            {"name": "b", "state": "strange"},
            {"name": 7, "state": "new"},
            "no row",
        ],
    }
    found = weights.cleaned(said)
    assert found["counts"] == {"changed": 2}
    assert (found["tensors_count"], found["relative"]) == (0, None)
    (row,) = found["tensors"]
    assert (row["name"], row["relative"], row["changed"]) == ("a", None, None)
    assert "more" not in row
    assert weights.cleaned("nonsense")["tensors"] == []


def test_what_nobody_looks_at_is_forgotten(owner, model):
    before, after = pair(model)
    diffs.request_weights(actor=actor_of(owner), before=before, after=after)
    run_next()
    assert weights.forget_unused() == 0
    row = WeightDiff.objects.get()
    WeightDiff.objects.update(used_on=row.used_on - weights.KEEP * 2)
    # Whoever looks keeps it.
    assert diffs.compare_weights(actor_of(owner), before, after).state == "known"
    assert weights.forget_unused() == 0
    WeightDiff.objects.update(used_on=row.used_on - weights.KEEP * 2)
    assert weights.forget_unused() == 1


def test_a_job_compares_no_version_with_itself(owner, model):
    recipe = {"kind": "diff", "base": "alice/digits-cnn@1", "model": "alice/digits-cnn@1"}
    with pytest.raises(Invalid, match="same version"):
        submit_job(actor=actor_of(owner), recipe=recipe)
    with pytest.raises(NotFound):
        submit_job(actor=actor_of(owner), recipe={**recipe, "base": "alice/nothing@1"})


@pytest.mark.slow
def test_a_compression_says_what_it_did_to_the_weights(owner, tmp_path):
    repository = factories.make_model(owner, "digits-cnn")
    written = write_cnn(tmp_path / "model", classes=10)
    files = {path.name: path.read_bytes() for path in written.iterdir()}
    before = factories.make_version(owner, repository, files)
    recipe = {
        "kind": "compress",
        "model": before.ref,
        "variant": "pruned",
        "steps": [{"method": "prune_magnitude", "sparsity": 0.6, "epochs": 0}],
    }
    job = submit_job(actor=actor_of(owner), recipe=recipe)
    run_next()
    job.refresh_from_db()
    assert (job.state, job.error_detail) == (JobState.SUCCEEDED, "")
    assert "weights" not in job.report["summary"]
    found = diffs.compare_weights(actor_of(factories.UserFactory()), before, job.result)
    assert found.state == "known"
    pruned = [row for row in found.summary["tensors"] if row["state"] == "changed"]
    assert pruned
    for row in pruned:
        assert row["name"].endswith(".weight")
        assert row["emptied"] == row["changed"] > 0
    elements = sum(row["elements"] for row in pruned)
    assert sum(row["emptied"] for row in pruned) == pytest.approx(0.6 * elements, rel=0.1)
