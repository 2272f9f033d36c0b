"""What a new reader does with files that an older one saw: nothing is let go, some are caught."""

import uuid

import pytest
from django.db.models import Value
from django.db.models.functions import Replace

from registry.errors import Conflict, Denied, Invalid, NotFound
from registry.formats import INSPECTOR
from registry.models import (
    Artifact,
    AuditAction,
    Event,
    Inspection,
    Screening,
    Verdict,
    Version,
    VersionState,
    Visibility,
)
from registry.services import blobs, transfers, versions
from registry.services.reinspection import reinspect_blobs
from registry.storage import default_storage
from tests.factories import UserFactory, actor_of, make_blob, make_model, make_version
from tests.registry.formats import samples
from workers.folder import JobFolder

pytestmark = pytest.mark.django_db

PROGRAM = samples.zipped({"m/data.pkl": b"", "m/code/a.py": b"", "m/constants.pkl": b""})
POLYGLOT = samples.safetensors({"w": ("U8", [len(PROGRAM)], PROGRAM)})


@pytest.fixture
def alice():
    return UserFactory(username="alice")


@pytest.fixture
def model(alice):
    return make_model(alice, visibility=Visibility.PUBLIC)


def grow_old(**seen):
    """Have everything been seen by the readers of an earlier release, and by them alone."""
    Inspection.objects.update(
        inspector=Replace("inspector", Value(INSPECTOR), Value("headers-3")), **seen
    )


def as_it_was(version, **changes):
    """Put a version where the earlier release had it."""
    Screening.objects.filter(version=version).delete()
    Version.objects.filter(pk=version.pk).update(
        state=VersionState.READY, state_reason="", state_reason_said=None, **changes
    )


def download(user, version, path):
    repository = version.repository
    return transfers.find_download(
        actor=actor_of(user),
        kind=repository.kind,
        namespace=repository.namespace.slug,
        name=repository.name,
        version=str(version.number),
        path=path,
    )


def test_what_an_older_reader_held_stays_held(alice, model):
    version = make_version(alice, model, {"model.pkl": samples.exploit()})
    grow_old()
    stranger = UserFactory()
    with pytest.raises(Denied) as refusal:
        download(stranger, version, "model.pkl")
    assert refusal.value.reason == "quarantined_file"
    file = Artifact.objects.get()
    with pytest.raises(NotFound):
        blobs.find_readable_blob(actor_of(stranger), file.blob.sha256)
    assert blobs.inspection_of(file).verdict == Verdict.QUARANTINED
    # Neither a new look under another name lets it go, nor the one that was due.
    blobs.inspect_blob("model.bin", file.blob)
    for _ in range(2):
        with pytest.raises(Denied):
            download(stranger, version, "model.pkl")
        reinspect_blobs()
    assert {row.reader for row in Inspection.objects.by_readers()} == {INSPECTOR}


def test_what_nobody_has_looked_at_is_held(alice, model):
    version = make_version(alice, model)
    assert not download(alice, version, "model.safetensors").quarantined
    Inspection.objects.all().delete()
    assert download(alice, version, "model.safetensors").quarantined
    with pytest.raises(Denied):
        download(UserFactory(), version, "model.safetensors")


def test_a_name_that_asks_for_a_pickle_holds_no_other_name(alice, model):
    """Else anybody could take a public table from everybody, by sending it once as `x.pkl`."""
    version = make_version(alice, model, {"rows.csv": b"a,b\n1,2\n"})
    mallory = UserFactory(username="mallory")
    make_version(mallory, make_model(mallory, "mine"), {"x.pkl": b"a,b\n1,2\n"})
    assert not download(UserFactory(), version, "rows.csv").quarantined


