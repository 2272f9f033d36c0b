"""Fill a registry with many models that look like real ones, past the services, in bulk.

python -m benchmarks.load 1000000 --versions 5 --history 200000

`DATABASE_URL` names the registry, by a user that may leave out the checks of foreign keys. Nothing
but the rows is made: the blobs have no bytes.
"""

import argparse
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import django
from django.utils import timezone

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup()

from django.db import connection, models, transaction  # noqa: E402 - needs the settings

from benchmarks.vocabulary import (  # noqa: E402
    LONG_HISTORY,
    PER_NAMESPACE,
    describe,
    slug_of,
)
from registry.lexicon import search_terms_of, terms_of, word_pairs_in, words_in  # noqa: E402
from registry.models import (  # noqa: E402
    Alias,
    Artifact,
    Blob,
    Evaluation,
    Namespace,
    Ref,
    Repository,
    Revision,
    SearchWord,
    Signature,
    Tag,
    Version,
)
from registry.signing import installation_key  # noqa: E402

BATCH = 5000
# From here on it is quicker to build the indexes of words anew than to keep them.
MANY = 100_000
SEARCHED = ("summary", "task", "library", "license", "language", "subject")


def name_namespaces(count: int) -> list[Namespace]:
    slugs = [slug_of(number) for number in range(0, count, PER_NAMESPACE)]
    Namespace.objects.bulk_create(
        [Namespace(slug=slug) for slug in slugs], batch_size=BATCH, ignore_conflicts=True
    )
    return list(Namespace.objects.filter(slug__in=slugs).order_by("slug"))


def load(count: int, *, versions: int = 2, history: int = 0, seed: int = 1) -> None:
    """Make `count` models, each with that many versions, an alias, tags, and one file a version.

    One more has a long history if `history` says of how many versions.
    """
    chance = random.Random(seed)
    namespaces = name_namespaces(count)
    numbers = iter(range(count))
    words: set[str] = set()
    with _indexed_afterwards(Repository, always=count < MANY):
        while batch := [number for _, number in zip(range(BATCH), numbers, strict=False)]:
            with transaction.atomic():
                repositories = _repositories(batch, namespaces, chance, versions)
                _histories(repositories, versions)
            words = words.union(*(words_in(row.search_text) for row in repositories))
            print(f"{repositories[-1].pk:,} models", flush=True)
        if history:
            with transaction.atomic():
                [row] = _repositories([0], namespaces, chance, history, name=LONG_HISTORY)
                _histories([row], history)
    SearchWord.objects.bulk_create(
        [SearchWord(word=word) for word in sorted(words)], batch_size=BATCH, ignore_conflicts=True
    )
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")


@contextmanager
def _indexed_afterwards(model: type[models.Model], *, always: bool) -> Iterator[None]:
    """Take the GIN indexes of a table away for as long as rows pour in, unless they stay."""
    about = model._meta  # noqa: SLF001 - Django documents it
    indexes = [] if always else [one for one in about.indexes if one.suffix == "gin"]
    with connection.schema_editor() as editor:
        for index in indexes:
            editor.remove_index(model, index)
    yield
    with connection.schema_editor() as editor:
        for index in indexes:
            editor.add_index(model, index)


