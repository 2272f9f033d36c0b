"""Every word of what is searched is known, so that pieces of words are looked up among them."""

from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps

from registry import lexicon

_AT_ONCE = 500


def fill(apps: StateApps, _editor: BaseDatabaseSchemaEditor) -> None:
    """Write down the words of what is registered already; deleted rows may be brought back."""
    repositories = apps.get_model("registry", "Repository").objects
    words = apps.get_model("registry", "SearchWord").objects
    known, rows = set[str](), []
    asked = repositories.select_related("namespace").only(
        "namespace__slug", "name", "search_text", "search_terms"
    )
    for row in asked.iterator(_AT_ONCE):
        known |= lexicon.words_in(row.search_text)
        full_name = f"{row.namespace.slug}/{row.name}"
        lacking = lexicon.joined_words(row.search_text) - set(row.search_terms.split())
        if lacking - set(lexicon.pieces_of(full_name).split()):
            row.search_terms = lexicon.search_terms_of(full_name, row.search_text)
            rows.append(row)
        if len(rows) == _AT_ONCE:
            repositories.bulk_update(rows, ["search_terms"])
            rows.clear()
    if rows:
        repositories.bulk_update(rows, ["search_terms"])
    words.bulk_create(
        [words.model(word=word) for word in sorted(known)], batch_size=5000, ignore_conflicts=True
    )


class Migration(migrations.Migration):
    # The rows that `fill` touches have deferred constraints, under which no table can be changed.
    atomic = False
    dependencies = [("registry", "0033_task_and_library")]

    operations = [
        migrations.AlterField(
            model_name="searchword",
            name="word",
            field=models.CharField(max_length=100, primary_key=True, serialize=False),
        ),
        migrations.RunPython(fill, migrations.RunPython.noop, elidable=True),
    ]
