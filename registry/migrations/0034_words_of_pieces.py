"""Every word of what is searched is known, so that pieces of words are looked up among them.

What else a piece is found by, 0036 writes with the concepts that came next.
"""

from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps

from registry import lexicon

_AT_ONCE = 500


def fill(apps: StateApps, _editor: BaseDatabaseSchemaEditor) -> None:
    """Write down the words of what is registered already; deleted rows may be brought back."""
    texts = apps.get_model("registry", "Repository").objects.values_list("search_text", flat=True)
    words = apps.get_model("registry", "SearchWord").objects
    known = set[str]()
    for text in texts.iterator(_AT_ONCE):
        known |= lexicon.words_in(text)
    words.bulk_create(
        [words.model(word=word) for word in sorted(known)], batch_size=5000, ignore_conflicts=True
    )


class Migration(migrations.Migration):
    dependencies = [("registry", "0033_task_and_library")]

    operations = [
        migrations.AlterField(
            model_name="searchword",
            name="word",
            field=models.CharField(max_length=100, primary_key=True, serialize=False),
        ),
        migrations.RunPython(fill, migrations.RunPython.noop, elidable=True),
    ]
