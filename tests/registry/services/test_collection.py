"""What nobody can bring back goes, and nothing else, whatever happens at the same moment."""

import hashlib
import os
import threading
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, models, transaction
from django.utils import timezone

from registry.errors import NotFound, Unavailable
from registry.models import (
    Artifact,
    Blob,
    Event,
    LineageEdge,
    Ref,
    Repository,
    Revision,
    Upload,
    Version,
)
from registry.services import catalog, custody, transfers, uploads, versions
from registry.services.blobs import hold_blobs, lock_bytes, record_blob
from registry.services.collection import collect_garbage
from registry.storage import default_storage
from tests.factories import (
    UserFactory,
    actor_of,
    make_blob,
    make_model,
    make_version,
    safetensors_bytes,
)
from tests.registry.test_storage import bad_sector

NOW = timedelta(0)
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def _own_storage(settings, tmp_path):
    settings.STORAGE_URL = (tmp_path / "store").as_uri()


@pytest.fixture
def alice(db):
    return UserFactory(username="alice")


@pytest.fixture
def model(alice):
    return make_model(alice)


def collect(**options):
    """Collect at once: the first round condemns what the second one removes."""
    options = {"undo": NOW, "keep": NOW, **options}
    return [garbage for _ in range(2) for garbage in collect_garbage(**options)]


def names(garbage, kind):
    return sorted(one.name for one in garbage if one.kind == kind)


def test_a_deleted_repository_goes_after_its_time_with_its_bytes(alice, model):
    make_version(alice, model)
    kept = make_version(alice, make_model(alice, "other"), {"a.json": b"{}"})
    bytes_of_model = set(Blob.objects.exclude(artifacts__revision=kept.revision_id))
    catalog.delete_repository(actor=actor_of(alice), repository=model)
    assert collect(undo=DAY) == []
    assert Repository.objects.filter(pk=model.pk).exists()
    gone = collect()
    assert names(gone, "model") == ["alice/classifier"]
    assert names(gone, "blob") == sorted(blob.sha256 for blob in bytes_of_model)
    assert not Repository.objects.filter(pk=model.pk).exists()
    storage = default_storage()
    assert not any(storage.exists(blob.sha256) for blob in bytes_of_model)
    assert storage.read(kept.revision.artifacts.get().blob.sha256) == b"{}"
    assert Event.objects.filter(action="model.register", target="alice/classifier").exists()
    assert Event.objects.filter(action="model.purge", target="alice/classifier").exists()
    assert collect() == []


def test_unused_bytes_stay_for_a_while(alice):
    blob = make_blob(b"unused")
    collect(keep=DAY)
    assert default_storage().exists(blob.sha256)
    blob.refresh_from_db()
    assert blob.condemned_at is not None
    # Recorded again, it is as good as new.
    make_blob(b"unused")
    blob.refresh_from_db()
    assert blob.condemned_at is None
    Blob.objects.update(condemned_at=timezone.now() - 2 * DAY)
    os.utime(next((default_storage().spool / "blobs").rglob(blob.sha256)), (1, 1))
    assert names(collect_garbage(keep=DAY), "blob") == [blob.sha256]


def test_bytes_that_were_just_sent_again_are_left_alone(alice):
    blob = make_blob(b"unused")
    Blob.objects.update(condemned_at=timezone.now() - 2 * DAY)
    default_storage().put([b"unused"])
    assert names(collect_garbage(keep=DAY), "blob") == []
    assert default_storage().exists(blob.sha256)


def test_a_use_found_later_takes_the_condemnation_back(alice, model):
    blob = make_blob(b"{}")
    Blob.objects.update(condemned_at=timezone.now() - 2 * DAY)
    versions.create_version(actor=actor_of(alice), repository=model, files={"a.json": blob})
    assert collect() == []
    blob.refresh_from_db()
    assert blob.condemned_at is None


def test_a_finished_upload_keeps_its_bytes_until_it_expires(alice):
    actor = actor_of(alice)
    upload = uploads.begin_upload(actor=actor, length=4)
    default_storage().append_upload(str(upload.pk), 0, [b"data"])
    stored = default_storage().finish_upload(str(upload.pk))
    uploads.complete_upload(actor=actor, upload=upload, stored=stored)
    assert collect() == []
    Upload.objects.update(expires_at=timezone.now())
    uploads.expire_uploads()
    assert names(collect(), "blob") == [stored.sha256]


