"""Keep with the edge that a version repeats another one; so far its message alone said so."""

from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps
from django.db.models import F, Q, Value
from django.db.models.functions import Concat


def mark(apps: StateApps, editor: BaseDatabaseSchemaEditor) -> None:
    """Believe the messages once: those that name the very version that the edge leads to."""
    del editor
    edges = apps.get_model("registry", "LineageEdge").objects
    said = Concat(Value("Restores version "), F("parent__number"), output_field=models.TextField())
    found = edges.filter(
        Q(child__message__startswith=Concat(said, Value(".")))
        | Q(child__message__startswith=Concat(said, Value(":"))),
        job=None,
        role__in=("weights", "data"),
        child__repository=F("parent__repository"),
        child__variant="",
        child__message__startswith="Restores version ",
    )
    edges.filter(pk__in=found.values("pk")).update(restores=True)


class Migration(migrations.Migration):
    """Add the mark, and set it where a message is what a restored version was given."""

    dependencies = [("registry", "0038_marked_words")]

    operations = [
        migrations.AddField(
            model_name="lineageedge",
            name="restores",
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.RunPython(mark, migrations.RunPython.noop, elidable=True),
    ]