def _repositories(
    numbers: list[int],
    namespaces: list[Namespace],
    chance: random.Random,
    versions: int,
    *,
    name: str = "",
) -> list[Repository]:
    now = timezone.now()
    rows = []
    for number in numbers:
        fact, space = describe(number, chance), namespaces[number // PER_NAMESPACE]
        full_name = f"{space.slug}/{name or fact['name']}"
        searched = [full_name, *(fact[one] for one in SEARCHED), f"team {space.slug}"]
        text = " ".join(searched).lower()
        rows.append(
            Repository(
                kind="model",
                namespace=space,
                name=name or fact["name"],
                summary=fact["summary"],
                task=fact["task"],
                library=fact["library"],
                license=fact["license"],
                labels=[fact["language"], fact["subject"]],
                formats=["safetensors"],
                latest_number=versions,
                last_number=versions,
                parameters_count=chance.randrange(10**6, 7 * 10**10),
                size_bytes=chance.randrange(10**6, 10**11),
                downloads_count=int(chance.paretovariate(0.7)),
                quality=round(chance.betavariate(8, 2), 4),
                quality_metric="accuracy",
                updated_at=now - timedelta(seconds=chance.randrange(10**7)),
                search_text=text,
                search_terms=search_terms_of(full_name, text),
                word_pairs=word_pairs_in(text),
                card_text=fact["card"],
                card_terms=terms_of(fact["card"]),
            )
        )
    return Repository.objects.bulk_create(rows)


def _histories(repositories: list[Repository], versions: int) -> None:
    """Give each of these repositories, whose keys follow each other, its versions.

    The database makes the rows itself. A version, its revision, its file and the file's blob have
    one number in common, so that none has to be looked up.
    """
    low, high = repositories[0].pk, repositories[-1].pk
    first = 1 + max(
        rows.aggregate(last=models.Max("pk"))["last"] or 0
        for rows in (Blob.objects, Revision.objects, Version.objects)
    )
    key = f"({first} + (r.id - {low}) * {versions} + n - 1)"
    each = (
        f"registry_repository AS r CROSS JOIN generate_series(1, {versions}) AS n"
        f" WHERE r.id BETWEEN {low} AND {high}"
    )
    last = f"{each} AND n = {versions}"
    size = "r.size_bytes"
    with connection.cursor() as cursor:
        # Every key named here is one made here.
        cursor.execute("SET LOCAL session_replication_role = replica")
    digest = "encode(sha256(('benchmark ' || r.id || ' ' || n)::bytea), 'hex')"
    _insert(Blob, each, id=key, sha256=digest, size_bytes=size)
    commit = "left(encode(sha256((r.id || ' ' || n)::bytea), 'hex'), 40)"
    message = "'version ' || n"
    _insert(Revision, each, id=key, repository_id="r.id", commit=commit, message=message)
    _insert(
        Version,
        each,
        id=key,
        repository_id="r.id",
        number="n",
        revision_id=key,
        message=message,
        formats="r.formats",
        parameters_count="r.parameters_count",
        size_bytes=size,
        files_count="1",
    )
    _insert(Artifact, each, revision_id=key, path="'model.safetensors'", blob_id=key)
    _insert(Ref, last, repository_id="r.id", name="'main'", revision_id=key)
    _insert(Alias, last, repository_id="r.id", name="'champion'", version_id=key)
    slug = "(SELECT slug FROM registry_namespace AS o WHERE o.id = r.namespace_id)"
    _insert(Tag, last, repository_id="r.id", key="'team'", value=slug)
    measured = {"version_id": key, "measured": "true", "device": "'cpu'"}
    _insert(Evaluation, last, metric="'accuracy'", value="r.quality", **measured)
    latency = "0.5 + r.size_bytes / 1e9"
    _insert(Evaluation, last, metric="'latency_p50_batch1'", value=latency, **measured)
    # Of the present key, so that no worker sets out to sign them all; nobody can check these.
    signed = {"own": "true", "method": "'key'", "bundle": "'{}'"}
    fingerprint = f"'{installation_key().fingerprint}'"
    _insert(Signature, each, version_id=key, fingerprint=fingerprint, **signed)
    with connection.cursor() as cursor:
        for table in ("registry_blob", "registry_revision", "registry_version"):
            cursor.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}"
            )


def _insert(model: type[models.Model], source: str, **columns: str) -> None:
    """Insert a row for each of `source`, with the model's defaults but for these columns."""
    blank, about = model(), model._meta  # noqa: SLF001 - Django documents it
    defaults: Mapping[str, Any] = {
        field.column: field.get_db_prep_save(field.pre_save(blank, add=True), connection)
        for field in about.local_concrete_fields
        if field.column and not (field.primary_key or field.generated or field.column in columns)
    }
    names = ", ".join(f'"{name}"' for name in (*columns, *defaults))
    values = ", ".join((*columns.values(), *("%s" for _ in defaults)))
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {about.db_table} ({names}) SELECT {values} FROM {source}",
            list(defaults.values()),
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", type=int)
    parser.add_argument("--versions", type=int, default=2)
    parser.add_argument("--history", type=int, default=0)
    asked = parser.parse_args()
    load(asked.models, versions=asked.versions, history=asked.history)