def test_a_deleted_version_goes_and_its_number_stays_taken(alice, model):
    actor = actor_of(alice)
    first = make_version(alice, model, {"a.json": b"1"})
    second = make_version(alice, model, {"a.json": b"2"})
    child = make_version(
        alice,
        make_model(alice, "child"),
        {"a.json": b"3"},
        parents=[versions.ParentSpec(version=second, role="weights")],
    )
    number = versions.EvaluationSpec(metric="accuracy", value=0.5, dataset=second)
    versions.add_evaluations(actor=actor, version=child, evaluations=[number])
    versions.delete_version(actor=actor, version=second)
    assert collect(undo=DAY) == []
    gone = collect()
    assert names(gone, "version") == ["alice/classifier@2"]
    assert names(gone, "blob") == [hashlib.sha256(b"2").hexdigest()]
    assert not Version.objects.filter(pk=second.pk).exists()
    assert not LineageEdge.objects.exists()
    evaluation = child.evaluations.get()
    assert (evaluation.value, evaluation.dataset_version) == (0.5, None)
    assert evaluation.details["dataset"] == "alice/classifier@2"
    assert Ref.objects.get(repository=model, name="main").revision_id == first.revision_id
    assert make_version(alice, model, {"a.json": b"4"}).number == 3


def test_a_snapshot_that_another_version_shares_keeps_its_files(alice, model):
    first = make_version(alice, model, {"a.json": b"1"})
    second = make_version(alice, model, {"a.json": b"2"})
    Version.objects.filter(pk=second.pk).update(revision=first.revision)
    versions.delete_version(actor=actor_of(alice), version=second)
    collect()
    assert Artifact.objects.filter(revision=first.revision_id).count() == 1


def test_what_was_brought_back_is_not_purged(alice, model):
    catalog.delete_repository(actor=actor_of(alice), repository=model)
    garbage = collect_garbage(undo=NOW, keep=NOW, dry_run=True)
    assert next(garbage).name == "alice/classifier"
    purge = collect_garbage(undo=NOW, keep=NOW)
    Repository.objects.update(deleted_at=None)
    assert list(purge) == []
    assert Revision.objects.filter(repository=model).exists()


def test_a_dry_run_changes_nothing(alice, model):
    make_version(alice, model)
    blob = make_blob(b"unused")
    Blob.objects.filter(pk=blob.pk).update(condemned_at=timezone.now())
    stray = default_storage().put([b"stray"])
    catalog.delete_repository(actor=actor_of(alice), repository=model)
    found = list(collect_garbage(undo=NOW, keep=NOW, dry_run=True))
    assert names(found, "model") == ["alice/classifier"]
    assert names(found, "blob") == [blob.sha256]
    assert names(found, "stray") == [stray.sha256]
    assert Repository.objects.filter(pk=model.pk).exists()
    assert default_storage().exists(blob.sha256)
    assert default_storage().exists(stray.sha256)


def test_bytes_without_a_row_go_when_they_are_old(db):
    stray = default_storage().put([b"stray"])
    assert collect(keep=DAY) == []
    assert names(collect(strays=False), "stray") == []
    assert names(collect(), "stray") == [stray.sha256]
    assert not default_storage().exists(stray.sha256)


# --- No table can be forgotten ---------------------------------------------------------------

# Facts about bytes, which go with them. Whatever else points at a blob keeps it alive.
FACTS = {("registry_inspection", "blob_id"), ("registry_outline", "blob_id")}


