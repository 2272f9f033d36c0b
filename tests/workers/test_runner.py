"""Real jobs, run by the runner in this process: their process, their results, their folders."""

import errno
import io
import json
import os
import sys
import textwrap
import threading
import time
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.db import OperationalError, connection

from registry.errors import Conflict, NamespaceFull, Unavailable, unpack
from registry.models import (
    Blob,
    Evaluation,
    Job,
    JobEvent,
    JobState,
    LineageEdge,
    Namespace,
    Repository,
    Version,
)
from registry.services import catalog, jobs
from registry.storage import default_storage
from tests import factories
from tests.factories import actor_of
from tests.local.waiting import has_ended, wait_until
from tests.workers.ml.little import write_cnn
from tests.workers.tiny import run_next, training
from workers import memory, runner
from workers.folder import JobFolder, jobs_folder, prune_folders


@pytest.mark.slow
def test_training_becomes_a_version(owner, digits_dataset):
    job = jobs.submit_job(actor=actor_of(owner), recipe=training())
    run_next()
    job.refresh_from_db()
    assert (job.state, job.error_detail) == (JobState.SUCCEEDED, "")
    version = job.result
    assert version.ref == "alice/tiny@1"
    assert version.job == job
    assert LineageEdge.objects.get(child=version).parent == digits_dataset
    assert Evaluation.objects.filter(version=version, measured=True, job=job).exists()
    assert Repository.objects.get(name="tiny").visibility == "public"


def test_a_card_names_no_dataset_that_is_not_public(owner, digits_dataset):
    Repository.objects.update(visibility="private")
    jobs.submit_job(actor=actor_of(owner), recipe=training())
    run_next()
    version = Version.objects.get(repository__name="tiny")
    card = version.revision.artifacts.get(path="README.md").blob
    text = default_storage().read(card.sha256).decode()
    assert "alice/digits" not in text + version.message
    assert "trained on a dataset that is not public" in text
    assert Evaluation.objects.filter(version=version, dataset_version=digits_dataset).exists()


@pytest.mark.slow
def test_the_four_kinds_of_job(owner, digits_dataset):
    alice = actor_of(owner)

    def run(recipe):
        job = jobs.submit_job(actor=alice, recipe=recipe)
        run_next()
        job.refresh_from_db()
        assert (job.state, job.error_detail) == (JobState.SUCCEEDED, "")
        return job

    # Long enough to beat guessing, which a result has to.
    trained = run(training(epochs=10, learning_rate=0.01)).result
    small = run(
        {
            "kind": "compress",
            "schema": 1,
            "model": "alice/tiny",
            "dataset": "alice/digits",
            "variant": "int8",
            "steps": [{"method": "quantize_dynamic"}, {"method": "code"}],
        }
    ).result
    assert (small.ref, small.variant) == ("alice/tiny@2", "int8")
    # A coded version counts as any other, and the jobs after this one run it.
    assert "myz" in small.formats
    assert "onnx" not in small.formats
    assert small.parameters_count >= trained.parameters_count
    assert Repository.objects.get(name="tiny").latest_number == 1
    assert [edge.parent for edge in small.parent_edges.all()] == [trained]
    metrics = {row.metric: row for row in Evaluation.objects.filter(version=small)}
    assert metrics["accuracy"].dataset_version == digits_dataset
    assert {"latency_p50_batch1", "latency_p95_batch32"} <= set(metrics)

    predictions = run(
        {
            "kind": "infer",
            "schema": 1,
            "model": "alice/tiny@2",
            "dataset": "alice/digits",
            "output": "alice/predictions",
            "steps": [{"method": "predict"}],
        }
    ).result
    assert predictions.ref == "alice/predictions@1"
    assert {edge.parent for edge in predictions.parent_edges.all()} == {small, digits_dataset}

    measured = run(
        {
            "kind": "evaluate",
            "schema": 1,
            "model": "alice/tiny@1",
            "dataset": "alice/digits",
            "steps": [{"method": "evaluate"}],
        }
    )
    assert measured.result == trained
    assert Evaluation.objects.filter(job=measured, version=trained).exists()


def change(owner, version, **changes):
    """Rename the repository of a version, or show it to others; it is read anew."""
    repository = Repository.objects.get(pk=version.repository_id)
    catalog.describe_repository(actor=actor_of(owner), repository=repository, changes=changes)


def make_cnn(owner, name, folder, **changes):
    written = write_cnn(folder / name, classes=10, **changes)
    files = {path.name: path.read_bytes() for path in written.iterdir()}
    return factories.make_version(owner, factories.make_model(owner, name), files)