def test_a_version_whose_weights_turn_out_to_run_code_is_held(alice, model, settings, tmp_path):
    settings.HOME_DIR = tmp_path
    version = make_version(alice, model, {"model.safetensors": POLYGLOT})
    as_it_was(version, formats=["safetensors"])
    grow_old(verdict=Verdict.SAFE, findings=[], findings_said=[])
    versions.require_runnable(Version.objects.get())
    # A job that starts before it was looked at again has it looked at first.
    folder = JobFolder(uuid.uuid4(), 1)
    folder.make()
    folder.lay_out({"model": version}, default_storage(), lambda: None)
    assert not list((folder.path / "inputs").rglob("*.safetensors"))

    assert reinspect_blobs() == 1
    version.refresh_from_db()
    assert version.state == VersionState.QUARANTINED
    assert "model.safetensors can execute code" in version.state_reason
    with pytest.raises(Conflict, match="quarantined"):
        versions.require_runnable(version)
    assert Screening.objects.get().state == Screening.State.WAITING
    assert Event.objects.filter(action=AuditAction.VERSION_REINSPECT).count() == 1
    model.refresh_from_db()
    assert model.latest_number is None
    assert reinspect_blobs() == 0


def test_a_version_that_could_be_converted_goes_to_the_sandbox_again(alice, model):
    version = make_version(alice, model, {"weights.pt": samples.HONEST["weights.pt"]})
    as_it_was(version)
    Screening.objects.create(version=version, state=Screening.State.DONE)
    grow_old(verdict=Verdict.OPAQUE, format="zip")
    reinspect_blobs()
    version.refresh_from_db()
    assert version.state == VersionState.QUARANTINED
    waiting = Screening.objects.get()
    assert (waiting.state, waiting.converts) == (Screening.State.WAITING, True)


def test_what_a_reader_learns_to_know_as_harmless_comes_back(alice, model):
    version = make_version(alice, model, {"model.onnx": samples.onnx()})
    Version.objects.update(state=VersionState.QUARANTINED, state_reason="Unknown operators.")
    grow_old(verdict=Verdict.QUARANTINED)
    reinspect_blobs()
    version.refresh_from_db()
    assert (version.state, version.state_reason) == (VersionState.READY, "")
    assert not download(UserFactory(), version, "model.onnx").quarantined


def test_what_would_be_refused_today_is_there_and_held(alice, model):
    version = make_version(alice, model)
    lying = make_blob(samples.safetensors(tail=b"more"))
    file = version.revision.artifacts.get(path="model.safetensors")
    Inspection.objects.filter(blob=file.blob).update(blob=lying)
    Artifact.objects.filter(pk=file.pk).update(blob=lying)
    grow_old()
    reinspect_blobs()
    file = version.revision.artifacts.get(path="model.safetensors")
    seen = blobs.inspection_of(file)
    assert (seen.reader, seen.format, seen.verdict) == (INSPECTOR, "safetensors", "quarantined")
    assert "refuses it today" in seen.findings[0]
    version.refresh_from_db()
    assert version.state == VersionState.QUARANTINED
    with pytest.raises(Invalid) as refusal:
        make_version(alice, model, {"again.safetensors": samples.safetensors(tail=b"more")})
    assert refusal.value.reason == "malformed_file"


def test_a_derivative_that_turns_out_to_run_code_makes_nothing_usable(alice, model):
    version = make_version(alice, model, {"weights.pt": samples.HONEST["weights.pt"]})
    made = make_blob(POLYGLOT)
    blobs.inspect_blob("model.safetensors", made)
    version.derivatives.create(
        purpose="converted", toolchain="t", path="model.safetensors", blob=made
    )
    as_it_was(version)
    Inspection.objects.filter(blob=made).update(inspector="headers-3.safetensors", verdict="safe")
    reinspect_blobs()
    version.refresh_from_db()
    assert version.state == VersionState.QUARANTINED


def test_it_is_done_piece_by_piece_and_survives_bytes_that_are_gone(alice, model):
    first = make_version(alice, model, {"a.txt": b"first", "b.txt": b"second"})
    grow_old()
    assert reinspect_blobs(seconds=0) == 0
    gone = first.revision.artifacts.get(path="a.txt").blob
    default_storage().delete(gone.sha256)
    assert reinspect_blobs() == 1
    assert Inspection.objects.older_than(4).get().blob == gone
