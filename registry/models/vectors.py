"""CardVector: where a repository's card lies among all others, by its meaning.

The table needs pgvector. Where the database has none there is no table, and nothing else misses it.
"""

from typing import Any, Final

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

from registry.models.catalog import Repository

DIMENSIONS: Final = 384
# Since this version an index scan goes on when a filter has dropped what it found.
_OLDEST: Final = (0, 8)
TABLE: Final = "registry_cardvector"
# Derived from the cards, so it may be dropped and made anew at any time. 16-bit floats are exact
# enough: they halve the index, and no order among the first ten changes.
_TABLE_SQL: Final = f"""
    CREATE TABLE IF NOT EXISTS {TABLE} (
        repository_id bigint PRIMARY KEY
            REFERENCES registry_repository (id) ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
        encoder varchar(64) NOT NULL,
        digest varchar(64) NOT NULL,
        read_at timestamptz NOT NULL,
        embedding halfvec({DIMENSIONS}) NOT NULL
    );
"""
INDEX: Final = "card_vector_near"
INDEX_SQL: Final = f"""
    CREATE INDEX IF NOT EXISTS {INDEX} ON {TABLE} USING hnsw (embedding halfvec_cosine_ops);
"""


class HalfVector(models.TextField):  # type: ignore[type-arg]
    """A vector of 16-bit floats, in and out as pgvector writes it."""

    def db_type(self, connection: BaseDatabaseWrapper) -> str:  # noqa: ARG002 - Django's signature
        return f"halfvec({DIMENSIONS})"


class CardVector(models.Model):
    """The vector of a card as it was read at `read_at`; `digest` is of the text that was read."""

    repository = models.OneToOneField(
        Repository, primary_key=True, on_delete=models.DO_NOTHING, related_name="+"
    )
    # The digest of the model that computed it: vectors of two models cannot be compared.
    encoder = models.CharField(max_length=64)
    digest = models.CharField(max_length=64)
    read_at = models.DateTimeField()
    embedding: Any = HalfVector()

    def __str__(self) -> str:
        return f"{self.repository_id} by {self.encoder[:8]}"


def make_vector_table(connection: BaseDatabaseWrapper) -> bool:
    """Make the table where the database can have it; say whether it can."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [TABLE])
        if cursor.fetchone()[0]:
            return True
        cursor.execute(
            "SELECT coalesce(i.extversion, a.default_version), i.extversion IS NOT NULL,"
            " (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)"
            " OR has_database_privilege(current_database(), 'CREATE') AND"
            " (SELECT bool_or(v.trusted) FROM pg_available_extension_versions AS v"
            "  WHERE v.name = a.name)"
            " FROM pg_available_extensions AS a LEFT JOIN pg_extension AS i ON i.extname = a.name"
            " WHERE a.name = 'vector'"
        )
        found = cursor.fetchone()
        if found is None:
            return False
        version, is_installed, may_install = found
        if tuple(map(int, version.split(".")[:2])) < _OLDEST or not (is_installed or may_install):
            return False
        if not is_installed:
            cursor.execute("CREATE EXTENSION vector")
        cursor.execute(_TABLE_SQL + INDEX_SQL)
    return True