def run_twice(owner, recipe, between):
    """Run a recipe, and once more after what happens in between; give how both compare."""
    first = jobs.submit_job(actor=actor_of(owner), recipe=recipe)
    run_next()
    between()
    second = jobs.reproduce_job(actor=actor_of(owner), job=jobs.find_job(actor_of(owner), first.pk))
    run_next()
    second.refresh_from_db()
    assert (second.state, second.error_detail) == (JobState.SUCCEEDED, "")
    return second.reproduction


@pytest.mark.slow
def test_predictions_are_the_same_whatever_their_inputs_are_called_now(
    owner, digits_dataset, tmp_path
):
    model = make_cnn(owner, "tiny", tmp_path)

    def rename_and_hide():
        change(owner, model, name="small")
        change(owner, digits_dataset, name="numbers", visibility="private")

    recipe = {
        "kind": "infer",
        "model": "alice/tiny",
        "dataset": "alice/digits",
        "output": "alice/predictions",
        "steps": [{"method": "predict"}],
    }
    found = run_twice(owner, recipe, rename_and_hide)
    assert {file["path"]: file["same"] for file in found["versions"][0]["files"]} == {
        "dataset.json": True,
        "predictions.jsonl": True,
    }
    assert found["same"]


@pytest.mark.slow
def test_a_merge_is_the_same_after_its_models_changed_names(owner, digits_dataset, tmp_path):
    base, tuned = (
        make_cnn(owner, name, tmp_path, seed=seed) for name, seed in (("tiny", 0), ("tuned", 1))
    )

    def exchange_names():
        change(owner, base, name="moving")
        change(owner, tuned, name="tiny")
        change(owner, base, name="tuned")

    recipe = {
        "kind": "compress",
        "model": "alice/tiny",
        "steps": [{"method": "merge", "others": ["alice/tuned"], "weights": [0.75, 0.25]}],
    }
    found = run_twice(owner, recipe, exchange_names)
    assert {file["path"]: file["same"] for file in found["versions"][0]["files"]} == {
        "config.json": True,
        "model.safetensors": True,
    }
    assert found["same"]


# --- Processes that do other things than the ML code would --------------------------------------

PREAMBLE = """
import contextlib, json, os, pathlib, signal, sys, time
def say(**event): print(json.dumps(event), flush=True)
def end(files={"config.json": "{}"}, report={"schema": 1, "metrics": []}):
    for name, text in files.items():
        path = pathlib.Path("out/files", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    pathlib.Path("out/report.json").write_text(json.dumps(report))
"""


@pytest.fixture
def run_script(owner, digits_dataset, monkeypatch):
    """Submit a job and run it with a script in the place of the ML code; give the job."""

    def run(script, *, meanwhile=None, stopping=None, resume=None):
        program = PREAMBLE + textwrap.dedent(script)
        monkeypatch.setattr(runner, "COMMAND", (sys.executable, "-c", program))
        job = resume or jobs.submit_job(actor=actor_of(owner), recipe=training())
        beside = threading.Thread(target=meanwhile or (lambda _: None), args=[job])
        beside.start()
        run_next(stopping=stopping)
        beside.join()
        job.refresh_from_db()
        return job

    return run


def wait_for(job, text):
    """Wait until the job has said `text`."""
    wait_until(JobEvent.objects.filter(job=job, data__message=text).exists, text)


def log_of(job):
    rows = JobEvent.objects.filter(job=job, type="log").order_by("pk")
    return [row.data["message"] for row in rows]


def folder_of(job):
    return jobs_folder() / str(job.pk)


def test_the_process_sees_no_address_and_no_secret(run_script):
    job = run_script(
        """
        pathlib.Path("out").mkdir(exist_ok=True)
        end({"environment.json": json.dumps(dict(os.environ)), "where.txt": os.getcwd()})
        """
    )
    assert job.state == JobState.SUCCEEDED, job.error_detail
    found = read_file(job.result, "environment.json")
    assert not {"DATABASE_URL", "REDIS_URL", "DJANGO_SETTINGS_MODULE"} & set(found)
    assert not [name for name in found if name.startswith("MODELYARD")]
    assert found["HOME"] == read_text(job.result, "where.txt") + "/tmp"
    assert not folder_of(job).exists()


def read_text(version, path):
    blob = Blob.objects.get(artifacts__path=path, artifacts__revision=version.revision)
    return default_storage().read(blob.sha256).decode()


def read_file(version, path):
    return json.loads(read_text(version, path))


