"""Mark the words of names, summaries and tags in the index as none of cards and no stems."""

import django.contrib.postgres.indexes
import django.contrib.postgres.search
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps

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
            row.card_terms = lexicon.terms_of(row.card_text)
        repositories.bulk_update(found, ["search_terms", "card_terms"])
        last = found[-1].pk


def know(apps: StateApps, editor: BaseDatabaseSchemaEditor) -> None:
    """Know the words that the index has, and no others: what finds a row comes from that row."""
    repositories = apps.get_model("registry", "Repository").objects
    words = apps.get_model("registry", "SearchWord").objects
    words.all().delete()
    last = 0
    with editor.connection.cursor() as cursor:
        while keys := list(
            repositories.filter(pk__gt=last).order_by("pk").values_list("pk", flat=True)[:_AT_ONCE]
        ):
            cursor.execute(
                "SELECT DISTINCT lexeme FROM registry_repository, unnest(search_vector)"
                " WHERE id = ANY(%s) AND weights && %s",
                [keys, ["A", "C"]],
            )
            known = lexicon.known_among(lexeme for (lexeme,) in cursor.fetchall())
            words.bulk_create([words.model(word=one) for one in known], ignore_conflicts=True)
            last = keys[-1]


class Migration(migrations.Migration):
    """The rows are filled while no index looks on."""

    dependencies = [("registry", "0037_rows_in_one_place")]

    operations = [
        migrations.RemoveIndex(model_name="repository", name="repository_search_words"),
        migrations.RemoveField(model_name="repository", name="search_vector"),
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
                    "search_terms", config="simple", weight="C"
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
        migrations.AlterField(
            model_name="searchword",
            name="word",
            field=models.CharField(max_length=1000, primary_key=True, serialize=False),
        ),
        migrations.RunPython(know, migrations.RunPython.noop, elidable=True),
        migrations.AddIndex(
            model_name="repository",
            index=django.contrib.postgres.indexes.GinIndex(
                fields=["search_vector"], name="repository_search_words", fastupdate=False
            ),
        ),
    ]
