"""Know which words of a name, a summary or a tag stand side by side."""

import django.contrib.postgres.fields
import django.contrib.postgres.indexes
from django.db import migrations, models
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
    """The rows are filled while no index looks on."""

    dependencies = [("registry", "0039_restored_edges")]

    operations = [
        migrations.AddField(
            model_name="repository",
            name="word_pairs",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.IntegerField(), blank=True, db_default=[], default=list, size=None
            ),
        ),
        migrations.RunPython(fill, migrations.RunPython.noop, elidable=True),
        migrations.AddIndex(
            model_name="repository",
            index=django.contrib.postgres.indexes.GinIndex(
                fields=["word_pairs"], name="repository_word_pairs", fastupdate=False
            ),
        ),
    ]
