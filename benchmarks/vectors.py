"""Give every model of a loaded registry a vector, and index them all.

`DATABASE_URL` and `MODELYARD_HOME` name the registry; its encoder runs. A model lies near what it
is about, in the words of its family, subject and language, which are read by the encoder; none lies
just where another does.
"""

import itertools
import os
import time

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup()

from django.db import connection, transaction  # noqa: E402 - needs the settings

from benchmarks.vocabulary import FAMILIES, LANGUAGES, SUBJECTS  # noqa: E402
from registry.encoder import MAX_TEXTS, encode  # noqa: E402
from registry.models.vectors import INDEX, INDEX_SQL, TABLE  # noqa: E402

_PATIENCE_SECONDS = 60.0
_NEAR = f"""
    INSERT INTO {TABLE} (repository_id, encoder, digest, read_at, embedding)
    SELECT r.id, %s, 'benchmark', r.updated_at,
           l2_normalize(about.embedding + about.embedding + about.embedding + other.embedding)
    FROM registry_repository AS r
    JOIN about ON about.family = lower(split_part(r.summary, ' ', 1))
        AND about.subject = r.labels[2] AND about.language = r.labels[1]
    JOIN about AS other ON other.id = 1 + (r.id * 7919) %% %s
"""


def load_vectors() -> None:
    """Fill the table anew; the index is made once it is full."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0")
        cursor.execute("SET LOCAL maintenance_work_mem = '3GB'")
        cursor.execute("SET LOCAL session_replication_role = replica")
        cursor.execute(f"TRUNCATE {TABLE}")
        cursor.execute(f"DROP INDEX {INDEX}")
        encoder, count = _encode()
        began = time.monotonic()
        cursor.execute(_NEAR, [encoder, count])
        print(f"{cursor.rowcount:,} vectors in {time.monotonic() - began:.0f} s", flush=True)
        began = time.monotonic()
        cursor.execute(INDEX_SQL)
        print(f"indexed in {time.monotonic() - began:.0f} s", flush=True)
    with connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")
        cursor.execute(f"VACUUM ANALYZE {TABLE}")


def _encode() -> tuple[str, int]:
    """Read what models are about to the encoder; give its name, and how many vectors there are."""
    about = list(itertools.product(FAMILIES, SUBJECTS, LANGUAGES))
    encoder = ""
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TEMPORARY TABLE about (id serial PRIMARY KEY, family text, subject text,"
            " language text, embedding halfvec) ON COMMIT DROP"
        )
        for at in range(0, len(about), MAX_TEXTS):
            some = about[at : at + MAX_TEXTS]
            texts = [f"{family} for {subject} in {language}" for family, subject, language in some]
            found = encode(texts, seconds=_PATIENCE_SECONDS)
            encoder = found.encoder
            cursor.executemany(
                "INSERT INTO about (family, subject, language, embedding) VALUES (%s, %s, %s, %s)",
                [(*one, vector) for one, vector in zip(some, found.vectors, strict=True)],
            )
    return encoder, len(about)


if __name__ == "__main__":
    load_vectors()
