"""Search by concepts, in English and Chinese, and by what a mistyped word may have meant."""

import django.contrib.postgres.indexes
import django.contrib.postgres.search
import django.db.models.deletion
import django.db.models.functions.text
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps

from registry import lexicon

_AT_ONCE = 500


# The first of the metrics in this order that the latest version has, the measured ones first.
_QUALITY = """
    UPDATE registry_repository AS r SET quality = q.value, quality_metric = q.metric
    FROM (
        SELECT DISTINCT ON (v.repository_id) v.repository_id, e.metric, e.value
        FROM registry_evaluation AS e JOIN registry_version AS v ON v.id = e.version_id
        JOIN registry_repository AS m ON m.id = v.repository_id AND m.latest_number = v.number
        WHERE e.metric IN ('accuracy', 'f1_macro', 'cosine_to_parent', 'spearman')
        ORDER BY v.repository_id, e.metric, e.measured DESC, e.created_at DESC, e.id DESC
    ) AS q
    WHERE q.repository_id = r.id
"""


def fill(apps: StateApps, _editor: BaseDatabaseSchemaEditor) -> None:
    """Index what is registered already; deleted rows may be brought back."""
    repositories = apps.get_model("registry", "Repository").objects
    words = apps.get_model("registry", "SearchWord").objects
    rows, known = [], set[str]()
    for row in repositories.select_related("namespace").iterator(_AT_ONCE):
        pieces = lexicon.pieces_of(f"{row.namespace.slug}/{row.name}")
        row.search_terms = f"{pieces} {lexicon.terms_of(row.search_text)}"
        row.card_terms = lexicon.terms_of(row.card_text)
        known |= lexicon.long_words_in(row.search_text)
        rows.append(row)
        if len(rows) == _AT_ONCE:
            repositories.bulk_update(rows, ["search_terms", "card_terms"])
            rows.clear()
    if rows:
        repositories.bulk_update(rows, ["search_terms", "card_terms"])
    words.bulk_create(
        [words.model(word=word) for word in sorted(known)], batch_size=5000, ignore_conflicts=True
    )


class Migration(migrations.Migration):
    # The rows that `fill` touches have deferred constraints, under which no index can be made.
    atomic = False
    dependencies = [("registry", "0024_long_histories")]

    operations = [
        migrations.CreateModel(
            name="SearchWord",
            fields=[
                ("word", models.CharField(max_length=32, primary_key=True, serialize=False)),
            ],
        ),
        migrations.CreateModel(
            name="SavedSearch",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "kind",
                    models.CharField(
                        choices=[("model", "Model"), ("dataset", "Dataset")], max_length=8
                    ),
                ),
                ("name", models.CharField(max_length=100)),
                ("query", models.CharField(max_length=2000)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "user",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="saved_searches",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "saved searches",
                "constraints": [
                    models.UniqueConstraint(
                        models.F("user"),
                        models.F("kind"),
                        django.db.models.functions.text.Lower("name"),
                        name="saved_search_name_unique_without_case",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("kind__in", ["model", "dataset"])),
                        name="saved_search_kind_known",
                    ),
                ],
            },
        ),
        migrations.AddField(
            model_name="repository",
            name="quality",
            field=models.FloatField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="repository",
            name="quality_metric",
            field=models.CharField(blank=True, db_default="", max_length=64),
        ),
        migrations.AddField(
            model_name="repository",
            name="card_terms",
            field=models.TextField(blank=True, db_default=""),
        ),
        migrations.AddField(
            model_name="repository",
            name="search_terms",
            field=models.TextField(blank=True, db_default=""),
        ),
        migrations.RunPython(fill, migrations.RunPython.noop, elidable=True),
        migrations.RunSQL(_QUALITY, migrations.RunSQL.noop, elidable=True),
        migrations.RemoveIndex(model_name="repository", name="repository_search_words"),
        migrations.RemoveField(model_name="repository", name="search_vector"),
        migrations.AddField(
            model_name="repository",
            name="search_vector",
            field=models.GeneratedField(
                db_persist=True,
                expression=django.contrib.postgres.search.SearchVector(
                    "search_text", config="simple", weight="A"
                )
                + django.contrib.postgres.search.SearchVector(
                    "search_text", config="english", weight="B"
                )
                + django.contrib.postgres.search.SearchVector(
                    "search_terms", config="simple", weight="B"
                )
                + django.contrib.postgres.search.SearchVector(
                    "card_text", config="english", weight="D"
                )
                + django.contrib.postgres.search.SearchVector(
                    "card_terms", config="simple", weight="D"
                ),
                output_field=django.contrib.postgres.search.SearchVectorField(),
            ),
        ),
        migrations.AddIndex(
            model_name="repository",
            index=django.contrib.postgres.indexes.GinIndex(
                fields=["search_vector"], name="repository_search_words", fastupdate=False
            ),
        ),
        migrations.AddIndex(
            model_name="repository",
            index=models.Index(
                django.db.models.functions.text.Upper("base_model"),
                condition=models.Q(("base_model", ""), _negated=True),
                name="repository_upper_base",
            ),
        ),
        migrations.AddIndex(
            model_name="repository",
            index=models.Index(
                condition=models.Q(("deleted_at", None), ("quality__isnull", False)),
                fields=["kind", "-quality", "-id"],
                name="repository_best",
            ),
        ),
        migrations.AddIndex(
            model_name="evaluation",
            index=models.Index(
                fields=["metric", "value"], include=("version",), name="evaluation_value"
            ),
        ),
        migrations.AddIndex(
            model_name="searchword",
            index=django.contrib.postgres.indexes.GinIndex(
                django.contrib.postgres.indexes.OpClass("word", name="gin_trgm_ops"),
                fastupdate=False,
                name="search_word_trigrams",
            ),
        ),
    ]