def test_every_table_that_points_at_a_blob_counts(db):
    references = {
        (relation.related_model._meta.db_table, relation.remote_field.column)
        for relation in Blob.references()
    }
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT source.relname, attribute.attname FROM pg_constraint
            JOIN pg_class source ON source.oid = conrelid
            JOIN pg_attribute attribute ON attrelid = conrelid AND attnum = conkey[1]
            WHERE contype = 'f' AND confrelid = 'registry_blob'::regclass
            """
        )
        known_to_database = set(cursor.fetchall())
    assert references | FACTS == known_to_database
    assert not references & FACTS
    guarded = {relation.on_delete for relation in Blob.references()}
    assert guarded == {models.PROTECT}


def test_the_database_refuses_where_a_table_was_forgotten(transactional_db, caplog):
    blob = make_blob(b"used elsewhere")
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE forgotten (blob_id bigint REFERENCES registry_blob (id))")
        cursor.execute("INSERT INTO forgotten VALUES (%s)", [blob.pk])
    try:
        assert collect() == []
        assert default_storage().read(blob.sha256) == b"used elsewhere"
        assert Blob.objects.filter(pk=blob.pk).exists()
        assert "cannot be collected" in caplog.text
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE forgotten")


def test_a_row_that_something_protects_does_not_keep_the_others(alice, monkeypatch, caplog):
    first, second = make_model(alice, "first"), make_model(alice, "second")
    for model in (first, second):
        catalog.delete_repository(actor=actor_of(alice), repository=model)
    real_delete = Repository.delete

    def delete(self):
        if self.name == "first":
            raise models.ProtectedError("an endpoint serves it", {self})
        return real_delete(self)

    monkeypatch.setattr(Repository, "delete", delete)
    assert names(collect(), "model") == ["alice/second"]
    assert "cannot be purged" in caplog.text
    assert Revision.objects.filter(repository=first).exists()


# --- At the same moment ----------------------------------------------------------------------


def elsewhere(work):
    """Run `work` in a thread with a connection of its own, and give its result."""
    result = []

    def run():
        try:
            result.append(work())
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result[0]


def test_bytes_that_were_collected_before_their_row_are_missed(db):
    stored = default_storage().put([b"data"])
    default_storage().delete(stored.sha256)
    with pytest.raises(Unavailable) as refusal:
        record_blob(stored)
    assert refusal.value.reason == "bytes_collected"
    assert not Blob.objects.exists()


def test_nothing_is_collected_while_somebody_records_it(transactional_db):
    blob = make_blob(b"data")
    collect(keep=DAY)
    stored = default_storage().put([b"data"])
    with transaction.atomic():
        assert record_blob(stored) == blob
        assert elsewhere(collect) == []
    assert default_storage().exists(blob.sha256)


def test_nothing_is_collected_while_a_version_takes_it_up(transactional_db):
    alice = UserFactory(username="alice")
    model, blob = make_model(alice), make_blob(b"{}")
    with transaction.atomic():
        versions.create_version(actor=actor_of(alice), repository=model, files={"a.json": blob})
        assert elsewhere(collect) == []
    assert collect() == []
    assert default_storage().read(blob.sha256) == b"{}"


def test_strays_are_left_while_somebody_records_them(transactional_db):
    stored = default_storage().put([b"data"])
    with transaction.atomic():
        lock_bytes(stored.sha256)
        assert elsewhere(collect) == []
    assert names(collect(), "stray") == [stored.sha256]


def test_a_version_over_bytes_that_were_just_collected_is_refused(transactional_db):
    alice = UserFactory(username="alice")
    model = make_model(alice)
    gone, without_row = make_blob(safetensors_bytes(weight=[1.0])), make_blob(b"bytes only")
    collect(strays=False)
    default_storage().put([b"bytes only"])
    for files in ({"model.safetensors": gone}, {"weights.bin": without_row}):
        with pytest.raises(Unavailable) as refusal:
            versions.create_version(actor=actor_of(alice), repository=model, files=files)
        assert refusal.value.reason == "bytes_collected"
    with pytest.raises(Unavailable), transaction.atomic():
        hold_blobs([gone])
    assert not Version.objects.exists()


def test_a_download_that_began_ends(alice, model):
    content = os.urandom(5 << 20)
    version = make_version(alice, model, {"weights.bin": content})
    sha256 = version.revision.artifacts.get().blob.sha256
    blocks = default_storage().open(sha256)
    first = next(blocks)
    versions.delete_version(actor=actor_of(alice), version=version)
    assert names(collect(), "blob") == [sha256]
    assert first + b"".join(blocks) == content
    with pytest.raises(NotFound):
        default_storage().open(sha256)


class Writers:
    """People who add, delete and read the same and different bytes, each in a thread."""

    def __init__(self, count):
        self.actors = [actor_of(UserFactory(username=f"writer{n}")) for n in range(count)]
        self.repositories = {
            actor: make_model(UserFactory._meta.model.objects.get(pk=actor.user_id), "shared")
            for actor in self.actors
        }
        self.over = threading.Event()
        self.failures = []
        self.acknowledged = []

    def thread(self, work, *arguments):
        def run():
            try:
                work(*arguments)
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self.failures.append(error)
                self.over.set()
            finally:
                connection.close()

        return threading.Thread(target=run)

    def collect(self):
        while not self.over.is_set():
            list(collect_garbage(undo=NOW, keep=NOW))

    def write(self, actor, rounds):
        mine = []
        for turn in range(rounds):
            if self.over.is_set():
                return
            contents = b"shared %d" % (turn % 3), f"{actor.username} {turn}".encode()
            mine += [
                (actor, self.register(actor, content, by_upload=turn % 2), content)
                for content in contents
            ]
            self.check(*mine[turn // 2])
            if turn % 3 == 2:
                versions.delete_version(actor=actor, version=mine.pop()[1])
        self.acknowledged += mine

    def register(self, actor, content, *, by_upload):
        for _ in range(100):
            try:
                return self.try_to_register(actor, content, by_upload=by_upload)
            except Unavailable as error:
                # Refused, so nothing was promised: send it again.
                assert error.reason == "bytes_collected"  # noqa: PT017
        raise AssertionError("the bytes never stayed")

    def try_to_register(self, actor, content, *, by_upload):
        storage = default_storage()
        if not by_upload:
            return self.version_of(actor, record_blob(storage.put([content])))
        upload = uploads.begin_upload(actor=actor, length=len(content))
        storage.append_upload(str(upload.pk), 0, [content])
        stored = storage.finish_upload(str(upload.pk))
        row = uploads.complete_upload(actor=actor, upload=upload, stored=stored)
        version = self.version_of(actor, row.blob)
        uploads.cancel_upload(actor=actor, upload=upload)
        return version

    def version_of(self, actor, blob):
        return versions.create_version(
            actor=actor, repository=self.repositories[actor], files={"data.bin": blob}
        )

    def check(self, actor, version, content):
        found = transfers.find_download(
            actor=actor,
            kind="model",
            namespace=actor.username,
            name="shared",
            version=str(version.number),
            path="data.bin",
        )
        assert b"".join(default_storage().open(found.sha256)) == content


@pytest.mark.slow
@pytest.mark.parametrize("keys", ["", "ab" * 32], ids=["plain", "encrypted"])
def test_nothing_acknowledged_is_lost_beside_a_collector_that_never_rests(
    transactional_db, settings, keys
):
    settings.MASTER_KEYS = keys
    people = Writers(4)
    collectors = [people.thread(people.collect) for _ in range(2)]
    writers = [people.thread(people.write, actor, 12) for actor in people.actors]
    for thread in (*collectors, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    people.over.set()
    for thread in collectors:
        thread.join()
    assert people.failures == []
    assert len(people.acknowledged) == 4 * (12 * 2 - 4)
    for one in people.acknowledged:
        people.check(*one)
    collect()
    left = {sha256 for sha256, _ in default_storage().inventory()}
    assert left == {hashlib.sha256(content).hexdigest() for *_, content in people.acknowledged}


# --- Commands --------------------------------------------------------------------------------


def command(name, *arguments):
    out = StringIO()
    call_command(name, *arguments, stdout=out)
    return out.getvalue()


def fails(name, message):
    out = StringIO()
    with pytest.raises(CommandError, match=message):
        call_command(name, stdout=out)
    return out.getvalue()


def test_the_command_lists_what_would_go_and_what_went(alice, model):
    make_version(alice, model, {"a.json": b"{}"})
    catalog.delete_repository(actor=actor_of(alice), repository=model)
    at_once = ("--undo-days", "0", "--keep-hours", "0")
    assert "model      alice/classifier  2 bytes" in command(
        "collect_garbage", "--dry-run", *at_once
    )
    assert command("collect_garbage") == "0 things went, 0 bytes of bytes with a row among them\n"
    assert "1 things went" in command("collect_garbage", *at_once)
    digest = hashlib.sha256(b"{}").hexdigest()
    assert f"blob       {digest}  2 bytes" in command("collect_garbage", *at_once)


def test_damage_is_found_and_named(alice, model):
    make_version(alice, model, {"a.json": b"{}", "b.json": b"[]", "c.json": b"[1]"})
    assert "3 blobs read, all as they should be" in command("verify_storage")
    folder = default_storage().spool / "blobs"
    for content, change in ((b"{}", b"[]"), (b"[]", b"[  ]"), (b"[1]", None)):
        path = next(folder.rglob(hashlib.sha256(content).hexdigest()))
        path.unlink()
        if change is not None:
            path.write_bytes(change)
    out = StringIO()
    with pytest.raises(CommandError, match="3 of 3 blobs are wrong"):
        call_command("verify_storage", stdout=out)
    said = out.getvalue()
    assert "have sha256" in said
    assert "4 bytes are stored, not 2." in said
    assert "No stored bytes" in said
    assert "alice/classifier@1/a.json" in said
    assert len(list(custody.verify_blobs(sample=2))) == 2


def test_what_cannot_be_read_keeps_nothing_from_being_verified(alice, model, monkeypatch):
    make_version(alice, model, {name: name.encode() for name in ("a.txt", "b.txt", "c.txt")})
    folder = default_storage().spool / "blobs"
    bad, closed = (
        next(folder.rglob(hashlib.sha256(name).hexdigest())) for name in (b"a.txt", b"b.txt")
    )
    bad_sector(monkeypatch, bad)
    closed.unlink()
    # It opens no more than a file whose very name the disk has lost.
    closed.mkdir()
    problems = {one.sha256: one.problem for one in custody.verify_blobs() if one.problem}
    assert problems.keys() == {bad.name, closed.name}
    assert "Input/output error" in problems[bad.name]


def test_plain_blobs_are_encrypted_and_keys_rotated(alice, model, settings):
    old, new = "ab" * 32, "cd" * 32
    version = make_version(alice, model, {"a.json": b"{}", "b.json": b"[]"})
    with pytest.raises(CommandError, match="MODELYARD_MASTER_KEY names no master key"):
        command("encrypt_blobs")
    settings.MASTER_KEYS = old
    assert command("encrypt_blobs") == "Done: 2 blobs encrypted.\n"
    assert command("encrypt_blobs") == "Done: 0 blobs encrypted.\n"
    assert not list(default_storage().plain_inventory())
    settings.MASTER_KEYS = f"{new} {old}"
    assert command("rotate_keys") == "Done: 2 keys, 2 of them wrapped anew.\n"
    settings.MASTER_KEYS = new
    assert "2 blobs read, all as they should be" in command("verify_storage")
    settings.MASTER_KEYS = old
    with pytest.raises(CommandError, match="lacks the master key"):
        command("rotate_keys")
    with pytest.raises(CommandError, match="2 of 2 blobs are wrong"):
        command("verify_storage")
    settings.MASTER_KEYS = new
    versions.delete_version(actor=actor_of(alice), version=version)
    assert len(names(collect(), "blob")) == 2
    assert [path for path in default_storage().spool.rglob("*") if path.is_file()] == []


def test_one_damaged_blob_does_not_keep_the_others_from_being_encrypted(alice, model, settings):
    names = [f"{number}.txt" for number in range(5)]
    make_version(alice, model, {name: name.encode() for name in names})
    digests = sorted(hashlib.sha256(name.encode()).hexdigest() for name in names)
    spoiled, closed, *good = digests
    folder = default_storage().spool / "blobs"
    for digest in (spoiled, closed):
        next(folder.rglob(digest)).unlink()
    (folder / spoiled[:2] / spoiled).write_bytes(b"other")
    # It opens no more than a file whose very name the disk has lost.
    (folder / closed[:2] / closed).symlink_to(folder)
    settings.MASTER_KEYS = "ab" * 32
    for encrypted in (3, 0):
        said = fails("encrypt_blobs", f"2 of {2 + encrypted} blobs could not be encrypted")
        assert f"{spoiled}: " in said
        assert f"{closed}: " in said
    assert {path.name for path in (folder.parent / "sealed").rglob("*") if path.is_file()} == {
        *good
    }


def test_one_sidecar_that_cannot_be_read_does_not_keep_the_others_from_being_rotated(
    alice, model, settings
):
    settings.MASTER_KEYS = "ab" * 32
    files = {f"{number}.txt": b"%d" % number for number in range(4)}
    make_version(alice, model, files)
    keys = sorted((default_storage().spool / "keys").rglob("*.*"))
    for path in keys[:2]:
        path.chmod(0o644)
    keys[0].write_bytes(b"{}")
    keys[1].unlink()
    keys[1].symlink_to(keys[1].parent)
    settings.MASTER_KEYS = f"{'cd' * 32} {'ab' * 32}"
    said = fails("rotate_keys", "2 of 4 keys could not be wrapped anew")
    for path in keys[:2]:
        assert f"{path.name.partition('.')[0]}: " in said
    settings.MASTER_KEYS = "cd" * 32
    assert len([one for one in custody.verify_blobs() if not one.problem]) == 2


def test_the_workers_collect_on_their_own(alice):
    from config.celery import app  # noqa: PLC0415 - the tasks come with it
    from workers.tasks import remove_garbage  # noqa: PLC0415

    blob = make_blob(b"unused")
    remove_garbage(strays=True)
    Blob.objects.update(condemned_at=timezone.now() - 2 * DAY)
    os.utime(next((default_storage().spool / "blobs").rglob(blob.sha256)), (1, 1))
    remove_garbage(strays=False)
    assert not Blob.objects.exists()
    schedule = app.conf.beat_schedule.values()
    tasks = [entry["task"] for entry in schedule]
    assert tasks.count("workers.collect_garbage") == 2