def test_the_process_has_limits_and_no_way_to_more(run_script):
    job = run_script(
        """
        import resource
        status = pathlib.Path("/proc/self/status").read_text()
        end({"limits.json": json.dumps({
            "no_new_privs": "NoNewPrivs:\\t1" in status,
            "core": resource.getrlimit(resource.RLIMIT_CORE),
            "files": resource.getrlimit(resource.RLIMIT_NOFILE),
            "leader": os.getsid(0) == os.getpid(),
        })})
        """
    )
    assert job.state == JobState.SUCCEEDED, job.error_detail
    assert read_file(job.result, "limits.json") == {
        "no_new_privs": True,
        "core": [0, 0],
        "files": [4096, 4096],
        "leader": True,
    }


def test_what_the_process_does_to_its_inputs_stays_there(run_script, digits_dataset):
    sha256 = Blob.objects.get(artifacts__path="train.safetensors").sha256
    before = default_storage().read(sha256)
    job = run_script(
        """
        path = pathlib.Path("inputs/dataset/train.safetensors")
        assert path.stat().st_mode & 0o777 == 0o444
        for attempt in (lambda: path.chmod(0o666), lambda: path.write_bytes(b"spoiled")):
            with contextlib.suppress(OSError):
                attempt()
        for attempt in (path.unlink, lambda: path.write_bytes(b"spoiled")):
            try:
                attempt()
            except PermissionError:
                continue
            raise SystemExit("an input was changed")
        end()
        """
    )
    assert job.state == JobState.SUCCEEDED, log_of(job)
    assert default_storage().read(sha256) == before


def test_noise_between_the_events_does_no_harm(run_script):
    job = run_script(
        r"""
        print("no json")
        print("[1, 2]")
        print("{" * 100_000)
        print("x" * 1_000_000)
        os.write(1, b"\xff\xfe\n")
        say(event="unknown", more=1)
        say(event="log", message="nul \0 bell \a lone \ud800 over \u202e")
        say(event="metric", name="loss", value=1.5, step=3)
        print('{"event": "metric", "name": "loss", "value": NaN, "step": 1}')
        print('{"event": "metric", "name": "loss", "value": 1e999, "step": 1}')
        print('{"event": "metric", "name": "loss", "value": "7", "step": 1}')
        say(event="metric", name="huge", value=10**400, step=1)
        say(event="progress", done=10**30, total=5, unit=None, step=["x"])
        sys.stdout.write('{"event": "log", "message": "no line end"}')
        sys.stdout.flush()
        end()
        """
    )
    assert job.state == JobState.SUCCEEDED, log_of(job)
    assert log_of(job) == ["nul  bell  lone ? over ", "no line end"]
    metrics = JobEvent.objects.filter(job=job, type="metric")
    assert [row.data for row in metrics] == [{"name": "loss", "value": 1.5, "step": 3}]
    assert job.progress["done"] == job.progress["total"] == 5


def test_a_talkative_job_is_cut_short(run_script, monkeypatch):
    monkeypatch.setattr(jobs, "MAX_EVENTS", 50)
    job = run_script(
        """
        for number in range(500):
            say(event="log", message=str(number))
        end()
        """
    )
    assert job.state == JobState.SUCCEEDED
    assert len(log_of(job)) < 55
    assert "dropped" in log_of(job)[-1]


def test_a_reason_that_the_job_gives_is_its_error(run_script):
    job = run_script(
        """
        say(event="error", code="no_label", detail="No column in /srv/jobs/7/inputs/train.csv.")
        sys.exit(2)
        """
    )
    assert (job.state, job.error_code) == (JobState.FAILED, "no_label")
    assert job.error_detail == "No column in train.csv."
    assert job.attempts_count == 1


def test_a_crash_shows_its_traceback_without_folders(run_script):
    job = run_script("raise RuntimeError('broken')")
    assert (job.state, job.error_code) == (JobState.FAILED, "crashed")
    assert "RuntimeError: broken" in log_of(job)[-1]
    assert str(jobs_folder()) not in log_of(job)[-1]
    assert "status 1" in job.error_detail


def test_a_killed_process_is_tried_again(run_script, settings, monkeypatch):
    settings.JOB_MAX_ATTEMPTS = 2
    monkeypatch.setattr(runner, "_LONGEST_PAUSE_SECONDS", 0.1)
    script = "os.kill(os.getpid(), signal.SIGKILL)"
    job = run_script(script)
    assert (job.state, job.attempts.get().outcome) == (JobState.QUEUED, "failed")
    job = run_script(script, resume=job)
    assert (job.state, job.error_code) == (JobState.FAILED, "killed")


