"""Let the words of names, summaries and tags stand in the index apart from those of cards."""

import django.contrib.postgres.fields
import django.contrib.postgres.indexes
import django.contrib.postgres.search
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps

import registry.models.catalog
from registry import lexicon

_AT_ONCE = 500


def fill(apps: StateApps, editor: BaseDatabaseSchemaEditor) -> None:
    """Look at each row once; deleted ones may be brought back."""
    del editor
    repositories = apps.get_model("registry", "Repository").objects
    columns = ("namespace__slug", "name", "search_text", "card_text")
    rows = repositories.select_related("namespace").only(*columns).order_by("pk")
    last = 0
    while found := list(rows.filter(pk__gt=last)[:_AT_ONCE]):
        for row in found:
            full_name = f"{row.namespace.slug}/{row.name}"
            row.search_terms = lexicon.search_terms_of(full_name, row.search_text)
            row.search_tokens = lexicon.search_tokens_of(row.search_text)
            row.card_terms = lexicon.terms_of(row.card_text)
        repositories.bulk_update(found, ["search_terms", "search_tokens", "card_terms"])
        last = found[-1].pk


class Migration(migrations.Migration):
    """The rows are filled while no index looks on, which takes a third of the time."""

    dependencies = [("registry", "0037_rows_in_one_place")]

    operations = [
        migrations.RemoveIndex(model_name="repository", name="repository_search_words"),
        migrations.RemoveField(model_name="repository", name="search_vector"),
        migrations.AddField(
            model_name="repository",
            name="search_tokens",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.TextField(), blank=True, db_default=[], default=list, size=None
            ),
        ),
        migrations.RunPython(fill, migrations.RunPython.noop, elidable=True),
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
                )
                + registry.models.catalog.TokensVector("search_tokens"),
                output_field=django.contrib.postgres.search.SearchVectorField(),
            ),
        ),
        migrations.AddIndex(
            model_name="repository",
            index=django.contrib.postgres.indexes.GinIndex(
                fields=["search_vector"], name="repository_search_words", fastupdate=False
            ),
        ),
    ]
