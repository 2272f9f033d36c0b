"""Index what is registered by the concepts that the table has come to know."""

from datetime import UTC, datetime

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps

from registry import lexicon

_AT_ONCE = 500
_VECTORS = "registry_cardvector"


def fill(apps: StateApps, editor: BaseDatabaseSchemaEditor) -> None:
    """Look at each row once; deleted ones may be brought back."""
    repositories = apps.get_model("registry", "Repository").objects
    columns = ("namespace__slug", "name", "search_text", "search_terms", "card_text", "card_terms")
    rows = repositories.select_related("namespace").only(*columns).order_by("pk")
    last = 0
    while found := list(rows.filter(pk__gt=last)[:_AT_ONCE]):
        changed = []
        for row in found:
            full_name = f"{row.namespace.slug}/{row.name}"
            terms = (
                lexicon.search_terms_of(full_name, row.search_text),
                lexicon.terms_of(row.card_text),
            )
            if terms != (row.search_terms, row.card_terms):
                row.search_terms, row.card_terms = terms
                changed.append(row)
        if changed:
            repositories.bulk_update(changed, ["search_terms", "card_terms"])
            _read_again(editor, [row.pk for row in changed])
        last = found[-1].pk


def _read_again(editor: BaseDatabaseSchemaEditor, keys: list[int]) -> None:
    """Have the encoder look once more, for it may be told more of them in English now."""
    with editor.connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [_VECTORS])
        if cursor.fetchone()[0]:
            cursor.execute(
                f"UPDATE {_VECTORS} SET read_at = %s WHERE repository_id = ANY(%s)",  # noqa: S608
                [datetime(1970, 1, 1, tzinfo=UTC), keys],
            )


class Migration(migrations.Migration):
    # A million rows are not held in one transaction.
    atomic = False
    dependencies = [("registry", "0034_words_of_pieces")]

    operations = [migrations.RunPython(fill, migrations.RunPython.noop, elidable=True)]