def test_storage_that_does_not_answer_is_waited_for(run_script, monkeypatch):
    monkeypatch.setattr(runner, "_LONGEST_PAUSE_SECONDS", 0.1)
    storage = default_storage()

    def refuse(*_):
        raise Unavailable("The storage server does not answer.")

    with monkeypatch.context() as down:
        down.setattr(storage, "materialise", refuse)
        job = run_script("end()")
    assert job.state == JobState.QUEUED
    assert "does not answer. Trying again" in log_of(job)[-1]
    assert run_script("end()", resume=job).state == JobState.SUCCEEDED


def test_a_full_disk_fails_the_job_with_a_way_out(run_script, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(default_storage(), "materialise", refuse)
        job = run_script("end()")
    assert (job.state, job.error_code) == (JobState.FAILED, "storage_full")
    assert "make room" in job.error_detail
    assert not folder_of(job).exists()


def test_a_fault_of_ours_fails_the_job_without_its_details(run_script, monkeypatch):
    def stumble(*_):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(runner.report, "evaluations_of", stumble)
    job = run_script("end()")
    assert (job.state, job.error_code) == (JobState.FAILED, "internal_error")
    assert "secret" not in job.error_detail


def test_a_job_that_runs_too_long_ends(run_script, settings):
    settings.JOB_MAX_SECONDS = 1
    job = run_script("time.sleep(60)")
    assert (job.state, job.error_code) == (JobState.FAILED, "timeout")


@pytest.mark.slow
def test_cancelling_reaches_whatever_the_process_started(run_script, owner, monkeypatch):
    monkeypatch.setattr(runner, "GRACE_SECONDS", 0.5)

    def cancel(job):
        wait_for(job, "started")
        jobs.cancel_job(actor=actor_of(owner), job=job)

    job = run_script(
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = os.fork()
        if child:
            say(event="log", message="started")
            say(event="log", message=f"child {child}")
        time.sleep(60)
        """,
        meanwhile=cancel,
    )
    assert job.state == JobState.CANCELLED
    child = int(log_of(job)[1].split()[1])
    wait_until(lambda: has_ended(child), f"the end of process {child}")


def test_a_worker_that_stops_keeps_the_checkpoint(run_script):
    stopping = threading.Event()

    def stop(job):
        wait_for(job, "started")
        stopping.set()

    job = run_script(
        """
        def leave(*_):
            pathlib.Path("../checkpoints/last").write_text("7")
            sys.exit(143)
        signal.signal(signal.SIGTERM, leave)
        say(event="log", message="started")
        time.sleep(60)
        """,
        meanwhile=stop,
        stopping=stopping,
    )
    assert (job.state, job.attempts.get().outcome) == (JobState.QUEUED, "released")
    assert [path.name for path in folder_of(job).iterdir()] == ["checkpoints"]
    job = run_script("end({'at.txt': open('../checkpoints/last').read()})", resume=job)
    assert read_text(job.result, "at.txt") == "7"
    assert not folder_of(job).exists()


@pytest.mark.parametrize(
    ("give_away", "script"),
    [
        ("release_job", "signal.raise_signal(signal.SIGSTOP)"),
        ("confirm_cancel", "signal.raise_signal(signal.SIGSTOP)"),
        ("fail_job", "os.kill(os.getpid(), signal.SIGKILL)"),
        ("fail_job", "sys.exit(1)"),
    ],
)
def test_what_a_successor_makes_of_the_folder_stays(
    run_script, owner, monkeypatch, give_away, script
):
    """Another worker may have the job as soon as this one has given it away."""
    monkeypatch.setattr(runner, "_LONGEST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(runner, "GRACE_SECONDS", 0.1)
    stopping, give = threading.Event(), getattr(jobs, give_away)
    made = []

    def give_and_take(claim, **kwargs):
        given = give(claim, **kwargs)
        folder = JobFolder(claim.job_id, claim.fence + 1)
        folder.make()
        made.append(folder)
        return given

    def end(job):
        wait_for(job, "started")
        if give_away == "release_job":
            stopping.set()
        elif give_away == "confirm_cancel":
            jobs.cancel_job(actor=actor_of(owner), job=job)

    monkeypatch.setattr(jobs, give_away, give_and_take)
    job = run_script(
        f"""
        say(event="log", message="started")
        {script}
        """,
        meanwhile=end,
        stopping=stopping,
    )
    (folder,) = made
    assert {path.name for path in folder_of(job).iterdir()} == {folder.path.name, "checkpoints"}
    assert all(path.is_dir() for path in folder.writable)
    folder.clean(keep_checkpoints=True)
    assert not folder_of(job).exists()


def test_a_folder_that_goes_while_another_is_made_is_no_failure(owner, monkeypatch):
    """Its worker was only paused, and cleans up late."""
    job_id = uuid.uuid4()
    first, second = (JobFolder(job_id, fence) for fence in (1, 2))
    first.make()
    (first.checkpoints / "last").write_text("7")
    found = type(first.root).glob

    def find_and_lose(root, pattern):
        listed = list(found(root, pattern))
        if first.path in listed:
            first.clean(keep_checkpoints=True)
        return listed

    with monkeypatch.context() as slow:
        slow.setattr(type(first.root), "glob", find_and_lose)
        second.make()
    assert {path.name for path in second.root.iterdir()} == {"attempt-2", "checkpoints"}
    second.clean(keep_checkpoints=False)
    assert not second.root.exists()


def test_a_lost_lease_ends_the_process_silently(run_script):
    def take_over(job):
        wait_for(job, "started")
        Job.objects.filter(pk=job.pk).update(fence=9)

    began = time.monotonic()
    job = run_script(
        """
        say(event="log", message="started")
        time.sleep(60)
        """,
        meanwhile=take_over,
    )
    assert time.monotonic() - began < 20
    assert (job.state, job.fence) == (JobState.RUNNING, 9)
    assert not Version.objects.filter(job=job).exists()


@pytest.mark.slow
def test_a_database_that_drops_its_connections_is_waited_for(run_script):
    def drop(job):
        wait_for(job, "started")
        for _ in range(5):
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            threading.Event().wait(0.2)
        connection.close()

    job = run_script(
        """
        for step in range(40):
            say(event="log", message="started" if step == 0 else str(step))
            time.sleep(0.05)
        end()
        """,
        meanwhile=drop,
    )
    assert job.state == JobState.SUCCEEDED, job.error_detail
    assert log_of(job) == ["started", *map(str, range(1, 40))]
    assert job.attempts_count == 1


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("pass", "no_report"),
        ("end(); pathlib.Path('out/report.json').write_text('{')", "bad_report"),
        ("end(); pathlib.Path('out/report.json').write_text('[]')", "bad_report"),
        ("end(); pathlib.Path('out/report.json').write_text('[' * 10**5)", "bad_report"),
        ("end(); pathlib.Path('out/report.json').write_text(' ' * (5 << 20))", "bad_report"),
        ("end({})", "no_result"),
        ("end(); os.symlink('/etc/passwd', 'out/files/users')", "odd_file"),
        ("end(); os.mkfifo('out/files/pipe')", "odd_file"),
        ("end({'model.safetensors': 'lies'})", "malformed_file"),
        ("end({'a:b\\\\c': 'x'})", "bad_path"),
    ],
)
def test_a_result_that_cannot_be_believed_fails_the_job(run_script, script, code):
    job = run_script(script)
    assert (job.state, job.error_code) == (JobState.FAILED, code), job.error_detail
    assert not Version.objects.filter(job=job).exists()
    assert not Repository.objects.filter(name="tiny").exists()


def test_a_result_without_room_fails_the_job_and_it_can_be_resumed(run_script, owner):
    job = jobs.submit_job(actor=actor_of(owner), recipe=training())
    space = Namespace.objects.filter(slug="alice")
    space.update(quota_versions=1)
    failed = run_script("end()", resume=job)
    assert (failed.state, failed.error_code) == (JobState.FAILED, "versions_quota_exceeded")
    assert "alice has 1 of the 1 versions that it may have" in failed.error_detail
    assert unpack(failed.error_said).detail == failed.error_detail
    assert (failed.attempts_count, Version.objects.count()) == (1, 1)
    assert not Repository.objects.filter(name="tiny").exists()
    with pytest.raises(NamespaceFull):
        jobs.resume_job(actor=actor_of(owner), job=failed)
    space.update(quota_versions=2)
    jobs.resume_job(actor=actor_of(owner), job=failed)
    assert run_script("end()", resume=job).state == JobState.SUCCEEDED


@pytest.mark.slow
def test_a_search_becomes_versions(owner, digits_dataset):
    jobs.submit_job(actor=actor_of(owner), recipe=training(epochs=20, learning_rate=0.01))
    run_next()
    recipe = {
        "kind": "search",
        "schema": 1,
        "model": "alice/tiny",
        "dataset": "alice/digits",
        "steps": [
            {
                "method": "search",
                "goal": "fits",
                "max_bytes": 10**6,
                "max_accuracy_loss": 0.5,
                "most_candidates": 3,
                "most_variants": 2,
            }
        ],
    }
    job = jobs.submit_job(actor=actor_of(owner), recipe=recipe)
    run_next()
    job.refresh_from_db()
    assert (job.state, job.error_detail) == (JobState.SUCCEEDED, "")
    summary = job.report["summary"]
    assert [row["name"] for row in summary["candidates"]] == ["int8", "int8-conv", "onnx"]
    assert job.result.variant == summary["recommended"]
    assert [version.variant for version in job.results] == [
        listed["name"] for listed in job.report["variants"]
    ]
    for version in job.results:
        assert [edge.parent.ref for edge in version.parent_edges.all()] == ["alice/tiny@1"]
        assert Evaluation.objects.filter(version=version, metric="accuracy", split="test").exists()
    assert JobEvent.objects.filter(job=job, type="candidate").count() == 3


# --- Jobs that make several versions --------------------------------------------------------------

SEVERAL = """
    def make(*names, message="Smaller."):
        for name in names:
            path = pathlib.Path("out/files", name)
            path.mkdir(parents=True, exist_ok=True)
            (path / "config.json").write_text(json.dumps({"size": name}))
        number = {"metric": "accuracy", "value": 0.5, "dataset": "alice/digits@1"}
        listed = [{"name": name, "message": message, "metrics": [number]} for name in names]
        report = {"schema": 1, "metrics": [], "variants": listed}
        pathlib.Path("out/report.json").write_text(json.dumps(report))
"""


@pytest.fixture
def searching(owner, digits_dataset):
    """Submit a search over a model that is there."""

    def submit(**step):
        model = Repository.objects.filter(name="tiny", kind="model").first()
        if model is None:
            model = factories.make_model(owner, "tiny")
            factories.make_version(owner, model)
        recipe = {
            "kind": "search",
            "schema": 1,
            "model": "alice/tiny",
            "dataset": "alice/digits",
            "steps": [{"method": "search", "max_accuracy_loss": 0.01, **step}],
        }
        return jobs.submit_job(actor=actor_of(owner), recipe=recipe)

    return submit


def test_a_job_that_made_several_versions_registers_them_together(
    run_script, searching, digits_dataset
):
    job = run_script(SEVERAL + "    make('int8', 'slim')\n", resume=searching())
    assert job.state == JobState.SUCCEEDED, job.error_detail
    made = list(Version.objects.filter(job=job).order_by("number"))
    assert [(version.number, version.variant) for version in made] == [(2, "int8"), (3, "slim")]
    assert job.result == made[0]
    assert job.results == made
    for version in made:
        assert [edge.parent.ref for edge in version.parent_edges.all()] == ["alice/tiny@1"]
        assert version.message == "Smaller."
        number = Evaluation.objects.get(version=version)
        assert (number.job, number.dataset_version) == (job, digits_dataset)
        assert version.files_count == 1
    assert Repository.objects.get(name="tiny", kind="model").latest_number == 1


def test_an_answer_that_was_lost_makes_no_second_set(run_script, searching, monkeypatch):
    finish, calls = jobs.finish_job, []

    def finish_unheard(claim, outcome):
        calls.append(finish(claim, outcome))
        if len(calls) == 1:
            raise OperationalError("the answer was lost")
        return calls[-1]

    monkeypatch.setattr(jobs, "finish_job", finish_unheard)
    job = run_script(SEVERAL + "    make('int8', 'slim')\n", resume=searching())
    assert (job.state, len(calls)) == (JobState.SUCCEEDED, 2)
    assert calls[0] == calls[1]
    assert Version.objects.filter(job=job).count() == 2


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("make()", "no_result"),
        ("make('int8', 'Int8')", "bad_report"),
        ("make('int8', '..')", "bad_report"),
        ("make(*[f'v{number}' for number in range(9)])", "bad_report"),
        ("make('int8'); os.rename('out/files/int8', 'out/files/other')", "no_result"),
        ("make('int8'); os.rename('out/files', 'out/f'); os.symlink('f', 'out/files')", "odd_file"),
        ("make('a', 'b'); open('out/files/b/model.safetensors', 'w').close()", "malformed_file"),
    ],
)
def test_several_versions_are_all_there_or_none(run_script, searching, script, code):
    job = run_script(SEVERAL + f"    {script}\n", resume=searching())
    assert (job.state, job.error_code) == (JobState.FAILED, code), job.error_detail
    assert not Version.objects.filter(job=job).exists()


def test_several_versions_without_room_for_all_leave_none(run_script, searching):
    job = searching()
    Namespace.objects.filter(slug="alice").update(quota_versions=3)
    failed = run_script(SEVERAL + "    make('int8', 'slim')\n", resume=job)
    assert (failed.state, failed.error_code) == (JobState.FAILED, "versions_quota_exceeded")
    assert not Version.objects.filter(job=job).exists()


def test_what_a_failed_job_found_out_stays_in_its_report(run_script, searching, owner):
    script = """
    pathlib.Path("out/report.json").write_text(json.dumps({"summary": {"candidates": [1]}}))
    say(event="error", code="nothing_met_the_goal", detail="Nothing.")
    sys.exit(2)
    """
    job = run_script(script, resume=searching())
    assert (job.state, job.error_code) == (JobState.FAILED, "nothing_met_the_goal")
    assert job.report == {"summary": {"candidates": [1]}}
    jobs.resume_job(actor=actor_of(owner), job=job)
    job.refresh_from_db()
    assert job.report == {}


def test_candidates_are_told_as_they_come(run_script, searching):
    script = (
        SEVERAL
        + """
    say(event="candidate", name="int8", bytes=10, latency_ms=0.5, measure="accuracy", loss=0.0,
        low=-1.0, high="x", limit=0.01, n=40, verdict="met", reason="/var/lib/x " + "y" * 900,
        said={"template": "It is {size} bytes.", "values": {"size": 3, "odd": ["x"]}})
    say(event="candidate", name="sly", verdict="met", said={"template": "{a.b}", "values": {}})
    say(event="candidate", name="odd", verdict="won")
    say(event="candidate", verdict="met")
    make('int8')
    """
    )
    job = run_script(script, resume=searching())
    event, sly = JobEvent.objects.filter(job=job, type="candidate").order_by("pk")
    assert event.data["name"] == "int8"
    assert (event.data["bytes"], event.data["high"], event.data["n"]) == (10, None, 40)
    assert len(event.data["reason"]) == 300
    assert event.data["said"]["template"] == "It is {size} bytes."
    assert event.data["said"]["values"]["size"] == 3
    assert sly.data["said"] is None, "no template of ours does more than name its values"


def test_numbers_in_a_report_are_checked(run_script, digits_dataset):
    job = run_script(
        """
        good = {"metric": "accuracy", "value": 0.5, "n": 10, "dataset": "alice/digits@1"}
        bad = [{"metric": "x", "value": None}, {"metric": "", "value": 1}, {"value": 1}, 7, None]
        end(report={"metrics": [good, *bad], "summary": {"odd": "a\\0b"}, "message": "Trained."})
        """
    )
    assert job.state == JobState.SUCCEEDED, job.error_detail
    number = Evaluation.objects.get(version=job.result)
    assert (number.metric, number.n, number.dataset_version) == ("accuracy", 10, digits_dataset)
    assert job.report["summary"] == {"odd": "ab"}
    assert job.result.message == "Trained."


@pytest.mark.slow
def test_a_dataset_without_the_label_column_fails_with_a_way_out(owner):
    """The names of a Parquet file's columns stand where only the job looks."""
    table = pa.table({"text": ["hello there"] * 30, "topic": ["greeting"] * 30})
    rows = io.BytesIO()
    pq.write_table(table, rows)
    files = {"train.parquet": rows.getvalue(), "test.parquet": rows.getvalue()}
    repository = factories.make_model(owner, "texts", kind="dataset")
    factories.make_version(owner, repository, files)
    recipe = training() | {
        "dataset": "alice/texts",
        "architecture": {"name": "text_classifier"},
    }
    job = jobs.submit_job(actor=actor_of(owner), recipe=recipe)
    run_next()
    job.refresh_from_db()
    assert job.state == JobState.FAILED
    assert job.error_code == "missing_column"
    assert "label" in job.error_detail
    assert "topic" in job.error_detail
    assert unpack(job.error_said).detail == job.error_detail


@pytest.mark.slow
def test_a_job_that_holds_too_much_memory_is_ended(run_script, settings):
    settings.JOB_MAX_MEMORY_BYTES = 200 << 20
    job = run_script(
        """
        import mmap
        reserved = mmap.mmap(-1, 4 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        say(event="log", message="reserved much and used nothing")
        time.sleep(2.5)
        child = os.fork()
        held = b"x" * (150 << 20)
        say(event="log", message="took much")
        time.sleep(60)
        """
    )
    assert (job.state, job.error_code) == (JobState.FAILED, "memory_limit")
    assert "more than the 200 MiB" in job.error_detail
    assert "MODELYARD_JOB_MAX_MEMORY_BYTES" in job.error_detail
    assert log_of(job)[0] == "reserved much and used nothing"


def test_without_a_setting_a_job_may_have_most_of_the_machine(tmp_path):
    whole = memory.machine_bytes(())
    assert 0 < memory.machine_bytes() <= whole
    assert memory.job_limit(5) == 5
    assert memory.job_limit(0) == memory.machine_bytes() * 3 // 4
    for name, text in (("v2", "max"), ("v1", str(1 << 62)), ("small", "1048576")):
        (tmp_path / name).write_text(text + "\n")
    assert memory.machine_bytes((tmp_path / "v2", tmp_path / "v1", tmp_path / "none")) == whole
    assert memory.machine_bytes((tmp_path / "v2", tmp_path / "small")) == 1 << 20


def test_old_folders_are_pruned(run_script):
    job = run_script(
        """
        pathlib.Path("../checkpoints/last").write_text("7")
        say(event="error", code="x", detail="y")
        sys.exit(2)
        """
    )
    assert folder_of(job).is_dir()
    assert prune_folders() == 0
    os.utime(folder_of(job), (0, 0))
    (jobs_folder() / "lost+found").mkdir()
    assert prune_folders() == 1
    assert not folder_of(job).exists()


# --- Jobs that are cut into parts -----------------------------------------------------------------


@pytest.fixture
def sharded(owner, digits_dataset, tmp_path):
    """Give a job over 40 rows in three parts, and its parts."""
    repository = factories.make_model(owner, "tiny")
    written = write_cnn(tmp_path / "model", classes=10)
    files = {path.name: path.read_bytes() for path in written.iterdir()}
    factories.make_version(owner, repository, files)
    job = jobs.submit_job(
        actor=actor_of(owner),
        recipe={
            "kind": "infer",
            "model": "alice/tiny",
            "dataset": "alice/digits",
            "output": "alice/predictions",
            "steps": [{"shards": 3, "batch_size": 4}],
        },
    )
    return job, list(job.children.order_by("part"))


def states_of(*rows):
    for row in rows:
        row.refresh_from_db()
    return [row.state for row in rows]


@pytest.mark.slow
def test_parts_are_computed_and_put_together(sharded):
    job, parts = sharded
    assert [part.part for part in parts] == [0, 1, 2]
    for done in range(1, 4):
        assert run_next()
        job.refresh_from_db()
        assert (job.state, job.progress["done"], job.progress["total"]) == ("queued", done, 3)
    kept = [part.made.sha256 for part in job.children.order_by("part").select_related("made")]
    assert not Blob.objects.unreferenced().filter(sha256__in=kept).exists()
    assert run_next()
    assert states_of(job, *parts) == ["succeeded"] * 4
    assert job.result.ref == "alice/predictions@1"
    rows = read_text(job.result, "predictions.jsonl").splitlines()
    assert [json.loads(row)["row"] for row in rows] == list(range(40))
    assert job.report["summary"]["parts"] == 3
    # What the parts left is in the whole now, and may go.
    assert Blob.objects.unreferenced().filter(sha256__in=kept).count() == len(set(kept))
    assert not run_next()


@pytest.mark.slow
def test_a_part_that_fails_ends_the_whole_and_only_it_is_computed_again(
    sharded, owner, monkeypatch
):
    job, parts = sharded
    assert run_next()
    with monkeypatch.context() as patched:
        patched.setattr(runner, "COMMAND", (sys.executable, "-c", "raise SystemExit(1)"))
        assert run_next()
    assert sorted(states_of(*parts)) == ["cancelled", "failed", "succeeded"]
    assert states_of(job) == ["failed"]
    assert job.error_code == "part_failed"
    assert unpack(job.error_said).detail == job.error_detail
    assert "of 3 failed" in job.error_detail
    with pytest.raises(Conflict) as caught:
        jobs.resume_job(actor=actor_of(owner), job=parts[1])
    assert str(job.pk) in caught.value.detail
    jobs.resume_job(actor=actor_of(owner), job=job)
    assert sorted(states_of(*parts)) == ["queued", "queued", "succeeded"]
    for _ in range(3):
        assert run_next()
    assert states_of(job) == ["succeeded"]
    assert len(read_text(job.result, "predictions.jsonl").splitlines()) == 40


def test_cancelling_the_whole_ends_its_parts(sharded, owner):
    job, parts = sharded
    with pytest.raises(Conflict):
        jobs.cancel_job(actor=actor_of(owner), job=parts[0])
    jobs.cancel_job(actor=actor_of(owner), job=job)
    assert states_of(job, *parts) == ["cancelled"] * 4
    assert not run_next()
