"""Know which words of each name, summary and tag stand side by side."""

import django.contrib.postgres.indexes
from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps

from registry import lexicon

_AT_ONCE = 500


def fill(apps: StateApps, editor: BaseDatabaseSchemaEditor) -> None:
    """Look at each row once; deleted ones may be brought back."""
    del editor
    repositories = apps.get_model("registry", "Repository").objects
    rows = repositories.only("search_text").order_by("pk")
    last = 0
    while found := list(rows.filter(pk__gt=last)[:_AT_ONCE]):
        for row in found:
            row.word_pairs = lexicon.word_pairs_in(row.search_text)
        repositories.bulk_update(found, ["word_pairs"])
        last = found[-1].pk


class Migration(migrations.Migration):
    """Not in one transaction: nobody waits for a row, or for the index, until all are done."""

    atomic = False

    dependencies = [("registry", "0040_word_pairs")]

    operations = [
        migrations.RunPython(fill, migrations.RunPython.noop, elidable=True),
        AddIndexConcurrently(
            model_name="repository",
            index=django.contrib.postgres.indexes.GinIndex(
                fields=["word_pairs"], name="repository_word_pairs", fastupdate=False
            ),
        ),
    ]
